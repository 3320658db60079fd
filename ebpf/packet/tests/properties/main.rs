//! Laws of the packet code, on random bytes and on frames that another library has built.

#![expect(clippy::unwrap_used, reason = "a frame that can't be built is a failed test")]

mod sctp;
mod v6;

use ebpf_abi::{Endpoint, FragmentPorts, Ip, Ip4, MacAddr, Port, protocol};
use ebpf_packet::vxlan::Outer;
use ebpf_packet::{
    Ethernet, Flow, IpHeader, NoFlow, Version, arp, checksum, ethernet, flow, hash, icmp, ip, ipv4, ndp,
    vxlan,
};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use proptest::prelude::*;

/// The rewriting that the programs ask the kernel's helpers for, done here by [`checksum::replace`].
fn replace_words(checksum: [u8; 2], from: &[u8], to: &[u8]) -> [u8; 2] {
    from.chunks(2)
        .zip(to.chunks(2))
        .fold(checksum, |sum, (from, to)| checksum::replace(sum, [from[0], from[1]], [to[0], to[1]]))
}

/// Gives a flow's packet another destination, and corrects the transport's checksum, which is returned.
fn send_elsewhere(bytes: &mut [u8], flow: &Flow, from: (&[u8], u16), to: (&[u8], u16)) -> [u8; 2] {
    let sum = flow.checksum_offset();
    let checksum = replace_words([bytes[sum], bytes[sum + 1]], from.0, to.0);
    let checksum = replace_words(checksum, &from.1.to_be_bytes(), &to.1.to_be_bytes());
    bytes[sum..sum + 2].copy_from_slice(&checksum);
    bytes[flow.version.destination_offset()..][..to.0.len()].copy_from_slice(to.0);
    let port = flow.transport_offset + flow::DESTINATION_PORT_OFFSET;
    bytes[port..][..2].copy_from_slice(&to.1.to_be_bytes());
    checksum
}

fn frame(tcp: bool, source: ([u8; 4], u16), destination: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source.0, destination.0, 64);
    finish(ip, tcp, (source.1, destination.1), payload)
}

/// A SYN or a datagram behind these headers.
fn finish(ip: PacketBuilderStep<IpHeaders>, tcp: bool, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    if tcp {
        ip.tcp(ports.0, ports.1, 7, 1024).syn().write(&mut frame, payload).unwrap();
    } else {
        ip.udp(ports.0, ports.1).write(&mut frame, payload).unwrap();
    }
    frame
}

const INNER: Ethernet =
    Ethernet { destination: MacAddr([2; 6]), source: MacAddr([4; 6]), ether_type: ethernet::TYPE_IPV4 };

fn outer() -> Outer<Ip4> {
    Outer {
        source: Ip4([198, 18, 0, 11]),
        destination: Ip4([198, 18, 0, 12]),
        source_port: vxlan::source_port(7),
        destination_port: Port::new(4789),
        vni: 4096,
        inner_tos: 0,
        id: [1, 2],
    }
}

