//! Who was a manager. The certificate of one lives on for weeks after its demotion or removal.

use control_model::object::Node;
use control_model::spec::Role;
use control_model::{NodeId, Timestamp};
use imbl::Vector;
use serde::{Deserialize, Serialize};

/// How many are remembered; a cluster has seven managers at most by Docker's advice, and certificates live 90 days.
const MAX_FORMER: usize = 1024;

/// The nodes that were managers and are none, by when they last were, the last one last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerManagers(Vector<(NodeId, Timestamp)>);

impl FormerManagers {
    /// Until when `node` was a manager, by the clock of who wrote that; `None` of one that is none of these.
    pub fn until(&self, node: NodeId) -> Option<Timestamp> {
        self.0.iter().find(|(id, _)| *id == node).map(|(_, until)| *until)
    }

    /// A node becomes another, or is removed.
    pub(crate) fn note(&mut self, before: &Node, after: Option<&Node>, at: Timestamp) {
        if !is_manager(before) || after.is_some_and(is_manager) {
            return;
        }
        self.0.retain(|(id, _)| *id != before.id);
        self.0.push_back((before.id, at));
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
