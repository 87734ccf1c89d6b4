//! From a workflow's name to its graph.

use std::collections::HashSet;

use serde_json::{Map, Number, Value, json};

use super::context::{self, Call, implementation};
use super::execute_operation;
use super::index::{Deployment, Index};
use super::install;
use super::model::{BuildError, ExecutionContext, Graph, Operation, Parameters, TaskKind, TaskState};
use super::uninstall;

/// Builds the whole graph of a built-in workflow. `new_id` gives a fresh unique id per call; one is taken per row.
///
/// # Errors
/// Unknown workflows, wrong parameters, objects that lack fields, instances that wait for each other.
pub fn build(
    workflow: &str,
    deployment: &Deployment<'_>,
    context: &ExecutionContext,
    new_id: &mut dyn FnMut() -> String,
) -> Result<Graph, BuildError> {
    let index = Index::new(deployment)?;
    let mut b = Builder { index: &index, context, new_id, rows: Vec::new(), ignore_failure: false };
    let name = match workflow {
        "install" => {
            let chosen = b.chosen(workflow)?;
            install::install(&mut b, &chosen, None, false)?;
            "install".to_owned()
        }
        "uninstall" => {
            let chosen = b.chosen(workflow)?;
            let ignore = b.flag(workflow, "ignore_failure")?;
            uninstall::uninstall(&mut b, &chosen, ignore)?;
            "uninstall".to_owned()
        }
        "reinstall" => {
            let chosen = b.chosen(workflow)?;
            let ignore = b.flag(workflow, "ignore_failure")?;
            let ends = uninstall::uninstall(&mut b, &chosen, ignore)?;
            let barrier = b.barrier(&ends);
            install::install(&mut b, &chosen, Some(barrier), true)?;
            "reinstall".to_owned()
        }
        "execute_operation" | "start" | "stop" | "restart" => execute_operation::workflow(&mut b, workflow)?,
        other => return Err(BuildError::UnknownWorkflow(other.to_owned())),
    };
    Ok(Graph { name, operations: b.rows })
}

/// A row not yet in the graph.
pub(super) struct Draft {
    name: String,
    kind: TaskKind,
    task_kwargs: Value,
    total_retries: i64,
    retry_interval: Option<Number>,
    instance: Option<usize>,
}

/// Tasks one after another inside a sub-graph.
pub(super) struct Sequence {
    /// The sub-graph's row (index).
    pub subgraph: usize,
    /// Rows the next ones wait for.
    last: Vec<usize>,
}

pub(super) struct Builder<'b, 'a> {
    pub index: &'b Index<'a>,
    pub context: &'b ExecutionContext,
    new_id: &'b mut dyn FnMut() -> String,
    pub rows: Vec<Operation>,
    /// Failures of tasks added from here on do not count.
    pub ignore_failure: bool,
}

impl Builder<'_, '_> {
    fn push(&mut self, draft: Draft, subgraph: Option<usize>, after: &[usize]) -> usize {
        let id = (self.new_id)();
        let mut task_kwargs = draft.task_kwargs;
        if draft.kind == TaskKind::Remote {
            task_kwargs["kwargs"]["__cloudify_context"]["task_id"] = Value::from(id.as_str());
        }
        let on_failure = match draft.instance {
            Some(instance) if self.ignore_failure && draft.kind == TaskKind::Remote => json!({
                "path": "ignore_failure", "instance_id": self.index.instances[instance].id,
            }),
            _ => Value::Null,
        };
        let parameters = Parameters {
            task_kwargs,
            info: Value::Null,
            error: None,
            current_retries: 0,
            total_retries: draft.total_retries,
            retry_interval: draft.retry_interval,
            retried_task: None,
            containing_subgraph: subgraph.map(|row| self.rows[row].id.clone()),
            send_task_events: true,
            on_success: Value::Null,
            on_failure,
            not_before_ms: None,
        };
        let dependencies = subgraph.iter().chain(after).map(|&row| self.rows[row].id.clone()).collect();
        self.rows.push(Operation {
            id,
            name: draft.name,
            state: TaskState::Pending,
            kind: draft.kind.as_str().to_owned(),
            dependencies,
            parameters: parameters.to_value(),
        });
        self.rows.len() - 1
    }

    /// A sub-graph of its own. `after` = rows that must end before it opens.
    pub fn subgraph(&mut self, name: &str, after: &[usize]) -> Sequence {
        let row = self.push(local(TaskKind::Subgraph, name, json!({})), None, after);
        Sequence { subgraph: row, last: Vec::new() }
    }

    /// A sub-graph as the next step of a sequence.
    pub fn nested(&mut self, sequence: &mut Sequence, name: &str) -> Sequence {
        let draft = local(TaskKind::Subgraph, name, json!({}));
        let row = self.push(draft, Some(sequence.subgraph), &sequence.last);
        sequence.last = vec![row];
        Sequence { subgraph: row, last: Vec::new() }
    }

    /// Lets row `row` wait for `others` too.
    pub fn wait_for(&mut self, row: usize, others: &[usize]) {
        let ids: Vec<String> = others.iter().map(|&other| self.rows[other].id.clone()).collect();
        self.rows[row].dependencies.extend(ids);
    }

