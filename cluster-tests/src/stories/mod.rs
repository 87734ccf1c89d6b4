//! What can happen to a cluster, told once: tests play each story, benchmarks play some of them many times.

pub mod install;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::cluster::Cluster;
use crate::faults::{LocalCommits, local_numbers, write_on_host};
use crate::load::{History, Load};

/// Writes before a fault, so that there is something to lose.
const WRITES_BEFORE: usize = 60;
/// Writes that must succeed after it.
const WRITES_AFTER: usize = 40;
/// How long service may be away. Far above what is measured; this is no benchmark.
const SERVICE_LIMIT: Duration = Duration::from_secs(60);
/// What was sent before a cut may be answered this much later: the answer was on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(250);

/// What a story measured.
pub struct Told {
    /// The longest time without an acknowledged write.
    pub pause: Duration,
    /// Writes with an error or no answer.
    pub failed: usize,
    /// What the first of them said.
    pub first_failure: Option<String>,
    /// What was acknowledged, and found again.
    pub rows: usize,
    pub files: usize,
}

fn told(cluster: &Cluster, history: &History, from: Instant) -> Result<Told> {
    let pause = history.longest_pause(from);
    let found = history.check(cluster)?;
    let first_failure = history.failed.first().map(|(_, why)| why.clone());
    Ok(Told { pause, failed: history.failed.len(), first_failure, rows: found.rows, files: found.files })
}

/// `kill -9` of everything on the active node while clients write; then it comes back.
///
/// # Errors
/// When an acknowledged write is lost or service does not come back.
pub fn kill_active(cluster: &mut Cluster, name: &str) -> Result<Told> {
    let active = cluster.active()?;
    let load = Load::start(cluster, name)?;
    load.wait_for_more(WRITES_BEFORE, SERVICE_LIMIT)?;
    let from = Instant::now();
    cluster.kill_everything(active)?;
    load.wait_for_more(WRITES_AFTER, SERVICE_LIMIT)?;
    let history = load.stop()?;
    ensure!(cluster.active()? != active, "a dead node is active");
    let pause = history.longest_pause(from);
    cluster.start_daemon(active)?;
    cluster.wait_until_whole()?;
    Ok(Told { pause, ..told(cluster, &history, from)? })
}

/// The active node is cut off. It acknowledges nothing, on its database too; its own WAL then differs, and it comes
/// back by itself when the network does.
///
/// # Errors
/// When the cut-off side acknowledges a write, or an acknowledged one is lost.
pub fn cut_off_active(cluster: &mut Cluster, name: &str, first_number: u64) -> Result<Told> {
    let active = cluster.active()?;
    let load = Load::start(cluster, name)?;
    let session = LocalCommits::start(cluster, active, first_number)?;
    load.wait_for_more(WRITES_BEFORE, SERVICE_LIMIT)?;
    let from = Instant::now();
    cluster.bed().cut_off(active)?;
    let cut = Instant::now();
    let on_the_cut_off_side = write_on_host(cluster, active, &format!("{name}-cut"), Duration::from_secs(3))?;
    load.wait_for_more(WRITES_AFTER, SERVICE_LIMIT)?;
    let history = load.stop()?;
    let pause = history.longest_pause(from);
    let commits = session.stop()?;
    cluster.bed().heal()?;
    cluster.wait_until_whole()?;
    let now_active = cluster.active()?;
    ensure!(now_active != active, "the cut-off node is still active");
    ensure!(
        on_the_cut_off_side.is_empty(),
        "the cut-off side acknowledged {} REST writes: {on_the_cut_off_side:?}",
        on_the_cut_off_side.len()
    );
    ensure!(!commits.is_empty(), "the local session never committed: the story proves nothing");
    let late: Vec<_> = commits.iter().filter(|(_, at)| *at > cut + ON_ITS_WAY).map(|(number, _)| number).collect();
    ensure!(late.is_empty(), "local commits were acknowledged on the cut-off side: {late:?}");
    for host in [now_active, active] {
        let there = local_numbers(cluster, host)?;
        let lost: Vec<_> = commits.iter().filter(|(number, _)| !there.contains(number)).collect();
        ensure!(lost.is_empty(), "host {host} lacks {} acknowledged local commits", lost.len());
    }
    ensure!(
        local_numbers(cluster, active)? == local_numbers(cluster, now_active)?,
        "the node that came back has other rows than the active node"
    );
    Ok(Told { pause, ..told(cluster, &history, from)? })
}

