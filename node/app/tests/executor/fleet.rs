//! Workers without a broker: they keep a journal, report their start like the real ones, and do as they are told.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use quorate_app::auth::Credentials;
use quorate_app::executor::{Address, ExecutorSettings, Limits, Reply, SendFailure, Transport, Workers, start};
use quorate_app::operations::{Of, Operation, Progress, Reporter};
use quorate_app::{Actor, App, Code, ListQuery};
use quorate_core::workflow::{Failure, FailureKind, TaskOutcome};
use quorate_dispatch::OperationMessage;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Several workers and what they saw.
pub struct Fleet {
    state: Mutex<State>,
    /// Whom workers call.
    app: Mutex<App>,
    came: Notify,
    /// Operations of the task `p.gate` wait for `true`.
    pub gate: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    alive: BTreeSet<String>,
    /// Takes messages and does nothing with them.
    deaf: HashSet<String>,
    /// What each worker knows of a task; `None`: it runs.
    journal: HashMap<(String, String), Option<TaskOutcome>>,
    /// Worker and task, in the order they were sent.
    sent: Vec<(String, String)>,
    /// Instance and operation, in the order they were run.
    ran: Vec<String>,
    cancelled: Vec<(String, String)>,
    replies: VecDeque<(String, TaskOutcome)>,
    unacked: Vec<(String, TaskOutcome)>,
    acked: usize,
    twice: bool,
}

