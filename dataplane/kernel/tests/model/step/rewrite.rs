//! Changes of a frame. A checksum that lies beyond the frame's end can't be corrected: then the packet is dropped.

use ebpf_abi::{DropReason, Ip, MacAddr, Port, protocol};

use super::Walk;
use crate::frame::{ETHERNET, Segment, at, changed_checksum, put};
use crate::network::{Family, Network, Piece};
use crate::sctp;

/// IPv6 has none.
const IPV4_CHECKSUM: usize = ETHERNET + 10;

/// One side of a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

impl Side {
    /// Where its address is, in a header of this family that begins at `start`.
    fn address(self, family: Family, start: usize) -> usize {
        let (source, destination) = family.addresses();
        start + if self == Self::Source { source } else { destination }
    }

    /// Where its port is, behind the start of the transport's header.
    fn port(self) -> usize {
        if self == Self::Source { 0 } else { 2 }
    }
}

impl Walk<'_> {
    pub fn set_macs(&mut self, destination: MacAddr, source: MacAddr) {
        put(&mut self.frame, 0, &destination.0);
        put(&mut self.frame, 6, &source.0);
    }

    /// Gives one side of a flow another address and port.
    pub fn translate(
        &mut self,
        segment: &Segment,
        side: Side,
        from: (Ip, Port),
        to: (Ip, Port),
    ) -> Result<(), DropReason> {
        if from.0 != to.0 {
            let family = Family::of_address(from.0);
            let (before, after) = (family.bytes(from.0), family.bytes(to.0));
            if family == Family::V4 {
                self.correct(IPV4_CHECKSUM, &before, &after)?;
            }
            if !segment.is_of(protocol::SCTP) {
                self.correct_transport(segment, &before, &after)?;
            }
            put(&mut self.frame, side.address(family, ETHERNET), &after);
        }
        if let Some(header) = segment.header.filter(|_| from.1 != to.1) {
            if segment.is_of(protocol::SCTP) {
                self.correct_sctp(segment, header, side, (from.1, to.1))?;
            } else {
                self.correct_transport(segment, &from.1.0, &to.1.0)?;
            }
            put(&mut self.frame, header + side.port(), &to.1.0);
        }
        Ok(())
    }

    /// Without checksum there is none to correct, and of a fragment's packet nobody knows how long it is.
    fn correct_sctp(
        &mut self,
        segment: &Segment,
        header: usize,
        side: Side,
        (from, to): (Port, Port),
    ) -> Result<(), DropReason> {
        if segment.piece != Piece::Whole {
            return Err(DropReason::Fragment);
        }
        let before = at(&self.frame, header + sctp::CHECKSUM).ok_or(DropReason::Malformed)?;
        if before != [0; 4] {
            let mut changed = [0; 4];
            let bits = [from.0[0] ^ to.0[0], from.0[1] ^ to.0[1]];
            put(&mut changed, side.port(), &bits);
            let len = segment.total_len.saturating_sub(u16::try_from(header - ETHERNET).unwrap());
            put(&mut self.frame, header + sctp::CHECKSUM, &sctp::changed_checksum(before, changed, len));
        }
        Ok(())
    }

    /// A datagram without checksum keeps none, and one that comes out as zero is sent as all ones (RFC 768).
    pub fn correct_transport(&mut self, segment: &Segment, from: &[u8], to: &[u8]) -> Result<(), DropReason> {
        let Some(header) = segment.header else { return Ok(()) };
        let offset = header + segment.checksum_offset();
        if !segment.is_datagram() {
            return self.correct(offset, from, to);
        }
        if at(&self.frame, offset).ok_or(DropReason::Rewrite)? == [0, 0] {
            return Ok(());
        }
        self.correct(offset, from, to)?;
        if at(&self.frame, offset) == Some([0, 0]) {
            put(&mut self.frame, offset, &[0xff, 0xff]);
        }
        Ok(())
    }

    fn correct(&mut self, offset: usize, from: &[u8], to: &[u8]) -> Result<(), DropReason> {
        let before = u16::from_be_bytes(at(&self.frame, offset).ok_or(DropReason::Rewrite)?);
        put(&mut self.frame, offset, &changed_checksum(before, from, to).to_be_bytes());
        Ok(())
    }

    /// Overwrites bytes that the checksum at `covered` covers.
    fn overwrite(&mut self, offset: usize, to: &[u8], covered: usize) -> Result<(), DropReason> {
        let from = self.frame.get(offset..offset + to.len()).ok_or(DropReason::Rewrite)?.to_vec();
        self.correct(covered, &from, to)?;
        put(&mut self.frame, offset, to);
        Ok(())
    }

    /// Changes an address of the packet at fault in an ICMP error. IPv4's header makes up for that by its own checksum; IPv6's
    /// has none, so the error's changes.
    pub fn translate_fault_address(&mut self, family: Family, side: Side, to: Ip) -> Result<(), DropReason> {
        let covered = match family {
            Family::V4 => Family::V4.faulty() + 10,
            Family::V6 => Family::V6.icmp() + 2,
        };
        self.overwrite(side.address(family, family.faulty()), &family.bytes(to), covered)
    }

    /// Changes a port of the packet at fault, and the ICMP checksum, which covers it.
    pub fn translate_fault_port(&mut self, family: Family, side: Side, to: Port) -> Result<(), DropReason> {
        let offset = family.faulty() + family.header_len() + side.port();
        self.overwrite(offset, &to.0, family.icmp() + 2)
    }

    /// Changes an address of an ICMP error itself: IPv4's header has a checksum, ICMPv6 covers the addresses (RFC 4443 section
    /// 2.3).
    pub fn set_error_address(&mut self, family: Family, side: Side, to: Ip) -> Result<(), DropReason> {
        let covered = match family {
            Family::V4 => IPV4_CHECKSUM,
            Family::V6 => Family::V6.icmp() + 2,
        };
        self.overwrite(side.address(family, ETHERNET), &family.bytes(to), covered)
    }

    /// No checksum notices.
    pub fn swap_addresses(&mut self, ip: &Network) {
        let (source, destination) = ip.addresses();
        put(&mut self.frame, source, &ip.family.bytes(ip.destination));
        put(&mut self.frame, destination, &ip.family.bytes(ip.source));
    }
}
