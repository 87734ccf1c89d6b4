//! A whole cluster of cores in one thread: time is a number, and every choice comes from one seed.
//!
//! The adapters around the cores are models of `node/src/local`, `node/src/loops`, the gates and PostgreSQL: what they
//! remember, in which order they act, and what they have on disk. Raft is a register with a leader that needs a
//! majority; a leader that lost its majority goes on believing.

mod events;
mod faults;
mod local;
mod loops;
mod postgres;
mod raft;
mod rng;
mod world;

pub use events::Knobs;
pub use world::{Outcome, run};
