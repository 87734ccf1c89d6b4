//! Plays the stories many times on one cluster and prints what they measured, one JSON object a line.
//!
//! Arguments: names of stories; none: all. `QUORATE_ROUNDS` (20): how often each is played. `QUORATE_FIGURES`: a file to
//! which the lines are added. `QUORATE_LOGS`: a directory for the nodes' logs when a story fails.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_cluster_tests::bed::Bed;
use quorate_cluster_tests::cluster::{Cluster, Timing};
use quorate_cluster_tests::figures::report;
use quorate_cluster_tests::stories::{self, install};

const NODES: u8 = 3;
const ROUNDS: usize = 20;
const BED: u8 = 20;

fn milliseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1000.0).collect()
}

fn main() -> Result<()> {
    ensure!(Bed::is_possible(), "the stories need root and network namespaces");
    let rounds = match std::env::var("QUORATE_ROUNDS") {
        Ok(text) => text.parse().context("QUORATE_ROUNDS is a number")?,
        Err(_) => ROUNDS,
    };
    let mut cluster = Cluster::start(BED, NODES, Timing::Usual)?;
    play(&mut cluster, rounds, "switchover", |cluster, round| {
        Ok(stories::switchover(cluster, &format!("switch{round}"))?.pause)
    })?;
    play(&mut cluster, rounds, "kill_active", |cluster, round| {
        Ok(stories::kill_active(cluster, &format!("kill{round}"))?.pause)
    })?;
    let mut first_number = 1;
    play(&mut cluster, rounds, "cut_off_active", |cluster, round| {
        first_number += 1_000_000;
        Ok(stories::cut_off_active(cluster, &format!("cut{round}"), first_number)?.pause)
    })?;
    let (mut took, mut twice) = (Vec::new(), 0);
    play(&mut cluster, rounds, "kill_during_install", |cluster, round| {
        // Spread over the whole install.
        let kill_at = 2 + (round * 53 / rounds.max(1)) as u64;
        let told = install::kill_during_install(cluster, &format!("install{round}"), kill_at)?;
        took.push(told.took);
        twice += told.ran_twice;
        Ok(told.pause)
    })?;
    let note = format!("60 operations, active node killed in the middle; {twice} scripts ran twice in all rounds");
    if !took.is_empty() {
        report("install_with_failover", "ms", &milliseconds(&took), &note);
    }
    Ok(())
}

fn play(
    cluster: &mut Cluster,
    rounds: usize,
    name: &str,
    mut story: impl FnMut(&mut Cluster, usize) -> Result<Duration>,
) -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if !wanted.is_empty() && !wanted.iter().any(|story| story == name) {
        return Ok(());
    }
    let mut pauses = Vec::new();
    for round in 0..rounds {
        let pause = match story(cluster, round) {
            Ok(pause) => pause,
            Err(error) => bail!("{name}, round {}: {error:#}\n{}", round + 1, cluster.keep_logs()),
        };
        eprintln!("{name} {}/{rounds}: {} ms", round + 1, pause.as_millis());
        pauses.push(pause);
    }
    report(
        name,
        "ms",
        &milliseconds(&pauses),
        "longest time without an acknowledged write; nothing acknowledged was lost",
    );
    Ok(())
}
