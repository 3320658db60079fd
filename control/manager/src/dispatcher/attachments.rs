//! What nodes ask for the containers that no service made: places in networks.

use control_model::standalone::AttachRequest;
use control_model::{NodeId, TaskId};
use control_rpc::{decode, pb};
use tonic::{Code, Status};

use super::Dispatcher;
use crate::clock;
use crate::control::{Control, ControlError, RpcCode};

/// Names, ports and resolvers of one container.
const MAX_REQUEST_BYTES: usize = 64 << 10;

impl Dispatcher {
    pub(super) async fn take_attach(&self, node: NodeId, message: &pb::AttachMessage) -> Result<(), Status> {
        self.trust.attachment(node, clock::monotonic())?;
        if message.body.len() > MAX_REQUEST_BYTES {
            return Err(Status::invalid_argument("an attachment of more than 64 KiB"));
        }
        let request: AttachRequest = decode(&message.body)?;
        self.known(node)?;
        Control::new(self.store.clone()).attach(node, &request).await.map_err(|error| refused(&error))
    }

    pub(super) async fn take_detach(&self, node: NodeId, message: &pb::DetachMessage) -> Result<(), Status> {
        self.trust.attachment(node, clock::monotonic())?;
        let id: TaskId =
            message.task_id.parse().map_err(|_| Status::invalid_argument("malformed task id"))?;
        Control::new(self.store.clone()).detach(node, id).await.map_err(|error| refused(&error))
    }

    fn known(&self, node: NodeId) -> Result<(), Status> {
        let is_member = self.store.state().nodes().get(&node).is_some();
        is_member.then_some(()).ok_or_else(|| super::removed(node))
    }
}

/// In swarmkit's codes. That nobody is attached there is no lie of the node's.
fn refused(error: &ControlError) -> Status {
    let code = match (error, error.rpc_code()) {
        (ControlError::NotFound { .. }, _) => Code::NotFound,
        (ControlError::NoLeader(_) | ControlError::NotManager, _) => Code::Unavailable,
        (_, Some(RpcCode::PermissionDenied)) => Code::PermissionDenied,
        (_, Some(RpcCode::ResourceExhausted)) => Code::ResourceExhausted,
        _ => Code::FailedPrecondition,
    };
    Status::new(code, error.to_string())
}
