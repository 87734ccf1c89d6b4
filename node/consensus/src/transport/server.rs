//! The receiving side.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest};
use quorate_proto::consensus::consensus_server::{Consensus, ConsensusServer};
use quorate_proto::consensus::{Body, ProposeReply, ProposeRequest, ReadIndexReply, ReadIndexRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status};

use super::MESSAGE_BYTES_MAX;
use crate::raft_types::{Raft, TypeConfig};

/// When this node last accepted something from a leader. Shared by its clones.
#[derive(Clone)]
pub struct Heard(Arc<Mutex<Instant>>);

impl Heard {
    /// Counts from now.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Since then.
    pub fn elapsed(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn mark(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// Hands members' calls to openraft.
pub struct Service {
    raft: Raft,
    heard: Heard,
}

impl Service {
    /// Ready for tonic's router.
    pub fn server(raft: Raft, heard: Heard) -> ConsensusServer<Self> {
        ConsensusServer::new(Self { raft, heard })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn read<T: DeserializeOwned>(request: Request<Body>) -> Result<T, Status> {
    serde_json::from_slice(&request.into_inner().json).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn write<T: Serialize>(answer: &T) -> Result<Response<Body>, Status> {
    let json = serde_json::to_vec(answer).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::new(Body { json }))
}

#[tonic::async_trait]
impl Consensus for Service {
    async fn append_entries(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let request: AppendEntriesRequest<TypeConfig> = read(request)?;
        let answer = self.raft.append_entries(request).await;
        // An old leader hears of a higher vote; that is no news of the one that leads.
        if answer.as_ref().is_ok_and(|answer| !matches!(answer, AppendEntriesResponse::HigherVote(_))) {
            self.heard.mark();
        }
        write(&answer)
    }

    async fn install_snapshot(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let request: InstallSnapshotRequest<TypeConfig> = read(request)?;
        let vote = request.vote;
        let answer = self.raft.install_snapshot(request).await;
        if answer.as_ref().is_ok_and(|answer| answer.vote == vote) {
            self.heard.mark();
        }
        write(&answer)
    }

    async fn vote(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        write(&self.raft.vote(read(request)?).await)
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        let command = serde_json::from_slice(&request.into_inner().command)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        match self.raft.client_write(command).await {
            Ok(done) => {
                let reply = serde_json::to_vec(&done.data).map_err(|error| Status::internal(error.to_string()))?;
                Ok(Response::new(ProposeReply { reply, not_leader: false, leader: 0 }))
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                let leader = to.leader_id.unwrap_or(0);
                Ok(Response::new(ProposeReply { reply: Vec::new(), not_leader: true, leader }))
            }
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    async fn read_index(&self, _: Request<ReadIndexRequest>) -> Result<Response<ReadIndexReply>, Status> {
        match self.raft.get_read_log_id().await {
            Ok((read, _)) => {
                let index = read.map_or(0, |id| id.index);
                Ok(Response::new(ReadIndexReply { not_leader: false, index }))
            }
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => {
                Ok(Response::new(ReadIndexReply { not_leader: true, index: 0 }))
            }
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}
