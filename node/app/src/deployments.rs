//! Deployments: made from a blueprint's plan at once, with their nodes and instances.

use std::collections::HashMap;
use std::path::PathBuf;

use quorate_blueprint::{DeploymentPlan, ErrorClass, Object, Plan, PlanNode, PrepareError, PrepareOptions};
use quorate_store::blueprints::Blueprint;
use quorate_store::deployment_views::{Installed, installed};
use quorate_store::deployments::{self as rows, Deployment, ID_TAKEN, NewDeployment};
use quorate_store::executions::{self, NewExecution};
use quorate_store::node_instances::{self, NewNodeInstance};
use quorate_store::nodes::{self, NewNode};
use quorate_store::{Document, Label, NewLabel, PgConnection, StoreError, Tx, events};
use rand::Rng;
use serde::Serialize;
use serde_json::{Value, json};
use tracing::{info, warn};
use uuid::Uuid;

use crate::blueprints::{self, UPLOADED, check_wider};
use crate::evaluate::Known;
use crate::uploads::{blocking, event, log};
use crate::{Actor, App, AppError, Code, ListQuery, Listing, Permission, Visibility, labels, names};

/// The workflow that makes a deployment's rows.
const CREATE_WORKFLOW: &str = "create_deployment_environment";
/// Directory of what workflows leave: tenant, id.
const DIRECTORIES: &str = "deployments";
/// Characters of the random part of an instance's id.
const SUFFIX_CHARACTERS: usize = 6;
/// How often all instance ids are drawn anew because another deployment has one of them.
const DRAWS: u32 = 5;
/// States of instances that hold nothing.
const DEAD: [&str; 2] = ["uninitialized", "deleted"];
/// Names in a message, at most.
const NAMES_SHOWN: usize = 20;

/// Use cases of deployments.
pub struct Deployments<'a>(pub(crate) &'a App);

/// A deployment with what belongs to it.
pub struct DeploymentDetails {
    /// The row.
    pub row: Deployment,
    /// Its labels.
    pub labels: Vec<Label>,
    /// What availability of workflows depends on; lists leave the types out.
    pub installed: Installed,
}

/// What to make.
pub struct CreateDeployment {
    /// From which blueprint.
    pub blueprint_id: String,
    /// By name.
    pub inputs: Object,
    /// Who will see it.
    pub visibility: Visibility,
    /// What people call it; `None`: its id.
    pub display_name: Option<String>,
    /// Labels as clients send them.
    pub labels: Value,
    /// Evaluate functions only when they are read.
    pub runtime_only_evaluation: bool,
}

