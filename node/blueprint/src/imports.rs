//! Follows imports and merges all files into one tree.

use std::collections::{HashSet, VecDeque};

use crate::errors::{CompileError, Compiled, ErrorClass, Position};
use crate::plan::Object;
use crate::sources::{Catalogue, Import, Source, SourceError, Sources, has_scheme};
use crate::version::DslVersion;
use crate::yaml::{Key, Limits, Map, Node, Yaml, read};
use crate::{basic_types, namespaces, shape};

/// Blueprints that import blueprints.
const MAX_BLUEPRINTS_DEEP: usize = 10;
const BLUEPRINT: &str = "blueprint:";
const VERSION_KEY: &str = "tosca_definitions_version";

/// Sections whose entries may come from several files.
const UNIONS: [&str; 9] = [
    "interfaces",
    "node_types",
    "plugins",
    "workflows",
    "relationships",
    "policy_types",
    "policy_triggers",
    "groups",
    "data_types",
];
/// The same since 1_3.
const UNIONS_1_3: [&str; 7] =
    ["inputs", "outputs", "node_templates", "capabilities", "labels", "blueprint_labels", "resource_tags"];
const FIRST_STAYS: [&str; 3] = ["labels", "blueprint_labels", "resource_tags"];

/// Everything the main file and its imports say.
pub(crate) struct Loaded {
    pub version: DslVersion,
    pub root: Map,
    pub at: Position,
    /// Ids of the blueprints that were imported whole.
    pub imported_blueprints: Vec<String>,
    /// Namespace to the id of the blueprint imported into it.
    pub namespaces_mapping: Object,
}

struct Pending {
    what: String,
    at: Position,
    from: String,
    /// With its delimiter, `outer--inner--`; empty for none.
    namespace: String,
    /// The import statement itself gave a namespace.
    own_namespace: bool,
    properties: Option<Node>,
}

struct Importer<'a> {
    sources: &'a dyn Sources,
    limits: &'a Limits,
    budget: usize,
    files: usize,
    version: DslVersion,
    check_versions: bool,
    root: Map,
    /// Elements of the basic types: (section, name).
    basic: HashSet<(String, String)>,
    seen: HashSet<(String, String)>,
    imported_blueprints: Vec<String>,
    namespaces_mapping: Object,
    /// Ids of the blueprints whose imports are being followed.
    open: Vec<String>,
}

pub(crate) fn load(main: &str, sources: &dyn Sources, limits: &Limits, check_versions: bool) -> Compiled<Loaded> {
    let import = Import { what: main, from: "", dsl_version: "" };
    let source = sources.load(import).map_err(|error| {
        CompileError::new(
            ErrorClass::Logic,
            Some(30),
            None,
            format!("main blueprint file '{main}' cannot be read: {error}"),
        )
        .with_remedy("name a YAML file of the blueprint archive")
    })?;
    let mut importer = Importer::new(sources, limits, limits.values);
    importer.check_versions = check_versions;
    let at = importer.main(&source)?;
    Ok(Loaded {
        version: importer.version,
        root: importer.root,
        at,
        imported_blueprints: importer.imported_blueprints,
        namespaces_mapping: importer.namespaces_mapping,
    })
}

fn main_version(root: &Map, at: &Position) -> Compiled<DslVersion> {
    let Some(node) = root.given(VERSION_KEY) else {
        return Err(CompileError::logic(27, at, format!("{VERSION_KEY} field must appear in the main blueprint file"))
            .with_remedy(format!("add '{VERSION_KEY}: {}'", DslVersion::V1_5)));
    };
    let text = shape::text(node)?;
    DslVersion::parse(text).ok_or_else(|| {
        CompileError::logic(29, &node.at, format!("Unexpected {VERSION_KEY} {text}"))
            .with_remedy(format!("use one of {}", DslVersion::known()))
    })
}

fn defines_basic_types(root: &Map) -> bool {
    root.get("node_types").and_then(Node::as_map).is_some_and(|types| types.contains("cloudify.nodes.Root"))
}

impl<'a> Importer<'a> {
    fn new(sources: &'a dyn Sources, limits: &'a Limits, budget: usize) -> Self {
        Self {
            sources,
            limits,
            budget,
            files: 1,
            version: DslVersion::V1_0,
            check_versions: false,
            root: Map::default(),
            basic: HashSet::new(),
            seen: HashSet::new(),
            imported_blueprints: Vec::new(),
            namespaces_mapping: Object::new(),
            open: Vec::new(),
        }
    }

