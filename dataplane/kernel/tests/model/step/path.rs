//! How long packets to other nodes may be, who is told so, and the MSS that connections through a tunnel agree on.

use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{DropReason, Ip, ProgramId, protocol};

use super::{Step, Verdict, Walk, Way};
use crate::frame::{ETHERNET, SYN, Segment, at, checksum, put};
use crate::network::{Family, Network, Piece};

/// What the tunnel's headers take of an underlay packet.
pub const TUNNEL_OVERHEAD: u32 = 50;

/// What the harness says of aggregates: each part has so many bytes behind its headers.
const PAYLOAD_OF_PARTS: u32 = 100;

impl Walk<'_> {
    /// The longest packet to a node, in its tunnel, and whether it is that node's underlay which takes no longer ones.
    fn longest_underlay(&self, node: Ip) -> (u32, bool) {
        let own = self.tables.wanted.config.uplink_mtu;
        let hop = self.tables.written.next_hops.get(&node).filter(|hop| hop.mtu != 0);
        let way = hop.map_or(own, |hop| own.min(hop.mtu));
        match self.peer_mtu(node) {
            Some(peers) if peers < own && peers <= way => (peers, true),
            _ => (way, false),
        }
    }

    /// What the node has said itself.
    pub fn peer_mtu(&self, node: Ip) -> Option<u32> {
        self.tables.wanted.peers.get(&node).map(|peer| peer.mtu).filter(|mtu| *mtu != 0)
    }

    /// The same inside the tunnel; IPv6 has a least.
    fn longest(&self, node: Ip, family: Family) -> (u32, bool) {
        const LEAST: u32 = 1280;
        let (underlay, is_peers) = self.longest_underlay(node);
        let inside = underlay.saturating_sub(TUNNEL_OVERHEAD);
        (if family == Family::V6 { inside.max(LEAST) } else { inside }, is_peers)
    }

    /// What a task's answer by IPv4 may be as IPv6, where the node that owns this address passes it on.
    pub fn longest_answer(&self, service: Ip, task_mtu: u32) -> u32 {
        match self.tables.wanted.address_owners.get(&service) {
            Some(owner) if !owner.is_unspecified() => self.longest(*owner, Family::V6).0.min(task_mtu),
            _ => task_mtu,
        }
    }

    /// A segment with SYN tells the far end of no more than gets through the tunnel.
    pub fn clamp(&mut self, node: Ip) -> Result<(), DropReason> {
        let Some(ip) = self.network() else { return Ok(()) };
        let Ok(segment) = Segment::of(&self.frame, &ip) else { return Ok(()) };
        if !segment.is_of(protocol::TCP) || segment.flags & SYN == 0 {
            return Ok(());
        }
        let headers = if ip.family == Family::V4 { 40 } else { 60 };
        let most = self.longest_underlay(node).0.saturating_sub(TUNNEL_OVERHEAD + headers);
        self.cut_mss(&segment, u16::try_from(most).unwrap())
    }

    /// The packet as it is now.
    fn network(&self) -> Option<Network> {
        Network::of(&self.frame, Family::of(at(&self.frame, 12)?)?)
    }

    /// How long the sender of a packet to this node is told that packets may be, if it has to be told.
    pub fn told(&self, node: Ip) -> Option<u16> {
        let ip = self.network()?;
        let (longest, is_peers) = self.longest(node, ip.family);
        let is_wanted = is_peers || (ip.dont_fragment && ip.protocol != protocol::SCTP);
        let n_extra = if ip.family == Family::V4 { 0 } else { 8 };
        let is_readable = ip.piece != Piece::Later && ip.header_len <= ip.family.header_len() + n_extra;
        let may_be = is_wanted && is_readable && !self.is_error(&ip) && !self.is_translated;
        (may_be && self.len_of_parts() > longest).then(|| u16::try_from(longest).unwrap())
    }

    /// Of an aggregate each packet's; 0 if that can't be said.
    fn len_of_parts(&self) -> u32 {
        const UDP_LEN: u32 = 8;
        const LONGEST_TCP: u32 = 60;
        let whole = u32::try_from(self.frame.len() - ETHERNET).unwrap();
        if !self.packet.is_aggregate {
            return whole;
        }
        let (ip_len, kind) = match self.frame[ETHERNET] / 16 {
            4 => (usize::from(self.frame[ETHERNET] % 16) * 4, self.frame[ETHERNET + 9]),
            _ => (40, self.frame[ETHERNET + 6]),
        };
        let transport = match kind {
            protocol::UDP => UDP_LEN,
            protocol::TCP => at::<1>(&self.frame, ETHERNET + ip_len + 12)
                .map_or(LONGEST_TCP, |[offset]| u32::from(offset / 16) * 4),
            _ => return 0,
        };
        let part = PAYLOAD_OF_PARTS + u32::try_from(ip_len).unwrap() + transport;
        if part <= whole { part } else { 0 }
    }

    /// Nobody is told of an error's length; what is cut off may be one.
    fn is_error(&self, ip: &Network) -> bool {
        let kind = at::<1>(&self.frame, ETHERNET + ip.header_len).map(|[kind]| kind);
        match (ip.family, ip.protocol) {
            (Family::V4, protocol::ICMP) => kind.is_none_or(|kind| [3, 4, 5, 11, 12].contains(&kind)),
            (Family::V6, protocol::ICMP6) => kind.is_none_or(|kind| kind < 128),
            _ => false,
        }
    }

    /// "Fragmentation needed" (RFC 1191 section 4) or "packet too big" (RFC 4443 section 3.2) with the size that fits, about
    /// what the packet's sender has sent.
    pub fn refuse_length(&mut self, fits: u16) -> Step {
        let now = self.network().ok_or(DropReason::Malformed)?;
        let ip = Network::of(&self.sent, now.family).ok_or(DropReason::Malformed)?;
        if (now.source, now.destination) != (ip.source, ip.destination) {
            self.become_as_sent(&ip);
        }
        let (kind, n_carried) = match ip.family {
            Family::V4 => ([3, 4], 8),
            Family::V6 => ([2, 0], 16),
        };
        self.become_error(&ip, ip.destination, (kind, fits), n_carried)?;
        if self.packet.program == ProgramId::MeshTask {
            let attachment = self.tables.wanted.attachments[&self.packet.ifindex];
            self.set_macs(attachment.mac, ROUTER_MAC);
            return Ok(Verdict::Forward(Way::Out(self.packet.ifindex)));
        }
        match self.tables.wanted.address_owners.get(&ip.destination).copied() {
            Some(owner) if !owner.is_unspecified() => {
                let vni = self.tables.wanted.config.ingress_vni;
                Ok(self.send_by_device(owner, vni, (ROUTER_MAC, ROUTER_MAC)))
            }
            _ => Ok(self.leave_here(ip.source)),
        }
    }

    /// Addresses and ports become the sender's again; of the checksums only the header's.
    fn become_as_sent(&mut self, ip: &Network) {
        let header = ETHERNET + ip.header_len;
        let (source, _) = ip.addresses();
        let end = ETHERNET + ip.family.header_len();
        let sent = self.sent[source..end].to_vec();
        put(&mut self.frame, source, &sent);
        let ports = self.sent[header..header + 4].to_vec();
        put(&mut self.frame, header, &ports);
        if ip.family == Family::V4 {
            put(&mut self.frame, ETHERNET + 10, &[0, 0]);
            let sum = checksum(&self.frame[ETHERNET..end]).to_be_bytes();
            put(&mut self.frame, ETHERNET + 10, &sum);
        }
    }
}
