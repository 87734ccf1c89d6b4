//! Blueprints that are there; how they come is in [`crate::uploads`].

use std::collections::HashMap;
use std::path::PathBuf;

use quorate_store::blueprints::{self as rows, Blueprint, ID_TAKEN};
use quorate_store::executions::{self, Execution};
use quorate_store::{Label, PgConnection, StoreError, Tx};
use serde_json::Value;
use tracing::{info, warn};

use crate::archives::Format;
use crate::files::OpenedFile;
use crate::{Actor, App, AppError, Code, ListQuery, Listing, Permission, Visibility, labels, uploads};

/// Directory of unpacked blueprints: tenant, id.
pub(crate) const TREES: &str = "blueprints";
/// Directory of what was uploaded: tenant, id, archive.
pub(crate) const ARCHIVES: &str = "uploaded-blueprints";
/// The state of a blueprint that can be used.
pub(crate) const UPLOADED: &str = "uploaded";

/// Use cases of blueprints.
pub struct Blueprints<'a>(pub(crate) &'a App);

/// A blueprint with what belongs to it.
pub struct BlueprintDetails {
    /// The row.
    pub row: Blueprint,
    /// The execution that unpacks and compiles it.
    pub upload_execution: Option<Execution>,
    /// Its labels.
    pub labels: Vec<Label>,
}

