//! Laws of the packet code for IPv6: headers and their extensions, ICMPv6, neighbour discovery, checksums.

use ebpf_abi::{FlowTuple, Ip, MacAddr, Port, protocol};
use ebpf_packet::ip::Part;
use ebpf_packet::{Flow, IpHeader, NoFlow, Version, checksum, icmp, ip, ipv6, ndp};
use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::{finish, send_elsewhere};

type End = ([u8; 16], u16);

const TRANSPORT: usize = ip::OFFSET + ipv6::LEN;
const NEXT_HEADER: usize = ip::OFFSET + 6;
const PAYLOAD_LEN: usize = ip::OFFSET + 4;
const FRAGMENT: u8 = 44;
/// Hop-by-hop options, routing, destination options.
const OPTIONS: [u8; 3] = [0, 43, 60];

fn frame(tcp: bool, source: End, destination: End, payload: &[u8]) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(source.0, destination.0, 64);
    finish(ip, tcp, (source.1, destination.1), payload)
}

/// Any address but those that stand for IPv4, which no packet may have.
fn address() -> impl Strategy<Value = [u8; 16]> {
    any::<[u8; 16]>().prop_filter("mapped", |address| !Ip(*address).is_v4())
}

fn end() -> impl Strategy<Value = End> {
    (address(), any::<u16>())
}

/// Puts an extension header of this number and so many further units of eight bytes in front of all others.
fn extend(frame: &mut Vec<u8>, kind: u8, rest: [u8; 7], n_units: u8) {
    let next = std::mem::replace(&mut frame[NEXT_HEADER], kind);
    let mut extension = [&[next], &rest[..]].concat();
    if kind != FRAGMENT {
        extension[1] = n_units;
        extension.resize(8 * (1 + usize::from(n_units)), 0);
    }
    let length = u16::from_be_bytes([frame[PAYLOAD_LEN], frame[PAYLOAD_LEN + 1]]);
    let length = length + u16::try_from(extension.len()).unwrap();
    frame[PAYLOAD_LEN..PAYLOAD_LEN + 2].copy_from_slice(&length.to_be_bytes());
    frame.splice(TRANSPORT..TRANSPORT, extension);
}

/// Also not if the sixth is where reading would end.
#[test]
fn a_later_fragment_behind_five_extensions_is_refused() {
    let mut bytes = frame(false, ([1; 16], 1), ([2; 16], 2), b"x");
    extend(&mut bytes, FRAGMENT, fragment(9, false, [0; 4]), 0);
    for n_options in 0..8 {
        assert_eq!(header(&bytes).is_some(), n_options <= 4, "behind {n_options}");
        extend(&mut bytes, 60, [0, 1, 4, 0, 0, 0, 0], 0);
    }
}

/// What is to follow the next-header field of a fragment header.
fn fragment(offset: u16, is_followed: bool, id: [u8; 4]) -> [u8; 7] {
    let [high, low] = (offset << 3 | u16::from(is_followed)).to_be_bytes();
    [0, high, low, id[0], id[1], id[2], id[3]]
}

fn header(frame: &[u8]) -> Option<IpHeader> {
    IpHeader::parse(&frame, Version::V6).ok()
}

/// The checksum of a message between these addresses, in one go; zero if the one that it carries is right.
fn whole_checksum(addresses: (Ip, Ip), protocol: u8, message: &[u8]) -> [u8; 2] {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let pseudo = [&addresses.0.0[..], &addresses.1.0, &length, &[0, 0, 0, protocol]].concat();
    checksum::full(&[&pseudo[..], message].concat())
}

fn solicitation(sender: Ip, target: Ip, hop_limit: u8) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.0);
    let sum = whole_checksum((sender, target), protocol::ICMP6, &message);
    message[2..4].copy_from_slice(&sum);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6(sender.0, target.0, hop_limit)
        .write(&mut frame, etherparse::IpNumber::IPV6_ICMP, &message)
        .unwrap();
    frame
}

