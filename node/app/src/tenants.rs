//! Tenants and who belongs to them.

use std::collections::HashMap;

use quorate_store::tenants::{self as rows, MEMBER_ALREADY, Membership, NAME_TAKEN, Tenant};
use quorate_store::{Reader, StoreError, Tx, users};
use tracing::info;

use crate::bootstrap::BROKER_PASSWORD_CHARACTERS;
use crate::{App, AppError, Code, DEFAULT_TENANT, ListQuery, Listing, Login, Permission, TenantRole, names};

/// Names that the REST paths use otherwise.
const RESERVED: [&str; 2] = ["users", "user-groups"];

/// Use cases of tenants.
pub struct Tenants<'a>(pub(crate) &'a App);

/// A tenant as somebody sees it.
pub struct TenantDetails {
    /// Its name.
    pub name: String,
    /// How many users belong to it.
    pub users: i64,
    /// Who they are, if asked for: name and role.
    pub members: Option<Vec<(String, String)>>,
    /// For those who may log in to the broker.
    pub broker: Option<BrokerAccount>,
}

/// How a tenant's workers log in to the broker.
pub struct BrokerAccount {
    /// Name of the virtual host.
    pub vhost: String,
    /// Name of the user.
    pub username: String,
    /// Password.
    pub password: String,
}

