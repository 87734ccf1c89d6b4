//! `quorate cluster …`: what an operator does to the cluster as a whole.

mod api_token;
pub mod init;
pub mod join;
pub mod status;

use clap::Subcommand;

use super::ConfigArg;

#[derive(Subcommand)]
pub enum ClusterCommand {
    /// Make a new cluster with this node as its first member
    Init(init::InitArgs),
    /// Make a one-time token with which another node can join
    Token(join::TokenArgs),
    /// Make this node a member of an existing cluster
    Join(join::JoinArgs),
    /// Print the token of the API on port 8500
    ApiToken(api_token::ApiTokenArgs),
    /// Show the members, who is active, and why the last decision was taken
    Status(status::StatusArgs),
    /// Move the active node on purpose; requests wait meanwhile
    Switchover(status::SwitchoverArgs),
}

pub fn main(command: ClusterCommand) -> anyhow::Result<()> {
    match command {
        ClusterCommand::Init(args) => init::main(&args),
        ClusterCommand::Token(args) => join::token(&args),
        ClusterCommand::Join(args) => join::join(&args),
        ClusterCommand::ApiToken(args) => api_token::main(&args),
        ClusterCommand::Status(args) => status::status(&args),
        ClusterCommand::Switchover(args) => status::switchover(&args),
    }
}
