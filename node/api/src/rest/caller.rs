//! Who calls: the headers that prove it.

use axum::extract::FromRequestParts;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::request::Parts;
use quorate_app::auth::Credentials;
use quorate_app::{Actor, App, AppError, Code, Login};

use super::error::ApiError;

/// Names the tenant of a request.
const TENANT: &str = "tenant";
/// Carries the token of an execution.
const EXECUTION_TOKEN: &str = "execution-token";
/// Carries the token of a user, or of an execution.
const AUTHENTICATION_TOKEN: &str = "authentication-token";

/// Somebody who has logged in; for what belongs to no tenant.
pub struct Caller(pub Login);

/// Somebody in a tenant; for a tenant's resources.
pub struct TenantCaller(pub Actor);

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let Some(credentials) = credentials(parts)? else {
            return Err(unauthorized("No authentication info provided"));
        };
        Ok(Self(app.login(credentials).await?))
    }
}

impl FromRequestParts<App> for TenantCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let Caller(login) = Caller::from_request_parts(parts, app).await?;
        Ok(Self(app.actor(login, header(parts, TENANT)).await?))
    }
}

/// Execution tokens go first, then passwords, then tokens.
fn credentials(parts: &Parts) -> Result<Option<Credentials>, ApiError> {
    if let Some(token) = header(parts, EXECUTION_TOKEN) {
        return Ok(Some(Credentials::ExecutionToken(token.to_owned())));
    }
    if let Some(value) = header(parts, AUTHORIZATION.as_str()) {
        let invalid = || unauthorized("the Authorization header is not understood");
        let (scheme, coded) = value.split_once(' ').ok_or_else(invalid)?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(invalid());
        }
        let bytes = STANDARD.decode(coded.trim()).map_err(|_| invalid())?;
        // Clients send what they read from a terminal: UTF-8, or Latin-1 when it fits.
        let text =
            String::from_utf8(bytes).unwrap_or_else(|error| error.into_bytes().into_iter().map(char::from).collect());
        let (username, password) = text.split_once(':').ok_or_else(invalid)?;
        return Ok(Some(Credentials::Password { username: username.to_owned(), password: password.to_owned() }));
    }
    Ok(header(parts, AUTHENTICATION_TOKEN).map(|token| Credentials::Token(token.to_owned())))
}

fn header<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty())
}

fn unauthorized(why: &str) -> ApiError {
    ApiError(AppError::new(Code::Unauthorized, format!("User unauthorized: {why}")))
}
