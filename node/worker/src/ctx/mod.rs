//! The operation's context as scripts see it: `ctx` words are walked over it from left to right.

pub(crate) mod client;
mod entities;
mod properties;
pub(crate) mod server;

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::context::{Context, Side};
use crate::logs::Logger;
use crate::python_text;
use crate::resources::{Resources, render};
use crate::rest::{Caller, Rest};
use crate::wire::{Failure, Object};
use entities::Entities;

const TWICE: &str = "ctx may only abort or return once";

/// What the script said of its own end.
#[derive(Default)]
enum Returned {
    #[default]
    Nothing,
    Value(Value),
    Aborted(Option<String>),
    Retried,
    /// More than one of them.
    Twice,
}

struct State {
    entities: Entities,
    returned: Returned,
    retry: Option<Failure>,
}

/// One operation's context.
pub(crate) struct Ctx {
    context: Arc<Context>,
    logger: Logger,
    pub(crate) resources: Resources,
    state: Mutex<State>,
}

/// The answer to one `ctx` call.
pub(crate) enum Answer {
    Result(Value),
    /// The script shall end now.
    Stop(String),
    Error {
        class: String,
        message: String,
    },
}

/// Where the walk stands.
enum At {
    Root,
    Subject(Side),
    Node(Side),
    NodeProperties(Side),
    Instance(Side),
    RuntimeProperties(Side),
    Operation,
    Deployment,
    Blueprint,
    Plugin,
    Logger,
    Capabilities,
    Value(Value),
    Call(Function),
}

#[derive(Clone, Copy)]
enum Function {
    Log(&'static str),
    SendEvent,
    OperationRetry,
    Update(Side),
    Refresh(Side),
    Download,
    DownloadAndRender,
    GetResource,
    GetResourceAndRender,
    Returns,
    Abort,
    RetryOperation,
    AllCapabilities,
    Pop(Side),
}

impl Ctx {
    pub(crate) fn new(
        rest: Arc<Rest>,
        caller: Caller,
        context: Arc<Context>,
        logger: Logger,
        resources: Resources,
    ) -> Self {
        let entities = Entities::new(rest, caller, context.clone());
        let state = Mutex::new(State { entities, returned: Returned::Nothing, retry: None });
        Self { context, logger, resources, state }
    }

    /// Walks the words of one call.
    pub(crate) async fn call(&self, args: &[Value]) -> Answer {
        let mut state = self.state.lock().await;
        match self.walk(&mut state, args).await {
            Ok(answer) => answer,
            Err(failure) => {
                let message = match failure.http.as_deref() {
                    Some((url, code)) => format!("{code} ({url}) : {}", failure.message),
                    None => failure.message,
                };
                Answer::Error { class: failure.raised, message }
            }
        }
    }

    /// Puts whole runtime properties in place, for Python scripts, which change them in memory.
    pub(crate) async fn replace(&self, side: Side, properties: Object) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        state.entities.instance(side).await?.properties = properties;
        Ok(())
    }

    /// Stores runtime properties that are not stored yet.
    pub(crate) async fn update_all(&self) -> Result<(), Failure> {
        self.state.lock().await.entities.update_all().await
    }

    /// The operation's result when its script ended; `failed` says that and why it did so badly.
    pub(crate) async fn conclude(&self, failed: Option<Failure>) -> Result<Value, Failure> {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        let result = match (std::mem::take(&mut state.returned), failed) {
            (Returned::Twice, _) => return Err(Failure::fatal(TWICE)),
            (Returned::Aborted(message), _) => {
                return Err(Failure::fatal(message.unwrap_or_else(|| "None".into())));
            }
            (Returned::Retried, _) => Value::Null,
            (_, Some(failure)) => return Err(failure),
            (Returned::Value(value), None) => value,
            (Returned::Nothing, None) => Value::Null,
        };
        match state.retry.take() {
            Some(retry) => Err(retry),
            None => Ok(result),
        }
    }

    async fn walk(&self, state: &mut State, args: &[Value]) -> Result<Answer, Failure> {
        let mut at = At::Root;
        for (index, arg) in args.iter().enumerate() {
            if let Some(word) = arg.as_str()
                && let Some(next) = self.attribute(state, &at, &word.replace('-', "_")).await?
            {
                at = next;
                continue;
            }
            let rest = &args[index..];
            return match at {
                At::Call(function) => self.invoke(state, function, rest).await,
                At::NodeProperties(_) | At::RuntimeProperties(_) | At::Value(Value::Object(_)) => {
                    mapping(state, at, rest).await.map(Answer::Result)
                }
                _ => Err(error(format!("{} cannot be processed in {}", python_text::str(arg), json!(args)))),
            };
        }
        match at {
            At::Call(function) => self.invoke(state, function, &[]).await,
            At::Value(value) => Ok(Answer::Result(value)),
            At::NodeProperties(_) | At::RuntimeProperties(_) => {
                whole(state, &at).await.map(|map| Answer::Result(Value::Object(map)))
            }
            _ => Err(Failure::recoverable("TypeError", "this part of ctx is not a value; name one of its attributes")),
        }
    }

