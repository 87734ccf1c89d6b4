//! The pure decisions of a Quorate manager: no I/O, no clock, no randomness.

pub mod workflow;
