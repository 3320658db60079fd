//! Random choices that follow from a seed. Not for secrets.

use control_model::NodeId;

/// `SplitMix64` (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = u64::try_from(n.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.roll() % n).unwrap_or_default()
    }

    /// A number below 100.
    pub fn percent(&mut self) -> u32 {
        u32::try_from(self.roll() % 100).unwrap_or_default()
    }

    pub fn shuffle(&mut self, list: &mut [NodeId]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }

    /// At most `n` of the list.
    pub fn choose(&mut self, mut list: Vec<NodeId>, n: usize) -> Vec<NodeId> {
        let n = n.min(list.len());
        for at in 0..n {
            let other = at + self.below(list.len() - at);
            list.swap(at, other);
        }
        list.truncate(n);
        list
    }
}
