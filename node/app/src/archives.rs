//! Archives that users upload: zip, tar, tar.gz, with one folder at the top.
//!
//! *Invariant*: nothing is written outside of the given directory, and no more than the limits allow, whatever the
//! archive says about itself.

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::EntryType;
use zip::ZipArchive;

/// Names inside each other.
const DEPTH_MAX: usize = 64;
/// Bytes of a path.
const PATH_BYTES_MAX: usize = 1024;
/// Bytes of one name.
const NAME_BYTES_MAX: usize = 255;
/// Bytes of a long name or of further attributes in a tar archive.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;
/// Records that one entry may take: itself, a long name, a long target, further attributes.
const RECORDS_PER_ENTRY: u64 = 4;
/// Bytes of headers and padding that one entry of a tar archive may take.
const HEADERS_BYTES_MAX: u64 = 8 << 10;
/// Folder that macOS adds to archives beside the one that was packed.
const MACOS_EXTRA: &str = "__MACOSX";

/// What uploads may bring.
#[derive(Debug, Clone, Copy)]
pub struct UploadLimits {
    /// Bytes of one upload.
    pub upload_bytes_max: u64,
    /// Bytes that one archive may unpack to.
    pub unpacked_bytes_max: u64,
    /// Files and folders in one archive.
    pub entries_max: u64,
}

/// Kinds of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Zip,
    Tar,
    TarGz,
}

impl Format {
    pub const ALL: [Self; 3] = [Self::Zip, Self::Tar, Self::TarGz];

    /// By the first bytes.
    pub fn detect(file: &mut File) -> io::Result<Option<Self>> {
        const TAR_MAGIC_AT: usize = 257;
        let mut head = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.by_ref().take(TAR_MAGIC_AT as u64 + 5).read_to_end(&mut head)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
            Some(Self::Zip)
        } else if head.starts_with(&[0x1f, 0x8b]) {
            Some(Self::TarGz)
        } else if head.get(TAR_MAGIC_AT..) == Some(b"ustar") {
            Some(Self::Tar)
        } else {
            None
        })
    }

    /// How names of such files end.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Zip => "zip",
            Self::Tar => "tar",
            Self::TarGz => "tar.gz",
        }
    }
}

