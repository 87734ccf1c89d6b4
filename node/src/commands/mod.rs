//! The command line. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod check_config;
pub mod cluster;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use quorate_config::Config;

use crate::daemon;

/// Where the configuration is looked for when `--config` is not given.
const DEFAULT_CONFIG: &str = "/etc/quorate/node.toml";

/// A high-availability manager: three nodes that behave as one.
#[derive(Parser)]
#[command(name = "quorate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run this node
    Run(ConfigArg),
    /// Make a cluster, join one, look at it, move its active node
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Run a whole cluster on this machine, with a sample installed
    Demo(crate::demo::DemoArgs),
    /// Check a configuration file and say what is wrong with it
    CheckConfig {
        /// The file
        #[arg(default_value = DEFAULT_CONFIG)]
        file: PathBuf,
    },
}

/// Which configuration file.
#[derive(clap::Args, Clone)]
pub struct ConfigArg {
    /// The node's configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG, env = "QUORATE_CONFIG")]
    pub config: PathBuf,
}

/// Reads the arguments and runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => Config::load(&args.config).map_err(Into::into).and_then(daemon::main),
        Command::Cluster(command) => cluster::main(command),
        Command::Demo(args) => crate::demo::main(&args),
        Command::CheckConfig { file } => check_config::main(&file),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with all its causes on one line.
pub fn chain(error: &anyhow::Error) -> String {
    let texts: Vec<String> = error.chain().map(ToString::to_string).collect();
    texts.join(": ")
}

/// A runtime for the short commands.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
