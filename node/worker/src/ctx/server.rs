//! Where scripts reach their operation: HTTP on the loopback address, behind a path only the script is told.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::context::Side;
use crate::ctx::{Answer, Ctx};
use crate::wire::{Failure, Object};

/// Bytes of one request of a script.
const BODY_MAX: usize = 8 << 20;

/// Serves one operation until dropped.
pub(crate) struct CtxServer {
    pub(crate) url: String,
    raised: Arc<Mutex<Option<Failure>>>,
    _stop: DropGuard,
}

#[derive(Clone)]
struct Served {
    ctx: Arc<Ctx>,
    raised: Arc<Mutex<Option<Failure>>>,
}

impl CtxServer {
    pub(crate) async fn start(ctx: Arc<Ctx>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        // Any user of this host can connect, so the path is the password.
        let secret = uuid::Uuid::new_v4().simple().to_string();
        let url = format!("http://{}/{secret}", listener.local_addr()?);
        let raised = Arc::new(Mutex::new(None));
        let router = Router::new()
            .route(&format!("/{secret}"), post(call))
            .route(&format!("/{secret}/runtime-properties"), post(replace))
            .route(&format!("/{secret}/raised"), post(raise))
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .with_state(Served { ctx, raised: raised.clone() });
        let stop = CancellationToken::new();
        let ended = stop.clone();
        tokio::spawn(async move {
            let served = axum::serve(listener, router);
            tokio::select! {
                // A connection still open must not keep the operation's log sender alive.
                () = ended.cancelled() => {}
                outcome = served => {
                    if let Err(error) = outcome {
                        tracing::warn!(%error, "the ctx server of an operation ended");
                    }
                }
            }
        });
        Ok(Self { url, raised, _stop: stop.drop_guard() })
    }

    /// The exception a Python script ended with, if it did.
    pub(crate) async fn raised(&self) -> Option<Failure> {
        self.raised.lock().await.take()
    }
}

/// The body is read whatever its content type says: the original client sends none of JSON's.
async fn call(State(served): State<Served>, body: axum::body::Bytes) -> Json<Value> {
    let args = serde_json::from_slice::<Value>(&body)
        .ok()
        .and_then(|mut request| request.get_mut("args")?.as_array_mut().map(std::mem::take));
    let answer = match args {
        Some(args) => served.ctx.call(&args).await,
        None => Answer::Error { class: "KeyError".into(), message: "the request has no list of args".into() },
    };
    Json(match answer {
        Answer::Result(payload) => json!({"type": "result", "payload": payload}),
        Answer::Stop(message) => json!({"type": "stop_operation", "payload": {"message": message}}),
        Answer::Error { class, message } => {
            let traceback = format!("{class}: {message}\n");
            json!({"type": "error", "payload": {"type": class, "message": message, "traceback": traceback}})
        }
    })
}

#[derive(Deserialize)]
struct Replacement {
    side: String,
    properties: Object,
}

async fn replace(State(served): State<Served>, Json(new): Json<Replacement>) -> Json<Value> {
    let side = match new.side.as_str() {
        "source" => Side::Source,
        "target" => Side::Target,
        _ => Side::Own,
    };
    Json(match served.ctx.replace(side, new.properties).await {
        Ok(()) => json!({"type": "result", "payload": null}),
        Err(failure) => json!({"type": "error", "payload": {
            "type": failure.raised, "message": failure.message, "traceback": "",
        }}),
    })
}

async fn raise(State(served): State<Served>, Json(payload): Json<Object>) -> Json<Value> {
    *served.raised.lock().await = Some(Failure::from_payload(&payload));
    Json(json!({"type": "result", "payload": null}))
}
