//! The file server: what workers, agents and clients read from the replicated directory.

use std::fs::File;
use std::time::SystemTime;

use quorate_store::tenants;

use crate::actor::Via;
use crate::ports::ContentError;
use crate::{App, AppError, Code, Login, Permission, blueprints};

/// Directories whose next name is a tenant.
const OF_TENANTS: [&str; 4] = ["blueprints", "uploaded-blueprints", "deployments", "tenant-resources"];
/// Directories that everybody who is logged in may read.
const OF_ALL: [&str; 2] = ["global-resources", "plugins"];

/// Use cases of the file server.
pub struct Files<'a>(pub(crate) &'a App);

/// A file that is being read.
pub struct OpenedFile {
    /// It.
    pub file: File,
    /// The last name of its path.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was last changed.
    pub modified: SystemTime,
}

impl Files<'_> {
    /// Opens a file. Who may read it is told by the path alone: of a tenant's files those who may in that tenant,
    /// whatever tenant the request names; of global blueprints everybody.
    ///
    /// # Errors
    /// `forbidden_error`; `not_found_error`, also for what is never served.
    pub async fn open(&self, login: &Login, path: &str) -> Result<OpenedFile, AppError> {
        let mut names = path.split('/');
        if names.clone().any(|name| name.is_empty() || name == "." || name == "..") || path.contains('\0') {
            return Err(AppError::not_found("File", path));
        }
        let first = names.next().unwrap_or_default();
        if OF_TENANTS.contains(&first) {
            let (tenant, resource) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
            self.check(login, first, tenant, resource).await?;
        } else if first == "snapshots" {
            login.require(Permission::SnapshotDownload)?;
        } else if !OF_ALL.contains(&first) {
            return Err(AppError::not_found("File", path));
        }
        self.0.open_content(path).await?.ok_or_else(|| AppError::not_found("File", path))
    }

    async fn check(&self, login: &Login, directory: &str, tenant: &str, resource: &str) -> Result<(), AppError> {
        let refused = || {
            let message = format!("User `{}` is not permitted to read files of the tenant `{tenant}`", login.username);
            Err(AppError::new(Code::Forbidden, message))
        };
        let mut reader = self.0.store().read().await?;
        let Some(found) = tenants::find(&mut reader, tenant).await? else { return refused() };
        // An execution reads for its own tenant only, whatever else its creator may do.
        let is_foreign = matches!(&login.via, Via::Execution { tenant: own, .. } if own != tenant);
        if !is_foreign && login.may_in(found.key, Permission::FileServerAuth) {
            return Ok(());
        }
        let holds_blueprints = directory == blueprints::TREES || directory == blueprints::ARCHIVES;
        if holds_blueprints && blueprints::is_global(&mut reader, found.key, resource).await? {
            return Ok(());
        }
        refused()
    }
}

impl App {
    /// Opens a file of the replicated directory, whoever asks. `None`: there is none.
    pub(crate) async fn open_content(&self, path: &str) -> Result<Option<OpenedFile>, AppError> {
        let Some(file) = self.ports().content.open(path).await? else { return Ok(None) };
        let found = file.metadata().map_err(ContentError::Disk)?;
        let modified = found.modified().map_err(ContentError::Disk)?;
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name).to_owned();
        Ok(Some(OpenedFile { file, name, size: found.len(), modified }))
    }
}

impl From<ContentError> for AppError {
    fn from(error: ContentError) -> Self {
        let (code, message) = match &error {
            ContentError::NoMajority => {
                (Code::FileSync, "the files could not be placed on a majority of the nodes; ask again".to_owned())
            }
            ContentError::Disk(_) => (Code::Internal, "the active node's disk failed".to_owned()),
            ContentError::BadPath(path) => (Code::BadParameters, format!("`{}` cannot be a path", path.display())),
        };
        Self::caused(code, message, error)
    }
}
