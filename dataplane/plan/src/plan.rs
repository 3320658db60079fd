//! [`plan`]: from the view and the machine's facts to the wanted kernel state; the parts of the node and of its peers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_model::kernel_state::{
    Device, Dual, Hook, LinkName, NodeRoute, Owner, PeerRow, Present, Settings, Singleton,
};
use dataplane_model::{KernelState, NodeView, Peer, SandboxId, Table, Vni};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::facts::{Forwarding6, NodeFacts, Uplink};
use crate::maglev::mix;
use crate::planner::Planner;
use crate::{hooks, sandboxes};

/// Bytes that VXLAN adds: outer IPv4 20 or IPv6 40, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 section 5).
pub(crate) const fn vxlan_overhead_bytes(vtep: IpAddr) -> u32 {
    match vtep {
        IpAddr::V4(_) => 50,
        IpAddr::V6(_) => 70,
    }
}

/// The least MTU of a link that carries IPv6 (RFC 8200 section 5).
pub(crate) const IPV6_MIN_MTU_BYTES: u32 = 1280;

/// Subnets tried for the gateway bridge. From 172.18.0.0/16 on they end with 172.31.0.0/16, the last private one (RFC 1918).
const MAX_GATEWAY_SUBNETS: u32 = 14;

/// Where the sequence of IPv6 prefixes of the gateway bridge begins: the bytes of its name's end, any number does.
const GATEWAY_PREFIX6_SEED: u64 = u64::from_be_bytes(*b"gwbridge");

/// Said of a kernel that can't reset sockets.
const NO_SOCKET_RESET: &str = "sockets to tasks that are gone stay silent until they time out: this kernel lacks \
                               CONFIG_INET_DIAG_DESTROY, or its modules tcp_diag and udp_diag";

/// What the kernel should hold, and what of the view it can't.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub state: KernelState,
    /// Why each hook is the way it is, for operators.
    pub reasons: BTreeMap<Hook, String>,
    /// Sandboxes that can't be built as the view asks.
    pub refused: BTreeMap<SandboxId, String>,
    /// What else of the view is left out, one sentence each.
    pub problems: Vec<String>,
}

/// Why there is no plan at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("no interface of this node has its data-path address {vtep}: see --data-path-addr")]
    NoUplink { vtep: IpAddr },
}

/// The wanted kernel state, planned from nothing.
pub fn plan(view: &NodeView, facts: &NodeFacts) -> Result<Plan, PlanError> {
    Planner::default().plan(view, facts)
}

/// The part of the node itself: all tables but those of peers and services; of the endpoints, those in its sandboxes.
pub(crate) fn node(view: &NodeView, facts: &NodeFacts, uplink: (&LinkName, &Uplink)) -> Plan {
    let mut plan = Plan::default();
    plan_node(view, facts, uplink, &mut plan);
    sandboxes::plan(view, facts, uplink.1.mtu_bytes, &mut plan);
    plan_prefixes6(view, facts, &mut plan.state);
    hooks::plan(facts, &mut plan);
    if !facts.has_socket_reset {
        plan.problems.push(NO_SOCKET_RESET.to_owned());
    }
    plan
}

pub(crate) fn primary_uplink<'a>(
    view: &NodeView,
    facts: &'a NodeFacts,
) -> Result<(&'a LinkName, &'a Uplink), PlanError> {
    facts
        .uplinks
        .iter()
        .find(|(_, uplink)| uplink.has(view.vtep))
        .ok_or(PlanError::NoUplink { vtep: view.vtep })
}

/// The subnet behind the gateway bridge: the one asked for, or the next of its size that no node has an address in and no
/// overlay network overlaps. A bridge on such a subnet would take the packets that are meant for them.
pub(crate) fn free_gateway_subnet(view: &NodeView, facts: &NodeFacts) -> Ipv4Network {
    let is_free = |subnet: &Ipv4Network| {
        let mut nodes = own_addresses(facts).chain(view.peers.values().flat_map(ipv4_addresses));
        let mut overlays = view.networks.values().map(|network| network.subnet);
        !nodes.any(|address| subnet.contains(address)) && !overlays.any(|overlay| overlay.overlaps(*subnet))
    };
    let asked = facts.gateway_subnet;
    let nth = |step: u32| {
        let first = asked.network().to_bits().checked_add(asked.size().checked_mul(step)?)?;
        Ipv4Network::new(first.into(), asked.prefix()).ok()
    };
    (0..MAX_GATEWAY_SUBNETS).map_while(nth).find(is_free).unwrap_or(asked)
}

