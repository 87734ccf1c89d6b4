//! The synchronous set, on the active node: slots and roles for every member, and the set itself in the safe order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_consensus::{Command, Consensus};
use quorate_core::membership::{Step, next_step};
use quorate_postgres::PostgresError;
use quorate_types::{Epoch, NodeId};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::local::{Local, chain};

/// How often the loop looks.
const PERIOD: Duration = Duration::from_millis(250);
/// A standby that lacks no more than this counts as caught up.
const LAG_BYTES_MAX: u64 = 1 << 20;

/// Runs until the token ends.
pub async fn run(consensus: Consensus, local: Arc<Local>, stop: CancellationToken) {
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut provided: Option<(Epoch, Vec<NodeId>)> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        let Some(epoch) = *local.serving().borrow() else {
            provided = None;
            continue;
        };
        if let Err(error) = round(&consensus, &local, epoch, &mut provided).await {
            // It is fenced, or standbys are away: both are told elsewhere.
            debug!(error = chain(&error), "the synchronous set was not looked after");
        }
    }
}

async fn round(
    consensus: &Consensus,
    local: &Arc<Local>,
    epoch: Epoch,
    provided: &mut Option<(Epoch, Vec<NodeId>)>,
) -> Result<(), PostgresError> {
    let keeper = local.keeper();
    let state = consensus.cluster().borrow().clone();
    let members: Vec<NodeId> = state.members.keys().copied().collect();
    if provided.as_ref() != Some(&(epoch, members.clone())) {
        keeper.keep_slots(&members).await?;
        keeper.keep_roles(&members).await?;
        *provided = Some((epoch, members));
    }
    let replicas = keeper.replicas().await?;
    let Some(in_effect) = keeper.sync_in_effect().await? else {
        warn!(%epoch, "it is not known what commits wait for, making sure");
        return keeper.settle_sync().await;
    };
    local.report_sync(in_effect.clone(), replicas.iter().map(|r| (r.node, r.lag_bytes)).collect());
    let caught_up: BTreeSet<NodeId> =
        replicas.iter().filter(|r| r.streams && r.lag_bytes <= LAG_BYTES_MAX).map(|r| r.node).collect();
    match next_step(&state, local.me(), &in_effect, &caught_up) {
        None => {}
        Some(Step::SetPostgres(sync)) => {
            info!(%epoch, num_sync = sync.num_sync, members = ?sync.members, "commits wait for another set");
            keeper.set_sync(&sync).await?;
        }
        // Older commits may still be on their way to those that elections would hear then.
        Some(Step::Agree(sync)) if sync == in_effect && !keeper.confirm_sync(&sync).await? => {
            debug!(%epoch, "the new synchronous set does not have everything yet");
        }
        Some(Step::Agree(sync)) => {
            info!(%epoch, num_sync = sync.num_sync, members = ?sync.members, "elections count with another set");
            let command = Command::SetSync { epoch, expected: state.sync.clone(), sync };
            if let Err(error) = consensus.propose(command).await {
                warn!(error = chain(&error), "the synchronous set was not agreed, trying again");
            }
        }
    }
    Ok(())
}
