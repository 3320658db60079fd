//! The routing mesh: which backend serves a client's packet (XDP and tc alike), and handing it to a backend of this node.

use ebpf_abi::flow::{FLOW_AS_IPV4, FLOW_STRAYED};
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::ring::{EARLIER_RINGS, MAX_HOPS, RingHeader};
use ebpf_abi::{
    CachedBackend, Chooser, DropReason, Endpoint, FlowTuple, FrontendKey, Ip, Ip4, NodeConfig, RingKey,
    TargetPort, TargetPortKey,
};
use ebpf_packet::hash::flow_hash;
use ebpf_packet::{Flow, Version};

use crate::maps::{self, FLOW_CACHE, FRONTENDS, TARGET_PORTS};
use crate::skb::Skb;
use crate::track::{self, Translated};
use crate::verdict::{Outcome, Verdict};
use crate::{gate, route, scratch};

/// Who serves a client's packet.
pub struct Chosen {
    pub flow_hash: u32,
    /// Address in the ingress network.
    pub backend: Ip4,
    pub endpoint: Endpoint,
}

/// The backend for a packet from outside to the frontend of this ring; `None` if nobody serves it: then the host's stack
/// answers as for any closed port.
#[inline(always)]
pub fn choose(config: &NodeConfig, flow: &Flow, ring: &RingKey) -> Option<Chosen> {
    let tuple = &flow.tuple;
    if tuple.destination.is_loopback() {
        return None;
    }
    let flow_hash = flow_hash(tuple);
    let (backend, endpoint) = backend(config, flow, ring, flow_hash)?;
    Some(Chosen { flow_hash, backend, endpoint })
}

/// The ring of the frontend that a client's packet is for; `None` if that is none.
#[inline(always)]
pub fn ring(tuple: &FlowTuple) -> Option<RingKey> {
    ring_at(tuple.destination, tuple)
}

/// The ring that another node has for a packet to its address: all nodes publish the same ports. One that is addressed to
/// this machine all the same is for an address that is about to come here, or has just gone, or for one behind this router.
#[inline(always)]
pub fn ring_of_other_node(config: &NodeConfig, tuple: &FlowTuple) -> Option<RingKey> {
    let may_be = tuple.destination != config.vtep;
    let owner = may_be.then(|| maps::address_owner(tuple.destination))??;
    if owner.is_unspecified() { None } else { ring_at(Ip::LOCALHOST4, tuple) }
}

/// Addresses of other nodes are in no key here; localhost is in each node's.
#[inline(always)]
fn ring_at(address: Ip, tuple: &FlowTuple) -> Option<RingKey> {
    let key = FrontendKey::new(address, tuple.destination_port, tuple.protocol);
    // SAFETY: user space alone writes this table; the row is copied at once.
    Some(unsafe { FRONTENDS.get(key) }?.ring)
}

/// A new connection asks the ring; what goes on follows the cache as far as [`Flow::may_stay_with`] allows, and a datagram only
/// while its frontend has the ring that chose the backend: a port may have become another service's.
#[inline(always)]
fn backend(config: &NodeConfig, flow: &Flow, ring: &RingKey, flow_hash: u32) -> Option<(Ip4, Endpoint)> {
    let cached = cached(&flow.tuple);
    let is_known = !cached.backend.is_unspecified();
    if is_known
        && (!flow.is_udp() || cached.ring == ring.tag())
        && let Some(endpoint) = maps::endpoint(config.ingress_vni, cached.backend)
        && flow.may_stay_with(&endpoint)
    {
        return Some((cached.backend, endpoint));
    }
    let chosen = pick(config, ring, flow_hash)?;
    let row = CachedBackend { backend: chosen.0, ring: ring.tag() };
    if (flow.is_first_syn() || flow.is_udp()) && cached != row && (is_known || gate::admits_to_cache()) {
        // A full cache makes room by itself; a lost row costs nothing while the ring stays.
        let _ = FLOW_CACHE.insert(flow.tuple, row, 0);
    }
    Some(chosen)
}

