//! SCTP: the checksum after a change against one computed anew, and what chunks say of an association.

use ebpf_abi::{Endpoint, FlowTuple, Ip, Ip4, MacAddr, Port, protocol};
use ebpf_packet::flow::{DESTINATION_PORT_OFFSET, SOURCE_PORT_OFFSET};
use ebpf_packet::{Flow, NoFlow, Version, sctp};
use etherparse::{IpNumber, PacketBuilder};
use proptest::prelude::*;

/// CRC-32C bit by bit, as RFC 9260 appendix A defines it.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x1edc_6f41;
    let shifted = |crc: u32, _| if crc >> 31 == 0 { crc << 1 } else { crc << 1 ^ POLYNOMIAL };
    let crc =
        bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(byte.reverse_bits()) << 24, shifted));
    !crc.reverse_bits()
}

/// A packet with these ports and chunks; its checksum is sound.
fn packet(ports: (u16, u16), chunks: &[u8]) -> Vec<u8> {
    let (source, destination) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
    let mut packet = [&source[..], &destination, &[1, 2, 3, 4], &[0; 4], chunks].concat();
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

fn frame(ports: (u16, u16), chunks: &[u8]) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([198, 18, 0, 100], [198, 18, 0, 11], 64);
    let mut frame = Vec::new();
    ip.write(&mut frame, IpNumber(protocol::SCTP), &packet(ports, chunks)).unwrap();
    frame
}

fn flow(frame: &[u8]) -> Result<Flow, NoFlow> {
    Flow::parse(&frame, Version::V4)
}

#[test]
fn the_reference_is_crc32c() {
    // RFC 3720 appendix B.4, in the order of bytes on the wire.
    assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
    assert_eq!(crc32c(&[0xff; 32]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
}

/// Every length that a jumbo frame can have, and the longest that there is, each with changed bits of its own.
#[test]
fn changes_are_those_of_a_whole_computation() {
    let mut changed = 0x9e37_79b9_u32;
    for len in (4..=9000).chain([u16::MAX]) {
        changed = changed.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        let mut bytes = vec![0; usize::from(len)];
        let before = crc32c(&bytes);
        bytes[..4].copy_from_slice(&changed.to_le_bytes());
        assert_eq!(sctp::change(changed, len), before ^ crc32c(&bytes), "{len} bytes, {changed:#x}");
    }
}

#[test]
fn what_has_no_checksum_yet_gets_none() {
    assert_eq!(sctp::changed_checksum([0; 4], 7), None);
}

proptest! {
    /// Either port replaced gives the packet that is made with it.
    #[test]
    fn translated_packets_are_as_if_made_so(
        from: (u16, u16), to: (u16, u16), chunks in prop::collection::vec(any::<u8>(), 4..2000),
    ) {
        let mut bytes = frame(from, &chunks);
        let flow = flow(&bytes).unwrap();
        let sum = flow.checksum_offset();
        prop_assume!(bytes[sum..sum + 4] != [0; 4]);
        for (offset, to) in [(SOURCE_PORT_OFFSET, to.0), (DESTINATION_PORT_OFFSET, to.1)] {
            let port = flow.transport_offset + offset;
            let change = (bytes[port..port + 2].try_into().unwrap(), to.to_be_bytes());
            let checksum = bytes[sum..sum + 4].try_into().unwrap();
            let change = sctp::change(sctp::changed_bits(offset, change), flow.transport_len());
            let checksum = sctp::changed_checksum(checksum, change);
            prop_assume!(checksum.is_some());
            bytes[sum..sum + 4].copy_from_slice(&checksum.unwrap());
            bytes[port..port + 2].copy_from_slice(&to.to_be_bytes());
        }
        prop_assert_eq!(bytes, frame(to, &chunks));
    }
}

#[test]
fn the_first_chunk_says_what_becomes_of_the_association() {
    const DATA: u8 = 0;
    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
    const ABORT: u8 = 6;
    const SHUTDOWN: u8 = 7;
    const SHUTDOWN_ACK: u8 = 8;
    const COOKIE_ECHO: u8 = 10;
    const SHUTDOWN_COMPLETE: u8 = 14;
    let backend = Endpoint::remote(MacAddr::of_endpoint(Ip4([10, 0, 0, 5])), Ip4([198, 18, 0, 12]).into());
    for chunk in [DATA, INIT, INIT_ACK, ABORT, SHUTDOWN, SHUTDOWN_ACK, COOKIE_ECHO, SHUTDOWN_COMPLETE] {
        let flow = flow(&frame((40_000, 9999), &[chunk, 0, 0, 4])).unwrap();
        assert_eq!(flow.is_first_syn(), chunk == INIT, "chunk {chunk}");
        assert_eq!(flow.goes_on(), chunk != INIT, "chunk {chunk}");
        assert_eq!(flow.is_reset(), chunk == ABORT, "chunk {chunk}");
        assert_eq!(flow.is_fin(), [SHUTDOWN_ACK, SHUTDOWN_COMPLETE].contains(&chunk), "chunk {chunk}");
        for serves in [true, false] {
            assert_eq!(flow.may_stay_with(&backend.serving(serves)), chunk != INIT, "chunk {chunk}");
        }
    }
}

#[test]
fn a_packet_without_a_chunk_is_malformed() {
    assert_eq!(flow(&frame((1, 2), &[])), Err(NoFlow::Malformed));
    let flow = flow(&frame((1, 2), &[0])).unwrap();
    let (client, service) = (Ip::v4(Ip4([198, 18, 0, 100])), Ip::v4(Ip4([198, 18, 0, 11])));
    let tuple = FlowTuple::new((client, Port::new(1)), (service, Port::new(2)), protocol::SCTP);
    assert_eq!((flow.tuple, flow.transport_len()), (tuple, 13));
    assert_eq!(flow.address_checksum_offset(), None);
}