/// Why an archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    #[error("it is no zip, tar or tar.gz archive")]
    UnknownFormat,
    #[error("the archive is damaged or uses a method that is not supported")]
    Damaged(#[source] io::Error),
    #[error("the archive is damaged or uses a method that is not supported")]
    DamagedZip(#[source] zip::result::ZipError),
    #[error("the entry {0:?} leaves the archive's folder or has no usable name")]
    Path(String),
    #[error("the entry {path:?} is a {kind}; files, folders and links inside the folder are accepted")]
    Special { path: String, kind: &'static str },
    #[error("the link {path:?} points to {target:?}, which is not certainly inside the archive's folder")]
    Link { path: String, target: String },
    #[error("the entry {0:?} stands where the archive has something else")]
    Twice(String),
    #[error("the archive has more than {0} entries")]
    TooMany(u64),
    #[error("the archive unpacks to more than {0} bytes")]
    TooLarge(u64),
    #[error("the archive must have exactly one folder at its top, it has {0}")]
    Top(String),
    #[error("write what was unpacked")]
    Disk(#[source] io::Error),
}

/// Unpacks the content of the archive's one top folder into `into`, which is made. Blocking.
///
/// # Errors
/// [`ExtractError`]; what was unpacked so far stays.
pub fn extract(mut archive: File, into: &Path, limits: &UploadLimits) -> Result<(), ExtractError> {
    let format = Format::detect(&mut archive).map_err(ExtractError::Damaged)?.ok_or(ExtractError::UnknownFormat)?;
    fs::create_dir_all(into).map_err(ExtractError::Disk)?;
    let mut tree = Tree { root: into, limits, entries: 0, bytes: 0, top: None, files: HashSet::new(), links: vec![] };
    match format {
        Format::Zip => extract_zip(archive, &mut tree)?,
        Format::Tar => extract_tar(archive, |file| Box::new(file), &mut tree)?,
        Format::TarGz => extract_tar(archive, |file| Box::new(MultiGzDecoder::new(file)), &mut tree)?,
    }
    tree.finish()
}

fn extract_tar(
    mut archive: File,
    decode: impl Fn(BufReader<File>) -> Box<dyn Read>,
    tree: &mut Tree<'_>,
) -> Result<(), ExtractError> {
    let again = archive.try_clone().map_err(ExtractError::Damaged)?;
    // What the archive may unpack to, with headers and padding: no more is inflated, whatever the headers say.
    let inflated_max = tree
        .limits
        .unpacked_bytes_max
        .saturating_add(tree.limits.entries_max.saturating_mul(HEADERS_BYTES_MAX))
        .saturating_add(EXTENSION_BYTES_MAX);
    // First only look: long names and attributes are read into memory whole, so their sizes are checked before.
    let mut looked = tar::Archive::new(decode(BufReader::new(again)).take(inflated_max));
    let mut left = tree.limits.entries_max.saturating_mul(RECORDS_PER_ENTRY);
    let mut announced = 0_u64;
    for entry in looked.entries().map_err(ExtractError::Damaged)?.raw(true) {
        let entry = entry.map_err(ExtractError::Damaged)?;
        let kind = entry.header().entry_type();
        let extends = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if extends && entry.header().entry_size().map_err(ExtractError::Damaged)? > EXTENSION_BYTES_MAX {
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            return Err(ExtractError::Path(name));
        }
        announced = announced.saturating_add(entry.header().size().map_err(ExtractError::Damaged)?);
        if announced > tree.limits.unpacked_bytes_max.saturating_add(EXTENSION_BYTES_MAX) {
            return Err(ExtractError::TooLarge(tree.limits.unpacked_bytes_max));
        }
        left = left.checked_sub(1).ok_or(ExtractError::TooMany(tree.limits.entries_max))?;
    }
    archive.seek(SeekFrom::Start(0)).map_err(ExtractError::Damaged)?;
    let mut archive = tar::Archive::new(decode(BufReader::new(archive)).take(inflated_max));
    for entry in archive.entries().map_err(ExtractError::Damaged)? {
        let mut entry = entry.map_err(ExtractError::Damaged)?;
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let shown = || String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Ok(path) = String::from_utf8(entry.path_bytes().into_owned()) else {
            return Err(ExtractError::Path(shown()));
        };
        match kind {
            EntryType::Directory => tree.folder(&path)?,
            EntryType::Regular | EntryType::Continuous => {
                let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
                tree.file(&path, executable, &mut entry)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = String::from_utf8(target).map_err(|_| ExtractError::Path(path.clone()))?;
                tree.link(&path, target)?;
            }
            other => return Err(ExtractError::Special { path, kind: describe(other) }),
        }
    }
    Ok(())
}

fn describe(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Link => "hard link",
        EntryType::Char | EntryType::Block => "device",
        EntryType::Fifo => "pipe",
        EntryType::GNUSparse => "sparse file",
        _ => "special entry",
    }
}

/// The directory of a zip archive is read into memory whole: what could be its entries is counted before. More are
/// let through than may be unpacked, because packed files may look like entries.
fn check_directory(archive: &mut File, limits: &UploadLimits) -> Result<(), ExtractError> {
    const ENTRY: u32 = u32::from_be_bytes(*b"PK\x01\x02");
    let mut left = limits.entries_max.saturating_mul(RECORDS_PER_ENTRY);
    let (mut last, mut buffer) = (0_u32, vec![0; 64 << 10]);
    loop {
        let read = archive.read(&mut buffer).map_err(ExtractError::Damaged)?;
        if read == 0 {
            archive.seek(SeekFrom::Start(0)).map_err(ExtractError::Damaged)?;
            return Ok(());
        }
        for byte in &buffer[..read] {
            last = last << 8 | u32::from(*byte);
            if last == ENTRY {
                left = left.checked_sub(1).ok_or(ExtractError::TooMany(limits.entries_max))?;
            }
        }
    }
}

fn extract_zip(mut archive: File, tree: &mut Tree<'_>) -> Result<(), ExtractError> {
    check_directory(&mut archive, tree.limits)?;
    let mut archive = ZipArchive::new(BufReader::new(archive)).map_err(ExtractError::DamagedZip)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(ExtractError::DamagedZip)?;
        let Ok(path) = String::from_utf8(entry.name_raw().to_vec()) else {
            return Err(ExtractError::Path(entry.name().to_owned()));
        };
        if entry.is_dir() {
            tree.folder(&path)?;
        } else if entry.is_symlink() {
            let mut target = String::new();
            let read = entry.by_ref().take(PATH_BYTES_MAX as u64).read_to_string(&mut target);
            read.map_err(ExtractError::Damaged)?;
            tree.link(&path, target)?;
        } else {
            let executable = entry.unix_mode().is_some_and(|mode| mode & 0o111 != 0);
            tree.file(&path, executable, &mut entry)?;
        }
    }
    Ok(())
}

/// What has been unpacked so far.
struct Tree<'a> {
    root: &'a Path,
    limits: &'a UploadLimits,
    entries: u64,
    bytes: u64,
    /// The folder at the archive's top.
    top: Option<String>,
    files: HashSet<PathBuf>,
    /// Made last, so that nothing is written through one.
    links: Vec<(String, PathBuf, String)>,
}

