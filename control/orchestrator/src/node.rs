//! What the orchestrator asks about nodes.

use control_model::NodeId;
use control_model::object::{Node, NodeState};
use control_model::spec::Availability;
use control_store::State;

/// Tasks can't stay there: it is gone, lost, or being drained.
///
/// A node that shows `Down` while its data path answers is neither: its tasks are alive, nothing is moved.
pub(crate) fn must_leave(node: Option<&Node>) -> bool {
    is_gone(node) || node.is_some_and(|node| node.spec.availability == Availability::Drain)
}

/// It is not in the cluster any more, or both its agent and its data path are dead.
pub(crate) fn is_gone(node: Option<&Node>) -> bool {
    node.is_none_or(|node| node.status.state == NodeState::Down && !node.status.data_path_alive)
}

/// Its agent takes orders: a task there can be waited for.
pub(crate) fn listens(node: Option<&Node>) -> bool {
    node.is_some_and(|node| node.status.state != NodeState::Down)
}

/// A global service may begin a task there.
pub(crate) fn takes_global_tasks(node: &Node) -> bool {
    node.spec.availability == Availability::Active && node.status.state != NodeState::Down
}

/// The node that a task is bound to.
pub(crate) fn node_of(state: &State, id: Option<NodeId>) -> Option<&Node> {
    state.nodes().get(&id?).map(AsRef::as_ref)
}

/// Whether the change of a node can change what its tasks, or global services, need.
pub(crate) fn matters(before: &Node, after: &Node) -> bool {
    before.status.state != after.status.state
        || before.status.data_path_alive != after.status.data_path_alive
        || before.status.addr != after.status.addr
        || before.spec != after.spec
        || before.description != after.description
        || before.certificate_role != after.certificate_role
}
