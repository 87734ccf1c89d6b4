//! Multi-host tests: the real binary on hosts made of namespaces, a client that writes, faults, and checks of what was
//! acknowledged.

pub mod bed;
pub mod cluster;
pub mod faults;
pub mod figures;
pub mod load;
pub mod rest;
pub mod stories;
