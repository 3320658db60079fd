//! The node's view of the network, made of its assignments and of what its own tasks are doing. Pure: the same inputs
//! give the same view, whatever came before them.
//!
//! A view follows the one before: what differs in the sources says which rows are made anew, and all others are shared
//! (`docs/adr/0009`). [`rows`] says what is in a row, [`index`] finds the endpoints that a row is made of.

mod index;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use control_model::gossip::Opinion;
use control_model::{Generation, Network, NetworkId, NodeId, ServiceId, Task, TaskId};
use dataplane_model::{self as dp, Table, changed, put, remove_rows};

use crate::machine::Phase;
use crate::set::AssignmentSet;
use index::Index;
use rows::Rows;

pub use rows::addresses6;

/// What does not come from the managers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeContext {
    pub node: NodeId,
    pub hostname: String,
    /// This node's tunnel end.
    pub vtep: IpAddr,
    pub vxlan_port: u16,
}

/// Makes views; remembers what the last one was made of.
#[derive(Debug)]
pub struct ViewMaker {
    context: NodeContext,
    sources: Sources,
    opinion: Arc<Opinion>,
    index: Index,
    view: dp::NodeView,
}

/// What a view is made of besides the context. A clone shares its rows.
#[derive(Debug, Clone, Default, PartialEq)]
struct Sources {
    set: AssignmentSet,
    /// Those of the set, and those that left it while a sandbox of this node is in them.
    networks: Table<NetworkId, Network>,
    /// The own tasks that have a sandbox.
    own: Table<TaskId, (Task, Phase)>,
    /// What gossip takes out of rotation.
    opinion: Arc<Opinion>,
}

impl ViewMaker {
    pub fn new(context: NodeContext) -> Self {
        let view = dp::NodeView {
            revision: 0,
            generation: dp::Generation::default(),
            vtep: context.vtep,
            vxlan_port: context.vxlan_port,
            ingress: None,
            networks: Table::new(),
            sandboxes: Table::new(),
            remote_endpoints: Table::new(),
            services: Table::new(),
            peers: Table::new(),
        };
        Self { context, sources: Sources::default(), opinion: Arc::default(), index: Index::default(), view }
    }

    /// What gossip thinks from now on; the next view follows it.
    pub fn hear(&mut self, opinion: Arc<Opinion>) {
        self.opinion = opinion;
    }

    /// The view of `set`, of the own tasks that have a sandbox and of what gossip thinks, without a revision; `None` if nothing that a view is made
    /// of has changed. Costs what has; but a network, or a node's tunnel end, that comes, goes or changes, and a node that
    /// falls silent or is heard again, costs one look at each endpoint, and a change of the other nodes one at each of them.
    pub fn next<'a>(
        &mut self,
        set: &AssignmentSet,
        tasks: impl IntoIterator<Item = (&'a Task, Phase)>,
    ) -> Option<&dp::NodeView> {
        let after = self.sources.next(set, tasks, &self.opinion);
        if after == self.sources {
            return None;
        }
        self.follow(after);
        Some(&self.view)
    }

    /// The one that was made last.
    pub fn view(&self) -> &dp::NodeView {
        &self.view
    }

    fn follow(&mut self, after: Sources) {
        let before = std::mem::replace(&mut self.sources, after);
        let (after, view) = (&self.sources, &mut self.view);
        let Generation { epoch, index } = after.set.generation();
        view.generation = dp::Generation { epoch, index };

        let networks: BTreeSet<NetworkId> = changed(&before.networks, &after.networks).collect();
        for id in &networks {
            put(&mut view.networks, rows::key(*id), after.networks.get(id).and_then(rows::network));
        }
        let ingress = rows::ingress(&after.set, &view.networks);
        let is_same_ground = networks.is_empty() && ingress == view.ingress;
        view.ingress = ingress;

        let endpoints = touched_endpoints(&before, after, &networks);
        let mut touched = self.index.replace(&endpoints, &before.set.endpoints, &after.set.endpoints);
        touched.services.extend(touched_services(&before, after, &networks));

        let rows = Rows {
            context: &self.context,
            set: &after.set,
            own: &after.own,
            opinion: &after.opinion,
            networks: view.networks.clone(),
            ingress,
            index: &self.index,
        };
        for place in touched.places {
            put(&mut view.remote_endpoints, rows::place_key(place), rows.remote_endpoint(place));
        }
        for id in touched.services {
            put(&mut view.services, rows::service_key(id), rows.service(id));
        }
        for id in touched_sandboxes(&before, after, is_same_ground) {
            put(&mut view.sandboxes, dp::SandboxId(id.to_string()), rows.sandbox(id));
        }
        if before.set.peers != after.set.peers {
            let peers = rows.peers();
            remove_rows(&mut view.peers, |vtep, _| !peers.contains_key(vtep));
            for (vtep, peer) in peers {
                put(&mut view.peers, vtep, Some(peer));
            }
        }
    }
}

