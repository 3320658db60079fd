//! Maglev look-up tables: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4. Every node computes the same table from the same backends.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use dataplane_model::kernel_state::Ring;

/// Sizes that a table may have: primes, because each backend's permutation walks the whole table only then. Few and far
/// apart, because a table of another size sends almost every flow elsewhere: a service crosses one at 2, 5, 10, 20, …
/// backends and stays put between. There a backend that comes or goes moves, of the places of the others (measured, means): 1.5
/// to 2.4 % with 4 to 80 backends, 1.1 to 1.6 % with 100 to 320, 1.0 % with 400, 0.6 % with 1,000.
const SIZES: [u32; 9] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_537];

/// Places per backend that keep the shares within a percent or two of each other (section 5.3 of the paper).
const PLACES_PER_BACKEND: usize = 100;

/// The smallest size with enough places for `n_backends`.
pub fn size(n_backends: usize) -> u32 {
    let wanted = n_backends.saturating_mul(PLACES_PER_BACKEND);
    let fits = |size: &u32| usize::try_from(*size).is_ok_and(|size| size >= wanted);
    SIZES.into_iter().find(fits).unwrap_or(SIZES[SIZES.len() - 1])
}

/// Backends, each with its weight: the share of the table that it has beside the others. None is 0.
pub type Weights = BTreeMap<Ipv4Addr, u8>;

/// The table; empty without backends.
pub fn ring(backends: &Weights) -> Ring {
    let Some(heaviest) = backends.values().copied().max() else {
        return Ring(Arc::from([]));
    };
    let n_places = u64::from(size(backends.len()));
    let mut walks: Vec<Walk> =
        backends.iter().map(|(address, weight)| Walk::new(*address, (*weight, heaviest), n_places)).collect();
    let mut places: Vec<Option<Ipv4Addr>> = vec![None; usize::try_from(n_places).expect("at most 65,537")];
    let mut n_free = places.len();
    // Backends take turns; each takes the first place of its own permutation that is still free. The heaviest takes each
    // turn, others as many as their weight is of its.
    while n_free > 0 {
        for walk in &mut walks {
            if n_free > 0 && walk.has_turn(heaviest) {
                let place = walk.next_free(&places);
                places[place] = Some(walk.address);
                n_free -= 1;
            }
        }
    }
    Ring(places.into_iter().map(|place| place.expect("the loop ends when no place is free")).collect())
}

/// A backend's permutation of the places, and how far it has come.
struct Walk {
    address: Ipv4Addr,
    weight: u8,
    /// What it has of a turn, in parts of the heaviest one's weight.
    part: u16,
    position: u64,
    skip: u64,
    n_places: u64,
}

impl Walk {
    fn new(address: Ipv4Addr, (weight, heaviest): (u8, u8), n_places: u64) -> Self {
        // The first round is everybody's, so that nobody is left out.
        let part = u16::from(heaviest.saturating_sub(weight));
        let seed = u64::from(address.to_bits());
        let position = mix(seed ^ 0x6d61_676c_6576_0001) % n_places;
        let skip = mix(seed ^ 0x6d61_676c_6576_0002) % (n_places - 1) + 1;
        Self { address, weight, part, position, skip, n_places }
    }

    fn has_turn(&mut self, heaviest: u8) -> bool {
        let heaviest = u16::from(heaviest);
        self.part += u16::from(self.weight);
        let has_turn = self.part >= heaviest;
        if has_turn {
            self.part -= heaviest;
        }
        has_turn
    }

    fn next_free(&mut self, places: &[Option<Ipv4Addr>]) -> usize {
        loop {
            let place = usize::try_from(self.position).expect("below the table's size");
            self.position = (self.position + self.skip) % self.n_places;
            if places[place].is_none() {
                return place;
            }
        }
    }
}

/// The finaliser of `SplitMix64` (Steele, Lea, Flood, OOPSLA 2014): every input bit moves every output bit.
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
