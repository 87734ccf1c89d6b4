//! Blueprints that must compile, and mistakes that must be named where they are.

use std::collections::HashMap;

use quorate_blueprint::{
    Attributes, CompileError, CompileOptions, DeploymentPlan, InstanceView, MemorySources, Plan, PrepareError,
    PrepareOptions, Scope, compile, evaluate,
};
use serde_json::{Map, Value, json};

const SAMPLE: &str = include_str!("../../src/demo/sample/blueprint.yaml");
const SAMPLE_SCRIPTS: [&str; 7] = [
    "scripts/application_configure.sh",
    "scripts/application_start.py",
    "scripts/database_create.py",
    "scripts/database_start.py",
    "scripts/forget.sh",
    "scripts/machine_create.sh",
    "scripts/use_database.sh",
];

fn files(files: &[(&str, &str)]) -> Result<Plan, CompileError> {
    let sources = MemorySources::new(files.iter().copied());
    compile(files[0].0, &sources, &CompileOptions::default())
}

fn sample() -> Plan {
    let mut all = vec![("blueprint.yaml", SAMPLE)];
    all.extend(SAMPLE_SCRIPTS.map(|path| (path, "")));
    files(&all).expect("the sample compiles")
}

fn prepare(plan: &Plan, inputs: Value) -> Result<DeploymentPlan, PrepareError> {
    let inputs = inputs.as_object().cloned().unwrap_or_default();
    let mut next = 0;
    plan.prepare_deployment(&inputs, &PrepareOptions::default(), &mut || {
        next += 1;
        format!("{next:06}")
    })
}

#[test]
fn the_sample_becomes_a_deployment() {
    let plan = sample();
    let stored = serde_json::to_value(&plan).expect("a plan is JSON");
    let plan: Plan = serde_json::from_value(stored).expect("a stored plan reads back");
    let deployment = prepare(&plan, json!({"greeting": "good day"})).expect("the inputs fit");
    let application = deployment.plan.node("application").expect("it is there");
    assert_eq!(application.properties["greeting"], json!("good day"));
    assert_eq!(application.type_hierarchy, ["cloudify.nodes.Root", "sample.Application"]);
    let configure = &application.operations["cloudify.interfaces.lifecycle.configure"];
    assert_eq!(configure.plugin, "script");
    assert_eq!(configure.operation, "script_runner.tasks.run");
    assert_eq!(configure.executor.as_deref(), Some("central_deployment_agent"));
    assert_eq!(configure.inputs["script_path"], "scripts/application_configure.sh");
    assert_eq!(configure.inputs["port"], json!(8080));
    assert_eq!(
        deployment.plan.outputs["endpoint"]["value"],
        json!({"concat": ["http://", {"get_attribute": ["machine", "address"]}, ":", 8080]})
    );
    assert_eq!(deployment.node_instances.len(), 3);
    let instance =
        deployment.node_instances.iter().find(|instance| instance.node_id == "application").expect("it is there");
    assert_eq!(instance.index, 1);
    let targets: Vec<&str> =
        instance.relationships.iter().map(|relationship| relationship.target_name.as_str()).collect();
    assert_eq!(targets, ["machine", "database"]);
    for workflow in ["install", "uninstall", "execute_operation", "scale", "heal"] {
        assert_eq!(plan.workflows[workflow].plugin, "default_workflows");
    }
}

/// Instances with one runtime property each.
struct Running {
    inputs: Map<String, Value>,
    instances: HashMap<&'static str, InstanceView>,
}

impl Attributes for Running {
    fn input(&self, name: &str) -> Option<Value> {
        self.inputs.get(name).cloned()
    }

    fn properties(&self, node: &str) -> Option<Map<String, Value>> {
        (node == "machine").then(|| Map::from_iter([("size".to_owned(), json!(3))]))
    }

    fn instances(&self, node: &str) -> Vec<String> {
        let mut ids: Vec<String> = self
            .instances
            .values()
            .filter(|instance| instance.node == node)
            .map(|instance| instance.id.clone())
            .collect();
        ids.sort();
        ids
    }

    fn instance(&self, id: &str) -> Option<InstanceView> {
        self.instances.get(id).cloned()
    }
}

fn running() -> Running {
    let instance = |id: &str, node: &str, address: &str, targets: &[&str]| InstanceView {
        id: id.to_owned(),
        node: node.to_owned(),
        index: 1,
        runtime_properties: Map::from_iter([("address".to_owned(), json!(address))]),
        targets: targets.iter().map(|id| (*id).to_owned()).collect(),
        scaling_groups: Vec::new(),
    };
    Running {
        inputs: Map::from_iter([("port".to_owned(), json!(80))]),
        instances: HashMap::from([
            ("machine_1", instance("machine_1", "machine", "10.0.0.1", &[])),
            ("machine_2", instance("machine_2", "machine", "10.0.0.2", &[])),
            ("app_1", instance("app_1", "app", "here", &["machine_2"])),
        ]),
    }
}

