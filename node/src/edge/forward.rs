//! Passes a request on to the active node over TLS, as it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Request, header};
use hyper_util::rt::TokioIo;
use quorate_types::NodeId;
use rustls::ClientConfig;
use tracing::debug;

use super::{Attempt, NOT_ACTIVE, PASSED_ON};
use crate::pki::tls;

/// How long a connection to the active node may take: it is near, or it is gone.
const CONNECT_DEADLINE: Duration = Duration::from_millis(500);
/// The longest that the active node may take to begin its answer; clients give up after 300 s.
const ANSWER_DEADLINE: Duration = Duration::from_secs(290);

/// Dials the active node. Cheap to clone.
#[derive(Clone)]
pub struct Forwarder {
    tls: Arc<ClientConfig>,
    me: NodeId,
}

impl Forwarder {
    /// `tls`: the settings with which this node dials others' HTTPS port.
    #[must_use]
    pub fn new(tls: &Arc<ClientConfig>, me: NodeId) -> Self {
        let mut http1 = ClientConfig::clone(tls);
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { tls: Arc::new(http1), me }
    }

    /// One attempt; the caller decides about another one.
    pub(super) async fn send(
        &self,
        node: NodeId,
        address: SocketAddr,
        head: &http::request::Parts,
        body: Body,
    ) -> Attempt {
        let connected = tokio::time::timeout(CONNECT_DEADLINE, self.connect(node, address)).await;
        let mut sender = match connected {
            Ok(Ok(sender)) => sender,
            Ok(Err(error)) => {
                debug!(%node, %error, "the active node cannot be reached");
                return Attempt::NotReached;
            }
            Err(_) => return Attempt::NotReached,
        };
        let mut head = head.clone();
        head.headers.remove(header::CONNECTION);
        head.headers.insert(PASSED_ON, HeaderValue::from_str(&self.me.to_string()).expect("a node id is plain text"));
        let answer = tokio::time::timeout(ANSWER_DEADLINE, sender.send_request(Request::from_parts(head, body))).await;
        match answer {
            Ok(Ok(response)) if response.headers().contains_key(NOT_ACTIVE) => Attempt::NotReached,
            Ok(Ok(response)) => Attempt::Done(response.map(Body::new)),
            Ok(Err(error)) => {
                debug!(%node, %error, "the active node did not finish its answer");
                Attempt::Unknown
            }
            Err(_) => Attempt::Unknown,
        }
    }

    async fn connect(
        &self,
        node: NodeId,
        address: SocketAddr,
    ) -> anyhow::Result<hyper::client::conn::http1::SendRequest<Body>> {
        let stream = tls::dial(&self.tls, node, address).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends by itself when the sender is dropped or the other side closes.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection to the active node ended");
            }
        });
        Ok(sender)
    }
}
