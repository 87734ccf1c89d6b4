//! `/v1/health/service/:name`: the instances of a service with their checks.

use axum::response::Response;
use serde_json::{Value, json};

use super::reply::{self, Read, Refusal};
use super::request::Query;
use super::services::Instance;
use super::{Access, Api, CheckStatus, agent};

pub async fn service(api: &Api, query: &Query, name: &str) -> Result<Response, Refusal> {
    if name.is_empty() {
        return Err(Refusal::Malformed("Missing service name".into()));
    }
    api.allow(query, Access::NodeRead).await?;
    query.refuse_filter()?;
    let passing = passing(query)?;
    let read = Read::begin(api, query).await?;
    let (picture, waited) = api.watched.wait(api, &read, |picture| picture.service_changed(name)).await?;
    if waited {
        api.allow(query, Access::NodeRead).await?;
    }
    let index = picture.index(name);
    let views: Vec<Value> = picture
        .instances(name)
        .iter()
        // No node carries metadata, so none has what is asked for.
        .filter(|_| !query.has("node-meta"))
        .filter(|found| query.all("tag").all(|tag| found.service.tags.iter().any(|has| has == tag)))
        .filter(|found| !passing || found.is_passing())
        .map(|found| view(api, found, index))
        .collect();
    Ok(read.finish(api, index, reply::json(query, &views)?))
}

/// The one flag whose value counts.
fn passing(query: &Query) -> Result<bool, Refusal> {
    match query.get("passing") {
        None => Ok(false),
        Some("" | "1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(_) => Err(Refusal::Malformed("Invalid value for ?passing".into())),
    }
}

impl Instance {
    fn is_passing(&self) -> bool {
        self.alive && self.service.checks.iter().all(|check| check.status == CheckStatus::Passing)
    }
}

fn view(api: &Api, found: &Instance, index: u64) -> Value {
    let Instance { node, alive, service } = found;
    let serf = if *alive {
        (CheckStatus::Passing, "Agent alive and reachable")
    } else {
        (CheckStatus::Critical, "Agent not live or unreachable")
    };
    let check = |id: &str, name: &str, status: CheckStatus, output: &str, of_service: bool| {
        json!({
            "Node": node.name,
            "CheckID": id,
            "Name": name,
            "Status": status.word(),
            "Notes": "",
            "Output": output,
            "ServiceID": if of_service { service.id.as_str() } else { "" },
            "ServiceName": if of_service { service.name.as_str() } else { "" },
            "ServiceTags": if of_service { service.tags.as_slice() } else { &[] },
            "Type": "",
            "Interval": "",
            "Timeout": "",
            "ExposedPort": 0,
            "Definition": {},
            "CreateIndex": index,
            "ModifyIndex": index,
        })
    };
    let mut checks = vec![check("serfHealth", "Serf Health Status", serf.0, serf.1, false)];
    let own = service.checks.iter();
    checks.extend(own.map(|own| check(&own.id, &own.name, own.status, &own.output, true)));
    json!({
        "Node": {
            "ID": agent::uuid(node.id),
            "Node": node.name,
            "Address": node.address,
            "Datacenter": api.node.datacenter,
            "TaggedAddresses": { "lan": node.address, "wan": node.address },
            "Meta": {},
            "CreateIndex": index,
            "ModifyIndex": index,
        },
        "Service": {
            "ID": service.id,
            "Service": service.name,
            "Tags": service.tags,
            "Address": service.address.map_or_else(String::new, |address| address.to_string()),
            "Meta": service.meta,
            "Port": service.port,
            "Weights": { "Passing": 1, "Warning": 1 },
            "EnableTagOverride": false,
            "CreateIndex": index,
            "ModifyIndex": index,
        },
        "Checks": checks,
    })
}
