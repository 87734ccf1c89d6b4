//! Use cases: what users may do, and what that changes.
//!
//! The edge (`api`) says who calls and what they want; this crate checks permissions, changes several tables in one
//! transaction and asks its [`ports`] for what is outside of the database. It knows no status code and no SQL.
//!
//! *Invariants*: a use case on a tenant's resources takes an [`Actor`], checks a [`Permission`] and passes the actor's
//! [`Scope`] to every query; files are placed on a majority before the row that names them is committed.
//!
//! # To add a resource
//!
//! 1. `store/migrations/NNNN_….sql`: its table, unless it is there. `store/src/<resource>.rs`: row, `Source`, `list`,
//!    `find` (both take the `Scope`), writes on `&mut Tx`; names of constraints as constants.
//! 2. `app/src/<resource>.rs`: `pub struct <Resources><'a>(pub(crate) &'a App)` with one method per use case, and
//!    `App::<resources>()` below. First line: `actor.require(Permission::…)?`. Then `self.0.store.read()` or
//!    `.begin()` … `.commit()`. Afterwards wake who must look (`ports.executor.wake()`).
//! 3. `api/src/rest/<resource>.rs`: `view!` for the answer, a `Deserialize` struct for each body, thin handlers,
//!    `pub fn routes() -> Router<App>`; merge it in `api/src/rest/mod.rs`.
//! 4. `api/tests/rest/<resource>.rs`: call it; `quorate_app::testing` gives an `App` on a real database.

pub mod actor;
mod archives;
pub mod auth;
pub mod blueprints;
mod bootstrap;
pub mod config;
pub mod deployments;
mod error;
pub mod evaluate;
pub mod events;
pub mod executions;
pub mod executor;
pub mod files;
mod labels;
pub mod names;
pub mod nodes;
pub mod operations;
pub mod permissions;
pub mod ports;
mod sources;
pub mod system;
pub mod tenants;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tokens;
pub mod uploads;
pub mod users;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_store::{PgPool, Store};
use quorate_types::Epoch;
use tokio::sync::Semaphore;

pub use actor::{Actor, Login};
pub use archives::UploadLimits;
pub use error::{AppError, Code};
pub use permissions::{Permission, SystemRole, TenantRole};
pub use ports::Ports;
pub use quorate_store::{Label, ListQuery, Listing, Scope, Sort, Visibility};

/// The tenant that is always there.
pub const DEFAULT_TENANT: &str = "default_tenant";
/// The first administrator's name.
pub const FIRST_ADMIN: &str = "admin";

/// What a use case needs.
pub struct AppSettings {
    /// The primary's database, migrated.
    pub pool: PgPool,
    /// What this process serves; [`quorate_store::open_epoch`] has succeeded for it.
    pub epoch: Epoch,
    /// The replicated directory.
    pub resources_root: PathBuf,
    /// Everything outside of the database.
    pub ports: Ports,
    /// What uploads may bring.
    pub limits: UploadLimits,
}

/// The use cases. Cheap to clone; one per epoch that this process serves.
#[derive(Clone)]
pub struct App(Arc<Inner>);

struct Inner {
    store: Store,
    ports: Ports,
    resources_root: PathBuf,
    limits: UploadLimits,
    /// Tenants and ids of blueprints that are being uploaded or removed.
    busy: Mutex<HashSet<(i64, String)>>,
    /// Turns to receive an upload.
    receiving: Arc<Semaphore>,
    /// Turns to unpack and compile one.
    upload_jobs: Semaphore,
    passwords: auth::Passwords,
}

impl App {
    /// Puts it together; starts nothing.
    #[must_use]
    pub fn new(settings: AppSettings) -> Self {
        Self(Arc::new(Inner {
            store: Store::new(settings.pool, settings.epoch),
            ports: settings.ports,
            resources_root: settings.resources_root,
            limits: settings.limits,
            busy: Mutex::default(),
            receiving: Arc::new(Semaphore::new(uploads::RECEIVED_MAX)),
            upload_jobs: Semaphore::new(uploads::JOBS_MAX),
            passwords: auth::Passwords::new(),
        }))
    }

    /// The database behind the fence.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Everything outside of the database.
    #[must_use]
    pub fn ports(&self) -> &Ports {
        &self.0.ports
    }

    /// The replicated directory. Read it; write only through [`ports::ContentStore`].
    #[must_use]
    pub fn resources_root(&self) -> &Path {
        &self.0.resources_root
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<(i64, String)>> {
        // Insert and remove do not panic half way.
        self.0.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blueprints.
    #[must_use]
    pub fn blueprints(&self) -> blueprints::Blueprints<'_> {
        blueprints::Blueprints(self)
    }

    /// Deployments.
    #[must_use]
    pub fn deployments(&self) -> deployments::Deployments<'_> {
        deployments::Deployments(self)
    }

    /// Nodes and their instances.
    #[must_use]
    pub fn nodes(&self) -> nodes::Nodes<'_> {
        nodes::Nodes(self)
    }

    /// The file server.
    #[must_use]
    pub fn files(&self) -> files::Files<'_> {
        files::Files(self)
    }

    /// Tenants and who belongs to them.
    #[must_use]
    pub fn tenants(&self) -> tenants::Tenants<'_> {
        tenants::Tenants(self)
    }

    /// Users.
    #[must_use]
    pub fn users(&self) -> users::Users<'_> {
        users::Users(self)
    }

    /// Tokens of users.
    #[must_use]
    pub fn tokens(&self) -> tokens::Tokens<'_> {
        tokens::Tokens(self)
    }

    /// How the cluster is.
    #[must_use]
    pub fn system(&self) -> system::System<'_> {
        system::System(self)
    }

    /// Executions of workflows.
    #[must_use]
    pub fn executions(&self) -> executions::Executions<'_> {
        executions::Executions(self)
    }

    /// Events and logs of executions.
    #[must_use]
    pub fn events(&self) -> events::Events<'_> {
        events::Events(self)
    }

    /// Task graphs and their operations.
    #[must_use]
    pub fn operations(&self) -> operations::Operations<'_> {
        operations::Operations(self)
    }
}
