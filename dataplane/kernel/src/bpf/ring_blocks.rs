//! The ring of a service and its earlier ones as the blocks of one inner array, see [`ebpf_abi::ring`].

use std::iter;

use ebpf_abi::ring::{EARLIER_RINGS, FIRST_PLACE, RingHeader, WORDS_PER_BLOCK, fingerprint, set_ring};
use ebpf_abi::{Ip4, RingBlock};

/// Backends by place.
pub type Places = Vec<Ip4>;

/// All rings of a service once `places` is the one in use, youngest first. A ring that was in use before is remembered once,
/// and one without a backend not at all: it chose nothing.
pub fn successor(places: &[Ip4], before: Vec<Places>) -> Vec<Places> {
    let earlier = before.into_iter().filter(|ring| !ring.is_empty() && ring != places);
    iter::once(places.to_vec()).chain(earlier.take(EARLIER_RINGS.into())).collect()
}

/// As the inner array has them; the first is the one in use.
pub fn encode(rings: &[Places]) -> Vec<RingBlock> {
    let mut header = RingBlock::default();
    let mut words: Vec<u32> = Vec::with_capacity(rings.iter().map(Vec::len).sum());
    for (age, places) in (0..=EARLIER_RINGS).zip(rings) {
        let number = |count: usize| u32::try_from(count).expect("nine rings of 65,537 places at most");
        let first_place = FIRST_PLACE + number(words.len());
        set_ring(&mut header, age, (number(places.len()), first_place, fingerprint(places)));
        words.extend(places.iter().map(|place| place.to_be_u32()));
    }
    let block = |words: &[u32]| {
        let mut block = RingBlock::default();
        block[..words.len()].copy_from_slice(words);
        block
    };
    iter::once(header).chain(words.chunks(WORDS_PER_BLOCK as usize).map(block)).collect()
}

/// What [`encode`] has encoded, as far as `blocks` go: at most the first `limit` rings. The first is always there.
pub fn decode(blocks: &[RingBlock], limit: usize) -> Vec<Places> {
    let Some(header) = blocks.first().map(RingHeader) else { return Vec::new() };
    let words: Vec<u32> = blocks.iter().flatten().copied().collect();
    let places = |age: u8| -> Option<Places> {
        let first = usize::try_from(header.first_place(age)).ok()?;
        let end = first.checked_add(usize::try_from(header.n_places(age)).ok()?)?;
        Some(words.get(first..end)?.iter().map(|word| Ip4::from_be_u32(*word)).collect())
    };
    let in_use = places(0).unwrap_or_default();
    let earlier = (1..=EARLIER_RINGS).map_while(|age| places(age).filter(|places| !places.is_empty()));
    iter::once(in_use).chain(earlier).take(limit).collect()
}

/// How many blocks, the header's included, hold the ring in use.
pub fn n_blocks_in_use(header: &RingBlock) -> u32 {
    FIRST_PLACE.saturating_add(RingHeader(header).n_places(0)).div_ceil(WORDS_PER_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring that no other number makes.
    fn ring(number: u8, n_places: usize) -> Places {
        vec![Ip4([10, 0, 0, number]); n_places]
    }

    #[test]
    fn rings_come_back() {
        for sizes in [vec![0], vec![1], vec![32, 1], vec![31, 33, 64], vec![0, 7], vec![211; 9]] {
            let rings: Vec<Places> =
                sizes.iter().zip(1..).map(|(n_places, number)| ring(number, *n_places)).collect();
            let blocks = encode(&rings);
            assert_eq!(decode(&blocks, usize::MAX), rings, "{sizes:?}");
            let in_use = usize::try_from(n_blocks_in_use(&blocks[0])).unwrap();
            assert_eq!(decode(&blocks[..in_use], 1), rings[..1], "{sizes:?}");
        }
    }

    #[test]
    fn rings_that_follow_each_other_are_remembered_once() {
        let all = |numbers: &[u8]| numbers.iter().map(|number| ring(*number, 3)).collect::<Vec<_>>();
        assert_eq!(successor(&ring(2, 3), all(&[1])), all(&[2, 1]));
        assert_eq!(successor(&ring(1, 3), all(&[2, 1, 3])), all(&[1, 2, 3]), "back to what it was");
        assert_eq!(
            successor(&ring(1, 3), vec![ring(0, 0), ring(2, 3)]),
            all(&[1, 2]),
            "none without backend"
        );
        let full = successor(&ring(10, 3), all(&[9, 8, 7, 6, 5, 4, 3, 2, 1]));
        assert_eq!(full, all(&[10, 9, 8, 7, 6, 5, 4, 3, 2]), "the oldest goes");
    }

    #[test]
    fn any_blocks_are_survived() {
        let mut header = RingBlock::default();
        set_ring(&mut header, 0, (u32::MAX, 1, 0));
        set_ring(&mut header, 1, (3, u32::MAX, 0));
        assert_eq!(decode(&[header], usize::MAX), [Places::new()]);
        assert!(decode(&[], 1).is_empty());
        assert!(n_blocks_in_use(&header) > 1);
    }
}
