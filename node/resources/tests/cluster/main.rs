//! The resources directory on several nodes, over real sockets and real disks.

mod bed;
mod hostile;
mod replication;
