//! Node instances and nodes of one operation: read when first asked for, written when told or at the end.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::context::{Context, Side, Subject};
use crate::ctx::properties;
use crate::rest::{Caller, Rest, RestError};
use crate::settings::MERGES_MAX;
use crate::wire::{Failure, Object};

/// A node instance as this operation sees it.
pub(crate) struct Instance {
    /// As last read or stored.
    stored: Value,
    base: Object,
    pub(crate) properties: Object,
}

impl Instance {
    fn new(stored: Value) -> Self {
        let base = stored.get("runtime_properties").and_then(Value::as_object).cloned().unwrap_or_default();
        Self { stored, properties: base.clone(), base }
    }

    pub(crate) fn value(&self, key: &str) -> Value {
        self.stored.get(key).cloned().unwrap_or(Value::Null)
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.properties != self.base
    }
}

/// What one operation has read so far.
pub(crate) struct Entities {
    rest: Arc<Rest>,
    caller: Caller,
    context: Arc<Context>,
    instances: HashMap<Side, Instance>,
    nodes: HashMap<Side, Value>,
}

impl Entities {
    pub(crate) fn new(rest: Arc<Rest>, caller: Caller, context: Arc<Context>) -> Self {
        Self { rest, caller, context, instances: HashMap::new(), nodes: HashMap::new() }
    }

    fn subject(&self, side: Side) -> Result<Subject, Failure> {
        self.context.subject(side).ok_or_else(|| {
            let (names, kind) = match side {
                Side::Own => ("ctx.node/ctx.instance", "node-instance"),
                Side::Source | Side::Target => ("ctx.source/ctx.target", "relationship-instance"),
            };
            Failure::fatal(format!(
                "{names} exist in a {kind} operation only; this is a {} operation",
                self.context.kind()
            ))
        })
    }

    pub(crate) fn id(&self, side: Side) -> Result<String, Failure> {
        Ok(self.subject(side)?.instance)
    }

    pub(crate) fn node_name(&self, side: Side) -> Result<String, Failure> {
        Ok(self.subject(side)?.node)
    }

    pub(crate) async fn instance(&mut self, side: Side) -> Result<&mut Instance, Failure> {
        if !self.instances.contains_key(&side) {
            self.refresh(side, true).await?;
        }
        self.instances.get_mut(&side).ok_or_else(|| Failure::fatal("the node instance is not known"))
    }

    /// Reads the instance anew; changes not yet stored are thrown away only with `force`.
    pub(crate) async fn refresh(&mut self, side: Side, force: bool) -> Result<(), Failure> {
        let id = self.subject(side)?.instance;
        if !force && self.instances.get(&side).is_some_and(Instance::is_changed) {
            return Err(Failure::fatal("runtime properties have changes that a refresh would lose; update first"));
        }
        let stored = self.read(&id).await.map_err(|error| error.failure())?;
        self.instances.insert(side, Instance::new(stored));
        Ok(())
    }

    async fn read(&self, id: &str) -> Result<Value, RestError> {
        self.rest.get(&self.caller, &["node-instances", id], &[("_evaluate_functions", "True")]).await
    }

    /// Stores the instance's changed runtime properties, if any; the next access reads it anew.
    pub(crate) async fn update(&mut self, side: Side) -> Result<(), Failure> {
        let id = self.subject(side)?.instance;
        let Some(mut instance) = self.instances.remove(&side) else { return Ok(()) };
        let mut merges = 0;
        while instance.is_changed() {
            // Only what this operation changes is sent: the state it has read may be old by now.
            let body = json!({"version": instance.value("version"), "runtime_properties": instance.properties});
            match self.rest.patch(&self.caller, &["node-instances", &id], &body).await {
                Ok(_) => break,
                Err(error) if error.status().is_some_and(|status| status.as_u16() == 409) && merges < MERGES_MAX => {
                    merges += 1;
                    let latest = Instance::new(self.read(&id).await.map_err(|error| error.failure())?);
                    let merged = properties::merge(&instance.base, &instance.properties, &latest.base);
                    let merged = merged.map_err(|path| {
                        let text = format!("runtime property {path} of {id} was changed by somebody else meanwhile");
                        Failure::recoverable("CloudifyClientError", text)
                    })?;
                    instance = Instance { properties: merged, ..latest };
                }
                Err(error) => return Err(error.failure()),
            }
        }
        Ok(())
    }