    /// Reads the main file and everything it imports.
    fn main(&mut self, source: &Source) -> Compiled<Position> {
        let node = read(&source.name, &source.text, self.limits, &mut self.budget)?;
        let at = node.at.clone();
        let Yaml::Map(mut root) = node.yaml else {
            return Err(CompileError::shape(&at, format!("Expected 'dict' type but found '{}' type", node.kind())));
        };
        self.version = main_version(&root, &at)?;
        self.seen.insert((source.name.clone(), String::new()));
        let imports = root.remove("imports");
        if defines_basic_types(&root) {
            self.mark_basic(&root);
        }
        self.root = root;
        self.follow(imports, &source.name)?;
        Ok(at)
    }

    /// Merges another blueprint, read on its own, under a namespace.
    fn import_blueprint(&mut self, id: &str, pending: &Pending, source: &Source) -> Compiled<()> {
        let namespace = pending.namespace.trim_end_matches("--").to_owned();
        if self.open.iter().any(|open| open == id) || self.open.len() >= MAX_BLUEPRINTS_DEEP {
            return Err(CompileError::logic(13, &pending.at, format!("the blueprint '{id}' imports itself")));
        }
        let mut inner = Importer::new(self.sources, self.limits, self.budget);
        inner.files = self.files;
        inner.open = self.open.clone();
        inner.open.push(id.to_owned());
        inner.main(source)?;
        self.budget = inner.budget;
        self.files = inner.files;
        self.basic.extend(inner.basic);
        for id in std::iter::once(id.to_owned()).chain(inner.imported_blueprints) {
            if !self.imported_blueprints.contains(&id) {
                self.imported_blueprints.push(id);
            }
        }
        for (name, id) in inner.namespaces_mapping {
            self.namespaces_mapping.insert(format!("{namespace}--{name}"), id);
        }
        self.namespaces_mapping.insert(namespace, id.into());
        let mut root = inner.root;
        namespaces::prefix(&mut root, &pending.namespace, &self.basic);
        self.merge(root, &pending.at, false)
    }

    fn follow(&mut self, imports: Option<Node>, main: &str) -> Compiled<()> {
        let mut queue = VecDeque::new();
        if let Some(imports) = imports {
            let pending = statements(&imports, main, "", self.check_versions.then_some(self.version))?;
            let mut written = HashSet::new();
            for one in &pending {
                if !written.insert((one.what.clone(), one.namespace.clone())) {
                    return Err(CompileError::new(
                        ErrorClass::Format,
                        Some(2),
                        Some(&one.at),
                        format!("Duplicate imports: '{}'", one.what),
                    )
                    .with_remedy("remove one of the two lines"));
                }
            }
            queue.extend(pending);
        }
        while let Some(pending) = queue.pop_front() {
            queue.extend(self.import(pending)?);
        }
        Ok(())
    }

    /// Merges one file; answers its own imports.
    fn import(&mut self, pending: Pending) -> Compiled<Vec<Pending>> {
        if pending.what.starts_with(BLUEPRINT) {
            check_blueprint_namespace(&pending, &self.namespaces_mapping)?;
        }
        let source = self.locate(&pending)?;
        if !self.seen.insert((source.name.clone(), pending.namespace.clone())) {
            return Ok(Vec::new());
        }
        self.files += 1;
        if self.files > self.limits.files {
            return Err(CompileError::logic(
                13,
                &pending.at,
                format!("more than {} imported files", self.limits.files),
            ));
        }
        if let Some(id) = pending.what.strip_prefix(BLUEPRINT) {
            self.import_blueprint(id, &pending, &source)?;
            return Ok(Vec::new());
        }
        let node = read(&source.name, &source.text, self.limits, &mut self.budget)?;
        let at = node.at.clone();
        let Yaml::Map(mut root) = node.yaml else {
            return Err(CompileError::value(
                &at,
                format!("an imported file must hold a mapping, this one holds a {}", node.kind()),
            ));
        };
        self.check_version(&root)?;
        let imports = root.remove("imports");
        let basic = defines_basic_types(&root);
        if basic && pending.own_namespace {
            return Err(CompileError::logic(
                214,
                &pending.at,
                format!(
                    "Invalid import namespace {}: cannot be used on Cloudify basic types.",
                    pending.namespace.trim_end_matches("--")
                ),
            )
            .with_remedy("import the basic types without a namespace"));
        }
        if pending.what.starts_with("plugin:") {
            set_catalogue(&mut root, &source.catalogue, &at);
        }
        if let Some(properties) = &pending.properties {
            crate::plugin_properties::set(&mut root, properties, &pending.at)?;
        }
        if !basic && !pending.namespace.is_empty() {
            namespaces::prefix(&mut root, &pending.namespace, &HashSet::new());
        }
        let next = match imports {
            Some(imports) => {
                statements(&imports, &source.name, &pending.namespace, self.check_versions.then_some(self.version))?
            }
            None => Vec::new(),
        };
        if basic {
            self.mark_basic(&root);
        }
        self.merge(root, &pending.at, basic)?;
        Ok(next)
    }

