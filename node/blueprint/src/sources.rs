//! Where the text of a blueprint and of its imports comes from. Reading is the caller's business.

use std::collections::BTreeMap;

/// The text behind one import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Names the file in messages, tells it from others (importing the same name twice is one import), and is the
    /// `from` of its own imports.
    pub name: String,
    pub text: String,
    /// What the catalogue holds for a `plugin:` import. It replaces the sections of the same names in the text.
    pub catalogue: Catalogue,
}

/// Labels and tags of a plugin as it was uploaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    pub labels: BTreeMap<String, Vec<String>>,
    pub blueprint_labels: BTreeMap<String, Vec<String>>,
    pub resource_tags: BTreeMap<String, String>,
}

/// One import statement to be resolved.
#[derive(Clone, Copy, Debug)]
pub struct Import<'a> {
    /// As written, without a namespace prefix: a path, `http…`, `plugin:…`, `blueprint:…`.
    pub what: &'a str,
    /// [`Source::name`] of the importing file; empty for the main file.
    pub from: &'a str,
    /// Version of the main blueprint as in file names, `1_4`; empty for the main file. A file that exists as
    /// `types_1_4.yaml` next to `types.yaml` is preferred in shared directories.
    pub dsl_version: &'a str,
}

/// Why an import has no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("not found")]
    NotFound,
    /// The import has a form this resolver does not serve, or the catalogue does not have it.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Unreadable(String),
}

/// Resolves imports and looks for scripts. An implementation keeps paths inside the blueprint.
pub trait Sources {
    /// The text of an import.
    fn load(&self, import: Import<'_>) -> Result<Source, SourceError>;

    /// Whether the blueprint brings this file, a path relative to the main file's directory.
    fn has_file(&self, path: &str) -> bool;
}

/// A blueprint held in memory: path to text. Files that are not YAML may have empty text.
#[derive(Clone, Debug, Default)]
pub struct MemorySources {
    files: BTreeMap<String, String>,
}

impl MemorySources {
    pub fn new<P: Into<String>, T: Into<String>>(files: impl IntoIterator<Item = (P, T)>) -> Self {
        Self { files: files.into_iter().map(|(path, text)| (path.into(), text.into())).collect() }
    }
}

impl Sources for MemorySources {
    fn load(&self, import: Import<'_>) -> Result<Source, SourceError> {
        if has_scheme(import.what) {
            return Err(SourceError::Refused(format!("'{}' is not a file of this blueprint", import.what)));
        }
        relative_candidates(import)
            .into_iter()
            .find_map(|name| {
                let text = self.files.get(&name)?.clone();
                Some(Source { name, text, catalogue: Catalogue::default() })
            })
            .ok_or(SourceError::NotFound)
    }

    fn has_file(&self, path: &str) -> bool {
        join("", path).is_some_and(|path| self.files.contains_key(&path))
    }
}

/// Whether the import names something other than a file.
pub fn has_scheme(import: &str) -> bool {
    ["http:", "https:", "ftp:", "file:", "plugin:", "blueprint:"].iter().any(|scheme| import.starts_with(scheme))
}

/// Paths inside the blueprint an import may mean, best first: relative to the importing file, then to the top.
/// Paths that leave the blueprint are left out.
pub fn relative_candidates(import: Import<'_>) -> Vec<String> {
    let directory = import.from.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut found: Vec<String> = Vec::new();
    for candidate in [join(directory, import.what), join("", import.what)] {
        if let Some(path) = candidate
            && !found.contains(&path)
        {
            found.push(path);
        }
    }
    found
}

/// `directory/path` without `.` and `..`; `None` when it leaves the top or is absolute.
fn join(directory: &str, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_inside_the_blueprint() {
        assert_eq!(join("a/b", "../c.yaml").as_deref(), Some("a/c.yaml"));
        assert_eq!(join("a", "../../c.yaml"), None);
        assert_eq!(join("", "/etc/passwd"), None);
    }
}