/// The backend that the flow went to before; unspecified if that isn't known. No `Option`: the compiler would copy what a
/// `None` doesn't hold, and the verifier refuses that.
#[inline(always)]
fn cached(tuple: &FlowTuple) -> CachedBackend {
    // SAFETY: the row is copied at once.
    unsafe { FLOW_CACHE.get(tuple) }.copied().unwrap_or(CachedBackend::NONE)
}

/// The backend that the flow went to before, if it still exists.
#[inline(always)]
pub fn known_backend(config: &NodeConfig, tuple: &FlowTuple) -> Option<(Ip4, Endpoint)> {
    let CachedBackend { backend, .. } = cached(tuple);
    if backend.is_unspecified() {
        return None;
    }
    Some((backend, maps::endpoint(config.ingress_vni, backend)?))
}

/// The backend that a ring of the routing mesh has at a flow's place.
#[inline(always)]
pub fn pick(config: &NodeConfig, ring: &RingKey, flow_hash: u32) -> Option<(Ip4, Endpoint)> {
    let backend = maps::pick(ring, flow_hash)?;
    Some((backend, maps::endpoint(config.ingress_vni, backend)?))
}

/// How a client's packet came to this node.
#[derive(Clone, Copy)]
pub enum Arrival {
    /// From outside: this node is the one that the client's packets enter by.
    Outside,
    /// From that node, or from one that was asked before.
    Tunnel(Chooser),
}

impl Arrival {
    #[inline(always)]
    const fn chooser(self) -> Chooser {
        match self {
            Self::Outside => Chooser::IN_USE,
            Self::Tunnel(chooser) => chooser,
        }
    }
}

/// Hands a client's packet to a backend of this node, unless it goes on with a connection that another backend knows.
#[inline(always)]
pub fn deliver(
    config: &NodeConfig,
    flow: &Flow,
    (backend, endpoint): (Ip4, &Endpoint),
    arrival: Arrival,
) -> Outcome {
    let key = TargetPortKey::new(backend, flow.tuple.destination_port, flow.tuple.protocol);
    // SAFETY: user space alone writes this table; the row is copied at once.
    let target = match unsafe { TARGET_PORTS.get(key) } {
        Some(target) => *target,
        // The port may be another service's by now: what began before goes on.
        None => track::target(flow, backend).ok_or(DropReason::UnpublishedPort)?,
    };
    let target = &*scratch::target(target).ok_or(DropReason::Unconfigured)?;
    let asked_by = arrival.chooser();
    if let Some(translated) = track::known(flow, backend, way(target, asked_by.hops > 0)) {
        return hand_on(flow, (backend, endpoint), &translated);
    }
    if flow.goes_on()
        && let Some(Other { backend, endpoint, chooser }) = other(config, &flow.tuple, backend, asked_by)
    {
        if !endpoint.is_local() {
            return Ok(route::tunnel_to_other(config, &endpoint, chooser));
        }
        let enters_here = matches!(arrival, Arrival::Outside);
        if let Some(translated) = track::known(flow, backend, way(scratch::of_target()?, !enters_here)) {
            if enters_here {
                learn(&flow.tuple, backend);
            }
            return hand_on(flow, (backend, &endpoint), &translated);
        }
    }
    // A segment of a connection that nobody knows gets its reset from the task.
    let translated = track::open(flow, backend, scratch::of_target()?)?;
    hand_on(flow, (backend, endpoint), &translated)
}

/// How answers to a packet go that came by a detour, or didn't.
#[inline(always)]
const fn way(target: &TargetPort, has_strayed: bool) -> u8 {
    if has_strayed { target.way | FLOW_STRAYED } else { target.way }
}

/// Remembers the backend of a flow that enters here and had to be looked for: its packets go straight from now on, and its
/// place in rings doesn't matter any more. Only who knows the flow says so, hence the gate is not for these rows.
#[inline(always)]
pub fn learn(tuple: &FlowTuple, backend: Ip4) {
    if cached(tuple).backend != backend {
        // A full cache makes room by itself.
        let _ = FLOW_CACHE.insert(tuple, CachedBackend { backend, ring: 0 }, 0);
    }
}

