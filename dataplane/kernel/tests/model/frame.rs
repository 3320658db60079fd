//! The model's own view of a frame: fields by their offsets in the standards, checksums by plain arithmetic.

use aya::Pod;
use ebpf_abi::{FlowTuple, Ip, Ip4, MacAddr, Port, protocol};

use crate::network::{Family, Network, Piece, pseudo_header};
use crate::sctp;

pub const ETHERNET: usize = 14;
pub const IPV4: [u8; 2] = [8, 0];
pub const IPV6: [u8; 2] = [0x86, 0xdd];
pub const ARP: [u8; 2] = [8, 6];

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

/// A TCP segment, UDP datagram or SCTP packet, or a fragment of one.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub tuple: FlowTuple,
    /// TCP's, or what a TCP segment would have that means the same.
    pub flags: u8,
    pub piece: Piece,
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
            protocol::SCTP => sctp::flags(at::<1>(frame, header + sctp::FIRST_CHUNK).ok_or(NoPorts::Cut)?[0]),
            _ => return Err(NoPorts::Protocol),
        };
        let [a, b, c, d] = at(frame, header).ok_or(NoPorts::Cut)?;
        Ok(Self::with(ip, (Port([a, b]), Port([c, d])), flags, Some(header)))
    }

    pub fn with(ip: &Network, ports: (Port, Port), flags: u8, header: Option<usize>) -> Self {
        let tuple = FlowTuple::new((ip.source, ports.0), (ip.destination, ports.1), ip.protocol);
        Self { tuple, flags, piece: ip.piece, header, total_len: ip.total_len }
    }

    pub fn is_datagram(&self) -> bool {
        self.tuple.protocol == protocol::UDP
    }

    pub fn is_of(&self, protocol: u8) -> bool {
        self.tuple.protocol == protocol
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
    if !ip.is_plain_icmp() {
        return None;
    }
    let (addresses, protocol) = match ip.family {
        Family::V4 => fault4(frame)?,
        Family::V6 => fault6(frame)?,
    };
    let [a, b, c, d] = at(frame, ip.family.faulty() + ip.family.header_len())?;
    let has_ports = [protocol::TCP, protocol::UDP, protocol::SCTP].contains(&protocol);
    let ports = (Port([a, b]), Port([c, d]));
    has_ports.then(|| FlowTuple::new((addresses.0, ports.0), (addresses.1, ports.1), protocol))
}

/// Addresses and protocol of the packet at fault.
fn fault4(frame: &[u8]) -> Option<((Ip, Ip), u8)> {
    /// Destination unreachable, time exceeded, parameter problem (RFC 792).
    const ERRORS: [u8; 3] = [3, 11, 12];
    let header: [u8; 20] = at(frame, Family::V4.faulty())?;
    let is_later = u16::from_be_bytes([header[6], header[7]]) << 3 != 0;
    let is_error = ERRORS.contains(frame.get(Family::V4.icmp())?);
    let addresses = (Ip4(at(&header, 12)?).into(), Ip4(at(&header, 16)?).into());
    (is_error && header[0] == 0x45 && !is_later).then_some((addresses, header[9]))
}

fn fault6(frame: &[u8]) -> Option<((Ip, Ip), u8)> {
    /// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443 section 2.1).
    const ERRORS: [u8; 4] = [1, 2, 3, 4];
    let header: [u8; 40] = at(frame, Family::V6.faulty())?;
    let is_error = ERRORS.contains(frame.get(Family::V6.icmp())?);
    let (source, destination) = (Ip(at(&header, 8)?), Ip(at(&header, 24)?));
    let is_sound = header[0] / 16 == 6 && !source.is_v4() && !destination.is_v4();
    (is_error && is_sound).then_some(((source, destination), header[6]))
}

/// The client's flow that an error is about which met an answer to the client on its way.
pub fn fault_of_answer(frame: &[u8], ip: &Network) -> Option<FlowTuple> {
    let answer = fault(frame, ip)?;
    let (service, client) =
        ((answer.source, answer.source_port), (answer.destination, answer.destination_port));
    (answer.source == ip.destination).then(|| FlowTuple::new(client, service, answer.protocol))
}

/// An echo request's type, code and checksum.
pub fn echo_request(frame: &[u8], ip: &Network) -> Option<(u8, u8, u16)> {
    let request = match ip.family {
        Family::V4 => 8,
        Family::V6 => 128,
    };
    let [kind, code, high, low] = at(frame, ip.family.icmp())?;
    (ip.is_plain_icmp() && kind == request).then_some((kind, code, u16::from_be_bytes([high, low])))
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
    let family = at(frame, 12).and_then(Family::of);
    let Some(ip) = family.and_then(|family| Network::of(frame, family)) else { return true };
    let end = ETHERNET + usize::from(ip.total_len);
    let header = ETHERNET + ip.header_len;
    let is_sound = |header: &[u8]| ip.family == Family::V6 || checksum(header) == 0;
    if !frame.get(ETHERNET..header).is_some_and(is_sound) {
        return false;
    }
    let Some(payload) = frame.get(header..end).filter(|_| ip.piece == Piece::Whole) else { return true };
    if ip.protocol == protocol::SCTP {
        return sctp::checksum_holds(payload);
    }
    let pseudo = || {
        let length = u16::try_from(payload.len()).unwrap();
        [pseudo_header((ip.source, ip.destination), ip.protocol, length).as_slice(), payload].concat()
    };
    let covered = match (ip.family, ip.protocol) {
        (Family::V4, protocol::ICMP) => payload.to_vec(),
        (_, protocol::UDP) if payload.get(6..8) == Some(&[0, 0]) => return true,
        (_, protocol::TCP | protocol::UDP) | (Family::V6, protocol::ICMP6) => pseudo(),
        _ => return true,
    };
    checksum(&covered) == 0
}
