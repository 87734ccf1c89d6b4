//! What SQLSTATEs mean to us.

/// Our own SQLSTATE, raised by `fence()` and `open_epoch()`.
const FENCED: &str = "QU001";

/// A statement or a commit went wrong.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another epoch is open: this process may not write any more. Nothing was written.
    #[error("this node's epoch is over")]
    Fenced,
    /// A unique constraint refused the row.
    #[error("a row with the same {constraint} exists")]
    Conflict {
        /// Its name in the schema.
        constraint: String,
    },
    /// A foreign key refused: the row still has dependants, or what it refers to is gone.
    #[error("{constraint} refuses this")]
    Reference {
        /// Its name in the schema.
        constraint: String,
    },
    /// The database refused a value (a check, a length, an encoding).
    #[error("the database refused a value")]
    Refused(#[source] sqlx::Error),
    /// A client named a field that the list does not have.
    #[error("unknown field `{0}`")]
    UnknownField(String),
    /// No connection, or the server is going away, before anything was committed. May be repeated.
    #[error("the database cannot be reached")]
    Unavailable(#[source] sqlx::Error),
    /// Two transactions got in each other's way. Nothing was written; may be repeated.
    #[error("another transaction was faster")]
    Serialization(#[source] sqlx::Error),
    /// The connection ended while the commit was under way: it may have happened.
    #[error("whether the commit happened is not known")]
    CommitUnknown(#[source] sqlx::Error),
    /// Our bug, or a database that is not ours.
    #[error("the database does not fit this program")]
    Unexpected(#[source] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("migrate the schema")]
    Migrate(#[source] sqlx::migrate::MigrateError),
}

impl StoreError {
    /// Whether `constraint` refused the row.
    #[must_use]
    pub fn is_conflict_on(&self, constraint: &str) -> bool {
        matches!(self, Self::Conflict { constraint: name } if name == constraint)
    }

    /// The error of a `COMMIT`: only an answer of a server that goes on serving is a definite no.
    pub(crate) fn of_commit(error: sqlx::Error) -> Self {
        match Self::from(error) {
            Self::Unavailable(cause) | Self::Unexpected(cause) => Self::CommitUnknown(cause),
            definite => definite,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(answer) = &error else {
            return match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::BeginFailed => Self::Unavailable(error),
                other => Self::Unexpected(other),
            };
        };
        let constraint = || answer.constraint().unwrap_or_default().to_owned();
        let code = answer.code().unwrap_or_default().into_owned();
        match code.as_str() {
            FENCED => Self::Fenced,
            "23505" => Self::Conflict { constraint: constraint() },
            "23503" => Self::Reference { constraint: constraint() },
            "40001" | "40P01" => Self::Serialization(error),
            // Class 22: a value that the column cannot hold. 23: checks.
            code if code.starts_with("22") || code.starts_with("23") => Self::Refused(error),
            // 08 connection, 53 resources, 57 the server stops or starts, 58 its disk, 25006 it became a standby.
            code if code == "25006" || ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) => {
                Self::Unavailable(error)
            }
            _ => Self::Unexpected(error),
        }
    }
}
