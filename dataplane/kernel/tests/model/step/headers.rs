//! Tunnels' headers: put in front of packets, and taken off.

use ebpf_abi::{Ip, MacAddr, NextHop, NodeConfig, protocol};

use super::path::TUNNEL_OVERHEAD;
use super::{Step, Verdict, Walk, Way};
use crate::frame::{ETHERNET, IPV4, Link, at, checksum};
use crate::network::{Family, Network, Piece};
use crate::packet::UPLINK_MAC;

/// The kernel's hash of every flow here.
pub const FLOW_HASH: u32 = 0x9e37_79b9;
/// Each program counts its packets, and its first is every run's.
const COUNT: u16 = 1;

/// "Not capable" to "experienced" (RFC 3168 section 5).
const CONGESTION: u8 = 3;

impl Walk<'_> {
    /// Through the tunnel, to an endpoint or (both MACs the router's) to a node: by own headers where the way leads out of
    /// the uplink and takes the packet in one piece, else, as all of IPv6, by the kernel's device, unless it is too long.
    pub fn send_tunnelled(&mut self, remote: Ip, vni: u32, macs: (MacAddr, MacAddr)) -> Step {
        self.clamp(remote)?;
        let config = self.tables.wanted.config;
        let len = u32::try_from(self.frame.len() - ETHERNET).unwrap() + TUNNEL_OVERHEAD;
        // The runs' aggregates are of no kind that can be taken apart in a tunnel.
        let is_v4 = at(&self.frame, 12) == Some(IPV4);
        let hop = if is_v4 { self.next_hop(&config, remote) } else { None };
        let hop = hop.filter(|hop| len <= hop.mtu && !self.packet.is_aggregate);
        let Some(hop) = hop else {
            return match self.told(remote) {
                Some(fits) => self.refuse_length(fits),
                None => Ok(self.send_by_device(remote, vni, macs)),
            };
        };
        let inner = [macs.0.0.as_slice(), &macs.1.0, &IPV4].concat();
        let inner_len = len - 36;
        let headers = outer(&config, (remote, vni), (FLOW_HASH, self.frame[15]), inner_len);
        self.frame.splice(ETHERNET..ETHERNET, [headers, inner].concat());
        Ok(Verdict::Forward(Way::Neighbour(hop.ifindex, hop.gateway.low())))
    }

    pub fn send_by_device(&mut self, remote: Ip, vni: u32, macs: (MacAddr, MacAddr)) -> Verdict {
        self.set_macs(macs.0, macs.1);
        self.tunnel = Some((vni, remote));
        Verdict::Forward(Way::Out(self.tables.wanted.config.vxlan_ifindex))
    }

    /// As the kernel told it in this second, or tells it now. One that can't be used is remembered too, unless it only waits
    /// for a MAC.
    fn next_hop(&mut self, config: &NodeConfig, node: Ip) -> Option<NextHop> {
        const WAITS: u32 = 7;
        let tick = self.tables.wanted.tick;
        let known = self.tables.written.next_hops.get(&node).copied().filter(|hop| hop.seen == tick);
        let hop = match (known, self.packet.next_hop) {
            (Some(known), _) => known,
            (None, told) if told.result == WAITS => return None,
            (None, told) => {
                let is_ours = told.result == 0 && told.ifindex == config.uplink_ifindex;
                let hop = NextHop {
                    seen: tick,
                    to_renew: 0,
                    ifindex: if is_ours { told.ifindex } else { 0 },
                    gateway: told.gateway,
                    mtu: if told.result == 0 {
                        self.peer_mtu(node).map_or(told.mtu.into(), |peers| peers.min(told.mtu.into()))
                    } else {
                        0
                    },
                    source: told.source,
                    destination: told.destination,
                };
                self.tables.written.next_hops.insert(node, hop);
                hop
            }
        };
        Some(hop).filter(|hop| hop.ifindex != 0)
    }

    /// What a node has tunnelled, as far as taking its headers off is all that there is to do; `None` for the rest.
    pub fn take_out_of_tunnel(&mut self) -> Option<Step> {
        const PROBES: u32 = 0x00ff_ffff;
        let config = self.tables.config()?;
        Link::of(&self.frame).filter(|link| link.kind == IPV4 && link.destination == UPLINK_MAC)?;
        let ip = Network::of(&self.frame, Family::V4)?;
        let is_plain = ip.protocol == protocol::UDP && ip.piece == Piece::Whole && !ip.has_options();
        let has_all = ETHERNET + usize::from(ip.total_len) <= self.frame.len() && ip.total_len >= 70;
        let reserved_flag = self.frame[20] & 0x80;
        let is_sound = checksum(self.frame.get(ETHERNET..ETHERNET + 20)?) == 0;
        let was_congested = self.frame[15] & CONGESTION == CONGESTION;
        let odd = !is_plain || !has_all || reserved_flag != 0 || !is_sound || was_congested;
        if odd || ip.destination != config.vtep || self.packet.is_aggregate {
            return None;
        }
        let expected =
            [config.vxlan_port.0, (ip.total_len - 20).to_be_bytes(), [0, 0], [8, 0], [0, 0]].concat();
        let vni = u32::from_be_bytes([0, self.frame[46], self.frame[47], self.frame[48]]);
        let is_vxlan =
            self.frame[36..46] == expected && self.frame[49] == 0 && at(&self.frame, 62) == Some(IPV4);
        if !is_vxlan || vni == PROBES || !self.tables.wanted.peers.contains_key(&ip.source) {
            return None;
        }
        self.frame.drain(..50);
        self.sent.clone_from(&self.frame);
        Some(self.arrives(vni, ip.source))
    }
}

/// The outer headers behind Ethernet (RFC 7348 section 5), of a packet whose flow has this hash and which has this class.
pub fn outer(
    config: &NodeConfig,
    (remote, vni): (Ip, u32),
    (hash, tos): (u32, u8),
    inner_len: u32,
) -> Vec<u8> {
    // Experienced on one's own way, it is "capable" in the tunnel (RFC 3168 section 9.1.1).
    let congestion = [0, 1, 2, 2][usize::from(tos & CONGESTION)];
    let lengths = [inner_len + 36, inner_len + 16].map(|length| u16::try_from(length).unwrap().to_be_bytes());
    let id = u16::try_from(hash >> 16).unwrap() ^ COUNT;
    let mut ip =
        [&[0x45, congestion], &lengths[0][..], &id.to_be_bytes(), &[0, 0, 64, protocol::UDP, 0, 0]].concat();
    ip.extend([config.vtep.low().0, remote.low().0].concat());
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    // A port of the dynamic range that spreads flows.
    let source_port = 0xc000 + u16::try_from(hash % 0x4000).unwrap();
    let udp = [source_port.to_be_bytes(), config.vxlan_port.0, lengths[1], [0, 0]].concat();
    let [_, a, b, c] = vni.to_be_bytes();
    [ip, udp, vec![8, 0, 0, 0, a, b, c, 0]].concat()
}
