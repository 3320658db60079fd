//! Sandboxes: their legs, what is behind each, the way out and its packet filter.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use dataplane_model::kernel_state::{
    AttachmentRole, AttachmentRow, Endpoint, EndpointKey, Leg, Leg6, LinkName, PacketFilter, Place,
    SandboxNet, Singleton, Vnis,
};
use dataplane_model::{Attachment, Mac, Network, NodeView, Sandbox, SandboxId, Vni, address6_of};
use ebpf_abi::limits::{BRIDGE_VNI, MAX_SANDBOX_NETWORKS};
use ipnetwork::{Ipv4Network, Ipv6Network};

use crate::facts::{Forwarding6, NodeFacts};
use crate::maglev::mix;
use crate::plan::{IPV6_MIN_MTU_BYTES, Plan, carries_ipv6, ingress_vni, ipv4_of_node, vxlan_overhead_bytes};

/// Routing table of `eth0`'s address; the next ones follow. Low numbers, but for the kernel's own at 253–255, are free in
/// a namespace that is ours.
const FIRST_TABLE: u32 = 100;
/// The rows of what is behind the gateway bridge have this in place of a network's VNI.
pub(crate) const BRIDGE: Vni = Vni::new(BRIDGE_VNI).expect("24 bits");
/// The smallest MTU of an IPv4 interface (RFC 791 section 3.2).
const MIN_MTU_BYTES: u32 = 68;

/// Said of a node with IPv6 addresses whose kernel won't forward to tasks what is sent to them.
const NO_FORWARDING6: &str = "ports of mode=host answer by IPv4 alone: before Linux 6.17 IPv6 is forwarded only where the \
                              host's net.ipv6.conf.all.forwarding is 1";

/// Address and prefix of the gateway bridge: the first of its subnet.
pub(crate) fn bridge_address(facts: &NodeFacts) -> Ipv4Network {
    let subnet = facts.gateway_subnet;
    let first = subnet.nth(1).unwrap_or(subnet.network());
    Ipv4Network::new(first, subnet.prefix()).expect("the prefix of a valid network")
}

/// The same of IPv6.
pub(crate) fn bridge_address6(facts: &NodeFacts) -> Option<Ipv6Network> {
    behind_bridge6(facts, bridge_address(facts).ip())
}

/// The IPv6 address of who has `address` behind the gateway bridge.
fn behind_bridge6(facts: &NodeFacts, address: Ipv4Addr) -> Option<Ipv6Network> {
    let subnet6 = facts.gateway_subnet6?;
    let address6 = address6_of(facts.gateway_subnet, subnet6, address);
    Some(Ipv6Network::new(address6, subnet6.prefix()).expect("the prefix of a valid network"))
}

/// Fills the tables of sandboxes, attachments, cookies and of the endpoints here, and the packet filter. Which endpoints
/// serve is known with the rings.
pub(crate) fn plan(view: &NodeView, facts: &NodeFacts, underlay_mtu_bytes: u32, plan: &mut Plan) {
    let mut gateway = GatewayAddresses::new(facts);
    let mut filter = PacketFilter {
        bridge: LinkName::gateway_bridge(),
        subnet: facts.gateway_subnet,
        subnet6: facts.gateway_subnet6,
        tunnel_port: view.vxlan_port,
        node: ipv4_of_node(view, facts),
        guarded: guarded(facts, facts.host_forwards),
        guarded6: guarded(facts, facts.forwarding6 == Forwarding6::Host),
        no_egress: BTreeSet::new(),
        host_ports: BTreeMap::new(),
        targets: Arc::default(),
    };
    for (id, sandbox) in &view.sandboxes {
        let overlay = match overlay_legs(view, id, sandbox, (facts, underlay_mtu_bytes)) {
            Ok(overlay) => overlay,
            Err(reason) => {
                plan.refused.insert(id.clone(), reason);
                continue;
            }
        };
        let way_out = if sandbox.egress || !sandbox.host_ports.is_empty() {
            let Some(address) = gateway.of(id) else {
                plan.refused.insert(id.clone(), format!("no free address in {}", facts.gateway_subnet));
                continue;
            };
            publish_on_host(id, sandbox, address, (&mut filter, plan));
            Some(gateway_leg(id, sandbox.egress, (overlay.len(), address), facts, underlay_mtu_bytes))
        } else {
            None
        };
        plan_one(view, id, overlay, way_out, plan);
    }
    plan.problems.extend(missing_ipv6(view, facts, underlay_mtu_bytes));
    if facts.forwarding6 == Forwarding6::Off && !filter.host_ports.is_empty() && has_ipv6_address(facts) {
        plan.problems.push(NO_FORWARDING6.to_owned());
    }
    plan.state.filter.insert(Singleton, filter);
}

