//! Hands operations to workers over AMQP and takes their replies: exchanges, queues and message bodies as
//! `cloudify-common` and its agents know them.
//!
//! *Invariants*: every connection is TLS and trusts one authority only; a send ends in exactly one of "kept", "surely
//! not kept" and "may have been kept"; a reply stays in its queue until [`Received::ack`].

mod link;
mod message;
mod outcome;
mod responses;
mod send;
mod topology;

pub use link::{AmqpTarget, LinkError};
pub use message::{ManagerAccess, MessageError, OperationMessage, cancel_operation};
pub use outcome::{Outcome, TaskError};
pub use responses::{Received, Reply, Responses, ResponsesError};
pub use send::{SendError, Sender};
pub use topology::{
    MANAGEMENT, MANAGEMENT_SERVICE, OPERATION_KEY, RESPONSES_QUEUE, SERVICE_KEY, operation_queue, service_queue,
};
