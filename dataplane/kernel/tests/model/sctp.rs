//! What the model knows of SCTP (RFC 9260): chunks in the words of TCP, and CRC-32C byte by byte.

use crate::frame::{ACK, FIN, RST, SYN};

/// Where the checksum and the first chunk's type are.
pub const CHECKSUM: usize = 8;
pub const FIRST_CHUNK: usize = 12;

/// Types of chunks that begin and end associations, and of some that do neither.
pub const INIT: u8 = 1;
pub const ABORT: u8 = 6;
pub const SHUTDOWN_ACK: u8 = 8;
pub const SHUTDOWN_COMPLETE: u8 = 14;

/// The flags of a TCP segment that would mean what a packet means whose first chunk this is.
pub fn flags(chunk: u8) -> u8 {
    match chunk {
        INIT => SYN,
        ABORT => RST,
        SHUTDOWN_ACK | SHUTDOWN_COMPLETE => FIN,
        _ => ACK,
    }
}

/// The remainder after further bytes (RFC 9260 appendix A).
fn remainder(before: u32, bytes: impl IntoIterator<Item = u8>) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let shifted = |crc: u32, _| if crc.is_multiple_of(2) { crc / 2 } else { (crc / 2) ^ POLYNOMIAL };
    bytes.into_iter().fold(before, |crc, byte| (0..8).fold(crc ^ u32::from(byte), shifted))
}

/// Of a packet whose checksum field is zero, as it goes there.
pub fn checksum(packet: &[u8]) -> [u8; 4] {
    (!remainder(!0, packet.iter().copied())).to_le_bytes()
}

/// The checksum holds, or there is none.
pub fn checksum_holds(packet: &[u8]) -> bool {
    let Some(field) = packet.get(CHECKSUM..CHECKSUM + 4) else { return true };
    let without = [&packet[..CHECKSUM], &[0; 4], &packet[CHECKSUM + 4..]].concat();
    field == [0; 4] || field == checksum(&without)
}

/// The checksum of a packet that says to have `len` bytes after its first four have changed by these bits.
pub fn changed_checksum(before: [u8; 4], changed: [u8; 4], len: u16) -> [u8; 4] {
    let change = remainder(u32::from_le_bytes(changed), (0..len).map(|_| 0));
    (u32::from_le_bytes(before) ^ change).to_le_bytes()
}
