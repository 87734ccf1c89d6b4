//! The faces of a node: REST v3.1 and the Consul-shaped API.
//!
//! Handlers are thin: read the request, call one use case, shape the answer. This crate alone knows paths, status
//! codes and headers; it decides nothing and knows no table.

pub mod consul;
mod files;
pub mod rest;
