//! Has a new Raft leader elected at once when the old one's process is gone.
//!
//! Raft itself waits for the longest election timeout, in which nobody votes, and then for an election timeout: more
//! than a second. A host that refuses connections has said already that nobody leads there. An election that nobody
//! needed would be safe all the same, only a nuisance; so the leader must also have been silent, which one that merely
//! cannot be reached by this node is not.
//!
//! Whoever stands for election no longer waits for the old leader and may vote for others. So the voters stand one
//! after the other, and the last to stand is voted for by those before it, unless its log is the shorter one.

use std::time::Duration;

use quorate_consensus::Consensus;
use quorate_types::NodeId;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::observe::Views;

/// How often the loop looks.
const PERIOD: Duration = Duration::from_millis(25);
/// Heartbeats that the leader must have missed.
const MISSED: u32 = 3;
/// Between two voters, longer than an election takes.
const STAGGER: Duration = Duration::from_millis(40);
/// Before a voter stands again.
const AGAIN: Duration = Duration::from_millis(250);
/// How often it stands before Raft's own patience decides.
const ATTEMPTS: u32 = 3;

/// Runs until the token ends.
pub async fn run(consensus: Consensus, views: Views, heartbeat: Duration, stop: CancellationToken) {
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        let leadership = *consensus.leadership().borrow();
        let gone = leadership.leader.filter(|leader| {
            !leadership.is_self && views.refused(*leader) && consensus.leader_silent_for() >= heartbeat * MISSED
        });
        let Some(gone) = gone else { continue };
        tokio::select! {
            () = stop.cancelled() => return,
            () = elect(&consensus, &views, gone) => {}
        }
    }
}

/// Stands for election until there is another leader, or the old one is back.
async fn elect(consensus: &Consensus, views: &Views, gone: NodeId) {
    let others = consensus.voters().into_iter().map(|(node, _)| node).filter(|node| *node != gone);
    let Some(rank) = others.into_iter().position(|node| node == consensus.node()) else {
        // Only voters stand. Nothing changes until the others have voted.
        tokio::time::sleep(AGAIN).await;
        return;
    };
    tokio::time::sleep(STAGGER * u32::try_from(rank).unwrap_or(u32::MAX)).await;
    for attempt in 0..ATTEMPTS {
        let leader = consensus.leadership().borrow().leader;
        // Who has voted for somebody since lets that one begin; standing again would end its term.
        let has_voted = attempt > 0 && consensus.voted_for() != Some(consensus.node());
        if leader.is_some_and(|leader| leader != gone) || has_voted || !views.refused(gone) {
            return;
        }
        info!(%gone, "the raft leader's process is gone, standing for election");
        consensus.elect().await;
        tokio::time::sleep(AGAIN).await;
    }
}
