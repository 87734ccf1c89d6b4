//! What an item is: its version, its files, and the digest that two nodes compare.

use std::fmt;

use quorate_types::Epoch;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

/// Orders the writes of one path, and of all paths within an epoch: only the holder of an epoch makes its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The epoch in which the item was placed.
    pub epoch: Epoch,
    /// Grows with every write of a node; never given twice.
    pub sequence: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.sequence)
    }
}

/// A SHA-256, hex as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut hash = [0; 32];
        hex::decode_to_slice(String::deserialize(deserializer)?, &mut hash).map_err(de::Error::custom)?;
        Ok(Self(hash))
    }
}

/// What stands at an item's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One regular file.
    File,
    /// A directory with everything in it.
    Tree,
    /// Nothing: the item was removed.
    Tombstone,
}

/// One file of an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the item; empty when the item is this file.
    pub path: String,
    /// What it is.
    pub content: Content,
}

/// What a file of an item is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Bytes.
    Regular {
        /// How many.
        size: u64,
        /// Their hash.
        sha256: Hash,
        /// Mode 0755, otherwise 0644.
        executable: bool,
    },
    /// A directory, mode 0755.
    Directory,
    /// A relative link that stays inside the item.
    Symlink {
        /// Where it points.
        target: String,
    },
}

/// An item: a directory before what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which write this is.
    pub version: Version,
    /// What stands at its path.
    pub kind: Kind,
    /// Its files; none for a tombstone.
    pub files: Vec<FileEntry>,
}

/// What two nodes compare of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Which write this is.
    pub version: Version,
    /// What stands at its path.
    pub kind: Kind,
    /// Over its files.
    pub digest: Hash,
}

impl Entry {
    /// The removal of an item.
    #[must_use]
    pub fn tombstone(version: Version) -> Self {
        Self { version, kind: Kind::Tombstone, files: Vec::new() }
    }

    /// The bytes of all its files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files
            .iter()
            .map(|file| match &file.content {
                Content::Regular { size, .. } => *size,
                Content::Directory | Content::Symlink { .. } => 0,
            })
            .sum()
    }

    /// What other nodes compare.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary { version: self.version, kind: self.kind, digest: digest(&self.files) }
    }
}

/// The digest over an item's files; every field is preceded by its length or has a fixed one.
fn digest(files: &[FileEntry]) -> Hash {
    let mut hasher = Sha256::new();
    let text = |hasher: &mut Sha256, text: &str| {
        hasher.update((text.len() as u64).to_be_bytes());
        hasher.update(text);
    };
    for file in files {
        text(&mut hasher, &file.path);
        match &file.content {
            Content::Regular { size, sha256, executable } => {
                hasher.update([1, u8::from(*executable)]);
                hasher.update(size.to_be_bytes());
                hasher.update(sha256.0);
            }
            Content::Directory => hasher.update([2]),
            Content::Symlink { target } => {
                hasher.update([3]);
                text(&mut hasher, target);
            }
        }
    }
    Hash(hasher.finalize().into())
}

/// One item's share of a node's digest. The shares are combined by exclusive or, so that a change costs one share.
#[must_use]
pub fn share(path: &str, summary: &Summary) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(summary.version.epoch.0.to_be_bytes());
    hasher.update(summary.version.sequence.to_be_bytes());
    hasher.update([summary.kind as u8]);
    hasher.update(summary.digest.0);
    hasher.update(path);
    Hash(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_sees_every_field() {
        let regular = |size, byte, executable| Content::Regular { size, sha256: Hash([byte; 32]), executable };
        let contents = [
            regular(1, 1, false),
            regular(2, 1, false),
            regular(1, 2, false),
            regular(1, 1, true),
            Content::Directory,
            Content::Symlink { target: "x".into() },
            Content::Symlink { target: "y".into() },
        ];
        let mut seen: Vec<Hash> = Vec::new();
        for content in contents {
            for path in ["a", "b"] {
                let one = digest(&[FileEntry { path: path.into(), content: content.clone() }]);
                assert!(!seen.contains(&one), "{path} {content:?}");
                seen.push(one);
            }
        }
    }

    #[test]
    fn an_older_epoch_is_older_whatever_its_sequence() {
        let version = |epoch, sequence| Version { epoch: Epoch(epoch), sequence };
        assert!(version(2, 1) > version(1, 900));
        assert!(version(2, 2) > version(2, 1));
    }
}
