//! A store made of vectors and a worker made of a script.

use std::collections::{BTreeMap, HashMap, VecDeque};

use quorate_core::workflow::{
    CancelKind, Change, Deployment, ExecutionContext, Failure, FailureKind, Graph, Operation, Run, RunOptions, Step,
    TaskOutcome, TaskProgress, TaskState, Verdict, build,
};
use serde_json::{Value, json};

pub const START_MS: i64 = 1_700_000_000_000;

pub fn context(workflow: &str, parameters: Value) -> ExecutionContext {
    ExecutionContext {
        execution_id: "exec".into(),
        workflow_id: workflow.into(),
        parameters,
        tenant: "default_tenant".into(),
        blueprint_id: "bp".into(),
        deployment_id: "dep".into(),
        deployment_display_name: "dep".into(),
        deployment_creator: "admin".into(),
        deployment_resource_tags: json!({}),
        creator: "admin".into(),
        task_retries: 60,
        task_retry_interval: 15.0,
        bypass_maintenance: None,
    }
}

pub fn operation(task: &str) -> Value {
    json!({
        "plugin": "p", "operation": task, "executor": "central_deployment_agent", "inputs": {"a": 1},
        "has_intrinsic_functions": false, "max_retries": null, "retry_interval": null,
        "timeout": null, "timeout_recoverable": null,
    })
}

