//! Which sockets learn that their peer is gone. An endpoint whose row goes is gone for good; one that drains keeps its
//! row, and its sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use dataplane_model::kernel_state::{AttachmentRole, EndpointKey, SocketReset, VipKey, Vnis};
use dataplane_model::{KernelState, SandboxId, Vni};
use imbl::ordmap::DiffItem;
use ipnetwork::{IpNetwork, Ipv4Network};

/// The resets that the way from `held` to `wanted` asks for: for each endpoint that has no row any more. They belong
/// behind the removal of the rows: then no ring leads there.
pub fn resets(held: &KernelState, wanted: &KernelState) -> Vec<SocketReset> {
    let mut gone: BTreeMap<Vni, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    for item in held.endpoints.diff(&wanted.endpoints) {
        if let DiffItem::Remove(key, _) = item {
            gone.entry(key.vni).or_default().insert(key.address);
        }
    }
    gone.into_iter().filter_map(|(vni, addresses)| reset(held, wanted, vni, addresses)).collect()
}

/// `None` if nobody here can have such sockets.
fn reset(
    held: &KernelState,
    wanted: &KernelState,
    vni: Vni,
    addresses: BTreeSet<Ipv4Addr>,
) -> Option<SocketReset> {
    // Without a route to the ingress network its addresses may mean others: the node's own network, say.
    let leads_there = |state: &KernelState| ingress_vni(state) == Some(vni) && !state.routes.is_empty();
    let is_ingress = [held, wanted].into_iter().any(leads_there);
    let has_sockets = |(id, Vnis(vnis)): &(&SandboxId, &Vnis)| {
        let may_reach = vnis.contains(&vni) || (is_ingress && !has_own_peers(wanted, id, &addresses));
        // One that is only made in this pass has none.
        may_reach && held.sandboxes.contains_key(*id)
    };
    let sandboxes: BTreeSet<SandboxId> =
        wanted.cookies.iter().filter(has_sockets).map(|(id, _)| id.clone()).collect();
    // Published ports are translated at the sockets of the node itself, and of tasks outside the ingress network.
    let is_needed = is_ingress || !sandboxes.is_empty();
    let addresses = Arc::new(addresses);
    is_needed.then_some(SocketReset { vni, addresses, sandboxes, in_node: is_ingress })
}

/// Do the addresses mean others in the sandbox? Subnets of networks may overlap.
fn has_own_peers(wanted: &KernelState, id: &SandboxId, addresses: &BTreeSet<Ipv4Addr>) -> bool {
    let legs = wanted.sandboxes.get(id).into_iter().flat_map(|net| &net.legs);
    let mut subnets = legs.map(|leg| leg.address);
    subnets.any(|subnet| addresses.iter().any(|address| subnet.contains(*address)))
}

/// The node's only routes of ours are those of the ingress network.
fn ingress_subnet(state: &KernelState) -> Option<Ipv4Network> {
    state.routes.keys().find_map(|subnet| match subnet {
        IpNetwork::V4(subnet) => Some(*subnet),
        IpNetwork::V6(_) => None,
    })
}

fn ingress_vni(state: &KernelState) -> Option<Vni> {
    state.settings.values().find_map(|settings| settings.ingress)
}

/// The resets for endpoints that went while nobody was there to reset: `peers` are those that the sockets of a namespace
/// have (`None`: the node's own), `held` is what the kernel holds now.
pub fn strays(
    peers: &BTreeMap<Option<SandboxId>, BTreeSet<Ipv4Addr>>,
    held: &KernelState,
) -> Vec<SocketReset> {
    let mut resets = Vec::new();
    for (place, peers) in peers {
        let networks = Reached::of(place.as_ref(), held);
        let mut gone: BTreeMap<Vni, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        for address in peers {
            if let Some(vni) = networks.stray(*address, held) {
                gone.entry(vni).or_default().insert(*address);
            }
        }
        resets.extend(gone.into_iter().map(|(vni, addresses)| SocketReset {
            vni,
            addresses: Arc::new(addresses),
            sandboxes: place.iter().cloned().collect(),
            in_node: place.is_none(),
        }));
    }
    resets
}

/// The networks whose endpoints a namespace's sockets may have as peers.
struct Reached {
    /// Those that it is attached to; `None` for what is no network of ours.
    own: Vec<(Ipv4Network, Option<Vni>)>,
    /// The ingress network, by published ports, where it is not attached to it.
    ingress: Option<(Ipv4Network, Vni)>,
}

impl Reached {
    fn of(place: Option<&SandboxId>, held: &KernelState) -> Self {
        let legs = place.and_then(|id| held.sandboxes.get(id)).into_iter().flat_map(|net| &net.legs);
        let vni = |host| {
            let row = held.attachments.get(host).filter(|row| row.role != AttachmentRole::WayOut)?;
            Some(row.vni)
        };
        let own = legs.map(|leg| (leg.address, vni(&leg.host))).collect();
        Self { own, ingress: ingress_subnet(held).zip(ingress_vni(held)) }
    }

    /// The network in which `address` is nobody's; `None` where it is somebody's, or outside.
    fn stray(&self, address: Ipv4Addr, held: &KernelState) -> Option<Vni> {
        let mut own = self.own.iter().filter(|(subnet, _)| subnet.contains(address)).peekable();
        if own.peek().is_none() {
            let (_, vni) = self.ingress.filter(|(subnet, _)| subnet.contains(address))?;
            return (!is_somebodys(address, vni, held)).then_some(vni);
        }
        // Subnets may overlap: it must be nobody's in each.
        let strays: Option<Vec<Vni>> =
            own.map(|(_, vni)| vni.filter(|vni| !is_somebodys(address, *vni, held))).collect();
        strays?.first().copied()
    }
}

fn is_somebodys(address: Ipv4Addr, vni: Vni, held: &KernelState) -> bool {
    let is_gateway = held.attachments.values().any(|row| row.vni == vni && row.gateway == address);
    let is_vip = held.vips.contains_key(&VipKey { vni, address });
    is_gateway || is_vip || held.endpoints.contains_key(&EndpointKey { vni, address })
}
