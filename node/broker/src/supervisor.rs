//! Keeps the child running, on a thread of its own that is the child's parent for as long as it lives.

use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::child;
use crate::desired::Desired;
use crate::error::BrokerError;
use crate::files::{self, Account};
use crate::management::Management;
use crate::reconcile::{self, Reconciled};
use crate::settings::BrokerSettings;

/// The pause before the first restart; it doubles with each that follows soon, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A broker that ran this long was well: the next pause is the first again.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// How long an orderly end may take before the broker is killed. Queues are on disk at once, but then the management
/// interface takes five seconds to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long a killed process may take to vanish.
const REAP_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks whether it is ready.
const READY_POLL: Duration = Duration::from_millis(100);

/// What the broker's process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerStatus {
    /// The process runs; [`Broker::ready`] tells whether it serves.
    Running {
        /// Its process id.
        pid: u32,
        /// How often it was started again.
        restarts: u32,
    },
    /// It ended by itself and is started again soon.
    Down {
        /// How it ended, or why it could not be started.
        why: String,
        /// How often it was started again.
        restarts: u32,
    },
    /// It was stopped.
    Stopped,
}

/// This node's RabbitMQ. Dropping it kills the process; [`Broker::stop`] ends it in order.
pub struct Broker {
    settings: BrokerSettings,
    management: Management,
    shared: Arc<Shared>,
    status: watch::Receiver<BrokerStatus>,
}

struct Shared {
    state: Mutex<State>,
    stop_asked: Condvar,
}

#[derive(Default)]
struct State {
    stopping: bool,
    /// Set while there is a process to signal: it is reaped under the lock, so the id is never a stranger's.
    child: Option<Pid>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask_stop(&self) {
        self.state().stopping = true;
        self.stop_asked.notify_all();
    }