/// Interfaces that forward to the gateway bridge alone. What comes out of the tunnels has nothing else to be forwarded to,
/// whatever the host does.
fn guarded(facts: &NodeFacts, host_forwards: bool) -> BTreeSet<LinkName> {
    let uplinks = facts.uplinks.keys().filter(|_| !host_forwards).cloned();
    uplinks.chain([LinkName::vxlan()]).collect()
}

/// A leg in an overlay network, with the network.
type OverlayLeg<'a> = (Leg, &'a Network);

fn overlay_legs<'a>(
    view: &'a NodeView,
    id: &SandboxId,
    sandbox: &Sandbox,
    (facts, underlay_mtu_bytes): (&NodeFacts, u32),
) -> Result<Vec<OverlayLeg<'a>>, String> {
    if sandbox.attachments.len() > MAX_SANDBOX_NETWORKS {
        let n_networks = sandbox.attachments.len();
        return Err(format!("in {n_networks} networks, {MAX_SANDBOX_NETWORKS} is the most"));
    }
    let leg = |(position, attachment): (usize, &Attachment)| {
        let network = view
            .networks
            .get(&attachment.network)
            .ok_or_else(|| format!("attached to unknown network {:032x}", attachment.network.0))?;
        let mtu_bytes = mtu_bytes(view, network, underlay_mtu_bytes);
        let leg = Leg {
            name: leg_name(position),
            host: LinkName::of_attachment(id, network.vni),
            bridge: None,
            address: Ipv4Network::new(attachment.address, network.subnet.prefix())
                .expect("the prefix of a valid network"),
            mac: Mac::of_endpoint(attachment.address),
            mtu_bytes,
            gateway: network.gateway,
            table: table(position),
            default_route: false,
            ipv6: leg6(view, attachment, network).filter(|_| carries_ipv6(facts, mtu_bytes)),
        };
        Ok((leg, network))
    };
    sandbox.attachments.iter().enumerate().map(leg).collect()
}

fn mtu_bytes(view: &NodeView, network: &Network, underlay_mtu_bytes: u32) -> u32 {
    let most = underlay_mtu_bytes.saturating_sub(vxlan_overhead_bytes(view.vtep));
    network.mtu_bytes.unwrap_or(most).min(most).max(MIN_MTU_BYTES)
}

/// The IPv6 side of an attachment. The ingress network is the way to everywhere, as there is no other: a datagram that
/// answers from an unbound socket leaves there, from the address that it came to.
fn leg6(view: &NodeView, attachment: &Attachment, network: &Network) -> Option<Leg6> {
    let address = network.address6(attachment.address)?;
    Some(Leg6 {
        address: Ipv6Network::new(address, network.subnet6?.prefix()).expect("the prefix of a valid network"),
        gateway: network.address6(network.gateway)?,
        default_route: view.ingress == Some(attachment.network),
    })
}

fn has_ipv6_address(facts: &NodeFacts) -> bool {
    facts.uplinks.values().any(|uplink| !uplink.addresses6.is_empty())
}

/// Networks whose IPv6 side this node can't carry.
fn missing_ipv6(view: &NodeView, facts: &NodeFacts, underlay_mtu_bytes: u32) -> Vec<String> {
    let networks = view.networks.values().filter(|network| network.subnet6.is_some());
    let reason = |network: &Network| {
        let (name, mtu_bytes) = (&network.name, mtu_bytes(view, network, underlay_mtu_bytes));
        if !facts.has_ipv6 {
            return Some(format!("network {name} has no IPv6 here: this kernel has none"));
        }
        (!carries_ipv6(facts, mtu_bytes)).then(|| {
            format!(
                "network {name} has no IPv6 here: its packets may have {mtu_bytes} bytes, and {IPV6_MIN_MTU_BYTES} \
                 is the least (RFC 8200 section 5)"
            )
        })
    };
    networks.filter_map(reason).collect()
}

fn gateway_leg(
    id: &SandboxId,
    default_route: bool,
    (position, address): (usize, Ipv4Addr),
    facts: &NodeFacts,
    underlay_mtu_bytes: u32,
) -> Leg {
    let bridge = bridge_address(facts);
    Leg {
        name: leg_name(position),
        host: LinkName::of_gateway_leg(id),
        bridge: Some(LinkName::gateway_bridge()),
        address: Ipv4Network::new(address, bridge.prefix()).expect("the prefix of a valid network"),
        mac: Mac::of_endpoint(address),
        mtu_bytes: underlay_mtu_bytes,
        gateway: bridge.ip(),
        table: table(position),
        default_route,
        ipv6: behind_bridge6(facts, address).zip(bridge_address6(facts)).map(|(address, bridge)| Leg6 {
            address,
            gateway: bridge.ip(),
            default_route: default_route && facts.has_way_out6,
        }),
    }
}