impl Deployments<'_> {
    /// The deployments that the caller may see; `name_part`: called like this.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for an unknown field.
    pub async fn list(
        &self,
        actor: &Actor,
        query: &ListQuery,
        all_tenants: bool,
        name_part: Option<&str>,
    ) -> Result<Listing<DeploymentDetails>, AppError> {
        actor.require(Permission::DeploymentList)?;
        let scope = if all_tenants { actor.readable_everywhere(Permission::DeploymentList) } else { actor.readable() };
        let mut reader = self.0.store().read().await?;
        let listing = rows::list(&mut reader, query, &scope, name_part).await?;
        let keys: Vec<i64> = listing.items.iter().map(|row| row.key).collect();
        let mut labels: HashMap<i64, Vec<Label>> = HashMap::new();
        for label in rows::labels_of(&mut reader, &keys).await? {
            labels.entry(label.owner_key).or_default().push(label);
        }
        Ok(listing.map(|row| DeploymentDetails {
            labels: labels.remove(&row.key).unwrap_or_default(),
            installed: Installed { instances: row.instances, started: row.started_instances, types: vec![] },
            row,
        }))
    }

    /// One deployment.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`.
    pub async fn get(&self, actor: &Actor, id: &str) -> Result<DeploymentDetails, AppError> {
        actor.require(Permission::DeploymentGet)?;
        let mut reader = self.0.store().read().await?;
        let row = found(&mut reader, actor, id).await?;
        details(&mut reader, row).await
    }

    /// Outputs, evaluated.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, `functions_evaluation_error`.
    pub async fn outputs(&self, actor: &Actor, id: &str) -> Result<Object, AppError> {
        actor.require(Permission::DeploymentGet)?;
        let mut reader = self.0.store().read().await?;
        let row = found(&mut reader, actor, id).await?;
        Known::load(&mut reader, &row).await?.values(&row.outputs)
    }

    /// Capabilities, evaluated.
    ///
    /// # Errors
    /// As [`Self::outputs`].
    pub async fn capabilities(&self, actor: &Actor, id: &str) -> Result<Object, AppError> {
        actor.require(Permission::DeploymentCapabilities)?;
        let mut reader = self.0.store().read().await?;
        let row = found(&mut reader, actor, id).await?;
        Known::load(&mut reader, &row).await?.values(&row.capabilities)
    }

    /// Makes a deployment with its nodes, instances and environment execution in one transaction.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error`; `not_found_error` for the blueprint; `conflict_error` when the id is
    /// taken; `illegal_action_error` when the blueprint is not uploaded or seen by fewer people; those of inputs and
    /// `deployment_creation_error`.
    pub async fn create(&self, actor: &Actor, id: &str, new: CreateDeployment) -> Result<DeploymentDetails, AppError> {
        actor.require(Permission::DeploymentCreate)?;
        names::check_any("deployment_id", id)?;
        if new.visibility == Visibility::Global {
            actor.require(Permission::CreateGlobalResource)?;
        }
        let mut reader = self.0.store().read().await?;
        let blueprint = blueprints::found(&mut reader, actor, &new.blueprint_id).await?;
        if rows::find(&mut reader, &actor.readable(), actor.tenant, id).await?.is_some() {
            return Err(AppError::taken("Deployment", id, &actor.tenant_name));
        }
        drop(reader);
        let plan = plan(&blueprint, new.visibility)?;
        let mut all_labels = labels::declared(&plan.labels)?;
        all_labels.extend(labels::parse(&new.labels)?);
        let mut draw = 0;
        loop {
            draw += 1;
            let prepared = prepare(&plan, &new).await?;
            let write = Write { actor, id, blueprint: &blueprint, new: &new, prepared, labels: &all_labels };
            match write.commit(self.0).await {
                Err(WriteError::InstanceTaken) if draw < DRAWS => {}
                Err(WriteError::InstanceTaken) => {
                    return Err(AppError::new(Code::DeploymentCreation, "no free ids for node instances were found"));
                }
                Err(WriteError::Other(error)) => return Err(error),
                Ok(details) => {
                    info!(deployment = id, tenant = actor.tenant_name, by = actor.login.username, "deployment made");
                    return Ok(details);
                }
            }
        }
    }

    /// Changes what people call it and its labels; `None`: not.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, `bad_parameters_error`.
    pub async fn change(
        &self,
        actor: &Actor,
        id: &str,
        display_name: Option<&str>,
        new_labels: Option<&Value>,
    ) -> Result<DeploymentDetails, AppError> {
        actor.require(Permission::DeploymentUpdate)?;
        let mut tx = self.0.store().begin().await?;
        let row = own(&mut tx, actor, id).await?;
        if let Some(name) = display_name {
            rows::set_display_name(&mut tx, row.key, name).await?;
        }
        if let Some(new) = new_labels {
            let new = labels::parse(new)?;
            rows::clear_labels(&mut tx, row.key).await?;
            rows::add_labels(&mut tx, row.key, actor.login.user, &new).await?;
        }
        let row = found(&mut tx, actor, id).await?;
        let changed = details(&mut tx, row).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// Shows it to more people.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`; `illegal_action_error` for fewer people or for more than see its
    /// blueprint; `conflict_error` when another tenant has a global one of the same id.
    pub async fn set_visibility(
        &self,
        actor: &Actor,
        id: &str,
        visibility: Visibility,
    ) -> Result<DeploymentDetails, AppError> {
        actor.require(Permission::DeploymentSetVisibility)?;
        if visibility == Visibility::Global {
            actor.require(Permission::ResourceSetGlobal)?;
        }
        let mut tx = self.0.store().begin().await?;
        let row = own(&mut tx, actor, id).await?;
        check_wider(&row.visibility, visibility)?;
        if let Some(blueprint) = quorate_store::blueprints::get(&mut tx, row.blueprint_key).await? {
            check_shown(&blueprint, visibility)?;
        }
        let set = rows::set_visibility(&mut tx, row.key, visibility.as_str()).await;
        set.map_err(|error| taken(actor, id, error))?;
        let row = found(&mut tx, actor, id).await?;
        let changed = details(&mut tx, row).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// Removes a deployment with everything that belongs to it.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`; `dependent_exists_error` while an execution runs, and, unless `force`,
    /// while an instance holds something.
    pub async fn delete(&self, actor: &Actor, id: &str, force: bool) -> Result<(), AppError> {
        actor.require(Permission::DeploymentDelete)?;
        let mut tx = self.0.store().begin().await?;
        let row = own(&mut tx, actor, id).await?;
        if !rows::lock(&mut tx, row.key).await? {
            return Err(AppError::not_found("Deployment", id));
        }
        let running = executions::unfinished_of(&mut tx, row.key).await?;
        if let Some(running) = running.first() {
            let message = format!(
                "Can't delete deployment {id} - There are running executions for this deployment: {} ({})",
                running.id, running.status
            );
            return Err(AppError::new(Code::DependentExists, message));
        }
        let instances = node_instances::of_deployment(&mut tx, row.key).await?;
        let live: Vec<&str> = instances
            .iter()
            .filter(|instance| !DEAD.contains(&instance.state.as_str()))
            .map(|instance| instance.id.as_str())
            .take(NAMES_SHOWN)
            .collect();
        if !force && !live.is_empty() {
            let message = format!(
                "Can't delete deployment {id} - There are live nodes for this deployment. Live nodes ids: {}",
                live.join(",")
            );
            return Err(AppError::new(Code::DependentExists, message));
        }
        rows::delete(&mut tx, row.key).await?;
        tx.commit().await?;
        info!(deployment = id, tenant = actor.tenant_name, by = actor.login.username, "deployment removed");
        let path: PathBuf = [DIRECTORIES, &row.tenant, id].iter().collect();
        if tokio::fs::try_exists(self.0.resources_root().join(&path)).await.unwrap_or(true)
            && let Err(error) = self.0.ports().content.remove(&path).await
        {
            warn!(path = %path.display(), error = &error as &dyn std::error::Error, "files of a deployment stay");
        }
        Ok(())
    }
}

/// The deployment that the caller sees under an id.
pub(crate) async fn found(connection: &mut PgConnection, actor: &Actor, id: &str) -> Result<Deployment, AppError> {
    let row = rows::find(connection, &actor.readable(), actor.tenant, id).await?;
    row.ok_or_else(|| AppError::not_found("Deployment", id))
}

async fn own(tx: &mut Tx, actor: &Actor, id: &str) -> Result<Deployment, AppError> {
    let row = found(tx, actor, id).await?;
    if row.tenant_key == actor.tenant {
        return Ok(row);
    }
    Err(AppError::new(Code::IllegalAction, format!("Deployment `{id}` belongs to the tenant `{}`", row.tenant)))
}

async fn details(connection: &mut PgConnection, row: Deployment) -> Result<DeploymentDetails, AppError> {
    let labels = rows::labels_of(connection, &[row.key]).await?;
    let installed = installed(connection, row.key).await?;
    Ok(DeploymentDetails { row, labels, installed })
}

fn plan(blueprint: &Blueprint, visibility: Visibility) -> Result<Plan, AppError> {
    let id = &blueprint.id;
    let Some(plan) = blueprint.plan.as_ref().filter(|_| blueprint.state == UPLOADED) else {
        let message = format!("Blueprint `{id}` is not uploaded: its state is {}", blueprint.state);
        return Err(AppError::new(Code::IllegalAction, message));
    };
    check_shown(blueprint, visibility)?;
    let read = serde_json::from_value(plan.0.clone());
    read.map_err(|error| AppError::caused(Code::Internal, format!("the plan of `{id}` cannot be read"), error))
}

/// Who sees a deployment sees its blueprint.
fn check_shown(blueprint: &Blueprint, visibility: Visibility) -> Result<(), AppError> {
    if check_wider(visibility.as_str(), blueprint.visibility.parse().unwrap_or_default()).is_ok() {
        return Ok(());
    }
    let (shown, id) = (&blueprint.visibility, &blueprint.id);
    let message = format!("A deployment of the {shown} blueprint `{id}` cannot be {visibility}");
    Err(AppError::new(Code::IllegalAction, message))
}

fn taken(actor: &Actor, id: &str, error: StoreError) -> AppError {
    match ID_TAKEN.iter().any(|constraint| error.is_conflict_on(constraint)) {
        true => AppError::taken("Deployment", id, &actor.tenant_name),
        false => error.into(),
    }
}

async fn prepare(plan: &Plan, new: &CreateDeployment) -> Result<DeploymentPlan, AppError> {
    let (plan, inputs) = (plan.clone(), new.inputs.clone());
    let options = PrepareOptions { runtime_only: new.runtime_only_evaluation, ..PrepareOptions::default() };
    blocking(move || plan.prepare_deployment(&inputs, &options, &mut suffix)).await?.map_err(refused)
}

fn suffix() -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    (0..SUFFIX_CHARACTERS).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}

