//! [`Planner`]: plans that follow each other. What a plan says depends on the view and the facts alone; what it costs, on
//! what of them has changed since the plan before.

use std::collections::{BTreeMap, BTreeSet};

use dataplane_model::kernel_state::{Endpoint, EndpointKey, Place};
use dataplane_model::{KernelState, Mac, NetworkKey, NodeView, ServiceKey, Table, Vni, changed, put};

use crate::facts::NodeFacts;
use crate::plan::{self, Plan, PlanError, all_own_addresses};
use crate::services::{Ground, Known, Services};

/// Makes plans; remembers the parts of the last one.
///
/// The parts: the node with its sandboxes, the peers, each endpoint, each service. An endpoint that comes, goes or moves makes
/// the services dirty that have it as a backend. Networks and the node's own addresses are in rows of all parts: when they
/// change, all is planned again, but for the rings.
#[derive(Debug, Default)]
pub struct Planner {
    /// What the last plan was made of.
    last: Option<(NodeView, NodeFacts)>,
    /// The node's and its sandboxes' part; of the endpoints, those in its sandboxes.
    node: Plan,
    services: Services,
    state: KernelState,
}

impl Planner {
    /// The wanted kernel state. After an error the planner is as it was.
    pub fn plan(&mut self, view: &NodeView, facts: &NodeFacts) -> Result<Plan, PlanError> {
        let uplink = plan::primary_uplink(view, facts)?;
        let gateway_subnet = plan::free_gateway_subnet(view, facts);
        let gateway_subnet6 = plan::free_gateway_subnet6(view, facts, uplink.1.mtu_bytes);
        let facts = &NodeFacts { gateway_subnet, gateway_subnet6, ..facts.clone() };
        let last = self.last.take().filter(|(of, with)| has_same_ground((of, with), (view, facts)));
        let mut known = Known::default();
        if last.is_none() {
            (self.services, known) = Services::afresh(std::mem::take(&mut self.services));
            (self.node, self.state) = (Plan::default(), KernelState::default());
        }
        let last = last.as_ref();
        let mut touched = BTreeSet::new();
        if last.is_none_or(|(of, with)| with != facts || !has_same_node(of, view)) {
            self.take_node(plan::node(view, facts, uplink), &mut touched);
        }
        if last.is_none_or(|(of, with)| with.uplinks != facts.uplinks || of.peers != view.peers) {
            (self.state.peers, self.state.owners) = plan::peers(view, facts);
        }
        let empty = Table::new();
        let before = last.map_or(&empty, |(of, _)| &of.remote_endpoints);
        touched.extend(changed(before, &view.remote_endpoints).filter_map(|(network, address)| {
            Some(EndpointKey { vni: view.networks.get(&network)?.vni, address })
        }));
        let empty = Table::new();
        let mut dirty: BTreeSet<ServiceKey> =
            changed(last.map_or(&empty, |(of, _)| &of.services), &view.services).collect();
        self.plan_endpoints(&touched, view, &mut dirty);
        self.services.plan(&dirty, &Ground { view, facts }, &known, &mut self.state);
        self.last = Some((view.clone(), facts.clone()));
        Ok(self.shown())
    }

    /// As [`Planner::plan`], from nothing but rings.
    pub fn plan_whole(&mut self, view: &NodeView, facts: &NodeFacts) -> Result<Plan, PlanError> {
        self.last = None;
        self.plan(view, facts)
    }

    fn shown(&self) -> Plan {
        let mut problems = self.node.problems.clone();
        problems.extend(self.services.problems().cloned());
        let Plan { reasons, refused, .. } = self.node.clone();
        Plan { state: self.state.clone(), reasons, refused, problems }
    }

    /// Takes over the node's tables; its endpoints are noted.
    fn take_node(&mut self, node: Plan, touched: &mut BTreeSet<EndpointKey>) {
        touched.extend(changed(&self.node.state.endpoints, &node.state.endpoints));
        let KernelState { endpoints, rings, vips, frontends, ports, peers, owners, .. } =
            std::mem::take(&mut self.state);
        let rest = node.state.clone();
        self.state = KernelState { endpoints, rings, vips, frontends, ports, peers, owners, ..rest };
        self.node = node;
    }

    /// Where the touched endpoints are now. The services of those that come, go or move are dirty.
    fn plan_endpoints(
        &mut self,
        touched: &BTreeSet<EndpointKey>,
        view: &NodeView,
        dirty: &mut BTreeSet<ServiceKey>,
    ) {
        let networks = if touched.is_empty() { BTreeMap::new() } else { by_vni(view) };
        for key in touched {
            let here = self.node.state.endpoints.get(key).cloned();
            let row = here.or_else(|| remote(*key, view, &networks));
            let row = row.map(|row| Endpoint { serves: self.services.serves(*key), ..row });
            if self.state.endpoints.get(key) != row.as_ref() {
                dirty.extend(self.services.of_endpoint(*key));
                put(&mut self.state.endpoints, *key, row);
            }
        }
    }
}

/// Do both have the same in what is in rows of all parts?
fn has_same_ground(one: (&NodeView, &NodeFacts), other: (&NodeView, &NodeFacts)) -> bool {
    one.0.networks == other.0.networks
        && one.0.ingress == other.0.ingress
        && all_own_addresses(one.1).eq(all_own_addresses(other.1))
}

/// Do both have the same in what the node's part is made of, besides the ground?
fn has_same_node(one: &NodeView, other: &NodeView) -> bool {
    one.vtep == other.vtep && one.vxlan_port == other.vxlan_port && one.sandboxes == other.sandboxes
}

fn by_vni(view: &NodeView) -> BTreeMap<Vni, Vec<NetworkKey>> {
    let mut networks: BTreeMap<Vni, Vec<NetworkKey>> = BTreeMap::new();
    for (key, network) in &view.networks {
        networks.entry(network.vni).or_default().push(*key);
    }
    networks
}

/// An endpoint of another node. An address that a sandbox here has is here, though a manager may still show its last node.
fn remote(key: EndpointKey, view: &NodeView, networks: &BTreeMap<Vni, Vec<NetworkKey>>) -> Option<Endpoint> {
    let mut networks = networks.get(&key.vni)?.iter();
    let remote = networks.find_map(|network| view.remote_endpoints.get(&(*network, key.address)))?;
    Some(Endpoint { mac: Mac::of_endpoint(key.address), place: Place::Remote(remote.vtep), serves: false })
}
