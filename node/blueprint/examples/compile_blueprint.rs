//! Compiles a blueprint from disk and prints its plan, for comparing with other compilers.
//!
//!     compile_blueprint FILE [--inputs JSON] [--resolve JSON] [--options JSON]
//!
//! Prints `{"plan": …, "deployment_plan": …}`, or `{"error", "code", "message", "stage"}` with exit status 1.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use quorate_blueprint::{
    Catalogue, CompileOptions, DeploymentPlan, Import, PrepareOptions, Secrets, Source, SourceError, Sources, compile,
    has_scheme,
};
use serde_json::{Map, Value, json};

struct Disk {
    directory: PathBuf,
    imports: BTreeMap<String, String>,
    plugins: BTreeMap<String, Value>,
    resources: Option<PathBuf>,
}

impl Disk {
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

fn json_file(arguments: &[String], flag: &str) -> Value {
    let place = arguments.iter().position(|argument| argument == flag);
    place
        .and_then(|place| arguments.get(place + 1))
        .and_then(|path| std::fs::read_to_string(path).ok())
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_else(|| json!({}))
}

fn shown(deployment: &DeploymentPlan) -> Value {
    let mut plan = json!(deployment.plan);
    plan["node_instances"] = deployment
        .node_instances
        .iter()
        .map(|instance| {
            let mut instance = json!(instance);
            instance.as_object_mut().map(|map| map.remove("index"));
            instance
        })
        .collect();
    plan["inter_deployment_functions"] = json!(deployment.inter_deployment_functions);
    plan
}

fn run(arguments: &[String]) -> Result<Value, Value> {
    let failure = |error: &str, code: Option<i16>, message: String, stage: &str| json!({"error": error, "code": code, "message": message, "stage": stage});
    let main = arguments.first().ok_or_else(|| failure("usage", None, "name a blueprint file".into(), "parse"))?;
    let resolve = json_file(arguments, "--resolve");
    let options = json_file(arguments, "--options");
    let disk = Disk {
        directory: Path::new(main).parent().unwrap_or(Path::new("")).to_owned(),
        imports: resolve
            .get("imports")
            .and_then(|imports| serde_json::from_value(imports.clone()).ok())
            .unwrap_or_default(),
        plugins: resolve
            .get("plugins")
            .and_then(|plugins| serde_json::from_value(plugins.clone()).ok())
            .unwrap_or_default(),
        resources: resolve["resources"].as_str().map(PathBuf::from),
    };
    let flag = |name: &str| options.get(name).and_then(Value::as_bool);
    let compile_options =
        CompileOptions { check_versions: flag("validate_version").unwrap_or(true), ..CompileOptions::default() };
    let plan = compile(main, &disk, &compile_options)
        .map_err(|error| failure(error.class.name(), error.code, error.to_string(), "parse"))?;
    let stored = serde_json::to_string(&plan).expect("a plan is JSON");
    let plan: quorate_blueprint::Plan = serde_json::from_str(&stored).expect("a stored plan reads back");
    let mut result = json!({"plan": plan});
    if options.get("mode").and_then(Value::as_str) == Some("parse") {
        return Ok(result);
    }
    let prepare = PrepareOptions {
        correct_types: flag("auto_correct_types").unwrap_or(false),
        runtime_only: flag("runtime_only_evaluation").unwrap_or(false),
        secrets: match options.get("secrets") {
            Some(Value::Array(names)) => {
                Secrets::Only(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
            }
            Some(Value::String(_)) => Secrets::Unsupported,
            _ => Secrets::Unchecked,
        },
    };
    let inputs: Map<String, Value> = json_file(arguments, "--inputs").as_object().cloned().unwrap_or_default();
    let mut next = 0u32;
    let deployment = plan
        .prepare_deployment(&inputs, &prepare, &mut || {
            next += 1;
            format!("{next:06}")
        })
        .map_err(|error| failure(error.class().name(), error.code(), error.to_string(), "prepare"))?;
    result["deployment_plan"] = shown(&deployment);
    Ok(result)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(result) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}
