//! The daemon's side of the operator's socket.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use quorate_config::Config;
use quorate_consensus::{Command, Consensus};
use quorate_types::{Epoch, Lsn, NodeId};
use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{MadeToken, NewSwitchover, NewToken, NodeView, StatusView, Switched, socket_path};
use crate::join::Token;
use crate::local::chain;
use crate::loops::observe::Views;
use crate::pki::sha256_hex;

/// Characters of a token's name and of its secret (about 190 bits).
const TOKEN_ID_CHARACTERS: usize = 8;
const TOKEN_SECRET_CHARACTERS: usize = 32;
/// The longest that a token may wait.
const TOKEN_SECONDS_MAX: u64 = 24 * 3600;
/// How long a switchover may take before it is called off.
const SWITCHOVER_LIMIT: Duration = Duration::from_secs(40);
/// Everything the operator's calls need.
#[derive(Clone)]
pub struct AdminServer {
    pub config: Arc<Config>,
    pub consensus: Consensus,
    pub views: Views,
    /// This node's own decision, when it leads.
    pub decision: Arc<Mutex<String>>,
    /// SHA-256 of the authority's certificate, hex.
    pub authority_sha256: String,
}

impl AdminServer {
    /// Opens the socket and serves it until the token ends.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        let path = socket_path(&self.config);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove the old socket {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("make the socket {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let router = Router::new()
            .route("/status", get(status))
            .route("/tokens", post(token))
            .route("/switchover", post(switchover))
            .with_state(self);
        tokio::spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "the operator's socket ended");
            }
        });
        Ok(())
    }
}

type Failure = (StatusCode, String);

fn failed(error: &dyn std::error::Error) -> Failure {
    (StatusCode::CONFLICT, chain(error))
}

async fn status(State(server): State<AdminServer>) -> Json<StatusView> {
    Json(status_view(&server))
}

/// The cluster as this node sees it.
fn status_view(server: &AdminServer) -> StatusView {
    let state = server.consensus.cluster().borrow().clone();
    let leadership = *server.consensus.leadership().borrow();
    let views = server.views.all();
    let current = state.current();
    let active = current.filter(|record| record.opened.is_some()).map(|record| record.holder);
    let epoch = current.map_or(Epoch(0), |record| record.epoch);
    let is_fresh = |node: &NodeId| views.get(node).is_some_and(|view| view.is_alive());
    let lags = active.and_then(|node| views.get(&node)).map(|view| view.reply.streaming.clone()).unwrap_or_default();
    let lag = |node: NodeId| lags.iter().find(|lag| lag.node == node.0).map(|lag| lag.lag_bytes);
    let leader_says = leadership.leader.and_then(|node| views.get(&node)).map(|view| view.reply.decision.clone());
    let own = server.decision.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let reason = match (leadership.is_self, leader_says) {
        (true, _) => own,
        (false, Some(said)) if leadership.leader.is_some_and(|node| is_fresh(&node)) => said,
        _ => "there is no raft leader: a majority of the nodes cannot be reached from here".into(),
    };
    let node_view = |member: &quorate_types::Member| {
        let view = views.get(&member.id);
        let fresh = is_fresh(&member.id);
        NodeView {
            id: member.id,
            name: member.name.clone(),
            address: member.address,
            role: view.filter(|_| fresh).map_or_else(|| "unreachable".into(), |view| view.reply.role.clone()),
            epoch: Epoch(view.map_or(0, |view| view.reply.epoch)),
            voter: member.voter,
            lag_bytes: if Some(member.id) == active { Some(0) } else { lag(member.id) },
            position: view.and_then(|view| view.reply.position.as_ref()).map(|position| Lsn(position.lsn)),
            silent_ms: view.map(|view| u64::try_from(view.at.elapsed().as_millis()).unwrap_or(u64::MAX)),
            note: view.map(|view| view.reply.note.clone()).unwrap_or_default(),
            version: view.map(|view| view.reply.version.clone()).unwrap_or_default(),
        }
    };
    StatusView {
        cluster_id: state.cluster_id.clone(),
        seen_by: server.consensus.node(),
        active,
        epoch,
        serving: active.is_some_and(|node| {
            is_fresh(&node) && views[&node].reply.role == "active" && views[&node].reply.epoch == epoch.0
        }),
        raft_leader: leadership.leader,
        term: leadership.term,
        reason,
        granted_because: current.map(|record| record.reason.clone()).unwrap_or_default(),
        cluster_address: server.config.address.cluster,
        sync: state.sync.clone(),
        nodes: state.members.values().map(node_view).collect(),
    }
}

