//! The TCP side: one request, one answer, then the connection ends.
//!
//! A frame is its length (u32, big-endian) and a sealed [`Exchange`]. The deadline covers a whole exchange, so a
//! connection that idles, trickles or never reads is gone after [`DEADLINE`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use foca::Member;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::driver::Event;
use crate::identity::Identity;
use crate::load::LoadNews;
use crate::seal::{Channel, Sealer};
use crate::start::{Shared, Tally};

/// How long an exchange may take.
const DEADLINE: Duration = Duration::from_secs(3);
/// The largest frame, in bytes: [`crate::MEMBERS_MAX`] members and loads need less than half.
const FRAME_BYTES_MAX: u32 = 64 * 1024;
/// How many connections are served at once; further ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 16;
/// How long to wait after `accept` failed, which it does while the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// All that a node knows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Exchange {
    /// Who tells.
    pub from: Identity,
    /// A packet of foca's that shows the teller's own incarnation, which its member list does not contain.
    pub hello: Vec<u8>,
    pub members: Vec<Member<Identity>>,
    pub loads: Vec<LoadNews>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("talk to the member")]
    Io(#[from] io::Error),
    #[error("a frame of {0} bytes, at most {FRAME_BYTES_MAX} are read")]
    TooLarge(u32),
    #[error("the message does not open: another key, another cluster, or damaged")]
    Sealed,
    #[error("the message cannot be read")]
    Malformed(#[source] postcard::Error),
    #[error("no answer within {DEADLINE:?}")]
    Late,
    #[error("this node stops")]
    Stopping,
}

/// Tells `to` what this node knows, and gives back what `to` knows.
pub(crate) async fn ask(
    to: SocketAddr,
    request: &Exchange,
    sealer: &Sealer,
    tally: &Tally,
) -> Result<Exchange, ExchangeError> {
    let talk = async {
        let mut stream = TcpStream::connect(to).await?;
        let request = sealer.seal(Channel::Request, &write(request)?);
        send(&mut stream, &request).await?;
        let answer = receive(&mut stream).await?;
        open(sealer, Channel::Answer(&request), &answer, tally)
    };
    timeout(DEADLINE, talk).await.map_err(|_| ExchangeError::Late)?
}

/// Serves until stopped.
pub(crate) async fn serve(listener: TcpListener, shared: Shared, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accept = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept => accepted,
        };
        let (mut stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "gossip cannot accept connections");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (Shared { sealer, tally, events, tasks }, stop) = (shared.clone(), stop.clone());
        tasks.spawn(async move {
            let served = tokio::select! {
                () = stop.cancelled() => Err(ExchangeError::Stopping),
                served = timeout(DEADLINE, answer(&mut stream, &sealer, &events, &tally)) => {
                    served.unwrap_or(Err(ExchangeError::Late))
                }
            };
            if let Err(error) = served {
                debug!(%peer, error = &error as &dyn std::error::Error, "gossip exchange refused");
            }
            drop(permit);
        });
    }
}

async fn answer(
    stream: &mut TcpStream,
    sealer: &Sealer,
    events: &mpsc::Sender<Event>,
    tally: &Tally,
) -> Result<(), ExchangeError> {
    let request = receive(stream).await?;
    let exchange = open(sealer, Channel::Request, &request, tally)?;
    let (reply, replied) = oneshot::channel();
    events.send(Event::Asked { exchange, reply }).await.map_err(|_| ExchangeError::Stopping)?;
    let reply = replied.await.map_err(|_| ExchangeError::Stopping)?;
    let reply = sealer.seal(Channel::Answer(&request), &write(&reply)?);
    send(stream, &reply).await
}

fn write(exchange: &Exchange) -> Result<Vec<u8>, ExchangeError> {
    postcard::to_stdvec(exchange).map_err(ExchangeError::Malformed)
}

fn open(sealer: &Sealer, channel: Channel<'_>, sealed: &[u8], tally: &Tally) -> Result<Exchange, ExchangeError> {
    let Some(text) = sealer.open(channel, sealed) else {
        tally.unsealed.fetch_add(1, Relaxed);
        return Err(ExchangeError::Sealed);
    };
    postcard::from_bytes(&text).map_err(|error| {
        tally.malformed.fetch_add(1, Relaxed);
        ExchangeError::Malformed(error)
    })
}

async fn send(stream: &mut TcpStream, sealed: &[u8]) -> Result<(), ExchangeError> {
    let length = u32::try_from(sealed.len()).unwrap_or(u32::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(ExchangeError::TooLarge(length));
    }
    stream.write_all(&[&length.to_be_bytes()[..], sealed].concat()).await?;
    Ok(())
}

async fn receive(stream: &mut TcpStream) -> Result<Vec<u8>, ExchangeError> {
    let length = stream.read_u32().await?;
    if length > FRAME_BYTES_MAX {
        return Err(ExchangeError::TooLarge(length));
    }
    let mut sealed = vec![0; length as usize];
    stream.read_exact(&mut sealed).await?;
    Ok(sealed)
}