    fn mark_basic(&mut self, root: &Map) {
        for (section, node) in root.iter() {
            if let Some(entries) = node.as_map() {
                for name in entries.names() {
                    self.basic.insert((section.name.clone(), name.to_owned()));
                }
            }
        }
    }

    fn locate(&self, pending: &Pending) -> Compiled<Source> {
        let suffix = self.version.suffix();
        let import = Import { what: &pending.what, from: &pending.from, dsl_version: &suffix };
        match self.sources.load(import) {
            Ok(source) => Ok(source),
            Err(SourceError::NotFound) if pending.what == basic_types::IMPORT => Ok(Source {
                name: basic_types::IMPORT.to_owned(),
                text: basic_types::text(self.version),
                catalogue: Catalogue::default(),
            }),
            Err(SourceError::Refused(reason))
                if pending.what.starts_with("plugin:") || pending.what.starts_with("blueprint:") =>
            {
                Err(CompileError::new(ErrorClass::InvalidImport, None, Some(&pending.at), reason)
                    .with_remedy("upload it first, or import a YAML file of the blueprint"))
            }
            Err(error) => {
                let remedy = if has_scheme(&pending.what) {
                    "copy the file into the blueprint and import it by its path"
                } else {
                    "check the path; it is relative to the importing file"
                };
                Err(CompileError::logic(
                    13,
                    &pending.at,
                    format!("Import failed: Unable to open import url {}: {error}", pending.what),
                )
                .with_remedy(remedy))
            }
        }
    }

    fn check_version(&self, root: &Map) -> Compiled<()> {
        let Some(node) = root.given(VERSION_KEY) else {
            return Ok(());
        };
        let text = shape::text(node)?;
        let Some(version) = DslVersion::parse(text) else {
            return Err(CompileError::value(&node.at, format!("Unexpected {VERSION_KEY} {text}"))
                .with_remedy(format!("use one of {}", DslVersion::known())));
        };
        if self.check_versions && version > self.version {
            return Err(CompileError::logic(
                28,
                &node.at,
                format!("the imported file needs {version}, the main blueprint has {}", self.version),
            )
            .with_remedy(format!("raise {VERSION_KEY} of the main blueprint")));
        }
        Ok(())
    }

    fn merge(&mut self, imported: Map, at: &Position, basic: bool) -> Compiled<()> {
        for (section, node) in imported.into_entries() {
            let name = section.name.as_str();
            if matches!(name, VERSION_KEY | "dsl_definitions") {
                continue;
            }
            let Some(present) = self.root.get(name) else {
                self.root.insert(section, node);
                continue;
            };
            if matches!(name, "description" | "metadata") {
                continue;
            }
            let since_1_3 = UNIONS_1_3.contains(&name);
            if !UNIONS.contains(&name) && !(since_1_3 && (self.version >= DslVersion::V1_3 || !self.check_versions)) {
                let remedy =
                    if since_1_3 { "cloudify_dsl_1_3 and above merge it" } else { "write it in one file only" };
                return Err(CompileError::logic(3, at, format!("Import failed: non-mergeable field: '{name}'"))
                    .with_remedy(remedy));
            }
            if present.is_null() {
                self.root.insert(section, node);
                continue;
            }
            if node.is_null() {
                continue;
            }
            shape::map(present)?;
            let Yaml::Map(entries) = node.yaml else {
                return Err(CompileError::shape(
                    &node.at,
                    format!("Expected 'dict' type but found '{}' type", node.kind()),
                ));
            };
            for (key, value) in entries.into_entries() {
                self.merge_entry(name, key, value, at, basic)?;
            }
        }
        Ok(())
    }

    fn merge_entry(&mut self, section: &str, key: Key, value: Node, at: &Position, basic: bool) -> Compiled<()> {
        let Some(Node { yaml: Yaml::Map(target), .. }) = self.root.get_mut(section) else {
            return Ok(());
        };
        let marked =
            basic || key.name.starts_with("cloudify.") || self.basic.contains(&(section.to_owned(), key.name.clone()));
        let Some(present) = target.get_mut(&key.name) else {
            target.insert(key, value);
            return Ok(());
        };
        if FIRST_STAYS.contains(&section) {
            return Ok(());
        }
        if marked {
            *present = value;
            return Ok(());
        }
        if section == "workflows"
            && let (Yaml::Map(present), Yaml::Map(incoming)) = (&mut present.yaml, &value.yaml)
        {
            for (sub, node) in incoming.iter() {
                if !present.contains(&sub.name) {
                    present.insert(sub.clone(), node.clone());
                }
            }
            return Ok(());
        }
        if section == "node_templates" && join_relationships(present, &value) {
            return Ok(());
        }
        Err(CompileError::logic(
            4,
            at,
            format!("Import failed: Could not merge '{section}' due to conflict on '{}'", key.name),
        )
        .with_remedy(format!("rename one of the two; the other is at {}", present.at)))
    }
}

