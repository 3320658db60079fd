//! Nodes: list, look up, change role, availability and labels, remove.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use control_model::object::{NodeState, TaskStatus};
use control_model::spec::{NodeSpec, Role};
use control_model::{Change, Node, NodeId, Object, ObjectRef, TaskState};
use control_store::State;

use super::Control;
use super::error::{ControlError, Kind};
use super::lookup::{LabelFilter, find, labels_match, starts_with_any};

/// Which nodes a list shows. Values of one field are alternatives, fields are all needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFilter {
    pub id_prefixes: Vec<String>,
    pub name_prefixes: Vec<String>,
    pub engine_labels: LabelFilter,
    pub node_labels: LabelFilter,
    pub roles: Vec<Role>,
}

impl NodeFilter {
    fn matches(&self, node: &Node) -> bool {
        starts_with_any(&node.id.to_string(), &self.id_prefixes)
            && starts_with_any(&node.description.hostname, &self.name_prefixes)
            && labels_match(&node.description.engine_labels, &self.engine_labels)
            && labels_match(&node.spec.labels, &self.node_labels)
            && (self.roles.is_empty() || self.roles.contains(&node.spec.role))
    }
}

impl Control {
    /// The nodes that `filter` lets through, by id.
    pub async fn list_nodes(&self, filter: &NodeFilter) -> Result<Vec<Arc<Node>>, ControlError> {
        Ok(self.read().await?.nodes().iter().filter(|n| filter.matches(n)).cloned().collect())
    }

    /// The node that `input` names: id, host name, or beginning of an id.
    pub async fn node(&self, input: &str) -> Result<Arc<Node>, ControlError> {
        find_node(&*self.read().await?, input).cloned()
    }

    /// Gives the node `input` another spec, if its spec still has `version`. `unreachable` are the managers that do
    /// not answer: a demotion that would lose the quorum is refused. A promotion waits until the node has laid down
    /// the manager that it was before: it must come back as a new member of Raft.
    pub async fn update_node(
        &self,
        input: &str,
        version: u64,
        spec: NodeSpec,
        unreachable: &BTreeSet<NodeId>,
    ) -> Result<(), ControlError> {
        let promotes_too_early = |node: &Node| spec.role == Role::Manager && is_being_demoted(node);
        self.wait_while(|state| find_node(state, input).is_ok_and(|node| promotes_too_early(node))).await;
        self.write(|state| {
            let old = find_node(state, input)?;
            if old.meta.spec_version != version {
                return Err(ControlError::OutOfSequence);
            }
            if promotes_too_early(old) {
                return Err(ControlError::BeingDemoted(old.id));
            }
            let node = Node { spec: spec.clone(), ..(**old).clone() };
            let expected = old.meta.version;
            let mut changes = vec![Change::Update { object: Object::Node(Box::new(node)), expected }];
            if old.spec.role == Role::Manager && spec.role == Role::Worker {
                check_demotion(state, old.id, unreachable)?;
                changes.extend(one_at_a_time(state));
            }
            Ok((changes, ()))
        })
        .await
    }

    /// Forgets the node `input`; its tasks end as orphaned. Managers are demoted first, live nodes leave first.
    pub async fn remove_node(&self, input: &str, force: bool) -> Result<(), ControlError> {
        let now = (self.clock)();
        self.write(|state| {
            let node = find_node(state, input)?;
            if node.spec.role == Role::Manager && node.manager.is_some() {
                return Err(ControlError::IsManager(node.id));
            }
            if !force && node.status.state == NodeState::Ready {
                return Err(ControlError::NotDown(node.id));
            }
            let orphans = state.tasks_of_node(node.id).filter(|task| !task.status.state.is_terminal());
            let mut changes: Vec<_> = orphans
                .map(|task| Change::TaskStatus {
                    id: task.id,
                    status: TaskStatus {
                        state: TaskState::Orphaned,
                        at: now,
                        message: "Task belonged to a node that has been deleted".into(),
                        ..TaskStatus::default()
                    },
                })
                .collect();
            changes.push(Change::Delete(ObjectRef::Node(node.id)));
            Ok((changes, ()))
        })
        .await
    }
}

pub(super) fn find_node<'a>(state: &'a State, input: &str) -> Result<&'a Arc<Node>, ControlError> {
    let nodes = || state.nodes().iter().map(|node| (node.id, node));
    find(Kind::Node, input, |id| state.nodes().get(&id), nodes, |n| Cow::Borrowed(&n.description.hostname))
}

/// It is to be a worker, and still has the certificate of a manager.
fn is_being_demoted(node: &Node) -> bool {
    node.spec.role == Role::Worker && node.certificate_role == Role::Manager
}

/// A demotion counts on the managers that it has seen: of two at once the second one is refused, and looked at anew.
fn one_at_a_time(state: &State) -> Option<Change> {
    let cluster = state.cluster()?;
    let object = Object::Cluster(Box::new((**cluster).clone()));
    Some(Change::Update { object, expected: cluster.meta.version })
}

/// Without `leaving`, more than half of the other managers must answer (swarmkit `raft.CanRemoveMember`).
fn check_demotion(
    state: &State,
    leaving: NodeId,
    unreachable: &BTreeSet<NodeId>,
) -> Result<(), ControlError> {
    let managers: Vec<_> =
        state.nodes().iter().filter(|n| n.spec.role == Role::Manager).map(|n| n.id).collect();
    if managers == [leaving] {
        return Err(ControlError::LastManager);
    }
    let others = managers.iter().filter(|id| **id != leaving);
    let n_reachable = others.filter(|id| !unreachable.contains(id)).count();
    let n_quorum = (managers.len() - 1) / 2 + 1;
    if n_reachable < n_quorum { Err(ControlError::Quorum) } else { Ok(()) }
}
