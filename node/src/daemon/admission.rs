//! Admission of nodes, on port 8500: a one-time token makes a certificate.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use axum::{Json, Router};
use http::StatusCode;
use quorate_config::Config;
use quorate_consensus::{Command, Consensus, ProposeError, Reply};
use tracing::{info, warn};

use crate::admin::unix_now;
use crate::join::{JoinReply, JoinRequest};
use crate::local::chain;
use crate::loops::observe::Views;
use crate::pki::{Identity, Names, request_key_sha256, sha256_hex};

/// A request is a name, an address and a signing request.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// The longest name of a node.
const NAME_CHARACTERS_MAX: usize = 253;
#[derive(Clone)]
struct Admission {
    config: Arc<Config>,
    identity: Arc<Identity>,
    consensus: Consensus,
    views: Views,
}

/// The route that admits nodes.
pub fn router(config: Arc<Config>, identity: Arc<Identity>, consensus: Consensus, views: Views) -> Router {
    Router::new()
        .route("/v1/quorate/join", post(join))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(Admission { config, identity, consensus, views })
}

type Failure = (StatusCode, String);

async fn join(
    State(admission): State<Admission>,
    Json(request): Json<JoinRequest>,
) -> Result<Json<JoinReply>, Failure> {
    let bad = |why: &str| (StatusCode::BAD_REQUEST, why.to_owned());
    if request.name.is_empty() || request.name.chars().count() > NAME_CHARACTERS_MAX {
        return Err(bad("the node's name must have 1 to 253 characters"));
    }
    // Everything that can be wrong is checked before the token is used up.
    match request_key_sha256(&request.request_pem) {
        Ok(key) if key == request.public_key_sha256 => {}
        _ => return Err(bad("the signing request and its key do not belong together")),
    }
    let state = admission.consensus.cluster().borrow().clone();
    let views = admission.views.all();
    let taken = state.members.values().find(|member| {
        (member.address == request.address || member.name == request.name)
            && views.get(&member.id).is_some_and(|view| view.is_alive())
    });
    if let Some(member) = taken {
        let why = format!(
            "{} ({}, {}) is alive; two nodes cannot share its name or address",
            member.id, member.name, member.address
        );
        return Err((StatusCode::CONFLICT, why));
    }
    let command = Command::Admit {
        token: request.token_id,
        secret_sha256: sha256_hex(request.secret.as_bytes()),
        now: unix_now(),
        name: request.name.clone(),
        address: request.address,
        public_key_sha256: request.public_key_sha256,
    };
    let node = match admission.consensus.propose(command).await {
        Ok(Reply::Admitted(node)) => node,
        Ok(_) => return Err((StatusCode::INTERNAL_SERVER_ERROR, "the cluster gave no number".into())),
        Err(ProposeError::Refused(why)) => {
            warn!(name = request.name, address = %request.address, why, "a node was not admitted");
            return Err((StatusCode::FORBIDDEN, why));
        }
        Err(error) => return Err((StatusCode::SERVICE_UNAVAILABLE, chain(&error))),
    };
    let names = Names {
        id: node,
        name: request.name.clone(),
        addresses: std::iter::once(request.address).chain(admission.config.address.cluster).collect(),
    };
    let identity = &admission.identity;
    let certificate_pem = identity
        .authority
        .sign(&request.request_pem, &names)
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, chain(&error)))?;
    info!(%node, name = request.name, address = %request.address, "admitted");
    Ok(Json(JoinReply {
        node,
        cluster_id: identity.cluster_id.clone(),
        certificate_pem,
        authority_pem: identity.authority.certificate_pem().to_owned(),
        authority_key_pem: identity.authority.key_pem().to_owned(),
        gossip_key: hex::encode(identity.gossip_key),
    }))
}
