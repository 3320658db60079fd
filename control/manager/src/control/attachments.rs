//! Places in networks for containers that no service made (swarmkit `manager/resourceapi`): a task each, which holds the place
//! until its node says that the container has ended.

use control_model::change::{Change, Object};
use control_model::standalone::AttachRequest;
use control_model::{NodeId, TaskId, TaskState};
use control_store::State;

use super::{Control, ControlError, find_network};

/// Of one node: more than it can have containers.
const MAX_ATTACHMENTS: usize = 1000;

impl Control {
    /// Asks for a place for `node`; one that was asked for before is there.
    pub async fn attach(&self, node: NodeId, request: &AttachRequest) -> Result<(), ControlError> {
        self.write(|state| {
            if state.tasks().get(&request.id).is_some() {
                return Ok((Vec::new(), ()));
            }
            let network = find_network(state, &request.network)?;
            if !network.spec.attachable {
                return Err(ControlError::NotAttachable(network.spec.name.clone()));
            }
            if state.tasks_of_node(node).filter(|task| task.is_attachment()).count() >= MAX_ATTACHMENTS {
                return Err(ControlError::TooManyAttachments(MAX_ATTACHMENTS));
            }
            let task = request.clone().task(node, network.id);
            Ok((vec![Change::Create(Object::Task(Box::new(task)))], ()))
        })
        .await
    }

    /// Gives a place of `node` up that its agent may never hear of. One that is not there is success.
    pub async fn detach(&self, node: NodeId, id: TaskId) -> Result<(), ControlError> {
        self.write(|state| Ok((detached(state, node, id).into_iter().collect(), ()))).await
    }
}

fn detached(state: &State, node: NodeId, id: TaskId) -> Option<Change> {
    let task = state.tasks().get(&id)?;
    let is_its = task.is_attachment() && task.node == Some(node);
    (is_its && task.desired_state < TaskState::Remove)
        .then_some(Change::TaskDesired { id, state: TaskState::Remove })
}
