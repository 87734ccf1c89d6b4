//! Who calls, and where.

use quorate_store::users::FIRST_ADMIN;
use quorate_store::{Scope, tenants};

use crate::{App, AppError, Code, Permission, SystemRole, TenantRole};

/// How somebody logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// Name and password.
    Password,
    /// A token of a user.
    Token,
    /// The token of an execution, which acts for its creator in its tenant.
    Execution {
        /// Its id.
        execution: String,
        /// Its tenant's name.
        tenant: String,
    },
}

/// Somebody who has proved who they are.
#[derive(Debug, Clone)]
pub struct Login {
    /// Key of the user.
    pub user: i64,
    /// Name of the user.
    pub username: String,
    /// In the cluster.
    pub role: SystemRole,
    /// How.
    pub via: Via,
    /// The tenants the user belongs to.
    pub(crate) memberships: Vec<Membership>,
}

/// A role in a tenant.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    pub tenant: i64,
    pub name: String,
    pub role: TenantRole,
}

impl Login {
    /// Whether the user administers the cluster.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.role == SystemRole::Admin || self.user == FIRST_ADMIN
    }

    /// Checks a permission that belongs to no tenant.
    ///
    /// # Errors
    /// `forbidden_error`.
    pub fn require(&self, permission: Permission) -> Result<(), AppError> {
        if self.is_admin() || permission.of_system(self.role) {
            return Ok(());
        }
        let message = format!("User `{}` is not permitted to perform the action {}", self.username, permission.name());
        Err(AppError::new(Code::Forbidden, message))
    }

    /// Whether the user may do this in a tenant.
    pub(crate) fn may_in(&self, tenant: i64, permission: Permission) -> bool {
        let mut here = self.memberships.iter().filter(|membership| membership.tenant == tenant);
        self.is_admin() || permission.of_system(self.role) || here.any(|m| permission.of_tenant(m.role))
    }
}

/// Somebody in a tenant.
#[derive(Debug, Clone)]
pub struct Actor {
    /// Who.
    pub login: Login,
    /// Key of the tenant.
    pub tenant: i64,
    /// Name of the tenant.
    pub tenant_name: String,
}

impl Actor {
    /// Checks a permission in the actor's tenant.
    ///
    /// # Errors
    /// `forbidden_error`.
    pub fn require(&self, permission: Permission) -> Result<(), AppError> {
        if self.login.may_in(self.tenant, permission) {
            return Ok(());
        }
        let message = format!(
            "User `{}` is not permitted to perform the action {} in the tenant `{}`",
            self.login.username,
            permission.name(),
            self.tenant_name
        );
        Err(AppError::new(Code::Forbidden, message))
    }

    /// The rows the actor may read in its tenant, global ones of other tenants among them.
    #[must_use]
    pub fn readable(&self) -> Scope {
        Scope { tenants: Some(vec![self.tenant]), with_global: true, ..self.private() }
    }

    /// The rows the actor may read in all tenants where it has `permission`: `_all_tenants`.
    #[must_use]
    pub fn readable_everywhere(&self, permission: Permission) -> Scope {
        let permitted = || {
            let mine = self.login.memberships.iter().filter(|membership| permission.of_tenant(membership.role));
            mine.map(|membership| membership.tenant).collect()
        };
        let tenants = (!self.login.is_admin()).then(permitted);
        Scope { tenants, with_global: true, ..self.private() }
    }

    /// The rows the actor may change: its tenant's. The permission is checked apart.
    #[must_use]
    pub fn writable(&self) -> Scope {
        Scope { tenants: Some(vec![self.tenant]), with_global: false, ..self.private() }
    }

    fn private(&self) -> Scope {
        let managed = || {
            let mine = self.login.memberships.iter().filter(|membership| membership.role == TenantRole::Manager);
            mine.map(|membership| membership.tenant).collect()
        };
        let sees_private_in = (!self.login.is_admin()).then(managed);
        Scope { user: self.login.user, tenants: Some(vec![]), sees_private_in, with_global: false }
    }
}

impl App {
    /// Puts somebody into the tenant that the request names.
    ///
    /// # Errors
    /// `forbidden_error` without a tenant, for an unknown one, and for one that the user does not belong to: the texts
    /// of the last two do not differ, so that nobody learns which tenants there are.
    pub async fn actor(&self, login: Login, tenant: Option<&str>) -> Result<Actor, AppError> {
        // An execution acts in its own tenant, whatever its process says.
        let named = match &login.via {
            Via::Execution { tenant, .. } => Some(tenant.clone()),
            Via::Password | Via::Token => tenant.map(str::to_owned),
        };
        let refuse = |why: String| Err(AppError::new(Code::Forbidden, format!("Authorization failed: {why}")));
        let Some(name) = named.filter(|name| !name.is_empty()) else {
            return refuse("tenant not provided".to_owned());
        };
        if let Some(mine) = login.memberships.iter().find(|membership| membership.name == name) {
            let tenant = mine.tenant;
            return Ok(Actor { login, tenant, tenant_name: name });
        }
        if login.is_admin() {
            let found = tenants::find(&mut *self.store().read().await?, &name).await?;
            if let Some(found) = found {
                return Ok(Actor { login, tenant: found.key, tenant_name: found.name });
            }
        }
        refuse(format!("Tried to authenticate with invalid tenant name: {name}"))
    }
}
