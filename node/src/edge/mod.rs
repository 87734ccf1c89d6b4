//! Where clients arrive: TLS, the choice between serving here and passing on, and the bounded wait while no node is
//! active.
//!
//! Every node listens on its own address; the active node also on the cluster address. A standby passes requests on to
//! the active node as they are. While there is no active node a request waits, so that a failover shows as a pause and
//! not as an error; the wait and the number of waiting requests are bounded.
//!
//! *Invariant*: a request that may have been carried out is never sent a second time, unless its method is safe.

mod forward;
mod listen;
mod redirect;

pub use forward::Forwarder;
pub use listen::{Listening, serve_plain, serve_tls, splice_to};
pub use redirect::redirect_router;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use quorate_types::NodeId;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// A node that is not active answers a passed-on request with this header: nothing was done, ask again.
pub const NOT_ACTIVE: &str = "x-quorate-not-active";
/// Set on passed-on requests, so that no request is passed on twice.
pub const PASSED_ON: &str = "x-quorate-passed-on";
/// Bodies up to this size are kept, so that a request that reached nobody can be sent again.
const KEPT_BODY_BYTES_MAX: usize = 1 << 20;
/// How long to wait before asking the same node again.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// What `Retry-After` says.
const RETRY_AFTER_SECONDS: &str = "2";

/// Who answers requests at this moment.
#[derive(Clone)]
pub enum Serving {
    /// Nobody, as far as this node knows.
    Nobody,
    /// This node. The token ends with its reign: whatever runs then has an unknown outcome.
    Here(Router, CancellationToken),
    /// Another node.
    There(NodeId, SocketAddr),
}

/// The front of one node. Cheap to clone.
#[derive(Clone)]
pub struct Edge {
    serving: watch::Receiver<Serving>,
    forwarder: Forwarder,
    hold: Duration,
    waiting: Arc<Semaphore>,
    in_flight: Arc<watch::Sender<usize>>,
    /// Requests without an answer, wherever they run or wait.
    unanswered: Arc<watch::Sender<usize>>,
}

/// Counts a request while it runs here.
struct InFlight(Arc<watch::Sender<usize>>);

impl InFlight {
    fn begin(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|running| *running += 1);
        Self(count.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

/// What became of one attempt.
enum Attempt {
    Done(Response<Body>),
    /// Certainly not carried out.
    NotReached,
    /// Perhaps carried out.
    Unknown,
}

impl Edge {
    /// `hold`: how long a request waits for an active node; `held_max`: how many may wait at once.
    #[must_use]
    pub fn new(serving: watch::Receiver<Serving>, forwarder: Forwarder, hold: Duration, held_max: usize) -> Self {
        Self {
            serving,
            forwarder,
            hold,
            waiting: Arc::new(Semaphore::new(held_max)),
            in_flight: Arc::new(watch::channel(0).0),
            unanswered: Arc::new(watch::channel(0).0),
        }
    }

    /// Waits until nothing runs here any more, at most `deadline`. `false`: something still runs.
    pub async fn drained(&self, deadline: Duration) -> bool {
        let mut running = self.in_flight.subscribe();
        tokio::time::timeout(deadline, running.wait_for(|running| *running == 0)).await.is_ok()
    }

    /// Waits until no request waits for an answer, at most `deadline`. `false`: some still do.
    pub async fn answered(&self, deadline: Duration) -> bool {
        let mut waiting = self.unanswered.subscribe();
        tokio::time::timeout(deadline, waiting.wait_for(|waiting| *waiting == 0)).await.is_ok()
    }

    /// Answers one request.
    pub async fn handle(self, request: Request<Body>) -> Response<Body> {
        let _unanswered = InFlight::begin(&self.unanswered);
        let until = Instant::now() + self.hold;
        let passed_on = request.headers().contains_key(PASSED_ON);
        let (head, body) = request.into_parts();
        let safe = matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let mut body = match keep(&head, body).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let mut serving = self.serving.clone();
        let mut held = None;
        loop {
            let now = serving.borrow_and_update().clone();
            let attempt = match now {
                Serving::Here(router, reign) => {
                    let Some(body) = body.take() else { return unknown() };
                    let _running = InFlight::begin(&self.in_flight);
                    let request = Request::from_parts(head.clone(), body);
                    tokio::select! {
                        response = router.oneshot(request) => match response {
                            // The database went before the reign did: whoever only reads may wait and ask again.
                            Ok(response) if safe && lost_its_database(response.status()) => Attempt::NotReached,
                            Ok(response) => Attempt::Done(response),
                            Err(never) => match never {},
                        },
                        () = reign.cancelled() => Attempt::Unknown,
                    }
                }
                Serving::There(..) | Serving::Nobody if passed_on => return not_active(),
                Serving::There(node, address) => match body.take() {
                    None => return unknown(),
                    Some(body) => self.forwarder.send(node, address, &head, body).await,
                },
                Serving::Nobody => Attempt::NotReached,
            };
            match attempt {
                Attempt::Done(response) => return response,
                Attempt::Unknown if !safe => return unknown(),
                Attempt::Unknown | Attempt::NotReached => {}
            }
            if held.is_none() {
                match self.waiting.clone().try_acquire_owned() {
                    Ok(permit) => held = Some(permit),
                    Err(_) => return nobody("too many requests wait for an active node"),
                }
            }
            if Instant::now() >= until {
                return nobody("no node is active");
            }
            let pause = tokio::time::sleep_until(until.min(Instant::now() + ASK_AGAIN));
            tokio::select! {
                () = pause => {}
                changed = serving.changed() => if changed.is_err() { return nobody("this node is stopping") },
            }
        }
    }
}

fn lost_its_database(status: StatusCode) -> bool {
    matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// A body that can be sent again when it is small, once when it is a stream.
struct KeptBody {
    small: Option<bytes::Bytes>,
    stream: Option<Body>,
}

impl KeptBody {
    fn take(&mut self) -> Option<Body> {
        match &self.small {
            Some(bytes) => Some(Body::from(bytes.clone())),
            None => self.stream.take(),
        }
    }
}

async fn keep(head: &http::request::Parts, body: Body) -> Result<KeptBody, Response<Body>> {
    let length = head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
    let small = match length {
        Some(length) => length <= KEPT_BODY_BYTES_MAX,
        None => !chunked,
    };
    if !small {
        return Ok(KeptBody { small: None, stream: Some(body) });
    }
    match Limited::new(body, KEPT_BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(KeptBody { small: Some(collected.to_bytes()), stream: None }),
        Err(_) => Err(error(StatusCode::BAD_REQUEST, "bad_parameters_error", "the request's body ended early")),
    }
}

/// An error in the form that the REST clients read.
pub fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = serde_json::json!({ "message": message, "error_code": code, "server_traceback": null });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn nobody(why: &str) -> Response<Body> {
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "no_active_node_error", why);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    response
}

fn not_active() -> Response<Body> {
    let mut response = nobody("this node is not active");
    response.headers_mut().insert(NOT_ACTIVE, HeaderValue::from_static("1"));
    response
}

fn unknown() -> Response<Body> {
    let message = "the active node changed while this request ran: it may or may not have been carried out; \
                   look before you repeat it";
    error(StatusCode::GATEWAY_TIMEOUT, "outcome_unknown_error", message)
}

#[cfg(test)]
mod tests;