    fn kill_all(&self) {
        if let Some(pid) = self.state().child {
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

impl Broker {
    /// Writes the configuration and starts the process, which is started again whenever it ends.
    ///
    /// It returns before the broker serves: see [`Self::ready`].
    ///
    /// # Errors
    /// When a file cannot be read or written, or the account does not exist. That the program cannot be started is no
    /// error here but in [`Self::status`], because it is tried again.
    pub async fn start(settings: BrokerSettings) -> Result<Self, BrokerError> {
        let account = Account::find(settings.user.as_deref())?;
        files::prepare(&settings, account)?;
        let management = Management::new(&settings)?;
        let shared = Arc::new(Shared { state: Mutex::default(), stop_asked: Condvar::new() });
        let (sender, mut status) = watch::channel(BrokerStatus::Down { why: "not started yet".into(), restarts: 0 });
        let keeper = Keeper { settings: settings.clone(), account, shared: Arc::clone(&shared), status: sender };
        thread::Builder::new().name("broker-parent".into()).spawn(move || keeper.run()).map_err(BrokerError::Thread)?;
        let broker = Self { settings, management, shared, status: status.clone() };
        // The first attempt has been made when this returns. It fails only when the thread is gone.
        let _ = status.changed().await;
        Ok(broker)
    }

    /// Waits until AMQP and the management interface serve.
    ///
    /// # Errors
    /// [`BrokerError::NotReady`] after this long; the process goes on.
    pub async fn ready(&self, limit: Duration) -> Result<(), BrokerError> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let state = match tokio::time::timeout_at(deadline, self.management.serves(self.settings.amqps_port)).await
            {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".into(),
            };
            if tokio::time::Instant::now() + READY_POLL >= deadline {
                let state = format!("{state}; {:?}", self.status());
                return Err(BrokerError::NotReady { limit, state, log: self.settings.log() });
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Makes the broker hold exactly what is desired: creates, changes and deletes virtual hosts, users and permissions.
    /// The administrator and the virtual host `/` stay.
    ///
    /// Doing it again changes nothing. A deleted virtual host takes its queues and messages with it.
    ///
    /// # Errors
    /// When a wish contradicts itself (nothing was changed), or the management interface fails (some may be changed;
    /// do it again).
    pub async fn reconcile(&self, desired: &Desired) -> Result<Reconciled, BrokerError> {
        reconcile::reconcile(&self.management, &self.settings.admin_user, desired).await
    }

    /// What the process does right now.
    #[must_use]
    pub fn status(&self) -> BrokerStatus {
        self.status.borrow().clone()
    }

    /// A receiver that wakes whenever [`Self::status`] changes.
    #[must_use]
    pub fn status_changes(&self) -> watch::Receiver<BrokerStatus> {
        self.status.clone()
    }

    /// Where AMQP over TLS is.
    #[must_use]
    pub fn amqps_address(&self) -> std::net::SocketAddr {
        self.settings.amqps_address()
    }

    /// Ends the broker in order, and kills it when that takes too long. Stopping twice is fine.
    ///
    /// # Errors
    /// [`BrokerError::NotEnding`] when not even a kill helped (a hung disk).
    pub async fn stop(&self) -> Result<(), BrokerError> {
        self.shared.ask_stop();
        if let Some(pid) = self.shared.state().child {
            let _ = kill(pid, Signal::SIGTERM);
        }
        if self.stopped_within(STOP_LIMIT).await {
            return Ok(());
        }
        tracing::warn!("RabbitMQ does not end in order and is killed");
        self.shared.kill_all();
        if self.stopped_within(REAP_LIMIT).await {
            Ok(())
        } else {
            Err(BrokerError::NotEnding(STOP_LIMIT + REAP_LIMIT))
        }
    }

    async fn stopped_within(&self, limit: Duration) -> bool {
        let mut status = self.status.clone();
        let stopped = status.wait_for(|status| *status == BrokerStatus::Stopped);
        // A closed channel means that the thread is gone, and its child with it.
        tokio::time::timeout(limit, stopped).await.is_ok()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.shared.ask_stop();
        self.shared.kill_all();
    }
}

/// What the thread owns.
struct Keeper {
    settings: BrokerSettings,
    account: Account,
    shared: Arc<Shared>,
    status: watch::Sender<BrokerStatus>,
}

impl Keeper {
    fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut restarts = 0;
        loop {
            let begun = Instant::now();
            let why = match self.begin() {
                Ok(None) => break,
                Ok(Some(child)) => {
                    self.status.send_replace(BrokerStatus::Running { pid: child.id(), restarts });
                    self.see_out(child)
                }
                Err(error) => format!("start {}: {error}", self.settings.program.display()),
            };
            if begun.elapsed() >= WELL_AFTER {
                pause = FIRST_PAUSE;
            }
            if self.shared.state().stopping {
                break;
            }
            tracing::warn!(%why, ?pause, "RabbitMQ is down and is started again");
            self.status.send_replace(BrokerStatus::Down { why, restarts });
            let state = self.shared.state();
            let waited = self.shared.stop_asked.wait_timeout_while(state, pause, |state| !state.stopping);
            drop(waited);
            pause = (pause * 2).min(LONGEST_PAUSE);
            restarts += 1;
        }
        self.status.send_replace(BrokerStatus::Stopped);
    }

    /// Starts the process unless it shall stop.
    fn begin(&self) -> io::Result<Option<Child>> {
        let mut command: Command = child::command(&self.settings, self.account)?;
        let mut state = self.shared.state();
        if state.stopping {
            return Ok(None);
        }
        let child = command.spawn()?;
        state.child = Some(Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?));
        Ok(Some(child))
    }

    /// Waits for the end and clears up behind it.
    fn see_out(&self, mut child: Child) -> String {
        let pid = self.shared.state().child;
        if let Some(pid) = pid {
            // Leaves the process as a zombie, so that its group cannot be a stranger's yet.
            while let Err(nix::errno::Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
            {
            }
            let _ = killpg(pid, Signal::SIGKILL);
        }
        let mut state = self.shared.state();
        state.child = None;
        child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}
