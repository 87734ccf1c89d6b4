//! Generated messages and services of the cluster ports, one module per `.proto` package.

/// Node-to-node control on port 8300: observation, freeze, lease, orders.
#[allow(clippy::all, missing_docs)]
pub mod control {
    tonic::include_proto!("quorate.control.v1");
}

/// Raft on port 8300.
#[allow(clippy::all, missing_docs)]
pub mod consensus {
    tonic::include_proto!("quorate.consensus.v1");
}

/// The resources directory on port 22000.
#[allow(clippy::all, missing_docs)]
pub mod resources {
    tonic::include_proto!("quorate.resources.v1");
}
