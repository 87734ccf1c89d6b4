//! `execute_operation`, and the workflows that are one: start, stop, restart.

use serde_json::{Map, Value};

use super::build::{Builder, inputs, wrong_parameter};
use super::context::Call;
use super::index::Index;
use super::install::LIFECYCLE;
use super::model::BuildError;
use super::pytext::python_repr;

/// In which order instances take their turn.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    Together,
    TargetsFirst,
    SourcesFirst,
}

struct Plan<'p> {
    workflow: &'p str,
    operation: String,
    kwargs: Map<String, Value>,
    allow_override: bool,
    order: Order,
    chosen: &'p [usize],
}

/// Adds the rows of `workflow` and answers the graph's name.
pub(super) fn workflow(b: &mut Builder<'_, '_>, workflow: &str) -> Result<String, BuildError> {
    let chosen = b.chosen(workflow)?;
    let context = b.context;
    // start, stop and restart spell it `operation_parms`.
    let given = ["operation_kwargs", "operation_parms"]
        .iter()
        .find_map(|name| context.parameters.get(*name).filter(|v| !v.is_null() && v.as_str() != Some("")));
    let kwargs = match given {
        None => Map::new(),
        Some(Value::Object(kwargs)) => kwargs.clone(),
        Some(_) => return Err(wrong_parameter(workflow, "operation_kwargs", "must be an object")),
    };
    let allow_override = b.flag(workflow, "allow_kwargs_override")?;
    let plan = |operation: String, order: Order| Plan {
        workflow,
        operation,
        kwargs: kwargs.clone(),
        allow_override,
        order,
        chosen: &chosen,
    };
    let ordered = match context.parameters.get("run_by_dependency_order") {
        None | Some(Value::Null) => workflow != "execute_operation",
        Some(_) => b.flag(workflow, "run_by_dependency_order")?,
    };
    let order = |order: Order| if ordered { order } else { Order::Together };
    let (start, stop) = (format!("{LIFECYCLE}.start"), format!("{LIFECYCLE}.stop"));
    match workflow {
        "start" => {
            add(b, &plan(start, order(Order::TargetsFirst)), None)?;
        }
        "stop" => {
            add(b, &plan(stop, order(Order::SourcesFirst)), None)?;
        }
        "restart" => {
            let ends = add(b, &plan(stop, order(Order::SourcesFirst)), None)?;
            let barrier = b.barrier(&ends);
            add(b, &plan(start, order(Order::TargetsFirst)), Some(barrier))?;
        }
        _ => {
            let operation = context.parameters.get("operation").and_then(Value::as_str);
            let operation = operation
                .filter(|operation| !operation.is_empty())
                .ok_or_else(|| wrong_parameter(workflow, "operation", "must name an operation"))?;
            add(b, &plan(operation.to_owned(), order(Order::TargetsFirst)), None)?;
            return Ok(format!("execute_operation_{operation}"));
        }
    }
    Ok(workflow.to_owned())
}

/// One sub-graph per instance of the deployment: those not chosen stay empty, so that order holds across them.
fn add(b: &mut Builder<'_, '_>, plan: &Plan<'_>, barrier: Option<usize>) -> Result<Vec<usize>, BuildError> {
    let index: &Index<'_> = b.index;
    let all: Vec<usize> = (0..index.instances.len()).collect();
    let mut order = if plan.order == Order::Together { all } else { index.in_order(&all)? };
    if plan.order == Order::SourcesFirst {
        order.reverse();
    }
    let mut chosen = vec![false; index.instances.len()];
    for &i in plan.chosen {
        chosen[i] = true;
    }
    let mut row_of: Vec<Option<usize>> = vec![None; index.instances.len()];
    let first: Vec<usize> = barrier.into_iter().collect();
    let mut ends = Vec::with_capacity(order.len());
    for instance in order {
        let mut sequence = b.subgraph(index.instances[instance].id, &first);
        if chosen[instance] {
            one(b, plan, &mut sequence, instance)?;
        }
        row_of[instance] = Some(sequence.subgraph);
        ends.push(sequence.subgraph);
    }
    if plan.order == Order::Together {
        return Ok(ends);
    }
    for (instance, view) in index.instances.iter().enumerate() {
        for relationship in &view.relationships {
            let (first, second) = match plan.order {
                Order::SourcesFirst => (instance, relationship.target),
                _ => (relationship.target, instance),
            };
            // Rows stand in order; an edge against it closes a circle of partial waits and is left out.
            if let (Some(first), Some(second)) = (row_of[first], row_of[second])
                && first < second
            {
                b.wait_for(second, &[first]);
            }
        }
    }
    Ok(ends)
}

fn one(
    b: &mut Builder<'_, '_>,
    plan: &Plan<'_>,
    sequence: &mut super::build::Sequence,
    instance: usize,
) -> Result<(), BuildError> {
    let operation = plan.operation.as_str();
    let Some(definition) = b.index.operation(instance, operation) else {
        return Ok(());
    };
    let mut merged = inputs(definition);
    let clashes: Vec<&str> = plan.kwargs.keys().map(String::as_str).filter(|key| merged.contains_key(*key)).collect();
    if !clashes.is_empty() && !plan.allow_override {
        return Err(BuildError::DuplicateParameters {
            operation: operation.to_owned(),
            instance: b.index.instances[instance].id.to_owned(),
            names: clashes.join(", "),
        });
    }
    if plan.kwargs.contains_key("__cloudify_context") {
        let problem = "must not set __cloudify_context";
        return Err(wrong_parameter(plan.workflow, "operation_kwargs", problem));
    }
    merged.extend(plan.kwargs.iter().map(|(key, value)| (key.clone(), value.clone())));
    let call = Call { instance, operation, definition, related: None };
    let Some(task) = b.task_with(&call, merged) else {
        return Ok(());
    };
    let mut text = format!("Starting operation {operation}");
    if !plan.kwargs.is_empty() {
        let shown = python_repr(&Value::Object(plan.kwargs.clone()));
        text.push_str(&format!(" (Operation parameters: {shown})"));
    }
    b.then(sequence, vec![b.event(instance, &text)]);
    b.then(sequence, vec![task]);
    b.then(sequence, vec![b.event(instance, &format!("Finished operation {operation}"))]);
    Ok(())
}
