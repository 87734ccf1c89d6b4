//! What one node must do to agree with another: pure.
//!
//! Every node's items build on a *base*: the newest epoch whose take-over they include. The node that took over in an
//! epoch had heard a majority that accepts nothing older any more, so what it lacks of older epochs was never
//! acknowledged: a node with an older base drops it (kept aside). Between nodes of one base the newest version wins.
//! From a node with an older base only what was placed in the own base or later counts.

use std::collections::{BTreeMap, BTreeSet};

use quorate_types::Epoch;

use crate::entry::{Kind, Summary, Version};
use crate::path::ItemPath;

/// What a node has.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The epoch whose take-over its items build on.
    pub base: Epoch,
    /// Its items, tombstones among them.
    pub items: BTreeMap<ItemPath, Summary>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Take the other's version.
    Take {
        /// Of this item.
        path: ItemPath,
        /// As the other has it.
        theirs: Summary,
        /// What this node has instead.
        instead_of: Option<Version>,
    },
    /// Keep the own version aside and forget it: it was never acknowledged.
    Drop {
        /// This item.
        path: ItemPath,
        /// As this node has it.
        version: Version,
    },
}

/// What brings `mine` to what `theirs` knows better; `missing` are own items that are gone from the disk.
///
/// Removals come first: a tree may stand where a removed file was.
#[must_use]
pub fn plan(mine: &Listing, theirs: &Listing, missing: &BTreeSet<ItemPath>) -> Vec<Action> {
    let adopts = theirs.base > mine.base;
    let mut removals = Vec::new();
    let mut takes = Vec::new();
    for (path, their) in &theirs.items {
        let own = mine.items.get(path);
        let wanted = match own {
            // Settled here already.
            None if their.kind == Kind::Tombstone && their.version.epoch < mine.base => false,
            Some(own) if own.version == their.version => missing.contains(path),
            Some(own) if own.version > their.version => adopts && own.version.epoch < theirs.base,
            Some(_) | None => theirs.base >= mine.base || their.version.epoch >= mine.base,
        };
        if wanted {
            let instead_of = own.map(|own| own.version);
            let take = Action::Take { path: path.clone(), theirs: *their, instead_of };
            if their.kind == Kind::Tombstone { removals.push(take) } else { takes.push(take) }
        }
    }
    if adopts {
        // Tombstones go when the newer base is adopted.
        let is_orphan = |own: &Summary| own.kind != Kind::Tombstone && own.version.epoch < theirs.base;
        let orphans = mine.items.iter().filter(|(path, own)| is_orphan(own) && !theirs.items.contains_key(*path));
        removals.extend(orphans.map(|(path, own)| Action::Drop { path: path.clone(), version: own.version }));
    }
    removals.extend(takes);
    removals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Hash;

    fn listing(base: u64, items: &[(&str, u64, u64)]) -> Listing {
        let items = items.iter().map(|&(path, epoch, sequence)| {
            let version = Version { epoch: Epoch(epoch), sequence };
            (path.parse().unwrap(), Summary { version, kind: Kind::File, digest: Hash::default() })
        });
        Listing { base: Epoch(base), items: items.collect() }
    }

    fn told(mine: &Listing, theirs: &Listing) -> Vec<String> {
        plan(mine, theirs, &BTreeSet::new())
            .into_iter()
            .map(|action| match action {
                Action::Take { path, theirs, .. } => format!("take {path} {}", theirs.version),
                Action::Drop { path, version } => format!("drop {path} {version}"),
            })
            .collect()
    }

    #[test]
    fn the_newest_wins_between_equals() {
        let mine = listing(2, &[("plugins/a", 2, 1), ("plugins/b", 2, 5), ("plugins/mine", 1, 1)]);
        let theirs = listing(2, &[("plugins/a", 2, 3), ("plugins/b", 2, 4), ("plugins/new", 1, 9)]);
        assert_eq!(told(&mine, &theirs), ["take plugins/a 2.3", "take plugins/new 1.9"]);
    }

    #[test]
    fn a_newer_base_decides_about_older_epochs_only() {
        let mine = listing(1, &[("plugins/a", 1, 9), ("plugins/b", 3, 1), ("plugins/c", 1, 2), ("plugins/d", 3, 2)]);
        let theirs = listing(3, &[("plugins/a", 1, 4), ("plugins/b", 1, 1)]);
        assert_eq!(told(&mine, &theirs), ["drop plugins/c 1.2", "take plugins/a 1.4"]);
    }

    #[test]
    fn an_older_base_cannot_bring_back_what_was_dropped() {
        let mine = listing(3, &[("plugins/a", 1, 4)]);
        let theirs = listing(1, &[("plugins/a", 1, 9), ("plugins/b", 1, 7), ("plugins/c", 3, 1)]);
        assert_eq!(told(&mine, &theirs), ["take plugins/c 3.1"]);
    }

    #[test]
    fn what_is_gone_from_the_disk_is_taken_again() {
        let mine = listing(3, &[("plugins/a", 1, 4)]);
        let missing = BTreeSet::from(["plugins/a".parse().unwrap()]);
        assert_eq!(plan(&mine, &listing(1, &[("plugins/a", 1, 4)]), &missing).len(), 1);
        assert_eq!(plan(&mine, &listing(1, &[("plugins/a", 1, 3)]), &missing).len(), 0);
    }
}
