//! Decisions, pure: who may be active, in which order the synchronous set changes, when a lease is over, what a
//! workflow does next.
//!
//! No runtime, clock, randomness, file or socket: time comes in as data, and what is to be done comes out as data.

pub mod failover;
pub mod invariants;
pub mod lease;
pub mod membership;
pub mod rejoin;
pub mod standing;
pub mod workflow;
