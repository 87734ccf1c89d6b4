//! Agreeing with the others: a round of repair, and taking over in a new epoch.

use std::collections::BTreeMap;

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use quorate_types::{Epoch, NodeId};

use crate::entry::{Entry, Kind};
use crate::merge::{Action, plan};
use crate::store::{InstallError, Installed, Rule};
use crate::transfer::TransferError;
use crate::wire::Look;
use crate::{Resources, blocking, majority_of, own_look};

/// Failed items that a summary names.
const FAILURES_NAMED_MAX: usize = 16;
/// Passes over the peers: what one could not give, another may.
const PASSES: usize = 2;

/// What a round of repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Peers that have the same items now, as far as this node can know.
    pub agreed: Vec<NodeId>,
    /// Peers that did not answer.
    pub silent: Vec<NodeId>,
    /// Items pulled.
    pub pulled: usize,
    /// Items removed as another node had removed them.
    pub removed: usize,
    /// Items that were never acknowledged: kept aside and forgotten.
    pub dropped: usize,
    /// How many items could not be brought up to date, and the first of them with the reason.
    pub failed: usize,
    /// The first failures.
    pub failures: Vec<String>,
}

/// A take-over is done: this node has everything that was acknowledged in older epochs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenOver {
    /// Who promised to accept nothing older, this node among them.
    pub heard: Vec<NodeId>,
    /// What it took.
    pub repaired: Repaired,
}

/// Why this node must not serve yet. Asking again is harmless.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// A newer epoch was promised, here or by a peer.
    #[error("epoch {epoch} is over: epoch {promised} was promised")]
    Fenced {
        /// The caller's.
        epoch: Epoch,
        /// The newer one.
        promised: Epoch,
    },
    /// Too few nodes that can speak for what was acknowledged.
    #[error(
        "only {have} of {need} nodes with a complete resources directory answered ({fresh} answered with a new or lost \
         one)"
    )]
    NoMajority {
        /// How many, this node counted when its own is complete.
        have: usize,
        /// How many it takes.
        need: usize,
        /// How many answered but do not count.
        fresh: usize,
    },
    /// An item is known and nobody who answered can give it.
    #[error("{} items are not here yet: {}", .0.failed, .0.failures.join("; "))]
    Behind(Repaired),
    /// This node's disk.
    #[error("this node cannot keep what it takes over")]
    Install(#[from] InstallError),
}

impl Resources {
    /// One round: compares with every peer and takes what is newer there. To be called periodically, and when this
    /// node joins or comes back.
    ///
    /// `peers`: all other members. Never fails as a whole; the summary says what did.
    pub async fn repair(&self, peers: &[NodeId]) -> Repaired {
        let _one = self.inner.repairing.lock().await;
        let asked = peers.iter().map(|&node| async move { (node, self.inner.peers.look(node, Epoch(0)).await) });
        let mut looks = Vec::new();
        let mut silent = Vec::new();
        for (node, look) in join_all(asked).await {
            match look {
                Ok(look) => looks.push((node, look)),
                Err(_) => silent.push(node),
            }
        }
        let mut repaired = self.agree(&looks).await;
        repaired.silent = silent;
        if let Err(error) = self.become_complete(&looks, &repaired, peers.len()).await {
            repaired.failed += 1;
            repaired.failures.push(error.to_string());
        }
        repaired
    }

    /// At activation, before serving: makes a majority promise `epoch`, and takes what any of it has newer.
    ///
    /// `peers`: all other members.
    ///
    /// # Errors
    /// [`TakeOverError`].
    pub async fn take_over(&self, epoch: Epoch, peers: &[NodeId], majority: usize) -> Result<TakenOver, TakeOverError> {
        let _one = self.inner.repairing.lock().await;
        let store = self.inner.store.clone();
        let standing = blocking(move || store.promise(epoch)).await.map_err(InstallError::from)?;
        let fenced = |promised| TakeOverError::Fenced { epoch, promised };
        if standing.promised > epoch {
            return Err(fenced(standing.promised));
        }
        let mut heard = vec![self.inner.node];
        let mut have = usize::from(standing.complete);
        let mut looks = Vec::new();
        let mut asked: FuturesUnordered<_> =
            peers.iter().map(|&node| async move { (node, self.inner.peers.look(node, epoch).await) }).collect();
        while have < majority
            && let Some((node, look)) = asked.next().await
        {
            match look {
                Ok(look) if look.promised > epoch => return Err(fenced(look.promised)),
                Ok(look) => {
                    have += usize::from(look.complete);
                    heard.push(node);
                    looks.push((node, look));
                }
                Err(error) => tracing::info!(%node, error = error.status().message(), "no promise from a peer"),
            }
        }
        drop(asked);
        // A new cluster: everybody answered, and nobody has ever had anything to lose.
        let founding = have == 0 && heard.len() == peers.len() + 1;
        if have < majority && !founding {
            return Err(TakeOverError::NoMajority { have, need: majority, fresh: heard.len() - have });
        }
        let repaired = self.agree(&looks).await;
        if repaired.failed > 0 || repaired.agreed.len() < looks.len() {
            return Err(TakeOverError::Behind(repaired));
        }
        let newest = looks.iter().map(|(_, look)| look.sequence).max().unwrap_or(0);
        let store = self.inner.store.clone();
        let standing = blocking(move || {
            store.see_sequence(newest)?;
            store.change_standing(|standing| {
                if standing.promised <= epoch {
                    standing.base = epoch;
                    standing.held = epoch;
                    standing.complete = true;
                }
            })
        })
        .await
        .map_err(InstallError::from)?;
        if standing.promised > epoch {
            return Err(fenced(standing.promised));
        }
        tracing::info!(%epoch, pulled = repaired.pulled, "took over the resources directory");
        Ok(TakenOver { heard, repaired })
    }

