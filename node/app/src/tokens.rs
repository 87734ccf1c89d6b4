//! Tokens with which users log in instead of their password.

use quorate_store::tokens::{self as rows, TokenInfo};
use time::OffsetDateTime;
use tracing::info;

use crate::auth::{TOKEN_PREFIX, sha256_hex};
use crate::{App, AppError, ListQuery, Listing, Login, Permission, names};

/// Letters and digits of the public part.
const ID_CHARACTERS: usize = 10;
/// Letters and digits of the secret part.
const SECRET_CHARACTERS: usize = 40;
/// What stands for a secret that is not shown.
const HIDDEN: &str = "********";
/// Characters of a description, at most.
const DESCRIPTION_CHARACTERS_MAX: usize = 1000;

/// Use cases of tokens.
pub struct Tokens<'a>(pub(crate) &'a App);

/// A token. No `Debug`: a new one's value is secret.
pub struct TokenDetails {
    /// The public part.
    pub id: String,
    /// Whose.
    pub username: String,
    /// The user's role in the cluster.
    pub role: String,
    /// The whole token right after it was made, later with its secret hidden.
    pub value: String,
    /// What the user wrote.
    pub description: Option<String>,
    /// When it ends.
    pub expires_at: Option<OffsetDateTime>,
    /// When it was used, to the minute.
    pub last_used_at: Option<OffsetDateTime>,
}

impl Tokens<'_> {
    /// The caller's tokens; everybody's for those who may manage them.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for an unknown field.
    pub async fn list(&self, login: &Login, query: &ListQuery) -> Result<Listing<TokenDetails>, AppError> {
        login.require(Permission::ListToken)?;
        let mut reader = self.0.store().read().await?;
        Ok(rows::list(&mut reader, query, whose(login)).await?.map(hidden))
    }

    /// One token.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, also for somebody else's.
    pub async fn get(&self, login: &Login, id: &str) -> Result<TokenDetails, AppError> {
        login.require(Permission::ListToken)?;
        let mut reader = self.0.store().read().await?;
        let row = rows::list(&mut reader, &by_id(id), whose(login)).await?.items.pop();
        row.map(hidden).ok_or_else(|| AppError::not_found("Token", id))
    }

    /// Makes a token for the caller.
    ///
    /// # Errors
    /// `forbidden_error`, `bad_parameters_error` for an end in the past or a long description.
    pub async fn create(
        &self,
        login: &Login,
        description: Option<String>,
        expires_at: Option<OffsetDateTime>,
    ) -> Result<TokenDetails, AppError> {
        login.require(Permission::CreateToken)?;
        if description.as_ref().is_some_and(|text| text.chars().count() > DESCRIPTION_CHARACTERS_MAX) {
            return Err(AppError::bad(format!("A description has up to {DESCRIPTION_CHARACTERS_MAX} characters")));
        }
        if expires_at.is_some_and(|end| end <= OffsetDateTime::now_utc()) {
            return Err(AppError::bad("The token's expiration date is in the past"));
        }
        let (id, secret) = (names::random(ID_CHARACTERS), names::random(SECRET_CHARACTERS));
        let mut tx = self.0.store().begin().await?;
        rows::insert(&mut tx, &id, login.user, &sha256_hex(&secret), description.as_deref(), expires_at).await?;
        tx.commit().await?;
        info!(token = id, username = login.username, "token made");
        Ok(TokenDetails {
            value: format!("{TOKEN_PREFIX}-{id}-{secret}"),
            id,
            username: login.username.clone(),
            role: login.role.to_string(),
            description,
            expires_at,
            last_used_at: None,
        })
    }

    /// Ends a token.
    ///
    /// # Errors
    /// `forbidden_error`, `not_found_error`, also for somebody else's.
    pub async fn delete(&self, login: &Login, id: &str) -> Result<(), AppError> {
        login.require(Permission::DeleteToken)?;
        let mut tx = self.0.store().begin().await?;
        let row = rows::list(&mut tx, &by_id(id), whose(login)).await?.items.pop();
        let row = row.ok_or_else(|| AppError::not_found("Token", id))?;
        rows::delete(&mut tx, row.key).await?;
        tx.commit().await?;
        info!(token = id, by = login.username, "token ended");
        Ok(())
    }
}

/// Whose tokens the caller manages; `None`: everybody's.
fn whose(login: &Login) -> Option<i64> {
    let everybodys = login.require(Permission::ManageOthersTokens).is_ok();
    (!everybodys).then_some(login.user)
}

fn by_id(id: &str) -> ListQuery {
    ListQuery { filters: vec![("id".to_owned(), vec![id.to_owned()])], ..ListQuery::default() }
}

fn hidden(row: TokenInfo) -> TokenDetails {
    TokenDetails {
        value: format!("{TOKEN_PREFIX}-{}-{HIDDEN}", row.id),
        id: row.id,
        username: row.username,
        role: row.role,
        description: row.description,
        expires_at: row.expires_at,
        last_used_at: row.last_used_at,
    }
}
