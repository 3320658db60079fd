//! The routing mesh: which backend serves a client's packet (XDP and tc alike), and handing it to a backend of this node.

use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::ring::EARLIER_RINGS;
use ebpf_abi::{DropReason, Endpoint, FrontendKey, Ip4, NodeConfig, RingKey, TargetPortKey};
use ebpf_packet::hash::flow_hash;
use ebpf_packet::{Bytes, Flow};

use crate::maps::{self, FLOW_CACHE, FRONTENDS, TARGET_PORTS};
use crate::route;
use crate::skb::{self, Skb};
use crate::track::{self, Translated};
use crate::verdict::Outcome;

/// A client's packet, and who serves it.
pub struct Chosen {
    pub flow: Flow,
    pub flow_hash: u32,
    /// Address in the ingress network.
    pub backend: Ip4,
    pub endpoint: Endpoint,
}

/// The backend for an IPv4 frame from outside; `None` if it is for no frontend, or nobody serves it: then the host's stack
/// answers as for any closed port.
#[inline(always)]
pub fn choose(config: &NodeConfig, packet: &impl Bytes) -> Option<Chosen> {
    let flow = Flow::parse(packet).ok()?;
    let tuple = &flow.tuple;
    if tuple.destination.is_loopback() {
        return None;
    }
    let key = FrontendKey::new(tuple.destination, tuple.destination_port, tuple.protocol);
    // SAFETY: user space alone writes this table; the row is copied at once.
    let ring = unsafe { FRONTENDS.get(key) }?.ring;
    let flow_hash = flow_hash(tuple);
    let (backend, endpoint) = backend(config, &flow, &ring, flow_hash)?;
    Some(Chosen { flow, flow_hash, backend, endpoint })
}

/// A new connection asks the ring; what goes on follows the cache as far as [`Flow::may_stay_with`] allows.
#[inline(always)]
fn backend(config: &NodeConfig, flow: &Flow, ring: &RingKey, flow_hash: u32) -> Option<(Ip4, Endpoint)> {
    let cached = cached(flow);
    if !cached.is_unspecified()
        && let Some(endpoint) = maps::endpoint(config.ingress_vni, cached)
        && flow.may_stay_with(&endpoint)
    {
        return Some((cached, endpoint));
    }
    let backend = maps::pick(ring, flow_hash)?;
    let endpoint = maps::endpoint(config.ingress_vni, backend)?;
    if (flow.is_first_syn() || flow.is_udp()) && cached != backend {
        // A full cache makes room by itself; a lost row costs nothing while the ring stays.
        let _ = FLOW_CACHE.insert(flow.tuple, backend, 0);
    }
    Some((backend, endpoint))
}

/// The backend that the flow went to before; unspecified if it is not known.
#[inline(always)]
fn cached(flow: &Flow) -> Ip4 {
    // SAFETY: the row is copied at once.
    unsafe { FLOW_CACHE.get(flow.tuple) }.map_or(Ip4::UNSPECIFIED, |backend| *backend)
}

/// Hands a client's packet to a backend of this node, unless it goes on with a connection that another backend knows.
/// `age` is that of the ring that chose the backend.
#[inline(always)]
pub fn deliver(
    config: &NodeConfig,
    packet: &Skb,
    flow: &Flow,
    (backend, endpoint): (Ip4, &Endpoint),
    age: u8,
) -> Outcome {
    let key = TargetPortKey::new(backend, flow.tuple.destination_port, flow.tuple.protocol);
    // SAFETY: user space alone writes this table; the row is copied at once.
    let target = unsafe { TARGET_PORTS.get(key) }.ok_or(DropReason::UnpublishedPort)?.target;
    if let Some(translated) = track::known(flow, backend) {
        return hand_over(packet, flow, (backend, endpoint), &translated);
    }
    if flow.goes_on()
        && let Some(outcome) = second_chance(config, packet, flow, backend, age)
    {
        return outcome;
    }
    // A segment of a connection that nobody knows gets its reset from the task.
    let translated = track::open(flow, backend, target)?;
    hand_over(packet, flow, (backend, endpoint), &translated)
}

/// A connection that `asked` doesn't know may have begun when the ring was another: asks the backends that earlier rings
/// chose, here or on their nodes, each older than the one before, so that the search ends. `None` if there is none to ask.
#[inline(always)]
fn second_chance(config: &NodeConfig, packet: &Skb, flow: &Flow, asked: Ip4, age: u8) -> Option<Outcome> {
    // The node of the client's choice has its own address in this key; what each node has is localhost.
    let key = FrontendKey::new(Ip4::LOCALHOST, flow.tuple.destination_port, flow.tuple.protocol);
    // SAFETY: user space alone writes this table; the row is copied at once.
    let ring = unsafe { FRONTENDS.get(key) }?.ring;
    let flow_hash = flow_hash(&flow.tuple);
    let mut asked = asked;
    for age in (1..=EARLIER_RINGS).filter(|earlier| *earlier > age) {
        let Some(backend) = maps::pick(&ring.earlier(age), flow_hash).filter(|backend| *backend != asked)
        else {
            continue;
        };
        asked = backend;
        let Some(endpoint) = maps::endpoint(config.ingress_vni, backend) else { continue };
        if !endpoint.is_local() {
            return Some(route::tunnel_to_earlier(config, packet, &endpoint, age));
        }
        if let Some(translated) = track::known(flow, backend) {
            return Some(hand_over(packet, flow, (backend, &endpoint), &translated));
        }
    }
    None
}

/// Node address and published port become the task's.
#[inline(always)]
fn hand_over(
    packet: &Skb,
    flow: &Flow,
    (backend, endpoint): (Ip4, &Endpoint),
    translated: &Translated,
) -> Outcome {
    packet.set_macs(endpoint.mac, ROUTER_MAC)?;
    packet.set_source(flow, flow.tuple.source, translated.client_port)?;
    packet.set_destination(flow, backend, translated.target_port)?;
    Ok(skb::send_to_sandbox(endpoint.ifindex))
}