/// A blueprint is imported under a namespace of its own.
fn check_blueprint_namespace(pending: &Pending, taken: &Object) -> Compiled<()> {
    let namespace = pending.namespace.trim_end_matches("--");
    if namespace.is_empty() {
        return Err(CompileError::logic(
            213,
            &pending.at,
            format!("Invalid {}: blueprint import cannot be used without namespace", pending.what),
        )
        .with_remedy(format!("write NAME--{}", pending.what)));
    }
    if taken.contains_key(namespace) {
        return Err(CompileError::logic(
            214,
            &pending.at,
            format!("Import failed {namespace}: can not use the same namespace for importing blueprints"),
        )
        .with_remedy("choose another namespace"));
    }
    Ok(())
}

/// Labels and tags of a plugin are those it was uploaded with, not those of its file.
fn set_catalogue(root: &mut Map, catalogue: &Catalogue, at: &Position) {
    for section in FIRST_STAYS {
        root.remove(section);
    }
    let node = |yaml| Node { at: at.clone(), yaml };
    let key = |name: &str| Key { at: at.clone(), name: name.to_owned(), odd: None };
    for (section, labels) in [("labels", &catalogue.labels), ("blueprint_labels", &catalogue.blueprint_labels)] {
        let mut entries = Map::default();
        for (name, values) in labels {
            let values = values.iter().map(|value| node(Yaml::Text(value.clone()))).collect();
            let mut entry = Map::default();
            entry.insert(key("values"), node(Yaml::List(values)));
            entries.insert(key(name), node(Yaml::Map(entry)));
        }
        if entries.len() > 0 {
            root.insert(key(section), node(Yaml::Map(entries)));
        }
    }
    if !catalogue.resource_tags.is_empty() {
        let mut entries = Map::default();
        for (name, value) in &catalogue.resource_tags {
            entries.insert(key(name), node(Yaml::Text(value.clone())));
        }
        root.insert(key("resource_tags"), node(Yaml::Map(entries)));
    }
}

/// A definition with nothing but relationships adds them to the other definition of the same node.
fn join_relationships(present: &mut Node, incoming: &Node) -> bool {
    let only_relationships = |map: &Map| map.len() == 1 && map.get("relationships").and_then(Node::as_list).is_some();
    let (Yaml::Map(one), Yaml::Map(two)) = (&mut present.yaml, &incoming.yaml) else {
        return false;
    };
    let adds = only_relationships(two) || (only_relationships(one) && two.contains("type"));
    if !adds {
        return false;
    }
    for (key, node) in two.iter() {
        match (one.get_mut(&key.name), &node.yaml) {
            (None, _) => one.insert(key.clone(), node.clone()),
            (Some(Node { yaml: Yaml::List(list), .. }), Yaml::List(more)) => list.extend(more.iter().cloned()),
            (Some(_), _) => {}
        }
    }
    true
}

fn statements(imports: &Node, from: &str, inherited: &str, gate: Option<DslVersion>) -> Compiled<Vec<Pending>> {
    if imports.is_null() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for item in shape::list(imports)? {
        let (text, properties) = match &item.yaml {
            Yaml::Text(text) => (text.as_str(), None),
            Yaml::Map(map) => {
                if map.len() != 1 {
                    return Err(CompileError::new(
                        ErrorClass::Format,
                        Some(220),
                        Some(&item.at),
                        "Import with properties should be a single-entry dictionary",
                    ));
                }
                if let Some(version) = gate.filter(|version| *version < DslVersion::V1_5) {
                    return Err(shape::too_old("import properties", version, DslVersion::V1_5, &item.at));
                }
                let Some((key, properties)) = map.first() else {
                    continue;
                };
                shape::map(properties)?;
                (key.name.as_str(), Some(properties.clone()))
            }
            _ => {
                return Err(CompileError::shape(
                    &item.at,
                    format!("Expected 'dict' type but found '{}' type", item.kind()),
                )
                .with_remedy("write the import as text"));
            }
        };
        // The last delimiter splits; a path after it never holds one.
        let (own, what) = match text.rsplit_once("--") {
            Some((namespace, what)) if !namespace.contains('/') => (namespace, what),
            _ => ("", text),
        };
        if own.contains("--") {
            return Err(CompileError::logic(
                212,
                &item.at,
                format!("Invalid {own}: an import's namespace cannot contain '--'"),
            ));
        }
        let namespace = if own.is_empty() { inherited.to_owned() } else { format!("{inherited}{own}--") };
        found.push(Pending {
            what: what.to_owned(),
            at: item.at.clone(),
            from: from.to_owned(),
            namespace,
            own_namespace: !own.is_empty(),
            properties,
        });
    }
    Ok(found)
}
