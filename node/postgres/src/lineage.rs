//! Which epochs' WAL the data directory contains.
//!
//! The file lies inside the data directory, so it is copied, swapped and rewound together with what it describes. An
//! entry is written and synced before WAL of its timeline can arrive; too much in it is harmless, because the server's
//! own timeline says how far it really came.

use std::collections::BTreeMap;
use std::fs::{File, rename};
use std::io::Write;
use std::path::{Path, PathBuf};

use quorate_types::{Epoch, TimelineId};
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::error::PostgresError;

const FILE: &str = "quorate.lineage";

/// Which epoch began each timeline.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The epoch of each timeline that was followed or made.
    pub timelines: BTreeMap<u32, Epoch>,
    /// A promotion that was begun: any newer timeline belongs to it.
    pub promoting: Option<Promoting>,
}

/// A promotion that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoting {
    /// In this epoch.
    pub epoch: Epoch,
    /// From this timeline.
    pub from: TimelineId,
}

impl Lineage {
    /// The epoch of a timeline; epoch 0 is what `initdb` made.
    #[must_use]
    pub fn epoch_of(&self, timeline: TimelineId) -> Epoch {
        match (self.timelines.get(&timeline.0), self.promoting) {
            (_, Some(promoting)) if timeline > promoting.from => promoting.epoch,
            (Some(epoch), _) => *epoch,
            // An unknown timeline can only be older than what was recorded.
            (None, _) => self.timelines.range(..timeline.0).next_back().map_or(Epoch(0), |(_, epoch)| *epoch),
        }
    }

    /// Notes that WAL of this line may arrive: every epoch of it, with its timeline where it was opened.
    #[must_use]
    pub fn following(mut self, line: &BTreeMap<Epoch, Option<TimelineId>>) -> Self {
        if let Some(promoting) = self.promoting.take() {
            self.timelines.insert(promoting.from.0 + 1, promoting.epoch);
        }
        let oldest = line.keys().next().copied().unwrap_or_default();
        self.timelines.retain(|_, epoch| *epoch < oldest || line.contains_key(epoch));
        for (epoch, timeline) in line {
            if let Some(timeline) = timeline {
                self.timelines.insert(timeline.0, *epoch);
            }
        }
        self
    }

    /// Notes that a promotion begins.
    #[must_use]
    pub fn promoting(mut self, from: TimelineId, epoch: Epoch) -> Self {
        let before = self.epoch_of(from);
        self.promoting = None;
        self.timelines.retain(|known, _| *known <= from.0);
        self.timelines.insert(from.0, before);
        self.promoting = Some(Promoting { epoch, from });
        self
    }

    /// A promotion that ended in `timeline` becomes a plain entry.
    #[must_use]
    pub fn promoted(mut self, timeline: TimelineId) -> Self {
        if let Some(promoting) = self.promoting.take() {
            self.timelines.insert(timeline.0, promoting.epoch);
        }
        self
    }

    /// Reads it from a data directory; a directory without one is as `initdb` made it.
    ///
    /// # Errors
    /// When the file is there but unreadable.
    pub(crate) fn load(data: &Path) -> Result<Self, PostgresError> {
        let path = data.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| PostgresError::file("read", &path)(std::io::Error::other(error))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(PostgresError::file("read", &path)(error)),
        }
    }

    /// Writes and syncs it.
    pub(crate) fn store(&self, data: &Path, account: Account) -> Result<(), PostgresError> {
        let text = serde_json::to_vec(self)
            .map_err(|error| PostgresError::file("write", data.join(FILE))(std::io::Error::other(error)))?;
        write_synced(&data.join(FILE), &text, account)
    }
}

/// Replaces a file as a whole, on disk before it returns.
pub fn write_synced(path: &Path, bytes: &[u8], account: Account) -> Result<(), PostgresError> {
    let aside = PathBuf::from(format!("{}.new", path.display()));
    let attempt = || -> std::io::Result<()> {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        account.own(&aside)?;
        rename(&aside, path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    attempt().map_err(PostgresError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(epochs: &[(u64, Option<u32>)]) -> BTreeMap<Epoch, Option<TimelineId>> {
        epochs.iter().map(|(epoch, timeline)| (Epoch(*epoch), timeline.map(TimelineId))).collect()
    }

    #[test]
    fn timelines_know_their_epoch_through_promotions_and_crashes() {
        let fresh = Lineage::default();
        assert_eq!(fresh.epoch_of(TimelineId(1)), Epoch(0));
        let begun = fresh.promoting(TimelineId(1), Epoch(1));
        assert_eq!(begun.epoch_of(TimelineId(1)), Epoch(0), "crashed before the promotion took effect");
        assert_eq!(begun.epoch_of(TimelineId(2)), Epoch(1));
        let done = begun.promoted(TimelineId(2));
        let follower = done.following(&line(&[(1, Some(2)), (4, Some(3))]));
        assert_eq!(follower.epoch_of(TimelineId(2)), Epoch(1), "nothing of epoch 4 has arrived yet");
        assert_eq!(follower.epoch_of(TimelineId(3)), Epoch(4));
    }

    #[test]
    fn a_number_that_is_used_again_belongs_to_the_newer_epoch() {
        let lineage = Lineage::default().following(&line(&[(1, Some(2))])).following(&line(&[(5, Some(2))]));
        assert_eq!(lineage.epoch_of(TimelineId(2)), Epoch(5));
        let again = lineage.promoting(TimelineId(2), Epoch(6)).promoting(TimelineId(2), Epoch(7));
        assert_eq!(again.epoch_of(TimelineId(3)), Epoch(7));
        assert_eq!(again.epoch_of(TimelineId(2)), Epoch(5));
    }

    #[test]
    fn a_promotion_that_never_took_effect_leaves_no_trace_when_others_went_on() {
        let begun = Lineage::default().following(&line(&[(1, Some(2))])).promoting(TimelineId(2), Epoch(2));
        let follower = begun.following(&line(&[(1, Some(2)), (3, Some(3)), (4, Some(4))]));
        assert_eq!(follower.epoch_of(TimelineId(3)), Epoch(3));
    }
}
