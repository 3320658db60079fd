//! Who was a manager. The certificate of one lives on for weeks after its demotion or removal.

use std::net::SocketAddr;

use control_model::object::Node;
use control_model::spec::Role;
use control_model::{NodeId, Timestamp};
use imbl::Vector;
use serde::{Deserialize, Serialize};

/// How many are remembered; a cluster has seven managers at most by Docker's advice, and certificates live 90 days.
const MAX_FORMER: usize = 1024;

/// The nodes that were managers and are none, by when they last were, the last one last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerManagers(Vector<FormerManager>);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerManager {
    pub node: NodeId,
    /// When it ceased to be a manager, by the clock of who wrote that.
    pub until: Timestamp,
    /// Where its RPC was, if it ever took part in Raft.
    pub addr: Option<SocketAddr>,
}

impl FormerManagers {
    /// Until when `node` was a manager, by the clock of who wrote that; `None` of one that is none of these.
    pub fn until(&self, node: NodeId) -> Option<Timestamp> {
        self.iter().find(|former| former.node == node).map(|former| former.until)
    }

    pub fn iter(&self) -> impl Iterator<Item = &FormerManager> {
        self.0.iter()
    }

    /// A node becomes another, or is removed. One that is another manager now, with a Raft id of its own, may be so on another
    /// machine: where it was counts too.
    pub(crate) fn note(&mut self, before: &Node, after: Option<&Node>, at: Timestamp) {
        let raft_ids = (before.manager, after.and_then(|after| after.manager));
        let is_another = matches!(raft_ids, (Some(before), Some(after)) if before.raft_id != after.raft_id);
        if !is_manager(before) || (after.is_some_and(is_manager) && !is_another) {
            return;
        }
        let known = self.iter().find(|former| former.node == before.id).and_then(|former| former.addr);
        let addr = before.manager.map(|manager| manager.addr).or(known);
        self.0.retain(|former| former.node != before.id);
        self.0.push_back(FormerManager { node: before.id, until: at, addr });
        if self.0.len() > MAX_FORMER {
            self.0.pop_front();
        }
    }
}

/// Wanted as one, or in Raft still.
fn is_manager(node: &Node) -> bool {
    node.spec.role == Role::Manager || node.manager.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u128, role: Role) -> Node {
        Node::new(NodeId::from_bits(id), role)
    }

    #[test]
    fn where_it_was_is_remembered() {
        let mut former = FormerManagers::default();
        let addr = "198.18.0.11:2377".parse().unwrap();
        let status = control_model::object::ManagerStatus { raft_id: 1, addr };
        let in_raft = Node { manager: Some(status), ..node(1, Role::Worker) };
        former.note(&in_raft, Some(&node(1, Role::Worker)), Timestamp(1));
        former.note(&node(1, Role::Manager), Some(&node(1, Role::Worker)), Timestamp(2));
        former.note(&node(2, Role::Manager), None, Timestamp(3));
        let again = |raft_id| Node {
            manager: Some(control_model::object::ManagerStatus { raft_id, addr }),
            ..node(4, Role::Manager)
        };
        former.note(&again(4), Some(&again(4)), Timestamp(4));
        former.note(&again(4), Some(&again(5)), Timestamp(5));
        let found: Vec<_> = former.iter().map(|former| (former.until.0, former.addr)).collect();
        assert_eq!(found, [(2, Some(addr)), (3, None), (5, Some(addr))]);
    }

    #[test]
    fn who_was_a_manager_is_remembered_until_too_many_were_after_it() {
        let mut former = FormerManagers::default();
        let (manager, worker) = (|id| node(id, Role::Manager), |id| node(id, Role::Worker));
        former.note(&worker(1), None, Timestamp(1));
        former.note(&manager(2), Some(&manager(2)), Timestamp(1));
        assert_eq!(former, FormerManagers::default(), "a worker was none, and a manager is one");
        former.note(&manager(3), Some(&worker(3)), Timestamp(2));
        former.note(&manager(4), None, Timestamp(3));
        former.note(&manager(3), None, Timestamp(4));
        let until = |former: &FormerManagers, id| former.until(NodeId::from_bits(id)).map(|at| at.0);
        assert_eq!([3, 4, 5].map(|id| until(&former, id)), [Some(4), Some(3), None]);
        for id in 0..1023 {
            former.note(&manager(100 + id), None, Timestamp(5));
        }
        assert_eq!([4, 3].map(|id| until(&former, id)), [None, Some(4)], "the oldest makes room");
    }
}
