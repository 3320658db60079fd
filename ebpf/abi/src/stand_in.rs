//! IPv4 addresses that stand for clients who come by IPv6 to a task that listens on IPv4 alone.
//!
//! They are of 246.64.0.0/14. That lies in 240.0.0.0/4 (RFC 1112 section 4), which no one is given: no packet from outside has
//! such a source, no network is made of it, and Linux takes and sends it like any other unicast address.

use crate::wire::{Ip, Ip4};

map_type! {
    /// Whom an address stands for.
    pub struct StandIn: 24 bytes {
        pub client: Ip,
        /// Tick of the last packet.
        pub last_seen: u32,
        /// [`STAND_IN_HELD`] or 0.
        pub state: u8,
        pad: [u8; 3],
    }
}

/// The client has a flow that is established: nobody else gets the address before user space has seen that all are gone.
pub const STAND_IN_HELD: u8 = 1;

/// 246.64.0.0/14.
const PREFIX: u32 = 0xf640_0000;
const HOST_BITS: u32 = 18;
const HOST_MASK: u32 = (1 << HOST_BITS) - 1;

/// Addresses that may stand for a client; see [`candidate`].
pub const CANDIDATES: u32 = 8;
/// One that isn't held is another client's when it was silent for so many seconds: the first answer to a client is under way
/// for less, and a flood that only begins flows doesn't keep addresses from others.
pub const RESERVED_SECS: u32 = 3;

impl StandIn {
    pub const fn new(client: Ip, last_seen: u32) -> Self {
        Self { client, last_seen, state: 0, pad: [0; 3] }
    }

    /// Another client may have the address.
    #[inline]
    pub const fn is_free(&self, now: u32) -> bool {
        self.state != STAND_IN_HELD && now.saturating_sub(self.last_seen) > RESERVED_SECS
    }
}

/// The address may be one that stands for a client.
#[inline]
pub const fn is_one(address: Ip4) -> bool {
    address.to_u32() & !HOST_MASK == PREFIX
}

/// The addresses that may stand for a client with this hash, by number. All tell where to look for the one that it has.
#[inline]
pub const fn candidate(client_hash: u32, number: u32) -> Ip4 {
    /// Odd: no two candidates are the same.
    const STRIDE: u32 = 0x9e35;
    Ip4::from_u32(PREFIX | (client_hash.wrapping_add(number.wrapping_mul(STRIDE)) & HOST_MASK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_different_and_of_the_range() {
        for hash in [0, 1, 77, HOST_MASK, u32::MAX] {
            for number in 0..CANDIDATES {
                assert!(is_one(candidate(hash, number)));
                assert!((0..number).all(|other| candidate(hash, other) != candidate(hash, number)));
            }
        }
        assert!(!is_one(Ip4([246, 63, 255, 255])) && !is_one(Ip4([246, 68, 0, 0])));
        assert!(is_one(Ip4([246, 64, 0, 0])) && is_one(Ip4([246, 67, 255, 255])));
    }

    #[test]
    fn an_address_is_free_when_nobody_holds_it() {
        let mut row = StandIn::new(Ip::LOCALHOST6, 10);
        assert!(!row.is_free(10 + RESERVED_SECS) && !row.is_free(9));
        assert!(row.is_free(11 + RESERVED_SECS));
        row.state = STAND_IN_HELD;
        assert!(!row.is_free(1000));
    }
}