    /// Brings this node to what these peers know better, those with the newest base first.
    async fn agree(&self, looks: &[(NodeId, Look)]) -> Repaired {
        let mut order = looks.to_vec();
        order.sort_by_key(|(node, look)| (std::cmp::Reverse(look.base), *node));
        let mut repaired = Repaired::default();
        for _ in 0..PASSES {
            let mut failures = BTreeMap::new();
            repaired.agreed.clear();
            for (node, look) in &order {
                match self.agree_with(*node, look, &mut repaired).await {
                    Ok(failed) if failed.is_empty() => repaired.agreed.push(*node),
                    Ok(failed) => failures.extend(failed),
                    Err(error) => drop(failures.insert(node.to_string(), told(&error))),
                }
            }
            repaired.failed = failures.len();
            repaired.failures =
                failures.into_iter().take(FAILURES_NAMED_MAX).map(|(what, why)| format!("{what}: {why}")).collect();
            if repaired.failed == 0 {
                break;
            }
        }
        repaired
    }

    async fn agree_with(
        &self,
        node: NodeId,
        look: &Look,
        repaired: &mut Repaired,
    ) -> Result<Vec<(String, String)>, TransferError> {
        let store = self.inner.store.clone();
        let (own, (mine, missing)) = blocking(move || (own_look(&store), store.listing())).await;
        if own.digest == look.digest && own.base == look.base && missing.is_empty() {
            return Ok(Vec::new());
        }
        let (their, theirs) = self.inner.peers.list(node).await?;
        // Before this node's items are looked at: nothing that the newer base excludes may arrive between.
        let store = self.inner.store.clone();
        let look_again = blocking(move || {
            store.promise(their.base)?;
            Ok::<_, InstallError>(store.listing())
        });
        let (mine, missing) = if their.base > mine.base { look_again.await? } else { (mine, missing) };
        let mut failed = Vec::new();
        for action in plan(&mine, &theirs, &missing) {
            let path = match &action {
                Action::Take { path, .. } | Action::Drop { path, .. } => path.clone(),
            };
            match self.act(node, action, repaired).await {
                Ok(()) => {}
                Err(error) => failed.push((path.to_string(), format!("from {node}: {}", told(&error)))),
            }
        }
        if failed.is_empty() && their.base > mine.base {
            let store = self.inner.store.clone();
            let adopt = blocking(move || store.change_standing(|own| own.base = own.base.max(their.base)));
            adopt.await.map_err(InstallError::from)?;
        }
        Ok(failed)
    }

    async fn act(&self, node: NodeId, action: Action, repaired: &mut Repaired) -> Result<(), TransferError> {
        let store = self.inner.store.clone();
        match action {
            Action::Drop { path, version } => {
                tracing::warn!(%path, %version, "keeping aside an item that was never acknowledged");
                if blocking(move || store.drop_item(&path, version)).await? == Installed::Done {
                    repaired.dropped += 1;
                }
            }
            Action::Take { path, theirs, instead_of } if theirs.kind == Kind::Tombstone => {
                let rule = Rule::Repair { instead_of };
                let entry = Entry::tombstone(theirs.version);
                let removed = blocking(move || store.install(&path, &entry, &store.stage()?, rule)).await?;
                repaired.removed += usize::from(removed == Installed::Done);
            }
            Action::Take { path, theirs, instead_of } => {
                let rule = Rule::Repair { instead_of };
                let pulled = self.inner.peers.fetch(store, node, &path, theirs, rule).await?;
                repaired.pulled += usize::from(pulled == Installed::Done);
                tracing::debug!(%path, version = %theirs.version, %node, "pulled an item");
            }
        }
        Ok(())
    }

    /// A new or lost directory is complete when it holds everything that can have been acknowledged.
    async fn become_complete(
        &self,
        looks: &[(NodeId, Look)],
        repaired: &Repaired,
        peers: usize,
    ) -> Result<(), InstallError> {
        let store = self.inner.store.clone();
        let own = blocking(move || store.standing()).await;
        if own.complete {
            return Ok(());
        }
        let agreed: Vec<&Look> =
            looks.iter().filter(|(node, _)| repaired.agreed.contains(node)).map(|(_, look)| look).collect();
        // The active node has everything; otherwise any acknowledged item must be on one of those heard, although this
        // node may have been one of the majority that had it.
        let members = peers + 1;
        let others = agreed.iter().filter(|look| look.complete).count();
        let active = agreed.iter().any(|look| look.holder && look.base >= own.promised);
        if active || others > members - majority_of(members) {
            let store = self.inner.store.clone();
            blocking(move || store.change_standing(|own| own.complete = true)).await?;
            tracing::info!("the resources directory is complete");
        }
        Ok(())
    }
}

fn told(error: &TransferError) -> String {
    error.status().message().to_owned()
}
