//! Carries out executions.

pub(crate) mod changes;