/// In the original's words where clients show them.
fn refused(error: PrepareError) -> AppError {
    let message = match &error {
        PrepareError::MissingInputs { missing, .. } => {
            format!("Cannot create deployment - missing inputs: {}", missing.join(", "))
        }
        PrepareError::UnknownInputs { unknown, .. } => {
            format!("Cannot create deployment - unknown inputs: {}", unknown.join(", "))
        }
        other => other.to_string(),
    };
    let code = match (&error, error.class()) {
        (PrepareError::MissingInputs { .. }, _) => Code::MissingDeploymentInput,
        (PrepareError::UnknownInputs { .. }, _) => Code::UnknownDeploymentInput,
        (PrepareError::InputConstraint { .. }, _) => Code::Constraint,
        (PrepareError::InputType { .. }, _) | (_, ErrorClass::InputEvaluation) => Code::DeploymentInputEvaluation,
        _ => Code::DeploymentCreation,
    };
    AppError::caused(code, message, error)
}

/// Everything that one deployment is made of.
struct Write<'a> {
    actor: &'a Actor,
    id: &'a str,
    blueprint: &'a Blueprint,
    new: &'a CreateDeployment,
    prepared: DeploymentPlan,
    labels: &'a [NewLabel],
}

enum WriteError {
    /// Another deployment of the tenant has an instance of the same id.
    InstanceTaken,
    Other(AppError),
}

