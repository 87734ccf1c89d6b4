//! Sources on disk, for tests and for comparing with other compilers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quorate_blueprint::{Catalogue, Import, Source, SourceError, Sources, has_scheme};
use serde_json::{Value, json};

/// A blueprint in a directory, and what stands behind its other imports.
pub struct Disk {
    pub directory: PathBuf,
    pub imports: BTreeMap<String, String>,
    /// Main files of other blueprints by id.
    pub blueprints: BTreeMap<String, String>,
    pub plugins: BTreeMap<String, Value>,
    pub resources: Option<PathBuf>,
}

impl Disk {
    /// For the main file `main`; `resolve` has the keys `imports`, `plugins` and `resources`.
    pub fn new(main: &Path, resolve: &Value) -> Self {
        let part = |name: &str| resolve.get(name).cloned().unwrap_or_else(|| json!({}));
        Self {
            directory: main.parent().unwrap_or(Path::new("")).to_owned(),
            imports: serde_json::from_value(part("imports")).unwrap_or_default(),
            blueprints: serde_json::from_value(part("blueprints")).unwrap_or_default(),
            plugins: serde_json::from_value(part("plugins")).unwrap_or_default(),
            resources: resolve["resources"].as_str().map(PathBuf::from),
        }
    }

    fn read(&self, path: &Path) -> Option<Source> {
        let text = std::fs::read_to_string(path).ok()?;
        Some(Source { name: path.to_string_lossy().into_owned(), text, catalogue: Catalogue::default() })
    }

    fn versioned(&self, directory: &Path, import: Import<'_>) -> Option<Source> {
        let path = directory.join(import.what);
        let stem = path.file_stem()?.to_string_lossy().into_owned();
        let extension = path.extension()?.to_string_lossy().into_owned();
        let versioned = path.with_file_name(format!("{stem}_{}.{extension}", import.dsl_version));
        self.read(&versioned).or_else(|| self.read(&path))
    }
}

impl Sources for Disk {
    fn load(&self, import: Import<'_>) -> Result<Source, SourceError> {
        if let Some(path) = self.imports.get(import.what) {
            let mut source =
                self.read(Path::new(path)).ok_or_else(|| SourceError::Unreadable(format!("cannot read {path}")))?;
            if let Some(known) = self.plugins.get(import.what) {
                let part = |name: &str| known.get(name).cloned().unwrap_or_else(|| json!({}));
                let read = "the catalogue of a case is well formed";
                source.catalogue = Catalogue {
                    labels: serde_json::from_value(part("labels")).expect(read),
                    blueprint_labels: serde_json::from_value(part("blueprint_labels")).expect(read),
                    resource_tags: serde_json::from_value(part("resource_tags")).expect(read),
                };
            }
            return Ok(source);
        }
        if let Some(path) = import.what.strip_prefix("blueprint:").and_then(|id| self.blueprints.get(id)) {
            return self.read(Path::new(path)).ok_or_else(|| SourceError::Unreadable(format!("cannot read {path}")));
        }
        if has_scheme(import.what) {
            return Err(SourceError::Refused(format!("'{}' is not known", import.what)));
        }
        let from = Path::new(import.from).parent().unwrap_or(Path::new(""));
        self.read(&from.join(import.what))
            .or_else(|| {
                let resources = self.resources.as_ref()?;
                self.versioned(resources, import)
            })
            .ok_or(SourceError::NotFound)
    }

    fn has_file(&self, path: &str) -> bool {
        self.directory.join(path).is_file()
    }
}
