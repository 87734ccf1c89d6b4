//! The lease of the active node: it asks everybody whether it still is, and fences itself without a majority's word.

use std::sync::Arc;
use std::time::Duration;

use quorate_consensus::Consensus;
use quorate_core::lease::Lease;
use quorate_proto::control::LeaseRequest;
use quorate_proto::control::control_client::ControlClient;
use quorate_types::{Epoch, NodeId};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::local::Local;
use crate::peers::Peers;

/// Answers that wait to be taken in.
const ANSWERS_MAX: usize = 256;

/// Everything the loop needs.
pub struct LeaseLoop {
    pub consensus: Consensus,
    pub local: Arc<Local>,
    pub peers: Peers,
    pub port: u16,
    pub interval: Duration,
    pub length: Duration,
}

struct Answer {
    node: NodeId,
    sent_at: Duration,
    promised: Epoch,
}

impl LeaseLoop {
    /// Runs until the token ends.
    pub async fn run(self, stop: CancellationToken) {
        let mut serving = self.local.serving();
        loop {
            let epoch = *serving.borrow_and_update();
            tokio::select! {
                () = stop.cancelled() => return,
                changed = serving.changed() => if changed.is_err() { return },
                () = self.hold(epoch) => {}
            }
        }
    }

    /// Holds the lease of one epoch until it is lost; pends for ever when there is none to hold.
    async fn hold(&self, epoch: Option<Epoch>) {
        let Some(epoch) = epoch else { return std::future::pending().await };
        let me = self.local.me();
        let began = Instant::now();
        let (sender, mut answers) = mpsc::channel(ANSWERS_MAX);
        let mut lease = Lease::new(self.length);
        let mut period = tokio::time::interval(self.interval);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut until = self.length;
        loop {
            let end = tokio::time::sleep_until(began + until);
            tokio::select! {
                biased;
                Some(Answer { node, sent_at, promised }) = answers.recv() => {
                    if promised > epoch {
                        self.local.fence(&format!("{node} has promised epoch {promised}")).await;
                        return;
                    }
                    lease.answered(node, sent_at);
                }
                () = end => {
                    self.local.fence("a majority was silent for too long").await;
                    return;
                }
                _ = period.tick() => self.ask(epoch, began, &sender),
            }
            let state = self.consensus.cluster().borrow().clone();
            let voters = state.members.values().filter(|member| member.voter).map(|member| member.id);
            until = until.max(lease.until(me, voters, began.elapsed()));
        }
    }

    fn ask(&self, epoch: Epoch, began: Instant, answers: &mpsc::Sender<Answer>) {
        let state = self.consensus.cluster().borrow().clone();
        for node in state.members.keys().copied().filter(|node| *node != self.local.me()) {
            let Some(channel) = self.peers.channel(node, self.port) else { continue };
            let (answers, limit, from) = (answers.clone(), self.length, self.local.me());
            let sent_at = began.elapsed();
            tokio::spawn(async move {
                let request = LeaseRequest { epoch: epoch.0, from: from.0 };
                let mut client = ControlClient::new(channel);
                if let Ok(Ok(reply)) = tokio::time::timeout(limit, client.lease(request)).await {
                    let promised = Epoch(reply.into_inner().promised_epoch);
                    // The loop is gone when the epoch is.
                    let _ = answers.send(Answer { node, sent_at, promised }).await;
                }
            });
        }
    }
}
