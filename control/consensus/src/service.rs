//! The server side of the Raft RPC.

use control_rpc::pb;
use tonic::{Request, Response, Status, Streaming};

/// Serves other managers.
pub struct RaftService {}

#[tonic::async_trait]
impl pb::raft_server::Raft for RaftService {
    async fn append_entries(&self, _: Request<pb::Payload>) -> Result<Response<pb::Payload>, Status> {
        unimplemented!()
    }
    async fn vote(&self, _: Request<pb::Payload>) -> Result<Response<pb::Payload>, Status> {
        unimplemented!()
    }
    async fn pre_vote(&self, _: Request<pb::Payload>) -> Result<Response<pb::Payload>, Status> {
        unimplemented!()
    }
    async fn install_snapshot(
        &self,
        _: Request<Streaming<pb::Payload>>,
    ) -> Result<Response<pb::Payload>, Status> {
        unimplemented!()
    }
    async fn transfer_leader(&self, _: Request<pb::Payload>) -> Result<Response<pb::Payload>, Status> {
        unimplemented!()
    }
    async fn propose(&self, _: Request<pb::Payload>) -> Result<Response<pb::Payload>, Status> {
        unimplemented!()
    }
    async fn read_index(&self, _: Request<pb::Empty>) -> Result<Response<pb::ReadIndexReply>, Status> {
        unimplemented!()
    }
    async fn join(&self, _: Request<pb::RaftJoinRequest>) -> Result<Response<pb::RaftJoinReply>, Status> {
        unimplemented!()
    }
    async fn remove(&self, _: Request<pb::RaftRemoveRequest>) -> Result<Response<pb::Empty>, Status> {
        unimplemented!()
    }
}
