//! The uplink: XDP, and tc beneath it.

use ebpf_abi::limits::{PROBE_VNI, ROUTER_MAC};
use ebpf_abi::table::CONFIG_XDP_REDIRECT;
use ebpf_abi::{NodeConfig, protocol};
use ebpf_packet::hash::flow_hash;

use super::headers::outer;
use super::mesh::Backend;
use super::path::TUNNEL_OVERHEAD;
use super::{Step, Verdict, Walk, Way};
use crate::frame::{ETHERNET, IPV4, Link, SYN, Segment, at, put};
use crate::network::{Family, Network, Piece};
use crate::packet::UPLINK_MAC;

/// The UDP header of a packet without options.
const UDP: usize = ETHERNET + 20;

impl Walk<'_> {
    /// XDP takes clients' whole packets of TCP and UDP for other nodes' backends and leaves the rest to tc.
    pub fn xdp(&mut self) -> Verdict {
        let (tables, frame) = (&mut *self.tables, &self.frame);
        let config = tables.config().filter(|config| config.ingress_vni != 0);
        let family = at(frame, 12).and_then(Family::of);
        let (Some(config), Some(family)) = (config, family) else { return Verdict::Pass };
        let ip = Network::of(frame, family).filter(|ip| ip.piece == Piece::Whole && !ip.has_options());
        let segment = ip.and_then(|ip| Segment::of(frame, &ip).ok());
        let segment = segment.filter(|segment| !segment.is_of(protocol::SCTP));
        let Some(segment) = segment else { return Verdict::Pass };
        let ring = tables.ring_of(&segment.tuple);
        match tables.choose(&segment, ring) {
            Some(backend) if !backend.1.is_local() => self.encapsulate(&config, &segment, backend),
            _ => Verdict::Pass,
        }
    }

    /// The way is one that tc has asked the kernel for in this second.
    fn encapsulate(&mut self, config: &NodeConfig, segment: &Segment, (_, endpoint): Backend) -> Verdict {
        let tables = &self.tables;
        let hop = tables.written.next_hops.get(&endpoint.vtep).copied();
        let hop =
            hop.filter(|hop| hop.seen == tables.wanted.tick && hop.ifindex == crate::packet::XDP_UPLINK);
        let fits = |mtu: u32| u32::from(segment.total_len) + TUNNEL_OVERHEAD <= mtu;
        let Some(hop) = hop.filter(|hop| fits(hop.mtu)) else { return Verdict::Pass };
        // Its far end may answer by longer packets than the way takes: tc cuts its MSS.
        if segment.flags & SYN != 0 && self.peer_mtu(endpoint.vtep).is_some_and(|peers| peers > hop.mtu) {
            return Verdict::Pass;
        }
        let class = match Family::of_address(segment.tuple.source) {
            Family::V4 => self.frame[15],
            // Four bits further on (RFC 8200 section 3).
            Family::V6 => (u16::from_be_bytes([self.frame[14], self.frame[15]]) << 4).to_be_bytes()[0],
        };
        let by_flow = (flow_hash(&segment.tuple), class);
        let inner_len = u32::from(segment.total_len) + 14;
        let headers = outer(config, (endpoint.vtep, config.ingress_vni), by_flow, inner_len);
        self.set_macs(endpoint.mac, ROUTER_MAC);
        let link = [hop.destination.0.as_slice(), &hop.source.0, &IPV4].concat();
        self.frame.splice(0..0, [link, headers].concat());
        Verdict::Forward(Way::Back { redirected: config.flags & CONFIG_XDP_REDIRECT != 0 })
    }

    /// What other nodes have tunnelled, published ports, errors about their answers, and nodes' probes; the rest is the host's.
    pub fn uplink(&mut self) -> Step {
        if let Some(step) = self.take_out_of_tunnel() {
            return step;
        }
        let (config, link) = (self.tables.config(), Link::of(&self.frame));
        let (Some(config), Some(link)) = (config, link) else { return Ok(Verdict::Pass) };
        let ip = Family::of(link.kind).and_then(|family| Network::of(&self.frame, family));
        let Some(ip) = ip else { return Ok(Verdict::Pass) };
        if config.ingress_vni != 0 {
            if let Ok(segment) = self.tables.segment(&self.frame, &ip)
                && let Some(backend) = self.choose(&link, &segment)
            {
                self.tables.remember_fragment(&ip, &segment);
                return self.serve(&config, &segment, backend);
            }
            if let Some(step) = self.error_from_outside(&ip) {
                return step;
            }
        }
        Ok(self.echo_probe(&config, &link, &ip))
    }

    /// A frame for this machine may be for an address of another node, that comes here or has gone.
    fn choose(&mut self, link: &Link, segment: &Segment) -> Option<Backend> {
        let is_for_host = link.destination == UPLINK_MAC;
        let elsewhere = || self.tables.ring_of_other_node(&segment.tuple).filter(|_| is_for_host);
        let ring = self.tables.ring_of(&segment.tuple).or_else(elsewhere);
        self.tables.choose(segment, ring)
    }

    fn serve(&mut self, config: &NodeConfig, segment: &Segment, backend: Backend) -> Step {
        if backend.1.is_local() {
            return self.deliver(segment, backend, None);
        }
        self.send_tunnelled(backend.1.vtep, config.ingress_vni, (backend.1.mac, ROUTER_MAC))
    }

    /// A peer's probe goes back with sides changed. One from the tunnel port would go to and fro for ever.
    fn echo_probe(&mut self, config: &NodeConfig, link: &Link, ip: &Network) -> Verdict {
        let is_plain = ip.protocol == protocol::UDP && ip.piece == Piece::Whole && !ip.has_options();
        let ports = at::<2>(&self.frame, UDP).zip(at::<2>(&self.frame, UDP + 2));
        let vxlan = at::<8>(&self.frame, UDP + 8);
        let (true, Some((from, to)), Some(vxlan)) = (is_plain, ports, vxlan) else { return Verdict::Pass };
        let is_probe = vxlan[0] & 8 != 0 && vxlan[4..7] == PROBE_VNI.to_be_bytes()[1..];
        let tunnels = config.vxlan_port.0;
        let is_for_us = ip.destination == config.vtep && to == tunnels && from != tunnels;
        if !is_probe || !is_for_us || !self.tables.wanted.peers.contains_key(&ip.source) {
            return Verdict::Pass;
        }
        self.set_macs(link.source, link.destination);
        self.swap_addresses(ip);
        put(&mut self.frame, UDP, &[to, from].concat());
        Verdict::Forward(Way::Out(self.packet.ifindex))
    }
}
