//! `quorate cluster api-token`: what tools show to the API on port 8500.

use anyhow::Context;
use clap::Args;
use quorate_config::Config;

use super::ConfigArg;
use crate::manager::accounts::{API_TOKEN, derived};
use crate::pki::Identity;

#[derive(Args)]
pub struct ApiTokenArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// The same on every node; only who may read this node's identity can work it out.
pub fn main(args: &ApiTokenArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config.config)?;
    let identity = Identity::load(&config.data_dir)
        .context("read this node's identity (was `quorate cluster init` or `join` run, and are you root?)")?;
    let token = derived(&identity, API_TOKEN);
    if args.json {
        println!("{}", serde_json::json!({ "token": token, "header": "X-Consul-Token" }));
    } else {
        println!("{token}");
        let port = config.ports.consul;
        eprintln!("send it as the header X-Consul-Token to https://{}:{port}/v1/…", config.address.node);
    }
    Ok(())
}
