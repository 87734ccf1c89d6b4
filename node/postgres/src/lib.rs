//! Runs this node's PostgreSQL: one child process, always started as a standby, promoted only on order.
//!
//! The keeper carries out; what to do is decided in `core` and agreed in Raft. PostgreSQL listens on a private Unix
//! socket only. Everything from outside passes a [`gate`], which checks who asks, for what and in which epoch, and
//! whose connections end at once when the node leaves an epoch.
//!
//! *Invariants*: no start without `standby.signal`; a directory whose rewind was interrupted is never started; the
//! lineage is on disk before any WAL of an epoch can arrive; when the daemon dies PostgreSQL dies with it.

mod account;
mod error;
pub mod gate;
mod keeper;
mod lineage;
mod process;
mod roles;
mod settings;
mod wire;

pub use error::PostgresError;
pub use keeper::{Following, Keeper, Replica};
pub use lineage::Lineage;
pub use roles::{REPLICATION_GROUP, REWIND_ROLE, is_internal, replication_role};
pub use settings::Settings;
pub use wire::{Rows, Session, Startup, WireError};
