//! IP headers of both families, by their offsets in the standards.

use ebpf_abi::{Ip, Ip4, protocol};

use crate::frame::{ETHERNET, IPV4, IPV6, at};

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Of a frame of this Ethernet type.
    pub fn of(kind: [u8; 2]) -> Option<Self> {
        match kind {
            IPV4 => Some(Self::V4),
            IPV6 => Some(Self::V6),
            _ => None,
        }
    }

    pub fn of_address(address: Ip) -> Self {
        if address.is_v4() { Self::V4 } else { Self::V6 }
    }

    /// Of a header without options or extensions (RFC 791 section 3.1, RFC 8200 section 3).
    pub fn header_len(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// Where the addresses are in the header: source, destination.
    pub fn addresses(self) -> (usize, usize) {
        match self {
            Self::V4 => (12, 16),
            Self::V6 => (8, 24),
        }
    }

    /// An address as a header of this family has it.
    pub fn bytes(self, address: Ip) -> Vec<u8> {
        match self {
            Self::V4 => address.low().0.to_vec(),
            Self::V6 => address.0.to_vec(),
        }
    }

    /// Where an ICMP header is, behind an IP header without options.
    pub fn icmp(self) -> usize {
        ETHERNET + self.header_len()
    }

    /// Where the packet at fault is in an ICMP error (RFC 792, RFC 4443 section 2.1).
    pub fn faulty(self) -> usize {
        self.icmp() + 8
    }

    pub fn icmp_protocol(self) -> u8 {
        match self {
            Self::V4 => protocol::ICMP,
            Self::V6 => protocol::ICMP6,
        }
    }
}

/// Which part of a packet a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    Whole,
    First,
    Later,
}

/// An IP header, with IPv6's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    pub family: Family,
    pub source: Ip,
    pub destination: Ip,
    /// Of what is behind all headers.
    pub protocol: u8,
    /// What a packet's fragments have in common.
    pub id: [u8; 4],
    pub piece: Piece,
    pub dont_fragment: bool,
    pub header_len: usize,
    pub total_len: u16,
}

impl Network {
    /// `None` if the header is cut off or contradicts itself.
    pub fn of(frame: &[u8], family: Family) -> Option<Self> {
        match family {
            Family::V4 => Self::v4(frame),
            Family::V6 => Self::v6(frame),
        }
    }

    fn v4(frame: &[u8]) -> Option<Self> {
        let header: [u8; 20] = at(frame, ETHERNET)?;
        let header_len = usize::from(header[0] % 16) * 4;
        let total_len = u16::from_be_bytes([header[2], header[3]]);
        let is_sound = header[0] / 16 == 4 && header_len >= 20 && usize::from(total_len) >= header_len;
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        is_sound.then_some(Self {
            family: Family::V4,
            source: Ip4(at(&header, 12)?).into(),
            destination: Ip4(at(&header, 16)?).into(),
            protocol: header[9],
            id: [0, 0, header[4], header[5]],
            piece: piece(fragment % (1 << 13), fragment & 1 << 13 != 0),
            dont_fragment: fragment & 1 << 14 != 0,
            header_len,
            total_len,
        })
    }

    /// Nobody may send an IPv4 address as an IPv6 one (RFC 4291 section 2.5.5.2 has them for programs alone).
    fn v6(frame: &[u8]) -> Option<Self> {
        let header: [u8; 40] = at(frame, ETHERNET)?;
        let (source, destination) = (Ip(at(&header, 8)?), Ip(at(&header, 24)?));
        if header[0] / 16 != 6 || source.is_v4() || destination.is_v4() {
            return None;
        }
        let payload_len = u16::from_be_bytes([header[4], header[5]]);
        let whole = Self {
            family: Family::V6,
            source,
            destination,
            protocol: header[6],
            id: [0; 4],
            piece: Piece::Whole,
            dont_fragment: true,
            header_len: 40,
            total_len: payload_len.saturating_add(40),
        };
        whole.behind_extensions(frame)
    }

    /// Each kind of extension header comes once, and destination options twice (RFC 8200 section 4.1): more are refused. What
    /// is behind the fragment header of a later fragment is a piece of the payload.
    fn behind_extensions(mut self, frame: &[u8]) -> Option<Self> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const DESTINATION_OPTIONS: u8 = 60;
        let mut n_extensions = 0;
        while [HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS].contains(&self.protocol)
            && self.piece != Piece::Later
        {
            n_extensions += 1;
            let start = ETHERNET + self.header_len;
            let [next, len, high, low] = at(frame, start).filter(|_| n_extensions <= 5)?;
            if self.protocol == FRAGMENT {
                self.id = at(frame, start + 4)?;
                self.piece = piece(u16::from_be_bytes([high, low]) / 8, low % 2 == 1);
                self.header_len += 8;
            } else {
                self.header_len += 8 * (1 + usize::from(len));
            }
            self.protocol = next;
        }
        Some(self)
    }

    pub fn has_options(&self) -> bool {
        self.header_len > self.family.header_len()
    }

    /// A whole ICMP message whose header is where [`Family::icmp`] says.
    pub fn is_plain_icmp(&self) -> bool {
        self.protocol == self.family.icmp_protocol() && !self.has_options() && self.piece == Piece::Whole
    }

    /// Where the source and destination are in the frame.
    pub fn addresses(&self) -> (usize, usize) {
        let (source, destination) = self.family.addresses();
        (ETHERNET + source, ETHERNET + destination)
    }
}

/// One at the packet's start that is followed by none is all of it (RFC 6946).
fn piece(offset: u16, is_followed: bool) -> Piece {
    match (offset, is_followed) {
        (0, false) => Piece::Whole,
        (0, true) => Piece::First,
        _ => Piece::Later,
    }
}

/// What checksums of the transport cover besides it (RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1).
pub fn pseudo_header(addresses: (Ip, Ip), protocol: u8, length: u16) -> Vec<u8> {
    let family = Family::of_address(addresses.0);
    let [high, low] = length.to_be_bytes();
    [family.bytes(addresses.0), family.bytes(addresses.1), vec![0, protocol, high, low]].concat()
}