fn leg_name(position: usize) -> LinkName {
    LinkName::new(&format!("eth{position}")).expect("short, and at most 17 legs")
}

fn table(position: usize) -> u32 {
    FIRST_TABLE + u32::try_from(position).expect("at most 17 legs")
}

fn plan_one(
    view: &NodeView,
    id: &SandboxId,
    overlay: Vec<OverlayLeg<'_>>,
    way_out: Option<Leg>,
    plan: &mut Plan,
) {
    let state = &mut plan.state;
    let ingress = ingress_vni(view);
    for (leg, network) in &overlay {
        let role =
            if ingress == Some(network.vni) { AttachmentRole::Ingress } else { AttachmentRole::Overlay };
        state.attachments.insert(leg.host.clone(), attachment(leg, network.vni, leg.address, role));
        let key = EndpointKey { vni: network.vni, address: leg.address.ip() };
        let place = Place::Local(leg.host.clone());
        state.endpoints.insert(key, Endpoint { mac: leg.mac, place, serves: false });
    }
    if let Some(way_out) = &way_out {
        // Clients of published ports know the task by its address in the routing mesh's network.
        let known = overlay.iter().find(|(_, network)| Some(network.vni) == ingress).map(|(leg, _)| leg);
        let row = attachment(way_out, BRIDGE, known.unwrap_or(way_out).address, AttachmentRole::WayOut);
        state.attachments.insert(way_out.host.clone(), row);
    }
    state.cookies.insert(id.clone(), Vnis(overlay.iter().map(|(_, network)| network.vni).collect()));
    let legs = overlay.into_iter().map(|(leg, _)| leg).chain(way_out).collect();
    state.sandboxes.insert(id.clone(), SandboxNet { legs });
}

fn attachment(leg: &Leg, vni: Vni, address: Ipv4Network, role: AttachmentRole) -> AttachmentRow {
    let Leg { mac, gateway, mtu_bytes, .. } = *leg;
    AttachmentRow { vni, address, mac, gateway, mtu_bytes, role }
}

fn publish_on_host(
    id: &SandboxId,
    sandbox: &Sandbox,
    address: Ipv4Addr,
    (filter, plan): (&mut PacketFilter, &mut Plan),
) {
    if !sandbox.egress {
        filter.no_egress.insert(address);
    }
    for port in &sandbox.host_ports {
        let key = (port.protocol, port.published);
        if filter.host_ports.contains_key(&key) {
            plan.problems.push(format!("host port {} of task {id} is taken by another task", port.published));
            continue;
        }
        filter.host_ports.insert(key, (address, port.target));
    }
}

/// Addresses behind the gateway bridge. They mean nothing outside this node, so no manager gives them out: a sandbox
/// keeps the one that it has, a new one gets the first free address after a place that its id chooses, so that an
/// address that was just given up is seldom the next one taken.
struct GatewayAddresses<'a> {
    facts: &'a NodeFacts,
    taken: BTreeSet<Ipv4Addr>,
}

impl<'a> GatewayAddresses<'a> {
    fn new(facts: &'a NodeFacts) -> Self {
        let taken = facts.gateway_addresses.values().copied().collect();
        Self { facts, taken }
    }

    /// `None` if the subnet is full.
    fn of(&mut self, id: &SandboxId) -> Option<Ipv4Addr> {
        let subnet = self.facts.gateway_subnet;
        if let Some(address) =
            self.facts.gateway_addresses.get(id).filter(|address| subnet.contains(**address))
        {
            return Some(*address);
        }
        // Not the network's address, the bridge's, or the broadcast address.
        let n_hosts = subnet.size().checked_sub(3).filter(|n_hosts| *n_hosts > 0)?;
        let hash = id.0.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
        let start = u32::try_from(hash % u64::from(n_hosts)).expect("below a u32");
        let address = (0..n_hosts).find_map(|step| {
            let host = u32::try_from((u64::from(start) + u64::from(step)) % u64::from(n_hosts))
                .expect("below a u32");
            subnet.nth(host + 2).filter(|address| !self.taken.contains(address))
        })?;
        self.taken.insert(address);
        Some(address)
    }
}
