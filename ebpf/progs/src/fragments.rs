//! Fragments follow their first one, which has the ports. One that comes before its first one is not waited for: its packet
//! is lost, as it would be had the network lost it.

use ebpf_abi::limits::FRAGMENTS_SECS;
use ebpf_abi::{FragmentKey, FragmentPorts};
use ebpf_packet::ip::Part;
use ebpf_packet::{Flow, IpHeader, NoFlow};

use crate::maps::{self, FRAGMENTS};
use crate::scratch;
use crate::skb::Skb;

/// The network of the addresses that clients outside have, in keys.
const UNDERLAY: u32 = 0;

/// The flow of a packet or fragment from outside, or to there.
#[inline(always)]
pub fn flow(packet: &Skb, ip: &IpHeader) -> Result<&'static Flow, NoFlow> {
    flow_of_network(packet, ip, UNDERLAY)
}

/// The flow of a packet or fragment between endpoints of a network.
#[inline(always)]
pub fn flow_of_network(packet: &Skb, ip: &IpHeader, vni: u32) -> Result<&'static Flow, NoFlow> {
    if ip.part != Part::LaterFragment {
        return scratch::flow(Flow::of(packet, ip)?).map(|flow| &*flow).ok_or(NoFlow::Malformed);
    }
    // SAFETY: the row is copied at once.
    let ports = *unsafe { FRAGMENTS.get(&*key(ip, vni).ok_or(NoFlow::Fragment)?) }.ok_or(NoFlow::Fragment)?;
    // A tick ahead is now: another CPU has seen the next second already.
    if maps::tick().saturating_sub(ports.seen) > FRAGMENTS_SECS {
        return Err(NoFlow::Fragment);
    }
    scratch::flow(Flow::of_later(ip, ports)).map(|flow| &*flow).ok_or(NoFlow::Fragment)
}

/// Remembers a first fragment, once it is known that its flow is one of ours.
#[inline(always)]
pub fn remember(ip: &IpHeader, flow: &Flow) {
    remember_in_network(ip, flow, UNDERLAY);
}

/// As [`remember`], for one between endpoints of a network.
#[inline(always)]
pub fn remember_in_network(ip: &IpHeader, flow: &Flow, vni: u32) {
    if ip.part == Part::FirstFragment
        && let Some(key) = key(ip, vni)
    {
        let (source, destination) = (flow.tuple.source_port, flow.tuple.destination_port);
        let ports = FragmentPorts { source, destination, seen: maps::tick() };
        // A full table makes room by itself.
        let _ = FRAGMENTS.insert(&*key, ports, 0);
    }
}

#[inline(always)]
fn key(ip: &IpHeader, vni: u32) -> Option<&'static mut FragmentKey> {
    let key = FragmentKey::new(ip.source, ip.destination, ip.id, ip.protocol);
    scratch::fragment(key.of_network(vni))
}
