//! The account that PostgreSQL runs under: it refuses to be root.

use std::io;
use std::os::unix::fs::chown;
use std::path::Path;

use nix::unistd::{Uid, User};

use crate::error::PostgresError;

/// Whom to become. `None`: this process is no root already, and children run as it does.
#[derive(Debug, Clone, Copy)]
pub struct Account(Option<(u32, u32)>);

impl Account {
    /// The named account when this process is root.
    pub fn find(name: &str) -> Result<Self, PostgresError> {
        if !Uid::effective().is_root() {
            return Ok(Self(None));
        }
        match User::from_name(name) {
            Ok(Some(user)) if !user.uid.is_root() => Ok(Self(Some((user.uid.as_raw(), user.gid.as_raw())))),
            _ => Err(PostgresError::NoAccount(name.to_owned())),
        }
    }

    /// The ids to switch to.
    pub fn ids(self) -> Option<(u32, u32)> {
        self.0
    }

    /// Gives a file or directory to the account.
    pub fn own(self, path: &Path) -> io::Result<()> {
        self.0.map_or(Ok(()), |(uid, gid)| chown(path, Some(uid), Some(gid)))
    }

    /// The operating system's name of this process's own user, for `pg_ident.conf`.
    pub fn own_name() -> String {
        User::from_uid(Uid::effective()).ok().flatten().map_or_else(|| "root".to_owned(), |user| user.name)
    }
}
