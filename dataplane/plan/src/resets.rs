//! Which sockets learn that their peer is gone. An endpoint whose row goes is gone for good; one that drains keeps its
//! row, and its sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use dataplane_model::kernel_state::{Change, EndpointKey, SocketReset, Vnis};
use dataplane_model::{KernelState, Op, SandboxId, Vni};

/// Puts the resets behind the removal of the endpoints' rows: no ring leads there any more, and the address can't be
/// given again before the next pass.
pub(crate) fn insert(held: &KernelState, wanted: &KernelState, steps: &mut Vec<Op>) {
    let Some(last) = steps.iter().rposition(|step| removed(step).is_some()) else { return };
    let mut gone: BTreeMap<Vni, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    for key in steps.iter().filter_map(removed) {
        gone.entry(key.vni).or_default().insert(key.address);
    }
    let resets = gone.into_iter().filter_map(|(vni, addresses)| reset(held, wanted, vni, addresses));
    let (resets, behind): (Vec<Op>, usize) = (resets.map(Op::Reset).collect(), last + 1);
    steps.splice(behind..behind, resets);
}

/// The endpoint that `step` removes.
fn removed(step: &Op) -> Option<EndpointKey> {
    match step {
        Op::Endpoint(Change::Delete(key)) => Some(*key),
        _ => None,
    }
}

/// `None` if nobody here can have such sockets.
fn reset(
    held: &KernelState,
    wanted: &KernelState,
    vni: Vni,
    addresses: BTreeSet<Ipv4Addr>,
) -> Option<SocketReset> {
    let settings = held.settings.values().chain(wanted.settings.values());
    let is_ingress = settings.into_iter().any(|settings| settings.ingress == Some(vni));
    let has_sockets = |(id, Vnis(vnis)): &(&SandboxId, &Vnis)| {
        let may_reach = vnis.contains(&vni) || (is_ingress && !has_own_peers(wanted, id, &addresses));
        // One that is only made in this pass has none.
        may_reach && held.sandboxes.contains_key(*id)
    };
    let sandboxes: BTreeSet<SandboxId> =
        wanted.cookies.iter().filter(has_sockets).map(|(id, _)| id.clone()).collect();
    // Published ports are translated at the sockets of the node itself, and of tasks outside the ingress network.
    let is_needed = is_ingress || !sandboxes.is_empty();
    is_needed.then_some(SocketReset { vni, addresses, sandboxes, in_node: is_ingress })
}

/// Do the addresses mean others in the sandbox? Subnets of networks may overlap.
fn has_own_peers(wanted: &KernelState, id: &SandboxId, addresses: &BTreeSet<Ipv4Addr>) -> bool {
    let legs = wanted.sandboxes.get(id).into_iter().flat_map(|net| &net.legs);
    let mut subnets = legs.map(|leg| leg.address);
    subnets.any(|subnet| addresses.iter().any(|address| subnet.contains(*address)))
}
