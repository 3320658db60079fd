//! A client that comes by IPv6, and a task that listens on IPv4 alone: packets between them by the tables of RFC 7915, written
//! down once more, byte by byte.

use ebpf_abi::flow::{FLOW_AS_IPV4, FLOW_STRAYED};
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::stand_in::{CANDIDATES, RESERVED_SECS, STAND_IN_HELD, candidate};
use ebpf_abi::{Attachment, DropReason, FlowTuple, ForwardKey, Ip, Ip4, Port, ReplyFlow, StandIn, protocol};
use ebpf_packet::hash::client_hash;

use super::mesh::Backend;
use super::state::Seen;
use super::{Step, Verdict, Walk, Way};
use crate::frame::{ETHERNET, IPV4, IPV6, SYN, Segment, at, checksum, put};
use crate::network::{Family, Network, Piece, pseudo_header};
use crate::tables::Tables;

/// The address may stand for a client: 246.64.0.0/14.
pub fn may_stand_in(address: Ip) -> bool {
    address.is_v4() && address.low().0[0] == 246 && (64..68).contains(&address.low().0[1])
}

impl Tables {
    /// Whom a task means by an address.
    pub fn meant(&mut self, address: Ip) -> Option<Ip> {
        if !may_stand_in(address) {
            return Some(address);
        }
        let tick = self.wanted.tick;
        let row = self.written.stand_ins.get_mut(&address.low())?;
        row.last_seen = tick;
        Some(row.client)
    }

    /// The address that a client has already.
    fn stand_in(&mut self, client: Ip) -> Option<&mut StandIn> {
        self.stand_in_address(client).and_then(|address| self.written.stand_ins.get_mut(&address))
    }

    fn stand_in_address(&self, client: Ip) -> Option<Ip4> {
        let candidates = (0..CANDIDATES).map(|number| candidate(client_hash(client), number));
        let rows = &self.written.stand_ins;
        candidates.into_iter().find(|address| rows.get(address).is_some_and(|row| row.client == client))
    }

    /// That, or the first that is nobody's now.
    fn give_stand_in(&mut self, client: Ip, holds: bool) -> Option<Ip4> {
        let tick = self.wanted.tick;
        if let Some(row) = self.stand_in(client) {
            row.last_seen = tick;
            row.state |= if holds { STAND_IN_HELD } else { 0 };
            return self.stand_in_address(client);
        }
        let is_nobodys = |row: &StandIn| row.state == 0 && tick > row.last_seen + RESERVED_SECS;
        let mut candidates = (0..CANDIDATES).map(|number| candidate(client_hash(client), number));
        let rows = &mut self.written.stand_ins;
        let free = candidates.find(|address| rows.get(address).is_none_or(is_nobodys))?;
        rows.insert(free, StandIn::new(client, tick));
        Some(free)
    }
}

/// The MSS that a segment which begins a connection says, and where.
fn mss(frame: &[u8], header: usize) -> Option<(usize, u16)> {
    let [words] = at::<1>(frame, header + 12)?;
    let (mut offset, end) = (20, usize::from(words >> 4) * 4);
    for _ in 0..10 {
        let [kind, len, high, low] = at(frame, header + offset)?;
        match kind {
            _ if offset + 4 > end => return None,
            0 => return None,
            1 => offset += 1,
            2 => return Some((header + offset + 2, u16::from_be_bytes([high, low]))),
            _ => offset += usize::from(len).max(2),
        }
    }
    None
}

