//! What can go wrong with the local RabbitMQ.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Named by what was attempted; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The account is not there.
    #[error("there is no user `{0}` to run RabbitMQ as (is rabbitmq-server installed?)")]
    NoAccount(String),
    /// A path that RabbitMQ's shell scripts cannot carry.
    #[error("`{0}` must be absolute and made of letters, digits and `/._@+-` only")]
    Path(PathBuf),
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
    /// The certificate of the authority cannot be used.
    #[error("use the certificate authority in {path}")]
    Authority {
        /// Where it was read from.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The thread that looks after the child could not be started.
    #[error("start a thread for RabbitMQ")]
    Thread(#[source] io::Error),
    /// It did not come to it in time.
    #[error("RabbitMQ was not ready within {limit:?} ({state}); its logs are in {log}")]
    NotReady {
        /// The limit.
        limit: Duration,
        /// What was last seen.
        state: String,
        /// Where its logs are.
        log: PathBuf,
    },
    /// It did not end, not even when killed.
    #[error("RabbitMQ did not end within {0:?}")]
    NotEnding(Duration),
    /// The management interface could not be asked.
    #[error("{what} at RabbitMQ's management interface")]
    Ask {
        /// What was attempted.
        what: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// The management interface said no, or something else than was asked for.
    #[error("{what} at RabbitMQ's management interface: {answer}")]
    Answer {
        /// What was attempted.
        what: String,
        /// Status, or what is wrong with the answer.
        answer: String,
    },
    /// A wish names the administrator, whom only the settings define.
    #[error("the user `{0}` is RabbitMQ's administrator and is not for others to define")]
    Reserved(String),
    /// A permission for a virtual host that nobody wishes.
    #[error("the user `{user}` shall have permissions on the virtual host `{vhost}`, which shall not exist")]
    UnknownVhost {
        /// The user.
        user: String,
        /// The virtual host.
        vhost: String,
    },
}

impl BrokerError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}
