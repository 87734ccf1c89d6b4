//! An item as a stream of parts: reading it from the disk, and writing it to the staging area.
//!
//! Both sides of the disk run on blocking threads behind short queues; a queue that does not move for the idle time
//! ends the transfer.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use nix::libc;
use quorate_proto::resources::{self as proto, Part, part};
use quorate_types::NodeId;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tonic::Status;

use crate::blocking;
use crate::entry::{Content, Entry, FileEntry, Hash, Kind};
use crate::staging::Staged;
use crate::store::{InstallError, Installed, Rule, Store};
use crate::tree::{MODE_EXECUTABLE, MODE_PLAIN, Source, Tally};
use crate::wire::{Head, file_part, read_file};

/// Parts that wait between the network and the disk.
pub const PARTS_WAITING_MAX: usize = 4;

/// Why an item did not travel.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The other side said no, or cannot be reached.
    #[error("the peer: {}", .0.message())]
    Peer(Status),
    /// The other side sent what it must not.
    #[error("the peer sent something invalid: {0}")]
    Invalid(String),
    /// No progress.
    #[error("nothing moved for {0:?}")]
    Idle(Duration),
    /// The stream ended early.
    #[error("the transfer was cut off")]
    CutOff,
    /// The content is not what its hash says.
    #[error("`{0}` differs from its recorded size or hash")]
    Differs(String),
    /// This node's disk.
    #[error(transparent)]
    Install(#[from] InstallError),
}

impl From<Status> for TransferError {
    fn from(status: Status) -> Self {
        Self::Peer(status)
    }
}

impl TransferError {
    /// What the other side is told.
    pub fn status(&self) -> Status {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        match self {
            Self::Peer(status) => status.clone(),
            Self::Invalid(_) | Self::Differs(_) => Status::invalid_argument(text),
            Self::Idle(_) | Self::CutOff => Status::cancelled(text),
            Self::Install(InstallError::DiskFull | InstallError::TooManyItems(_)) => Status::resource_exhausted(text),
            Self::Install(InstallError::Fenced { .. } | InstallError::Overlaps { .. }) => {
                Status::failed_precondition(text)
            }
            Self::Install(_) => Status::internal(text),
        }
    }
}

/// What one transfer reads.
pub struct Outgoing {
    /// Who sends.
    pub from: NodeId,
    /// The item's head.
    pub head: Head,
    /// Its description.
    pub entry: Arc<Entry>,
    /// Its bytes; none for a tombstone.
    pub source: Option<Arc<Source>>,
    /// How many bytes a part has.
    pub chunk_bytes: usize,
    /// How long a part may wait.
    pub idle: Duration,
}

impl Outgoing {
    /// Reads everything into the queue. Blocking, on a thread of the runtime.
    pub fn pump<T>(&self, queue: &mpsc::Sender<T>, wrap: impl Fn(Part) -> T) -> Result<(), TransferError> {
        let runtime = Handle::current();
        let send = |part: Part| match runtime
            .block_on(async { tokio::time::timeout(self.idle, queue.send(wrap(part))).await })
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(TransferError::CutOff),
            Err(_) => Err(TransferError::Idle(self.idle)),
        };
        send(self.head.to_part(self.from))?;
        for file in &self.entry.files {
            match (&file.content, &self.source) {
                (Content::Regular { size, .. }, Some(source)) => self.pump_file(file, *size, source, &send)?,
                _ => send(file_part(file, Vec::new()))?,
            }
        }
        send(Part { part: Some(part::Part::End(proto::End {})) })
    }

    fn pump_file(
        &self,
        file: &FileEntry,
        size: u64,
        source: &Source,
        send: &impl Fn(Part) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        let name = || if file.path.is_empty() { self.head.path.to_string() } else { file.path.clone() };
        let disk = |error| InstallError::disk(format!("read `{}`", name()), error);
        let mut bytes = source.file(&file.path).map_err(disk)?;
        let mut left = size;
        let mut first = true;
        while first || left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(self.chunk_bytes);
            let data = bytes.next(wanted).map_err(disk)?;
            if data.len() != wanted {
                return Err(TransferError::Differs(name()));
            }
            left -= wanted as u64;
            send(if first { file_part(file, data) } else { Part { part: Some(part::Part::Data(data)) } })?;
            first = false;
        }
        Ok(())
    }
}

/// Writes what arrives to the staging area, checks it, and installs it.
///
/// Cancel-safe: dropped before the end has arrived, it leaves nothing.
pub async fn receive(
    store: Arc<Store>,
    head: Head,
    mut parts: impl Stream<Item = Result<Part, Status>> + Unpin,
    rule: Rule,
    idle: Duration,
    limits: crate::Limits,
) -> Result<Installed, TransferError> {
    let (queue, mut waiting) = mpsc::channel::<Part>(PARTS_WAITING_MAX);
    let writer = tokio::spawn(blocking(move || {
        store.check_room(head.bytes)?;
        let staged = store.stage()?;
        let mut unpack = Unpack::new(&staged, &head, limits)?;
        loop {
            match waiting.blocking_recv().and_then(|part| part.part) {
                Some(part::Part::File(file)) => unpack.file(&file)?,
                Some(part::Part::Data(data)) => unpack.data(&data)?,
                Some(part::Part::End(_)) => break,
                Some(part::Part::Head(_)) => return Err(TransferError::Invalid("a second head".into())),
                None => return Err(TransferError::CutOff),
            }
        }
        let entry = unpack.finish()?;
        Ok(store.install(&head.path, &entry, &staged, rule)?)
    }));
    loop {
        let part = match tokio::time::timeout(idle, parts.next()).await {
            Ok(Some(part)) => part?,
            Ok(None) => break,
            Err(_) => return Err(TransferError::Idle(idle)),
        };
        let ends = matches!(part.part, Some(part::Part::End(_)));
        // A writer that is gone says why below.
        if queue.send(part).await.is_err() || ends {
            break;
        }
    }
    drop(queue);
    writer.await.unwrap_or(Err(TransferError::CutOff))
}

