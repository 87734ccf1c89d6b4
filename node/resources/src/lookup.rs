//! Files for the outside: a path never leads out of its data directory, whatever links people put there.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::SFlag;

use crate::OpenFileError;
use crate::path::{DATA_DIRS, check_plain};

/// How often a lookup is repeated when directories are being renamed under it.
const LOOKUPS_MAX: usize = 8;

/// Opens a regular file below a data directory; links are followed only inside that data directory.
pub fn open_beneath(root: &OwnedFd, path: &str) -> Result<File, OpenFileError> {
    let refused = || OpenFileError::NotFound(path.chars().take(256).collect());
    check_plain(path).map_err(|_| refused())?;
    let (first, rest) = path.split_once('/').ok_or_else(refused)?;
    if !DATA_DIRS.contains(&first) {
        return Err(refused());
    }
    let beneath = |at: &OwnedFd, path: &str, flags| {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_RDONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // A rename elsewhere in the system may make a lookup with `..` uncertain.
        let mut left = LOOKUPS_MAX;
        loop {
            left -= 1;
            match openat2(at.as_fd(), path, how) {
                Err(Errno::EAGAIN) if left > 0 => {}
                other => return other,
            }
        }
    };
    let opened = beneath(root, first, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)
        // A pipe must not make the caller wait.
        .and_then(|directory| beneath(&directory, rest, OFlag::O_NONBLOCK));
    let file = match opened {
        Ok(file) => file,
        // EXDEV: a link leads out; ENXIO: a socket or a pipe.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EXDEV | Errno::ELOOP | Errno::ENXIO) => return Err(refused()),
        Err(error) => return Err(OpenFileError::Disk(error.into())),
    };
    let found = nix::sys::stat::fstat(&file).map_err(|error| OpenFileError::Disk(error.into()))?;
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(refused());
    }
    Ok(file.into())
}
