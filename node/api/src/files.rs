//! `/resources`: the file server that workers, agents and clients read.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue, StatusCode};
use quorate_app::App;
use quorate_app::files::OpenedFile;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio_util::io::ReaderStream;

use crate::rest::caller::Caller;
use crate::rest::error::ApiError;

/// What is read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// The file server's paths.
pub fn routes() -> Router<App> {
    Router::new().route("/resources/{*path}", get(read))
}

async fn read(
    State(app): State<App>,
    Caller(login): Caller,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    Ok(answer(app.files().open(&login, &path).await?, &headers))
}

/// Streams a file, or says that the client has it.
pub fn answer(opened: OpenedFile, headers: &HeaderMap) -> Response {
    let since = opened.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    let tag = format!("\"{:x}-{:x}\"", since.as_nanos(), opened.size);
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut fields = HeaderMap::new();
    fields.insert(ETAG, text(&tag));
    if known.is_some_and(|known| known.split(',').any(|one| one.trim() == tag)) {
        return (StatusCode::NOT_MODIFIED, fields).into_response();
    }
    fields.insert(LAST_MODIFIED, text(&http_time(opened.modified)));
    fields.insert(CONTENT_LENGTH, HeaderValue::from(opened.size));
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    // Nothing that would end or split the header.
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-._~+".contains(c) { c } else { '_' };
    let name: String = opened.name.chars().map(plain).collect();
    fields.insert(CONTENT_DISPOSITION, text(&format!("attachment; filename={name}")));
    let file = tokio::fs::File::from_std(opened.file);
    // The file may grow while it is read; what was announced is what is sent.
    let stream = ReaderStream::with_capacity(tokio::io::AsyncReadExt::take(file, opened.size), CHUNK_BYTES);
    (fields, Body::from_stream(stream)).into_response()
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""))
}

fn http_time(time: SystemTime) -> String {
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    OffsetDateTime::from(time).format(format).unwrap_or_default()
}
