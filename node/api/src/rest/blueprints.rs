//! `/blueprints`.

use std::time::Duration;

use axum::Router;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Path, Request, State};
use axum::response::Response;
use axum::routing::{get, patch};
use futures::StreamExt;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use quorate_app::blueprints::BlueprintDetails;
use quorate_app::uploads::{Upload, UploadParams};
use quorate_app::{Actor, App, AppError, Visibility};
use serde::Deserialize;
use serde_json::Value;

use super::answer::{self, time_text, view};
use super::body::{Body, flag};
use super::caller::TenantCaller;
use super::error::ApiError;
use super::executions::ExecutionView;
use super::labels::{self, LabelView};
use super::lists::Params;
use crate::files;

/// Bytes of the part `params`.
const PARAMS_BYTES_MAX: usize = 1 << 20;
/// How long the rest of a refused upload is still taken, so that the client comes to read why.
const DRAIN: Duration = Duration::from_secs(10);
/// A client that sends nothing for this long has gone.
const IDLE: Duration = Duration::from_secs(60);
/// The file that is compiled when the client does not say.
const MAIN_FILE: &str = "blueprint.yaml";

view! {
    /// A blueprint.
    BlueprintView {
        id: String,
        created_at: String,
        created_by: String,
        tenant_name: String,
        visibility: String,
        resource_availability: String,
        private_resource: bool,
        main_file_name: String,
        description: Option<String>,
        plan: Option<Value>,
        requirements: Option<Value>,
        is_hidden: bool,
        state: String,
        error: Option<String>,
        error_traceback: Option<String>,
        labels: Vec<LabelView>,
        updated_at: String,
        upload_execution: Option<ExecutionView>,
    }
}

impl From<BlueprintDetails> for BlueprintView {
    fn from(BlueprintDetails { row, upload_execution, labels }: BlueprintDetails) -> Self {
        Self {
            id: row.id,
            created_at: time_text(row.created_at),
            created_by: row.creator,
            tenant_name: row.tenant,
            resource_availability: row.visibility.clone(),
            private_resource: row.visibility == Visibility::Private.as_str(),
            visibility: row.visibility,
            main_file_name: row.main_file_name,
            description: row.description,
            plan: row.plan.map(Value::from),
            requirements: row.requirements.map(Value::from),
            is_hidden: row.is_hidden,
            state: row.state,
            error: row.error,
            error_traceback: row.error_traceback,
            labels: labels::views(labels),
            updated_at: time_text(row.updated_at),
            upload_execution: upload_execution.map(ExecutionView::from),
        }
    }
}

/// The part `params`, or the query of an upload without parts.
#[derive(Deserialize, Default)]
struct Fields {
    visibility: Option<String>,
    application_file_name: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    async_upload: bool,
    #[serde(default, deserialize_with = "flag")]
    skip_execution: bool,
    #[serde(default)]
    labels: Value,
    blueprint_archive_url: Option<String>,
}

#[derive(Deserialize)]
struct Changes {
    labels: Value,
}

#[derive(Deserialize)]
struct Shown {
    visibility: String,
}

pub fn routes() -> Router<App> {
    // Uploads have a limit of their own.
    let blueprint = get(one).put(upload).layer(DefaultBodyLimit::disable()).patch(change).delete(remove);
    Router::new()
        .route("/blueprints", get(list))
        .route("/blueprints/{id}", blueprint)
        .route("/blueprints/{id}/archive", get(archive))
        .route("/blueprints/{id}/set-visibility", patch(set_visibility))
}

async fn list(State(app): State<App>, TenantCaller(actor): TenantCaller, params: Params) -> Result<Response, ApiError> {
    let with_plan = params.include().is_none_or(|include| include.contains(&"plan"));
    let all_tenants = params.flag("_all_tenants")?;
    let blueprints = app.blueprints().list(&actor, params.list()?, all_tenants, with_plan).await?;
    answer::list(blueprints.map(BlueprintView::from), &params)
}

async fn one(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    answer::one(StatusCode::OK, &BlueprintView::from(app.blueprints().get(&actor, &id).await?), &params)
}

async fn upload(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
    request: Request,
) -> Result<Response, ApiError> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (upload, fields) = if kind.starts_with("multipart/") {
        let parts = Multipart::from_request(request, &app).await;
        let mut parts = parts.map_err(|error| AppError::bad(format!("the upload cannot be read: {error}")))?;
        match receive_parts(&app, &actor, &id, &mut parts).await {
            Ok(received) => received,
            Err(error) => {
                // Whether it all came is all the same.
                _ = tokio::time::timeout(DRAIN, async { while let Ok(Some(_)) = parts.next_field().await {} }).await;
                return Err(error);
            }
        }
    } else {
        let fields = query_fields(&params)?;
        let mut body = request.into_body().into_data_stream();
        match receive_body(&app, &actor, &id, &mut body).await {
            Ok(upload) => (upload, fields),
            Err(error) => {
                _ = tokio::time::timeout(DRAIN, async { while let Some(Ok(_)) = body.next().await {} }).await;
                return Err(error);
            }
        }
    };
    let blueprint = upload.finish(upload_params(fields)?).await?;
    answer::one(StatusCode::CREATED, &BlueprintView::from(blueprint), &params)
}

