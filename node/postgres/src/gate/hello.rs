//! The first words on port 15432, before PostgreSQL's own protocol: a length and JSON, both ways.

use std::io;

use quorate_types::Epoch;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Stream;

/// The longest greeting.
const GREETING_BYTES_MAX: u32 = 4096;

/// What the dialling node wants.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    pub cluster_id: String,
    /// The epoch in which it believes the other side to be the primary.
    pub epoch: Epoch,
    pub purpose: Purpose,
}

/// Why it dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Streaming, base backup, rewind.
    Replication,
    /// A client's session.
    Session,
}

/// Whether it may go on.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    pub refused: Option<String>,
}

pub async fn send<T: Serialize>(stream: &mut (impl Stream + ?Sized), greeting: &T) -> io::Result<()> {
    let text = serde_json::to_vec(greeting)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

pub async fn receive<T: DeserializeOwned>(stream: &mut (impl Stream + ?Sized)) -> io::Result<T> {
    let length = stream.read_u32().await?;
    if length > GREETING_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the greeting is too long"));
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text).await?;
    Ok(serde_json::from_slice(&text)?)
}

/// The dialling side's whole greeting.
pub async fn greet(stream: &mut (impl Stream + ?Sized), hello: &Hello) -> io::Result<()> {
    send(stream, hello).await?;
    match receive::<Answer>(stream).await?.refused {
        None => Ok(()),
        Some(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
    }
}