impl<E: Into<AppError>> From<E> for WriteError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

impl Write<'_> {
    async fn commit(self, app: &App) -> Result<DeploymentDetails, WriteError> {
        let (actor, id) = (self.actor, self.id);
        let mut tx = app.store().begin().await?;
        let key = match rows::insert(&mut tx, self.row()?).await {
            Err(StoreError::Reference { .. }) => {
                return Err(AppError::not_found("Blueprint", &self.new.blueprint_id).into());
            }
            other => other.map_err(|error| taken(actor, id, error))?,
        };
        rows::add_labels(&mut tx, key, actor.login.user, self.labels).await?;
        let execution = self.execution(&mut tx, key).await?;
        rows::set_create_execution(&mut tx, key, execution).await?;
        let nodes = self.prepared.plan.nodes.iter().map(node).collect::<Result<Vec<_>, _>>()?;
        let keys: HashMap<String, i64> = nodes::insert(&mut tx, key, &nodes).await?.into_iter().collect();
        let mut instances = Vec::with_capacity(self.prepared.node_instances.len());
        for instance in &self.prepared.node_instances {
            instances.push(NewNodeInstance {
                id: instance.id.clone(),
                node_key: *keys.get(&instance.node_id).ok_or_else(|| unwritable("an instance of no node"))?,
                index: i32::try_from(instance.index).map_err(|_| unwritable("too many instances"))?,
                host_id: instance.host_id.clone(),
                relationships: document(&instance.relationships)?,
                scaling_groups: document(&instance.scaling_groups)?,
            });
        }
        match node_instances::insert(&mut tx, actor.tenant, key, &instances).await {
            Err(error) if error.is_conflict_on(node_instances::ID_TAKEN) => return Err(WriteError::InstanceTaken),
            other => other?,
        }
        let news = [
            event("workflow_started", format!("Starting '{CREATE_WORKFLOW}' workflow execution")),
            log("Setting deployment attributes".to_owned()),
            log(format!("Creating {} nodes", nodes.len())),
            log(format!("Creating {} node-instances", instances.len())),
            log("Creating deployment work directory".to_owned()),
            event("workflow_succeeded", format!("'{CREATE_WORKFLOW}' workflow execution succeeded")),
        ];
        events::insert(&mut tx, execution, &news).await?;
        executions::begin(&mut tx, execution, &["pending"]).await?;
        executions::finish(&mut tx, execution, "terminated", "").await?;
        let row = rows::get(&mut tx, key).await?.ok_or_else(|| AppError::not_found("Deployment", id))?;
        let details = details(&mut tx, row).await?;
        tx.commit().await?;
        Ok(details)
    }

    fn row(&self) -> Result<NewDeployment<'_>, AppError> {
        let plan = &self.prepared.plan;
        Ok(NewDeployment {
            id: self.id,
            tenant_key: self.actor.tenant,
            creator_key: self.actor.login.user,
            visibility: self.new.visibility.as_str(),
            display_name: self.new.display_name.as_deref().unwrap_or(self.id),
            blueprint_key: self.blueprint.key,
            description: plan.description.as_deref(),
            inputs: document(&plan.inputs)?,
            outputs: document(&plan.outputs)?,
            capabilities: document(&plan.capabilities)?,
            workflows: document(&plan.workflows)?,
            groups: document(&plan.groups)?,
            scaling_groups: document(&plan.scaling_groups)?,
            policy_types: document(&plan.policy_types)?,
            policy_triggers: document(&plan.policy_triggers)?,
            resource_tags: document(&plan.resource_tags)?,
            runtime_only_evaluation: self.new.runtime_only_evaluation,
        })
    }

    async fn execution(&self, tx: &mut Tx, key: i64) -> Result<i64, StoreError> {
        let name = self.new.display_name.as_deref().unwrap_or(self.id);
        let mut parameters = json!({ "inputs": self.new.inputs, "display_name": name });
        if !self.new.labels.is_null() {
            parameters["labels"] = self.new.labels.clone();
        }
        let execution = NewExecution {
            id: &Uuid::new_v4().to_string(),
            tenant_key: self.actor.tenant,
            creator_key: self.actor.login.user,
            visibility: self.new.visibility.as_str(),
            deployment_key: Some(key),
            workflow_id: CREATE_WORKFLOW,
            parameters: parameters.into(),
            status: "pending",
            is_system_workflow: false,
            is_dry_run: false,
            allow_custom_parameters: true,
            wait_after_fail_seconds: 0,
        };
        executions::insert(tx, execution).await
    }
}

