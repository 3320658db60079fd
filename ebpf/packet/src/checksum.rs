//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624 equation 3).

use ebpf_abi::{Ip, protocol};

/// Adds up to two 16-bit carries back in.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "folded below 2^16")]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum of a header of an even number of bytes, few enough for their sum, whose checksum field is zero.
#[inline]
pub fn header_checksum<const N: usize>(header: &[u8; N]) -> [u8; 2] {
    const { assert!(N.is_multiple_of(2) && N <= 128) };
    let mut sum = 0_u32;
    let mut index = 0;
    while index < N {
        sum += u32::from(u16::from_be_bytes([header[index], header[index + 1]]));
        index += 2;
    }
    (!fold(sum)).to_be_bytes()
}

/// The checksum of bytes of which the first part, of even length, has the one and the rest the other checksum.
#[inline]
pub const fn join(first: [u8; 2], rest: [u8; 2]) -> [u8; 2] {
    let sum = !u16::from_be_bytes(first) as u32 + !u16::from_be_bytes(rest) as u32;
    (!fold(sum)).to_be_bytes()
}

/// The checksum of the pseudo-header of an ICMPv6 message of `len` bytes (RFC 8200 section 8.1).
#[inline]
pub fn pseudo_header6((source, destination): (&Ip, &Ip), len: u16) -> [u8; 2] {
    let [high, low] = len.to_be_bytes();
    let rest = [0, 0, high, low, 0, 0, 0, protocol::ICMP6];
    let addresses = join(header_checksum(&source.0), header_checksum(&destination.0));
    join(addresses, header_checksum(&rest))
}

/// The checksum after one 16-bit word changed from `from` to `to`.
#[inline]
pub const fn replace(checksum: [u8; 2], from: [u8; 2], to: [u8; 2]) -> [u8; 2] {
    let kept = !u16::from_be_bytes(checksum) as u32;
    let removed = !u16::from_be_bytes(from) as u32;
    let added = u16::from_be_bytes(to) as u32;
    (!fold(kept + removed + added)).to_be_bytes()
}

/// The checksum of any bytes, in one go: what [`replace`] is measured by.
pub fn full(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0_u32;
    for word in bytes.chunks(2) {
        let low = word.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([word[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!fold(sum)).to_be_bytes()
}
