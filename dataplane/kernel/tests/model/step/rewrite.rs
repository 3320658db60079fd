//! Changes of a frame. A checksum that lies beyond the frame's end can't be corrected: then the packet is dropped.

use ebpf_abi::{DropReason, Ip4, MacAddr, Port};

use super::Walk;
use crate::frame::{ETHERNET, FAULTY, ICMP, IPV4, Segment, at, changed_checksum, put};

const IP_CHECKSUM: usize = ETHERNET + 10;
pub const SOURCE: usize = ETHERNET + 12;
pub const DESTINATION: usize = ETHERNET + 16;

/// One side of a flow: where its address is in the IPv4 header, and its port in the transport's.
#[derive(Clone, Copy)]
pub struct Side {
    address: usize,
    port: usize,
}

pub const CLIENT_SIDE: Side = Side { address: SOURCE, port: 0 };
pub const SERVICE_SIDE: Side = Side { address: DESTINATION, port: 2 };

impl Walk<'_> {
    /// Both, and the type IPv4.
    pub fn set_macs(&mut self, destination: MacAddr, source: MacAddr) {
        put(&mut self.frame, 0, &destination.0);
        put(&mut self.frame, 6, &source.0);
        put(&mut self.frame, 12, &IPV4);
    }

    /// Gives one side of a flow another address and port.
    pub fn translate(
        &mut self,
        segment: &Segment,
        side: Side,
        from: (Ip4, Port),
        to: (Ip4, Port),
    ) -> Result<(), DropReason> {
        if from.0 != to.0 {
            self.correct(IP_CHECKSUM, &from.0.0, &to.0.0)?;
            self.correct_transport(segment, &from.0.0, &to.0.0)?;
            put(&mut self.frame, side.address, &to.0.0);
        }
        if let Some(header) = segment.header.filter(|_| from.1 != to.1) {
            self.correct_transport(segment, &from.1.0, &to.1.0)?;
            put(&mut self.frame, header + side.port, &to.1.0);
        }
        Ok(())
    }

    /// A datagram without checksum keeps none, and one that comes out as zero is sent as all ones (RFC 768).
    fn correct_transport(&mut self, segment: &Segment, from: &[u8], to: &[u8]) -> Result<(), DropReason> {
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

    /// Changes an address of the packet at fault in an ICMP error; its header's checksum makes up for that.
    pub fn translate_fault_address(&mut self, offset: usize, to: Ip4) -> Result<(), DropReason> {
        let from: [u8; 4] = at(&self.frame, FAULTY + offset).ok_or(DropReason::Rewrite)?;
        self.correct(FAULTY + 10, &from, &to.0)?;
        put(&mut self.frame, FAULTY + offset, &to.0);
        Ok(())
    }

    /// Changes a port of the packet at fault, and the ICMP checksum, which covers it.
    pub fn translate_fault_port(&mut self, offset: usize, to: Port) -> Result<(), DropReason> {
        let offset = FAULTY + 20 + offset;
        let from: [u8; 2] = at(&self.frame, offset).ok_or(DropReason::Rewrite)?;
        self.correct(ICMP + 2, &from, &to.0)?;
        put(&mut self.frame, offset, &to.0);
        Ok(())
    }

    /// Changes an address of the packet itself, whose payload is no segment.
    pub fn set_address(&mut self, offset: usize, to: Ip4) -> Result<(), DropReason> {
        let from: [u8; 4] = at(&self.frame, offset).ok_or(DropReason::Rewrite)?;
        self.correct(IP_CHECKSUM, &from, &to.0)?;
        put(&mut self.frame, offset, &to.0);
        Ok(())
    }
}
