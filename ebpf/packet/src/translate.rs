//! Headers of one IP version in place of the other's (RFC 7915): what a client that comes by IPv6 and a task that listens on
//! IPv4 alone tell each other. Neither the hop limit nor the TTL counts the translator, which is at the task's door.

use ebpf_abi::{Ip, Ip4};

use crate::{checksum, icmp, ipv4, ipv6};

/// Length of IPv6's fragment header, bytes.
pub const FRAGMENT_LEN: usize = FRAGMENT_LEN_16 as usize;
const FRAGMENT_LEN_16: u16 = 8;
/// What an IPv6 header is longer, bytes.
pub const DIFFERENCE: u16 = 20;
const _: () = assert!(DIFFERENCE as usize == ipv6::LEN - ipv4::MIN_LEN);

/// IPv6's "next header" that says: a fragment header.
const FRAGMENT: u8 = 44;
/// Flags of IPv4, and of IPv6's fragment header.
const DONT_FRAGMENT: u16 = 0x4000;
const MORE4: u16 = 0x2000;
const OFFSET4: u16 = 0x1fff;
const MORE6: u16 = 0x0001;

/// What both versions' headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Common {
    pub class: u8,
    /// Hop limit or TTL.
    pub hops: u8,
    /// Of the transport.
    pub protocol: u8,
    /// Bytes behind all headers.
    pub payload_len: u16,
    /// Offset (13 bits) and "more" as IPv6 has them; 0 for a whole packet.
    pub fragment: u16,
    /// What its fragments have in common, as far as IPv4 has room for it.
    pub id: [u8; 2],
}

impl Common {
    /// Of the first eight bytes of an IPv6 header, before its transport is known.
    #[inline]
    pub const fn of6(start: [u8; 8]) -> Self {
        Self {
            class: start[0] << 4 | start[1] >> 4,
            hops: start[7],
            protocol: start[6],
            payload_len: u16::from_be_bytes([start[4], start[5]]),
            fragment: 0,
            id: [0; 2],
        }
    }

    /// Of an IPv4 header without options.
    #[inline]
    pub const fn of4(header: &[u8; ipv4::MIN_LEN]) -> Self {
        let flags = u16::from_be_bytes([header[6], header[7]]);
        let more = if flags & MORE4 != 0 { MORE6 } else { 0 };
        Self {
            class: header[1],
            hops: header[8],
            protocol: header[9],
            payload_len: u16::from_be_bytes([header[2], header[3]]).saturating_sub(20),
            fragment: (flags & OFFSET4) << 3 | more,
            id: [header[4], header[5]],
        }
    }

    /// RFC 7915 section 5.1. A whole packet is not to be fragmented, and needs no id (RFC 6864 section 4.1).
    #[inline]
    pub fn header4(&self, source: Ip4, destination: Ip4) -> [u8; ipv4::MIN_LEN] {
        let more = if self.fragment & MORE6 != 0 { MORE4 } else { 0 };
        let flags = if self.fragment == 0 { DONT_FRAGMENT } else { self.fragment >> 3 | more };
        let mut header = [0; ipv4::MIN_LEN];
        (header[0], header[1]) = (0x45, self.class);
        header[2..4].copy_from_slice(&self.payload_len.saturating_add(20).to_be_bytes());
        if self.fragment != 0 {
            header[4..6].copy_from_slice(&self.id);
        }
        header[6..8].copy_from_slice(&flags.to_be_bytes());
        (header[8], header[9]) = (self.hops, self.protocol);
        header[12..16].copy_from_slice(&source.0);
        header[16..20].copy_from_slice(&destination.0);
        let sum = checksum::header_checksum(&header);
        header[10..12].copy_from_slice(&sum);
        header
    }

