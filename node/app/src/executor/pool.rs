//! Which workers there are, how much each has, and which are lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Limits, Shared, Workers};

/// How a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Alive,
    /// Not for long.
    Away,
    /// What it has goes to others.
    Lost,
}

/// The workers of the cluster.
pub(super) struct Pool {
    workers: Arc<dyn Workers>,
    per_worker_max: usize,
    lost_after: Duration,
    state: Mutex<State>,
    /// Counts places that became free and workers that came: whoever waits for a place looks again.
    room: watch::Sender<u64>,
    /// Counts changes of standing.
    standings: watch::Sender<u64>,
}

struct State {
    load: HashMap<String, usize>,
    alive: BTreeSet<String>,
    /// Those that were alive, or were given something, and are not alive.
    away_since: BTreeMap<String, Instant>,
    lost: BTreeSet<String>,
    /// A worker that nobody has seen yet is away since then.
    began: Instant,
}

/// A place at a worker; free again when dropped.
pub(super) struct Place {
    pool: Arc<Pool>,
    pub worker: String,
}

impl Pool {
    pub fn new(workers: Arc<dyn Workers>, limits: &Limits) -> Arc<Self> {
        let state = State {
            load: HashMap::new(),
            alive: workers.alive().into_iter().collect(),
            away_since: BTreeMap::new(),
            lost: BTreeSet::new(),
            began: Instant::now(),
        };
        Arc::new(Self {
            workers,
            per_worker_max: limits.operations_per_worker_max.max(1),
            lost_after: limits.worker_lost_after,
            state: Mutex::new(state),
            room: watch::Sender::new(0),
            standings: watch::Sender::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The living worker with the fewest operations, unless all have enough.
    pub fn assign(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.lock();
        let load = |state: &State, name: &String| state.load.get(name).copied().unwrap_or(0);
        let worker = state.alive.iter().min_by_key(|name| load(&state, name))?.clone();
        let has = state.load.entry(worker.clone()).or_default();
        if *has >= self.per_worker_max {
            return None;
        }
        *has += 1;
        Some(Place { pool: self.clone(), worker })
    }

    /// A place at a worker that has the operation already, however many it has.
    pub fn hold(self: &Arc<Self>, worker: &str) -> Place {
        *self.lock().load.entry(worker.to_owned()).or_default() += 1;
        Place { pool: self.clone(), worker: worker.to_owned() }
    }

    pub fn standing(&self, worker: &str) -> Standing {
        let mut state = self.lock();
        if state.alive.contains(worker) {
            return Standing::Alive;
        }
        let began = state.began;
        let since = *state.away_since.entry(worker.to_owned()).or_insert(began);
        if since.elapsed() < self.lost_after { Standing::Away } else { Standing::Lost }
    }

    pub fn room(&self) -> watch::Receiver<u64> {
        self.room.subscribe()
    }

    pub fn standings(&self) -> watch::Receiver<u64> {
        self.standings.subscribe()
    }

    /// Looks who is alive.
    fn refresh(&self) {
        let alive: BTreeSet<String> = self.workers.alive().into_iter().collect();
        let mut state = self.lock();
        let now = Instant::now();
        let gone: Vec<String> = state.alive.difference(&alive).cloned().collect();
        let come = alive.difference(&state.alive).next().is_some();
        let changed = come || !gone.is_empty();
        for name in gone {
            tracing::warn!(worker = name, "a worker went away");
            state.away_since.insert(name, now);
        }
        state.away_since.retain(|name, _| !alive.contains(name));
        state.alive = alive;
        let lost: BTreeSet<String> = state
            .away_since
            .iter()
            .filter(|(_, since)| now.duration_since(**since) >= self.lost_after)
            .map(|(name, _)| name.clone())
            .collect();
        let lost_changed = lost != state.lost;
        state.lost = lost;
        drop(state);
        if changed || lost_changed {
            self.standings.send_modify(|count| *count += 1);
            self.room.send_modify(|count| *count += 1);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(load) = self.pool.lock().load.get_mut(&self.worker) {
            *load = load.saturating_sub(1);
        }
        self.pool.room.send_modify(|count| *count += 1);
    }
}

/// Looks at the workers until the executor ends.
pub(super) async fn watch(shared: Arc<Shared>) {
    /// Losses are noticed within a part of the time after which they count.
    const LOOKS_PER_LOSS: u32 = 4;
    let limits = &shared.settings.limits;
    let every = limits.look_every.min(limits.worker_lost_after / LOOKS_PER_LOSS).max(Duration::from_millis(10));
    while shared.pause(every).await {
        shared.pool.refresh();
    }
}