/// An item that is being written to its staging place.
struct Unpack {
    at: PathBuf,
    head: Head,
    limits: crate::Limits,
    tally: Tally,
    files: Vec<FileEntry>,
    directories: HashSet<String>,
    writing: Option<Writing>,
}

struct Writing {
    file: File,
    hasher: Sha256,
    left: u64,
    sha256: Hash,
}

impl Unpack {
    fn new(staged: &Staged, head: &Head, limits: crate::Limits) -> Result<Self, TransferError> {
        let at = staged.path();
        if head.summary.kind == Kind::Tree {
            std::fs::create_dir(&at).map_err(|error| InstallError::disk("make the staged tree", error))?;
        }
        Ok(Self {
            at,
            head: head.clone(),
            limits,
            tally: Tally::new(),
            files: Vec::new(),
            directories: HashSet::new(),
            writing: None,
        })
    }

    fn place(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.at.clone() } else { self.at.join(path) }
    }

    fn disk(&self, path: &str) -> impl Fn(io::Error) -> TransferError + use<> {
        let what = format!("write `{path}` of `{}`", self.head.path);
        move |error| InstallError::disk(what.clone(), error).into()
    }

    fn file(&mut self, message: &proto::File) -> Result<(), TransferError> {
        let invalid = |what: &str| Err(TransferError::Invalid(what.to_owned()));
        if self.writing.is_some() {
            return invalid("a file before the last one was complete");
        }
        if self.files.len() as u64 == self.head.files {
            return invalid("more files than announced");
        }
        let file = read_file(message, self.head.summary.kind)
            .map_err(|status| TransferError::Invalid(status.message().to_owned()))?;
        // Only directories that were made here: nothing is ever written through a link.
        let parent = file.path.rsplit_once('/').map(|(parent, _)| parent);
        if parent.is_some_and(|parent| !self.directories.contains(parent)) {
            return invalid("a file before its directory");
        }
        self.tally.add(&file, &self.limits).map_err(|error| TransferError::Invalid(error.to_string()))?;
        let at = self.place(&file.path);
        let fail = self.disk(&file.path);
        match &file.content {
            Content::Regular { size, sha256, executable } => {
                let mode = if *executable { MODE_EXECUTABLE } else { MODE_PLAIN };
                let opened = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_NOFOLLOW).open(at);
                let opened = opened.map_err(&fail)?;
                opened.set_permissions(Permissions::from_mode(mode)).map_err(&fail)?;
                self.writing = Some(Writing { file: opened, hasher: Sha256::new(), left: *size, sha256: *sha256 });
            }
            Content::Directory => {
                std::fs::create_dir(&at).map_err(&fail)?;
                self.directories.insert(file.path.clone());
            }
            Content::Symlink { target } => symlink(target, at).map_err(&fail)?,
        }
        let is_regular = self.writing.is_some();
        self.files.push(file);
        if is_regular {
            return self.data(&message.data);
        }
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> Result<(), TransferError> {
        let path = self.files.last().map_or_else(String::new, |file| file.path.clone());
        let fail = self.disk(&path);
        let Some(writing) = &mut self.writing else {
            return Err(TransferError::Invalid("bytes without a file".into()));
        };
        let Some(left) = writing.left.checked_sub(data.len() as u64) else {
            return Err(TransferError::Differs(path));
        };
        writing.left = left;
        writing.hasher.update(data);
        writing.file.write_all(data).map_err(&fail)?;
        if left > 0 {
            return Ok(());
        }
        if let Some(done) = self.writing.take()
            && Hash(done.hasher.finalize().into()) != done.sha256
        {
            return Err(TransferError::Differs(path));
        }
        Ok(())
    }

    /// Checks that everything arrived, and syncs it.
    fn finish(self) -> Result<Entry, TransferError> {
        if self.writing.is_some() || self.files.len() as u64 != self.head.files {
            return Err(TransferError::CutOff);
        }
        if self.head.summary.kind == Kind::File && self.files.is_empty() {
            return Err(TransferError::Invalid("a file item without its file".into()));
        }
        // After all were written: the file system then commits many with one journal write.
        for file in self.files.iter().rev() {
            let at = self.place(&file.path);
            let sync = || {
                if file.content == Content::Directory {
                    std::fs::set_permissions(&at, Permissions::from_mode(MODE_EXECUTABLE))?;
                }
                File::open(&at)?.sync_all()
            };
            if !matches!(file.content, Content::Symlink { .. }) {
                sync().map_err(self.disk(&file.path))?;
            }
        }
        if self.head.summary.kind == Kind::Tree {
            std::fs::set_permissions(&self.at, Permissions::from_mode(MODE_EXECUTABLE))
                .and_then(|()| File::open(&self.at)?.sync_all())
                .map_err(self.disk(""))?;
        }
        let entry = Entry { version: self.head.summary.version, kind: self.head.summary.kind, files: self.files };
        if entry.summary() != self.head.summary {
            return Err(TransferError::Differs(self.head.path.to_string()));
        }
        Ok(entry)
    }
}
