//! The operator's door: HTTP on a Unix socket that only the daemon's own user may open. `quorate cluster …` knocks here.

mod client;
mod server;
mod views;

pub use client::call;
pub use server::{AdminServer, unix_now};
pub use views::{MadeToken, NewSwitchover, NewToken, NodeView, StatusView, Switched};

use std::path::PathBuf;

use quorate_config::Config;

/// Where the socket is.
#[must_use]
pub fn socket_path(config: &Config) -> PathBuf {
    config.postgres.socket_dir.join("admin.sock")
}
