//! Names inside the resources directory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The directories of the root that hold items. Nothing else of the root is served or replicated.
pub const DATA_DIRS: [&str; 7] = [
    "blueprints",
    "uploaded-blueprints",
    "deployments",
    "tenant-resources",
    "plugins",
    "global-resources",
    "snapshots",
];
/// The longest path, bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// The longest name, bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// A text is not a usable path.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PathError {
    /// Empty names, `.`, `..`, a leading `/`, NUL, or too long.
    #[error(
        "`{0}` is not a plain relative path (no empty name, `.`, `..` or NUL; {NAME_BYTES_MAX} bytes a name, \
         {PATH_BYTES_MAX} in all)"
    )]
    NotPlain(String),
    /// Outside the data directories.
    #[error("`{0}` is not inside one of the data directories {DATA_DIRS:?}")]
    Elsewhere(String),
    /// A symbolic link that could lead out of its tree.
    #[error("the link `{link}` points to `{target}`, which is not certainly inside its tree")]
    Escapes {
        /// Where the link is.
        link: String,
        /// Where it points.
        target: String,
    },
}

/// Where an item is: a data directory and at least one name below it, `blueprints/default_tenant/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ItemPath(String);

impl ItemPath {
    /// The path as text, relative to the root.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names from the data directory down.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The directory's path and the last name.
    #[must_use]
    pub fn split_last(&self) -> (&str, &str) {
        // A valid path has two names or more.
        self.0.rsplit_once('/').unwrap_or(("", &self.0))
    }

    /// The paths above this one that could be items, longest first.
    pub fn above(&self) -> impl Iterator<Item = &str> {
        std::iter::successors(self.0.rsplit_once('/'), |(rest, _)| rest.rsplit_once('/')).map(|(rest, _)| rest)
    }
}

impl FromStr for ItemPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        check_plain(text)?;
        match text.split_once('/') {
            Some((first, _)) if DATA_DIRS.contains(&first) => Ok(Self(text.to_owned())),
            _ => Err(PathError::Elsewhere(text.to_owned())),
        }
    }
}

impl TryFrom<String> for ItemPath {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, PathError> {
        text.parse()
    }
}

impl From<ItemPath> for String {
    fn from(path: ItemPath) -> Self {
        path.0
    }
}

impl fmt::Display for ItemPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text is a relative path of plain names.
///
/// # Errors
/// [`PathError::NotPlain`].
pub fn check_plain(text: &str) -> Result<(), PathError> {
    let plain = |name: &str| !name.is_empty() && name != "." && name != ".." && name.len() <= NAME_BYTES_MAX;
    if text.len() <= PATH_BYTES_MAX && !text.contains('\0') && text.split('/').all(plain) {
        return Ok(());
    }
    // What came from outside may be endless.
    Err(PathError::NotPlain(text.chars().take(NAME_BYTES_MAX).collect()))
}

/// Whether a link at `link` (relative to its tree) may point to `target`.
///
/// `..` is allowed only at the beginning: after a name it could climb out through another link, whose real depth the
/// text does not show.
///
/// # Errors
/// [`PathError::Escapes`].
pub fn check_link(link: &str, target: &str) -> Result<(), PathError> {
    let depth = link.matches('/').count();
    let climbs = target.split('/').take_while(|name| *name == "..").count();
    let mut names = target.split('/').skip(climbs).peekable();
    let sound = target.len() <= PATH_BYTES_MAX
        && !target.is_empty()
        && !target.starts_with('/')
        && !target.contains('\0')
        && climbs <= depth
        && (climbs > 0 || names.peek().is_some())
        && names.all(|name| name != "..");
    if sound { Ok(()) } else { Err(PathError::Escapes { link: link.to_owned(), target: target.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_below_a_data_directory_are_items() {
        for good in ["blueprints/t/web", "plugins/a b", "global-resources/…/x"] {
            assert!(good.parse::<ItemPath>().is_ok(), "{good}");
        }
        let long = format!("plugins/{}", "x".repeat(256));
        for bad in [
            "",
            "blueprints",
            "blueprints/",
            "/blueprints/t",
            "blueprints//t",
            "blueprints/../x",
            "blueprints/t/..",
            "blueprints/./t",
            "blueprints/a\0b",
            ".quorate/staging",
            "etc/passwd",
            &long,
        ] {
            assert!(bad.parse::<ItemPath>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_paths_above_an_item_are_listed() {
        let path: ItemPath = "blueprints/t/web/x".parse().unwrap();
        assert_eq!(path.above().collect::<Vec<_>>(), ["blueprints/t/web", "blueprints/t", "blueprints"]);
        assert_eq!(path.split_last(), ("blueprints/t/web", "x"));
    }

    #[test]
    fn links_stay_inside_their_tree() {
        for (link, target) in [("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d/e"), ("x/l", "..")] {
            assert!(check_link(link, target).is_ok(), "{link} -> {target}");
        }
        for (link, target) in
            [("a", ".."), ("a", "/etc/passwd"), ("a/b", "../../c"), ("d/e/f/g", "up/.."), ("a", ""), ("a", "b\0")]
        {
            assert!(check_link(link, target).is_err(), "{link} -> {target}");
        }
    }
}
