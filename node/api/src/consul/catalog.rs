//! `/v1/catalog/services`: names and tags of all services.

use axum::response::Response;

use super::reply::{Read, Refusal, json};
use super::request::Query;
use super::{Access, Api};

pub async fn services(api: &Api, query: &Query) -> Result<Response, Refusal> {
    api.allow(query, Access::NodeRead).await?;
    query.refuse_filter()?;
    let read = Read::begin(api, query).await?;
    let (picture, waited) = api.watched.wait(api, &read, |picture| picture.names_changed).await?;
    if waited {
        api.allow(query, Access::NodeRead).await?;
    }
    // No node carries metadata, so none has what is asked for.
    let names = if query.has("node-meta") { Default::default() } else { picture.names() };
    Ok(read.finish(api, picture.names_changed, json(query, &names)?))
}
