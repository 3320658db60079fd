//! Frames as fixtures. Checksums are computed in full here, by another implementation than the programs'.

use ebpf_abi::{Ip, Ip4, MacAddr};
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, PacketBuilderStep, icmpv4, icmpv6};

/// Ethernet and IP of a frame.
#[derive(Debug, Clone, Copy)]
pub struct Between {
    pub macs: (MacAddr, MacAddr),
    /// Of one family.
    pub addresses: (Ip, Ip),
}

/// From a MAC and address to another.
pub fn between(source: (MacAddr, impl Into<Ip>), destination: (MacAddr, impl Into<Ip>)) -> Between {
    Between { macs: (source.0, destination.0), addresses: (source.1.into(), destination.1.into()) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    Syn,
    SynAck,
    Ack,
    Fin,
    Rst,
}

impl Between {
    fn ip(&self) -> PacketBuilderStep<etherparse::IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(self.macs.0.0, self.macs.1.0);
        let (source, destination) = self.addresses;
        if self.is_v6() {
            ethernet.ipv6(source.0, destination.0, 64)
        } else {
            ethernet.ipv4(source.low().0, destination.low().0, 64)
        }
    }

    fn is_v6(&self) -> bool {
        assert_eq!(self.addresses.0.is_v4(), self.addresses.1.is_v4(), "one family");
        !self.addresses.0.is_v4()
    }

    fn icmp(&self, v4: Icmpv4Type, v6: Icmpv6Type, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        if self.is_v6() {
            self.ip().icmpv6(v6).write(&mut frame, payload).unwrap();
        } else {
            self.ip().icmpv4(v4).write(&mut frame, payload).unwrap();
        }
        frame
    }

    pub fn tcp(&self, ports: (u16, u16), segment: Segment, payload: &[u8]) -> Vec<u8> {
        let tcp = self.ip().tcp(ports.0, ports.1, 1000, 65_535);
        let tcp = match segment {
            Segment::Syn => tcp.syn(),
            Segment::SynAck => tcp.syn().ack(1),
            Segment::Ack => tcp.ack(1),
            Segment::Fin => tcp.fin().ack(1),
            Segment::Rst => tcp.rst(),
        };
        let mut frame = Vec::new();
        tcp.write(&mut frame, payload).unwrap();
        frame
    }

    /// A first segment that says how long segments may be.
    pub fn syn(&self, ports: (u16, u16), mss: u16) -> Vec<u8> {
        let options = [etherparse::TcpOptionElement::MaximumSegmentSize(mss)];
        let tcp = self.ip().tcp(ports.0, ports.1, 1000, 65_535).syn().options(&options).unwrap();
        let mut frame = Vec::new();
        tcp.write(&mut frame, b"").unwrap();
        frame
    }

    pub fn udp(&self, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.ip().udp(ports.0, ports.1).write(&mut frame, payload).unwrap();
        frame
    }

    pub fn echo_request(&self) -> Vec<u8> {
        let echo = etherparse::IcmpEchoHeader { id: 0x1234, seq: 7 };
        self.icmp(Icmpv4Type::EchoRequest(echo), Icmpv6Type::EchoRequest(echo), b"abcdefgh")
    }

    pub fn echo_reply(&self) -> Vec<u8> {
        let echo = etherparse::IcmpEchoHeader { id: 0x1234, seq: 7 };
        self.icmp(Icmpv4Type::EchoReply(echo), Icmpv6Type::EchoReply(echo), b"abcdefgh")
    }

    /// As [`Self::port_unreachable`]: the packet, which begins with `about`, is too long, and must not be fragmented.
    pub fn fragmentation_needed(&self, about: &[u8], mtu: u16) -> Vec<u8> {
        let v4 = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
        let v6 = Icmpv6Type::PacketTooBig { mtu: mtu.into() };
        self.icmp(Icmpv4Type::DestinationUnreachable(v4), v6, about)
    }

    /// An ICMPv6 message of this type and code.
    pub fn icmp6(&self, hop_limit: u8, [kind, code]: [u8; 2], body: &[u8]) -> Vec<u8> {
        let (rest, payload) = body.split_first_chunk().unwrap();
        let message = Icmpv6Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: *rest };
        let mut frame = Vec::new();
        self.ip().icmpv6(message).write(&mut frame, payload).unwrap();
        frame[21] = hop_limit;
        frame
    }

    /// "Port unreachable" about the packet whose frame is `about`.
    pub fn port_unreachable(&self, about: &[u8]) -> Vec<u8> {
        let (v4, v6) = (icmpv4::DestUnreachableHeader::Port, icmpv6::DestUnreachableCode::Port);
        let (v4, v6) = (Icmpv4Type::DestinationUnreachable(v4), Icmpv6Type::DestinationUnreachable(v6));
        self.icmp(v4, v6, &about[14..])
    }
}

/// Makes a fragment of a frame.
pub fn fragment(mut frame: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    let flags = offset | if more { 0x2000 } else { 0 };
    frame[20..22].copy_from_slice(&flags.to_be_bytes());
    fix_ip_checksum(&mut frame);
    frame
}

/// Makes a fragment of an IPv6 frame: its payload from byte `offset` on, which is a multiple of eight, `len` bytes of it.
pub fn fragment6(frame: &[u8], (offset, len): (usize, usize), id: u32) -> Vec<u8> {
    let payload = &frame[54..];
    let end = payload.len().min(offset + len);
    let more = u16::from(end < payload.len());
    let at = u16::try_from(offset).unwrap() | more;
    let header = [&[frame[20], 0][..], &at.to_be_bytes(), &id.to_be_bytes()].concat();
    with_payload6(frame, 44, &[&header, &payload[offset..end]].concat())
}

/// Puts destination options, which are padding, in front of an IPv6 frame's transport header.
pub fn with_options6(frame: &[u8]) -> Vec<u8> {
    with_payload6(frame, 60, &[&[frame[20], 0, 1, 4, 0, 0, 0, 0], &frame[54..]].concat())
}

fn with_payload6(frame: &[u8], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&frame[..54], payload].concat();
    frame[18..20].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame[20] = next;
    frame
}

/// Puts a no-operation option of four bytes into the IPv4 header.
pub fn with_options(mut frame: Vec<u8>) -> Vec<u8> {
    frame[14] = 0x46;
    let total = u16::from_be_bytes([frame[16], frame[17]]) + 4;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame.splice(34..34, [1, 1, 1, 1]);
    fix_ip_checksum(&mut frame);
    frame
}

/// Changes the IPv4 header's idea of the packet's length, bytes.
pub fn with_total_len(mut frame: Vec<u8>, len: u16) -> Vec<u8> {
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    frame
}

fn fix_ip_checksum(frame: &mut [u8]) {
    let header = 14..14 + usize::from(frame[14] & 0xf) * 4;
    frame[24..26].fill(0);
    let checksum = ebpf_packet::checksum::full(&frame[header]);
    frame[24..26].copy_from_slice(&checksum);
}

/// An ARP frame: operation 1 asks, 2 answers.
pub fn arp(operation: u8, sender: (MacAddr, Ip4), target: (MacAddr, Ip4), to: MacAddr) -> Vec<u8> {
    let mut frame = [to.0, sender.0.0].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(sender.0.0);
    frame.extend(sender.1.0);
    frame.extend(target.0.0);
    frame.extend(target.1.0);
    frame
}

/// VXLAN header and inner frame: the payload of a datagram to the tunnel port.
pub fn vxlan(vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    payload
}
