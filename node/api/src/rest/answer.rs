//! What goes out: views, lists, times.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use quorate_app::{AppError, Code, Listing};
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

use super::error::ApiError;
use super::lists::{PAGE_SIZE, Params};

/// A resource as clients see it. Made by [`view!`].
pub trait View: Serialize {
    /// Its keys: what `_include` may name.
    const FIELDS: &'static [&'static str];
}

/// Declares the answer of a resource: a struct whose field names are the keys.
macro_rules! view {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)+ }) => {
        $(#[$doc])*
        #[derive(serde::Serialize)]
        pub struct $name { $(pub $field: $type,)+ }

        impl $crate::rest::answer::View for $name {
            const FIELDS: &'static [&'static str] = &[$(stringify!($field),)+];
        }
    };
}
pub(crate) use view;

/// One resource.
///
/// # Errors
/// `no_such_include_field_error`.
pub fn one<V: View>(status: StatusCode, view: &V, params: &Params) -> Result<Response, ApiError> {
    let include = included::<V>(params)?;
    Ok((status, Json(shaped(view, include.as_deref())?)).into_response())
}

/// A page of resources.
///
/// # Errors
/// `no_such_include_field_error`.
pub fn list<V: View>(listing: Listing<V>, params: &Params) -> Result<Response, ApiError> {
    let include = included::<V>(params)?;
    let items = listing.items.iter().map(|view| shaped(view, include.as_deref()));
    let items = items.collect::<Result<Vec<Value>, ApiError>>()?;
    let all = params.flag("_get_all_results")?;
    let (size, offset) = if all { (PAGE_SIZE, 0) } else { (params.size(PAGE_SIZE)?, params.offset()?) };
    let metadata =
        json!({ "pagination": { "total": listing.total, "size": size, "offset": offset }, "filtered": null });
    Ok(Json(json!({ "items": items, "metadata": metadata })).into_response())
}

/// A page of resources that are all in memory: equality filters, one or more sort keys, paging.
///
/// # Errors
/// `bad_parameters_error` for an unknown field, `no_such_include_field_error`.
pub fn list_of<V: View>(all: Vec<V>, params: &Params) -> Result<Response, ApiError> {
    let query = params.list()?;
    let sorted = query.sort.iter().map(|sort| &sort.field);
    let mut named = query.filters.iter().map(|(field, _)| field).chain(sorted);
    if let Some(unknown) = named.find(|field| !V::FIELDS.contains(&field.as_str())) {
        return Err(ApiError(AppError::bad(format!("`{unknown}` is not a field of this list"))));
    }
    let text = |value: &Value, field: &str| match &value[field] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut rows = Vec::with_capacity(all.len());
    for view in all {
        let value = shaped(&view, None)?;
        if query.filters.iter().all(|(field, values)| values.contains(&text(&value, field))) {
            rows.push((view, value));
        }
    }
    for sort in query.sort.iter().rev() {
        rows.sort_by(|(_, a), (_, b)| {
            let order = text(a, &sort.field).cmp(&text(b, &sort.field));
            if sort.descending { order.reverse() } else { order }
        });
    }
    let total = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    let offset = usize::try_from(query.offset).unwrap_or(usize::MAX);
    let size = query.size.map_or(usize::MAX, |size| usize::try_from(size).unwrap_or(usize::MAX));
    let items = rows.into_iter().map(|(view, _)| view).skip(offset).take(size).collect();
    list(Listing { items, total }, params)
}

/// A time as clients read it: UTC, milliseconds.
pub fn time_text(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    time.to_offset(time::UtcOffset::UTC).format(format).expect("every time has these parts")
}

fn included<V: View>(params: &Params) -> Result<Option<Vec<&str>>, ApiError> {
    let Some(include) = params.include() else { return Ok(None) };
    // `type` is a word of Rust.
    let is_known = |field: &str| V::FIELDS.iter().any(|known| known.strip_prefix("r#").unwrap_or(known) == field);
    match include.iter().find(|field| !is_known(field)) {
        Some(unknown) => {
            let message = format!("Field `{unknown}` does not exist");
            Err(ApiError(AppError::new(Code::NoSuchIncludeField, message)))
        }
        None => Ok(Some(include)),
    }
}

fn shaped<V: View>(view: &V, include: Option<&[&str]>) -> Result<Value, ApiError> {
    let value = serde_json::to_value(view);
    let mut value = value.map_err(|error| AppError::caused(Code::Internal, "the answer cannot be written", error))?;
    if let (Some(include), Value::Object(keys)) = (include, &mut value) {
        keys.retain(|key, _| include.contains(&key.as_str()));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_milliseconds() {
        let time = time::macros::datetime!(2024-02-03 04:05:06.7 +2);
        assert_eq!(time_text(time), "2024-02-03T02:05:06.700Z");
    }
}