impl Walk<'_> {
    /// Which family the task of a flow listens to, asked while that may change: the one it has otherwise.
    pub fn settle(&mut self, segment: &Segment, (backend, endpoint): Backend, seen: &mut Seen) {
        if Family::of_address(segment.tuple.source) == Family::V4 || !seen.is_new {
            return;
        }
        let attachment = self.tables.wanted.attachments.get(&endpoint.ifindex);
        let sandbox = attachment.map_or(0, |row| row.sandbox);
        let is_sctp = segment.tuple.protocol == protocol::SCTP;
        if !is_sctp && attachment.is_some_and(|row| row.mtu < 1280) {
            seen.family = FLOW_AS_IPV4;
        } else if sandbox != 0 && !is_sctp && self.task_address(backend, Family::V6).is_ok() {
            if self.packet.listens.v6 {
                seen.family = 0;
            } else if self.packet.listens.v4 {
                seen.family = FLOW_AS_IPV4;
            }
        }
        if let Some(row) = self.tables.written.flows.get_mut(&ForwardKey::new(&segment.tuple, backend)) {
            row.family = seen.family;
        }
    }

    /// The ports and the checksum behind headers of the other family.
    fn translate_transport(
        &mut self,
        segment: &Segment,
        (source, destination): ((Ip, Port), (Ip, Port)),
        mtu: u32,
    ) -> Result<(), DropReason> {
        let Some(header) = segment.header else { return Ok(()) };
        if segment.flags & SYN != 0 {
            self.cut_mss(segment, u16::try_from(mtu - 60).unwrap())?;
        }
        let tuple = &segment.tuple;
        for (offset, from, to) in [
            (0, (tuple.source, tuple.source_port), source),
            (2, (tuple.destination, tuple.destination_port), destination),
        ] {
            if from.1 != to.1 {
                self.correct_transport(segment, &from.1.0, &to.1.0)?;
                put(&mut self.frame, header + offset, &to.1.0);
            }
            let bytes = |address: Ip| Family::of_address(address).bytes(address);
            self.correct_transport(segment, &bytes(from.0), &bytes(to.0))?;
        }
        Ok(())
    }

    /// Lets who gets a segment send no longer ones than these.
    pub fn cut_mss(&mut self, segment: &Segment, most: u16) -> Result<(), DropReason> {
        let said = segment.header.and_then(|header| mss(&self.frame, header));
        match said.filter(|(_, said)| *said > most) {
            Some((offset, said)) => self.change_word(segment, offset, (said, most)),
            None => Ok(()),
        }
    }

    /// A word of the transport, which may lie across two of its checksum's.
    fn change_word(
        &mut self,
        segment: &Segment,
        offset: usize,
        (from, to): (u16, u16),
    ) -> Result<(), DropReason> {
        let is_odd = (offset - segment.header.unwrap_or(0)) % 2 == 1;
        let summed = |word: u16| if is_odd { word.swap_bytes() } else { word }.to_be_bytes();
        self.correct_transport(segment, &summed(from), &summed(to))?;
        put(&mut self.frame, offset, &to.to_be_bytes());
        Ok(())
    }

    /// A client's packet, to a task that knows it by an IPv4 address.
    pub fn hand_over_as_v4(&mut self, segment: &Segment, (backend, endpoint): Backend, seen: Seen) -> Step {
        let client = segment.tuple.source;
        let stand_in =
            self.tables.give_stand_in(client, seen.is_established).ok_or(DropReason::Untranslatable)?;
        let ip = Network::of(&self.frame, Family::V6).ok_or(DropReason::Malformed)?;
        let attachment = self.tables.wanted.attachments.get(&endpoint.ifindex);
        let mtu = attachment.ok_or(DropReason::UnknownAttachment)?.mtu;
        let payload = ETHERNET + ip.header_len;
        let [said_high, said_low] = at(&self.frame, ETHERNET + 4).ok_or(DropReason::Malformed)?;
        let extensions = u16::try_from(ip.header_len - 40).unwrap();
        let len = u16::from_be_bytes([said_high, said_low]).checked_sub(extensions);
        let len = len.ok_or(DropReason::Malformed)?.saturating_add(20);
        let mut fragment = [0x40, 0];
        if ip.piece != Piece::Whole {
            let header: [u8; 8] = at(&self.frame, payload - 8).ok_or(DropReason::Malformed)?;
            let offset = u16::from_be_bytes([header[2], header[3]]);
            if header[4..] != ip.id || (ip.piece == Piece::First && offset & 0xfff9 != 1) {
                return Err(DropReason::Untranslatable);
            }
            fragment = (offset / 8 + offset % 2 * 0x2000).to_be_bytes();
        }
        let source = (stand_in.into(), seen.client);
        self.translate_transport(segment, (source, (backend.into(), seen.target)), mtu)?;
        if extensions != 0 && self.packet.is_aggregate {
            return Err(DropReason::Rewrite);
        }
        let class = u16::from_be_bytes(at(&self.frame, ETHERNET).unwrap()) >> 4;
        let id = if ip.piece == Piece::Whole { [0; 2] } else { [ip.id[2], ip.id[3]] };
        let mut header = vec![0x45, class.to_be_bytes()[1]];
        header.extend(
            [len.to_be_bytes(), id, fragment, [self.frame[ETHERNET + 7], ip.protocol], [0; 2]].concat(),
        );
        header.extend([stand_in.0, backend.0].concat());
        self.give_header4(header, payload);
        self.set_macs(endpoint.mac, ROUTER_MAC);
        Ok(Verdict::Forward(Way::Sandbox(endpoint.ifindex)))
    }

    /// In place of all that is in front of `payload`.
    fn give_header4(&mut self, mut header: Vec<u8>, payload: usize) {
        let sum = checksum(&header).to_be_bytes();
        put(&mut header, 10, &sum);
        self.frame.splice(ETHERNET..payload, header);
        put(&mut self.frame, 12, &IPV4);
    }

    /// A task's answer, to the client that it knows by an IPv4 address.
    pub fn restore_as_v6(
        &mut self,
        (attachment, segment): (&Attachment, &Segment),
        client: Ip,
        flow: &ReplyFlow,
    ) -> Step {
        let ip = Network::of(&self.frame, Family::V4).ok_or(DropReason::Malformed)?;
        if ip.has_options() {
            return Err(DropReason::Untranslatable);
        }
        let longest = self.longest_answer(flow.service, attachment.mtu);
        let is_long = u32::from(ip.total_len) + 20 > longest;
        let is_told = ip.dont_fragment || (longest < attachment.mtu && ip.piece != Piece::Later);
        if is_long && is_told && !self.packet.is_aggregate {
            let fits = u16::try_from(longest - 20).unwrap();
            return self.refuse_answer(attachment, &ip, fits);
        }
        self.is_translated = true;
        let sum = segment.header.and_then(|header| at(&self.frame, header + 6));
        if segment.is_datagram() && sum == Some([0, 0]) {
            return Err(DropReason::Untranslatable);
        }
        let source = (flow.service, flow.service_port);
        self.translate_transport(segment, (source, (client, flow.client_port)), attachment.mtu)?;
        let header: [u8; 20] = at(&self.frame, ETHERNET).ok_or(DropReason::Malformed)?;
        let flags = u16::from_be_bytes([header[6], header[7]]);
        let offset = flags % 0x2000 * 8 + u16::from(flags & 0x2000 != 0);
        let mut len = ip.total_len - 20;
        let mut next = ip.protocol;
        let mut extension = Vec::new();
        if offset != 0 {
            if self.packet.is_aggregate {
                return Err(DropReason::Rewrite);
            }
            extension = [[next, 0], offset.to_be_bytes(), [0, 0], [header[4], header[5]]].concat();
            (next, len) = (44, len.saturating_add(8));
        }
        let start = header6((header[1], next, header[8]), len, (flow.service, client));
        self.frame.splice(ETHERNET..ETHERNET + 20, [start, extension].concat());
        put(&mut self.frame, 12, &IPV6);
        if flow.way & FLOW_STRAYED == 0 {
            return self.leave_from(flow, client, attachment.address);
        }
        let service = (flow.service, flow.service_port);
        let tuple = FlowTuple::new((client, flow.client_port), service, segment.tuple.protocol);
        self.leave_and_tell(tuple, attachment.address)
    }

    /// An error about an answer, to the task that gave it.
    pub fn hand_over_error_as_v4(&mut self, client: Ip, (backend, endpoint): Backend, seen: Seen) -> Step {
        let tick = self.tables.wanted.tick;
        self.tables.stand_in(client).ok_or(DropReason::UnknownFlow)?.last_seen = tick;
        let stand_in = self.tables.stand_in_address(client).ok_or(DropReason::UnknownFlow)?;
        let said: [u8; 8] = at(&self.frame, Family::V6.icmp()).ok_or(DropReason::Malformed)?;
        let (kind, mtu) = match (said[0], said[1]) {
            (1, 1) => ([3, 10], 0),
            (1, 4) => ([3, 3], 0),
            (1, _) => ([3, 1], 0),
            (2, _) => {
                let mtu = u32::from_be_bytes([said[4], said[5], said[6], said[7]]);
                ([3, 4], u16::try_from(mtu).unwrap_or(u16::MAX).saturating_sub(20))
            }
            (3, code) => ([11, code], 0),
            (4, 1) => ([3, 2], 0),
            _ => return Err(DropReason::Untranslatable),
        };
        let fault: [u8; 40] = at(&self.frame, Family::V6.faulty()).ok_or(DropReason::Malformed)?;
        let transport: [u8; 8] = at(&self.frame, Family::V6.faulty() + 40).ok_or(DropReason::Malformed)?;
        let len = u16::from_be_bytes([fault[4], fault[5]]).saturating_add(20).to_be_bytes();
        let class = (u16::from_be_bytes([fault[0], fault[1]]) >> 4).to_be_bytes()[1];
        let mut carried = vec![0x45, class, len[0], len[1], 0, 0, 0x40, 0, fault[7], fault[6], 0, 0];
        carried.extend([backend.0, stand_in.0].concat());
        let sum = checksum(&carried).to_be_bytes();
        put(&mut carried, 10, &sum);
        carried.extend([&seen.target.0, &seen.client.0, &transport[4..]].concat());
        let mut message = [&kind[..], &[0; 4], &mtu.to_be_bytes(), &carried].concat();
        let sum = checksum(&message).to_be_bytes();
        put(&mut message, 2, &sum);
        let mut header = vec![0x45, 0, 0, 56, 0, 0, 0x40, 0, 64, protocol::ICMP, 0, 0];
        header.extend([stand_in.0, backend.0].concat());
        let end = self.frame.len();
        self.give_header4(header, end);
        self.frame.extend(message);
        self.set_macs(endpoint.mac, ROUTER_MAC);
        Ok(Verdict::Forward(Way::Sandbox(endpoint.ifindex)))
    }

    /// A task's error about a client's packet.
    pub fn restore_error_as_v6(&mut self, client: Ip, flow: &ReplyFlow, task: Ip4) -> Step {
        let said: [u8; 8] = at(&self.frame, Family::V4.icmp()).ok_or(DropReason::Malformed)?;
        let mtu = u32::from(u16::from_be_bytes([said[6], said[7]])) + 20;
        let (kind, rest) = match (said[0], said[1]) {
            (3, 0 | 1 | 5 | 6 | 7 | 8 | 11 | 12) => ([1, 0], 0),
            (3, 2) => ([4, 1], 6),
            (3, 3) => ([1, 4], 0),
            (3, 4) => ([2, 0], mtu.max(1280)),
            (3, 9 | 10 | 13 | 15) => ([1, 1], 0),
            (11, code) => ([3, code], 0),
            _ => return Err(DropReason::Untranslatable),
        };
        let fault: [u8; 20] = at(&self.frame, Family::V4.faulty()).ok_or(DropReason::Malformed)?;
        let transport: [u8; 8] = at(&self.frame, Family::V4.faulty() + 20).ok_or(DropReason::Malformed)?;
        let len = u16::from_be_bytes([fault[2], fault[3]]).saturating_sub(20);
        let mut carried = header6((fault[1], fault[9], fault[8]), len, (client, flow.service));
        carried.extend([&flow.client_port.0, &flow.service_port.0, &transport[4..]].concat());
        let mut message = [&kind[..], &[0; 2], &rest.to_be_bytes(), &carried].concat();
        let covered = [pseudo_header((flow.service, client), protocol::ICMP6, 56), message.clone()].concat();
        put(&mut message, 2, &checksum(&covered).to_be_bytes());
        self.frame.truncate(ETHERNET);
        self.frame.extend(header6((0, protocol::ICMP6, 64), 56, (flow.service, client)));
        self.frame.extend(message);
        put(&mut self.frame, 12, &IPV6);
        self.leave_from(flow, client, task)
    }
}

/// An IPv6 header of this class, next header and hop limit.
fn header6((class, next, hops): (u8, u8, u8), len: u16, addresses: (Ip, Ip)) -> Vec<u8> {
    let [high, low] = len.to_be_bytes();
    let start = [0x60 + class / 16, class % 16 * 16, 0, 0, high, low, next, hops];
    [&start[..], &addresses.0.0, &addresses.1.0].concat()
}
