//! The sending side.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{AnyError, BasicNode};
use quorate_proto::consensus::Body;
use quorate_proto::consensus::consensus_client::ConsensusClient;
use quorate_types::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;

use super::{Dial, MESSAGE_BYTES_MAX};
use crate::raft_types::TypeConfig;

/// How soon a silent member is tried again; a node that comes back should not wait.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Makes connections for openraft.
#[derive(Clone)]
pub struct Network {
    dial: Arc<dyn Dial>,
}

impl Network {
    pub fn new(dial: Arc<dyn Dial>) -> Self {
        Self { dial }
    }

    /// A client for any member.
    pub fn client(&self, node: NodeId, address: IpAddr) -> ConsensusClient<Channel> {
        ConsensusClient::new(self.dial.channel(node, address))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        // A membership entry without a readable address can only come from a bug; the peer is then unreachable.
        let address = node.addr.parse::<IpAddr>().ok();
        Peer { target, client: address.map(|address| self.client(NodeId(target), address)) }
    }
}

/// One member as openraft's replication sees it.
pub struct Peer {
    target: u64,
    client: Option<ConsensusClient<Channel>>,
}

type Failure<E> = RPCError<u64, BasicNode, E>;

enum Call {
    Append,
    Snapshot,
    Vote,
}

impl Peer {
    async fn call<Q, A, E>(&self, call: Call, request: &Q, option: &RPCOption) -> Result<A, Failure<E>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let network = |error: &dyn std::error::Error| {
            RPCError::Network(NetworkError::new(&std::io::Error::other(error.to_string())))
        };
        let unreachable = |text: String| RPCError::Unreachable(Unreachable::new(&AnyError::error(text)));
        let Some(client) = &self.client else {
            return Err(unreachable(format!("{} has no address", NodeId(self.target))));
        };
        let body = Body { json: serde_json::to_vec(request).map_err(|error| network(&error))? };
        let mut client = client.clone();
        let exchange = async {
            match call {
                Call::Append => client.append_entries(body).await,
                Call::Snapshot => client.install_snapshot(body).await,
                Call::Vote => client.vote(body).await,
            }
        };
        let answer = match tokio::time::timeout(option.hard_ttl(), exchange).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(unreachable(status.message().to_owned())),
            Err(_) => return Err(unreachable("no answer in time".into())),
        };
        let result: Result<A, E> = serde_json::from_slice(&answer.json).map_err(|error| network(&error))?;
        result.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failure<RaftError<u64>>> {
        self.call(Call::Append, &rpc, &option).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failure<RaftError<u64, InstallSnapshotError>>> {
        self.call(Call::Snapshot, &rpc, &option).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failure<RaftError<u64>>> {
        self.call(Call::Vote, &rpc, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_PAUSE))
    }
}
