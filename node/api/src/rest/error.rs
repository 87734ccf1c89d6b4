//! Errors as clients read them.

use std::error::Error;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use quorate_app::{AppError, Code};
use serde_json::{Value, json};
use tracing::{error, warn};

/// What `Retry-After` says while no node is active.
const RETRY_AFTER_SECONDS: &str = "2";

/// A refusal or a failure on its way out.
#[derive(Debug)]
pub struct ApiError(pub AppError);

impl<E: Into<AppError>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = status(self.0.code);
        if status.is_server_error() {
            let chain = chain(&self.0);
            if self.0.code == Code::Internal { error!(chain, "request failed") } else { warn!(chain, "request failed") }
        }
        let mut body = json!({ "message": self.0.message, "error_code": self.0.code.name(), "server_traceback": null });
        if let Value::Object(keys) = &mut body {
            keys.extend(self.0.extra);
        }
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        response
    }
}

fn status(code: Code) -> StatusCode {
    match code {
        Code::Unauthorized => StatusCode::UNAUTHORIZED,
        Code::Forbidden => StatusCode::FORBIDDEN,
        Code::NotFound | Code::ImportedBlueprintNotFound => StatusCode::NOT_FOUND,
        Code::Conflict | Code::AmbiguousName => StatusCode::CONFLICT,
        Code::UnsupportedContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::MethodNotAllowed | Code::BlueprintInUse => StatusCode::METHOD_NOT_ALLOWED,
        Code::FileSync | Code::NoActiveNode => StatusCode::SERVICE_UNAVAILABLE,
        Code::OutcomeUnknown => StatusCode::GATEWAY_TIMEOUT,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Code::BadParameters
        | Code::NoSuchIncludeField
        | Code::IllegalAction
        | Code::InvalidBlueprint
        | Code::UploadMissingFile
        | Code::DependentExists
        | Code::DeploymentCreation
        | Code::EnvironmentInProgress
        | Code::EnvironmentPending
        | Code::MissingDeploymentInput
        | Code::UnknownDeploymentInput
        | Code::DeploymentInputEvaluation
        | Code::Constraint
        | Code::DeploymentPluginNotFound
        | Code::NonexistentWorkflow
        | Code::UnavailableWorkflow
        | Code::IllegalExecutionParameters
        | Code::ExistingRunningExecution
        | Code::InvalidExecutionStatus
        | Code::FunctionsEvaluation => StatusCode::BAD_REQUEST,
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