/// The IPv6 prefix behind the gateway bridge: of the unique local ones (RFC 4193) the first of a fixed sequence that no node
/// has an address in and no overlay network overlaps. The addresses in it mean nothing outside of this node, so that nodes
/// may have the same. `None` where the bridge can't have IPv6, or nothing of it would be forwarded.
pub(crate) fn free_gateway_subnet6(
    view: &NodeView,
    facts: &NodeFacts,
    mtu_bytes: u32,
) -> Option<Ipv6Network> {
    let is_free = |subnet: &Ipv6Network| {
        let peers = view.peers.values().flat_map(|peer| peer.addresses.iter().copied());
        let mut nodes = all_own_addresses(facts).chain(peers);
        let mut overlays = view.networks.values().filter_map(|network| network.subnet6);
        !nodes.any(|address| matches!(address, IpAddr::V6(address) if subnet.contains(address)))
            && !overlays.any(|overlay| overlay.overlaps(*subnet))
    };
    let nth = |step: u32| {
        let random = u128::from(mix(GATEWAY_PREFIX6_SEED + u64::from(step)) >> 8);
        Ipv6Network::new((0xfd << 120 | random << 64).into(), 64).expect("a prefix of an address")
    };
    let is_possible = carries_ipv6(facts, mtu_bytes) && facts.forwarding6 != Forwarding6::Off;
    (0..MAX_GATEWAY_SUBNETS).map(nth).find(is_free).filter(|_| is_possible)
}

/// Can a link of this MTU have IPv6 addresses on this machine?
pub(crate) fn carries_ipv6(facts: &NodeFacts, mtu_bytes: u32) -> bool {
    facts.has_ipv6 && mtu_bytes >= IPV6_MIN_MTU_BYTES
}

fn ipv4_addresses(peer: &Peer) -> impl Iterator<Item = Ipv4Addr> + '_ {
    peer.addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

/// Devices, forwarding and routes of the node itself.
fn plan_node(view: &NodeView, facts: &NodeFacts, (name, uplink): (&LinkName, &Uplink), plan: &mut Plan) {
    let state = &mut plan.state;
    let overlay_mtu_bytes = uplink.mtu_bytes.saturating_sub(vxlan_overhead_bytes(view.vtep));
    let vxlan =
        Device::Vxlan { port: view.vxlan_port, mtu_bytes: overlay_mtu_bytes, over_ipv6: view.vtep.is_ipv6() };
    state.devices.insert(LinkName::vxlan(), vxlan);
    let bridge = Device::Bridge {
        address: sandboxes::bridge_address(facts),
        address6: sandboxes::bridge_address6(facts),
        mtu_bytes: uplink.mtu_bytes,
    };
    state.devices.insert(LinkName::gateway_bridge(), bridge);
    // From the tunnel device come answers to what tasks sent to published ports of this node.
    state.forwarding.extend([LinkName::gateway_bridge(), LinkName::vxlan()].map(|link| (link, Present)));
    state.forwarding.extend(facts.uplinks.keys().map(|uplink| (uplink.clone(), Present)));
    if facts.forwarding6 == Forwarding6::ByInterface && facts.gateway_subnet6.is_some() {
        let links = facts.uplinks.keys().cloned().chain([LinkName::gateway_bridge()]);
        state.forwarding6.extend(links.map(|link| (link, Present)));
    }
    let ingress = ingress_network(view);
    if let Some(network) = ingress {
        // Processes of the node reach tasks through the tunnel device; the source is what strict rp_filter expects back.
        let route = |source| NodeRoute { device: LinkName::vxlan(), source };
        // A node without an address of a family has none to ask from.
        let source = ipv4_of_node(view, facts).map(IpAddr::from);
        let source6 = ipv6_of_node(view, uplink).filter(|_| carries_ipv6(facts, overlay_mtu_bytes));
        let wanted = [
            Some(IpNetwork::from(network.subnet)).zip(source),
            network.subnet6.map(IpNetwork::from).zip(source6.map(IpAddr::from)),
        ];
        for (subnet, source) in wanted.into_iter().flatten() {
            match facts.connected.iter().find(|own| overlap(**own, subnet)) {
                Some(own) => plan.problems.push(taken_by_the_node(&network.name, subnet, *own)),
                None => drop(state.routes.insert(subnet, route(source))),
            }
        }
    }
    let settings = Settings {
        vtep: view.vtep,
        vxlan_port: view.vxlan_port,
        vxlan_device: LinkName::vxlan(),
        uplink: name.clone(),
        ingress: ingress.map(|network| network.vni),
        underlay_mtu_bytes: uplink.mtu_bytes,
    };
    state.settings.insert(Singleton, settings);
}

fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

/// A route to the subnet would take the node from its own network. What comes from outside doesn't need the route.
fn taken_by_the_node(name: &str, subnet: IpNetwork, own: IpNetwork) -> String {
    format!(
        "subnet {subnet} of network {name} overlaps this node's network {own}: the node's own processes, and tasks without \
         published ports, don't reach published ports from here; remove the network and make it anew with another subnet \
         (docker network create --ingress --subnet)"
    )
}

/// The address that this node is known by among IPv4's: the tunnel end where it is one.
pub(crate) fn ipv4_of_node(view: &NodeView, facts: &NodeFacts) -> Option<Ipv4Addr> {
    match view.vtep {
        IpAddr::V4(vtep) => Some(vtep),
        IpAddr::V6(_) => own_addresses(facts).min(),
    }
}

/// As [`ipv4_of_node`], for IPv6.
fn ipv6_of_node(view: &NodeView, uplink: &Uplink) -> Option<Ipv6Addr> {
    match view.vtep {
        IpAddr::V4(_) => uplink.addresses6.iter().min().copied(),
        IpAddr::V6(vtep) => Some(vtep),
    }
}

/// Who may send tunnelled packets, and who owns which address: a tunnel's end is its node's unless another node has it
/// among its addresses. What this node's interfaces hold is its own, whatever the cluster still thinks: an address may
/// just have moved here.
pub(crate) fn peers(view: &NodeView, facts: &NodeFacts) -> (Table<IpAddr, PeerRow>, Table<IpAddr, Owner>) {
    let mut owners: Table<IpAddr, Owner> =
        view.peers.keys().map(|vtep| (*vtep, Owner::Node(*vtep))).collect();
    for (vtep, peer) in &view.peers {
        owners.extend(peer.addresses.iter().map(|address| (*address, Owner::Node(*vtep))));
    }
    owners.extend(all_own_addresses(facts).map(|address| (address, Owner::ThisNode)));
    let peers = view.peers.iter().map(|(vtep, peer)| (*vtep, PeerRow { mtu_bytes: peer.mtu_bytes }));
    (peers.collect(), owners)
}

/// Both addresses of endpoints, and of who is behind the gateway bridge, belong together by their host number: the IPv6 prefix
/// goes as far as that.
fn plan_prefixes6(view: &NodeView, facts: &NodeFacts, state: &mut KernelState) {
    let networks = view.networks.values().map(|network| (network.vni, network.subnet, network.subnet6));
    for (vni, subnet, subnet6) in
        networks.chain([(sandboxes::BRIDGE, facts.gateway_subnet, facts.gateway_subnet6)])
    {
        let Some(subnet6) = subnet6 else { continue };
        let bits = 96 + subnet.prefix();
        let subnet6 = Ipv6Network::new(subnet6.network(), bits).expect("an IPv4 prefix has 32 bits at most");
        state.prefixes6.insert(vni, Dual { subnet, subnet6 });
    }
}

/// Addresses of both families that other machines reach this node by.
pub(crate) fn all_own_addresses(facts: &NodeFacts) -> impl Iterator<Item = IpAddr> + '_ {
    let ipv6 = facts.uplinks.values().flat_map(|uplink| uplink.addresses6.iter().copied().map(IpAddr::V6));
    own_addresses(facts).map(IpAddr::V4).chain(ipv6)
}

/// IPv4 addresses of this node that other machines reach it by.
pub(crate) fn own_addresses(facts: &NodeFacts) -> impl Iterator<Item = Ipv4Addr> + '_ {
    facts.uplinks.values().flat_map(|uplink| uplink.addresses.iter().copied())
}

pub(crate) fn ingress_network(view: &NodeView) -> Option<&dataplane_model::Network> {
    view.ingress.and_then(|key| view.networks.get(&key))
}

pub(crate) fn ingress_vni(view: &NodeView) -> Option<Vni> {
    ingress_network(view).map(|network| network.vni)
}
