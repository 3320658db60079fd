//! All nodes, and in the order of how much they have: a task of a service that is nowhere yet goes to the first that takes it,
//! and nobody looks at the others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use control_model::NodeId;

use crate::node_info::NodeInfo;

#[derive(Debug, Default)]
pub(crate) struct Nodes {
    by_id: BTreeMap<NodeId, NodeInfo>,
    /// By the number of tasks that count for spreading.
    by_load: BTreeSet<Load>,
}

/// A node's place in that order.
pub(crate) type Load = (usize, NodeId);

impl Nodes {
    pub(crate) fn get(&self, id: &NodeId) -> Option<&NodeInfo> {
        self.by_id.get(id)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &NodeInfo> {
        self.by_id.values()
    }

    /// The one with least behind this place, or of all; of equal ones the first by id.
    pub(crate) fn next_by_load(&self, behind: Option<Load>) -> Option<Load> {
        let from = behind.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_load.range((from, Bound::Unbounded)).next().copied()
    }

    pub(crate) fn insert(&mut self, info: NodeInfo) {
        self.remove(&info.node.id);
        self.by_load.insert(load(&info));
        self.by_id.insert(info.node.id, info);
    }

    pub(crate) fn remove(&mut self, id: &NodeId) {
        if let Some(info) = self.by_id.remove(id) {
            self.by_load.remove(&load(&info));
        }
    }

    /// Changes a node; `None` if it is not here.
    pub(crate) fn change<T>(&mut self, id: &NodeId, change: impl FnOnce(&mut NodeInfo) -> T) -> Option<T> {
        let info = self.by_id.get_mut(id)?;
        let before = load(info);
        let changed = change(info);
        let after = load(info);
        if before != after {
            self.by_load.remove(&before);
            self.by_load.insert(after);
        }
        Some(changed)
    }
}

fn load(info: &NodeInfo) -> Load {
    (info.n_active(), info.node.id)
}