/// Another backend that may know a flow.
pub struct Other {
    pub backend: Ip4,
    pub endpoint: Endpoint,
    pub chooser: Chooser,
}

/// A flow that `asked` doesn't know may have begun when the ring was another one: finds the next backend to ask. That is one
/// of this node that knows the flow, or one of another node, which its node will ask.
#[inline(always)]
pub fn other(config: &NodeConfig, tuple: &FlowTuple, asked: Ip4, chooser: Chooser) -> Option<Other> {
    if chooser.hops >= MAX_HOPS {
        return None;
    }
    let ring = ring_at(Ip::LOCALHOST4, tuple)?;
    let rings = maps::rings(&ring)?;
    let header = RingHeader(rings.get(0)?);
    let first = first_to_ask(header, chooser);
    let flow_hash = flow_hash(tuple);
    for age in 0..=EARLIER_RINGS {
        if age >= first
            && let Some(backend) = maps::pick_earlier(rings, header, age, flow_hash)
            && backend != asked
            && let Some(endpoint) = maps::endpoint(config.ingress_vni, backend)
            && (!endpoint.is_local() || track::translation(tuple, backend).is_some())
        {
            let fingerprint = header.fingerprint(age) as u16;
            let chooser = Chooser { hops: chooser.hops + 1, fingerprint };
            return Some(Other { backend, endpoint, chooser });
        }
    }
    None
}

/// The age of the first ring of this node to look into. Nodes swap their rings at different moments, and may take several
/// changes as one: what was asked before is told by the ring that chose it, and by the number of hops where this node
/// doesn't have that ring. Two nodes that saw the same rings in another order would send a packet to and fro; half the hops
/// as the least age leads them on.
#[inline(always)]
fn first_to_ask(header: RingHeader<'_>, chooser: Chooser) -> u8 {
    if chooser.hops == 0 {
        return 0;
    }
    for age in 0..=EARLIER_RINGS {
        let is_there = header.n_places(age) != 0;
        if is_there && header.fingerprint(age) == u32::from(chooser.fingerprint) {
            return (age + 1).max(chooser.hops / 2);
        }
    }
    chooser.hops
}

/// A node's own process asks a backend of this node, by the backend's address and target port. The task's socket may answer
/// from another of its addresses and so by its way out; the row, like a client's, brings the answer back.
#[inline(always)]
pub fn from_process(flow: &Flow, backend: (Ip4, &Endpoint)) -> Outcome {
    let target = TargetPort::new(flow.tuple.destination_port);
    let target = &*scratch::target(target).ok_or(DropReason::Unconfigured)?;
    let translated = match track::known(flow, backend.0, target.way) {
        Some(translated) => translated,
        None => track::open(flow, backend.0, target)?,
    };
    hand_on(flow, backend, &translated)
}

/// Leaves a packet for a backend of this node to a part of its own, see [`crate::family`].
#[inline(always)]
fn hand_on(flow: &Flow, (backend, endpoint): (Ip4, &Endpoint), translated: &Translated) -> Outcome {
    scratch::hand(backend, endpoint, translated)?;
    let is_settled =
        flow.version == Version::V4 || !(translated.is_new() || translated.family == FLOW_AS_IPV4);
    Ok(if is_settled { Verdict::HAND_OVER } else { Verdict::FAMILY })
}

/// Node address and published port become the task's.
#[inline(always)]
pub fn rewrite(
    config: &NodeConfig,
    packet: &Skb,
    flow: &Flow,
    (backend, endpoint): (Ip4, &Endpoint),
    translated: &Translated,
) -> Result<(), DropReason> {
    packet.set_macs(endpoint.mac, ROUTER_MAC)?;
    let task = maps::address(config.ingress_vni, backend, flow.version).ok_or(DropReason::NotIp)?;
    packet.set_source(flow, flow.tuple.source, translated.client_port)?;
    packet.set_destination(flow, task, translated.target_port)
}
