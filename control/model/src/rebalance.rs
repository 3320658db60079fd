//! How many tasks of a service may be on the move at once when it is spread anew over nodes that have come.

/// The label's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveLimit {
    Tasks(u64),
    /// Of the replicas, 1 to 100.
    Percent(u8),
}

impl MoveLimit {
    /// `2`, or `25%`. `None` for what is neither, or would move nothing.
    pub fn parse(text: &str) -> Option<Self> {
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        match text.strip_suffix('%') {
            Some(digits) if is_number(digits) => {
                digits.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Self::Percent)
            }
            None if is_number(text) => text.parse().ok().filter(|count| *count > 0).map(Self::Tasks),
            _ => None,
        }
    }

    /// Tasks of so many replicas; at least one, or nothing would ever move.
    pub fn of(self, replicas: u64) -> u64 {
        match self {
            Self::Tasks(count) => count,
            Self::Percent(percent) => (replicas.saturating_mul(percent.into()) / 100).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_and_shares() {
        assert_eq!(MoveLimit::parse("2"), Some(MoveLimit::Tasks(2)));
        assert_eq!(MoveLimit::parse("25%"), Some(MoveLimit::Percent(25)));
        for text in ["", "0", "-1", "+1", "0%", "101%", "%", "1.5", "two", "1 ", "99999999999999999999"] {
            assert_eq!(MoveLimit::parse(text), None, "{text}");
        }
        assert_eq!([1, 3, 4, 10].map(|replicas| MoveLimit::Percent(25).of(replicas)), [1, 1, 1, 2]);
        assert_eq!(MoveLimit::Tasks(3).of(1), 3);
    }
}
