//! The workflow engine: which operation runs when, and what its result means.
//!
//! [`build`] turns a deployment into a [`Graph`]: every task is one row, stored by the caller before the first step.
//! A [`Run`] is the moving state over these rows. It answers with data ([`Step`], [`Change`]); the executor writes all
//! changes of one answer in one transaction and only then hands operations to workers. Everything a `Run` knows can be
//! read back from the rows, so a new primary restores it and goes on with the same future.
//!
//! Rows must be read back **in the order they were inserted**: the order decides among tasks that are ready together.

mod build;
mod changes;
mod context;
mod execute_operation;
mod index;
mod install;
mod model;
mod outcome;
mod pytext;
mod relationships;
mod report;
mod restore;
mod resume;
mod run;
mod texts;
mod uninstall;

pub use build::build;
pub use changes::{Change, EventRecord, Step, Target};
pub use index::Deployment;
pub use model::{
    BuildError, CancelKind, ExecutionContext, Graph, Operation, Parameters, RestoreError, TaskError, TaskKind,
    TaskProgress, TaskState, Verdict,
};
pub use outcome::{Failure, FailureKind, TaskOutcome};
pub use pytext::{python_repr, python_str};
pub use report::task_started;
pub use resume::resume;
pub use run::{MAX_CHANGES_PER_STEP, Run, RunOptions};
pub use texts::{workflow_cancelled, workflow_failed, workflow_started, workflow_succeeded};