    async fn attribute(&self, state: &mut State, at: &At, name: &str) -> Result<Option<At>, Failure> {
        let context = &self.context;
        let plain = |value: Value| Ok(Some(At::Value(value)));
        let call = |function| Ok(Some(At::Call(function)));
        match at {
            At::Root => self.root_attribute(state, name),
            At::Subject(side) => Ok(match name {
                "node" => Some(At::Node(*side)),
                "instance" => Some(At::Instance(*side)),
                _ => None,
            }),
            At::Node(side) => match name {
                "id" | "name" => plain(json!(state.entities.node_name(*side)?)),
                "properties" => Ok(Some(At::NodeProperties(*side))),
                "type" | "type_hierarchy" | "number_of_instances" => {
                    plain(state.entities.node(*side).await?.get(name).cloned().unwrap_or_default())
                }
                _ => Ok(None),
            },
            At::Instance(side) => match name {
                "id" => plain(json!(state.entities.id(*side)?)),
                "runtime_properties" => Ok(Some(At::RuntimeProperties(*side))),
                "host_ip" => plain(state.entities.host_ip(*side).await?),
                "index" | "scaling_groups" | "relationships" => {
                    plain(state.entities.instance(*side).await?.value(name))
                }
                "node" => Ok(Some(At::Node(*side))),
                "update" => call(Function::Update(*side)),
                "refresh" => call(Function::Refresh(*side)),
                _ => Ok(None),
            },
            At::RuntimeProperties(side) if name == "pop" => call(Function::Pop(*side)),
            At::Operation => match name {
                "retry" => call(Function::OperationRetry),
                "name" | "retry_number" | "max_retries" | "relationship" => plain(context.nested("operation", name)),
                _ => Ok(None),
            },
            At::Deployment => match name {
                "id" => plain(context.value("deployment_id")),
                "display_name" => plain(context.value("deployment_display_name")),
                "creator" => plain(context.value("deployment_creator")),
                "resource_tags" => plain(context.value("deployment_resource_tags")),
                "tenant_name" => plain(json!(context.tenant())),
                "runtime_only_evaluation" => plain(context.value(name)),
                _ => Ok(None),
            },
            At::Blueprint if name == "id" => plain(context.value("blueprint_id")),
            At::Plugin => match name {
                "name" | "package_name" | "package_version" | "source" | "properties" => {
                    plain(context.nested("plugin", name))
                }
                _ => Ok(None),
            },
            At::Logger => Ok(level(name).map(|level| At::Call(Function::Log(level)))),
            At::Capabilities if name == "get_all" => call(Function::AllCapabilities),
            _ => Ok(None),
        }
    }

    fn root_attribute(&self, state: &State, name: &str) -> Result<Option<At>, Failure> {
        let context = &self.context;
        let at = match name {
            "instance" | "node" => {
                state.entities.id(Side::Own)?;
                if name == "node" { At::Node(Side::Own) } else { At::Instance(Side::Own) }
            }
            "source" | "target" => {
                let side = if name == "source" { Side::Source } else { Side::Target };
                state.entities.id(side)?;
                At::Subject(side)
            }
            "operation" => At::Operation,
            "deployment" => At::Deployment,
            "blueprint" => At::Blueprint,
            "plugin" => At::Plugin,
            "logger" => At::Logger,
            "capabilities" => At::Capabilities,
            "type" => At::Value(json!(context.kind())),
            "task_type" => At::Value(context.value("type")),
            "tenant_name" => At::Value(json!(context.tenant())),
            "execution_env" => At::Value(context.raw().get(name).cloned().unwrap_or_else(|| json!({}))),
            "resume" | "timeout_recoverable" => At::Value(json!(context.is_true(name))),
            "execution_id"
            | "workflow_id"
            | "workflow_parameters"
            | "task_id"
            | "task_name"
            | "task_target"
            | "task_queue"
            | "rest_host"
            | "rest_port"
            | "rest_token"
            | "execution_token"
            | "tenant"
            | "timeout"
            | "bypass_maintenance"
            | "execution_creator_username" => At::Value(context.value(name)),
            "send_event" => At::Call(Function::SendEvent),
            "download_resource" => At::Call(Function::Download),
            "download_resource_and_render" => At::Call(Function::DownloadAndRender),
            "get_resource" => At::Call(Function::GetResource),
            "get_resource_and_render" => At::Call(Function::GetResourceAndRender),
            "returns" => At::Call(Function::Returns),
            "abort_operation" => At::Call(Function::Abort),
            "retry_operation" => At::Call(Function::RetryOperation),
            _ => return Ok(None),
        };
        Ok(Some(at))
    }