impl Fleet {
    pub fn new(app: &App, workers: &[&str]) -> Arc<Self> {
        let alive = workers.iter().map(|name| (*name).to_owned()).collect();
        Arc::new(Self {
            state: Mutex::new(State { alive, ..State::default() }),
            app: Mutex::new(app.clone()),
            came: Notify::new(),
            gate: watch::Sender::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn call(&self, app: &App) {
        *self.app.lock().unwrap() = app.clone();
    }

    pub fn set_alive(&self, workers: &[&str]) {
        self.lock().alive = workers.iter().map(|name| (*name).to_owned()).collect();
    }

    pub fn deafen(&self, worker: &str) {
        self.lock().deaf.insert(worker.to_owned());
    }

    pub fn answer_twice(&self) {
        self.lock().twice = true;
    }

    pub fn sent(&self) -> Vec<(String, String)> {
        self.lock().sent.clone()
    }

    pub fn ran(&self) -> Vec<String> {
        self.lock().ran.clone()
    }

    pub fn cancelled(&self) -> Vec<(String, String)> {
        self.lock().cancelled.clone()
    }

    pub fn unacked(&self) -> usize {
        let state = self.lock();
        state.unacked.len() + state.replies.len()
    }

    /// A broker hands out again what was not acknowledged.
    pub fn reconnect(&self) {
        let mut state = self.lock();
        let again = std::mem::take(&mut state.unacked);
        state.replies.extend(again);
        self.came.notify_one();
    }

    /// What a worker does with a message.
    pub async fn work(self: Arc<Self>, worker: String, message: OperationMessage) {
        let id = message.task_id.clone();
        {
            let mut state = self.lock();
            match state.journal.get(&(worker.clone(), id.clone())).cloned() {
                Some(None) => return,
                Some(Some(known)) => {
                    state.replies.push_back((id, known));
                    drop(state);
                    self.came.notify_one();
                    return;
                }
                None => state.journal.insert((worker.clone(), id.clone()), None),
            };
        }
        let context = message.context();
        let token = context["execution_token"].as_str().unwrap().to_owned();
        let mut report = Err(Code::NoActiveNode);
        for _ in 0..1000 {
            if report != Err(Code::NoActiveNode) {
                break;
            }
            report = self.report(&token, &id, &worker, Progress::Started).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let Err(code) = report {
            assert!(matches!(code, Code::Conflict | Code::Unauthorized), "{code:?}");
            // Another has it, or nobody wants it any more.
            return;
        }
        let (instance, name) = (context["node_id"].as_str().unwrap(), context["operation"]["name"].as_str().unwrap());
        let retry = context["operation"]["retry_number"].as_u64().unwrap();
        self.lock().ran.push(format!("{instance} {}", name.rsplit('.').next().unwrap()));
        let outcome = match context["task_name"].as_str().unwrap() {
            "p.fail" => failed(FailureKind::NonRecoverable, "it is broken"),
            "p.flaky" if retry == 0 => failed(FailureKind::Recoverable { retry_after: None }, "try later"),
            "p.gate" => {
                self.gate.subscribe().wait_for(|open| *open).await.unwrap();
                TaskOutcome::Succeeded(Value::Null)
            }
            _ => TaskOutcome::Succeeded(json!({"instance": instance})),
        };
        let _ = self.report(&token, &id, &worker, Progress::ResponseSent).await;
        let mut state = self.lock();
        state.journal.insert((worker, id.clone()), Some(outcome.clone()));
        for _ in 0..=usize::from(state.twice) {
            state.replies.push_back((id.clone(), outcome.clone()));
        }
        drop(state);
        self.came.notify_one();
    }

    async fn report(&self, token: &str, id: &str, worker: &str, progress: Progress) -> Result<(), Code> {
        let app = self.app.lock().unwrap().clone();
        let login = app.login(Credentials::ExecutionToken(token.to_owned())).await.map_err(|error| error.code)?;
        let actor = app.actor(login, Some("default_tenant")).await.map_err(|error| error.code)?;
        let reporter = Reporter { agent: Some(worker), manager: None };
        app.operations().report(&actor, id, progress, reporter).await.map_err(|error| error.code)
    }
}

fn failed(kind: FailureKind, message: &str) -> TaskOutcome {
    TaskOutcome::Failed(Failure {
        kind,
        exception_type: "NonRecoverableError".into(),
        message: message.into(),
        causes: json!([{"type": "ProcessException", "message": message, "traceback": "tb"}]),
    })
}

impl Workers for Fleet {
    fn alive(&self) -> Vec<String> {
        self.lock().alive.iter().cloned().collect()
    }
}

/// The fleet seen by one executor.
pub struct Line(pub Arc<Fleet>);

#[async_trait]
impl Transport for Line {
    async fn send(&self, to: &Address, message: &OperationMessage) -> Result<(), SendFailure> {
        {
            let mut state = self.0.lock();
            if !state.alive.contains(&to.worker) {
                return Err(SendFailure::NotSent("it has no queue".into()));
            }
            state.sent.push((to.worker.clone(), message.task_id.clone()));
            if state.deaf.contains(&to.worker) {
                return Ok(());
            }
        }
        tokio::spawn(self.0.clone().work(to.worker.clone(), message.clone()));
        Ok(())
    }

    async fn cancel(&self, to: &Address, execution_id: &str) {
        self.0.lock().cancelled.push((to.worker.clone(), execution_id.to_owned()));
    }

    async fn next_reply(&self) -> Reply {
        loop {
            let next = self.0.lock().replies.pop_front();
            if let Some((task_id, outcome)) = next {
                self.0.lock().unacked.push((task_id.clone(), outcome.clone()));
                let (fleet, id) = (self.0.clone(), task_id.clone());
                let ack = move || {
                    Box::pin(async move {
                        let mut state = fleet.lock();
                        let at = state.unacked.iter().position(|(known, _)| *known == id);
                        at.map(|at| state.unacked.remove(at));
                        state.acked += 1;
                    }) as futures::future::BoxFuture<'static, ()>
                };
                return Reply { task_id, outcome, ack: Box::new(ack) };
            }
            self.0.came.notified().await;
        }
    }
}

/// Periods that suit a test.
pub fn limits() -> Limits {
    Limits { worker_lost_after: Duration::from_millis(400), look_every: Duration::from_millis(50), ..Limits::default() }
}

pub fn executor(app: &App, wake: &Arc<Notify>, fleet: &Arc<Fleet>, stop: &CancellationToken) -> JoinHandle<()> {
    let settings = ExecutorSettings {
        app: app.clone(),
        transport: Arc::new(Line(fleet.clone())),
        workers: fleet.clone(),
        wake: wake.clone(),
        rest_hosts: vec!["127.37.0.1".into()],
        rest_port: 53333,
        limits: limits(),
    };
    start(settings, stop.clone())
}

/// The first administrator in the default tenant.
pub async fn admin(app: &App) -> Actor {
    let (username, password) = ("admin".to_owned(), quorate_app::testing::ADMIN_PASSWORD.to_owned());
    let login = app.login(Credentials::Password { username, password }).await.unwrap();
    app.actor(login, Some("default_tenant")).await.unwrap()
}

/// Waits until a check holds.
pub async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

/// What workers ran of an execution, in insertion order.
pub async fn remote(app: &App, execution: &str) -> Vec<Operation> {
    let rows = app.operations().list(&admin(app).await, Of::Execution(execution)).await.unwrap();
    rows.into_iter().filter(|row| row.kind == "RemoteWorkflowTask").collect()
}

/// Types of the events of an execution, in order.
pub async fn events(app: &App, execution: &str) -> Vec<(String, String)> {
    let query = ListQuery { filters: vec![("execution_id".into(), vec![execution.into()])], ..ListQuery::default() };
    let page = app.events().list(&admin(app).await, &query, false).await.unwrap();
    page.items.into_iter().map(|event| (event.event_type.unwrap_or_default(), event.message)).collect()
}