proptest! {
    #[test]
    fn no_cut_or_spoilt_frame_panics(
        tcp: bool, source in end(), destination in end(),
        extensions in prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 7]>(), 0_u8..4), 0..8),
        cut: prop::sample::Index, spoilt in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = frame(tcp, source, destination, b"0123456789");
        for (kind, rest, n_units) in extensions {
            extend(&mut bytes, *kind.get(&[0, 43, 60, FRAGMENT, protocol::ICMP6]), rest, n_units);
        }
        for (position, to) in spoilt {
            let position = position.index(bytes.len());
            bytes[position] = to;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let packet = bytes.as_slice();
        if let Ok(flow) = Flow::parse(&packet, Version::V6) {
            prop_assert!(flow.transport_offset >= TRANSPORT && flow.transport_offset + 4 <= packet.len());
        }
        if let Some(ip) = header(packet) {
            prop_assert!(ip.transport_offset >= TRANSPORT);
            let _ = icmp::echo_reply(&packet, &ip);
            let _ = icmp::answered_flow(&packet, &ip);
            let _ = ndp::Solicitation::parse(&packet, &ip);
        }
    }

    #[test]
    fn flows_are_read_as_they_were_built(
        tcp: bool, source in end(), destination in end(), payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let bytes = frame(tcp, source, destination, &payload);
        let flow = Flow::parse(&bytes.as_slice(), Version::V6).unwrap();
        let protocol = if tcp { protocol::TCP } else { protocol::UDP };
        let ends = [source, destination].map(|(address, port)| (Ip(address), Port::new(port)));
        prop_assert_eq!(flow.tuple, FlowTuple::new(ends[0], ends[1], protocol));
        prop_assert_eq!((flow.transport_offset, flow.is_first_syn()), (TRANSPORT, tcp));
        prop_assert_eq!(usize::from(flow.total_len), bytes.len() - ip::OFFSET);
    }

    /// Each kind once and destination options twice are five (RFC 8200 section 4.1); nobody needs more.
    #[test]
    fn five_extensions_are_looked_behind_and_no_more(
        tcp: bool, source in end(), destination in end(),
        extensions in prop::collection::vec((prop::sample::select(&OPTIONS[..]), any::<[u8; 7]>(), 0_u8..4), 0..9),
    ) {
        let mut bytes = frame(tcp, source, destination, b"x");
        let plain = Flow::parse(&bytes.as_slice(), Version::V6).unwrap();
        for (kind, rest, n_units) in &extensions {
            extend(&mut bytes, *kind, *rest, *n_units);
        }
        let parsed = Flow::parse(&bytes.as_slice(), Version::V6);
        if extensions.len() > 5 {
            prop_assert_eq!(parsed, Err(NoFlow::Malformed));
            prop_assert_eq!(header(&bytes), None);
        } else {
            let len: usize = extensions.iter().map(|(_, _, n_units)| 8 * (1 + usize::from(*n_units))).sum();
            let parsed = parsed.unwrap();
            prop_assert_eq!((parsed.tuple, parsed.transport_offset), (plain.tuple, TRANSPORT + len));
            prop_assert_eq!(header(&bytes).unwrap().has_options(), !extensions.is_empty());
            prop_assert_eq!(header(&bytes[..TRANSPORT + 3]).is_none(), !extensions.is_empty());
        }
    }

    #[test]
    fn fragments_have_ports_in_their_first(
        tcp: bool, source in end(), destination in end(), id: [u8; 4], offset in 0_u16..1 << 13, is_followed: bool,
    ) {
        let mut bytes = frame(tcp, source, destination, b"x");
        let plain = Flow::parse(&bytes.as_slice(), Version::V6).unwrap();
        extend(&mut bytes, FRAGMENT, fragment(offset, is_followed, id), 0);
        let ip = header(&bytes).unwrap();
        let part = match (offset, is_followed) {
            (0, false) => Part::Whole,
            (0, true) => Part::FirstFragment,
            _ => Part::LaterFragment,
        };
        prop_assert_eq!((ip.part, ip.id, ip.protocol), (part, id, plain.tuple.protocol));
        let tuple = Flow::of(&bytes.as_slice(), &ip).map(|flow| flow.tuple);
        prop_assert_eq!(tuple, if offset == 0 { Ok(plain.tuple) } else { Err(NoFlow::Fragment) });
    }

    #[test]
    fn addresses_that_stand_for_ipv4_are_refused(tcp: bool, other in end(), v4: [u8; 4], is_source: bool) {
        let mapped = (Ip::v4(ebpf_abi::Ip4(v4)).0, 80);
        let (source, destination) = if is_source { (mapped, other) } else { (other, mapped) };
        prop_assert_eq!(header(&frame(tcp, source, destination, b"x")), None);
    }

    /// Translating address and port by incremental updates gives the frame that is built with them.
    #[test]
    fn translated_frames_are_as_if_built_so(
        tcp: bool, source in end(), from in end(), to in end(), payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = frame(tcp, source, from, &payload);
        let flow = Flow::parse(&bytes.as_slice(), Version::V6).unwrap();
        let checksum = send_elsewhere(&mut bytes, &flow, (&from.0, from.1), (&to.0, to.1));
        let built = frame(tcp, source, to, &payload);
        // A UDP checksum that comes out as zero is sent as all ones, which the kernel's helper sees to.
        prop_assume!(tcp || (checksum != [0, 0] && built[flow.checksum_offset()..][..2] != [0xff, 0xff]));
        prop_assert_eq!(bytes, built);
    }

    #[test]
    fn parts_of_checksums_are_the_whole(
        source in address(), destination in address(), words in prop::collection::vec(any::<[u8; 2]>(), 1..40),
        rest: [u8; 24],
    ) {
        let addresses = (Ip(source), Ip(destination));
        let first = words.concat();
        let joined = checksum::join(checksum::full(&first), checksum::header_checksum(&rest));
        let message = [&first[..], &rest].concat();
        prop_assert_eq!(joined, checksum::full(&message));
        let pseudo = checksum::pseudo_header6((&addresses.0, &addresses.1), u16::try_from(message.len()).unwrap());
        prop_assert_eq!(checksum::join(pseudo, joined), whole_checksum(addresses, protocol::ICMP6, &message));
    }

    #[test]
    fn echo_replies_have_sound_checksums(
        source in address(), destination in address(), payload in prop::collection::vec(any::<u8>(), 0..64), id: u16, sequence: u16,
    ) {
        let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(source, destination, 64);
        let mut bytes = Vec::new();
        ip.icmpv6_echo_request(id, sequence).write(&mut bytes, &payload).unwrap();
        let reply = icmp::echo_reply(&bytes.as_slice(), &header(&bytes).unwrap()).unwrap();
        bytes[TRANSPORT..TRANSPORT + 4].copy_from_slice(&reply);
        let addresses = (Ip(destination), Ip(source));
        prop_assert_eq!(whole_checksum(addresses, protocol::ICMP6, &bytes[TRANSPORT..]), [0, 0]);
        prop_assert_eq!(reply[..2].to_vec(), vec![129, 0]);
    }

    /// The error that refuses a packet's length is about that packet's flow, and read as such.
    #[test]
    fn refusals_of_length_are_about_the_packet(tcp: bool, source in end(), destination in end(), mtu: u16) {
        let refused = frame(tcp, source, destination, &[7; 30]);
        let asked = Flow::parse(&refused.as_slice(), Version::V6).unwrap().tuple;
        let carried: [u8; icmp::CARRIED_LEN6] =
            refused[ip::OFFSET..][..icmp::CARRIED_LEN6].try_into().unwrap();
        let addresses = (Ip(destination.0), Ip(source.0));
        let start = icmp::error6(icmp::Error6::too_big(mtu), (&addresses.0, &addresses.1), &carried);
        let message = [&start[..], &carried].concat();
        prop_assert_eq!(whole_checksum(addresses, protocol::ICMP6, &message), [0, 0]);
        prop_assert_eq!(u32::from_be_bytes([start[4], start[5], start[6], start[7]]), u32::from(mtu));
        let length = u16::try_from(message.len()).unwrap();
        let mut error = [&refused[..ip::OFFSET], &ipv6::start(64, length)].concat();
        error.extend([addresses.0.0, addresses.1.0].concat());
        error.extend(message);
        let ip = header(&error).unwrap();
        prop_assert_eq!(icmp::embedded_flow(&error.as_slice(), &ip), Some(asked));
        prop_assert_eq!(icmp::answered_flow(&error.as_slice(), &ip), Some(asked.reversed()));
        prop_assert_eq!(icmp::echo_reply(&error.as_slice(), &ip), None);
        for cut in ip::OFFSET..error.len() {
            let packet = &error[..cut];
            if let Some(ip) = header(packet) {
                prop_assert_eq!(icmp::embedded_flow(&packet, &ip).is_some(), cut >= TRANSPORT + 8 + ipv6::LEN + 4);
            }
        }
    }

    #[test]
    fn solicitations_are_read_and_answered(sender in address(), target in address(), mac: [u8; 6], hop_limit: u8) {
        let frame = solicitation(Ip(sender), Ip(target), hop_limit);
        let ip = header(&frame).unwrap();
        let read = ndp::Solicitation::parse(&frame.as_slice(), &ip);
        let asks = ndp::Solicitation { sender_mac: MacAddr([2; 6]), sender: Ip(sender), target: Ip(target) };
        prop_assert_eq!(read, if hop_limit == 255 { Ok(Some(asks)) } else { Err(ndp::Invalid) });
        let message = asks.advertisement(MacAddr(mac));
        prop_assert_eq!(whole_checksum((asks.target, asks.sender), protocol::ICMP6, &message), [0, 0]);
        prop_assert_eq!((message[0], message[1], message[4]), (136, 0, 0x60));
        prop_assert_eq!(&message[8..24], &target[..]);
        prop_assert_eq!(&message[24..], &[&[2, 1], &mac[..]].concat()[..]);
        for cut in 0..frame.len() {
            let packet = &frame[..cut];
            let is_cut = header(packet).is_some_and(|ip| ndp::Solicitation::parse(&packet, &ip).is_err());
            prop_assert_eq!(is_cut, cut >= TRANSPORT);
        }
    }
}
