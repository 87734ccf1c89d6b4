//! `quorate cluster status` and `quorate cluster switchover`.

use clap::Args;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use quorate_config::Config;
use quorate_types::NodeId;

use super::ConfigArg;
use crate::admin::{self, NewSwitchover, NodeView, StatusView, Switched};

#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config.config)?;
    let view: StatusView = super::super::block_on(admin::call(&config, "GET", "/status", None::<&()>))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&view)?);
    } else {
        print(&view);
    }
    Ok(())
}

/// The table that operators read.
pub fn print(view: &StatusView) {
    let active = view.active.map_or_else(|| "none".to_owned(), |node| node.to_string());
    let leader = view.raft_leader.map_or_else(|| "none".to_owned(), |node| node.to_string());
    let serving = if view.serving { "serving" } else { "NOT serving" };
    println!("cluster  {} (as {} sees it)", view.cluster_id, view.seen_by);
    println!("active   {active}, epoch {}, {serving}; raft leader {leader}, term {}", view.epoch, view.term);
    println!("epoch    granted because: {}", view.granted_because);
    println!("now      {}", view.reason);
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["node", "name", "address", "role", "epoch", "votes", "position", "lag", "note"]);
    for node in &view.nodes {
        table.add_row(row(node));
    }
    println!("{table}");
}

fn row(node: &NodeView) -> Vec<Cell> {
    let role = match node.role.as_str() {
        "active" => Cell::new(&node.role).fg(Color::Green),
        "standby" => Cell::new(&node.role),
        _ => Cell::new(&node.role).fg(Color::Yellow),
    };
    let text = |value: Option<String>| Cell::new(value.unwrap_or_else(|| "–".into()));
    vec![
        Cell::new(node.id),
        Cell::new(&node.name),
        Cell::new(node.address),
        role,
        Cell::new(node.epoch),
        Cell::new(if node.voter { "yes" } else { "no" }),
        // The active node's own position moves with every commit; standbys are compared with it by their lag.
        text(node.position.filter(|_| node.role != "active").map(|position| position.to_string())),
        text(node.lag_bytes.map(|bytes| format!("{bytes} B"))),
        Cell::new(&node.note),
    ]
}

#[derive(Args)]
pub struct SwitchoverArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// The node that becomes active; without it the furthest standby
    #[arg(long, value_name = "NODE")]
    to: Option<NodeId>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn switchover(args: &SwitchoverArgs) -> anyhow::Result<()> {
    let config = Config::load(&args.config.config)?;
    let request = NewSwitchover { to: args.to };
    let done: Switched = super::super::block_on(admin::call(&config, "POST", "/switchover", Some(&request)))?;
    if args.json {
        println!("{}", serde_json::to_string(&done)?);
    } else {
        println!(
            "{} is active in epoch {}, {} handed over in {} ms",
            done.to, done.epoch, done.from, done.milliseconds
        );
    }
    Ok(())
}
