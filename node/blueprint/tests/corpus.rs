//! Small cases with the outcome each must have, and, where `QUORATE_DSL_CORPUS` names a directory of recorded plans,
//! a comparison with those.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use quorate_blueprint::{CompileOptions, MemorySources, Plan, PrepareOptions, Secrets, compile};
use serde_json::{Map, Value, json};

mod support {
    pub mod disk;
}
use support::disk::Disk;

fn suffixes() -> impl FnMut() -> String {
    let mut next = 0;
    move || {
        next += 1;
        format!("{next:06}")
    }
}

fn named(class: &str, code: Option<i16>) -> String {
    code.map_or(class.to_owned(), |code| format!("{class} {code}"))
}

#[test]
fn each_case_has_its_outcome() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("cases.json")).expect("JSON");
    let mut wrong = Vec::new();
    for case in &cases {
        let text = case["text"].as_str().expect("text");
        let sources = MemorySources::new([("own/main/case.yaml", text), ("own/base.yaml", include_str!("base.yaml"))]);
        let inputs: Map<String, Value> = case["inputs"].as_object().cloned().unwrap_or_default();
        let got = compile("own/main/case.yaml", &sources, &CompileOptions::default())
            .map_err(|error| named(error.class.name(), error.code))
            .and_then(|plan| {
                plan.prepare_deployment(&inputs, &PrepareOptions::default(), &mut suffixes())
                    .map_err(|error| named(error.class().name(), error.code()))
            });
        let fits = match (case["fails"].as_str(), &got) {
            (None, Ok(_)) | (Some("any"), Err(_)) => true,
            (Some(want), Err(got)) => want == got,
            _ => false,
        };
        if !fits {
            wrong.push(format!("{}: {:?}, expected {}", case["name"], got.map(|_| "a plan"), case["fails"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn read_json(path: &Path) -> Value {
    let bytes = std::fs::read(path).expect("a file of the corpus");
    let mut text = String::new();
    if path.extension().is_some_and(|extension| extension == "gz") {
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).expect("gzip");
    } else {
        text = String::from_utf8(bytes).expect("UTF-8");
    }
    serde_json::from_str(&text).expect("JSON")
}

fn recorded_case(root: &Path, case: &Value) -> Result<(), String> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let main = root.join(text(&case["file"]));
    let absolute = |value: &Value| root.join(text(value)).to_string_lossy().into_owned();
    let mut resolve = case.get("resolve").cloned().unwrap_or_else(|| json!({}));
    for section in ["imports", "blueprints"] {
        for path in resolve.get_mut(section).and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
            *path = absolute(path).into();
        }
    }
    if let Some(resources) = resolve.get_mut("resources").filter(|path| path.is_string()) {
        *resources = absolute(resources).into();
    }
    let options = &case["options"];
    let flag = |name: &str, default: bool| options[name].as_bool().unwrap_or(default);
    let compile_options =
        CompileOptions { check_versions: flag("validate_version", true), ..CompileOptions::default() };
    let prepare_options = PrepareOptions {
        correct_types: flag("auto_correct_types", false),
        runtime_only: flag("runtime_only_evaluation", false),
        secrets: match &options["secrets"] {
            Value::Array(names) => Secrets::Only(names.iter().map(text).collect()),
            Value::String(_) => Secrets::Unsupported,
            _ => Secrets::Unchecked,
        },
    };
    let expected = read_json(&root.join(text(&case["expect"])));
    let inputs = case["inputs"].as_object().cloned().unwrap_or_default();
    let got = compile(&main.to_string_lossy(), &Disk::new(&main, &resolve), &compile_options)
        .map_err(|error| named(error.class.name(), error.code))
        .and_then(|plan| {
            if options["mode"] == "parse" {
                return Ok((plan, None));
            }
            let deployment = plan
                .prepare_deployment(&inputs, &prepare_options, &mut suffixes())
                .map_err(|error| named(error.class().name(), error.code()))?;
            Ok((plan, Some(deployment)))
        });
    match (expected.get("error").and_then(Value::as_str), got) {
        (None, Ok((plan, deployment))) => {
            same_plan(&expected["plan"], &plan)?;
            let Some(deployment) = deployment else {
                return Ok(());
            };
            let want = expected["deployment_plan"]["node_instances"].as_array().map_or(0, Vec::len);
            if want != deployment.node_instances.len() {
                return Err(format!("{} instances, expected {want}", deployment.node_instances.len()));
            }
            same_plan(&expected["deployment_plan"], &deployment.plan)
        }
        (Some(class), Err(got)) => {
            let code = expected["code"].as_i64().and_then(|code| i16::try_from(code).ok());
            let want = named(class, code);
            let of_yaml = ["ScannerError", "ComposerError", "ConstructorError"].contains(&class);
            if want == got || of_yaml || expected["deliberate"] == false {
                Ok(())
            } else {
                Err(format!("{got}, expected {want}"))
            }
        }
        (None, Err(got)) => Err(format!("{got}, expected a plan")),
        (Some(class), Ok(_)) => Err(format!("a plan, expected {class}")),
    }
}

/// Compares what a plan shows, but for the order of its sets.
fn same_plan(expected: &Value, got: &Plan) -> Result<(), String> {
    let got = sorted(serde_json::to_value(got).expect("JSON"));
    let expected = sorted(expected.clone());
    for (key, want) in expected.as_object().expect("a plan") {
        if ["node_instances", "inter_deployment_functions"].contains(&key.as_str()) || want.is_null() {
            continue;
        }
        if got[key] != *want {
            return Err(format!("'{key}' differs"));
        }
    }
    Ok(())
}

/// Sets in one order, and whole floats as integers.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let in_order = |key: &str| {
                key.contains("plugins")
                    || ["nodes", "members", "imported_blueprints", "secrets", "parent_capabilities"].contains(&key)
            };
            map.into_iter()
                .map(|(key, value)| {
                    let mut value = sorted(value);
                    if let Value::Array(items) = &mut value
                        && in_order(&key)
                    {
                        items.sort_by_key(|item| match item.get("name") {
                            Some(name) => format!("{name} {}", item["executor"]),
                            None => item.to_string(),
                        });
                    }
                    (key, value)
                })
                .collect()
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        Value::Number(number) => match number.as_f64() {
            Some(whole) if whole.fract() == 0.0 && whole.abs() < 1e15 => json!(whole as i64),
            _ => Value::Number(number),
        },
        other => other,
    }
}

#[test]
fn recorded_plans_are_reproduced() {
    let Some(root) = std::env::var_os("QUORATE_DSL_CORPUS").map(PathBuf::from) else {
        println!("QUORATE_DSL_CORPUS is not set: nothing to compare with");
        return;
    };
    let must_pass: BTreeSet<&str> = include_str!("corpus_passes.txt").lines().collect();
    let index = read_json(&root.join("index.json"));
    let mut wrong = Vec::new();
    let (mut passed, mut all) = (0, 0);
    for case in index["cases"].as_array().expect("cases") {
        if case["generated"] == true {
            continue;
        }
        all += 1;
        let name = case["name"].as_str().expect("text");
        match recorded_case(&root, case) {
            Ok(()) => passed += 1,
            Err(why) if must_pass.contains(name) => wrong.push(format!("{name}: {why}")),
            Err(_) => {}
        }
    }
    println!("{passed} of {all} recorded cases are reproduced");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
