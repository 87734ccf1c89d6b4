//! Processes of operations: each leads its own group, and is known again by pid and start time.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::settings::KILL_GRACE;

/// Environment variable that names the task a process belongs to; whoever left the group is found by it.
pub(crate) const TASK_VARIABLE: &str = "CLOUDIFY_TASK_ID";
const POLL: Duration = Duration::from_millis(20);

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessMark {
    /// Pid, also the group's id.
    pub(crate) pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/<pid>/stat`.
    pub(crate) start_ticks: u64,
}

impl ProcessMark {
    /// `None` when there is no such process.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        Some(Self { pid, start_ticks: stat(pid)?.start_ticks })
    }

    fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.start_ticks == self.start_ticks)
    }
}

struct Stat {
    group: i32,
    start_ticks: u64,
    is_zombie: bool,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses and may hold anything, so fields are counted after the last one.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let is_zombie = fields.next()? == "Z";
    let group = fields.nth(1)?.parse().ok()?;
    let start_ticks = fields.nth(16)?.parse().ok()?;
    Some(Stat { group, start_ticks, is_zombie })
}

/// Whether anybody but zombies is left in a group.
fn group_lives(group: i32) -> bool {
    pids().any(|pid| stat(pid).is_some_and(|stat| stat.group == group && !stat.is_zombie))
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Ends a whole group: SIGTERM, and SIGKILL when somebody is left after the grace.
pub(crate) async fn end_group(group: i32) {
    signal(group, Signal::SIGTERM);
    let deadline = Instant::now() + KILL_GRACE;
    while group_lives(group) {
        if Instant::now() >= deadline {
            signal(group, Signal::SIGKILL);
            return;
        }
        sleep(POLL).await;
    }
}

fn signal(group: i32, signal: Signal) {
    match killpg(Pid::from_raw(group), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(errno) => tracing::warn!(group, %signal, error = %io::Error::from(errno), "signal an operation"),
    }
}

/// Ends what an interrupted task left behind: its group, if its leader is still the recorded process, and the groups
/// of all who carry its name in their environment.
pub(crate) async fn end_leftovers(task: &str, leader: Option<ProcessMark>) {
    let mut groups: Vec<i32> = leader.filter(|mark| mark.is_alive()).map(|mark| mark.pid).into_iter().collect();
    let needle = format!("{TASK_VARIABLE}={task}");
    for pid in pids() {
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|variable| variable == needle.as_bytes())
            && let Some(stat) = stat(pid)
            && !groups.contains(&stat.group)
        {
            groups.push(stat.group);
        }
    }
    let own = nix::unistd::getpgrp().as_raw();
    for group in groups.into_iter().filter(|group| *group > 1 && *group != own) {
        tracing::warn!(task, group, "ending what an interrupted operation left behind");
        end_group(group).await;
    }
}