async fn token(State(server): State<AdminServer>, Json(new): Json<NewToken>) -> Result<Json<MadeToken>, Failure> {
    if !(1..=TOKEN_SECONDS_MAX).contains(&new.seconds) {
        return Err((StatusCode::BAD_REQUEST, format!("a token lives 1 to {TOKEN_SECONDS_MAX} seconds")));
    }
    let word = |characters: usize| -> String {
        rand::rng().sample_iter(Alphanumeric).take(characters).map(char::from).collect()
    };
    let token = Token {
        id: word(TOKEN_ID_CHARACTERS),
        secret: word(TOKEN_SECRET_CHARACTERS),
        authority_sha256: server.authority_sha256.clone(),
    };
    let expires_at = unix_now() + i64::try_from(new.seconds).unwrap_or(i64::MAX);
    let secret_sha256 = sha256_hex(token.secret.as_bytes());
    let command = Command::AddJoinToken { id: token.id.clone(), secret_sha256, expires_at };
    server.consensus.propose(command).await.map_err(|error| failed(&error))?;
    Ok(Json(MadeToken { token: token.text(), expires_at }))
}

/// Seconds since 1970, for the expiry of tokens only.
pub fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

async fn switchover(
    State(server): State<AdminServer>,
    Json(new): Json<NewSwitchover>,
) -> Result<Json<Switched>, Failure> {
    let refused = |why: String| (StatusCode::CONFLICT, why);
    let view = status_view(&server);
    let from = view.active.ok_or_else(|| refused("there is no active node to hand over".into()))?;
    let standby = |node: &&NodeView| {
        node.id != from && node.role == "standby" && view.sync.members.contains(&node.id) && node.epoch == view.epoch
    };
    let to = match new.to {
        Some(to) if to == from => return Err(refused(format!("{to} is active already"))),
        Some(to) => {
            view.nodes.iter().filter(|node| node.id == to).find(standby).map(|node| node.id).ok_or_else(|| {
                refused(format!("{to} cannot take over: it is not a standby that follows epoch {}", view.epoch))
            })?
        }
        None => view
            .nodes
            .iter()
            .filter(standby)
            .max_by_key(|node| (node.position, std::cmp::Reverse(node.id)))
            .map(|node| node.id)
            .ok_or_else(|| refused("no standby follows closely enough to take over".into()))?,
    };
    let began = Instant::now();
    let mut cluster = server.consensus.cluster();
    server.consensus.propose(Command::SetSwitchover { to: Some(to) }).await.map_err(|error| failed(&error))?;
    let moved = cluster
        .wait_for(|state| state.current().is_some_and(|record| record.epoch > view.epoch && record.opened.is_some()));
    let Ok(Ok(state)) = tokio::time::timeout(SWITCHOVER_LIMIT, moved).await.map(|moved| moved.map(|s| s.clone()))
    else {
        // Nobody should be surprised by it an hour later.
        let called_off = server.consensus.propose(Command::SetSwitchover { to: None }).await;
        let note = if called_off.is_ok() { "it was called off" } else { "it could not be called off" };
        let seconds = SWITCHOVER_LIMIT.as_secs();
        let why = format!("{to} did not take over within {seconds} s, {note}; see `quorate cluster status`");
        return Err((StatusCode::GATEWAY_TIMEOUT, why));
    };
    let record = state.current().ok_or_else(|| refused("the new epoch is gone".into()))?;
    if record.holder != to {
        return Err(refused(format!("{} took over instead of {to}: {}", record.holder, record.reason)));
    }
    let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Json(Switched { from, to, epoch: record.epoch, milliseconds }))
}
