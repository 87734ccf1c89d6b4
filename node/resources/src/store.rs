//! The directory on this node's disk: staging, putting items under their names, keeping aside, looking up.
//!
//! *Invariants*: an item appears under its name whole or not at all; what stood there before is kept aside first; no
//! path and no link leads out of the root.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::libc;
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use quorate_types::Epoch;
use tokio::sync::watch;
use uuid::Uuid;
use walkdir::WalkDir;

use crate::entry::{Entry, Kind, Version};
use crate::lookup::open_beneath;
use crate::manifest::{Manifest, ManifestError, Pending, Standing, is_newer};
use crate::merge::Listing;
use crate::path::{DATA_DIRS, ItemPath};
use crate::staging::{STAGED_NAME, Staged};
use crate::tree::{MODE_EXECUTABLE, Seal, Source, describe};
use crate::{Limits, OpenError, OpenFileError};

/// Everything of the root that is not data.
const PRIVATE_DIR: &str = ".quorate";

/// Why an item is not under its name.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A newer epoch was promised.
    #[error("epoch {epoch} is over: epoch {promised} was promised")]
    Fenced {
        /// Of the item.
        epoch: Epoch,
        /// The oldest that is still accepted.
        promised: Epoch,
    },
    /// Items do not contain each other.
    #[error("`{path}` overlaps with the item `{with}`")]
    Overlaps {
        /// The new one.
        path: ItemPath,
        /// The one that is there.
        with: ItemPath,
    },
    /// The manifest is full.
    #[error("there are {0} items already")]
    TooManyItems(u64),
    /// No room on the disk.
    #[error("the disk that holds the resources directory is full")]
    DiskFull,
    /// The disk.
    #[error("{what}")]
    Disk {
        /// What was tried.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl InstallError {
    pub(crate) fn disk(what: impl Into<String>, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::DiskFull,
            _ => Self::Disk { what: what.into(), source },
        }
    }
}

/// When an item may replace what is there.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// The holder of its epoch places it: the epoch must not be over, and the newest version wins.
    Place,
    /// Another node has it: only if exactly this is there.
    Repair {
        /// The version that is recorded here.
        instead_of: Option<Version>,
    },
}

/// What became of an item that should be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// It is there.
    Done,
    /// It, or something newer, was there.
    Already,
}

/// The open directory.
pub struct Store {
    root: PathBuf,
    root_fd: OwnedFd,
    limits: Limits,
    fence: watch::Receiver<Epoch>,
    manifest: Mutex<Manifest>,
}

