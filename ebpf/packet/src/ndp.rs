//! Neighbour discovery for IPv6 over Ethernet (RFC 4861): solicitations, and the advertisements that answer them.

use core::ops::RangeInclusive;

use ebpf_abi::{Ip, MacAddr, protocol};

use crate::bytes::{Bytes, Truncated};
use crate::checksum;
use crate::ethernet;
use crate::ip::{IpHeader, OFFSET, Part};
use crate::ipv6;

/// Where the ICMPv6 message starts in a frame without extension headers.
pub const MESSAGE_OFFSET: usize = OFFSET + ipv6::LEN;
/// Length of an advertisement with its link-layer address, bytes.
pub const ADVERTISEMENT_LEN: usize = 32;
/// The same with all headers in front.
pub const FRAME_LEN: usize = MESSAGE_OFFSET + ADVERTISEMENT_LEN;

const ROUTER_SOLICITATION: u8 = 133;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// It answers a solicitation, and replaces what the asker knows (RFC 4861 section 4.4).
const SOLICITED_OVERRIDE: u8 = 0x60;
/// Option: target link-layer address, of one unit of eight bytes (RFC 4861 section 4.6.1).
const TARGET_ADDRESS: [u8; 2] = [2, 1];
/// No router has passed it on (RFC 4861 section 7.1).
const HOP_LIMIT: u8 = 255;

/// Multicast listener discovery: which groups a node listens to (RFC 2710 section 3, RFC 3810 section 5.2).
const LISTENER_REPORT: u8 = 131;
const LISTENER_DONE: u8 = 132;
const LISTENER_REPORT2: u8 = 143;
/// Where the target is in the message.
const TARGET_OFFSET: usize = 8;

/// Units of eight bytes that a solicitation has at least, and at most here: room for some options, of which kernels send one.
const MIN_UNITS: u8 = 3;
const MAX_UNITS: u8 = 9;
const UNIT_LEN: usize = 8;

/// Who asks for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solicitation {
    pub sender_mac: MacAddr,
    /// Unspecified if it only wants to know whether the target is taken (RFC 4862 section 5.4.2).
    pub sender: Ip,
    pub target: Ip,
}

/// An ICMPv6 message, by what it says of its sender to the link: behind extension headers too, as kernels read them there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Zero, which is reserved (RFC 4443 section 2.1), for all that is none.
    kind: u8,
    offset: usize,
}

impl Message {
    #[inline]
    pub fn of(packet: &impl Bytes, ip: &IpHeader) -> Result<Self, Truncated> {
        let offset = ip.transport_offset;
        if ip.protocol != protocol::ICMP6 || matches!(ip.part, Part::LaterFragment) {
            return Ok(Self { kind: 0, offset });
        }
        let [kind] = packet.load::<1>(offset)?;
        Ok(Self { kind, offset })
    }

    /// Who the sender says that it is: the target of an advertisement, or of a solicitation of nobody, who wants to have the
    /// address if nobody has it (RFC 4862 section 5.4.2).
    #[inline]
    pub fn claimed(&self, packet: &impl Bytes, source: Ip) -> Result<Option<Ip>, Truncated> {
        if self.kind != ADVERTISEMENT && (self.kind != SOLICITATION || !source.is_unspecified()) {
            return Ok(None);
        }
        Ok(Some(Ip(packet.load::<16>(self.offset + TARGET_OFFSET)?)))
    }

    /// A node says so that isn't a router, and may say it before it has an address of a network.
    #[inline]
    pub const fn is_of_link(&self) -> bool {
        matches!(
            self.kind,
            ROUTER_SOLICITATION
                | SOLICITATION
                | ADVERTISEMENT
                | LISTENER_REPORT
                | LISTENER_DONE
                | LISTENER_REPORT2
        )
    }
}

/// It asks for a neighbour in a way that is to be ignored (RFC 4861 section 7.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid;

impl From<Truncated> for Invalid {
    #[inline]
    fn from(_: Truncated) -> Self {
        Self
    }
}

impl Solicitation {
    /// `Ok(None)` for any other packet.
    #[inline]
    pub fn parse(packet: &impl Bytes, ip: &IpHeader) -> Result<Option<Self>, Invalid> {
        if ip.protocol != protocol::ICMP6 || ip.has_options() || ip.part != Part::Whole {
            return Ok(None);
        }
        let [kind, code] = packet.load::<2>(MESSAGE_OFFSET)?;
        if kind != SOLICITATION {
            return Ok(None);
        }
        let [hop_limit] = packet.load::<1>(OFFSET + 7)?;
        if code != 0 || hop_limit != HOP_LIMIT || !is_sound(packet, ip)? {
            return Err(Invalid);
        }
        let sender_mac = MacAddr(packet.load::<6>(ethernet::SOURCE_OFFSET)?);
        let target = Ip(packet.load::<16>(MESSAGE_OFFSET + TARGET_OFFSET)?);
        Ok(Some(Self { sender_mac, sender: ip.source, target }))
    }

    /// The answering message: it goes behind [`ip_start`], from the target to the sender.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "few bytes")]
    pub fn advertisement(&self, mac: MacAddr) -> [u8; ADVERTISEMENT_LEN] {
        let mut message = [0; ADVERTISEMENT_LEN];
        message[0] = ADVERTISEMENT;
        message[4] = SOLICITED_OVERRIDE;
        message[8..24].copy_from_slice(&self.target.0);
        message[24..26].copy_from_slice(&TARGET_ADDRESS);
        message[26..32].copy_from_slice(&mac.0);
        let pseudo = checksum::pseudo_header6((&self.target, &self.sender), ADVERTISEMENT_LEN as u16);
        let sum = checksum::join(pseudo, checksum::header_checksum(&message));
        message[2..4].copy_from_slice(&sum);
        message
    }
}

/// The checksum of the message holds, and its options, whose second byte is their length in units, end where it ends.
#[inline]
fn is_sound(packet: &impl Bytes, ip: &IpHeader) -> Result<bool, Truncated> {
    const LENS: RangeInclusive<usize> = MIN_UNITS as usize * UNIT_LEN..=MAX_UNITS as usize * UNIT_LEN;
    const HEADER_LEN: u16 = 40;
    let len = ip.total_len.saturating_sub(HEADER_LEN);
    let end = usize::from(len);
    if !end.is_multiple_of(UNIT_LEN) || !LENS.contains(&end) {
        return Ok(false);
    }
    let mut checksum = checksum::pseudo_header6((&ip.source, &ip.destination), len);
    let mut n_units_left = MIN_UNITS;
    for index in 0..usize::from(MAX_UNITS) {
        if index * UNIT_LEN == end {
            break;
        }
        let unit = packet.load::<UNIT_LEN>(MESSAGE_OFFSET + index * UNIT_LEN)?;
        checksum = checksum::join(checksum, checksum::header_checksum(&unit));
        if n_units_left == 0 {
            n_units_left = unit[1];
        }
        if n_units_left == 0 {
            return Ok(false);
        }
        n_units_left -= 1;
    }
    Ok(n_units_left == 0 && checksum == [0, 0])
}

/// The IP header of an advertisement, up to its addresses.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "few bytes")]
pub const fn ip_start() -> [u8; 8] {
    ipv6::start(HOP_LIMIT, ADVERTISEMENT_LEN as u16)
}
