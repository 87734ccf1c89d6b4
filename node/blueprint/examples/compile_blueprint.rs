//! Compiles a blueprint from disk and prints its plan, for comparing with other compilers.
//!
//!     compile_blueprint FILE [--inputs JSON] [--resolve JSON] [--options JSON]
//!
//! Prints `{"plan": …, "deployment_plan": …}`, or `{"error", "code", "message", "stage"}` with exit status 1.

use std::path::Path;
use std::process::ExitCode;

use quorate_blueprint::{CompileOptions, DeploymentPlan, PrepareOptions, Secrets, compile};
use serde_json::{Map, Value, json};

#[path = "../tests/support/disk.rs"]
mod disk;

use disk::Disk;

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
    let disk = Disk::new(Path::new(main), &resolve);
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