    /// RFC 7915 section 4.1: all in front of the addresses.
    #[inline]
    pub const fn start6(&self) -> [u8; 8] {
        let (next, extension) =
            if self.fragment == 0 { (self.protocol, 0) } else { (FRAGMENT, FRAGMENT_LEN_16) };
        let [high, low] = self.payload_len.saturating_add(extension).to_be_bytes();
        [0x60 | self.class >> 4, self.class << 4, 0, 0, high, low, next, self.hops]
    }

    /// The fragment header behind an IPv6 header.
    #[inline]
    pub const fn fragment6(&self) -> [u8; FRAGMENT_LEN] {
        let [high, low] = self.fragment.to_be_bytes();
        [self.protocol, 0, high, low, 0, 0, self.id[0], self.id[1]]
    }
}

/// The header of an ICMPv6 error as ICMP says it, its checksum zero; `None` for what IPv4 has no word for (RFC 7915
/// section 5.2).
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "compared before")]
pub const fn error4([kind, code, _, _, a, b, c, d]: [u8; icmp::LEN]) -> Option<[u8; icmp::LEN]> {
    let (kind, code, mtu) = match (kind, code) {
        (1, 1) => (3, 10, 0),
        (1, 4) => (3, 3, 0),
        (1, _) => (3, 1, 0),
        (2, _) => {
            let mtu = u32::from_be_bytes([a, b, c, d]);
            let most = if mtu > 0xffff { 0xffff } else { mtu as u16 };
            (3, 4, most.saturating_sub(DIFFERENCE))
        }
        (3, code) => (11, code, 0),
        (4, 1) => (3, 2, 0),
        _ => return None,
    };
    let [high, low] = mtu.to_be_bytes();
    Some([kind, code, 0, 0, 0, 0, high, low])
}

/// The header of an ICMP error as ICMPv6 says it, likewise (RFC 7915 section 4.2).
#[inline]
pub const fn error6([kind, code, _, _, _, _, high, low]: [u8; icmp::LEN]) -> Option<[u8; icmp::LEN]> {
    /// Where the protocol stands in an IPv6 header.
    const NEXT_HEADER: u32 = 6;
    let (kind, code, rest) = match (kind, code) {
        (3, 0 | 1 | 5..=8 | 11 | 12) => (1, 0, 0),
        (3, 2) => (4, 1, NEXT_HEADER),
        (3, 3) => (1, 4, 0),
        (3, 4) => {
            let mtu = u16::from_be_bytes([high, low]) as u32 + DIFFERENCE as u32;
            (2, 0, if mtu < ipv6::MIN_MTU { ipv6::MIN_MTU } else { mtu })
        }
        (3, 9 | 10 | 13 | 15) => (1, 1, 0),
        (11, code) => (3, code, 0),
        _ => return None,
    };
    let [a, b, c, d] = rest.to_be_bytes();
    Some([kind, code, 0, 0, a, b, c, d])
}

/// Fills in the checksum of an ICMP error about a packet that begins so.
#[inline]
pub fn sum_error4(error: &mut [u8; icmp::LEN], header: &[u8; ipv4::MIN_LEN], transport: [u8; 8]) {
    let carried = checksum::join(checksum::header_checksum(header), checksum::header_checksum(&transport));
    let sum = checksum::join(checksum::header_checksum(error), carried);
    [error[2], error[3]] = sum;
}

/// The same for ICMPv6. The error goes where the packet at fault came from, and comes from where that was sent: both have the
/// same addresses, and the checksum covers them twice.
#[inline]
pub fn sum_error6(error: &mut [u8; icmp::LEN], addresses: (&Ip, &Ip), start: [u8; 8], transport: [u8; 8]) {
    #[expect(clippy::cast_possible_truncation, reason = "few bytes")]
    let pseudo = checksum::pseudo_header6(addresses, const { (icmp::LEN + icmp::CARRIED_LEN6) as u16 });
    let [source, destination] =
        [addresses.0, addresses.1].map(|address| checksum::header_checksum(&address.0));
    let carried = checksum::join(checksum::header_checksum(&start), checksum::header_checksum(&transport));
    let carried = checksum::join(carried, checksum::join(source, destination));
    let message = checksum::join(checksum::header_checksum(error), carried);
    [error[2], error[3]] = checksum::join(pseudo, message);
}

