//! What a ring must be, for any set of backends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use dataplane_model::FULL_WEIGHT;
use dataplane_model::kernel_state::Ring;
use proptest::prelude::*;

use crate::maglev::{Weights, ring as weighted, size};

/// Of backends that take their whole share.
fn ring(set: &BTreeSet<Ipv4Addr>) -> Ring {
    weighted(&set.iter().map(|address| (*address, FULL_WEIGHT)).collect())
}

fn backends() -> impl Strategy<Value = BTreeSet<Ipv4Addr>> {
    prop::collection::btree_set(
        any::<u16>().prop_map(|low| Ipv4Addr::from(0x0a00_0000 + u32::from(low))),
        1..60,
    )
}

fn places(set: &BTreeSet<Ipv4Addr>) -> BTreeMap<Ipv4Addr, usize> {
    ring(set).0.iter().fold(BTreeMap::new(), |mut places, address| {
        *places.entry(*address).or_insert(0) += 1;
        places
    })
}

/// Tasks at any step of a slow start beside those that have ended it.
fn some_weights(set: &BTreeSet<Ipv4Addr>, seed: u8) -> Weights {
    let weights = set.iter().zip(usize::from(seed)..).map(|(address, n)| {
        let weight = [FULL_WEIGHT, 10, FULL_WEIGHT, 40, 20, FULL_WEIGHT, 80][n * n % 7];
        (*address, weight)
    });
    weights.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shares_are_even(set in backends()) {
        let places = places(&set);
        let even = f64::from(size(set.len())) / f64::from(u32::try_from(set.len()).unwrap());

        prop_assert_eq!(places.keys().copied().collect::<BTreeSet<_>>(), set);
        for (address, count) in places {
            let share = f64::from(u32::try_from(count).unwrap());
            prop_assert!((share - even).abs() <= even * 0.03, "{} has {} of {}", address, share, even);
        }
    }

    #[test]
    fn shares_are_as_weights(set in backends(), seed in any::<u8>()) {
        let weights = some_weights(&set, seed);
        let ring = weighted(&weights);
        let all = f64::from(weights.values().map(|weight| u32::from(*weight)).sum::<u32>());
        let n_places = f64::from(u32::try_from(ring.0.len()).unwrap());

        for (address, weight) in &weights {
            let share = f64::from(u32::try_from(ring.0.iter().filter(|place| *place == address).count()).unwrap());
            let wanted = n_places * f64::from(*weight) / all;
            prop_assert!((share - wanted).abs() <= wanted * 0.02 + 2.0, "{} has {} of {}", address, share, wanted);
        }
    }

    #[test]
    fn equal_weights_are_no_weights(set in backends(), weight in 1_u8..=100) {
        let equal: Weights = set.iter().map(|address| (*address, weight)).collect();
        prop_assert_eq!(weighted(&equal), ring(&set));
    }
}

/// Not for any set: with some, two permutations run in step. Two percent are usual, as in the paper's figure 12.
#[test]
fn a_backend_that_leaves_moves_few_others() {
    let (mut n_moved, mut n_places) = (0, 0);
    for seed in 0..200_u32 {
        let n_backends = 4 + seed % 37;
        let address = |n| Ipv4Addr::from(0x0a00_0000 + 256 * seed + n);
        let set: BTreeSet<Ipv4Addr> = (2..2 + n_backends).map(address).collect();
        if size(set.len()) != size(set.len() - 1) {
            continue;
        }
        let before = ring(&set);
        let moved = moved_without(&set, &before, address(2 + seed % n_backends));
        assert!(moved * 100 <= before.0.len() * 10, "{moved} of {} with seed {seed}", before.0.len());
        n_moved += moved;
        n_places += before.0.len();
    }
    assert!(n_moved * 100 <= n_places * 3, "{n_moved} of {n_places}");
}