/// A standby is cut off: clients notice nothing.
///
/// # Errors
/// When a write fails or is lost.
pub fn cut_off_standby(cluster: &mut Cluster, name: &str) -> Result<Told> {
    let (active, standby) = (cluster.active()?, cluster.standby()?);
    let load = Load::start(cluster, name)?;
    load.wait_for_more(WRITES_BEFORE, SERVICE_LIMIT)?;
    let from = Instant::now();
    cluster.bed().cut_off(standby)?;
    std::thread::sleep(Duration::from_secs(3));
    load.wait_for_more(WRITES_AFTER, SERVICE_LIMIT)?;
    cluster.bed().heal()?;
    cluster.wait_until_whole()?;
    let history = load.stop()?;
    ensure!(cluster.active()? == active, "the active node changed");
    ensure!(history.failed.is_empty(), "writes failed: {:?}", history.failed);
    told(cluster, &history, from)
}

/// A planned switchover: requests wait, none fails.
///
/// # Errors
/// When a write fails or is lost.
pub fn switchover(cluster: &mut Cluster, name: &str) -> Result<Told> {
    let (active, standby) = (cluster.active()?, cluster.standby()?);
    let load = Load::start(cluster, name)?;
    load.wait_for_more(WRITES_BEFORE, SERVICE_LIMIT)?;
    let from = Instant::now();
    cluster.quorate(active, &["cluster", "switchover", "--to", &format!("{standby}")]).or_else(|error| {
        // Numbers are given in the order of joining; a node that joined anew has another number than its host.
        ensure!(error.to_string().contains("cannot take over"), "{error:#}");
        cluster.quorate(active, &["cluster", "switchover"])
    })?;
    load.wait_for_more(WRITES_AFTER, SERVICE_LIMIT)?;
    let history = load.stop()?;
    let pause = history.longest_pause(from);
    ensure!(cluster.active()? != active, "the active node did not change");
    cluster.wait_until_whole()?;
    Ok(Told { pause, ..told(cluster, &history, from)? })
}

/// All nodes lose power at once.
///
/// # Errors
/// When an acknowledged write is lost.
pub fn power_loss(cluster: &mut Cluster, name: &str, nodes: u8) -> Result<Told> {
    let load = Load::start(cluster, name)?;
    load.wait_for_more(WRITES_BEFORE, SERVICE_LIMIT)?;
    let from = Instant::now();
    for host in 1..=nodes {
        cluster.power_off(host)?;
    }
    for host in 1..=nodes {
        cluster.power_on(host)?;
    }
    load.wait_for_more(WRITES_AFTER, SERVICE_LIMIT)?;
    let history = load.stop()?;
    let pause = history.longest_pause(from);
    cluster.wait_until_whole()?;
    Ok(Told { pause, ..told(cluster, &history, from)? })
}

/// A standby loses its disk and joins anew with a token.
///
/// # Errors
/// When it does not become whole, or a write is lost.
pub fn wiped_node(cluster: &mut Cluster, name: &str) -> Result<Told> {
    let (active, standby) = (cluster.active()?, cluster.standby()?);
    let load = Load::start(cluster, name)?;
    load.wait_for_more(WRITES_BEFORE, SERVICE_LIMIT)?;
    let from = Instant::now();
    cluster.power_off(standby)?;
    cluster.wipe(standby)?;
    // The others notice that it is gone before its address may be taken by a new node.
    std::thread::sleep(Duration::from_secs(3));
    cluster.power_on_only(standby)?;
    cluster.join(active, standby)?;
    cluster.start_daemon(standby)?;
    cluster.wait_until_whole()?;
    load.wait_for_more(WRITES_AFTER, SERVICE_LIMIT)?;
    let history = load.stop()?;
    told(cluster, &history, from)
}