impl Tree<'_> {
    /// Checks an entry's path and gives the part below the top folder. `None`: nothing is to be made.
    fn below_top(&mut self, path: &str, is_folder: bool) -> Result<Option<PathBuf>, ExtractError> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(ExtractError::TooMany(self.limits.entries_max));
        }
        let refused = || ExtractError::Path(path.chars().take(PATH_BYTES_MAX).collect());
        let is_bad = |name: &str| name == ".." || name.len() > NAME_BYTES_MAX;
        if path.len() > PATH_BYTES_MAX || path.starts_with('/') || path.contains(['\0', '\\']) {
            return Err(refused());
        }
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
        if names.len() > DEPTH_MAX || names.iter().any(|name| is_bad(name)) {
            return Err(refused());
        }
        let Some((top, rest)) = names.split_first() else { return if is_folder { Ok(None) } else { Err(refused()) } };
        if *top == MACOS_EXTRA {
            return Ok(None);
        }
        if rest.is_empty() && !is_folder {
            return Err(ExtractError::Top(format!("the file {top:?} there")));
        }
        match &self.top {
            None => self.top = Some((*top).to_owned()),
            Some(first) if first != top => return Err(ExtractError::Top(format!("{first:?} and {top:?}"))),
            Some(_) => {}
        }
        Ok((!rest.is_empty()).then(|| rest.iter().collect()))
    }

    fn folder(&mut self, path: &str) -> Result<(), ExtractError> {
        let Some(place) = self.below_top(path, true)? else { return Ok(()) };
        self.make_folder(path, &place)
    }

    /// Makes a folder and those above it; they count.
    fn make_folder(&mut self, path: &str, place: &Path) -> Result<(), ExtractError> {
        let mut above: Vec<&Path> = place.ancestors().filter(|above| !above.as_os_str().is_empty()).collect();
        above.reverse();
        for folder in above {
            if self.files.contains(folder) {
                return Err(ExtractError::Twice(path.to_owned()));
            }
            match fs::create_dir(self.root.join(folder)) {
                Ok(()) if folder != place => {
                    self.entries += 1;
                    if self.entries > self.limits.entries_max {
                        return Err(ExtractError::TooMany(self.limits.entries_max));
                    }
                }
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(ExtractError::Disk(error)),
            }
        }
        Ok(())
    }

    fn make_folder_of(&mut self, path: &str, place: &Path) -> Result<(), ExtractError> {
        match place.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => self.make_folder(path, folder),
            _ => Ok(()),
        }
    }

    fn file(&mut self, path: &str, executable: bool, content: &mut dyn Read) -> Result<(), ExtractError> {
        let Some(place) = self.below_top(path, false)? else { return Ok(()) };
        self.make_folder_of(path, &place)?;
        let at = self.root.join(&place);
        if at.is_dir() || !self.files.insert(place) {
            return Err(ExtractError::Twice(path.to_owned()));
        }
        let mut file = File::create_new(&at).map_err(ExtractError::Disk)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = content.read(&mut buffer).map_err(ExtractError::Damaged)?;
            if read == 0 {
                break;
            }
            self.bytes += read as u64;
            if self.bytes > self.limits.unpacked_bytes_max {
                return Err(ExtractError::TooLarge(self.limits.unpacked_bytes_max));
            }
            io::Write::write_all(&mut file, &buffer[..read]).map_err(ExtractError::Disk)?;
        }
        let mode = if executable { 0o755 } else { 0o644 };
        file.set_permissions(Permissions::from_mode(mode)).map_err(ExtractError::Disk)
    }

    fn link(&mut self, path: &str, target: String) -> Result<(), ExtractError> {
        let Some(place) = self.below_top(path, false)? else { return Ok(()) };
        if !stays_inside(&place, &target) {
            return Err(ExtractError::Link { path: path.to_owned(), target });
        }
        self.make_folder_of(path, &place)?;
        self.links.push((path.to_owned(), place, target));
        Ok(())
    }

    fn finish(self) -> Result<(), ExtractError> {
        for (path, place, target) in self.links {
            match symlink(target, self.root.join(place)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(ExtractError::Twice(path)),
                other => other.map_err(ExtractError::Disk)?,
            }
        }
        match self.top {
            Some(_) => Ok(()),
            None => Err(ExtractError::Top("none".to_owned())),
        }
    }
}

