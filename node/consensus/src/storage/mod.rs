//! Raft's disk: one redb file holds votes, log and snapshot; one thread writes it and syncs before it reports.

mod log;
mod machine;
mod writer;

pub use log::LogStore;
pub use machine::{MachineStore, Shared};
pub use writer::{OpenError, Writer};

use openraft::{AnyError, ErrorSubject, ErrorVerb, StorageIOError};

use crate::raft_types::StorageError;

/// A storage failure as openraft wants to hear it. It stops the node: a disk that failed once is not trusted again.
pub(crate) fn failure(verb: ErrorVerb, error: &dyn std::error::Error) -> StorageError {
    StorageError::IO { source: StorageIOError::new(ErrorSubject::Store, verb, AnyError::error(error.to_string())) }
}
