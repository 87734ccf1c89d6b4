//! The types every blueprint starts from, by the version of the main blueprint.

use crate::version::DslVersion;

/// How a blueprint imports them.
pub(crate) const IMPORT: &str = "cloudify/types/types.yaml";

const TEXT: &str = include_str!("../types/types.yaml");

/// The text for a version: marked lines of other versions are empty, so that line numbers stay.
pub(crate) fn text(version: DslVersion) -> String {
    let mut text = String::with_capacity(TEXT.len());
    for line in TEXT.lines() {
        let wanted = match line.rsplit_once("  # ") {
            Some((_, mark)) => match mark.split_once(" 1_") {
                Some(("since", minor)) => minor.parse().is_ok_and(|minor| version.minor() >= minor),
                Some(("until", minor)) => minor.parse().is_ok_and(|minor| version.minor() <= minor),
                _ => true,
            },
            None => true,
        };
        if wanted {
            text.push_str(line);
        }
        text.push('\n');
    }
    text
}
