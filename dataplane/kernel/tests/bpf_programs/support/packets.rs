//! Frames as fixtures. Checksums are computed in full here, by another implementation than the programs'.

use ebpf_abi::{Ip4, MacAddr};
use etherparse::{PacketBuilder, PacketBuilderStep, icmpv4};

/// Ethernet and IPv4 of a frame.
#[derive(Debug, Clone, Copy)]
pub struct Between {
    pub macs: (MacAddr, MacAddr),
    pub addresses: (Ip4, Ip4),
}

/// From a MAC and address to another.
pub fn between(source: (MacAddr, Ip4), destination: (MacAddr, Ip4)) -> Between {
    Between { macs: (source.0, destination.0), addresses: (source.1, destination.1) }
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
        PacketBuilder::ethernet2(self.macs.0.0, self.macs.1.0).ipv4(
            self.addresses.0.0,
            self.addresses.1.0,
            64,
        )
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

    pub fn udp(&self, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.ip().udp(ports.0, ports.1).write(&mut frame, payload).unwrap();
        frame
    }

    pub fn echo_request(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        self.ip().icmpv4_echo_request(0x1234, 7).write(&mut frame, b"abcdefgh").unwrap();
        frame
    }

    pub fn echo_reply(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        self.ip().icmpv4_echo_reply(0x1234, 7).write(&mut frame, b"abcdefgh").unwrap();
        frame
    }

    /// "Port unreachable" about the packet whose frame is `about`.
    /// As [`Self::port_unreachable`]: the packet is too long, and must not be fragmented.
    pub fn fragmentation_needed(&self, about: &[u8], mtu: u16) -> Vec<u8> {
        let kind = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
        let mut frame = Vec::new();
        self.ip()
            .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(kind))
            .write(&mut frame, about)
            .unwrap();
        frame
    }

    pub fn port_unreachable(&self, about: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let kind = icmpv4::DestUnreachableHeader::Port;
        self.ip()
            .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(kind))
            .write(&mut frame, &about[14..])
            .unwrap();
        frame
    }
}

/// Makes a fragment of a frame.
pub fn fragment(mut frame: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    let flags = offset | if more { 0x2000 } else { 0 };
    frame[20..22].copy_from_slice(&flags.to_be_bytes());
    fix_ip_checksum(&mut frame);
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