pub fn operations(names: &[&str]) -> Value {
    names
        .iter()
        .map(|name| ((*name).to_owned(), operation(&format!("p.{}", name.rsplit('.').next().unwrap()))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

pub fn node(id: &str, operations: Value, relationships: Value) -> Value {
    json!({
        "id": id, "type": "cloudify.nodes.Root", "type_hierarchy": ["cloudify.nodes.Root"],
        "properties": {}, "operations": operations, "relationships": relationships,
        "plugins": [{"name": "p", "package_name": "pkg", "package_version": "1.0", "properties": null}],
    })
}

pub fn instance(id: &str, node: &str, state: &str, targets: &[(&str, &str)]) -> Value {
    let relationships: Vec<Value> = targets
        .iter()
        .map(|(target, node)| json!({"target_id": target, "target_name": node, "type": "connected"}))
        .collect();
    json!({
        "id": id, "node_id": node, "state": state, "host_id": null,
        "relationships": relationships, "runtime_properties": {},
    })
}

const ALL: &[&str] = &[
    "cloudify.interfaces.validation.create",
    "cloudify.interfaces.lifecycle.precreate",
    "cloudify.interfaces.lifecycle.create",
    "cloudify.interfaces.lifecycle.configure",
    "cloudify.interfaces.lifecycle.start",
    "cloudify.interfaces.lifecycle.poststart",
    "cloudify.interfaces.monitoring.start",
    "cloudify.interfaces.validation.delete",
    "cloudify.interfaces.monitoring.stop",
    "cloudify.interfaces.lifecycle.prestop",
    "cloudify.interfaces.lifecycle.stop",
    "cloudify.interfaces.lifecycle.delete",
    "cloudify.interfaces.lifecycle.postdelete",
];

/// `app` with every operation, connected to `db` with none.
pub fn two_nodes(state: &str) -> (Vec<Value>, Vec<Value>) {
    let prefix = "cloudify.interfaces.relationship_lifecycle.";
    let sides = operations(&[
        &format!("{prefix}preconfigure"),
        &format!("{prefix}postconfigure"),
        &format!("{prefix}establish"),
        &format!("{prefix}unlink"),
    ]);
    let relationship = json!([{
        "type": "connected", "type_hierarchy": ["connected"], "target_id": "db", "properties": {},
        "source_operations": sides, "target_operations": sides,
    }]);
    (
        vec![node("app", operations(ALL), relationship), node("db", json!({}), json!([]))],
        vec![instance("app_1", "app", state, &[("db_1", "db")]), instance("db_1", "db", state, &[])],
    )
}

pub fn recoverable(retry_after: Option<f64>) -> TaskOutcome {
    failure(FailureKind::Recoverable { retry_after }, "RecoverableError", "try later")
}

pub fn failure(kind: FailureKind, exception_type: &str, message: &str) -> TaskOutcome {
    TaskOutcome::Failed(Failure {
        kind,
        exception_type: exception_type.into(),
        message: message.into(),
        causes: json!([{"type": "E", "message": message, "traceback": "tb"}]),
    })
}

/// Rows, events and instance states: what a database would hold.
#[derive(Clone, Default)]
pub struct Store {
    pub name: String,
    pub rows: Vec<Operation>,
    at: HashMap<String, usize>,
    pub instances: BTreeMap<String, String>,
    /// Events and instance states in one line each.
    pub log: Vec<String>,
    pub totals: (u32, u32),
}

impl Store {
    pub fn new(graph: Graph) -> Self {
        let mut store = Self { name: graph.name, ..Self::default() };
        for row in graph.operations {
            store.insert(row);
        }
        store
    }

    fn insert(&mut self, row: Operation) {
        let before = self.at.insert(row.id.clone(), self.rows.len());
        assert_eq!(before, None, "row {} inserted twice", row.id);
        self.rows.push(row);
    }

    pub fn row(&self, id: &str) -> &Operation {
        &self.rows[self.at[id]]
    }

    pub fn graph(&self) -> Graph {
        Graph { name: self.name.clone(), operations: self.rows.clone() }
    }

    pub fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::State { id, state } => {
                    let row = &mut self.rows[self.at[&id]];
                    assert!(!row.state.is_terminal(), "{id} already is {}, now {state}", row.state);
                    assert!(row.state < state, "{id} goes back from {} to {state}", row.state);
                    row.state = state;
                }
                Change::Reopen { id } => {
                    let row = &mut self.rows[self.at[&id]];
                    assert_eq!(row.state, TaskState::Failed);
                    row.state = TaskState::Started;
                }
                Change::Parameters { id, parameters } => {
                    let at = self.at[&id];
                    self.rows[at].parameters = parameters;
                }
                Change::NewOperation(row) => self.insert(row),
                Change::InstanceState { instance_id, state } => {
                    self.log.push(format!("{instance_id} -> {state}"));
                    self.instances.insert(instance_id, state);
                }
                Change::Event(event) => {
                    let place = match (event.node_instance_id, event.source_id, event.target_id) {
                        (Some(node), None, None) => format!(" {node}"),
                        (None, Some(source), Some(target)) => format!(" {source}->{target}"),
                        (None, None, None) => String::new(),
                        other => panic!("an event is of a node, of a relationship or of none: {other:?}"),
                    };
                    self.log.push(format!("{}{place}: {}", event.event_type, event.message));
                }
                Change::Progress { total, finished } => self.totals = (total, finished),
            }
        }
    }

    /// Rows without those that a retry repeated.
    pub fn count(&self, state: TaskState) -> usize {
        self.rows.iter().filter(|row| row.state == state).count()
    }
}

/// Runs each task id once and remembers what came out, as a worker's journal does.
#[derive(Clone, Default)]
pub struct Worker {
    /// Outcomes by `instance:operation`, used up one by one; afterwards everything succeeds with null.
    pub script: HashMap<String, VecDeque<TaskOutcome>>,
    pub journal: HashMap<String, TaskOutcome>,
    /// `instance:operation` of every real run.
    pub ran: Vec<String>,
    queue: VecDeque<(String, Value)>,
}

impl Worker {
    pub fn say(mut self, at: &str, outcomes: impl IntoIterator<Item = TaskOutcome>) -> Self {
        self.script.insert(at.to_owned(), outcomes.into_iter().collect());
        self
    }

    pub fn take(&mut self, step: Step) {
        if let Step::Send { task_id, kwargs, .. } = step {
            assert_eq!(kwargs["__cloudify_context"]["task_id"], task_id.as_str());
            self.queue.push_back((task_id, kwargs));
        }
    }

