//! Users.

use std::collections::HashMap;

use quorate_store::users::{self as rows, FIRST_ADMIN, NAME_TAKEN, NewUser, User};
use quorate_store::{Reader, StoreError, Tx, tenants};
use time::OffsetDateTime;
use tracing::info;

use crate::auth::FAILED_LOGINS_MAX;
use crate::{App, AppError, Code, ListQuery, Listing, Login, Permission, SystemRole, names};

/// Characters of a password, at least.
const PASSWORD_CHARACTERS_MIN: usize = 5;
/// Characters of a password, at most.
const PASSWORD_CHARACTERS_MAX: usize = 256;

/// Use cases of users.
pub struct Users<'a>(pub(crate) &'a App);

/// A user as others see it.
#[derive(Debug, Clone)]
pub struct UserDetails {
    /// The name.
    pub username: String,
    /// In the cluster.
    pub role: String,
    /// How many tenants the user belongs to.
    pub tenants: i64,
    /// Which, if asked for: name and role.
    pub memberships: Option<Vec<(String, String)>>,
    /// Whether the user may log in.
    pub active: bool,
    /// Whether too many wrong passwords came.
    pub is_locked: bool,
    /// Kept for clients.
    pub show_getting_started: bool,
    /// When the user was made.
    pub created_at: OffsetDateTime,
    /// The first time the password was right.
    pub first_login_at: Option<OffsetDateTime>,
    /// The last time the password was right.
    pub last_login_at: Option<OffsetDateTime>,
}

/// What to change about a user.
pub enum Change {
    /// The password.
    Password(String),
    /// The role in the cluster.
    Role(SystemRole),
    /// A flag for clients.
    ShowGettingStarted(bool),
}

impl Users<'_> {
    /// Everybody.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for an unknown field.
    pub async fn list(
        &self,
        login: &Login,
        query: &ListQuery,
        with_tenants: bool,
    ) -> Result<Listing<UserDetails>, AppError> {
        login.require(Permission::UserList)?;
        let mut reader = self.0.store().read().await?;
        let listing = rows::list(&mut reader, query).await?;
        let mut memberships = memberships(&mut reader, &listing.items, with_tenants).await?;
        Ok(listing.map(|row| details(memberships.remove(&row.key), row)))
    }

    /// Somebody.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`.
    pub async fn get(&self, login: &Login, username: &str, with_tenants: bool) -> Result<UserDetails, AppError> {
        login.require(Permission::UserGet)?;
        self.read(username, with_tenants).await
    }

    /// The caller.
    ///
    /// # Errors
    /// `not_found_error` when the user has just been removed.
    pub async fn get_self(&self, login: &Login, with_tenants: bool) -> Result<UserDetails, AppError> {
        login.require(Permission::UserGetSelf)?;
        self.read(&login.username, with_tenants).await
    }

    /// Makes a user.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for the name or the password, `conflict_error`.
    pub async fn create(
        &self,
        login: &Login,
        username: &str,
        password: &str,
        role: SystemRole,
    ) -> Result<UserDetails, AppError> {
        login.require(Permission::UserCreate)?;
        names::check("username", username)?;
        check_password(password)?;
        let password_hash = self.0.0.passwords.hash(password).await?;
        let mut tx = self.0.store().begin().await?;
        let new = NewUser { key: None, username, password_hash: &password_hash, role: role.as_str() };
        match rows::insert(&mut tx, new).await {
            Err(error) if error.is_conflict_on(NAME_TAKEN) => {
                return Err(AppError::new(Code::Conflict, format!("<User username=`{username}`> already exists")));
            }
            other => other?,
        };
        info!(username, by = login.username, "user made");
        saved(tx, username).await
    }

    /// Changes one thing. Own passwords and own flags need no permission.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, `bad_parameters_error` for the password, `conflict_error` when it would
    /// leave no administrator.
    pub async fn change(&self, login: &Login, username: &str, change: Change) -> Result<UserDetails, AppError> {
        let is_own = login.username == username;
        if !is_own || matches!(change, Change::Role(_)) {
            login.require(Permission::UserUpdate)?;
        }
        let password_hash = match &change {
            Change::Password(password) => {
                check_password(password)?;
                Some(self.0.0.passwords.hash(password).await?)
            }
            Change::Role(_) | Change::ShowGettingStarted(_) => None,
        };
        let mut tx = self.0.store().begin().await?;
        let user = found(&mut tx, username).await?;
        match (change, password_hash) {
            (Change::Role(role), _) => {
                if role != SystemRole::Admin {
                    keep_an_admin(&mut tx, &user).await?;
                }
                rows::set_role(&mut tx, user.key, role.as_str()).await?;
            }
            (Change::ShowGettingStarted(show), _) => rows::set_show_getting_started(&mut tx, user.key, show).await?,
            (Change::Password(_), Some(hash)) => rows::set_password(&mut tx, user.key, &hash).await?,
            (Change::Password(_), None) => return Err(AppError::new(Code::Internal, "the password was not hashed")),
        }
        info!(username, by = login.username, "user changed");
        saved(tx, username).await
    }

    /// Lets a user log in, or no longer.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, `conflict_error` when it is so already or would leave no administrator.
    pub async fn set_active(&self, login: &Login, username: &str, active: bool) -> Result<UserDetails, AppError> {
        login.require(Permission::UserSetActivated)?;
        let mut tx = self.0.store().begin().await?;
        let user = found(&mut tx, username).await?;
        if user.active == active {
            let state = if active { "active" } else { "inactive" };
            return Err(AppError::new(Code::Conflict, format!("User `{username}` is already {state}")));
        }
        if !active {
            keep_an_admin(&mut tx, &user).await?;
        }
        rows::set_active(&mut tx, user.key, active).await?;
        info!(username, active, by = login.username, "user changed");
        saved(tx, username).await
    }

    /// Ends a lock.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, `conflict_error` when there is none.
    pub async fn unlock(&self, login: &Login, username: &str) -> Result<UserDetails, AppError> {
        login.require(Permission::UserUnlock)?;
        let mut tx = self.0.store().begin().await?;
        let user = found(&mut tx, username).await?;
        if user.failed_logins <= FAILED_LOGINS_MAX {
            return Err(AppError::new(Code::Conflict, format!("User `{username}` is not locked")));
        }
        rows::unlock(&mut tx, user.key).await?;
        saved(tx, username).await
    }

    /// Removes a user who owns nothing.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, `conflict_error` for the caller, the last administrator, the first one,
    /// and owners of resources.
    pub async fn delete(&self, login: &Login, username: &str) -> Result<(), AppError> {
        login.require(Permission::UserDelete)?;
        let mut tx = self.0.store().begin().await?;
        let user = found(&mut tx, username).await?;
        // The first administrator would come back with the password of the installation.
        if user.key == login.user || user.key == FIRST_ADMIN {
            return Err(AppError::new(Code::Conflict, format!("User `{username}` cannot be deleted")));
        }
        keep_an_admin(&mut tx, &user).await?;
        match rows::delete(&mut tx, user.key).await {
            Err(error @ StoreError::Reference { .. }) => {
                let message = format!("Cannot delete user `{username}`: it still owns resources");
                return Err(AppError::caused(Code::Conflict, message, error));
            }
            other => other?,
        }
        tx.commit().await?;
        info!(username, by = login.username, "user removed");
        Ok(())
    }

    async fn read(&self, username: &str, with_tenants: bool) -> Result<UserDetails, AppError> {
        let mut reader = self.0.store().read().await?;
        let row = rows::find(&mut reader, username).await?.ok_or_else(|| AppError::not_found("User", username))?;
        let mut memberships = memberships(&mut reader, std::slice::from_ref(&row), with_tenants).await?;
        Ok(details(memberships.remove(&row.key), row))
    }
}