    async fn invoke(&self, state: &mut State, function: Function, args: &[Value]) -> Result<Answer, Failure> {
        let done = Ok(Answer::Result(Value::Null));
        match function {
            Function::Log(level) => {
                let words: Vec<_> = args.iter().map(python_text::str).collect();
                self.logger.log(level, &words.join(" "));
                done
            }
            Function::SendEvent => {
                let [event] = bind(["event"], args)?;
                self.logger.event(&needed("event", event).map(|event| python_text::str(&event))?);
                done
            }
            Function::OperationRetry => {
                let [message, after] = bind(["message", "retry_after"], args)?;
                state.retry = Some(Failure::retry(message.as_ref().map(python_text::str), after));
                done
            }
            Function::Update(side) => {
                state.entities.update(side).await?;
                done
            }
            Function::Refresh(side) => {
                let [force] = bind(["force"], args)?;
                state.entities.refresh(side, force.is_some_and(|force| !python_text::is_falsy(&force))).await?;
                done
            }
            Function::Download => {
                let [path, target] = bind(["resource_path", "target_path"], args)?;
                let path = needed("resource_path", path)?;
                let target = target.filter(|t| !t.is_null()).map(|target| python_text::str(&target));
                let to = self.resources.download(&python_text::str(&path), target.as_deref()).await?;
                Ok(Answer::Result(json!(to)))
            }
            Function::DownloadAndRender => {
                let [path, target, variables] = bind(["resource_path", "target_path", "template_variables"], args)?;
                let path = needed("resource_path", path)?;
                let target = target.filter(|t| !t.is_null()).map(|target| python_text::str(&target));
                let to = self.resources.download(&python_text::str(&path), target.as_deref()).await?;
                let text = self.render(state, &self.resources.read(&to).await?, variables).await?;
                let write = tokio::fs::write(&to, text).await;
                write.map_err(|error| Failure::recoverable("OSError", format!("{}: {error}", to.display())))?;
                Ok(Answer::Result(json!(to)))
            }
            Function::GetResource => {
                let [path] = bind(["resource_path"], args)?;
                let path = needed("resource_path", path)?;
                let to = self.resources.download(&python_text::str(&path), None).await?;
                Ok(Answer::Result(json!(self.resources.read(&to).await?)))
            }
            Function::GetResourceAndRender => {
                let [path, variables] = bind(["resource_path", "template_variables"], args)?;
                let path = needed("resource_path", path)?;
                let to = self.resources.download(&python_text::str(&path), None).await?;
                let text = self.render(state, &self.resources.read(&to).await?, variables).await?;
                Ok(Answer::Result(json!(text)))
            }
            Function::Returns => {
                let [value] = bind(["value"], args)?;
                let value = needed("value", value)?;
                state.end_with(Returned::Value(value))?;
                done
            }
            Function::Abort => {
                let [message] = bind(["message"], args)?;
                let message = message.filter(|m| !m.is_null()).map(|message| python_text::str(&message));
                let stop = message.clone().unwrap_or_else(|| "None".into());
                state.end_with(Returned::Aborted(message))?;
                Ok(Answer::Stop(stop))
            }
            Function::RetryOperation => {
                let [message, after] = bind(["message", "retry_after"], args)?;
                state.end_with(Returned::Retried)?;
                let message = message.filter(|m| !m.is_null()).map(|message| python_text::str(&message));
                let stop = message.clone().unwrap_or_else(|| "None".into());
                state.retry = Some(Failure::retry(message, after));
                Ok(Answer::Stop(stop))
            }
            Function::AllCapabilities => Ok(Answer::Result(Value::Object(state.entities.capabilities().await?))),
            Function::Pop(side) => {
                let [key, default] = bind(["key", "default"], args)?;
                let key = python_text::str(&needed("key", key)?);
                let popped = state.entities.instance(side).await?.properties.shift_remove(&key);
                match popped.or(default) {
                    Some(value) => Ok(Answer::Result(value)),
                    None => Err(Failure::recoverable("KeyError", format!("'{key}'"))),
                }
            }
        }
    }

    async fn render(&self, state: &mut State, template: &str, variables: Option<Value>) -> Result<String, Failure> {
        let mut all = match variables {
            Some(Value::Object(variables)) => variables,
            _ => Object::new(),
        };
        if all.contains_key("ctx") {
            return Err(Failure::fatal("template_variables may not hold a ctx of their own"));
        }
        if template.contains("ctx") {
            all.insert("ctx".into(), self.snapshot(state).await?);
        }
        render(template, &all)
    }

