//! `quorate`: one program for the daemon, the operator's commands, the demo, and the `ctx` command inside scripts.

mod admin;
mod commands;
mod control;
mod daemon;
mod demo;
mod edge;
mod join;
mod local;
mod loops;
mod manager;
mod peers;
mod pki;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    // Scripts find this program as `ctx`.
    if args.next().is_some_and(|name| std::path::Path::new(&name).file_name().is_some_and(|name| name == "ctx")) {
        return quorate_worker::ctx_main(args);
    }
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("main runs once, before any other provider can be installed");
    commands::main()
}
