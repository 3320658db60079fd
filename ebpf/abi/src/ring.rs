//! Rings: Maglev look-up tables (Eisenbud et al., NSDI 2016, section 3.4). One inner array per service and network holds
//! the ring in use, and behind it the rings that it replaced: a connection whose first packets an earlier ring placed can
//! be found again by it. All of them change in one swap of the inner map.
//!
//! The array is one of words, in blocks of [`WORDS_PER_BLOCK`]: reading and writing cost by the element. The first block is
//! a [`RingHeader`]; the places hold backends' addresses, those of the ring in use first.

use crate::limits::ROUTER_MAC;
use crate::wire::{Ip4, MacAddr};

map_type! {
    /// Names a ring: a service in a network.
    pub struct RingKey: 16 bytes {
        /// The low 64 bits of the service's id.
        pub service: u64,
        pub vni: u32,
        pad: u32,
    }
}

/// One header is one block, and look-ups and copies of places are few.
pub const WORDS_PER_BLOCK: u32 = 32;

/// An element of the inner array. No struct: kernel 6.1 tells inner maps apart by whether it knows that their elements are
/// structs, and it knows of the programs' own map alone.
pub type RingBlock = [u32; WORDS_PER_BLOCK as usize];

/// Earlier rings that are kept: so many different rings may a service have between a connection's beginning and the loss of
/// its row in the ingress node's cache. A rolling update changes a ring twice per batch, scaling up to once per task.
pub const EARLIER_RINGS: u8 = 8;

/// The word at which the places of the ring in use begin.
pub const FIRST_PLACE: u32 = WORDS_PER_BLOCK;

/// What the header has of each ring: number of places, word of the first, fingerprint. All zero: there is none.
const WORDS_PER_RING: usize = 3;
const _: () = assert!((1 + EARLIER_RINGS as usize) * WORDS_PER_RING <= WORDS_PER_BLOCK as usize);

/// The first block. Rings are counted by age: 0 is the one in use, 1 the one before, and so on.
#[derive(Debug, Clone, Copy)]
pub struct RingHeader<'a>(pub &'a RingBlock);

impl RingHeader<'_> {
    /// 0 if there is no such ring, or it has no backend.
    #[inline]
    pub const fn n_places(self, age: u8) -> u32 {
        self.0[age as usize * WORDS_PER_RING]
    }

    /// The word of a ring's first place.
    #[inline]
    pub const fn first_place(self, age: u8) -> u32 {
        self.0[age as usize * WORDS_PER_RING + 1]
    }

    /// See [`fingerprint`].
    #[inline]
    pub const fn fingerprint(self, age: u8) -> u32 {
        self.0[age as usize * WORDS_PER_RING + 2]
    }
}

/// Writes what a header has of the ring of an age: number of places, word of the first, fingerprint.
pub const fn set_ring(
    header: &mut RingBlock,
    age: u8,
    (n_places, first_place, fingerprint): (u32, u32, u16),
) {
    let start = age as usize * WORDS_PER_RING;
    header[start] = n_places;
    header[start + 1] = first_place;
    header[start + 2] = fingerprint as u32;
}

/// What tells rings apart that follow each other. The same on all nodes: they tell each other which ring chose a packet's
/// destination, however often each of them has seen the ring change. FNV-1a of 32 bits (Fowler, Noll, Vo), folded.
pub fn fingerprint(places: &[Ip4]) -> u16 {
    const BASIS: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    let hash = places
        .iter()
        .flat_map(|place| place.0)
        .fold(BASIS, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(PRIME));
    let [a, b, c, d] = hash.to_be_bytes();
    u16::from_be_bytes([a ^ c, b ^ d])
}

impl RingKey {
    pub const fn new(service: u64, vni: u32) -> Self {
        Self { service, vni, pad: 0 }
    }

    /// Tells rings of one network apart by fewer bits: services' ids are random, two of them have the same tag once in 2^32.
    #[inline]
    pub const fn tag(&self) -> u32 {
        let id = self.service.to_le_bytes();
        u32::from_le_bytes([id[0] ^ id[4], id[1] ^ id[5], id[2] ^ id[6], id[3] ^ id[7]])
    }
}

/// Backends that are asked one after the other for a connection: each ring that is remembered may name another one.
pub const MAX_HOPS: u8 = EARLIER_RINGS + 1;

/// What chose the destination of a packet that comes through the tunnel. Carried as the inner source MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chooser {
    /// How many backends were asked before this one.
    pub hops: u8,
    /// Of the ring that chose this one; without meaning while `hops` is 0.
    pub fingerprint: u16,
}

/// Begins the MAC of a chooser that is not a ring in use.
const CHOOSER_PREFIX: [u8; 3] = [ROUTER_MAC.0[0], ROUTER_MAC.0[1], ROUTER_MAC.0[2]];
const _: () = assert!(MAX_HOPS < ROUTER_MAC.0[3], "a chooser's MAC could be the router's");

impl Chooser {
    /// The ring that the sender has in use, or its flow cache.
    pub const IN_USE: Self = Self { hops: 0, fingerprint: 0 };

    #[inline]
    pub const fn mac(self) -> MacAddr {
        if self.hops == 0 {
            return ROUTER_MAC;
        }
        let [a, b, c] = CHOOSER_PREFIX;
        let [high, low] = self.fingerprint.to_be_bytes();
        MacAddr([a, b, c, self.hops, high, low])
    }

    /// `None` for any other MAC.
    #[inline]
    pub fn of(mac: MacAddr) -> Option<Self> {
        if mac == ROUTER_MAC {
            return Some(Self::IN_USE);
        }
        let [a, b, c, hops, high, low] = mac.0;
        let is_chooser = [a, b, c] == CHOOSER_PREFIX && (1..=MAX_HOPS).contains(&hops);
        is_chooser.then_some(Self { hops, fingerprint: u16::from_be_bytes([high, low]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chooser_is_told_by_its_mac() {
        assert_eq!(Chooser::IN_USE.mac(), ROUTER_MAC);
        for hops in 1..=MAX_HOPS {
            let chooser = Chooser { hops, fingerprint: 0x1234 };
            assert_eq!(Chooser::of(chooser.mac()), Some(chooser));
        }
        assert_eq!(Chooser::of(ROUTER_MAC), Some(Chooser::IN_USE));
        let beyond = Chooser { hops: MAX_HOPS + 1, fingerprint: 0 };
        assert_eq!(Chooser::of(beyond.mac()), None);
        assert_eq!(Chooser::of(MacAddr([2, 0x42, 10, 0, 0, 0])), None);
    }

    /// Nodes of two builds must agree.
    #[test]
    fn fingerprints_are_fixed() {
        let [a, b] = [Ip4([10, 0, 0, 5]), Ip4([10, 0, 0, 6])];
        assert_eq!(fingerprint(&[]), 0x1cd9);
        assert_ne!(fingerprint(&[a]), fingerprint(&[b]));
        assert_ne!(fingerprint(&[a, b]), fingerprint(&[b, a]));
    }

    #[test]
    fn a_header_tells_what_it_was_told() {
        let mut block = RingBlock::default();
        set_ring(&mut block, EARLIER_RINGS, (7, 99, 0xabcd));
        let header = RingHeader(&block);
        let read = |age| (header.n_places(age), header.first_place(age), header.fingerprint(age));
        assert_eq!(read(EARLIER_RINGS), (7, 99, 0xabcd));
        assert_eq!(read(0), (0, 0, 0));
    }
}