impl Blueprints<'_> {
    /// The blueprints that the caller may see. Hidden ones only if the query asks for them.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for an unknown field.
    pub async fn list(
        &self,
        actor: &Actor,
        mut query: ListQuery,
        all_tenants: bool,
        with_plan: bool,
    ) -> Result<Listing<BlueprintDetails>, AppError> {
        actor.require(Permission::BlueprintList)?;
        if !query.filters.iter().any(|(field, _)| field == "is_hidden") {
            query.filters.push(("is_hidden".to_owned(), vec!["false".to_owned()]));
        }
        let scope = if all_tenants { actor.readable_everywhere(Permission::BlueprintList) } else { actor.readable() };
        let mut reader = self.0.store().read().await?;
        let listing = rows::list(&mut reader, &query, &scope, with_plan).await?;
        Ok(Listing { total: listing.total, items: details(&mut reader, listing.items).await? })
    }

    /// One blueprint.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`.
    pub async fn get(&self, actor: &Actor, id: &str) -> Result<BlueprintDetails, AppError> {
        actor.require(Permission::BlueprintGet)?;
        let mut reader = self.0.store().read().await?;
        let row = found(&mut reader, actor, id).await?;
        one(&mut reader, row).await
    }

    /// What was uploaded.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`.
    pub async fn archive(&self, actor: &Actor, id: &str) -> Result<OpenedFile, AppError> {
        actor.require(Permission::BlueprintDownload)?;
        let row = found(&mut *self.0.store().read().await?, actor, id).await?;
        match self.0.open_archive(&row).await? {
            Some(file) => Ok(file),
            None => Err(AppError::not_found("Archive of blueprint", id)),
        }
    }

    /// Replaces the labels.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, `bad_parameters_error`; `conflict_error` before it is uploaded.
    pub async fn set_labels(&self, actor: &Actor, id: &str, new: &Value) -> Result<BlueprintDetails, AppError> {
        actor.require(Permission::BlueprintUpload)?;
        let new = labels::parse(new)?;
        let mut tx = self.0.store().begin().await?;
        let row = own(&mut tx, actor, id).await?;
        if row.state != UPLOADED {
            return Err(AppError::new(Code::Conflict, format!("Blueprint `{id}` is not uploaded: {}", row.state)));
        }
        rows::clear_labels(&mut tx, row.key).await?;
        rows::add_labels(&mut tx, row.key, actor.login.user, &new).await?;
        let changed = one(&mut tx, row).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// Shows it to more people.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`; `illegal_action_error` for fewer people; `conflict_error` when another
    /// tenant has one of the same id.
    pub async fn set_visibility(
        &self,
        actor: &Actor,
        id: &str,
        visibility: Visibility,
    ) -> Result<BlueprintDetails, AppError> {
        actor.require(Permission::ResourceSetVisibility)?;
        let mut tx = self.0.store().begin().await?;
        let row = own(&mut tx, actor, id).await?;
        check_wider(&row.visibility, visibility)?;
        if visibility == Visibility::Global {
            actor.require(Permission::ResourceSetGlobal)?;
            let other = rows::holder(&mut tx, 0, id, true).await?;
            if other.is_some_and(|other| other.key != row.key) {
                return Err(AppError::taken("Blueprint", id, &actor.tenant_name));
            }
        }
        rows::set_visibility(&mut tx, row.key, visibility.as_str()).await.map_err(|error| taken(actor, id, error))?;
        let row = found(&mut tx, actor, id).await?;
        let changed = one(&mut tx, row).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// Removes a blueprint and its files.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`; `dependent_exists_error` while deployments use it;
    /// `illegal_action_error` while it is being uploaded or when it belongs to another tenant.
    pub async fn delete(&self, actor: &Actor, id: &str) -> Result<(), AppError> {
        actor.require(Permission::BlueprintDelete)?;
        let _name = self.0.lock_blueprint(actor, id)?;
        let mut tx = self.0.store().begin().await?;
        let row = own(&mut tx, actor, id).await?;
        let upload = match row.upload_execution_key {
            Some(key) => executions::get(&mut tx, key).await?,
            None => None,
        };
        if upload.is_some_and(|upload| !uploads::is_ended(&upload)) {
            return Err(AppError::new(Code::IllegalAction, format!("Blueprint `{id}` is still being uploaded")));
        }
        let users = rows::deployments_of(&mut tx, row.key).await?;
        let in_use = |users: &[String]| {
            let message = format!(
                "Can't delete blueprint {id} - There exist deployments for this blueprint; Deployments ids: {}",
                users.join(",")
            );
            AppError::new(Code::DependentExists, message)
        };
        if !users.is_empty() {
            return Err(in_use(&users));
        }
        match rows::delete(&mut tx, row.key).await {
            Err(StoreError::Reference { .. }) => return Err(in_use(&[])),
            other => other?,
        }
        tx.commit().await?;
        info!(blueprint = id, tenant = actor.tenant_name, by = actor.login.username, "blueprint removed");
        // What stays after a failure has no name any more and is replaced by the next upload of this id.
        for directory in [TREES, ARCHIVES] {
            let path: PathBuf = [directory, &row.tenant, id].iter().collect();
            if let Err(error) = self.0.ports().content.remove(&path).await {
                warn!(path = %path.display(), error = &error as &dyn std::error::Error, "files of a blueprint stay");
            }
        }
        Ok(())
    }
}

impl App {
    /// Opens what was uploaded, whatever its format.
    pub(crate) async fn open_archive(&self, row: &Blueprint) -> Result<Option<OpenedFile>, AppError> {
        for format in Format::ALL {
            let path = format!("{ARCHIVES}/{}/{}/{}.{}", row.tenant, row.id, row.id, format.extension());
            if let Some(file) = self.open_content(&path).await? {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }
}

/// Whether a tenant's blueprint is seen in every tenant.
pub(crate) async fn is_global(connection: &mut PgConnection, tenant: i64, id: &str) -> Result<bool, AppError> {
    let row = rows::holder(connection, tenant, id, false).await?;
    Ok(row.is_some_and(|row| row.tenant_key == tenant && row.visibility == Visibility::Global.as_str()))
}

/// The blueprint that the caller sees under an id.
pub(crate) async fn found(connection: &mut PgConnection, actor: &Actor, id: &str) -> Result<Blueprint, AppError> {
    let row = rows::find(connection, &actor.readable(), actor.tenant, id).await?;
    row.ok_or_else(|| AppError::not_found("Blueprint", id))
}

/// The same, of the caller's tenant: what may be changed.
async fn own(tx: &mut Tx, actor: &Actor, id: &str) -> Result<Blueprint, AppError> {
    let row = found(tx, actor, id).await?;
    if row.tenant_key == actor.tenant {
        return Ok(row);
    }
    Err(AppError::new(Code::IllegalAction, format!("Blueprint `{id}` belongs to the tenant `{}`", row.tenant)))
}

/// Whom a resource is shown to may grow and not shrink.
pub(crate) fn check_wider(now: &str, new: Visibility) -> Result<(), AppError> {
    if now.parse().is_ok_and(|now: Visibility| now <= new) {
        return Ok(());
    }
    Err(AppError::new(Code::IllegalAction, format!("The visibility cannot be narrowed from {now} to {new}")))
}

pub(crate) fn taken(actor: &Actor, id: &str, error: StoreError) -> AppError {
    match ID_TAKEN.iter().any(|constraint| error.is_conflict_on(constraint)) {
        true => AppError::taken("Blueprint", id, &actor.tenant_name),
        false => error.into(),
    }
}

/// Adds what belongs to a row.
pub(crate) async fn one(connection: &mut PgConnection, row: Blueprint) -> Result<BlueprintDetails, AppError> {
    let mut all = details(connection, vec![row]).await?;
    Ok(all.remove(0))
}

async fn details(connection: &mut PgConnection, found: Vec<Blueprint>) -> Result<Vec<BlueprintDetails>, AppError> {
    let uploads: Vec<i64> = found.iter().filter_map(|row| row.upload_execution_key).collect();
    let uploads = executions::get_many(connection, &uploads).await?;
    let mut uploads: HashMap<i64, Execution> = uploads.into_iter().map(|row| (row.key, row)).collect();
    let keys: Vec<i64> = found.iter().map(|row| row.key).collect();
    let mut labels: HashMap<i64, Vec<Label>> = HashMap::new();
    for label in rows::labels_of(connection, &keys).await? {
        labels.entry(label.owner_key).or_default().push(label);
    }
    let with = |row: Blueprint| BlueprintDetails {
        upload_execution: row.upload_execution_key.and_then(|key| uploads.remove(&key)),
        labels: labels.remove(&row.key).unwrap_or_default(),
        row,
    };
    Ok(found.into_iter().map(with).collect())
}
