//! Bringing the demo up: check, make, start, join, wait, prove.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::layout::{Demo, DemoNode, Layout};
use super::progress::Progress;
use super::rest::Rest;
use super::{checks, processes, proof, show};
use crate::admin::{self, MadeToken, NewToken, StatusView};
use crate::commands::cluster::{init, join};
use crate::join::Token;
use crate::pki::{Identity, KeyFile, write_file};

/// What a new demo has.
const NODES: u8 = 3;
/// How long the first node, the joining and the REST service may take, each.
const STEP_LIMIT: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Long enough for the slowest copy of the first node's data.
const TOKEN_SECONDS: u64 = 600;

/// Starts the demo, shows it, and stays until Ctrl-C unless it is detached.
pub async fn start(layout: &Layout, nodes: Option<u8>, detach: bool, as_json: bool) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    let demo = if layout.exists() {
        let demo = layout.load()?;
        if let Some(wanted) = nodes
            && usize::from(wanted) != demo.nodes.len()
        {
            bail!(
                "the demo in {} has {} node(s), not {wanted}: choose another place with --dir",
                layout.dir().display(),
                demo.nodes.len()
            );
        }
        start_again(layout, demo, &mut progress).await?
    } else {
        start_new(layout, nodes.unwrap_or(NODES), &mut progress).await?
    };
    let proof = match prove(&demo, &mut progress).await {
        Ok(proof) => proof,
        Err(error) => {
            drop(progress);
            eprintln!("The nodes stay up for a look: their logs are {}/n*/node.log;", demo.dir.display());
            eprintln!("`quorate demo stop` ends them.");
            return Err(error);
        }
    };
    show::access(&demo, &proof, as_json)?;
    if detach {
        return Ok(());
    }
    stay(&demo).await
}

async fn start_new(layout: &Layout, number: u8, progress: &mut Progress) -> anyhow::Result<Demo> {
    progress.begin("check packages, disk and ports");
    checks::machine(layout, number)?;
    let nodes = layout.write_configs(number)?;
    checks::ports(&nodes.iter().collect::<Vec<_>>())?;
    let Some((first, others)) = nodes.split_first() else { bail!("a demo has nodes") };

    progress.begin("start the first node");
    if KeyFile::Identity.path(&first.config.data_dir).exists() {
        // An earlier first start was interrupted before the demo was complete: nothing in it can have been used.
        bail!(
            "{} holds an unfinished demo: stop its nodes, remove the directory, and start again",
            layout.dir().display()
        );
    }
    let made = init::init(&first.config, None)?;
    let ca = std::fs::read_to_string(KeyFile::Authority.path(&first.config.data_dir)).context("read the CA file")?;
    write_file(&layout.dir().join("ca.pem"), &ca, 0o644)?;
    layout.finish(number, &made.password)?;
    let demo = layout.load()?;
    processes::start(first)?;
    wait_for(first, "the first node is active", |view| view.serving).await?;

    for node in others {
        progress.begin(&format!("join {}", node.id));
        join_one(first, node).await?;
    }
    if !others.is_empty() {
        progress.begin("copy the data to the other nodes");
    }
    wait_for(first, "all nodes take part", |view| whole(view, usize::from(number))).await?;
    Ok(demo)
}

async fn join_one(first: &DemoNode, node: &DemoNode) -> anyhow::Result<()> {
    let made: MadeToken =
        admin::call(&first.config, "POST", "/tokens", Some(&NewToken { seconds: TOKEN_SECONDS })).await?;
    let token: Token = made.token.parse()?;
    let member = SocketAddr::new(first.config.address.node, first.config.ports.consul);
    let identity = join::ask(&node.config, member, &token).await?;
    if identity.node != node.id {
        bail!("{} was given the number {}", node.id, identity.node);
    }
    processes::start(node)
}

async fn start_again(layout: &Layout, demo: Demo, progress: &mut Progress) -> anyhow::Result<Demo> {
    let down: Vec<&DemoNode> = demo.nodes.iter().filter(|node| processes::running(node).is_none()).collect();
    progress.begin("check packages, disk and ports");
    checks::machine(layout, u8::try_from(demo.nodes.len())?)?;
    if down.len() == demo.nodes.len() {
        checks::ports(&down)?;
    }
    progress.begin("start the nodes");
    for node in &demo.nodes {
        // A first start that was interrupted may have left nodes that never joined.
        if Identity::load(&node.config.data_dir).is_err() {
            join_one(&demo.nodes[0], node).await?;
        } else if processes::running(node).is_none() {
            processes::start(node)?;
        }
        if node.id == demo.nodes[0].id {
            wait_for_daemon(node).await?;
        }
    }
    let expected = demo.nodes.len();
    wait_for(&demo.nodes[0], "all nodes take part", |view| whole(view, expected)).await?;
    Ok(demo)
}

/// Everybody is a member that votes, follows or serves, and takes part in every commit.
fn whole(view: &StatusView, nodes: usize) -> bool {
    let fine = |role: &str| role == "active" || role == "standby";
    view.serving
        && view.nodes.len() == nodes
        && view.nodes.iter().all(|node| node.voter && fine(&node.role) && node.epoch == view.epoch)
        && view.sync.members.len() == nodes
}

async fn wait_for_daemon(node: &DemoNode) -> anyhow::Result<()> {
    wait_for(node, "the daemon answers", |_| true).await
}

async fn wait_for(node: &DemoNode, what: &str, is_done: impl Fn(&StatusView) -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + STEP_LIMIT;
    loop {
        let heard = match admin::call::<(), StatusView>(&node.config, "GET", "/status", None).await {
            Ok(view) if is_done(&view) => return Ok(()),
            Ok(view) => view.reason,
            Err(error) => crate::commands::chain(&error),
        };
        if processes::running(node).is_none() {
            bail!("{} ended before {what}; it logged:\n{}", node.id, processes::last_words(node));
        }
        if Instant::now() >= until {
            bail!("still waiting after {} s until {what}: {heard}", STEP_LIMIT.as_secs());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn prove(demo: &Demo, progress: &mut Progress) -> anyhow::Result<proof::Proof> {
    progress.begin("wait for the REST service");
    let port = demo.nodes[0].config.ports.https;
    let rest = Rest::new(demo.cluster_address, port, &demo.ca_file(), &demo.password)?;
    let until = Instant::now() + STEP_LIMIT;
    while let Err(error) = rest.answers().await {
        if Instant::now() >= until {
            return Err(error.context("the REST service does not answer"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    proof::install(&rest, progress).await
}

/// Keeps the terminal until Ctrl-C, and says when a node ends.
async fn stay(demo: &Demo) -> anyhow::Result<()> {
    const LOOK: Duration = Duration::from_secs(1);
    eprintln!("Ctrl-C stops the nodes; the data stays in {}.", demo.dir.display());
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut alive: Vec<bool> = vec![true; demo.nodes.len()];
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = tokio::time::sleep(LOOK) => {}
        }
        for (was, node) in alive.iter_mut().zip(&demo.nodes) {
            let is = processes::running(node).is_some();
            if *was && !is {
                eprintln!("{} has ended; `quorate demo start {}` starts it again", node.id, node.id);
            } else if !*was && is {
                eprintln!("{} runs again", node.id);
            }
            *was = is;
        }
    }
    eprintln!("stopping the nodes");
    processes::stop_all(demo)
}
