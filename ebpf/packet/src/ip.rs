//! What the data plane asks of an IP header, of either version.

use ebpf_abi::Ip;

use crate::bytes::Bytes;
use crate::{ethernet, ipv4, ipv6};

/// Where the header starts in a frame.
pub const OFFSET: usize = ethernet::LEN;

/// Which kind of header: where addresses are, and what covers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V4,
    V6,
}

/// Which part of a packet this is: only a whole one and a first fragment have ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    FirstFragment,
    LaterFragment,
}

/// An IPv4 header, or an IPv6 header with its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpHeader {
    pub version: Version,
    pub source: Ip,
    pub destination: Ip,
    /// Of the transport header: behind all extensions.
    pub protocol: u8,
    pub part: Part,
    /// It must not be fragmented on its way; nobody but its sender fragments IPv6.
    pub dont_fragment: bool,
    /// What the fragments of a packet have in common.
    pub id: [u8; 4],
    /// Where the transport header starts in the frame.
    pub transport_offset: usize,
    /// Length of the packet, bytes.
    pub total_len: u16,
}

/// The bytes are no sound IP header of the version that the frame's type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotIp;

impl Version {
    /// `None` for a frame of any other type.
    #[inline]
    pub const fn of(ether_type: [u8; 2]) -> Option<Self> {
        match ether_type {
            ethernet::TYPE_IPV4 => Some(Self::V4),
            ethernet::TYPE_IPV6 => Some(Self::V6),
            _ => None,
        }
    }

    /// The version that packets with this address have.
    #[inline]
    pub const fn of_address(address: Ip) -> Self {
        if address.is_v4() { Self::V4 } else { Self::V6 }
    }

    #[inline]
    pub const fn ether_type(self) -> [u8; 2] {
        match self {
            Self::V4 => ethernet::TYPE_IPV4,
            Self::V6 => ethernet::TYPE_IPV6,
        }
    }

    /// Length of a header without options or extensions, bytes.
    #[inline]
    pub const fn min_len(self) -> usize {
        match self {
            Self::V4 => ipv4::MIN_LEN,
            Self::V6 => ipv6::LEN,
        }
    }

    /// Where the source address is in a frame.
    #[inline]
    pub const fn source_offset(self) -> usize {
        match self {
            Self::V4 => ipv4::SOURCE_OFFSET,
            Self::V6 => ipv6::SOURCE_OFFSET,
        }
    }

    /// Where the destination address is in a frame.
    #[inline]
    pub const fn destination_offset(self) -> usize {
        match self {
            Self::V4 => ipv4::DESTINATION_OFFSET,
            Self::V6 => ipv6::DESTINATION_OFFSET,
        }
    }
}

impl IpHeader {
    /// Of no packet: to be read into.
    pub const NONE: Self = Self {
        version: Version::V4,
        source: Ip::UNSPECIFIED,
        destination: Ip::UNSPECIFIED,
        protocol: 0,
        part: Part::Whole,
        dont_fragment: false,
        id: [0; 4],
        transport_offset: 0,
        total_len: 0,
    };

    /// Reads the header behind the Ethernet header.
    #[inline]
    pub fn parse<B: Bytes>(packet: &B, version: Version) -> Result<Self, NotIp> {
        match version {
            Version::V4 => ipv4::parse(packet),
            Version::V6 => {
                let mut header = Self::NONE;
                ipv6::parse_into(packet, &mut header)?;
                Ok(header)
            }
        }
    }

    /// IPv4 options or IPv6 extension headers.
    #[inline]
    pub const fn has_options(&self) -> bool {
        self.transport_offset != OFFSET + self.version.min_len()
    }
}