impl Sources {
    /// Those of the next view.
    fn next<'a>(
        &self,
        set: &AssignmentSet,
        tasks: impl IntoIterator<Item = (&'a Task, Phase)>,
        opinion: &Arc<Opinion>,
    ) -> Self {
        let mut own = self.own.clone();
        let (mut present, mut in_use) = (BTreeSet::new(), BTreeSet::new());
        for (task, phase) in tasks {
            present.insert(task.id);
            in_use.extend(task.attachments.iter().map(|attachment| attachment.network));
            if own.get(&task.id).is_none_or(|(known, in_phase)| known != task || *in_phase != phase) {
                own.insert(task.id, (task.clone(), phase));
            }
        }
        remove_rows(&mut own, |id, _| !present.contains(id));
        let mut networks = self.networks.clone();
        for id in changed(&self.set.networks, &set.networks) {
            set.networks.get(&id).map(|network| networks.insert(id, network.clone()));
        }
        remove_rows(&mut networks, |id, _| !set.networks.contains_key(id) && !in_use.contains(id));
        Self { set: set.clone(), networks, own, opinion: opinion.clone() }
    }

    fn tunnel_end(&self, node: NodeId) -> Option<IpAddr> {
        self.set.peers.get(&node).map(|peer| peer.vtep)
    }
}

/// Endpoints whose rows may be others. What an own task's process is doing is in its endpoint's rows too.
fn touched_endpoints(before: &Sources, after: &Sources, networks: &BTreeSet<NetworkId>) -> BTreeSet<TaskId> {
    let mut moved: BTreeSet<NodeId> = changed(&before.set.peers, &after.set.peers)
        .filter(|id| before.tunnel_end(*id) != after.tunnel_end(*id))
        .collect();
    let mut touched: BTreeSet<TaskId> = changed(&before.set.endpoints, &after.set.endpoints).collect();
    touched.extend(changed(&before.own, &after.own));
    touched.extend(before.opinion.ended.symmetric_difference(&after.opinion.ended));
    moved.extend(before.opinion.silent_paths.symmetric_difference(&after.opinion.silent_paths));
    if !moved.is_empty() || !networks.is_empty() {
        let concerned = after.set.endpoints.values().filter(|endpoint| {
            moved.contains(&endpoint.node)
                || endpoint.attachments.iter().any(|attachment| networks.contains(&attachment.network))
        });
        touched.extend(concerned.map(|endpoint| endpoint.task));
    }
    touched
}

/// Services that are others, or have a name or an address in one of `networks`.
fn touched_services(
    before: &Sources,
    after: &Sources,
    networks: &BTreeSet<NetworkId>,
) -> BTreeSet<ServiceId> {
    let mut touched: BTreeSet<ServiceId> = changed(&before.set.services, &after.set.services).collect();
    if !networks.is_empty() {
        let concerned = after.set.services.values().filter(|service| {
            let vips = service.endpoint.vips.iter().map(|(network, _)| network);
            vips.chain(service.aliases.iter().map(|(network, _)| network)).any(|id| networks.contains(id))
        });
        touched.extend(concerned.map(|service| service.id));
    }
    touched
}

/// Own tasks that are others; all, where a network is.
fn touched_sandboxes(before: &Sources, after: &Sources, is_same_ground: bool) -> BTreeSet<TaskId> {
    let mut touched: BTreeSet<TaskId> = changed(&before.own, &after.own).collect();
    if !is_same_ground {
        touched.extend(after.own.keys());
    }
    touched
}