    /// Works off one message.
    pub fn next(&mut self) -> Option<(String, TaskOutcome)> {
        let (id, kwargs) = self.queue.pop_front()?;
        if let Some(known) = self.journal.get(&id) {
            return Some((id, known.clone()));
        }
        let context = &kwargs["__cloudify_context"];
        let short = context["operation"]["name"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
        let at = format!("{}:{short}", context["node_id"].as_str().unwrap());
        let scripted = self.script.get_mut(&at).and_then(VecDeque::pop_front);
        let outcome = scripted.unwrap_or(TaskOutcome::Succeeded(Value::Null));
        self.ran.push(at);
        self.journal.insert(id.clone(), outcome.clone());
        Some((id, outcome))
    }

    pub fn forget_messages(&mut self) {
        self.queue.clear();
    }
}

/// One execution: engine, store, worker, clock, ids.
#[derive(Clone)]
pub struct World {
    pub run: Run,
    pub store: Store,
    pub worker: Worker,
    pub now: i64,
    pub ids: u64,
    pub options: RunOptions,
    /// Waits the clock jumped over, in milliseconds.
    pub waits: Vec<i64>,
}

pub fn next_id(ids: &mut u64) -> String {
    *ids += 1;
    format!("t{ids}")
}

impl World {
    pub fn new(workflow: &str, world: &(Vec<Value>, Vec<Value>), parameters: Value, worker: Worker) -> Self {
        let mut ids = 0;
        let deployment = Deployment { id: "dep", nodes: &world.0, instances: &world.1 };
        let context = context(workflow, parameters);
        let graph = build(workflow, &deployment, &context, &mut || next_id(&mut ids)).unwrap();
        let options = RunOptions::default();
        let run = Run::restore(graph.clone(), CancelKind::None, options).unwrap();
        let store = Store::new(graph);
        Self { run, store, worker, now: START_MS, ids, options, waits: Vec::new() }
    }

    pub fn apply_step(&mut self) -> bool {
        let steps = self.run.step(self.now);
        let any = !steps.is_empty();
        for step in steps {
            match step {
                Step::Apply(changes) => self.store.apply(changes),
                send => self.worker.take(send),
            }
        }
        any
    }

    pub fn reply(&mut self, id: &str, outcome: TaskOutcome) {
        let changes = self.run.record(id, outcome, self.now, &mut || next_id(&mut self.ids));
        self.store.apply(changes);
    }

    /// One thing happens: a step, a worker's answer, or the clock jumps. False when nothing is left.
    pub fn tick(&mut self) -> bool {
        if self.apply_step() {
            return true;
        }
        if let Some((id, outcome)) = self.worker.next() {
            for progress in [TaskProgress::Sent, TaskProgress::Started] {
                let changes = self.run.progress(&id, progress);
                self.store.apply(changes);
            }
            self.reply(&id, outcome);
            return true;
        }
        if self.run.finished().is_some() {
            return false;
        }
        let Some(wake) = self.run.next_wake_ms() else {
            panic!("nothing to do, nothing to wait for, and no verdict");
        };
        assert!(wake > self.now, "a wake time in the past would spin");
        self.waits.push(wake - self.now);
        self.now = wake;
        true
    }

    pub fn run_out(&mut self) -> Verdict {
        let mut ticks = 0;
        while self.tick() {
            ticks += 1;
            assert!(ticks < 1_000_000, "no end in sight");
        }
        assert_eq!(self.store.totals, self.run.totals());
        self.run.finished().unwrap()
    }

    /// The process dies; another one reads the rows. Messages on their way are lost, the worker's journal is not.
    pub fn fail_over(&mut self, cancel: CancelKind) {
        self.worker.forget_messages();
        let before = self.run.totals();
        self.run = Run::restore(self.store.graph(), cancel, self.options).unwrap();
        assert_eq!(self.run.totals(), before);
    }
}