impl Tenants<'_> {
    /// The tenants that the caller may see; `with_members` needs a permission of its own.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for an unknown field.
    pub async fn list(
        &self,
        login: &Login,
        query: &ListQuery,
        with_members: bool,
    ) -> Result<Listing<TenantDetails>, AppError> {
        login.require(Permission::TenantList)?;
        if with_members {
            login.require(Permission::TenantListGetData)?;
        }
        let of_user = (!login.is_admin()).then_some(login.user);
        let mut reader = self.0.store().read().await?;
        let listing = rows::list(&mut reader, query, of_user).await?;
        let mut members = self.members(&mut reader, &listing.items, with_members).await?;
        Ok(listing.map(|row| details(login, members.remove(&row.key), row)))
    }

    /// One tenant.
    ///
    /// # Errors
    /// `not_found_error`, also for a tenant that the caller may not see.
    pub async fn get(&self, login: &Login, name: &str, with_members: bool) -> Result<TenantDetails, AppError> {
        let mut reader = self.0.store().read().await?;
        let row = self.visible(&mut reader, login, name).await?;
        if with_members {
            login.require(Permission::TenantListGetData)?;
        }
        let mut members = self.members(&mut reader, std::slice::from_ref(&row), with_members).await?;
        Ok(details(login, members.remove(&row.key), row))
    }

    /// Makes a tenant; `broker_password`: chosen by the caller, else random.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for the name, `conflict_error`.
    pub async fn create(
        &self,
        login: &Login,
        name: &str,
        broker_password: Option<String>,
    ) -> Result<TenantDetails, AppError> {
        login.require(Permission::TenantCreate)?;
        names::check("tenant_name", name)?;
        if RESERVED.contains(&name) {
            return Err(AppError::bad(format!("{name:?} is not allowed as a tenant name")));
        }
        let password = broker_password.unwrap_or_else(|| names::random(BROKER_PASSWORD_CHARACTERS));
        let mut tx = self.0.store().begin().await?;
        match rows::insert(&mut tx, name, &password).await {
            Err(error) if error.is_conflict_on(NAME_TAKEN) => {
                return Err(AppError::new(Code::Conflict, format!("<Tenant name=`{name}`> already exists")));
            }
            other => other?,
        };
        let row = found(&mut tx, name).await?;
        tx.commit().await?;
        info!(tenant = name, by = login.username, "tenant made");
        self.0.ports().broker.wake();
        Ok(details(login, None, row))
    }

    /// Removes a tenant that holds nothing.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, `conflict_error` while it holds resources or is the default tenant.
    pub async fn delete(&self, login: &Login, name: &str) -> Result<(), AppError> {
        login.require(Permission::TenantDelete)?;
        if name == DEFAULT_TENANT {
            return Err(AppError::new(Code::Conflict, format!("Can not delete the default tenant `{name}`")));
        }
        let mut tx = self.0.store().begin().await?;
        let row = found(&mut tx, name).await?;
        match rows::delete(&mut tx, row.key).await {
            Err(error @ StoreError::Reference { .. }) => {
                let message = format!("Cannot delete tenant `{name}`: it still holds resources");
                return Err(AppError::caused(Code::Conflict, message, error));
            }
            other => other?,
        }
        tx.commit().await?;
        info!(tenant = name, by = login.username, "tenant removed");
        self.0.ports().broker.wake();
        Ok(())
    }

    /// Gives a user a role in a tenant.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, `conflict_error` when the user has one already.
    pub async fn add_user(
        &self,
        login: &Login,
        tenant: &str,
        user: &str,
        role: TenantRole,
    ) -> Result<TenantDetails, AppError> {
        login.require(Permission::TenantAddUser)?;
        let (mut tx, tenant_key, user_key) = self.both(tenant, user).await?;
        match rows::add_user(&mut tx, tenant_key, user_key, role.as_str()).await {
            Err(error) if error.is_conflict_on(MEMBER_ALREADY) => {
                let message = format!("The user `{user}` is already assigned to the tenant `{tenant}`");
                return Err(AppError::new(Code::Conflict, message));
            }
            other => other?,
        }
        self.saved(tx, login, tenant).await
    }

    /// Changes a user's role in a tenant.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, also when the user is not in the tenant.
    pub async fn update_user(
        &self,
        login: &Login,
        tenant: &str,
        user: &str,
        role: TenantRole,
    ) -> Result<TenantDetails, AppError> {
        login.require(Permission::TenantUpdateUser)?;
        let (mut tx, tenant_key, user_key) = self.both(tenant, user).await?;
        if !rows::update_user(&mut tx, tenant_key, user_key, role.as_str()).await? {
            return Err(not_assigned(tenant, user));
        }
        self.saved(tx, login, tenant).await
    }

    /// Takes a user out of a tenant.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, also when the user is not in the tenant.
    pub async fn remove_user(&self, login: &Login, tenant: &str, user: &str) -> Result<(), AppError> {
        login.require(Permission::TenantRemoveUser)?;
        let (mut tx, tenant_key, user_key) = self.both(tenant, user).await?;
        if !rows::remove_user(&mut tx, tenant_key, user_key).await? {
            return Err(not_assigned(tenant, user));
        }
        Ok(tx.commit().await?)
    }

    async fn both(&self, tenant: &str, user: &str) -> Result<(Tx, i64, i64), AppError> {
        let mut tx = self.0.store().begin().await?;
        let tenant = found(&mut tx, tenant).await?;
        let user = users::find(&mut tx, user).await?.ok_or_else(|| AppError::not_found("User", user))?;
        Ok((tx, tenant.key, user.key))
    }

    async fn saved(&self, mut tx: Tx, login: &Login, tenant: &str) -> Result<TenantDetails, AppError> {
        let row = found(&mut tx, tenant).await?;
        tx.commit().await?;
        Ok(details(login, None, row))
    }

    async fn visible(&self, reader: &mut Reader, login: &Login, name: &str) -> Result<Tenant, AppError> {
        let row = rows::find(reader, name).await?;
        row.filter(|row| login.may_in(row.key, Permission::TenantGet))
            .ok_or_else(|| AppError::not_found("Tenant", name))
    }

    async fn members(
        &self,
        reader: &mut Reader,
        tenants: &[Tenant],
        wanted: bool,
    ) -> Result<HashMap<i64, Vec<(String, String)>>, AppError> {
        let mut by_tenant = HashMap::new();
        if wanted {
            let keys: Vec<i64> = tenants.iter().map(|row| row.key).collect();
            by_tenant.extend(keys.iter().map(|key| (*key, Vec::new())));
            for Membership { tenant_key, username, role, .. } in rows::members(reader, &keys).await? {
                by_tenant.entry(tenant_key).or_default().push((username, role));
            }
        }
        Ok(by_tenant)
    }
}

async fn found(tx: &mut Tx, name: &str) -> Result<Tenant, AppError> {
    rows::find(tx, name).await?.ok_or_else(|| AppError::not_found("Tenant", name))
}

fn not_assigned(tenant: &str, user: &str) -> AppError {
    AppError::new(Code::NotFound, format!("The user `{user}` was not found in the tenant `{tenant}`"))
}

fn details(login: &Login, members: Option<Vec<(String, String)>>, row: Tenant) -> TenantDetails {
    let may_see = login.may_in(row.key, Permission::TenantRabbitmqCredentials);
    let broker = may_see.then(|| BrokerAccount {
        vhost: format!("rabbitmq_vhost_{}", row.name),
        username: format!("rabbitmq_user_{}", row.name),
        password: row.rabbitmq_password,
    });
    TenantDetails { name: row.name, users: row.users, members, broker }
}
