//! The model's own view of a frame: fields by their offsets in the standards, checksums by plain arithmetic.

use aya::Pod;
use ebpf_abi::{FlowTuple, Ip4, MacAddr, Port, protocol};

pub const ETHERNET: usize = 14;
pub const IPV4: [u8; 2] = [8, 0];
pub const ARP: [u8; 2] = [8, 6];
/// Where an ICMP header is, and the packet at fault in an error: behind a header without options (RFC 792).
pub const ICMP: usize = ETHERNET + 20;
pub const FAULTY: usize = ICMP + 8;

/// TCP flags (RFC 9293 section 3.1).
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// `N` bytes at an offset, if they are there.
pub fn at<const N: usize>(frame: &[u8], offset: usize) -> Option<[u8; N]> {
    frame.get(offset..offset + N)?.try_into().ok()
}

pub fn put(frame: &mut [u8], offset: usize, bytes: &[u8]) {
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A row as the kernel has it.
pub fn bytes_of<T: Pod>(row: &T) -> &[u8] {
    // SAFETY: a Pod has no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(row).cast(), size_of::<T>()) }
}

/// Ethernet and what follows it.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub destination: MacAddr,
    pub source: MacAddr,
    pub kind: [u8; 2],
}

impl Link {
    pub fn of(frame: &[u8]) -> Option<Self> {
        Some(Self {
            destination: MacAddr(at(frame, 0)?),
            source: MacAddr(at(frame, 6)?),
            kind: at(frame, 12)?,
        })
    }
}

/// Which part of an IPv4 packet a frame carries (RFC 791 section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    Whole,
    First,
    Later,
}

/// An IPv4 header.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    pub source: Ip4,
    pub destination: Ip4,
    pub protocol: u8,
    pub id: [u8; 2],
    pub piece: Piece,
    pub dont_fragment: bool,
    pub header_len: usize,
    pub total_len: u16,
}

impl Network {
    /// `None` if the header is cut off or contradicts itself.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let header: [u8; 20] = at(frame, ETHERNET)?;
        let header_len = usize::from(header[0] % 16) * 4;
        let total_len = u16::from_be_bytes([header[2], header[3]]);
        let is_sound = header[0] / 16 == 4 && header_len >= 20 && usize::from(total_len) >= header_len;
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        is_sound.then_some(Self {
            source: Ip4(at(&header, 12)?),
            destination: Ip4(at(&header, 16)?),
            protocol: header[9],
            id: [header[4], header[5]],
            piece: match (fragment % (1 << 13), fragment & 1 << 13) {
                (0, 0) => Piece::Whole,
                (0, _) => Piece::First,
                _ => Piece::Later,
            },
            dont_fragment: fragment & 1 << 14 != 0,
            header_len,
            total_len,
        })
    }

    pub fn has_options(&self) -> bool {
        self.header_len > 20
    }

    /// A whole ICMP message whose header is where [`ICMP`] says.
    fn is_plain_icmp(&self) -> bool {
        self.protocol == protocol::ICMP && !self.has_options() && self.piece == Piece::Whole
    }
}

/// A TCP segment or UDP datagram, or a fragment of one.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub tuple: FlowTuple,
    pub flags: u8,
    /// Where its header is; a later fragment has none.
    pub header: Option<usize>,
    pub total_len: u16,
}

/// Why a packet has no ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPorts {
    Cut,
    Fragment,
    Protocol,
}

impl Segment {
    /// Of a packet that carries its ports itself.
    pub fn of(frame: &[u8], ip: &Network) -> Result<Self, NoPorts> {
        if ip.piece == Piece::Later {
            return Err(NoPorts::Fragment);
        }
        let header = ETHERNET + ip.header_len;
        let flags = match ip.protocol {
            protocol::TCP => at::<1>(frame, header + 13).ok_or(NoPorts::Cut)?[0],
            protocol::UDP => 0,
            _ => return Err(NoPorts::Protocol),
        };
        let [a, b, c, d] = at(frame, header).ok_or(NoPorts::Cut)?;
        Ok(Self::with(ip, (Port([a, b]), Port([c, d])), flags, Some(header)))
    }

    pub fn with(ip: &Network, ports: (Port, Port), flags: u8, header: Option<usize>) -> Self {
        let tuple = FlowTuple::new((ip.source, ports.0), (ip.destination, ports.1), ip.protocol);
        Self { tuple, flags, header, total_len: ip.total_len }
    }