    /// The context as plain data, for templates. Without tokens: what a template prints ends up in files.
    async fn snapshot(&self, state: &mut State) -> Result<Value, Failure> {
        let context = &self.context;
        let mut all = json!({
            "type": context.kind(),
            "tenant_name": context.tenant(),
            "operation": context.value("operation"),
            "plugin": context.value("plugin"),
            "deployment": {
                "id": context.value("deployment_id"),
                "display_name": context.value("deployment_display_name"),
                "creator": context.value("deployment_creator"),
                "resource_tags": context.value("deployment_resource_tags"),
            },
            "blueprint": {"id": context.value("blueprint_id")},
        });
        for key in ["execution_id", "workflow_id", "workflow_parameters", "task_id", "task_name", "task_target"] {
            all[key] = context.value(key);
        }
        for side in context.sides() {
            let node = state.entities.node(*side).await?;
            let node = json!({
                "id": node["id"], "name": node["id"], "type": node["type"], "properties": node["properties"],
                "type_hierarchy": node["type_hierarchy"], "number_of_instances": node["number_of_instances"],
            });
            let id = state.entities.id(*side)?;
            let instance = state.entities.instance(*side).await?;
            let mut instance = json!({
                "id": id, "runtime_properties": instance.properties, "index": instance.value("index"),
                "relationships": instance.value("relationships"), "scaling_groups": instance.value("scaling_groups"),
            });
            instance["host_ip"] = state.entities.host_ip(*side).await.unwrap_or_default();
            match side {
                Side::Own => {
                    all["node"] = node;
                    all["instance"] = instance;
                }
                Side::Source => all["source"] = json!({"node": node, "instance": instance}),
                Side::Target => all["target"] = json!({"node": node, "instance": instance}),
            }
        }
        Ok(all)
    }
}

impl State {
    fn end_with(&mut self, returned: Returned) -> Result<(), Failure> {
        if matches!(self.returned, Returned::Nothing) {
            self.returned = returned;
            return Ok(());
        }
        self.returned = Returned::Twice;
        Err(error(TWICE))
    }
}

fn level(name: &str) -> Option<&'static str> {
    Some(match name {
        "debug" => "debug",
        "info" => "info",
        "warn" | "warning" => "warning",
        "error" | "exception" => "error",
        "critical" | "fatal" => "critical",
        _ => return None,
    })
}

fn error(message: impl Into<String>) -> Failure {
    Failure::recoverable("RuntimeError", message)
}

/// Reads or writes properties.
async fn mapping(state: &mut State, at: At, args: &[Value]) -> Result<Value, Failure> {
    match args {
        [path] => {
            let map = match at {
                At::Value(Value::Object(map)) => map,
                at => whole(state, &at).await?,
            };
            let found = properties::read(&map, &python_text::str(path));
            found.cloned().map_err(|illegal| error(illegal.to_string()))
        }
        [path, value] => match at {
            At::RuntimeProperties(side) => {
                let map = &mut state.entities.instance(side).await?.properties;
                let written = properties::write(map, &python_text::str(path), value.clone());
                written.map(|()| Value::Null).map_err(|illegal| error(illegal.to_string()))
            }
            _ => Err(Failure::fatal("these properties are read only")),
        },
        _ => Err(error("a property is read with one word and written with two")),
    }
}

async fn whole(state: &mut State, at: &At) -> Result<Object, Failure> {
    match at {
        At::RuntimeProperties(side) => Ok(state.entities.instance(*side).await?.properties.clone()),
        At::NodeProperties(side) => {
            let node = state.entities.node(*side).await?;
            Ok(node.get("properties").and_then(Value::as_object).cloned().unwrap_or_default())
        }
        _ => Ok(Object::new()),
    }
}

/// Puts arguments to their names; an object at the end holds arguments by name, as in the original.
fn bind<const N: usize>(names: [&str; N], args: &[Value]) -> Result<[Option<Value>; N], Failure> {
    let mut bound = [const { None }; N];
    let (positional, named) = match args.split_last() {
        Some((Value::Object(named), positional)) => (positional, Some(named)),
        _ => (args, None),
    };
    if positional.len() > N {
        return Err(Failure::recoverable("TypeError", format!("takes at most {N} arguments: {}", names.join(", "))));
    }
    for (slot, value) in bound.iter_mut().zip(positional) {
        *slot = Some(value.clone());
    }
    for (name, value) in named.into_iter().flatten() {
        match names.iter().position(|known| known == name) {
            Some(at) => bound[at] = Some(value.clone()),
            None => return Err(Failure::recoverable("TypeError", format!("unexpected keyword argument '{name}'"))),
        }
    }
    Ok(bound)
}

fn needed(name: &str, value: Option<Value>) -> Result<Value, Failure> {
    value.ok_or_else(|| Failure::recoverable("TypeError", format!("missing argument: '{name}'")))
}
