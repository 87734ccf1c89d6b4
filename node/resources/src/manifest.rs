//! What this node has, durably: one redb file, and a summary of it in memory.
//!
//! *Invariant*: an item is recorded only when it is on disk under its name. Between the two stands a pending record,
//! which the next start settles.

use std::collections::BTreeMap;
use std::path::Path;

use quorate_types::Epoch;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::entry::{Entry, Hash, Kind, Summary, Version, share};
use crate::path::ItemPath;

const ITEMS: TableDefinition<&str, &[u8]> = TableDefinition::new("items");
const PENDING: TableDefinition<&str, &[u8]> = TableDefinition::new("pending");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The stored format; a newer program migrates from its predecessor.
const FORMAT: u64 = 1;
/// Sequence numbers that one write to disk reserves.
const SEQUENCES_RESERVED: u64 = 1024;

mod keys {
    pub const FORMAT: &str = "format";
    pub const PROMISED: &str = "promised";
    pub const BASE: &str = "base";
    pub const HELD: &str = "held";
    pub const COMPLETE: &str = "complete";
    pub const SEQUENCE: &str = "sequence";
}

/// The manifest cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The database.
    #[error("the manifest cannot be read or written")]
    Database(#[source] Box<redb::Error>),
    /// A record in it.
    #[error("the manifest's record of `{path}` is unreadable")]
    Record {
        /// Whose.
        path: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// Its name is not a path that this program accepts.
    #[error("the manifest holds `{0}`, which is no path of an item")]
    Path(String),
    /// Written by another version.
    #[error("the manifest has format {0}, this program knows {FORMAT}; use the version that wrote it")]
    Format(u64),
}

impl<E: Into<redb::Error>> From<E> for ManifestError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Nothing of an older epoch is accepted.
    pub promised: Epoch,
    /// The epoch whose take-over the items build on.
    pub base: Epoch,
    /// The newest epoch in which this node itself took over; 0: none.
    pub held: Epoch,
    /// Whether it can speak for what was acknowledged before; not so with a new or lost directory.
    pub complete: bool,
}

/// An effect that was begun.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pending {
    /// What will stand at the path.
    pub entry: Entry,
    /// Where it waits, and where what stood there before goes to.
    pub staged: Option<String>,
}

/// The open manifest.
pub struct Manifest {
    database: Database,
    standing: Standing,
    items: BTreeMap<ItemPath, Summary>,
    digest: Hash,
    sequence: u64,
    reserved: u64,
}

impl Manifest {
    /// Opens or makes it.
    ///
    /// # Errors
    /// When it cannot be read, or another version wrote it.
    pub fn open(file: &Path) -> Result<Self, ManifestError> {
        let database = Database::create(file)?;
        let write = database.begin_write()?;
        let mut items = BTreeMap::new();
        let standing;
        let reserved;
        {
            let mut meta = write.open_table(META)?;
            let found = meta.get(keys::FORMAT)?.map(|value| value.value());
            match found {
                None => drop(meta.insert(keys::FORMAT, FORMAT)?),
                Some(FORMAT) => {}
                Some(other) => return Err(ManifestError::Format(other)),
            }
            let number = |key| Ok::<_, ManifestError>(meta.get(key)?.map_or(0, |value| value.value()));
            standing = Standing {
                promised: Epoch(number(keys::PROMISED)?),
                base: Epoch(number(keys::BASE)?),
                held: Epoch(number(keys::HELD)?),
                complete: number(keys::COMPLETE)? == 1,
            };
            reserved = number(keys::SEQUENCE)?;
            write.open_table(PENDING)?;
            for row in write.open_table(ITEMS)?.iter()? {
                let (path, record) = row?;
                items.insert(parse_path(path.value())?, parse::<Entry>(path.value(), record.value())?.summary());
            }
        }
        write.commit()?;
        let mut manifest =
            Self { database, standing, items: BTreeMap::new(), digest: Hash::default(), sequence: reserved, reserved };
        for (path, summary) in items {
            manifest.remember(path, Some(summary));
        }
        Ok(manifest)
    }