    pub fn is_datagram(&self) -> bool {
        self.tuple.protocol == protocol::UDP
    }

    pub fn begins(&self) -> bool {
        self.flags & SYN != 0 && self.flags & ACK == 0
    }

    /// Where the checksum is, behind the header's start (RFC 768, RFC 9293).
    pub fn checksum_offset(&self) -> usize {
        if self.is_datagram() { 6 } else { 16 }
    }
}

/// The flow of the packet at fault in an ICMP error, as that packet has it.
pub fn fault(frame: &[u8], ip: &Network) -> Option<FlowTuple> {
    /// Destination unreachable, time exceeded, parameter problem (RFC 792).
    const ERRORS: [u8; 3] = [3, 11, 12];
    if !ip.is_plain_icmp() || !ERRORS.contains(frame.get(ICMP)?) {
        return None;
    }
    let [a, b, c, d] = at(frame, FAULTY + 20)?;
    let header: [u8; 20] = at(frame, FAULTY)?;
    let is_later = u16::from_be_bytes([header[6], header[7]]) << 3 != 0;
    let has_ports = [protocol::TCP, protocol::UDP].contains(&header[9]);
    let source = (Ip4(at(&header, 12)?), Port([a, b]));
    let destination = (Ip4(at(&header, 16)?), Port([c, d]));
    (header[0] == 0x45 && !is_later && has_ports).then(|| FlowTuple::new(source, destination, header[9]))
}

/// The client's flow that an error is about which met an answer to the client on its way.
pub fn fault_of_answer(frame: &[u8], ip: &Network) -> Option<FlowTuple> {
    let answer = fault(frame, ip)?;
    let (service, client) =
        ((answer.source, answer.source_port), (answer.destination, answer.destination_port));
    (answer.source == ip.destination.into()).then(|| FlowTuple::new(client, service, answer.protocol))
}

/// An echo request's code and checksum.
pub fn echo_request(frame: &[u8], ip: &Network) -> Option<(u8, u16)> {
    let [kind, code, high, low] = at(frame, ICMP)?;
    (ip.is_plain_icmp() && kind == 8).then_some((code, u16::from_be_bytes([high, low])))
}

/// The Internet checksum (RFC 1071) of what has zero in its place.
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)));
    let sum: u64 = words.sum();
    !ones_complement(sum)
}

/// A sum in 16-bit one's complement: 0 only if it is nothing at all.
fn ones_complement(sum: u64) -> u16 {
    let folded = if sum == 0 { 0 } else { (sum - 1) % 0xffff + 1 };
    u16::try_from(folded).unwrap()
}

/// The checksum after a change (RFC 1624 equation 3). The kernel's helpers add up 32 bits whose upper half is never 0:
/// where both 0 and 0xffff would be right, they give 0.
pub fn changed_checksum(before: u16, from: &[u8], to: &[u8]) -> u16 {
    let sum = |bytes: &[u8]| u64::from(!checksum(bytes));
    let change = 0xffff + (0xffff - sum(from)) + sum(to);
    !ones_complement(0xffff + u64::from(!before) + change)
}

/// Whether IPv4's and the transport's checksums hold, as far as the frame is whole.
pub fn checksums_hold(frame: &[u8]) -> bool {
    let Some(ip) = Network::of(frame).filter(|_| at(frame, 12) == Some(IPV4)) else { return true };
    let end = ETHERNET + usize::from(ip.total_len);
    let header = ETHERNET + ip.header_len;
    if frame.get(ETHERNET..header).is_none_or(|header| checksum(header) != 0) {
        return false;
    }
    let Some(payload) = frame.get(header..end).filter(|_| ip.piece == Piece::Whole) else { return true };
    let pseudo = |length: u16| {
        let addresses = [ip.source.0, ip.destination.0].concat();
        [addresses.as_slice(), &[0, ip.protocol], &length.to_be_bytes(), payload].concat()
    };
    let covered = match ip.protocol {
        protocol::ICMP => payload.to_vec(),
        protocol::UDP if payload.get(6..8) == Some(&[0, 0]) => return true,
        protocol::TCP | protocol::UDP => pseudo(ip.total_len - u16::try_from(ip.header_len).unwrap()),
        _ => return true,
    };
    checksum(&covered) == 0
}
