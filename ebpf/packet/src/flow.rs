//! From a frame to the flow that it belongs to.

use ebpf_abi::{Endpoint, FlowTuple, FragmentPorts, Port, protocol};

use crate::bytes::Bytes;
use crate::ipv4::{self, Ipv4, Part};

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// Offsets inside the transport header (RFC 9293 section 3.1, RFC 768).
pub const SOURCE_PORT_OFFSET: usize = 0;
pub const DESTINATION_PORT_OFFSET: usize = 2;
pub const TCP_CHECKSUM_OFFSET: usize = 16;
pub const UDP_CHECKSUM_OFFSET: usize = 6;

/// A TCP segment or UDP datagram, as far as the data plane looks into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub tuple: FlowTuple,
    /// Where the transport header starts in the frame, if it has one.
    pub transport_offset: usize,
    pub part: Part,
    /// Length of the IPv4 packet, bytes.
    pub total_len: u16,
    /// TCP flags; 0 for UDP.
    flags: u8,
}

/// Why a packet has no flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoFlow {
    /// Truncated, or not what its headers say.
    Malformed,
    /// A fragment without ports, or any where [`Bytes::VARIABLE_OFFSETS`] is false.
    Fragment,
    /// Neither TCP nor UDP.
    Protocol,
    /// IPv4 options, where [`Bytes::VARIABLE_OFFSETS`] is false.
    Options,
}

impl Flow {
    /// The flow of a frame that has the type IPv4.
    #[inline]
    pub fn parse<B: Bytes>(packet: &B) -> Result<Self, NoFlow> {
        let ip = Ipv4::parse(packet).map_err(|_| NoFlow::Malformed)?;
        Self::of(packet, &ip)
    }

    /// The flow of a frame whose IPv4 header is `ip`.
    #[inline]
    pub fn of<B: Bytes>(packet: &B, ip: &Ipv4) -> Result<Self, NoFlow> {
        if ip.part == Part::LaterFragment || (ip.part == Part::FirstFragment && !B::VARIABLE_OFFSETS) {
            return Err(NoFlow::Fragment);
        }
        if ip.header_len == ipv4::MIN_LEN {
            return Self::at(packet, ip, ipv4::OFFSET + ipv4::MIN_LEN);
        }
        if !B::VARIABLE_OFFSETS {
            return Err(NoFlow::Options);
        }
        Self::at(packet, ip, ipv4::OFFSET + ip.header_len)
    }

    #[inline]
    fn at(packet: &impl Bytes, ip: &Ipv4, transport_offset: usize) -> Result<Self, NoFlow> {
        let (ports, flags) = match ip.protocol {
            protocol::TCP => {
                let header = packet.load::<14>(transport_offset).map_err(|_| NoFlow::Malformed)?;
                ([header[0], header[1], header[2], header[3]], header[13])
            }
            protocol::UDP => (packet.load::<4>(transport_offset).map_err(|_| NoFlow::Malformed)?, 0),
            _ => return Err(NoFlow::Protocol),
        };
        let source = (ip.source, Port([ports[0], ports[1]]));
        let destination = (ip.destination, Port([ports[2], ports[3]]));
        let tuple = FlowTuple::new(source, destination, ip.protocol);
        Ok(Self { tuple, transport_offset, part: ip.part, total_len: ip.total_len, flags })
    }

    /// The flow of a fragment whose header is `ip`, and whose packet began with `ports`.
    #[inline]
    pub const fn of_later(ip: &Ipv4, ports: FragmentPorts) -> Self {
        let (source, destination) = ((ip.source, ports.source), (ip.destination, ports.destination));
        let tuple = FlowTuple::new(source, destination, ip.protocol);
        Self { tuple, transport_offset: ipv4::OFFSET, part: ip.part, total_len: ip.total_len, flags: 0 }
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

    /// The client's very first segment.
    #[inline]
    pub const fn is_first_syn(&self) -> bool {
        self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
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
        self.transport_offset + if self.is_udp() { UDP_CHECKSUM_OFFSET } else { TCP_CHECKSUM_OFFSET }
    }
}