#[test]
fn functions_find_the_nearest_instance_at_run_time() {
    let running = running();
    let asker = Scope { itself: Some("app_1"), ..Scope::default() };
    let url = json!({"concat": ["http://", {"get_attribute": ["machine", "address"]}, ":", {"get_input": "port"}]});
    assert_eq!(evaluate(&url, &running, asker).expect("it has a value"), json!("http://10.0.0.2:80"));
    let own = json!({"get_attribute": ["SELF", "node_instance_id"]});
    assert_eq!(evaluate(&own, &running, asker).expect("it has one"), json!("app_1"));
    let property = json!({"get_attributes_list": ["machine", "size"]});
    assert_eq!(evaluate(&property, &running, asker).expect("it has one"), json!([3, 3]));
    evaluate(&url, &running, Scope::default()).expect_err("two machines and nobody asks");
}

const TYPES: &str = "\
tosca_definitions_version: cloudify_dsl_1_4
node_types:
  app:
    properties:
      port: { type: integer, default: 1 }
      name: { default: none }
";

fn mistake(rest: &str) -> CompileError {
    let text = format!("{TYPES}{rest}");
    files(&[("main.yaml", text.as_str())]).expect_err("it is wrong")
}

#[test]
fn mistakes_are_named_where_they_are() {
    for (rest, at, code) in [
        ("node_templates:\n  a: {type: nope}\n", "main.yaml:8:13: ", Some(7)),
        ("node_templates:\n  a: {type: app, properties: {port: x}}\n", "main.yaml:8:37: ", Some(105)),
        ("node_templates:\n  a: {type: app, propertys: {}}\n", "main.yaml:8:18: ", Some(1)),
        ("outputs:\n  o: {value: {get_input: nope}}\n", "main.yaml:8:14: ", None),
        ("imports: [other.yaml]\n", "main.yaml:7:11: ", Some(13)),
        ("imports: ['plugin:x']\n", "main.yaml:7:11: ", None),
    ] {
        let error = mistake(rest);
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().starts_with(at), "{error}");
    }
}

#[test]
fn circles_are_refused() {
    let error = files(&[(
        "main.yaml",
        "tosca_definitions_version: cloudify_dsl_1_4\nnode_types:\n  a: {derived_from: b}\n  b: {derived_from: a}\n",
    )])
    .expect_err("a circle");
    assert_eq!(error.code, Some(100));

    // Files that import each other are one blueprint.
    files(&[
        ("a.yaml", "tosca_definitions_version: cloudify_dsl_1_4\nimports: [b.yaml]\n"),
        ("b.yaml", "imports: [a.yaml, b.yaml]\n"),
    ])
    .expect("a circle of imports ends");

    let text = format!(
        "{TYPES}node_templates:\n  a: {{type: app, properties: {{name: {{get_property: [b, name]}}}}}}\n  b: {{type: app, properties: {{name: {{get_property: [a, name]}}}}}}\n"
    );
    let plan = files(&[("main.yaml", text.as_str())]).expect("each for itself is right");
    let error = prepare(&plan, json!({})).expect_err("they read each other");
    assert!(error.to_string().contains("read each other"), "{error}");
}

#[test]
fn inputs_are_asked_for() {
    let plan = files(&[(
        "main.yaml",
        "tosca_definitions_version: cloudify_dsl_1_4\ninputs:\n  a: {type: integer}\n  b: {default: 1}\n",
    )])
    .expect("it compiles");
    match prepare(&plan, json!({})) {
        Err(PrepareError::MissingInputs { missing, .. }) => assert_eq!(missing, ["a"]),
        other => panic!("{other:?}"),
    }
    match prepare(&plan, json!({"a": 1, "c": 2})) {
        Err(PrepareError::UnknownInputs { unknown, .. }) => assert_eq!(unknown, ["c"]),
        other => panic!("{other:?}"),
    }
    match prepare(&plan, json!({"a": "x"})) {
        Err(error @ PrepareError::InputType { .. }) => assert_eq!(error.code(), Some(214)),
        other => panic!("{other:?}"),
    }
    let deployment = prepare(&plan, json!({"a": 7})).expect("all is given");
    assert_eq!(deployment.plan.inputs["a"], json!(7));
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut text = String::from(
        "tosca_definitions_version: cloudify_dsl_1_4\ndsl_definitions:\n  a0: &a0 [x, x, x, x, x, x, x, x]\n",
    );
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(8);
        text.push_str(&format!("  a{level}: &a{level} [{before}]\n"));
    }
    let error = files(&[("main.yaml", text.as_str())]).expect_err("too much");
    assert!(error.to_string().contains("too many values"), "{error}");
}
