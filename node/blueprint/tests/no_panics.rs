//! Whatever is written, compiling answers; it does not panic.

use proptest::prelude::*;
use quorate_blueprint::{CompileOptions, MemorySources, PrepareOptions, compile};
use serde_json::{Map, Value};

const CASES: &str = include_str!("cases.json");

fn run(text: &str) {
    let sources = MemorySources::new([("own/main/case.yaml", text), ("own/base.yaml", include_str!("base.yaml"))]);
    let Ok(plan) = compile("own/main/case.yaml", &sources, &CompileOptions::default()) else {
        return;
    };
    let stored = serde_json::to_string(&plan).expect("a plan is JSON");
    assert_eq!(plan, serde_json::from_str(&stored).expect("a stored plan reads back"));
    let mut next = 0;
    let inputs: Map<String, Value> =
        plan.inputs.keys().map(|name| (name.clone(), Value::from("text"))).take(1).collect();
    let outcome = plan.prepare_deployment(&inputs, &PrepareOptions::default(), &mut || {
        next += 1;
        next.to_string()
    });
    if let Ok(deployment) = outcome {
        assert_eq!(deployment.plan.nodes.len(), plan.nodes.len());
    }
}

/// Words blueprints are made of, so that random trees get past the first checks.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "a",
            "b",
            "app",
            "type",
            "default",
            "value",
            "properties",
            "interfaces",
            "SELF",
            "get_input",
            "get_property",
            "get_attribute",
            "concat",
            "derived_from",
            "cloudify.nodes.Root",
            "integer",
            "1",
            "-1",
            "null",
            "{}",
            "[]",
            "p.x",
            "members",
            "targets",
            "target",
            "true",
            "1.5",
            "string_split",
            "merge",
        ])
        .prop_map(str::to_owned),
        "[a-z]{1,3}",
    ]
}

fn tree() -> impl Strategy<Value = String> {
    word().prop_recursive(5, 48, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::vec((word(), inner), 0..4).prop_map(|entries| {
                let entries: Vec<String> =
                    entries.into_iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
                format!("{{{}}}", entries.join(", "))
            }),
        ]
    })
}

const SECTIONS: [&str; 14] = [
    "inputs",
    "outputs",
    "node_types",
    "node_templates",
    "relationships",
    "workflows",
    "plugins",
    "data_types",
    "groups",
    "policies",
    "labels",
    "capabilities",
    "deployment_settings",
    "imports",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_text(text in "\\PC{0,200}") {
        run(&text);
    }

    #[test]
    fn any_section(section in prop::sample::select(SECTIONS.to_vec()), name in word(), content in tree(), value in tree()) {
        run(&format!(
            "tosca_definitions_version: cloudify_dsl_1_5\nimports: [../base.yaml]\n{section}:\n  \"{name}\": {content}\noutputs:\n  o: {{value: {value}}}\n"
        ));
    }

    #[test]
    fn any_properties(one in tree(), two in tree()) {
        run(&format!(
            "tosca_definitions_version: cloudify_dsl_1_5\nimports: [../base.yaml]\ninputs: {{a: {{default: {one}}}}}\nnode_templates:\n  a: {{type: app, properties: {{any: {two}, name: {one}}}}}\n  b: {{type: app, properties: {{any: {{get_property: [a, any]}}}}}}\n"
        ));
    }

    /// A case with some characters taken out or doubled.
    #[test]
    fn a_damaged_case(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), length in 1usize..8, doubled: bool) {
        let cases: Vec<Value> = serde_json::from_str(CASES).expect("JSON");
        let text: Vec<char> = which.get(&cases)["text"].as_str().expect("text").chars().collect();
        if !text.is_empty() {
            let start = at.index(text.len());
            let end = (start + length).min(text.len());
            let again = if doubled { &text[start..end] } else { &[] };
            let damaged: String = text[..end].iter().chain(again).collect::<String>();
            let kept = if doubled { damaged } else { text[..start].iter().collect() };
            let rest: String = text[end..].iter().collect();
            run(&format!("{kept}{rest}"));
        }
    }
}
