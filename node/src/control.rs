//! The control service on port 8300: what the other members may ask this node.

use std::sync::{Arc, Mutex, PoisonError};

use quorate_proto::control::control_server::{Control, ControlServer};
use quorate_proto::control::{
    FreezeReply, FreezeRequest, LeaseReply, LeaseRequest, ObserveReply, ObserveRequest, Position, ResignReply,
    ResignRequest, Streaming, SyncInEffect,
};
use quorate_types::Epoch;
use tonic::{Request, Response, Status};

use crate::local::{Local, role_name};

/// The service.
pub struct ControlService {
    local: Arc<Local>,
    decision: Arc<Mutex<String>>,
}

impl ControlService {
    /// Ready for tonic's router.
    pub fn server(local: Arc<Local>, decision: Arc<Mutex<String>>) -> ControlServer<Self> {
        ControlServer::new(Self { local, decision })
    }
}

/// What this node says about itself.
pub fn own_reply(local: &Local, decision: String) -> ObserveReply {
    let status = local.status().borrow().clone();
    ObserveReply {
        node: local.me().0,
        promised_epoch: local.promised().0,
        role: role_name(status.role).to_owned(),
        epoch: status.epoch.0,
        position: status.position.map(on_the_wire),
        sync: status.sync.map(|sync| SyncInEffect {
            num_sync: u32::try_from(sync.num_sync).unwrap_or(u32::MAX),
            members: sync.members.iter().map(|node| node.0).collect(),
        }),
        streaming: status.lags.iter().map(|(node, lag)| Streaming { node: node.0, lag_bytes: *lag }).collect(),
        note: status.note,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        holder_heard_ms: local.holder_heard().map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        decision,
    }
}

fn on_the_wire(position: quorate_core::failover::Position) -> Position {
    Position { lineage: position.lineage.0, timeline: position.timeline.0, lsn: position.lsn.0 }
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn observe(&self, _: Request<ObserveRequest>) -> Result<Response<ObserveReply>, Status> {
        let decision = self.decision.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Response::new(own_reply(&self.local, decision)))
    }

    async fn freeze(&self, request: Request<FreezeRequest>) -> Result<Response<FreezeReply>, Status> {
        let epoch = Epoch(request.into_inner().epoch);
        let report = self.local.freeze(epoch).await;
        Ok(Response::new(FreezeReply {
            accepted: report.position.is_some() && report.promised == epoch,
            promised_epoch: report.promised.0,
            position: report.position.map(on_the_wire),
            note: report.note,
        }))
    }

    async fn lease(&self, request: Request<LeaseRequest>) -> Result<Response<LeaseReply>, Status> {
        let promised = self.local.lease_asked(Epoch(request.into_inner().epoch));
        Ok(Response::new(LeaseReply { promised_epoch: promised.0 }))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignReply>, Status> {
        let request = request.into_inner();
        let result = self.local.resign(Epoch(request.epoch), &request.reason).await;
        Ok(Response::new(ResignReply { accepted: result.is_ok(), note: result.err().unwrap_or_default() }))
    }
}