    /// Stores all that changed, both sides of a relationship.
    pub(crate) async fn update_all(&mut self) -> Result<(), Failure> {
        let mut first = Ok(());
        for side in [Side::Own, Side::Source, Side::Target] {
            if self.instances.contains_key(&side) {
                let updated = self.update(side).await;
                first = first.and(updated);
            }
        }
        first
    }

    pub(crate) async fn node(&mut self, side: Side) -> Result<&Value, Failure> {
        if !self.nodes.contains_key(&side) {
            let subject = self.subject(side)?;
            let node = self.fetch_node(&subject.node, Some(&subject.instance)).await?;
            self.nodes.insert(side, node);
        }
        self.nodes.get(&side).ok_or_else(|| Failure::fatal("the node is not known"))
    }

    async fn fetch_node(&self, name: &str, instance: Option<&str>) -> Result<Value, Failure> {
        let deployment = self.context.text("deployment_id").unwrap_or_default();
        let mut query = vec![("deployment_id", deployment.as_str()), ("id", name), ("_evaluate_functions", "True")];
        if let Some(instance) = instance {
            query.push(("_instance_context", instance));
        }
        let list = self.rest.get(&self.caller, &["nodes"], &query).await.map_err(|error| error.failure())?;
        list.get("items")
            .and_then(Value::as_array)
            .and_then(|items| items.first())
            .cloned()
            .ok_or_else(|| Failure::http(format!("nodes/{deployment}/{name}"), 404, "the node does not exist"))
    }

    /// The address of the host the instance lives on.
    pub(crate) async fn host_ip(&mut self, side: Side) -> Result<Value, Failure> {
        let own = self.id(side)?;
        let instance = self.instance(side).await?;
        let host = instance.value("host_id");
        let Some(host) = host.as_str().map(str::to_owned) else {
            return Err(Failure::fatal("the instance has no host"));
        };
        let set = |ip: Option<&Value>| ip.filter(|ip| !crate::python_text::is_falsy(ip)).cloned();
        let found = if host == own {
            match set(instance.properties.get("ip")) {
                Some(ip) => Some(ip),
                None => set(self.node(side).await?.pointer("/properties/ip")),
            }
        } else {
            let stored = self.read(&host).await.map_err(|error| error.failure())?;
            match (set(stored.pointer("/runtime_properties/ip")), stored.get("node_id").and_then(Value::as_str)) {
                (Some(ip), _) => Some(ip),
                (None, Some(node)) => set(self.fetch_node(node, None).await?.pointer("/properties/ip")),
                (None, None) => None,
            }
        };
        found.ok_or_else(|| Failure::fatal(format!("host instance {host} has no ip")))
    }

    /// Runtime properties of all instances the operation's instance has relationships to, by instance id.
    pub(crate) async fn capabilities(&mut self) -> Result<Object, Failure> {
        let related_is_target = self.context.nested("related", "is_target").as_bool().unwrap_or(false);
        let side = match self.context.kind() {
            "relationship-instance" if related_is_target => Side::Source,
            "relationship-instance" => Side::Target,
            _ => Side::Own,
        };
        let relationships = self.instance(side).await?.value("relationships");
        let mut all = Object::new();
        for relationship in relationships.as_array().into_iter().flatten() {
            if let Some(target) = relationship.get("target_id").and_then(Value::as_str) {
                let stored = self.read(target).await.map_err(|error| error.failure())?;
                all.insert(target.to_owned(), stored.get("runtime_properties").cloned().unwrap_or_default());
            }
        }
        Ok(all)
    }
}