/// Of 1,000 places, how many change hands between backends that stay when one of `n_backends` goes: the mean over `seeds`
/// sets, where the ring keeps its size.
fn moved_permille(n_backends: u32, seeds: u32) -> f64 {
    let (mut n_moved, mut n_places) = (0, 0);
    for seed in 0..seeds {
        let address = |n| Ipv4Addr::from(0x0a00_0000 + 4096 * seed + n);
        let set: BTreeSet<Ipv4Addr> = (2..2 + n_backends).map(address).collect();
        let before = ring(&set);
        n_moved += moved_without(&set, &before, address(2 + seed * 7 % n_backends));
        n_places += before.0.len();
    }
    let number = |count: usize| f64::from(u32::try_from(count).unwrap());
    number(n_moved) * 1000.0 / number(n_places)
}

/// One percent at most from 400 backends on, where all rings have the largest size; 2.5 below, where a ring has 100 to 200
/// places per backend and the walks of so few backends meet more often.
#[test]
fn one_of_many_backends_moves_one_percent_of_the_others() {
    for (n_backends, seeds, most_permille) in [
        (5, 60, 25.0),
        (10, 40, 25.0),
        (20, 20, 25.0),
        (100, 6, 25.0),
        (400, 3, 10.0),
        (655, 3, 10.0),
        (1000, 3, 10.0),
    ] {
        let moved = moved_permille(n_backends, seeds);
        assert!(moved <= most_permille, "{moved:.1} of 1,000 among {n_backends}");
    }
}

/// Places that change hands between backends that stay, when `victim` goes.
fn moved_without(set: &BTreeSet<Ipv4Addr>, before: &Ring, victim: Ipv4Addr) -> usize {
    let mut rest = set.clone();
    rest.remove(&victim);
    let after = ring(&rest);
    before.0.iter().zip(after.0.iter()).filter(|(old, new)| **old != victim && old != new).count()
}

#[test]
fn sizes_are_primes_that_fit() {
    for n_backends in [1, 2, 3, 10, 20, 41, 655] {
        let size = size(n_backends);
        assert!(usize::try_from(size).unwrap() >= n_backends * 100 && size <= 65_537);
        assert!(
            (2..size).take_while(|factor| factor * factor <= size).all(|factor| !size.is_multiple_of(factor))
        );
    }
    assert_eq!(size(100_000), 65_537);
    assert_eq!(size(655), ebpf_abi::limits::MAX_RING_PLACES);
}

#[test]
fn no_backends_no_places() {
    assert_eq!(ring(&BTreeSet::new()).0.len(), 0);
}

#[test]
fn more_backends_than_places_end() {
    let many: BTreeSet<Ipv4Addr> = (0..70_000).map(|low| Ipv4Addr::from(0x0a00_0000 + low)).collect();
    assert_eq!(ring(&many).0.len(), 65_537);
}

/// From step to step of one backend's slow start, of 1,000 places, how many change hands between the others: the mean over
/// `seeds` sets.
fn moved_by_steps_permille(n_backends: u32, seeds: u32) -> f64 {
    let (mut n_moved, mut n_places) = (0, 0);
    for seed in 0..seeds {
        let address = |n| Ipv4Addr::from(0x0a00_0000 + 4096 * seed + n);
        let starting = address(2 + seed * 7 % n_backends);
        let at = |weight| {
            weighted(
                &(2..2 + n_backends)
                    .map(address)
                    .map(|a| (a, if a == starting { weight } else { FULL_WEIGHT }))
                    .collect(),
            )
        };
        for (before, after) in
            [(10, 20), (20, 40), (40, 60), (60, 80), (80, FULL_WEIGHT)].map(|(a, b)| (at(a), at(b)))
        {
            let of_others =
                |(old, new): &(&Ipv4Addr, &Ipv4Addr)| old != new && **old != starting && **new != starting;
            n_moved += before.0.iter().zip(after.0.iter()).filter(of_others).count();
            n_places += before.0.len();
        }
    }
    let number = |count: usize| f64::from(u32::try_from(count).unwrap());
    number(n_moved) * 1000.0 / number(n_places)
}

#[test]
fn a_step_of_one_backend_moves_one_percent_of_the_others() {
    for (n_backends, seeds, most_permille) in
        [(2, 60, 10.0), (5, 60, 25.0), (10, 40, 25.0), (20, 20, 25.0), (100, 6, 25.0), (400, 3, 10.0)]
    {
        let moved = moved_by_steps_permille(n_backends, seeds);
        assert!(moved <= most_permille, "{moved:.1} of 1,000 among {n_backends}");
    }
}
