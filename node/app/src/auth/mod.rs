//! Proving who one is: passwords, tokens of users, tokens of executions.

mod passwords;

use quorate_store::users::User;
use quorate_store::{tenants, tokens, users};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::warn;

pub use passwords::Passwords;

use crate::actor::{Membership, Via};
use crate::{App, AppError, Code, Login};

/// Wrong passwords in a row after which an account is locked.
pub const FAILED_LOGINS_MAX: i32 = 4;
/// How tokens of users begin.
pub(crate) const TOKEN_PREFIX: &str = "ctok";

/// What a request brought as proof.
pub enum Credentials {
    /// `Authorization: Basic`.
    Password {
        /// Name.
        username: String,
        /// Password.
        password: String,
    },
    /// `Authentication-Token`: of a user or of an execution.
    Token(String),
    /// `Execution-Token`.
    ExecutionToken(String),
}

impl App {
    /// Checks a proof.
    ///
    /// # Errors
    /// `unauthorized_error`; the text does not tell a wrong password from a locked account or an unknown user.
    pub async fn login(&self, credentials: Credentials) -> Result<Login, AppError> {
        match credentials {
            Credentials::Password { username, password } => self.login_with_password(&username, &password).await,
            Credentials::ExecutionToken(token) => match self.login_as_execution(&token).await? {
                Some(login) => Ok(login),
                None => Err(refused("invalid execution token")),
            },
            Credentials::Token(token) => match self.login_as_execution(&token).await? {
                Some(login) => Ok(login),
                None => self.login_with_token(&token).await,
            },
        }
    }

    async fn login_with_password(&self, username: &str, password: &str) -> Result<Login, AppError> {
        let wrong =
            || refused(&format!("Authentication failed for user `{username}`: wrong credentials or locked account"));
        let user = users::find(&mut *self.store().read().await?, username).await?;
        let hash = user.as_ref().map(|user| user.password_hash.as_str());
        let passwords = &self.0.passwords;
        if let (Some(user), Some(hash)) = (&user, hash)
            && passwords.is_known(username, password, hash)
            && may_log_in(user)
        {
            return self.describe(user, Via::Password).await;
        }
        let is_right = passwords.verify(username, password, hash).await?;
        let Some(user) = user else { return Err(wrong()) };
        if !may_log_in(&user) {
            return Err(wrong());
        }
        let mut tx = self.store().begin().await?;
        if is_right {
            users::record_login(&mut tx, user.key).await?;
        } else {
            users::record_failure(&mut tx, user.key).await?;
        }
        tx.commit().await?;
        if !is_right {
            warn!(username, "wrong password");
            return Err(wrong());
        }
        self.describe(&user, Via::Password).await
    }

    async fn login_with_token(&self, token: &str) -> Result<Login, AppError> {
        let mut parts = token.split('-');
        let (prefix, id, secret, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
        let (Some(TOKEN_PREFIX), Some(id), Some(secret), None) = (prefix, id, secret, rest) else {
            return Err(refused("Invalid token structure"));
        };
        let mut reader = self.store().read().await?;
        let row = tokens::find(&mut reader, id).await?.ok_or_else(|| refused("Invalid token"))?;
        if !bool::from(row.secret_sha256.as_bytes().ct_eq(sha256_hex(secret).as_bytes())) {
            return Err(refused("Invalid token"));
        }
        if row.expired {
            return Err(refused("Token is expired"));
        }
        let user = users::get(&mut reader, row.user_key).await?;
        let user = user.filter(|user| user.active).ok_or_else(|| refused("Invalid token"))?;
        drop(reader);
        if row.stale {
            let mut tx = self.store().begin().await?;
            tokens::record_use(&mut tx, row.key).await?;
            tx.commit().await?;
        }
        self.describe(&user, Via::Token).await
    }

    async fn login_as_execution(&self, token: &str) -> Result<Option<Login>, AppError> {
        let mut reader = self.store().read().await?;
        let Some(found) = tokens::of_execution(&mut reader, &sha256_hex(token)).await? else { return Ok(None) };
        let Some(user) = users::get(&mut reader, found.user_key).await? else { return Ok(None) };
        drop(reader);
        let via = Via::Execution { execution: found.execution, tenant: found.tenant };
        Ok(Some(self.describe(&user, via).await?))
    }

    async fn describe(&self, user: &User, via: Via) -> Result<Login, AppError> {
        let rows = tenants::of_users(&mut *self.store().read().await?, &[user.key]).await?;
        let memberships = rows.into_iter().map(|row| {
            let role = row.role.parse().map_err(|error| AppError::caused(Code::Internal, "unknown role", error))?;
            Ok(Membership { tenant: row.tenant_key, name: row.tenant, role })
        });
        Ok(Login {
            user: user.key,
            username: user.username.clone(),
            role: user.role.parse().map_err(|error| AppError::caused(Code::Internal, "unknown role", error))?,
            via,
            memberships: memberships.collect::<Result<_, AppError>>()?,
        })
    }
}

/// Whether the account is open, the password aside.
fn may_log_in(user: &User) -> bool {
    user.active && user.failed_logins <= FAILED_LOGINS_MAX
}

fn refused(why: &str) -> AppError {
    AppError::new(Code::Unauthorized, format!("User unauthorized: {why}"))
}

/// SHA-256 in hex: for secrets with enough random bits of their own.
#[must_use]
pub fn sha256_hex(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}
