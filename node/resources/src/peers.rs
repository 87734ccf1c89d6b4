//! Asking the other members.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_proto::resources::resources_client::ResourcesClient;
use quorate_proto::resources::{FetchRequest, ListRequest, LookRequest};
use quorate_types::{Epoch, NodeId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::entry::{Entry, Summary};
use crate::merge::Listing;
use crate::path::ItemPath;
use crate::store::{Installed, Rule, Store};
use crate::transfer::{Outgoing, PARTS_WAITING_MAX, TransferError, receive};
use crate::tree::Source;
use crate::wire::{Head, Look, MESSAGE_BYTES_MAX, read_summary};
use crate::{Dial, Limits};

/// How long a peer may take to say how far it is; a promise is one sync.
const LOOK_DEADLINE: Duration = Duration::from_secs(3);

/// What a peer said to an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It has it, or something newer, on disk.
    Has,
    /// It has promised a newer epoch.
    Promised(Epoch),
}

/// The other members.
pub struct Peers {
    node: NodeId,
    dial: Arc<dyn Dial>,
    limits: Limits,
    outgoing: Mutex<HashMap<NodeId, Arc<Semaphore>>>,
}

impl Peers {
    /// Dials through `dial`.
    pub fn new(node: NodeId, dial: Arc<dyn Dial>, limits: Limits) -> Self {
        Self { node, dial, limits, outgoing: Mutex::default() }
    }

    fn client(&self, node: NodeId) -> Result<ResourcesClient<Channel>, Status> {
        let channel = self.dial.channel(node).ok_or_else(|| Status::unavailable(format!("{node} is no member")))?;
        Ok(ResourcesClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// One peer that hangs must not take the turns of the others.
    async fn turn(&self, node: NodeId) -> Option<OwnedSemaphorePermit> {
        let turns = {
            let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(self.limits.concurrent_transfers_max));
            outgoing.entry(node).or_insert_with(new).clone()
        };
        turns.acquire_owned().await.ok()
    }

    /// Sends an item. Dropped before it ends, the peer keeps nothing, or all of it.
    pub async fn send(
        &self,
        node: NodeId,
        path: ItemPath,
        entry: Arc<Entry>,
        source: Option<Arc<Source>>,
    ) -> Result<Said, TransferError> {
        let _turn = self.turn(node).await;
        let mut client = self.client(node)?;
        let head = Head::new(path, &entry);
        let Limits { idle, finish, chunk_bytes, .. } = self.limits;
        let outgoing = Outgoing { from: self.node, head, entry, source, chunk_bytes, idle };
        let (queue, parts) = mpsc::channel(PARTS_WAITING_MAX);
        let mut pump = tokio::task::spawn_blocking(move || outgoing.pump(&queue, |part| part));
        let call = client.place(ReceiverStream::new(parts));
        tokio::pin!(call);
        let reply = tokio::select! {
            // A peer that has the item answers before all of it was sent.
            reply = &mut call => reply,
            pumped = &mut pump => match pumped {
                // A broken call closes the queue: then its own error says more.
                Ok(Ok(()) | Err(TransferError::CutOff)) => match tokio::time::timeout(finish, &mut call).await {
                    Ok(reply) => reply,
                    Err(_) => return Err(TransferError::Idle(finish)),
                },
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(TransferError::CutOff),
            },
        };
        let reply = reply?.into_inner();
        if reply.accepted { Ok(Said::Has) } else { Ok(Said::Promised(Epoch(reply.promised_epoch))) }
    }

    /// How far a peer is; it first promises `promise` when that is not 0.
    pub async fn look(&self, node: NodeId, promise: Epoch) -> Result<Look, TransferError> {
        let mut client = self.client(node)?;
        let request = LookRequest { from: self.node.0, promise: promise.0 };
        let reply = tokio::time::timeout(LOOK_DEADLINE, client.look(request))
            .await
            .map_err(|_| TransferError::Idle(LOOK_DEADLINE))??;
        Ok(Look::read(reply.get_ref())?)
    }

    /// Everything a peer has.
    pub async fn list(&self, node: NodeId) -> Result<(Look, Listing), TransferError> {
        let idle = self.limits.idle;
        let late = |_| TransferError::Idle(idle);
        let mut client = self.client(node)?;
        let call = client.list(ListRequest { from: self.node.0 });
        let mut parts = tokio::time::timeout(idle, call).await.map_err(late)??.into_inner();
        let mut found = None;
        let mut listing = Listing::default();
        while let Some(part) = tokio::time::timeout(idle, parts.message()).await.map_err(late)?? {
            if let Some(look) = &part.look {
                let look = Look::read(look)?;
                listing.base = look.base;
                found = Some(look);
            }
            if (listing.items.len() + part.items.len()) as u64 > self.limits.items_max {
                return Err(TransferError::Invalid(format!("more than {} items", self.limits.items_max)));
            }
            for item in &part.items {
                let (path, summary) = read_summary(item)?;
                listing.items.insert(path, summary);
            }
        }
        match found {
            // A list that was cut short would look like removals.
            Some(look) if look.items == listing.items.len() as u64 => Ok((look, listing)),
            _ => Err(TransferError::CutOff),
        }
    }

    /// Pulls an item from a peer and installs it.
    pub async fn fetch(
        &self,
        store: Arc<Store>,
        node: NodeId,
        path: &ItemPath,
        wanted: Summary,
        rule: Rule,
    ) -> Result<Installed, TransferError> {
        let _turn = self.turn(node).await;
        let idle = self.limits.idle;
        let late = |_| TransferError::Idle(idle);
        let mut client = self.client(node)?;
        let version = wanted.version;
        let request = FetchRequest { path: path.to_string(), epoch: version.epoch.0, sequence: version.sequence };
        let mut parts = tokio::time::timeout(idle, client.fetch(request)).await.map_err(late)??.into_inner();
        let head = Head::read(tokio::time::timeout(idle, parts.message()).await.map_err(late)??)?;
        if head.path != *path || head.summary != wanted {
            return Err(TransferError::Invalid(format!("another item than `{path}` {version}")));
        }
        receive(store, head, parts, rule, idle, self.limits).await
    }
}
