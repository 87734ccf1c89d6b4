//! `/v1/kv`: the key-value store.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{StatusCode, header};
use quorate_consensus::{Command, KvCommand, KvEntry, Reply};
use serde::Serialize;

use super::reply::{Read, Refusal, json};
use super::request::{Query, value};
use super::{Access, Api};

/// One key as clients see it. `Session` would stand here while the key is locked, which it never is.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct EntryView<'a> {
    lock_index: u64,
    key: &'a str,
    flags: u64,
    /// `null` for the empty value, as Consul has it.
    value: Option<String>,
    create_index: u64,
    modify_index: u64,
}

impl<'a> EntryView<'a> {
    fn new(key: &'a str, entry: &KvEntry) -> Self {
        Self {
            lock_index: 0,
            key,
            flags: entry.flags,
            value: (!entry.value.is_empty()).then(|| STANDARD.encode(&entry.value)),
            create_index: entry.create_index,
            modify_index: entry.modify_index,
        }
    }
}

pub async fn get(api: &Api, query: &Query, key: &str) -> Result<Response, Refusal> {
    let keys = query.has("keys");
    let under = keys || query.has("recurse");
    if key.is_empty() && !under {
        return Err(missing_key());
    }
    api.allow(query, Access::KeyRead(key)).await?;
    let read = Read::begin(api, query).await?;
    let changed = |machine: &quorate_consensus::Machine| {
        if under { machine.kv_prefix_changed(key) } else { machine.kv_key_changed(key) }
    };
    if read.wait_for_kv(api, changed).await? {
        api.allow(query, Access::KeyRead(key)).await?;
    }
    let (index, response) = if keys {
        names(api, query, key)?
    } else if under {
        tree(api, query, key)?
    } else {
        one(api, query, key)?
    };
    Ok(read.finish(api, index, response))
}

fn one(api: &Api, query: &Query, key: &str) -> Result<(u64, Response), Refusal> {
    let (table, entry) = api.consensus.read(|machine| (machine.kv_index, machine.kv.get(key).cloned()));
    let Some(entry) = entry else {
        return Ok((table, StatusCode::NOT_FOUND.into_response()));
    };
    if query.has("raw") {
        let headers = [
            (header::CONTENT_TYPE, "text/plain"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::CONTENT_SECURITY_POLICY, "sandbox"),
        ];
        return Ok((entry.modify_index, (headers, entry.value).into_response()));
    }
    Ok((entry.modify_index, json(query, &[EntryView::new(key, &entry)])?))
}

fn tree(api: &Api, query: &Query, prefix: &str) -> Result<(u64, Response), Refusal> {
    // Copied under the lock, encoded outside of it.
    let (table, changed, entries) = api.consensus.read(|machine| {
        let entries: Vec<(String, KvEntry)> =
            machine.kv_under(prefix).map(|(key, entry)| (key.clone(), entry.clone())).collect();
        (machine.kv_index, machine.kv_prefix_changed(prefix), entries)
    });
    if entries.is_empty() {
        return Ok((table, StatusCode::NOT_FOUND.into_response()));
    }
    let views: Vec<EntryView> = entries.iter().map(|(key, entry)| EntryView::new(key, entry)).collect();
    Ok((changed, json(query, &views)?))
}

fn names(api: &Api, query: &Query, prefix: &str) -> Result<(u64, Response), Refusal> {
    // Old clients spell it so.
    let separator = query.get("separator").or_else(|| query.get("seperator")).filter(|text| !text.is_empty());
    let (table, changed, names) = api.consensus.read(|machine| {
        let mut names: Vec<String> = Vec::new();
        for (key, _) in machine.kv_under(prefix) {
            let rest = &key[prefix.len()..];
            let cut = separator.and_then(|text| Some(prefix.len() + rest.find(text)? + text.len()));
            let name = &key[..cut.unwrap_or(key.len())];
            // Keys are in order, so equal names are neighbours.
            if names.last().is_none_or(|last| last != name) {
                names.push(name.to_owned());
            }
        }
        (machine.kv_index, machine.kv_prefix_changed(prefix), names)
    });
    match names.is_empty() {
        true if prefix.is_empty() => Ok((table, json(query, &names)?)),
        true => Ok((table, StatusCode::NOT_FOUND.into_response())),
        false => Ok((changed, json(query, &names)?)),
    }
}

pub async fn put(api: &Api, query: &Query, key: String, body: Body) -> Result<Response, Refusal> {
    if key.is_empty() {
        return Err(missing_key());
    }
    query.refuse_both(&["cas", "acquire", "release"])?;
    let flags = query.number("flags")?.unwrap_or(0);
    let cas = cas(query)?;
    api.allow(query, Access::KeyWrite(&key)).await?;
    let value = value(body).await?;
    // There are no sessions: none can take a lock, and none holds one that it could give back.
    if let Some(session) = query.get("acquire").or_else(|| query.get("release")) {
        return match session {
            "" => Err(Refusal::Malformed("Missing session".into())),
            _ if query.has("release") => json(query, &false),
            session => Err(Refusal::NoSession(session.to_owned())),
        };
    }
    write(api, query, KvCommand::Put { key, value, flags, cas }).await
}

pub async fn delete(api: &Api, query: &Query, key: String) -> Result<Response, Refusal> {
    query.refuse_both(&["recurse", "cas"])?;
    let recurse = query.has("recurse");
    if key.is_empty() && !recurse {
        return Err(missing_key());
    }
    let cas = cas(query)?;
    api.allow(query, Access::KeyWrite(&key)).await?;
    let command = if recurse { KvCommand::DeleteTree { prefix: key } } else { KvCommand::Delete { key, cas } };
    write(api, query, command).await
}

/// A `cas` that is there but says nothing must not become a plain write.
fn cas(query: &Query) -> Result<Option<u64>, Refusal> {
    match (query.has("cas"), query.number("cas")?) {
        (true, None) => Err(Refusal::Malformed("Invalid cas".into())),
        (_, cas) => Ok(cas),
    }
}

async fn write(api: &Api, query: &Query, command: KvCommand) -> Result<Response, Refusal> {
    match api.consensus.propose(Command::Kv(command)).await? {
        Reply::Kv { changed, .. } => json(query, &changed),
        Reply::Done | Reply::Refused(_) | Reply::Admitted(_) => {
            Err(Refusal::Failed("the key-value store gave another command's answer".into()))
        }
    }
}

fn missing_key() -> Refusal {
    Refusal::Malformed("Missing key name".into())
}
