//! The active node's lease: how long it may serve on the word of a majority.
//!
//! The lease protects only what a majority cannot: reads on an old active node, the cluster address, tasks. No
//! acknowledged write depends on it. It counts from when the question was *sent*: the answer may have been slow.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_types::NodeId;

/// Times are ages of one monotonic clock, as the caller measures it.
#[derive(Debug, Clone)]
pub struct Lease {
    length: Duration,
    /// When the newest answered question to each node was sent.
    answered: BTreeMap<NodeId, Duration>,
}

impl Lease {
    /// `length`: how long one majority's word lasts.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        Self { length, answered: BTreeMap::new() }
    }

    /// A node answered the question that was sent at `sent_at`.
    pub fn answered(&mut self, node: NodeId, sent_at: Duration) {
        let newest = self.answered.entry(node).or_default();
        *newest = (*newest).max(sent_at);
    }

    /// Until when the node may serve. `voters` must hold every voting member, this node among them.
    #[must_use]
    pub fn until(&self, me: NodeId, voters: impl Iterator<Item = NodeId>, now: Duration) -> Duration {
        let mut times: Vec<Duration> = voters
            .map(|node| if node == me { now } else { self.answered.get(&node).copied().unwrap_or(Duration::ZERO) })
            .collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        // The last of the majority decides: everybody before it has answered a later question.
        times.get(times.len() / 2).map_or(Duration::ZERO, |sent_at| *sent_at + self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn until(lease: &Lease, voters: u64, now: u64) -> Duration {
        lease.until(NodeId(1), (1..=voters).map(NodeId), ms(now))
    }

    #[test]
    fn one_other_of_three_is_a_majority() {
        let mut lease = Lease::new(ms(600));
        assert_eq!(until(&lease, 3, 5000), ms(600), "nobody has answered");
        lease.answered(NodeId(2), ms(4900));
        assert_eq!(until(&lease, 3, 5000), ms(5500));
        lease.answered(NodeId(3), ms(4950));
        lease.answered(NodeId(2), ms(4800));
        assert_eq!(until(&lease, 3, 5000), ms(5550), "an old answer that comes late takes nothing back");
    }

    #[test]
    fn alone_it_needs_nobody_and_of_five_it_needs_two() {
        let mut lease = Lease::new(ms(600));
        assert_eq!(until(&lease, 1, 5000), ms(5600));
        lease.answered(NodeId(2), ms(4900));
        assert_eq!(until(&lease, 5, 5000), ms(600));
        lease.answered(NodeId(5), ms(4000));
        assert_eq!(until(&lease, 5, 5000), ms(4600));
    }
}
