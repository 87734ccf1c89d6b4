//! The files of an unpacked blueprint, for the compiler.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use quorate_blueprint::{Catalogue, Import, Source, SourceError, Sources, has_scheme, relative_candidates};

/// A blueprint on disk. Its links stay inside it; that was checked when it was unpacked.
pub struct TreeSources {
    root: PathBuf,
    file_bytes_max: usize,
}

impl TreeSources {
    pub fn new(root: PathBuf, file_bytes_max: usize) -> Self {
        Self { root, file_bytes_max }
    }

    fn read(&self, path: &str) -> Result<String, SourceError> {
        let unreadable = |error: std::io::Error| SourceError::Unreadable(error.kind().to_string());
        let file = File::open(self.root.join(path)).map_err(unreadable)?;
        let mut text = String::new();
        let max = self.file_bytes_max as u64;
        let read = file.take(max + 1).read_to_string(&mut text).map_err(unreadable)?;
        if read as u64 > max {
            return Err(SourceError::Unreadable(format!("it has more than {max} bytes")));
        }
        Ok(text)
    }
}

impl Sources for TreeSources {
    fn load(&self, import: Import<'_>) -> Result<Source, SourceError> {
        if has_scheme(import.what) {
            let why = "only files of the blueprint's own archive and the built-in types can be imported";
            return Err(SourceError::Refused(why.to_owned()));
        }
        let found = relative_candidates(import).into_iter().find(|path| self.root.join(path).is_file());
        let name = found.ok_or(SourceError::NotFound)?;
        let text = self.read(&name)?;
        Ok(Source { name, text, catalogue: Catalogue::default() })
    }

    fn has_file(&self, path: &str) -> bool {
        let import = Import { what: path, from: "", dsl_version: "" };
        relative_candidates(import).iter().any(|path| self.root.join(path).is_file())
    }
}