proptest! {
    #[test]
    fn no_bytes_panic_a_parser(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let packet = bytes.as_slice();
        let _ = Ethernet::parse(&packet);
        let _ = arp::Request::parse(&packet);
        let _ = vxlan::vni(&packet, 34);
        for version in [Version::V4, Version::V6] {
            let _ = Flow::parse(&packet, version);
            if let Ok(ip) = IpHeader::parse(&packet, version) {
                let _ = Flow::of(&packet, &ip);
                let _ = icmp::echo_reply(&packet, &ip);
                let _ = icmp::embedded_flow(&packet, &ip);
                let _ = ndp::Solicitation::parse(&packet, &ip);
                prop_assert!(ip.transport_offset >= ip::OFFSET + version.min_len());
            }
        }
    }

    #[test]
    fn no_cut_of_a_good_frame_panics(tcp: bool, cut in 0_usize..80, flip in 0_usize..60, to: u8) {
        let mut bytes = frame(tcp, ([10, 0, 0, 1], 1), ([10, 0, 0, 2], 2), b"0123456789");
        let position = flip % bytes.len();
        bytes[position] = to;
        bytes.truncate(cut);
        let packet = bytes.as_slice();
        if let Ok(flow) = Flow::parse(&packet, Version::V4) {
            prop_assert!(flow.transport_offset + 4 <= packet.len());
        }
    }

    #[test]
    fn incremental_checksums_are_full_checksums(
        words in prop::collection::vec(any::<[u8; 2]>(), 1..40), position: prop::sample::Index, to: [u8; 2],
    ) {
        let mut bytes = words.concat();
        let before = checksum::full(&bytes);
        let at = position.index(words.len()) * 2;
        let from = [bytes[at], bytes[at + 1]];
        bytes[at..at + 2].copy_from_slice(&to);
        // All-zero bytes have no incremental form (RFC 1624 section 3); no header is all zero.
        prop_assume!(bytes.iter().any(|byte| *byte != 0));
        prop_assert_eq!(checksum::replace(before, from, to), checksum::full(&bytes));
    }

    #[test]
    fn header_checksums_agree(header: [u8; 20]) {
        prop_assert_eq!(checksum::header_checksum(&header), checksum::full(&header));
    }

    #[test]
    fn flows_are_read_as_they_were_built(
        tcp: bool, source: ([u8; 4], u16), destination: ([u8; 4], u16), payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let bytes = frame(tcp, source, destination, &payload);
        let flow = Flow::parse(&bytes.as_slice(), Version::V4).unwrap();
        prop_assert_eq!(flow.tuple.source, Ip::v4(Ip4(source.0)));
        prop_assert_eq!(flow.tuple.destination, Ip::v4(Ip4(destination.0)));
        prop_assert_eq!((flow.tuple.source_port.get(), flow.tuple.destination_port.get()), (source.1, destination.1));
        prop_assert_eq!(flow.tuple.protocol, if tcp { protocol::TCP } else { protocol::UDP });
        prop_assert_eq!(flow.is_first_syn(), tcp);
        prop_assert_eq!(usize::from(flow.total_len), bytes.len() - 14);
    }

    /// Translating address and port by incremental updates gives the frame that is built with them.
    #[test]
    fn translated_frames_are_as_if_built_so(
        tcp: bool, source: ([u8; 4], u16), from: ([u8; 4], u16), to: ([u8; 4], u16), payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = frame(tcp, source, from, &payload);
        let flow = Flow::parse(&bytes.as_slice(), Version::V4).unwrap();
        let ip_sum = ipv4::CHECKSUM_OFFSET;
        let ip_checksum = replace_words([bytes[ip_sum], bytes[ip_sum + 1]], &from.0, &to.0);
        bytes[ip_sum..ip_sum + 2].copy_from_slice(&ip_checksum);
        let checksum = send_elsewhere(&mut bytes, &flow, (&from.0, from.1), (&to.0, to.1));
        let built = frame(tcp, source, to, &payload);
        // A UDP checksum that comes out as zero is sent as all ones (RFC 768), which the kernel's helper sees to.
        prop_assume!(tcp || (checksum != [0, 0] && built[flow.checksum_offset()..][..2] != [0xff, 0xff]));
        prop_assert_eq!(bytes, built);
    }

    #[test]
    fn places_are_inside_their_ring(hash: u32, n_places in 1_u32..=65_537) {
        prop_assert!(hash::place(hash, n_places) < n_places);
    }

    #[test]
    fn encapsulation_is_read_back(vni in 0_u32..1 << 24, hash: u32, inner_tos: u8, inner in prop::collection::vec(any::<u8>(), 14..300)) {
        let outer = Outer { vni, source_port: vxlan::source_port(hash), inner_tos, ..outer() };
        let macs = (MacAddr([4; 6]), MacAddr([2; 6]));
        let bytes = [&outer.to_bytes(macs, u16::try_from(inner.len()).unwrap())[..], &inner].concat();
        let packet = etherparse::SlicedPacket::from_ethernet(&bytes).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else { panic!("no IPv4") };
        prop_assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
        let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
        prop_assert_eq!(udp.payload().len(), inner.len() + 8);
        prop_assert!(udp.source_port() >= 49_152 && udp.destination_port() == 4789);
        prop_assert_eq!(vxlan::vni(&bytes.as_slice(), 34), Ok(Some(vni)));
        prop_assert_eq!(&udp.payload()[8..], &inner);
        let ecn = u8::from(ip.header().ecn());
        prop_assert_eq!((ecn, u8::from(ip.header().dcp())), (if inner_tos & 3 == 3 { 2 } else { inner_tos & 3 }, 0));
    }

    /// What goes behind an Ethernet header is what goes in front of an inner one.
    #[test]
    fn both_ways_of_encapsulating_are_one(vni in 0_u32..1 << 24, id: [u8; 2], len in 14_u16..1000) {
        let outer = Outer { vni, id, ..outer() };
        let macs = (MacAddr([4; 6]), MacAddr([2; 6]));
        let in_front = [&outer.to_bytes(macs, len)[..], &INNER.to_bytes()].concat();
        prop_assert_eq!(&in_front[14..], &outer.behind_ethernet(&INNER, len)[..]);
    }

    #[test]
    fn own_headers_are_taken_off_by_others_alone_if_nothing_is_odd(
        vni in 0_u32..1 << 24, inner_tos in any::<u8>(), payload in 20_usize..300,
        flip in prop::option::of((0_usize..64, any::<u8>())), padding in 0_usize..20,
    ) {
        let outer = Outer { vni, inner_tos, ..outer() };
        let headers = outer.behind_ethernet(&INNER, u16::try_from(14 + payload).unwrap());
        let mut frame = [0_u8; vxlan::FRAME_HEADERS_LEN4];
        frame[..14].copy_from_slice(&INNER.to_bytes());
        frame[14..].copy_from_slice(&headers);
        let len = 64 + payload + padding;
        let here = (outer.destination, outer.destination_port);
        let good = (outer.source, vxlan::Tunnelled { vni, inner: INNER, version: Version::V4 });
        prop_assert_eq!(vxlan::Tunnelled::parse4(&frame, len, here), Some(good));
        prop_assert_eq!(vxlan::Tunnelled::parse4(&frame, len - padding - 1, here), None);
        if let Some((position, to)) = flip {
            let from = std::mem::replace(&mut frame[position], to);
            let parsed = vxlan::Tunnelled::parse4(&frame, len, here);
            // MACs, the outer source port, and the VNI may be any; the outer IPv4 header's checksum sees to the rest of it.
            let may_be_any = [0..12, 34..36, 46..49, 50..62].iter().any(|free| free.contains(&position));
            prop_assert_eq!(parsed.is_some(), may_be_any || from == to, "byte {}", position);
        }
    }

    /// Of either version, over IPv6.
    #[test]
    fn over_ipv6_too(
        vni in 0_u32..1 << 24, hash: u32, inner_tos: u8, is_v4: bool, payload in 40_usize..300,
        flip in prop::option::of((0_usize..84, any::<u8>())), padding in 0_usize..20,
    ) {
        let [source, destination] = [0x11, 0x12].map(|last| Ip::from_be_words([0xfd, 0, 0, last]));
        let Outer { destination_port, .. } = outer();
        let source_port = vxlan::source_port(hash);
        let outer = Outer { source, destination, source_port, destination_port, vni, inner_tos, id: [0; 2] };
        let version = if is_v4 { Version::V4 } else { Version::V6 };
        let inner = Ethernet { ether_type: version.ether_type(), ..INNER };
        let mut frame = [0_u8; vxlan::FRAME_HEADERS_LEN6];
        frame[..14].copy_from_slice(&Ethernet { ether_type: ethernet::TYPE_IPV6, ..INNER }.to_bytes());
        let behind = (&mut frame[14..]).try_into().unwrap();
        outer.write_behind_ethernet(&inner, u16::try_from(14 + payload).unwrap(), behind);
        let len = 84 + payload + padding;
        let here = (&destination, destination_port);

        let whole = [&frame[..], &vec![0; payload]].concat();
        let packet = etherparse::SlicedPacket::from_ethernet(&whole).unwrap();
        let Some(etherparse::NetSlice::Ipv6(header)) = packet.net else { panic!("no IPv6") };
        let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
        prop_assert_eq!((header.header().hop_limit(), udp.checksum()), (64, 0));
        let class = header.header().traffic_class();
        prop_assert_eq!(class, if inner_tos & 3 == 3 { 2 } else { inner_tos & 3 });
        prop_assert_eq!(vxlan::vni(&whole.as_slice(), 54), Ok(Some(vni)));

        let good = (source, vxlan::Tunnelled { vni, inner, version });
        prop_assert_eq!(vxlan::Tunnelled::parse6(&frame, len, here), Some(good));
        prop_assert_eq!(vxlan::Tunnelled::parse6(&frame, len - padding - 1, here), None);
        if let Some((position, to)) = flip {
            let from = std::mem::replace(&mut frame[position], to);
            let parsed = vxlan::Tunnelled::parse6(&frame, len, here);
            // Class (but for congestion), flow label, hop limit, sender, source port, VNI and MACs may be any.
            let may_be_any =
                [0..12, 14..18, 21..38, 54..56, 66..69, 70..82].iter().any(|free| free.contains(&position));
            let is_congested = position == 15 && to >> 4 & 3 == 3;
            let is_other = position == 14 && to >> 4 != 6;
            let expected = (may_be_any && !is_congested && !is_other) || from == to;
            prop_assert_eq!(parsed.is_some(), expected, "byte {}", position);
        }
    }

    #[test]
    fn echo_replies_have_sound_checksums(payload in prop::collection::vec(any::<u8>(), 0..64), id: u16, sequence: u16) {
        let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 5], [10, 0, 1, 2], 64);
        let mut bytes = Vec::new();
        ip.icmpv4_echo_request(id, sequence).write(&mut bytes, &payload).unwrap();
        let header = IpHeader::parse(&bytes.as_slice(), Version::V4).unwrap();
        let reply = icmp::echo_reply(&bytes.as_slice(), &header).unwrap();
        bytes[Version::V4.icmp_offset()..Version::V4.icmp_offset() + 4].copy_from_slice(&reply);
        prop_assert_eq!(checksum::full(&bytes[Version::V4.icmp_offset()..]), [0, 0]);
    }
}

