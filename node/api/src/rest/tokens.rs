//! `/tokens`.

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use quorate_app::App;
use quorate_app::tokens::TokenDetails;
use serde::Deserialize;

use super::answer::{self, time_text, view};
use super::body::Body;
use super::caller::Caller;
use super::error::ApiError;
use super::lists::Params;
use super::times;

view! {
    /// A token.
    TokenView {
        id: String,
        username: String,
        role: String,
        value: String,
        description: Option<String>,
        expiration_date: Option<String>,
        last_used: Option<String>,
    }
}

impl From<TokenDetails> for TokenView {
    fn from(token: TokenDetails) -> Self {
        Self {
            id: token.id,
            username: token.username,
            role: token.role,
            value: token.value,
            description: token.description,
            expiration_date: token.expires_at.map(time_text),
            last_used: token.last_used_at.map(time_text),
        }
    }
}

#[derive(Deserialize)]
struct NewToken {
    description: Option<String>,
    expiration_date: Option<String>,
}

pub fn routes() -> Router<App> {
    Router::new().route("/tokens", get(list).post(create)).route("/tokens/{id}", get(one).delete(remove))
}

async fn list(State(app): State<App>, Caller(login): Caller, params: Params) -> Result<Response, ApiError> {
    answer::list(app.tokens().list(&login, &params.list()?).await?.map(TokenView::from), &params)
}

async fn one(
    State(app): State<App>,
    Caller(login): Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let token = app.tokens().get(&login, &id).await?;
    answer::one(StatusCode::OK, &TokenView::from(token), &params)
}

async fn create(
    State(app): State<App>,
    Caller(login): Caller,
    params: Params,
    Body(new): Body<NewToken>,
) -> Result<Response, ApiError> {
    let now = time::OffsetDateTime::now_utc();
    let ends = new.expiration_date.map(|text| times::parse(&text, now)).transpose()?;
    let token = app.tokens().create(&login, new.description, ends).await?;
    answer::one(StatusCode::OK, &TokenView::from(token), &params)
}

async fn remove(State(app): State<App>, Caller(login): Caller, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    app.tokens().delete(&login, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
