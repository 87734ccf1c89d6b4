//! Reading items: describing what stands at a path, and reading it for others while it may be moved.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc;
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::Limits;
use crate::entry::{Content, FileEntry, Hash, Kind};
use crate::path::{PathError, check_link, check_plain};

/// What is read at once.
const READ_BYTES: usize = 256 << 10;
/// The mode of plain files.
pub const MODE_PLAIN: u32 = 0o644;
/// The mode of executable files and of directories.
pub const MODE_EXECUTABLE: u32 = 0o755;

/// What was staged cannot be an item.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A name or a link.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A name that is not UTF-8.
    #[error("the name {0:?} is not UTF-8")]
    NotUtf8(PathBuf),
    /// A socket, a device, a pipe, or a link as the item itself.
    #[error("`{0}` is neither a regular file, a directory nor a symbolic link in a tree")]
    Special(PathBuf),
    /// Too many files.
    #[error("more than {0} files and directories")]
    TooMany(u64),
    /// One file is too large.
    #[error("`{path}` has {size} bytes, at most {max} are allowed")]
    FileTooLarge {
        /// Which.
        path: String,
        /// How large.
        size: u64,
        /// How large it may be.
        max: u64,
    },
    /// All together are too large.
    #[error("the item has more than {0} bytes")]
    TooLarge(u64),
    /// The disk.
    #[error("read `{path}`")]
    Io {
        /// What was read.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Counts what an item may have.
pub struct Tally {
    entries: u64,
    bytes: u64,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { entries: 0, bytes: 0 }
    }

    /// Counts one more.
    pub fn add(&mut self, file: &FileEntry, limits: &Limits) -> Result<(), TreeError> {
        self.entries += 1;
        if self.entries > limits.entries_max {
            return Err(TreeError::TooMany(limits.entries_max));
        }
        if let Content::Regular { size, .. } = file.content {
            if size > limits.file_bytes_max {
                let path = file.path.clone();
                return Err(TreeError::FileTooLarge { path, size, max: limits.file_bytes_max });
            }
            self.bytes += size;
            if self.bytes > limits.tree_bytes_max {
                return Err(TreeError::TooLarge(limits.tree_bytes_max));
            }
        }
        Ok(())
    }
}

/// Whether describing also makes durable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// Set the modes that every node uses, and sync every file and directory.
    Yes,
    /// Only look.
    No,
}

/// Describes the file or tree at `root`; nothing may change it meanwhile.
pub fn describe(root: &Path, limits: &Limits, seal: Seal) -> Result<(Kind, Vec<FileEntry>), TreeError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| TreeError::Io { path, source }
    };
    let meta = std::fs::symlink_metadata(root).map_err(fail(root))?;
    let mut tally = Tally::new();
    if meta.is_file() {
        let file = FileEntry { path: String::new(), content: regular(root, "", limits, seal)? };
        tally.add(&file, limits)?;
        return Ok((Kind::File, vec![file]));
    }
    if !meta.is_dir() {
        return Err(TreeError::Special(root.to_owned()));
    }
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    for found in WalkDir::new(root).min_depth(1).sort_by_file_name() {
        let found = found.map_err(|error| {
            let path = error.path().unwrap_or(root).to_owned();
            TreeError::Io { path, source: error.into() }
        })?;
        let relative = found.path().strip_prefix(root).unwrap_or(found.path());
        let path = relative.to_str().ok_or_else(|| TreeError::NotUtf8(relative.to_owned()))?.to_owned();
        check_plain(&path)?;
        let kind = found.file_type();
        let content = if kind.is_file() {
            regular(found.path(), &path, limits, seal)?
        } else if kind.is_dir() {
            directories.push(found.path().to_owned());
            Content::Directory
        } else if kind.is_symlink() {
            let target = std::fs::read_link(found.path()).map_err(fail(found.path()))?;
            let target = target.to_str().ok_or_else(|| TreeError::NotUtf8(target.clone()))?.to_owned();
            check_link(&path, &target)?;
            Content::Symlink { target }
        } else {
            return Err(TreeError::Special(relative.to_owned()));
        };
        let file = FileEntry { path, content };
        tally.add(&file, limits)?;
        files.push(file);
    }
    if seal == Seal::Yes {
        for directory in directories.iter().rev() {
            let seal = |directory: &Path| {
                std::fs::set_permissions(directory, Permissions::from_mode(MODE_EXECUTABLE))?;
                File::open(directory)?.sync_all()
            };
            seal(directory).map_err(fail(directory))?;
        }
    }
    Ok((Kind::Tree, files))
}

fn regular(at: &Path, path: &str, limits: &Limits, seal: Seal) -> Result<Content, TreeError> {
    let fail = |source| TreeError::Io { path: at.to_owned(), source };
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(at)
        .map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    if meta.len() > limits.file_bytes_max {
        // Before hashing: a huge file must not cost hours first.
        return Err(TreeError::FileTooLarge { path: path.to_owned(), size: meta.len(), max: limits.file_bytes_max });
    }
    let executable = meta.permissions().mode() & 0o100 != 0;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut size = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fail(error)),
        }
    }
    if seal == Seal::Yes {
        let mode = if executable { MODE_EXECUTABLE } else { MODE_PLAIN };
        file.set_permissions(Permissions::from_mode(mode)).map_err(fail)?;
        file.sync_all().map_err(fail)?;
    }
    Ok(Content::Regular { size, sha256: Hash(hasher.finalize().into()), executable })
}

/// An item that is open for reading: it can be read to its end even when it is moved.
pub struct Source {
    at: OwnedFd,
}

impl Source {
    /// Opens the item at `path` below `directory`; no link is followed.
    pub fn open(directory: impl AsFd, path: &Path) -> io::Result<Self> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        Ok(Self { at: openat2(directory, path, how)? })
    }

    /// One regular file of it.
    pub fn file(&self, relative: &str) -> io::Result<Bytes> {
        let file =
            if relative.is_empty() { self.at.try_clone()? } else { Self::open(&self.at, Path::new(relative))?.at };
        Ok(Bytes { file: File::from(file), offset: 0 })
    }
}

/// A file being read from its beginning; several may read the same one.
pub struct Bytes {
    file: File,
    offset: u64,
}

impl Bytes {
    /// The next bytes, at most `max`; empty at the end.
    pub fn next(&mut self, max: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; max];
        let mut filled = 0;
        while filled < max {
            match self.file.read_at(&mut buffer[filled..], self.offset) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    self.offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        Ok(buffer)
    }
}
