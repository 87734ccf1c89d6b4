//! The REST API over a real database, called without a network.

mod archives;
mod blueprints;
mod deployments;
mod executions;
mod support;
mod system;
mod tenants;
mod users;
