//! What can go wrong with the local PostgreSQL.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::wire::WireError;

/// Named by what was attempted; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The account is not there.
    #[error("there is no user `{0}` to run PostgreSQL as (is postgresql-15 installed?)")]
    NoAccount(String),
    /// A file or directory of ours.
    #[error("{what} {path}")]
    File {
        /// What was attempted.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A program of PostgreSQL could not be run.
    #[error("run {program} (is postgresql-15 installed there?)")]
    Spawn {
        /// Its path.
        program: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A program of PostgreSQL failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The end of what it printed.
        output: String,
    },
    /// The server ended while something was asked of it.
    #[error("PostgreSQL ended: {0}")]
    Ended(String),
    /// It did not come to it in time.
    #[error("{what} took longer than {limit:?}")]
    TooSlow {
        /// What was waited for.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// A query failed.
    #[error("ask PostgreSQL")]
    Query(#[from] WireError),
    /// The server answered something that cannot be.
    #[error("PostgreSQL answered nonsense to {0}")]
    Nonsense(&'static str),
    /// A newer epoch was promised while something was fetched from the holder of an older one.
    #[error("the node it was fetched from is followed no longer")]
    Left,
    /// The server is not running.
    #[error("PostgreSQL is not running")]
    NotRunning,
}

impl PostgresError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}