#[test]
fn fragments_and_other_protocols_have_no_flow() {
    let mut bytes = frame(false, ([1; 4], 1), ([2; 4], 2), b"x");
    for flags in [0x0001_u16, 0x2001] {
        bytes[20..22].copy_from_slice(&flags.to_be_bytes());
        assert_eq!(Flow::parse(&bytes.as_slice(), Version::V4), Err(NoFlow::Fragment));
    }
    bytes[20..22].copy_from_slice(&0x2000_u16.to_be_bytes());
    let first = Flow::parse(&bytes.as_slice(), Version::V4).expect("a first fragment has ports");
    let ip = IpHeader::parse(&bytes.as_slice(), Version::V4).unwrap();
    let (source, destination) = (first.tuple.source_port, first.tuple.destination_port);
    let ports = FragmentPorts { source, destination, seen: 0 };
    let later = Flow::of_later(&ip, ports);
    assert_eq!(later.tuple, first.tuple);
    bytes[20..22].copy_from_slice(&[0x40, 0]);
    assert!(Flow::parse(&bytes.as_slice(), Version::V4).is_ok(), "DF alone is no fragment");
    bytes[23] = 47;
    assert_eq!(Flow::parse(&bytes.as_slice(), Version::V4), Err(NoFlow::Protocol));
}

