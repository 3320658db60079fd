//! SCTP (RFC 9260): what a packet's first chunk says of its association, and the CRC-32C behind changed ports.
//!
//! The checksum covers the packet alone, no address (section 6.8), so a new address leaves it as it is.

/// Where fields are in the common header (RFC 9260 section 3.1). The ports are where TCP's are.
pub const CHECKSUM_OFFSET: usize = 8;
/// Length of the common header and of the first chunk's type.
pub const START_LEN: usize = HEADER_LEN + 1;
const HEADER_LEN: usize = 12;

/// Chunk types (RFC 9260 section 3.2) that begin and end an association.
const INIT: u8 = 1;
const ABORT: u8 = 6;
const SHUTDOWN_ACK: u8 = 8;
const SHUTDOWN_COMPLETE: u8 = 14;

/// What a packet means for its association.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The client's first packet; an INIT comes alone (section 6.10).
    Begins,
    GoesOn,
    /// Its sender has nothing more to say: each side sends one of the two chunks with which a shutdown ends (section 9.2), or
    /// both sides the first of them.
    Ends,
    Aborts,
}

impl Meaning {
    /// By the type of the packet's first chunk. An ABORT may also stand behind control chunks (section 3.3.7): that
    /// association is remembered for as long as one that fell silent.
    #[inline]
    pub const fn of(first_chunk: u8) -> Self {
        match first_chunk {
            INIT => Self::Begins,
            ABORT => Self::Aborts,
            SHUTDOWN_ACK | SHUTDOWN_COMPLETE => Self::Ends,
            _ => Self::GoesOn,
        }
    }
}

/// The polynomial of CRC-32C (RFC 9260 appendix A), the coefficient of x^0 in the highest bit, x^32 left out.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^(8 * 2^n): what so many zero bytes multiply a remainder by.
const ZERO_BYTES: [u32; 16] = {
    let mut powers = [1 << 31 >> 8; 16];
    let mut n = 1;
    while n < powers.len() {
        powers[n] = product(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
};

/// The product of two polynomials over GF(2), modulo CRC-32C's. Without branches: the kernel's verifier would follow each.
#[inline(never)]
const fn product(a: u32, b: u32) -> u32 {
    let (mut shifted, mut rest, mut sum, mut n) = (a, b, 0, 0);
    while n < 32 {
        sum ^= shifted & (rest >> 31).wrapping_neg();
        rest <<= 1;
        shifted = (shifted >> 1) ^ (POLYNOMIAL & (shifted & 1).wrapping_neg());
        n += 1;
    }
    sum
}

/// Which of a packet's first four bytes, as a little-endian number, change when its port at `offset` does.
#[inline]
pub fn changed_bits(offset: usize, (from, to): ([u8; 2], [u8; 2])) -> u32 {
    u32::from(u16::from_le_bytes(from) ^ u16::from_le_bytes(to)) << (offset * 8)
}

/// What the checksum of a packet of `len` bytes changes by (exclusive or, field as a little-endian number) when these of its
/// first bits, the ports, change. A CRC is linear: the change is the CRC of a packet that has those bits alone, without the
/// constants that begin and end one; its zero bytes need not be looked at one by one.
#[inline]
pub const fn change(changed_bits: u32, len: u16) -> u32 {
    let (mut change, mut n) = (changed_bits, 0);
    while n < ZERO_BYTES.len() {
        if len >> n & 1 != 0 {
            change = product(change, ZERO_BYTES[n]);
        }
        n += 1;
    }
    change
}

/// The checksum, as in the packet, after that [`change`]; `None` if it stays.
///
/// A field of zero is no checksum: the kernel leaves it so in a packet that it has made itself, for the device that the packet
/// leaves by (or for itself, if another socket here gets the packet and none has to check it), and makes it of the
/// bytes that are there by then. A peer may also do without (RFC 9653). One sound checksum in 2^32 is zero too; a packet
/// that has it and gets another port is refused by its receiver as damaged.
#[inline]
pub fn changed_checksum(checksum: [u8; 4], change: u32) -> Option<[u8; 4]> {
    let field = u32::from_le_bytes(checksum);
    (field != 0).then(|| (field ^ change).to_le_bytes())
}
