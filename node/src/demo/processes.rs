//! The nodes as processes: each in its own process group, known by its number and the time it began.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill as send, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::layout::{Demo, DemoNode};
use crate::pki::write_file;

/// How long the nodes may take to stop in order.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The process of a node, if it runs. A number that was given to another process since does not count.
pub fn running(node: &DemoNode) -> Option<Pid> {
    let text = std::fs::read_to_string(node.pid_file()).ok()?;
    let (pid, began) = text.trim().split_once(' ')?;
    let pid: i32 = pid.parse().ok()?;
    let pid = Pid::from_raw(pid);
    // A child that ended stays as a zombie until it is asked for; not every caller is its parent.
    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    (began_at(pid)?.to_string() == began).then_some(pid)
}

/// Clock ticks since boot at which a process began; `None` when it is gone or a zombie.
fn began_at(pid: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces; the fields after its closing bracket do not.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Starts a node, unless it runs.
pub fn start(node: &DemoNode) -> anyhow::Result<()> {
    if running(node).is_some() {
        bail!("{} runs already", node.id);
    }
    let log = node.log_file();
    let output =
        OpenOptions::new().create(true).append(true).open(&log).with_context(|| format!("open {}", log.display()))?;
    let program = std::env::current_exe().context("find this program's own file")?;
    let child = Command::new(&program)
        .arg("run")
        .arg("--config")
        .arg(node.config_file())
        .current_dir(&node.dir)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let began = began_at(pid).unwrap_or(0);
    Ok(write_file(&node.pid_file(), &format!("{pid} {began}\n"), 0o644)?)
}

/// Kills a node; what it started dies with it.
pub fn kill(node: &DemoNode) -> anyhow::Result<()> {
    let Some(pid) = running(node) else { bail!("{} does not run", node.id) };
    killpg(pid, Signal::SIGKILL).with_context(|| format!("kill {}", node.id))?;
    gone(&[node], KILL_LIMIT)
}

/// Stops every node in order, and kills who does not listen.
pub fn stop_all(demo: &Demo) -> anyhow::Result<()> {
    let left: Vec<&DemoNode> = demo.nodes.iter().filter(|node| running(node).is_some()).collect();
    for node in &left {
        if let Some(pid) = running(node) {
            send(pid, Signal::SIGTERM).with_context(|| format!("stop {}", node.id))?;
        }
    }
    if gone(&left, STOP_LIMIT).is_ok() {
        return Ok(());
    }
    for node in &left {
        if let Some(pid) = running(node) {
            eprintln!("{} did not stop within {} s and is killed", node.id, STOP_LIMIT.as_secs());
            killpg(pid, Signal::SIGKILL).with_context(|| format!("kill {}", node.id))?;
        }
    }
    gone(&left, KILL_LIMIT)
}

fn gone(nodes: &[&DemoNode], limit: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + limit;
    loop {
        let Some(left) = nodes.iter().find(|node| running(node).is_some()) else { return Ok(()) };
        if Instant::now() >= until {
            bail!("{} is still there after {} s", left.id, limit.as_secs());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// The last lines that a node logged, for an error.
pub fn last_words(node: &DemoNode) -> String {
    const LINES: usize = 5;
    let text = std::fs::read_to_string(node.log_file()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
