//! JSON bodies, whatever the content type says: the clients send `application/json` with everything.

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use quorate_app::{App, AppError};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// A body that must be there.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, app).await;
        let bytes = bytes.map_err(|error| AppError::bad(format!("cannot read the request's body: {error}")))?;
        // No body and an empty object say the same: every key is missing.
        let text = if bytes.is_empty() { b"{}".as_slice() } else { &bytes };
        Ok(Self(serde_json::from_slice(text).map_err(|error| explain(&error))?))
    }
}

/// In the original's words where clients show them.
fn explain(error: &serde_json::Error) -> AppError {
    let text = error.to_string();
    match text.strip_prefix("missing field `").and_then(|rest| rest.split_once('`')) {
        Some((key, _)) => AppError::bad(format!("Missing {key} in json request body")),
        None => AppError::bad(format!("The request's body cannot be used: {text}")),
    }
}

/// Reads a flag that may come as JSON or as text in any letter case; for `#[serde(deserialize_with)]`.
pub fn flag<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    struct Flag;
    impl serde::de::Visitor<'_> for Flag {
        type Value = bool;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("true or false")
        }

        fn visit_bool<E>(self, value: bool) -> Result<bool, E> {
            Ok(value)
        }

        fn visit_unit<E>(self) -> Result<bool, E> {
            Ok(false)
        }

        fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<bool, E> {
            match value.to_ascii_lowercase().as_str() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(E::invalid_value(serde::de::Unexpected::Str(value), &self)),
            }
        }
    }
    deserializer.deserialize_any(Flag)
}
