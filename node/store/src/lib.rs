//! SQL: the only place that knows a table, a column, a constraint or an SQLSTATE.
//!
//! One file per table, functions named by what they do. Functions that only read take a [`PgConnection`]; functions
//! that write take a [`Tx`], which cannot be had without passing the fence. A `Tx` can be used wherever a connection
//! is wanted, not the other way round.
//!
//! *Invariants*: a process that serves an epoch writes nothing once a later epoch is open; an answer that reports
//! success was committed on the synchronous standbys. For the second one no `statement_timeout` may be set and no
//! query be cancelled: PostgreSQL reports a cancelled wait for a standby as success with a warning.

pub mod blueprints;
pub mod deployment_views;
pub mod deployments;
mod document;
mod error;
pub mod events;
pub mod executions;
pub mod instance_states;
mod labels;
pub mod list;
pub mod node_instances;
pub mod nodes;
pub mod operations;
mod scope;
pub mod tasks_graphs;
pub mod tenants;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tokens;
mod tx;
pub mod users;

pub use document::Document;
pub use error::StoreError;
pub use labels::{Label, NewLabel};
pub use list::{ListQuery, Listing, Sort};
pub use scope::{Scope, Visibility};
pub use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
pub use sqlx::{PgConnection, PgPool};
pub use tx::{Reader, Store, Tx, migrate, open_epoch};