    /// How far this node is.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Everything it has.
    #[must_use]
    pub fn items(&self) -> &BTreeMap<ItemPath, Summary> {
        &self.items
    }

    /// Over everything it has.
    #[must_use]
    pub fn digest(&self) -> Hash {
        self.digest
    }

    /// At least the newest sequence that it gave or has seen.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The files of an item.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn entry(&self, path: &ItemPath) -> Result<Option<Entry>, ManifestError> {
        let read = self.database.begin_read()?;
        let table = read.open_table(ITEMS)?;
        table.get(path.as_str())?.map(|record| parse(path.as_str(), record.value())).transpose()
    }

    /// Changes how far this node is. With a newer base, tombstones of older epochs go: whoever still has such an item
    /// has an older base, and drops it when it adopts the newer one.
    ///
    /// # Errors
    /// [`ManifestError`]; nothing has changed then.
    pub fn set_standing(&mut self, to: Standing) -> Result<(), ManifestError> {
        if to == self.standing {
            return Ok(());
        }
        let is_settled = |item: &Summary| item.kind == Kind::Tombstone && item.version.epoch < to.base;
        let settled: Vec<ItemPath> = match to.base > self.standing.base {
            true => self.items.iter().filter(|(_, item)| is_settled(item)).map(|(path, _)| path.clone()).collect(),
            false => Vec::new(),
        };
        let write = self.database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            meta.insert(keys::PROMISED, to.promised.0)?;
            meta.insert(keys::BASE, to.base.0)?;
            meta.insert(keys::HELD, to.held.0)?;
            meta.insert(keys::COMPLETE, u64::from(to.complete))?;
            let mut items = write.open_table(ITEMS)?;
            for path in &settled {
                items.remove(path.as_str())?;
            }
        }
        write.commit()?;
        self.standing = to;
        for path in settled {
            self.remember(path, None);
        }
        Ok(())
    }

    /// A sequence above all that were given or seen; durable before it is used.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn next_sequence(&mut self) -> Result<u64, ManifestError> {
        self.see_sequence(self.sequence + 1)?;
        Ok(self.sequence)
    }

    /// Gives no sequence up to this one any more.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn see_sequence(&mut self, seen: u64) -> Result<(), ManifestError> {
        if seen > self.reserved {
            let reserved = seen.saturating_add(SEQUENCES_RESERVED);
            let write = self.database.begin_write()?;
            write.open_table(META)?.insert(keys::SEQUENCE, reserved)?;
            write.commit()?;
            self.reserved = reserved;
        }
        self.sequence = self.sequence.max(seen);
        Ok(())
    }

    /// Records what is about to be done at a path.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn begin(&mut self, path: &ItemPath, pending: &Pending) -> Result<(), ManifestError> {
        let record = write_record(path, pending)?;
        let write = self.database.begin_write()?;
        write.open_table(PENDING)?.insert(path.as_str(), record.as_slice())?;
        write.commit()?;
        Ok(())
    }

    /// Records that it is done.
    ///
    /// # Errors
    /// [`ManifestError`]; the next start settles it.
    pub fn finish(&mut self, path: &ItemPath, entry: &Entry) -> Result<(), ManifestError> {
        let record = write_record(path, entry)?;
        let write = self.database.begin_write()?;
        write.open_table(PENDING)?.remove(path.as_str())?;
        write.open_table(ITEMS)?.insert(path.as_str(), record.as_slice())?;
        write.commit()?;
        self.remember(path.clone(), Some(entry.summary()));
        Ok(())
    }

    /// Records that it was not done.
    ///
    /// # Errors
    /// [`ManifestError`]; the next start settles it.
    pub fn abandon(&mut self, path: &ItemPath) -> Result<(), ManifestError> {
        let write = self.database.begin_write()?;
        write.open_table(PENDING)?.remove(path.as_str())?;
        write.commit()?;
        Ok(())
    }

    /// Forgets an item.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn forget(&mut self, path: &ItemPath) -> Result<(), ManifestError> {
        let write = self.database.begin_write()?;
        write.open_table(ITEMS)?.remove(path.as_str())?;
        write.commit()?;
        self.remember(path.clone(), None);
        Ok(())
    }

    /// What was begun and neither finished nor abandoned.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn pending(&self) -> Result<Vec<(ItemPath, Pending)>, ManifestError> {
        let read = self.database.begin_read()?;
        let table = read.open_table(PENDING)?;
        let mut found = Vec::new();
        for row in table.iter()? {
            let (path, record) = row?;
            found.push((parse_path(path.value())?, parse(path.value(), record.value())?));
        }
        Ok(found)
    }

    fn remember(&mut self, path: ItemPath, summary: Option<Summary>) {
        let mut toggle = |summary: &Summary| {
            let share = share(path.as_str(), summary);
            self.digest.0.iter_mut().zip(share.0).for_each(|(sum, byte)| *sum ^= byte);
        };
        if let Some(old) = self.items.get(&path) {
            toggle(old);
        }
        if let Some(new) = &summary {
            toggle(new);
            self.sequence = self.sequence.max(new.version.sequence);
        }
        match summary {
            Some(new) => drop(self.items.insert(path, new)),
            None => drop(self.items.remove(&path)),
        }
    }
}