#[test]
fn the_flow_in_an_icmp_error_is_the_one_complained_of() {
    let about = frame(false, ([10, 0, 0, 100], 40_000), ([10, 0, 0, 5], 53), b"question");
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 5], [10, 0, 0, 100], 64)
        .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::Port,
        ))
        .write(&mut bytes, &about[14..])
        .unwrap();
    let ip = IpHeader::parse(&bytes.as_slice(), Version::V4).unwrap();
    let flow = icmp::embedded_flow(&bytes.as_slice(), &ip).unwrap();
    assert_eq!(flow, Flow::parse(&about.as_slice(), Version::V4).unwrap().tuple);
    assert_eq!(icmp::echo_reply(&bytes.as_slice(), &ip), None);
}

#[test]
fn connections_stay_with_a_backend_that_serves_no_more_and_datagrams_do_not() {
    let packet = |tcp| frame(tcp, ([198, 18, 0, 100], 40_000), ([198, 18, 0, 11], 8080), b"");
    let flow = |bytes: Vec<u8>| Flow::parse(&bytes.as_slice(), Version::V4).unwrap();
    let (datagram, syn) = (flow(packet(false)), flow(packet(true)));
    let mut segment = packet(true);
    segment[14 + 20 + 13] = 0x10;
    let segment = flow(segment);
    let backend = Endpoint::remote(MacAddr::of_endpoint(Ip4([10, 0, 0, 5])), Ip4([198, 18, 0, 12]).into());

    let may_stay = |serves| [syn, segment, datagram].map(|of| of.may_stay_with(&backend.serving(serves)));

    assert_eq!(may_stay(true), [false, true, true]);
    assert_eq!(may_stay(false), [false, true, false]);
}
