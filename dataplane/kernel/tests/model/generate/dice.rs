//! Seeded chance.

/// A sequence of numbers that a seed decides (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number() % limit as u64).unwrap()
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[0]
    }

    pub fn word(&mut self) -> [u8; 2] {
        [self.byte(), self.byte()]
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }

    /// One of what may be nothing.
    pub fn pick_from<T>(&mut self, among: impl ExactSizeIterator<Item = T>) -> Option<T> {
        let (count, mut among) = (among.len(), among);
        if count == 0 { None } else { among.nth(self.below(count)) }
    }
}