/// The header of an error that carries so many bytes.
#[inline]
pub const fn common_of_error(protocol: u8, carried_len: usize) -> Common {
    const TTL: u8 = 64;
    #[expect(clippy::cast_possible_truncation, reason = "few bytes")]
    let payload_len = (icmp::LEN + carried_len) as u16;
    Common { class: 0, hops: TTL, protocol, payload_len, fragment: 0, id: [0; 2] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_go_there_and_back() {
        for (fragment, id) in [(0, [0, 0]), (MORE6, [1, 2]), (40 << 3 | MORE6, [1, 2]), (40 << 3, [0xff, 2])]
        {
            let said = Common { class: 0xb9, hops: 7, protocol: 17, payload_len: 1234, fragment, id };
            let header4 = said.header4(Ip4([246, 64, 0, 9]), Ip4([10, 0, 0, 5]));
            assert_eq!(checksum::header_checksum(&header4), [0, 0]);
            assert_eq!(Common::of4(&header4), said);
            let mut back = Common::of6(said.start6());
            if fragment != 0 {
                let header = said.fragment6();
                assert_eq!(back.protocol, FRAGMENT);
                back.payload_len -= 8;
                back.protocol = header[0];
                back.fragment = u16::from_be_bytes([header[2], header[3]]);
                back.id = [header[6], header[7]];
            }
            assert_eq!(back, said);
        }
    }

    /// The tables of RFC 7915, both ways.
    #[test]
    fn errors_say_the_same() {
        let at = |kind, code| [kind, code, 9, 9, 0, 0, 5, 220];
        for (from, to) in [
            ((1, 0), Some((3, 1))),
            ((1, 1), Some((3, 10))),
            ((1, 2), Some((3, 1))),
            ((1, 3), Some((3, 1))),
            ((1, 4), Some((3, 3))),
            ((3, 0), Some((11, 0))),
            ((3, 1), Some((11, 1))),
            ((4, 0), None),
            ((4, 1), Some((3, 2))),
            ((4, 2), None),
            ((128, 0), None),
        ] {
            assert_eq!(error4(at(from.0, from.1)), to.map(|(kind, code)| [kind, code, 0, 0, 0, 0, 0, 0]));
        }
        for (from, to) in [
            ((3, 0), Some((1, 0))),
            ((3, 1), Some((1, 0))),
            ((3, 3), Some((1, 4))),
            ((3, 5), Some((1, 0))),
            ((3, 10), Some((1, 1))),
            ((3, 13), Some((1, 1))),
            ((3, 14), None),
            ((11, 1), Some((3, 1))),
            ((12, 0), None),
            ((8, 0), None),
        ] {
            assert_eq!(error6(at(from.0, from.1)), to.map(|(kind, code)| [kind, code, 0, 0, 0, 0, 0, 0]));
        }
        assert_eq!(error6(at(3, 2)), Some([4, 1, 0, 0, 0, 0, 0, 6]));
    }

    #[test]
    fn lengths_follow_the_headers() {
        assert_eq!(error4([2, 0, 9, 9, 0, 0, 5, 170]), Some([3, 4, 0, 0, 0, 0, 5, 150]));
        assert_eq!(error4([2, 0, 9, 9, 0, 1, 0, 0]), Some([3, 4, 0, 0, 0, 0, 0xff, 0xeb]));
        assert_eq!(error6([3, 4, 9, 9, 0, 0, 5, 150]), Some([2, 0, 0, 0, 0, 0, 5, 170]));
        assert_eq!(
            error6([3, 4, 9, 9, 0, 0, 0, 0]),
            Some([2, 0, 0, 0, 0, 0, 5, 0]),
            "an old router says none"
        );
    }
}
