//! The receiving side.

use std::sync::Arc;

use quorate_proto::resources::resources_server::{Resources as Api, ResourcesServer};
use quorate_proto::resources::{FetchRequest, ListPart, ListRequest, LookReply, LookRequest, Part, PlaceReply};
use quorate_types::Epoch;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::entry::Version;
use crate::store::{InstallError, Installed, Rule};
use crate::transfer::{Outgoing, PARTS_WAITING_MAX, TransferError, receive};
use crate::wire::{Head, Look, MESSAGE_BYTES_MAX, SUMMARIES_PER_MESSAGE, path, summary_message};
use crate::{Resources, blocking, own_look};

/// Answers members' calls.
pub struct Service {
    resources: Resources,
}

impl Service {
    /// Ready for tonic's router.
    pub(crate) fn server(resources: Resources) -> ResourcesServer<Self> {
        ResourcesServer::new(Self { resources })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn turn(&self, turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
        match tokio::time::timeout(self.resources.inner.limits.idle, turns.clone().acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(Status::resource_exhausted("too many transfers at once")),
        }
    }

    async fn accept(&self, mut parts: Streaming<Part>) -> Result<Installed, TransferError> {
        let inner = &self.resources.inner;
        let idle = inner.limits.idle;
        let first = tokio::time::timeout(idle, parts.message()).await.map_err(|_| TransferError::Idle(idle))??;
        let head = Head::read(first)?;
        let (store, asked) = (inner.store.clone(), head.clone());
        let (kind, version) = (asked.summary.kind, asked.summary.version);
        if blocking(move || store.check(&asked.path, kind, version, Rule::Place)).await? == Installed::Already {
            return Ok(Installed::Already);
        }
        receive(inner.store.clone(), head, parts, Rule::Place, idle, inner.limits).await
    }
}

#[tonic::async_trait]
impl Api for Service {
    async fn place(&self, request: Request<Streaming<Part>>) -> Result<Response<PlaceReply>, Status> {
        let _turn = self.turn(&self.resources.inner.incoming).await?;
        match self.accept(request.into_inner()).await {
            Ok(Installed::Done | Installed::Already) => {
                Ok(Response::new(PlaceReply { accepted: true, promised_epoch: 0 }))
            }
            Err(TransferError::Install(InstallError::Fenced { promised, .. })) => {
                Ok(Response::new(PlaceReply { accepted: false, promised_epoch: promised.0 }))
            }
            Err(error) => Err(error.status()),
        }
    }

    type FetchStream = ReceiverStream<Result<Part, Status>>;

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let turn = self.turn(&self.resources.inner.serving).await?;
        let request = request.into_inner();
        let (item, version) =
            (path(&request.path)?, Version { epoch: Epoch(request.epoch), sequence: request.sequence });
        let inner = self.resources.inner.clone();
        let (store, asked) = (inner.store.clone(), item.clone());
        let found = blocking(move || store.source(&asked, version))
            .await
            .map_err(|error| TransferError::from(error).status())?;
        let Some((entry, source)) = found else {
            return Err(Status::not_found(format!("`{item}` {version} is not here")));
        };
        let outgoing = Outgoing {
            from: inner.node,
            head: Head::new(item, &entry),
            entry: Arc::new(entry),
            source: Some(Arc::new(source)),
            chunk_bytes: inner.limits.chunk_bytes,
            idle: inner.limits.idle,
        };
        let (queue, parts) = mpsc::channel(PARTS_WAITING_MAX);
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            if let Err(error) = outgoing.pump(&queue, Ok) {
                // A full queue means that nobody reads: then the stream just ends early, which is an error there too.
                drop(queue.try_send(Err(error.status())));
            }
        });
        Ok(Response::new(ReceiverStream::new(parts)))
    }

    async fn look(&self, request: Request<LookRequest>) -> Result<Response<LookReply>, Status> {
        let promise = Epoch(request.into_inner().promise);
        let store = self.resources.inner.store.clone();
        let look = blocking(move || {
            if promise > Epoch(0) {
                store.promise(promise).map_err(InstallError::from)?;
            }
            Ok(own_look(&store))
        });
        let look = look.await.map_err(|error: TransferError| error.status())?;
        Ok(Response::new(look.to_message()))
    }

    type ListStream = ReceiverStream<Result<ListPart, Status>>;

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let turn = self.turn(&self.resources.inner.serving).await?;
        let store = self.resources.inner.store.clone();
        // One look: how far this node is and what it has belong together.
        let (look, items) = blocking(move || {
            store.look(|manifest, standing| {
                let items = manifest.items();
                (Look::new(standing, manifest.sequence(), items.len(), manifest.digest()), items.clone())
            })
        })
        .await;
        let idle = self.resources.inner.limits.idle;
        let (queue, parts) = mpsc::channel(PARTS_WAITING_MAX);
        tokio::spawn(async move {
            let _turn = turn;
            let summaries: Vec<_> = items.iter().map(|(path, item)| summary_message(path, item)).collect();
            let first = ListPart { look: Some(look.to_message()), items: Vec::new() };
            let batches = summaries.chunks(SUMMARIES_PER_MESSAGE);
            let rest = batches.map(|batch| ListPart { look: None, items: batch.to_vec() });
            for part in std::iter::once(first).chain(rest) {
                if !matches!(tokio::time::timeout(idle, queue.send(Ok(part))).await, Ok(Ok(()))) {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(parts)))
    }
}
