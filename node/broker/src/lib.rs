//! Runs this node's RabbitMQ: one child process with files of its own, and the virtual hosts and users it shall have.
//!
//! The broker is transport only. It is not clustered, keeps nothing that PostgreSQL does not know, and may be thrown
//! away; so what it must hold is given as a whole ([`Desired`]) and the difference is worked out here.
//!
//! *Invariants*: TLS only; the `guest` user never exists; no password is in a command line, in the environment or, as
//! plain text, in a file; when the daemon dies the broker dies with it.

mod child;
mod desired;
mod error;
mod files;
mod management;
mod password;
mod reconcile;
mod settings;
mod supervisor;

pub use desired::{Desired, Permission, UserDef, VhostDef};
pub use error::BrokerError;
pub use reconcile::Reconciled;
pub use settings::BrokerSettings;
pub use supervisor::{Broker, BrokerStatus};