async fn receive_parts(
    app: &App,
    actor: &Actor,
    id: &str,
    parts: &mut Multipart,
) -> Result<(Upload, Fields), ApiError> {
    let mut upload = app.begin_upload(actor, id).await?;
    let mut fields = Fields::default();
    let broken = |error: MultipartError| AppError::bad(format!("the upload cannot be read: {error}"));
    while let Some(mut part) = in_time(parts.next_field()).await?.map_err(broken)? {
        match part.name() {
            Some("params") => fields = read_fields(part).await?,
            Some("blueprint_archive") => {
                while let Some(bytes) = in_time(part.chunk()).await?.map_err(broken)? {
                    upload.write(&bytes).await?;
                }
            }
            _ => {}
        }
    }
    Ok((upload, fields))
}

async fn in_time<T>(next: impl Future<Output = T>) -> Result<T, AppError> {
    let came = tokio::time::timeout(IDLE, next).await;
    came.map_err(|_| AppError::bad(format!("the upload stood still for {} seconds", IDLE.as_secs())))
}

async fn read_fields(mut part: Field<'_>) -> Result<Fields, ApiError> {
    let mut text = Vec::new();
    while let Some(bytes) = in_time(part.chunk()).await?.map_err(|error| AppError::bad(error.to_string()))? {
        if text.len() + bytes.len() > PARAMS_BYTES_MAX {
            return Err(AppError::bad(format!("`params` has more than {PARAMS_BYTES_MAX} bytes")).into());
        }
        text.extend_from_slice(&bytes);
    }
    let fields = serde_json::from_slice(&text);
    Ok(fields.map_err(|error| AppError::bad(format!("`params` cannot be used: {error}")))?)
}

async fn receive_body(
    app: &App,
    actor: &Actor,
    id: &str,
    body: &mut axum::body::BodyDataStream,
) -> Result<Upload, ApiError> {
    let mut upload = app.begin_upload(actor, id).await?;
    while let Some(bytes) = in_time(body.next()).await? {
        let bytes = bytes.map_err(|error| AppError::bad(format!("the upload cannot be read: {error}")))?;
        upload.write(&bytes).await?;
    }
    Ok(upload)
}

fn query_fields(params: &Params) -> Result<Fields, AppError> {
    let text = |name: &str| params.value(name).map(str::to_owned);
    Ok(Fields {
        visibility: text("visibility"),
        application_file_name: text("application_file_name"),
        async_upload: params.flag("async_upload")?,
        skip_execution: params.flag("skip_execution")?,
        labels: Value::Null,
        blueprint_archive_url: text("blueprint_archive_url"),
    })
}

fn upload_params(fields: Fields) -> Result<UploadParams, AppError> {
    if fields.blueprint_archive_url.is_some() {
        return Err(AppError::bad("Archives are not fetched from URLs; download it and upload the file"));
    }
    if fields.skip_execution {
        return Err(AppError::bad("`skip_execution` is not supported"));
    }
    let main_file = fields.application_file_name.filter(|name| !name.is_empty());
    let main_file = main_file.map_or_else(|| Ok(MAIN_FILE.to_owned()), |name| unquote(&name))?;
    Ok(UploadParams {
        visibility: visibility(fields.visibility.as_deref())?,
        main_file,
        labels: fields.labels,
        wait: !fields.async_upload,
    })
}

/// Who shall see a resource; in its tenant when the client does not say.
pub(super) fn visibility(text: Option<&str>) -> Result<Visibility, AppError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Visibility::Tenant) };
    text.parse().map_err(|_| {
        AppError::bad(format!(
            "Invalid visibility: `{text}`. Valid visibility's values are: ['private', 'tenant', 'global']"
        ))
    })
}

/// Decodes `%xx`.
fn unquote(text: &str) -> Result<String, AppError> {
    let bad = || AppError::bad(format!("`{text}` is not quoted as in a URL"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first == b'%' {
            let (digits, after) = rest.split_at_checked(2).ok_or_else(bad)?;
            let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
            rest = after;
        } else {
            bytes.push(first);
        }
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

async fn change(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
    Body(changes): Body<Changes>,
) -> Result<Response, ApiError> {
    let blueprint = app.blueprints().set_labels(&actor, &id, &changes.labels).await?;
    answer::one(StatusCode::OK, &BlueprintView::from(blueprint), &params)
}

async fn set_visibility(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    params: Params,
    Body(shown): Body<Shown>,
) -> Result<Response, ApiError> {
    let blueprint = app.blueprints().set_visibility(&actor, &id, visibility(Some(&shown.visibility))?).await?;
    answer::one(StatusCode::OK, &BlueprintView::from(blueprint), &params)
}

async fn remove(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.blueprints().delete(&actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn archive(
    State(app): State<App>,
    TenantCaller(actor): TenantCaller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    Ok(files::answer(app.blueprints().archive(&actor, &id).await?, &headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unquoted() {
        assert_eq!(unquote("a%20b%2Fc.yaml").unwrap(), "a b/c.yaml");
        for bad in ["%", "%2", "%zz", "%ff"] {
            assert!(unquote(bad).is_err(), "{bad}");
        }
    }
}