    /// One row that ends when all of `rows` ended: keeps n × m waits at n + m.
    pub fn barrier(&mut self, rows: &[usize]) -> usize {
        let draft = local(TaskKind::Nop, TaskKind::Nop.as_str(), json!({}));
        self.push(draft, None, rows)
    }

    /// Adds the next step: its tasks run side by side after all of the step before. No tasks: no step.
    pub fn then(&mut self, sequence: &mut Sequence, drafts: Vec<Draft>) -> Vec<usize> {
        if drafts.is_empty() {
            return Vec::new();
        }
        let subgraph = Some(sequence.subgraph);
        let rows: Vec<usize> = drafts.into_iter().map(|draft| self.push(draft, subgraph, &sequence.last)).collect();
        sequence.last.clone_from(&rows);
        rows
    }

    pub fn event(&self, instance: usize, text: &str) -> Draft {
        let kwargs = json!({
            "node_instance_id": self.index.instances[instance].id,
            "event": text,
            "additional_context": null,
        });
        local(TaskKind::SendNodeEvent, TaskKind::SendNodeEvent.as_str(), kwargs)
    }

    pub fn state(&self, instance: usize, state: &str) -> Draft {
        let kwargs = json!({"node_instance_id": self.index.instances[instance].id, "state": state});
        local(TaskKind::SetNodeInstanceState, TaskKind::SetNodeInstanceState.as_str(), kwargs)
    }

    /// A task for `call` with the operation's own inputs; none when nothing implements it.
    pub fn task(&self, call: &Call<'_>) -> Option<Draft> {
        let inputs = inputs(call.definition);
        self.task_with(call, inputs)
    }

    pub fn task_with(&self, call: &Call<'_>, inputs: Map<String, Value>) -> Option<Draft> {
        let name = implementation(call.definition)?;
        let total_retries = call
            .definition
            .get("max_retries")
            .and_then(Value::as_i64)
            .filter(|retries| *retries >= -1)
            .unwrap_or(self.context.task_retries);
        let retry_interval = match call.definition.get("retry_interval") {
            Some(Value::Number(seconds)) => Some(seconds.clone()),
            _ => seconds(self.context.task_retry_interval),
        };
        let kwargs = context::kwargs(self.index, self.context, call, inputs, total_retries);
        Some(Draft {
            name: name.to_owned(),
            kind: TaskKind::Remote,
            task_kwargs: json!({ "kwargs": kwargs }),
            total_retries,
            retry_interval,
            instance: Some(call.instance),
        })
    }

    /// A task for the instance's own operation `name`; none when nothing implements it.
    pub fn operation(&self, instance: usize, name: &str) -> Option<Draft> {
        let definition = self.index.operation(instance, name)?;
        self.task(&Call { instance, operation: name, definition, related: None })
    }

    /// Instances the filters `node_ids`, `node_instance_ids` and `type_names` leave, in the deployment's order.
    pub fn chosen(&self, workflow: &str) -> Result<Vec<usize>, BuildError> {
        let nodes = self.names(workflow, "node_ids")?;
        let instances = self.names(workflow, "node_instance_ids")?;
        let types = self.names(workflow, "type_names")?;
        let index = self.index;
        Ok((0..index.instances.len())
            .filter(|&i| {
                let node = index.node_of(i);
                (nodes.is_empty() || nodes.contains(node.id))
                    && (instances.is_empty() || instances.contains(index.instances[i].id))
                    && (types.is_empty() || types.iter().any(|kind| node.is_a(kind)))
            })
            .collect())
    }

    fn names(&self, workflow: &str, name: &'static str) -> Result<HashSet<&str>, BuildError> {
        let wrong = || wrong_parameter(workflow, name, "must be a list of texts");
        match self.context.parameters.get(name) {
            None | Some(Value::Null) => Ok(HashSet::new()),
            Some(Value::Array(items)) => items.iter().map(|item| item.as_str().ok_or_else(wrong)).collect(),
            // One name written without the list.
            Some(Value::String(one)) if !one.is_empty() => Ok(HashSet::from([one.as_str()])),
            Some(Value::String(_)) => Ok(HashSet::new()),
            Some(_) => Err(wrong()),
        }
    }

    /// A parameter that is true or false; missing, null and empty are false.
    pub fn flag(&self, workflow: &str, name: &'static str) -> Result<bool, BuildError> {
        match self.context.parameters.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::String(text)) if text.is_empty() => Ok(false),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
            Some(_) => Err(wrong_parameter(workflow, name, "must be true or false")),
        }
    }
}

pub(super) fn wrong_parameter(workflow: &str, name: &'static str, problem: &str) -> BuildError {
    BuildError::Parameter { workflow: workflow.to_owned(), name, problem: problem.to_owned() }
}

/// The inputs an operation declares.
pub(super) fn inputs(definition: &Value) -> Map<String, Value> {
    definition.get("inputs").and_then(Value::as_object).cloned().unwrap_or_default()
}

fn local(kind: TaskKind, name: &str, task_kwargs: Value) -> Draft {
    Draft { name: name.to_owned(), kind, task_kwargs, total_retries: 0, retry_interval: None, instance: None }
}

/// Whole seconds without a fraction, as the original stores them.
#[allow(clippy::cast_possible_truncation)]
fn seconds(seconds: f64) -> Option<Number> {
    if seconds.fract() == 0.0 && seconds.abs() < 1e15 {
        return Some(Number::from(seconds as i64));
    }
    Number::from_f64(seconds)
}
