//! Whole clusters under faults, from one seed each.
//!
//! `QUORATE_SIM_SEED=17` runs one schedule and prints all of it; `QUORATE_SIM_SEEDS=20000` runs that many.

mod sim;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sim::{Knobs, Outcome, run};

/// Schedules of an ordinary test run.
const SEEDS: u64 = 300;
/// Schedules within which each broken rule must be noticed.
const SEEDS_BROKEN: u64 = 400;
/// Lines of a failed schedule.
const LINES: usize = 120;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Runs schedules on all processors until one says to stop.
fn run_all(seeds: u64, knobs: Knobs, each: impl Fn(u64, Outcome) -> bool + Sync) {
    let next = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    if !each(seed, run(seed, knobs, false)) {
                        next.store(seeds, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// The seed's story, with its end.
fn story(seed: u64, knobs: Knobs, lines: usize) -> String {
    let outcome = run(seed, knobs, true);
    let skipped = outcome.trace.len().saturating_sub(lines);
    let broken: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
    format!(
        "seed {seed}\n{}\n{}\nrun it again with QUORATE_SIM_SEED={seed}",
        outcome.trace[skipped..].join("\n"),
        broken.join("\n")
    )
}

#[test]
fn nothing_acknowledged_is_lost_and_the_cluster_heals() {
    if let Some(seed) = number("QUORATE_SIM_SEED") {
        println!("{}", story(seed, Knobs::default(), usize::MAX));
        assert!(run(seed, Knobs::default(), false).violations.is_empty(), "seed {seed} breaks an invariant");
        return;
    }
    let seeds = number("QUORATE_SIM_SEEDS").unwrap_or(SEEDS);
    let failed = Mutex::new(Vec::new());
    let sums = Mutex::new((Vec::new(), 0, 0));
    run_all(seeds, Knobs::default(), |seed, outcome| {
        let mut sums = sums.lock().unwrap();
        sums.0.extend(outcome.failovers);
        sums.1 += outcome.acknowledged;
        sums.2 += outcome.epochs;
        if let Some(violation) = outcome.violations.first() {
            failed.lock().unwrap().push((seed, violation.to_string()));
        }
        failed.lock().unwrap().len() < 20
    });
    let (mut gaps, acknowledged, epochs) = sums.into_inner().unwrap();
    gaps.sort_unstable();
    let percentile = |p: usize| gaps.get(gaps.len().saturating_sub(1) * p / 100).copied().unwrap_or_default();
    println!(
        "{seeds} schedules, {epochs} epochs, {acknowledged} acknowledged writes; without service at a change of the \
         active node, ms: p50 {}, p90 {}, p99 {}",
        percentile(50),
        percentile(90),
        percentile(99)
    );
    assert!(acknowledged as u64 > seeds * 20, "the schedules must get something done");
    let mut failed = failed.into_inner().unwrap();
    failed.sort();
    if let Some((seed, _)) = failed.first() {
        let all: Vec<String> = failed.iter().map(|(seed, text)| format!("seed {seed}: {text}")).collect();
        panic!("{}\n\nall failed:\n{}", story(*seed, Knobs::default(), LINES), all.join("\n"));
    }
}

#[test]
fn the_same_seed_is_the_same_story() {
    let first = run(7, Knobs::default(), true);
    assert_eq!(first.trace, run(7, Knobs::default(), true).trace);
    assert!(first.trace.len() > 20);
}

#[test]
fn a_broken_rule_is_caught() {
    let rules = [
        ("need_one_less", Knobs { need_one_less: true, ..Knobs::default() }),
        ("skip_freeze", Knobs { skip_freeze: true, ..Knobs::default() }),
        ("old_epoch_accepted", Knobs { old_epoch_accepted: true, ..Knobs::default() }),
        ("agree_unconfirmed", Knobs { agree_unconfirmed: true, ..Knobs::default() }),
    ];
    for (name, knobs) in rules {
        let caught = Mutex::new(None);
        run_all(SEEDS_BROKEN, knobs, |seed, outcome| {
            let safety = outcome.violations.iter().find(|violation| violation.invariant != "IT_HEALS");
            if let Some(violation) = safety {
                *caught.lock().unwrap() = Some((seed, violation.to_string()));
            }
            safety.is_none()
        });
        let caught = caught.into_inner().unwrap();
        println!("{name}: {caught:?}");
        assert!(caught.is_some(), "{name} is broken and no schedule noticed");
    }
}
