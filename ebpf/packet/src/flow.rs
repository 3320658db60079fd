//! From a frame to the flow that it belongs to.

use ebpf_abi::{Endpoint, FlowTuple, FragmentPorts, Port, protocol};

use crate::bytes::Bytes;
use crate::ip::{IpHeader, OFFSET, Part, Version};
use crate::sctp::{self, Meaning};

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// Offsets inside the transport header (RFC 9293 section 3.1, RFC 768).
pub const SOURCE_PORT_OFFSET: usize = 0;
pub const DESTINATION_PORT_OFFSET: usize = 2;
pub const TCP_CHECKSUM_OFFSET: usize = 16;
pub const UDP_CHECKSUM_OFFSET: usize = 6;

/// A TCP segment, UDP datagram or SCTP packet, as far as the data plane looks into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub tuple: FlowTuple,
    pub version: Version,
    /// Where the transport header starts in the frame, if it has one.
    pub transport_offset: usize,
    pub part: Part,
    /// Length of the IP packet, bytes.
    pub total_len: u16,
    /// TCP flags; 0 for UDP; for SCTP the flags of the TCP segment that would mean the same.
    flags: u8,
}

/// Why a packet has no flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoFlow {
    /// Truncated, or not what its headers say.
    Malformed,
    /// A fragment without ports, or any where [`Bytes::VARIABLE_OFFSETS`] is false.
    Fragment,
    /// Neither TCP nor UDP nor SCTP.
    Protocol,
    /// IPv4 options or IPv6 extensions, where [`Bytes::VARIABLE_OFFSETS`] is false.
    Options,
}

impl Flow {
    /// The flow of a frame whose IP header is of this version.
    #[inline]
    pub fn parse<B: Bytes>(packet: &B, version: Version) -> Result<Self, NoFlow> {
        let ip = IpHeader::parse(packet, version).map_err(|_| NoFlow::Malformed)?;
        Self::of(packet, &ip)
    }

    /// The flow of a frame whose IP header is `ip`.
    #[inline]
    pub fn of<B: Bytes>(packet: &B, ip: &IpHeader) -> Result<Self, NoFlow> {
        if ip.part == Part::LaterFragment || (ip.part == Part::FirstFragment && !B::VARIABLE_OFFSETS) {
            return Err(NoFlow::Fragment);
        }
        if B::VARIABLE_OFFSETS {
            return Self::at(packet, ip, ip.transport_offset);
        }
        if ip.has_options() {
            return Err(NoFlow::Options);
        }
        match ip.version {
            Version::V4 => Self::at(packet, ip, const { OFFSET + Version::V4.min_len() }),
            Version::V6 => Self::at(packet, ip, const { OFFSET + Version::V6.min_len() }),
        }
    }

    #[inline]
    fn at(packet: &impl Bytes, ip: &IpHeader, transport_offset: usize) -> Result<Self, NoFlow> {
        let (ports, flags) = match ip.protocol {
            protocol::TCP => {
                let header = packet.load::<14>(transport_offset).map_err(|_| NoFlow::Malformed)?;
                ([header[0], header[1], header[2], header[3]], header[13])
            }
            protocol::UDP => (packet.load::<4>(transport_offset).map_err(|_| NoFlow::Malformed)?, 0),
            protocol::SCTP => {
                let start =
                    packet.load::<{ sctp::START_LEN }>(transport_offset).map_err(|_| NoFlow::Malformed)?;
                ([start[0], start[1], start[2], start[3]], flags_of(Meaning::of(start[12])))
            }
            _ => return Err(NoFlow::Protocol),
        };
        let source = (ip.source, Port([ports[0], ports[1]]));
        let destination = (ip.destination, Port([ports[2], ports[3]]));
        let tuple = FlowTuple::new(source, destination, ip.protocol);
        let (version, part, total_len) = (ip.version, ip.part, ip.total_len);
        Ok(Self { tuple, version, transport_offset, part, total_len, flags })
    }

    /// The flow of a fragment whose header is `ip`, and whose packet began with `ports`.
    #[inline]
    pub fn of_later(ip: &IpHeader, ports: FragmentPorts) -> Self {
        let (source, destination) = ((ip.source, ports.source), (ip.destination, ports.destination));
        let tuple = FlowTuple::new(source, destination, ip.protocol);
        let (version, part, total_len) = (ip.version, ip.part, ip.total_len);
        Self { tuple, version, transport_offset: OFFSET, part, total_len, flags: 0 }
    }

    /// Ports and checksum are in the frame.
    #[inline]
    pub fn has_transport(&self) -> bool {
        self.part != Part::LaterFragment
    }

    #[inline]
    pub const fn is_udp(&self) -> bool {
        self.tuple.protocol == protocol::UDP
    }

    #[inline]
    pub const fn is_sctp(&self) -> bool {
        self.tuple.protocol == protocol::SCTP
    }

    /// Length of the transport's header and payload, bytes; of a whole packet.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "less than the packet's length, or cut to nothing")]
    pub const fn transport_len(&self) -> u16 {
        self.total_len.saturating_sub((self.transport_offset - OFFSET) as u16)
    }

    /// The client's very first segment.
    #[inline]
    pub const fn is_first_syn(&self) -> bool {
        self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// The first segment of either side.
    #[inline]
    pub const fn is_syn(&self) -> bool {
        self.flags & TCP_SYN != 0
    }

    /// The packet may go on to the backend that its flow went to before. A connection stays with the backend that knows it
    /// as long as that exists; a connection that begins, and every datagram, want one that serves.
    #[inline]
    pub const fn may_stay_with(&self, backend: &Endpoint) -> bool {
        !self.is_first_syn() && (!self.is_udp() || backend.serves())
    }

    /// The packet belongs to a connection that began before it: some backend may know that connection.
    #[inline]
    pub const fn goes_on(&self) -> bool {
        !self.is_udp() && !self.is_first_syn()
    }

    #[inline]
    pub const fn is_fin(&self) -> bool {
        self.flags & TCP_FIN != 0
    }

    #[inline]
    pub const fn is_reset(&self) -> bool {
        self.flags & TCP_RST != 0
    }

    /// Where the checksum is in the frame.
    #[inline]
    pub const fn checksum_offset(&self) -> usize {
        self.transport_offset
            + match self.tuple.protocol {
                protocol::UDP => UDP_CHECKSUM_OFFSET,
                protocol::SCTP => sctp::CHECKSUM_OFFSET,
                _ => TCP_CHECKSUM_OFFSET,
            }
    }

    /// Where the checksum that covers the packet's addresses is in the frame, if it has one: SCTP's doesn't.
    #[inline]
    pub const fn address_checksum_offset(&self) -> Option<usize> {
        if matches!(self.part, Part::LaterFragment) || self.is_sctp() {
            None
        } else {
            Some(self.checksum_offset())
        }
    }
}

/// So that one question about a flow's life is asked of both protocols.
#[inline]
const fn flags_of(meaning: Meaning) -> u8 {
    match meaning {
        Meaning::Begins => TCP_SYN,
        Meaning::GoesOn => TCP_ACK,
        Meaning::Ends => TCP_FIN,
        Meaning::Aborts => TCP_RST,
    }
}
