//! The engine with a fake store and a scripted worker.

mod order;
mod others;
mod restore;
mod retries;
mod support;
