//! Between the house's types and the messages.

use quorate_proto::resources::{self as proto, part};
use quorate_types::{Epoch, NodeId};
use tonic::Status;

use crate::entry::{Content, Entry, FileEntry, Hash, Kind, Summary, Version};
use crate::manifest::Standing;
use crate::path::{ItemPath, check_link, check_plain};

/// The largest message: a file's record with a chunk of its bytes, or a batch of summaries.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Summaries in one message.
pub const SUMMARIES_PER_MESSAGE: usize = 512;

/// What a peer says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// What it promised.
    pub promised: Epoch,
    /// The epoch whose take-over its items build on.
    pub base: Epoch,
    /// Whether it took over in `base` and knows of nothing newer.
    pub holder: bool,
    /// Whether it can speak for what was acknowledged before.
    pub complete: bool,
    /// The newest sequence it knows.
    pub sequence: u64,
    /// How many items it has, tombstones among them.
    pub items: u64,
    /// Over them.
    pub digest: Hash,
}

impl Look {
    /// Of this node.
    pub fn new(standing: Standing, sequence: u64, items: usize, digest: Hash) -> Self {
        Self {
            promised: standing.promised,
            base: standing.base,
            holder: standing.base.0 > 0 && standing.held == standing.base && standing.promised <= standing.base,
            complete: standing.complete,
            sequence,
            items: items as u64,
            digest,
        }
    }

    /// As a message.
    pub fn to_message(self) -> proto::LookReply {
        proto::LookReply {
            promised_epoch: self.promised.0,
            base: self.base.0,
            holder: self.holder,
            complete: self.complete,
            sequence: self.sequence,
            items: self.items,
            digest: self.digest.0.to_vec(),
        }
    }

    /// From a message.
    pub fn read(message: &proto::LookReply) -> Result<Self, Status> {
        Ok(Self {
            promised: Epoch(message.promised_epoch),
            base: Epoch(message.base),
            holder: message.holder,
            complete: message.complete,
            sequence: message.sequence,
            items: message.items,
            digest: hash(&message.digest)?,
        })
    }
}

/// What comes before an item's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Where the item is.
    pub path: ItemPath,
    /// Its version, kind and digest.
    pub summary: Summary,
    /// How many files follow.
    pub files: u64,
    /// How many bytes they have.
    pub bytes: u64,
}

impl Head {
    /// Of an item.
    pub fn new(path: ItemPath, entry: &Entry) -> Self {
        Self { path, summary: entry.summary(), files: entry.files.len() as u64, bytes: entry.bytes() }
    }

    /// As the first part.
    pub fn to_part(&self, from: NodeId) -> proto::Part {
        let head = proto::Head {
            from: from.0,
            path: self.path.to_string(),
            epoch: self.summary.version.epoch.0,
            sequence: self.summary.version.sequence,
            kind: kind_number(self.summary.kind),
            files: self.files,
            bytes: self.bytes,
            digest: self.summary.digest.0.to_vec(),
        };
        proto::Part { part: Some(part::Part::Head(head)) }
    }

    /// From the first part.
    pub fn read(part: Option<proto::Part>) -> Result<Self, Status> {
        let Some(part::Part::Head(head)) = part.and_then(|part| part.part) else {
            return Err(Status::invalid_argument("the first part is no head"));
        };
        Ok(Self {
            path: path(&head.path)?,
            summary: Summary {
                version: Version { epoch: Epoch(head.epoch), sequence: head.sequence },
                kind: kind(head.kind)?,
                digest: hash(&head.digest)?,
            },
            files: head.files,
            bytes: head.bytes,
        })
    }
}

/// A file's record with its first bytes.
pub fn file_part(file: &FileEntry, data: Vec<u8>) -> proto::Part {
    let mut message = proto::File { path: file.path.clone(), data, ..proto::File::default() };
    match &file.content {
        Content::Regular { size, sha256, executable } => {
            message.kind = proto::FileKind::Regular.into();
            message.size = *size;
            message.sha256 = sha256.0.to_vec();
            message.executable = *executable;
        }
        Content::Directory => message.kind = proto::FileKind::Directory.into(),
        Content::Symlink { target } => {
            message.kind = proto::FileKind::Symlink.into();
            message.target.clone_from(target);
        }
    }
    proto::Part { part: Some(part::Part::File(message)) }
}

/// Checks a file's record: plain names, links that stay inside, and an empty path only for a file that is the item.
pub fn read_file(message: &proto::File, item: Kind) -> Result<FileEntry, Status> {
    let invalid = |error: &dyn std::error::Error| Status::invalid_argument(error.to_string());
    let content = match message.kind() {
        proto::FileKind::Regular => {
            Content::Regular { size: message.size, sha256: hash(&message.sha256)?, executable: message.executable }
        }
        proto::FileKind::Directory => Content::Directory,
        proto::FileKind::Symlink => Content::Symlink { target: message.target.clone() },
        proto::FileKind::Unspecified => return Err(Status::invalid_argument("a file of an unknown kind")),
    };
    match (item, &content) {
        (Kind::File, Content::Regular { .. }) if message.path.is_empty() => {}
        (Kind::Tree, _) => check_plain(&message.path).map_err(|error| invalid(&error))?,
        _ => return Err(Status::invalid_argument("a file that does not fit its item")),
    }
    if let Content::Symlink { target } = &content {
        check_link(&message.path, target).map_err(|error| invalid(&error))?;
    }
    Ok(FileEntry { path: message.path.clone(), content })
}

/// An item's summary as a message.
pub fn summary_message(path: &ItemPath, summary: &Summary) -> proto::Summary {
    proto::Summary {
        path: path.to_string(),
        epoch: summary.version.epoch.0,
        sequence: summary.version.sequence,
        kind: kind_number(summary.kind),
        digest: summary.digest.0.to_vec(),
    }
}

/// An item's summary from a message.
pub fn read_summary(message: &proto::Summary) -> Result<(ItemPath, Summary), Status> {
    let version = Version { epoch: Epoch(message.epoch), sequence: message.sequence };
    let summary = Summary { version, kind: kind(message.kind)?, digest: hash(&message.digest)? };
    Ok((path(&message.path)?, summary))
}

/// A path from a message.
pub fn path(text: &str) -> Result<ItemPath, Status> {
    text.parse().map_err(|error: crate::path::PathError| Status::invalid_argument(error.to_string()))
}

fn hash(bytes: &[u8]) -> Result<Hash, Status> {
    bytes.try_into().map(Hash).map_err(|_| Status::invalid_argument("a digest is 32 bytes"))
}

fn kind_number(kind: Kind) -> i32 {
    match kind {
        Kind::File => proto::Kind::File.into(),
        Kind::Tree => proto::Kind::Tree.into(),
        Kind::Tombstone => proto::Kind::Tombstone.into(),
    }
}

fn kind(number: i32) -> Result<Kind, Status> {
    match proto::Kind::try_from(number) {
        Ok(proto::Kind::File) => Ok(Kind::File),
        Ok(proto::Kind::Tree) => Ok(Kind::Tree),
        Ok(proto::Kind::Tombstone) => Ok(Kind::Tombstone),
        Ok(proto::Kind::Unspecified) | Err(_) => Err(Status::invalid_argument("an item of an unknown kind")),
    }
}
