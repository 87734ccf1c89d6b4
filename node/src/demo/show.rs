//! What the demo prints at the end: a table for people, one JSON object for scripts.

use anyhow::Context;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::layout::Demo;
use super::processes;
use super::proof::Proof;
use crate::admin::{self, StatusView};

/// One sentence, or `{"result": …}`.
pub fn line(as_json: bool, result: &str, sentence: &str) -> anyhow::Result<()> {
    if as_json {
        println!("{}", json!({ "result": result }));
    } else {
        println!("{sentence}");
    }
    Ok(())
}

/// How to reach the cluster.
pub fn access(demo: &Demo, proof: &Proof, as_json: bool) -> anyhow::Result<()> {
    let first = demo.nodes.first().context("a demo has nodes")?;
    let port = first.config.ports.https;
    let address = demo.cluster_address;
    let url = if port == 443 { format!("https://{address}") } else { format!("https://{address}:{port}") };
    let ca = demo.ca_file();
    let profile = format!(
        "cfy profiles use {address} -u admin -p '{}' -t default_tenant --ssl --rest-port {port} -c {}",
        demo.password,
        ca.display()
    );
    if as_json {
        let body = json!({
            "address": address, "url": format!("{url}/api/v3.1"), "user": "admin", "password": demo.password,
            "tenant": "default_tenant", "ca": ca, "cfy": profile, "dir": demo.dir,
            "nodes": demo.nodes.iter().map(|node| json!({ "id": node.id, "address": node.config.address.node })).collect::<Vec<_>>(),
            "sample": { "deployment": proof.deployment, "operations": proof.operations, "outputs": proof.outputs,
                        "seconds": proof.installed_in.map(|time| time.as_secs_f64()) },
        });
        println!("{body}");
        return Ok(());
    }
    let installed = match proof.installed_in {
        Some(time) => format!("installed: {} operations in {:.1} s", proof.operations, time.as_secs_f64()),
        None => "installed by an earlier start".into(),
    };
    let nodes: Vec<String> =
        demo.nodes.iter().map(|node| format!("{} {}", node.id, node.config.address.node)).collect();
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.add_row(["cluster address", &address.to_string()]);
    table.add_row(["nodes", &nodes.join(", ")]);
    table.add_row(["REST API", &format!("{url}/api/v3.1")]);
    table.add_row(["user", "admin"]);
    table.add_row(["password", &demo.password]);
    table.add_row(["CA file", &ca.display().to_string()]);
    table.add_row([format!("deployment {}", proof.deployment), installed]);
    for (name, value) in proof.outputs.as_object().into_iter().flatten() {
        table.add_row([format!("  {name}"), plain(value)]);
    }
    println!("{table}");
    println!("{profile}");
    Ok(())
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Which nodes run, and what the cluster says of itself.
pub async fn status(demo: &Demo, as_json: bool) -> anyhow::Result<()> {
    let mut view: Option<StatusView> = None;
    for node in demo.nodes.iter().filter(|node| processes::running(node).is_some()) {
        if let Ok(said) = admin::call(&node.config, "GET", "/status", None::<&()>).await {
            // Who sees an active node sees more than who was cut off.
            let better = view.as_ref().is_none_or(|view: &StatusView| !view.serving);
            if better {
                view = Some(said);
            }
        }
    }
    if as_json {
        let nodes: Vec<Value> = demo
            .nodes
            .iter()
            .map(|node| json!({ "id": node.id, "pid": processes::running(node).map(nix::unistd::Pid::as_raw) }))
            .collect();
        println!("{}", json!({ "dir": demo.dir, "nodes": nodes, "cluster": view }));
        return Ok(());
    }
    for node in &demo.nodes {
        match processes::running(node) {
            Some(pid) => println!("{}  runs as process {pid}, log {}", node.id, node.log_file().display()),
            None => println!("{}  does not run; `quorate demo start {}` starts it", node.id, node.id),
        }
    }
    match view {
        Some(view) => crate::commands::cluster::status::print(&view),
        None => println!("no node answers"),
    }
    Ok(())
}
