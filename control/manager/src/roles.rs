//! Keeps Raft's membership and the nodes' wanted roles together, on the leader: a manager that is wanted as worker,
//! or was removed, leaves Raft before it loses its certificate; who is in Raft is written into its node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control_consensus::{Consensus, Leadership, Member};
use control_model::Change;
use control_model::object::ManagerStatus;
use control_model::spec::Role;
use control_store::{EventKind, EventReceiver, ReplicatedStore, State};
use futures::StreamExt;
use tokio::sync::watch;

use crate::leading::while_leading;

/// Members change without an event of the store; they are looked at this often.
const PERIOD: Duration = Duration::from_secs(1);

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Write(Box<Change>),
    RemoveVoter(u64),
}

/// What `members` and the nodes in `state` lack to agree.
fn plan(state: &State, members: &BTreeMap<u64, Member>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (raft_id, member) in members {
        let Some(node) = state.nodes().get(&member.node_id) else {
            steps.push(Step::RemoveVoter(*raft_id));
            continue;
        };
        let status = ManagerStatus { raft_id: *raft_id, addr: member.addr };
        let other = node.manager.filter(|m| m.raft_id != *raft_id && members.contains_key(&m.raft_id));
        if node.spec.role == Role::Worker {
            steps.push(Step::RemoveVoter(*raft_id));
        } else if other.is_none() && node.manager != Some(status) {
            let change = Change::NodeManager { id: node.id, manager: Some(status) };
            steps.push(Step::Write(Box::new(change)));
        }
    }
    for node in state.nodes().iter() {
        if node.manager.is_some_and(|m| !members.contains_key(&m.raft_id)) {
            let change = Change::NodeManager { id: node.id, manager: None };
            steps.push(Step::Write(Box::new(change)));
        }
    }
    steps
}

/// Works whenever this manager leads. Ends with consensus.
pub async fn run(consensus: Arc<Consensus>, leadership: watch::Receiver<Leadership>) {
    while_leading(leadership, |term| lead(&consensus, term)).await;
}

/// Never returns; after the end of consensus it does nothing.
async fn lead(consensus: &Consensus, term: u64) {
    let (_, mut events) = consensus.subscribe();
    loop {
        if let Err(error) = consensus.finish_change().await {
            tracing::warn!(%error, "a former leader's change of the managers is not finished");
        }
        for step in plan(&consensus.state(), &consensus.members()) {
            do_step(consensus, term, step).await;
        }
        tokio::select! {
            lagged = wait_for_nodes(&mut events) => if lagged { events = consensus.subscribe().1 },
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

async fn do_step(consensus: &Consensus, term: u64, step: Step) {
    match step {
        Step::Write(change) => {
            if let Err(error) = consensus.propose_as_leader(term, vec![*change]).await {
                tracing::warn!(%error, "manager status not written");
            }
        }
        Step::RemoveVoter(raft_id) => {
            tracing::info!(raft_id, "removing a manager from raft");
            if let Err(error) = consensus.remove_voter(raft_id).await {
                tracing::warn!(raft_id, %error, "manager not removed");
            }
        }
    }
}

/// Returns when a node has changed; true when events were missed.
async fn wait_for_nodes(events: &mut EventReceiver) -> bool {
    while let Some(batch) = events.next().await {
        if batch.events.iter().any(|event| matches!(event.kind, EventKind::Node(..))) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use control_model::{Entry, Node, NodeId, Object, RequestId, Timestamp};

    use super::*;

    fn state(nodes: &[(u128, Role, Option<u64>)]) -> State {
        let changes = nodes.iter().map(|(id, role, raft_id)| {
            let mut node = Node::new(NodeId::from_bits(*id), *role);
            node.manager = raft_id.map(status);
            Change::Create(Object::Node(Box::new(node)))
        });
        let entry = Entry { request: RequestId(1), at: Timestamp(0), changes: changes.collect() };
        let mut state = State::default();
        state.apply(1, &entry).expect("distinct nodes");
        state
    }

    fn status(raft_id: u64) -> ManagerStatus {
        ManagerStatus { raft_id, addr: addr(raft_id) }
    }

    fn addr(raft_id: u64) -> std::net::SocketAddr {
        format!("127.0.0.1:{}", 2000 + raft_id).parse().expect("an address")
    }

    fn members(list: &[(u64, u128)]) -> BTreeMap<u64, Member> {
        let member = |(raft_id, node): &(u64, u128)| Member {
            node_id: NodeId::from_bits(*node),
            addr: addr(*raft_id),
        };
        list.iter().map(|entry| (entry.0, member(entry))).collect()
    }

    fn write(id: u128, raft_id: Option<u64>) -> Step {
        let change = Change::NodeManager { id: NodeId::from_bits(id), manager: raft_id.map(status) };
        Step::Write(Box::new(change))
    }

    #[test]
    fn agreement_needs_nothing() {
        let state = state(&[(1, Role::Manager, Some(11)), (2, Role::Worker, None)]);
        assert_eq!(plan(&state, &members(&[(11, 1)])), []);
    }

    #[test]
    fn a_new_member_is_written() {
        let state = state(&[(1, Role::Manager, None)]);
        assert_eq!(plan(&state, &members(&[(11, 1)])), [write(1, Some(11))]);
    }

    #[test]
    fn a_demoted_manager_leaves_raft_and_then_its_node_says_so() {
        let state = state(&[(1, Role::Worker, Some(11))]);
        assert_eq!(plan(&state, &members(&[(11, 1)])), [Step::RemoveVoter(11)]);
        assert_eq!(plan(&state, &members(&[])), [write(1, None)]);
    }

    #[test]
    fn a_removed_node_leaves_raft() {
        assert_eq!(plan(&state(&[]), &members(&[(11, 1)])), [Step::RemoveVoter(11)]);
    }
}