impl Store {
    /// Opens or makes the directory, settles what the last run left, and empties the staging area.
    pub fn open(root: &Path, limits: Limits, fence: watch::Receiver<Epoch>) -> Result<Self, OpenError> {
        let fail = |source| OpenError::Directory { path: root.to_owned(), source };
        for name in DATA_DIRS {
            std::fs::create_dir_all(root.join(name)).map_err(fail)?;
        }
        let private = root.join(PRIVATE_DIR);
        for name in ["staging", "aside"] {
            std::fs::create_dir_all(private.join(name)).map_err(fail)?;
        }
        let only_us = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&private, only_us).map_err(fail)?;
        for directory in [&private, root] {
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(fail)?;
        }
        let manifest = Manifest::open(&private.join("manifest"))?;
        let root_fd = File::open(root).map_err(fail)?.into();
        let store = Self { root: root.to_owned(), root_fd, limits, fence, manifest: Mutex::new(manifest) };
        store.settle()?;
        for left in std::fs::read_dir(store.staging()).map_err(fail)? {
            std::fs::remove_dir_all(left.map_err(fail)?.path()).map_err(fail)?;
        }
        Ok(store)
    }

    fn staging(&self) -> PathBuf {
        self.root.join(PRIVATE_DIR).join("staging")
    }

    fn aside(&self) -> PathBuf {
        self.root.join(PRIVATE_DIR).join("aside")
    }

    fn lock(&self) -> MutexGuard<'_, Manifest> {
        // Every change of the manifest is one transaction, so a panic leaves none half done.
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finishes or forgets what was begun when the last run ended.
    fn settle(&self) -> Result<(), OpenError> {
        let mut manifest = self.lock();
        for (path, pending) in manifest.pending()? {
            let at = self.root.join(path.as_str());
            let done = match pending.entry.kind {
                Kind::Tombstone => at.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound),
                kind => describe(&at, &self.limits, Seal::No)
                    .is_ok_and(|found| found == (kind, pending.entry.files.clone())),
            };
            if let Some(name) = &pending.staged {
                // It may be what stood there before.
                let left = self.staging().join(name).join(STAGED_NAME);
                if left.symlink_metadata().is_ok() {
                    self.move_aside(&left).map_err(|source| OpenError::Directory { path: left, source })?;
                }
            }
            if done {
                manifest.finish(&path, &pending.entry)?
            } else {
                manifest.abandon(&path)?
            }
            tracing::info!(%path, version = %pending.entry.version, done, "settled what the last run had begun");
        }
        Ok(())
    }

    /// A new private place.
    pub fn stage(&self) -> Result<Staged, InstallError> {
        let directory = self.staging().join(Uuid::now_v7().to_string());
        std::fs::create_dir(&directory).map_err(|source| InstallError::disk("make a staging directory", source))?;
        Ok(Staged { directory })
    }

    /// Whether this many bytes fit, beside what is always kept free.
    pub fn check_room(&self, bytes: u64) -> Result<(), InstallError> {
        let room = fstatvfs(&self.root_fd)
            .map_err(|error| InstallError::disk("ask for the free room of the disk", error.into()))?;
        let free = room.blocks_available().saturating_mul(room.fragment_size());
        if free < bytes.saturating_add(self.limits.free_bytes_kept) { Err(InstallError::DiskFull) } else { Ok(()) }
    }

    /// How far this node is; what the node promised elsewhere counts too.
    pub fn standing(&self) -> Standing {
        self.standing_in(&self.lock())
    }

    fn standing_in(&self, manifest: &Manifest) -> Standing {
        let mut standing = manifest.standing();
        standing.promised = standing.promised.max(*self.fence.borrow());
        standing
    }

    /// Accepts nothing older than `epoch` from now on, durably. Answers what is promised.
    pub fn promise(&self, epoch: Epoch) -> Result<Standing, ManifestError> {
        self.change_standing(|standing| standing.promised = standing.promised.max(epoch))
    }

    /// Changes how far this node is.
    pub fn change_standing(&self, change: impl FnOnce(&mut Standing)) -> Result<Standing, ManifestError> {
        let mut manifest = self.lock();
        let mut standing = self.standing_in(&manifest);
        change(&mut standing);
        manifest.set_standing(standing)?;
        Ok(standing)
    }

    /// Looks at the manifest; keep it short.
    pub fn look<T>(&self, look: impl FnOnce(&Manifest, Standing) -> T) -> T {
        let manifest = self.lock();
        look(&manifest, self.standing_in(&manifest))
    }

    /// What this node has, and which of it is gone from the disk.
    pub fn listing(&self) -> (Listing, BTreeSet<ItemPath>) {
        let listing = self.look(|manifest, standing| Listing { base: standing.base, items: manifest.items().clone() });
        let is_missing = |path: &ItemPath, kind| {
            let found = self.root.join(path.as_str()).symlink_metadata();
            match kind {
                Kind::Tombstone => false,
                Kind::File => !found.is_ok_and(|meta| meta.is_file()),
                Kind::Tree => !found.is_ok_and(|meta| meta.is_dir()),
            }
        };
        let missing = listing.items.iter().filter(|(path, item)| is_missing(path, item.kind));
        let missing = missing.map(|(path, _)| path.clone()).collect();
        (listing, missing)
    }

    /// The next version that this node may give in `epoch`, durably its own.
    pub fn next_version(&self, epoch: Epoch) -> Result<Version, ManifestError> {
        Ok(Version { epoch, sequence: self.lock().next_sequence()? })
    }

    /// Gives no sequence up to this one any more.
    pub fn see_sequence(&self, seen: u64) -> Result<(), ManifestError> {
        self.lock().see_sequence(seen)
    }

    /// Whether an item would be installed now: asked before its bytes travel.
    pub fn check(&self, path: &ItemPath, kind: Kind, version: Version, rule: Rule) -> Result<Installed, InstallError> {
        self.check_in(&self.lock(), path, kind, version, rule)
    }

    fn check_in(
        &self,
        manifest: &Manifest,
        path: &ItemPath,
        kind: Kind,
        version: Version,
        rule: Rule,
    ) -> Result<Installed, InstallError> {
        let current = manifest.items().get(path);
        match rule {
            Rule::Place => {
                let promised = self.standing_in(manifest).promised;
                if version.epoch < promised {
                    return Err(InstallError::Fenced { epoch: version.epoch, promised });
                }
                if !is_newer(version, current) {
                    return Ok(Installed::Already);
                }
            }
            Rule::Repair { instead_of } if current.map(|item| item.version) != instead_of => {
                return Ok(Installed::Already);
            }
            Rule::Repair { .. } => {}
        }
        if current.is_none() && manifest.items().len() as u64 >= self.limits.items_max {
            return Err(InstallError::TooManyItems(self.limits.items_max));
        }
        if kind == Kind::Tombstone {
            return Ok(Installed::Done);
        }
        let live = |with: &ItemPath| manifest.items().get(with).is_some_and(|item| item.kind != Kind::Tombstone);
        let above = path.above().filter_map(|above| above.parse::<ItemPath>().ok()).find(live);
        let start = format!("{path}/");
        let below = || {
            // Names such as `path-2` may stand between a path and what is below it, but all begin with the path.
            let mut after = manifest.items().range(path.clone()..).map(|(other, _)| other);
            let mut after = after.by_ref().take_while(|other| other.as_str().starts_with(path.as_str()));
            after.find(|other| other.as_str().starts_with(&start) && live(other)).cloned()
        };
        match above.or_else(below) {
            Some(with) => Err(InstallError::Overlaps { path: path.clone(), with }),
            None => Ok(Installed::Done),
        }
    }

    /// Puts an item under its name and records it; what stood there is kept aside.
    ///
    /// `staged` holds the described, synced item; a tombstone gets an empty place.
    pub fn install(
        &self,
        path: &ItemPath,
        entry: &Entry,
        staged: &Staged,
        rule: Rule,
    ) -> Result<Installed, InstallError> {
        let mut manifest = self.lock();
        if self.check_in(&manifest, path, entry.kind, entry.version, rule)? == Installed::Already {
            return Ok(Installed::Already);
        }
        // An epoch that was heard of is promised: the one before it is over here too.
        let mut standing = self.standing_in(&manifest);
        standing.promised = standing.promised.max(entry.version.epoch);
        manifest.set_standing(standing)?;
        manifest.begin(path, &Pending { entry: entry.clone(), staged: staged.name() })?;
        if let Err(error) = self.exchange(path, entry.kind, staged) {
            manifest.abandon(path)?;
            return Err(error);
        }
        manifest.finish(path, entry)?;
        manifest.see_sequence(entry.version.sequence)?;
        drop(manifest);
        self.prune_aside();
        Ok(Installed::Done)
    }

    /// Keeps an item aside and forgets it, if exactly this version is there.
    pub fn drop_item(&self, path: &ItemPath, version: Version) -> Result<Installed, InstallError> {
        let staged = self.stage()?;
        let mut manifest = self.lock();
        if manifest.items().get(path).is_none_or(|item| item.version != version) {
            return Ok(Installed::Already);
        }
        // A crash in between leaves an item that is recorded and missing: the next round drops it again.
        self.exchange(path, Kind::Tombstone, &staged)?;
        manifest.forget(path)?;
        drop(manifest);
        self.prune_aside();
        Ok(Installed::Done)
    }

    /// Swaps what is staged with what stands under the name, and keeps the latter aside.
    fn exchange(&self, path: &ItemPath, kind: Kind, staged: &Staged) -> Result<(), InstallError> {
        let fail = |source: io::Error| InstallError::disk(format!("put `{path}` under its name"), source);
        let failed = |error: Errno| fail(error.into());
        let (_, name) = path.split_last();
        let parent = match self.parent(path, kind != Kind::Tombstone) {
            Ok(parent) => parent,
            Err(Errno::ENOENT) if kind == Kind::Tombstone => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let from = File::open(&staged.directory).map_err(fail)?;
        let exists = match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => true,
            Err(Errno::ENOENT) => false,
            Err(error) => return Err(failed(error)),
        };
        let moved = |flags| renameat2(&from, STAGED_NAME, &parent, name, flags);
        match (kind, exists) {
            (Kind::Tombstone, false) => return Ok(()),
            (Kind::Tombstone, true) => {
                renameat2(&parent, name, &from, STAGED_NAME, RenameFlags::RENAME_NOREPLACE).map_err(failed)?;
            }
            (_, false) => moved(RenameFlags::RENAME_NOREPLACE).map_err(failed)?,
            (_, true) => match moved(RenameFlags::RENAME_EXCHANGE) {
                Ok(()) => {}
                // Not every file system can exchange; then there is a moment with nothing under the name.
                Err(Errno::EINVAL) => {
                    self.move_aside(&self.root.join(path.as_str())).map_err(fail)?;
                    moved(RenameFlags::RENAME_NOREPLACE).map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            },
        }
        File::from(parent).sync_all().map_err(fail)?;
        let old = staged.path();
        if old.symlink_metadata().is_ok() {
            self.move_aside(&old).map_err(fail)?;
        }
        Ok(())
    }

    /// The directory that holds an item, made when it is missing; no link is followed.
    fn parent(&self, path: &ItemPath, make: bool) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut at = self.root_fd.try_clone().map_err(|error| errno(&error))?;
        for name in path.split_last().0.split('/') {
            if make {
                match mkdirat(&at, name, Mode::from_bits_truncate(MODE_EXECUTABLE)) {
                    Ok(()) => nix::unistd::fsync(&at)?,
                    Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error),
                }
            }
            at = openat(&at, name, flags, Mode::empty())?;
        }
        Ok(at)
    }

    /// Moves something to what is kept aside.
    fn move_aside(&self, what: &Path) -> io::Result<()> {
        let bytes: u64 = WalkDir::new(what)
            .into_iter()
            .filter_map(|found| found.ok()?.metadata().ok())
            .filter(std::fs::Metadata::is_file)
            .map(|meta| meta.len())
            .sum();
        // The name orders by time and says how large it is.
        let to = self.aside().join(format!("{}_{bytes}", Uuid::now_v7()));
        std::fs::rename(what, &to)?;
        File::open(self.aside())?.sync_all()
    }

    /// Removes the oldest of what is kept aside while it is too much.
    fn prune_aside(&self) {
        let found = match std::fs::read_dir(self.aside()) {
            Ok(found) => found,
            Err(error) => return tracing::warn!(%error, "cannot read what is kept aside"),
        };
        let size = |path: &Path| path.to_string_lossy().rsplit_once('_').and_then(|(_, bytes)| bytes.parse().ok());
        let mut kept: Vec<PathBuf> = found.filter_map(|found| Some(found.ok()?.path())).collect();
        kept.sort();
        let mut count = kept.len() as u64;
        let mut sum: u64 = kept.iter().filter_map(|path| size(path)).sum();
        for path in kept {
            if count <= self.limits.aside_items_max && sum <= self.limits.aside_bytes_max {
                break;
            }
            let is_tree = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
            let removed = if is_tree { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "cannot remove what was kept aside");
            }
            count -= 1;
            sum = sum.saturating_sub(size(&path).unwrap_or(0));
        }
    }

    /// Opens an item for sending, with what is recorded of it.
    pub fn source(&self, path: &ItemPath, version: Version) -> Result<Option<(Entry, Source)>, InstallError> {
        // Under the lock: what is opened is what is recorded.
        let manifest = self.lock();
        let Some(entry) = manifest.entry(path)?.filter(|entry| entry.version == version) else { return Ok(None) };
        if entry.kind == Kind::Tombstone {
            return Ok(None);
        }
        match Source::open(&self.root_fd, Path::new(path.as_str())) {
            Ok(source) => Ok(Some((entry, source))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(InstallError::disk(format!("open `{path}`"), error)),
        }
    }

    /// Opens what is staged for sending.
    pub fn staged_source(&self, staged: &Staged) -> io::Result<Source> {
        Source::open(File::open(&staged.directory)?, Path::new(STAGED_NAME))
    }

    /// Opens a regular file for the outside.
    pub fn open_file(&self, path: &str) -> Result<File, OpenFileError> {
        open_beneath(&self.root_fd, path)
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Content, FileEntry};

    fn open(root: &Path) -> Store {
        let limits = Limits { free_bytes_kept: 0, aside_items_max: 3, ..Limits::default() };
        Store::open(root, limits, watch::channel(Epoch(0)).1).unwrap()
    }

    fn staged(store: &Store, content: &str, sequence: u64) -> (Staged, Entry) {
        let staged = store.stage().unwrap();
        std::fs::write(staged.path(), content).unwrap();
        let (kind, files) = describe(&staged.path(), &store.limits, Seal::Yes).unwrap();
        (staged, Entry { version: Version { epoch: Epoch(1), sequence }, kind, files })
    }

    /// What a crash leaves: everything on disk, nothing cleaned up.
    fn crash(store: Store, staged: Staged) {
        std::mem::forget(staged);
        drop(store);
    }

    #[test]
    fn a_start_settles_what_a_crash_left() {
        let root = tempfile::tempdir().unwrap();
        let path: ItemPath = "plugins/a".parse().unwrap();
        let at = root.path().join("plugins/a");
        let staging = root.path().join(".quorate/staging");
        let store = open(root.path());
        let (first, old) = staged(&store, "old", 1);
        store.install(&path, &old, &first, Rule::Place).unwrap();

        // Before the exchange: the old one stays.
        let (second, new) = staged(&store, "new", 2);
        store.lock().begin(&path, &Pending { entry: new.clone(), staged: second.name() }).unwrap();
        crash(store, second);
        let store = open(root.path());
        assert_eq!(std::fs::read_to_string(&at).unwrap(), "old");
        assert_eq!(store.lock().entry(&path).unwrap().unwrap(), old);
        assert!(store.lock().pending().unwrap().is_empty());

        // After the exchange: the new one is there, and the old one is kept.
        let (third, new) = staged(&store, "new", 2);
        store.lock().begin(&path, &Pending { entry: new.clone(), staged: third.name() }).unwrap();
        std::fs::rename(&at, root.path().join("old")).unwrap();
        std::fs::rename(third.path(), &at).unwrap();
        std::fs::rename(root.path().join("old"), third.path()).unwrap();
        crash(store, third);
        let store = open(root.path());
        assert_eq!(store.lock().entry(&path).unwrap().unwrap(), new);
        let kept: Vec<_> = std::fs::read_dir(store.aside()).unwrap().map(|found| found.unwrap().path()).collect();
        assert!(kept.iter().any(|kept| std::fs::read_to_string(kept).unwrap() == "old"), "{kept:?}");

        // A removal that was begun and not done.
        let place = store.stage().unwrap();
        let gone = Entry::tombstone(Version { epoch: Epoch(1), sequence: 3 });
        store.lock().begin(&path, &Pending { entry: gone.clone(), staged: place.name() }).unwrap();
        crash(store, place);
        let store = open(root.path());
        assert_eq!(store.lock().entry(&path).unwrap().unwrap(), new);
        assert_eq!(std::fs::read_dir(staging).unwrap().count(), 0);
    }

    #[test]
    fn what_is_kept_aside_is_bounded() {
        let root = tempfile::tempdir().unwrap();
        let path: ItemPath = "plugins/a".parse().unwrap();
        let store = open(root.path());
        for sequence in 1..=6 {
            let (staged, entry) = staged(&store, &sequence.to_string(), sequence);
            assert_eq!(store.install(&path, &entry, &staged, Rule::Place).unwrap(), Installed::Done);
            assert_eq!(store.install(&path, &entry, &staged, Rule::Place).unwrap(), Installed::Already);
        }
        let mut kept: Vec<_> = std::fs::read_dir(store.aside())
            .unwrap()
            .map(|found| std::fs::read_to_string(found.unwrap().path()).unwrap())
            .collect();
        kept.sort();
        assert_eq!(kept, ["3", "4", "5"]);
    }

    #[test]
    fn an_operators_file_in_the_way_is_kept_and_a_link_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let store = open(root.path());
        std::fs::write(root.path().join("plugins/a"), "by hand").unwrap();
        let (place, entry) = staged(&store, "item", 1);
        store.install(&"plugins/a".parse().unwrap(), &entry, &place, Rule::Place).unwrap();
        assert_eq!(std::fs::read_dir(store.aside()).unwrap().count(), 1);

        std::os::unix::fs::symlink(elsewhere.path(), root.path().join("plugins/t")).unwrap();
        let (place, entry) = staged(&store, "item", 2);
        let path: ItemPath = "plugins/t/a".parse().unwrap();
        assert!(matches!(store.install(&path, &entry, &place, Rule::Place), Err(InstallError::Disk { .. })));
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        assert!(store.lock().pending().unwrap().is_empty());
        assert!(matches!(entry.files[..], [FileEntry { content: Content::Regular { size: 4, .. }, .. }]));
    }
}
