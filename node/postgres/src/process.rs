//! The child process: started from a thread that lives as long as the daemon, killed with all its children.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{oneshot, watch};

use crate::account::Account;

/// How long a killed process may take to vanish.
const REAP_LIMIT: Duration = Duration::from_secs(10);

/// A running postmaster.
#[derive(Clone)]
pub struct Process {
    pid: Pid,
    /// `Some(how)` once it has ended.
    ended: watch::Receiver<Option<String>>,
}

/// Starts children from one thread.
///
/// A child is told when its *parent thread* dies, so the thread must outlive the child; tokio's threads may not.
#[derive(Clone)]
pub struct Spawner {
    queue: mpsc::SyncSender<(Command, oneshot::Sender<io::Result<std::process::Child>>)>,
}

impl Spawner {
    pub fn start() -> io::Result<Self> {
        let (queue, receiver) = mpsc::sync_channel::<(Command, oneshot::Sender<io::Result<std::process::Child>>)>(4);
        std::thread::Builder::new().name("postgres-parent".into()).spawn(move || {
            for (mut command, answer) in receiver {
                // Nobody waits any more only when the daemon ends, and then the child ends with this thread.
                let _ = answer.send(command.spawn());
            }
        })?;
        Ok(Self { queue })
    }

    /// Starts a server; it gets an immediate shutdown when this daemon dies, however it dies.
    pub async fn spawn(&self, mut command: Command, account: Account) -> io::Result<Process> {
        become_child(&mut command, account);
        let (answer, started) = oneshot::channel();
        self.queue.send((command, answer)).map_err(|_| io::Error::other("the parent thread has ended"))?;
        let mut child = started.await.map_err(|_| io::Error::other("the parent thread has ended"))??;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        let (sender, ended) = watch::channel(None);
        std::thread::Builder::new().name("postgres-wait".into()).spawn(move || {
            let how = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            sender.send_replace(Some(how));
        })?;
        Ok(Process { pid, ended })
    }
}

#[allow(unsafe_code)]
fn become_child(command: &mut Command, account: Account) {
    use std::os::unix::process::CommandExt;
    if let Some((uid, gid)) = account.ids() {
        command.uid(uid).gid(gid);
    }
    command.stdin(Stdio::null());
    let parent = nix::unistd::getpid();
    // SAFETY: only async-signal-safe calls (prctl, getppid, _exit) run between fork and exec. This runs after the
    // change of user, which would clear the death signal.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT, 0, 0, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above.
            if libc::getppid() != parent.as_raw() {
                libc::_exit(1);
            }
            Ok(())
        });
    }
}

impl Process {
    /// How it ended. `None`: it runs.
    pub fn ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Resolves when it has ended.
    pub async fn wait(&self) -> String {
        let mut ended = self.ended.clone();
        loop {
            if let Some(how) = ended.borrow_and_update().clone() {
                return how;
            }
            if ended.changed().await.is_err() {
                return "unknown".into();
            }
        }
    }

    /// Sends a signal to the postmaster.
    pub fn signal(&self, signal: Signal) {
        if self.ended().is_none() {
            let _ = kill(self.pid, signal);
        }
    }

    /// Kills the postmaster and every backend at once, and waits until all are gone.
    ///
    /// A backend whose postmaster was killed goes on until it notices, and may commit meanwhile: so all of them are
    /// stopped first, then killed.
    pub async fn kill_all(&self) {
        if self.ended().is_some() {
            return;
        }
        kill_tree(self.pid);
        if tokio::time::timeout(REAP_LIMIT, self.wait()).await.is_err() {
            tracing::error!(pid = self.pid.as_raw(), "a killed postmaster does not vanish (is its disk hung?)");
        }
    }
}

/// Stops the postmaster, so that it forks nobody, and kills it with its children.
pub fn kill_tree(postmaster: Pid) {
    let _ = kill(postmaster, Signal::SIGSTOP);
    let children = children_of(postmaster);
    for child in &children {
        let _ = kill(*child, Signal::SIGKILL);
    }
    let _ = kill(postmaster, Signal::SIGKILL);
    let deadline = Instant::now() + Duration::from_millis(500);
    while children.iter().any(|child| is_alive(*child)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a process exists and is no zombie.
fn is_alive(pid: Pid) -> bool {
    stat(pid).is_some_and(|(_, state)| state != 'Z' && state != 'X')
}

fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .map(Pid::from_raw)
        .filter(|pid| stat(*pid).is_some_and(|(ppid, _)| ppid == parent))
        .collect()
}

/// Parent and state from /proc.
fn stat(pid: Pid) -> Option<(Pid, char)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything.
    let mut words = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((Pid::from_raw(words.next()?.parse().ok()?), state))
}

/// The postmaster that an earlier life left behind in this data directory.
///
/// The number in `postmaster.pid` may have been given to a stranger since: it counts only when its working directory is
/// this data directory.
pub fn left_behind(data: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let home: PathBuf = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (home == std::fs::canonicalize(data).ok()?).then_some(Pid::from_raw(pid))
}

/// Runs a program of PostgreSQL to its end.
pub async fn run(mut command: Command, account: Account, limit: Duration) -> io::Result<(bool, String)> {
    if let Some((uid, gid)) = account.ids() {
        use std::os::unix::process::CommandExt;
        command.uid(uid).gid(gid);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output())
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("not done within {limit:?}")))??;
    let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stdout));
    // The end says why.
    let start = text.len().saturating_sub(2000);
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    Ok((output.status.success(), text.split_off(start).trim().to_owned()))
}