fn check_password(password: &str) -> Result<(), AppError> {
    let characters = password.chars().count();
    if (PASSWORD_CHARACTERS_MIN..=PASSWORD_CHARACTERS_MAX).contains(&characters) {
        return Ok(());
    }
    Err(AppError::bad(format!("A password has {PASSWORD_CHARACTERS_MIN} to {PASSWORD_CHARACTERS_MAX} characters")))
}

/// Refuses when `user` is the last administrator who may log in.
async fn keep_an_admin(tx: &mut Tx, user: &User) -> Result<(), AppError> {
    let counts = user.active && user.role == SystemRole::Admin.as_str();
    if counts && rows::count_admins(tx).await? <= 1 {
        let message = format!("User `{}` is the last active administrator", user.username);
        return Err(AppError::new(Code::Conflict, message));
    }
    Ok(())
}

async fn found(tx: &mut Tx, username: &str) -> Result<User, AppError> {
    rows::find(tx, username).await?.ok_or_else(|| AppError::not_found("User", username))
}

async fn saved(mut tx: Tx, username: &str) -> Result<UserDetails, AppError> {
    let row = found(&mut tx, username).await?;
    tx.commit().await?;
    Ok(details(None, row))
}

async fn memberships(
    reader: &mut Reader,
    users: &[User],
    wanted: bool,
) -> Result<HashMap<i64, Vec<(String, String)>>, AppError> {
    let mut by_user = HashMap::new();
    if wanted {
        let keys: Vec<i64> = users.iter().map(|row| row.key).collect();
        by_user.extend(keys.iter().map(|key| (*key, Vec::new())));
        for row in tenants::of_users(reader, &keys).await? {
            by_user.entry(row.user_key).or_default().push((row.tenant, row.role));
        }
    }
    Ok(by_user)
}

fn details(memberships: Option<Vec<(String, String)>>, row: User) -> UserDetails {
    UserDetails {
        username: row.username,
        role: row.role,
        tenants: row.tenants,
        memberships,
        active: row.active,
        is_locked: row.failed_logins > FAILED_LOGINS_MAX,
        show_getting_started: row.show_getting_started,
        created_at: row.created_at,
        first_login_at: row.first_login_at,
        last_login_at: row.last_login_at,
    }
}