/// Whether `version` may replace what is there.
#[must_use]
pub fn is_newer(version: Version, current: Option<&Summary>) -> bool {
    current.is_none_or(|current| version > current.version)
}

fn parse_path(text: &str) -> Result<ItemPath, ManifestError> {
    text.parse().map_err(|_| ManifestError::Path(text.to_owned()))
}

fn parse<T: for<'a> Deserialize<'a>>(path: &str, record: &[u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(record).map_err(|source| ManifestError::Record { path: path.to_owned(), source })
}

fn write_record<T: Serialize>(path: &ItemPath, value: &T) -> Result<Vec<u8>, ManifestError> {
    serde_json::to_vec(value).map_err(|source| ManifestError::Record { path: path.to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(epoch: u64, sequence: u64) -> Entry {
        Entry::tombstone(Version { epoch: Epoch(epoch), sequence })
    }

    #[test]
    fn everything_is_there_after_a_restart_and_no_sequence_comes_twice() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("m");
        let path: ItemPath = "plugins/a".parse().unwrap();
        let standing = Standing { promised: Epoch(3), base: Epoch(2), held: Epoch(2), complete: true };
        let (digest, given) = {
            let mut manifest = Manifest::open(&file).unwrap();
            let given = manifest.next_sequence().unwrap();
            let pending = Pending { entry: entry(2, given), staged: None };
            manifest.begin(&path, &pending).unwrap();
            manifest.finish(&path, &pending.entry).unwrap();
            manifest.begin(&"plugins/b".parse().unwrap(), &pending).unwrap();
            manifest.set_standing(standing).unwrap();
            (manifest.digest(), given)
        };
        let mut manifest = Manifest::open(&file).unwrap();
        assert_eq!(manifest.digest(), digest);
        assert_ne!(digest, Hash::default());
        assert_eq!(manifest.standing(), standing);
        assert_eq!(manifest.pending().unwrap().len(), 1);
        assert_eq!(manifest.entry(&path).unwrap().unwrap(), entry(2, given));
        assert!(manifest.next_sequence().unwrap() > given);
        manifest.set_standing(Standing { base: Epoch(3), ..standing }).unwrap();
        assert_eq!((manifest.items().len(), manifest.digest()), (0, Hash::default()));
        assert!(manifest.entry(&path).unwrap().is_none());
    }
}
