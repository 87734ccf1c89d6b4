//! `quorate demo`: a whole cluster on one machine, each node with its own directory and loopback address.
//!
//! The nodes are the real program with a real configuration; the demo only writes the files, starts the processes, and
//! drives the REST service as any client would.

mod checks;
mod layout;
mod processes;
mod progress;
mod proof;
mod rest;
mod show;
mod start;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use quorate_types::NodeId;

use layout::Layout;

/// Where the demo keeps everything when `--dir` is not given.
const DEFAULT_DIR: &str = "/var/lib/quorate-demo";

#[derive(Args)]
#[command(args_conflicts_with_subcommands = false)]
pub struct DemoArgs {
    #[command(subcommand)]
    command: Option<DemoCommand>,
    /// Where the demo keeps its nodes
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_DIR)]
    dir: PathBuf,
    /// How many nodes: 1, 3 or 5 (a new demo has 3)
    #[arg(long, value_name = "N", value_parser = number_of_nodes)]
    nodes: Option<u8>,
    /// Leave the nodes running and return once they are up
    #[arg(long)]
    detach: bool,
    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum DemoCommand {
    /// Stop all nodes in order; the data stays
    Stop,
    /// Show which nodes run and what the cluster says of itself
    Status,
    /// Kill a node with everything it runs, as a power failure would
    Kill {
        /// n1, n2 …
        node: NodeId,
    },
    /// Start a node again
    Start {
        /// n1, n2 …
        node: NodeId,
    },
}

fn number_of_nodes(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(number @ (1 | 3 | 5)) => Ok(number),
        _ => Err("1, 3 or 5: an even number tolerates no more failures than one node less".into()),
    }
}

/// Runs the demo or one of its commands.
pub fn main(args: &DemoArgs) -> anyhow::Result<()> {
    let layout = Layout::new(&args.dir)?;
    match args.command {
        None => super::commands::block_on(start::start(&layout, args.nodes, args.detach, args.json)),
        Some(DemoCommand::Stop) => {
            let demo = layout.load()?;
            processes::stop_all(&demo)?;
            show::line(args.json, "stopped", "all nodes are stopped; `quorate demo` starts them again")
        }
        Some(DemoCommand::Status) => super::commands::block_on(show::status(&layout.load()?, args.json)),
        Some(DemoCommand::Kill { node }) => {
            let demo = layout.load()?;
            processes::kill(demo.node(node)?)?;
            show::line(args.json, "killed", &format!("{node} is dead, with all that it ran"))
        }
        Some(DemoCommand::Start { node }) => {
            let demo = layout.load()?;
            processes::start(demo.node(node)?)?;
            show::line(args.json, "started", &format!("{node} is starting; it finds its place by itself"))
        }
    }
}