fn node(node: &PlanNode) -> Result<NewNode, AppError> {
    let scalable = &node.capabilities.scalable.properties;
    let count = |name: &str| -> Result<i32, AppError> {
        let number = scalable.get(name).and_then(Value::as_i64).and_then(|number| i32::try_from(number).ok());
        number.ok_or_else(|| {
            let message = format!("`{name}` of the node `{}` is no number", node.name);
            AppError::new(Code::DeploymentCreation, message)
        })
    };
    Ok(NewNode {
        id: node.name.clone(),
        host_id: node.host_id.clone(),
        kind: node.type_name.clone(),
        type_hierarchy: document(&node.type_hierarchy)?,
        properties: document(&node.properties)?,
        operations: document(&node.operations)?,
        relationships: document(&node.relationships)?,
        plugins: document(&node.plugins)?,
        plugins_to_install: document(node.plugins_to_install.as_deref().unwrap_or_default())?,
        number_of_instances: count("current_instances")?,
        planned_number_of_instances: count("planned_instances")?,
        deploy_number_of_instances: count("default_instances")?,
        min_number_of_instances: count("min_instances")?,
        max_number_of_instances: count("max_instances")?,
    })
}

fn document(value: &(impl Serialize + ?Sized)) -> Result<Document, AppError> {
    Ok(Document(
        serde_json::to_value(value)
            .map_err(|error| AppError::caused(Code::Internal, "a part of the plan cannot be written", error))?,
    ))
}

fn unwritable(why: &str) -> AppError {
    AppError::new(Code::Internal, format!("the plan cannot be written: {why}"))
}