/// `..` only at the beginning: after a name it could climb out through another link.
fn stays_inside(link: &Path, target: &str) -> bool {
    let depth = link.components().count() - 1;
    let climbs = target.split('/').take_while(|name| *name == "..").count();
    let mut names = target.split('/').skip(climbs);
    !target.is_empty()
        && target.len() <= PATH_BYTES_MAX
        && !target.starts_with('/')
        && !target.contains(['\0', '\\'])
        && climbs <= depth
        && names.all(|name| name != "..")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tempfile::TempDir;
    use zip::write::SimpleFileOptions;

    use super::*;

    const LIMITS: UploadLimits = UploadLimits { upload_bytes_max: 0, unpacked_bytes_max: 4096, entries_max: 10 };

    /// Name, kind, content or target.
    type Entry<'a> = (&'a str, EntryType, &'a str);

    /// A tar archive whose names are written as they are.
    fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, text) in entries {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(if name.ends_with(".sh") { 0o755 } else { 0o644 });
            let content = if *kind == EntryType::Regular { *text } else { "" };
            if content.is_empty() {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn zip(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, kind, text) in entries {
            let options = SimpleFileOptions::default().unix_permissions(0o644);
            match kind {
                EntryType::Directory => writer.add_directory(*name, options).unwrap(),
                EntryType::Symlink => writer.add_symlink(*name, *text, options).unwrap(),
                _ => {
                    writer.start_file(*name, options).unwrap();
                    writer.write_all(text.as_bytes()).unwrap();
                }
            }
        }
        writer.finish().unwrap().into_inner()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(bytes: &[u8]) -> (TempDir, Result<(), ExtractError>) {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("archive");
        fs::write(&archive, bytes).unwrap();
        let outcome = extract(File::open(archive).unwrap(), &directory.path().join("tree"), &LIMITS);
        (directory, outcome)
    }

    const GOOD: [Entry<'_>; 4] = [
        ("./top/", EntryType::Directory, ""),
        ("./top/blueprint.yaml", EntryType::Regular, "a: b"),
        ("./top/scripts/run.sh", EntryType::Regular, "#!/bin/sh"),
        ("./top/scripts/main", EntryType::Symlink, "../blueprint.yaml"),
    ];

    #[test]
    fn every_format_unpacks_to_the_same_tree() {
        for bytes in [tar(&GOOD), gzip(&tar(&GOOD)), zip(&GOOD)] {
            let (directory, outcome) = unpack(&bytes);
            outcome.unwrap();
            let tree = directory.path().join("tree");
            assert_eq!(fs::read_to_string(tree.join("scripts/main")).unwrap(), "a: b");
            assert_eq!(fs::read_to_string(tree.join("scripts/run.sh")).unwrap(), "#!/bin/sh");
        }
        let (directory, _) = unpack(&tar(&GOOD));
        let mode = fs::metadata(directory.path().join("tree/scripts/run.sh")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn nothing_leaves_the_folder() {
        use EntryType::{Link, Regular, Symlink};
        let long = format!("top/{}", "a/".repeat(40));
        let bad: &[&[Entry<'_>]] = &[
            &[("top/../../evil", Regular, "x")],
            &[("/etc/evil", Regular, "x")],
            &[("..", Regular, "x")],
            &[("top/a\\..\\b", Regular, "x")],
            &[("top/link", Symlink, "/etc/passwd")],
            &[("top/link", Symlink, "..")],
            &[("top/a/link", Symlink, "../../evil")],
            &[("top/a/link", Symlink, "../b/../../evil")],
            // Through a link: the link takes a place that is a folder by then.
            &[("top/out", Symlink, "a"), ("top/out/file", Regular, "x")],
            &[("top/hard", Link, "top/other")],
            &[("top/device", EntryType::Char, "")],
            &[("top/pipe", EntryType::Fifo, "")],
            &[("top/a", Regular, "x"), ("top/a/b", Regular, "x")],
            &[("top/a", Regular, "x"), ("top/a", Regular, "y")],
            &[("top/a", Regular, "x"), ("other/a", Regular, "x")],
            &[("file", Regular, "x")],
            &[],
        ];
        for entries in bad {
            let (directory, outcome) = unpack(&gzip(&tar(entries)));
            let error = outcome.expect_err(&format!("{entries:?}"));
            assert!(!matches!(error, ExtractError::Disk(_)), "{entries:?}: {error:?}");
            let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert!(names.iter().all(|name| name == "archive" || name == "tree"), "{names:?}");
        }
        for name in ["top/../../evil", "/etc/evil", long.as_str()] {
            assert!(unpack(&zip(&[(name, Regular, "x")])).1.is_err() || name == long);
        }
        assert!(unpack(&zip(&[("top/l", Symlink, "/etc/passwd")])).1.is_err());
        // A NUL ends a name in ustar, not in a zip.
        assert!(matches!(unpack(&zip(&[("top/a\0b", Regular, "x")])).1, Err(ExtractError::Path(_))));
    }

    #[test]
    fn bombs_are_cut_off() {
        let many: Vec<String> = (0..20).map(|number| format!("top/{number}")).collect();
        let many: Vec<Entry<'_>> = many.iter().map(|name| (name.as_str(), EntryType::Regular, "x")).collect();
        for bytes in [gzip(&tar(&many)), zip(&many)] {
            assert!(matches!(unpack(&bytes).1, Err(ExtractError::TooMany(10))));
        }
        let deep = format!("top/{}x", "a/".repeat(20));
        assert!(matches!(unpack(&tar(&[(&deep, EntryType::Regular, "x")])).1, Err(ExtractError::TooMany(10))));
        let large = "0".repeat(5000);
        let large = [("top/a", EntryType::Regular, large.as_str())];
        for bytes in [gzip(&tar(&large)), zip(&large)] {
            assert!(matches!(unpack(&bytes).1, Err(ExtractError::TooLarge(4096))));
        }
        let half = "0".repeat(3000);
        let twice = [("top/a", EntryType::Regular, half.as_str()), ("top/b", EntryType::Regular, half.as_str())];
        assert!(matches!(unpack(&zip(&twice)).1, Err(ExtractError::TooLarge(4096))));
    }

    #[test]
    fn a_directory_without_end_is_not_read_into_memory() {
        let bytes = [b"PK\x03\x04".as_slice(), &b"PK\x01\x02".repeat(41)].concat();
        assert!(matches!(unpack(&bytes).1, Err(ExtractError::TooMany(10))));
    }

    #[test]
    fn what_is_announced_in_parts_is_counted_together() {
        let part = "0".repeat(3000);
        let names: Vec<String> = (0..30).map(|number| format!("top/{number}")).collect();
        let entries: Vec<Entry<'_>> =
            names.iter().map(|name| (name.as_str(), EntryType::Regular, part.as_str())).collect();
        assert!(matches!(unpack(&gzip(&tar(&entries))).1, Err(ExtractError::TooLarge(4096))));
    }

    #[test]
    fn a_name_without_end_is_not_read_into_memory() {
        let mut header = tar::Header::new_gnu();
        header.set_path("././@LongLink").unwrap();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend([b'a'; 1024]);
        assert!(matches!(unpack(&gzip(&bytes)).1, Err(ExtractError::Path(_))));
    }

    #[test]
    fn what_is_no_archive_is_told_so() {
        for bytes in [b"".as_slice(), b"hello", b"\x1f\x8bnot really", b"PK\x03\x04broken", &gzip(&tar(&GOOD))[..60]] {
            assert!(unpack(bytes).1.is_err());
        }
    }
}
