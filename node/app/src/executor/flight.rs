//! One operation on its way: sent until it is kept, sent again while nothing comes back.

use std::sync::Arc;
use std::time::Duration;

use quorate_dispatch::OperationMessage;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::pool::{Place, Standing};
use super::{Address, SendFailure, Shared};

/// Between tries after the first failure, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What is to be sent where.
pub(super) struct Flight {
    pub to: Address,
    /// `None`: agents are not counted.
    pub place: Option<Place>,
    pub message: OperationMessage,
    /// Nobody has sent it before.
    pub is_first: bool,
}

/// Sees to it that the worker has the operation, until the task is dropped or the worker is lost; then `lost` is told
/// its id. Whether the operation is still wanted is the run's to know.
pub(super) async fn fly(shared: Arc<Shared>, flight: Flight, lost: mpsc::UnboundedSender<String>) {
    let Flight { to, place, message, is_first } = flight;
    let mut standings = shared.pool.standings();
    let mut pause = PAUSE_MIN;
    // A worker may be alive and never connect to the broker: what it surely does not have goes to another one.
    let mut unsent_since = is_first.then(Instant::now);
    let mut due = Instant::now();
    let mut was_away = false;
    loop {
        standings.borrow_and_update();
        let standing = place.as_ref().map_or(Standing::Alive, |place| shared.pool.standing(&place.worker));
        let lost_after = shared.settings.limits.worker_lost_after;
        let never_reached = place.is_some() && unsent_since.is_some_and(|since| since.elapsed() >= lost_after);
        if standing == Standing::Lost || never_reached {
            tracing::warn!(task = message.task_id, worker = to.worker, "the worker is lost, another one is looked for");
            // The receiver is the run, which ends its flights first.
            let _ = lost.send(message.task_id);
            return;
        }
        if was_away && standing == Standing::Alive {
            due = Instant::now();
        }
        was_away = standing == Standing::Away;
        if standing == Standing::Alive && due <= Instant::now() {
            match shared.settings.transport.send(&to, &message).await {
                Ok(()) => {
                    (unsent_since, pause) = (None, PAUSE_MIN);
                    due = Instant::now() + shared.settings.limits.resend_after;
                }
                Err(failure) => {
                    if matches!(failure, SendFailure::MaybeSent(_)) {
                        unsent_since = None;
                    }
                    let error = &failure as &dyn std::error::Error;
                    tracing::debug!(
                        error,
                        task = message.task_id,
                        worker = to.worker,
                        "send an operation, tried again"
                    );
                    due = Instant::now() + pause;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
        // A worker that is away is heard of when it comes back.
        let next = if standing == Standing::Alive { due } else { Instant::now() + PAUSE_MAX };
        tokio::select! {
            () = sleep_until(next) => {}
            _ = standings.changed() => {}
        }
    }
}
