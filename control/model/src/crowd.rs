//! Callers who have proven nothing yet, of whom there may be so many at once: the oldest of whoever has most gives way to a newer
//! one. So who floods pushes itself out, and others are served all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

/// Bits of an IPv6 address that are one site's choice (RFC 6177).
const HOST_BITS: u32 = 64;

/// Who calls, as far as it can't choose: an IPv4 address, or an IPv6 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> HOST_BITS << HOST_BITS).into(),
        })
    }
}

/// Those who are there, by what they have in common, each with what ends it.
#[derive(Debug)]
pub struct Crowd<K, E> {
    limit: usize,
    limit_each: usize,
    next: u64,
    there: BTreeMap<u64, (K, E)>,
    of: BTreeMap<K, BTreeSet<u64>>,
}

impl<K: Copy + Ord, E> Crowd<K, E> {
    /// At most `limit` at once, and `limit_each` of a kind.
    pub fn new(limit: usize, limit_each: usize) -> Self {
        Self { limit, limit_each, next: 0, there: BTreeMap::new(), of: BTreeMap::new() }
    }

    /// Somebody of `kind` comes. Returns the number to leave with, and what ends the one that gives way.
    pub fn enter(&mut self, kind: K, end: E) -> (u64, Option<E>) {
        let number = self.next;
        self.next += 1;
        self.there.insert(number, (kind, end));
        self.of.entry(kind).or_default().insert(number);
        (number, self.one_too_many(kind).and_then(|number| self.leave(number)))
    }

    /// Who has `number` goes; leaving twice is nothing.
    pub fn leave(&mut self, number: u64) -> Option<E> {
        let (kind, end) = self.there.remove(&number)?;
        if let Some(of) = self.of.get_mut(&kind) {
            of.remove(&number);
            if of.is_empty() {
                self.of.remove(&kind);
            }
        }
        Some(end)
    }

    pub fn len(&self) -> usize {
        self.there.len()
    }

    pub fn is_empty(&self) -> bool {
        self.there.is_empty()
    }

    /// After one of `kind` came.
    fn one_too_many(&self, kind: K) -> Option<u64> {
        let of_kind = self.of.get(&kind)?;
        if of_kind.len() > self.limit_each {
            return of_kind.first().copied();
        }
        if self.there.len() <= self.limit {
            return None;
        }
        let most = self.of.values().map(BTreeSet::len).max()?;
        self.of.values().filter(|of| of.len() == most).filter_map(BTreeSet::first).min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_most_gives_way() {
        let mut crowd = Crowd::new(4, 9);
        for end in ["a0", "a1", "a2", "b0"] {
            assert_eq!(crowd.enter(&end[..1], end).1, None);
        }
        assert_eq!(crowd.enter("b", "b1").1, Some("a0"));
        assert_eq!(crowd.enter("c", "c0").1, Some("a1"), "both have two, and this is the oldest");
        assert_eq!(crowd.enter("c", "c1").1, Some("b0"));
        assert_eq!(crowd.enter("c", "c2").1, Some("c0"));
        assert_eq!(crowd.len(), 4);
    }

    #[test]
    fn a_kind_has_its_own_limit_and_who_left_makes_room() {
        let mut crowd = Crowd::new(100, 2);
        let (first, _) = crowd.enter(1, 10);
        crowd.enter(1, 11);
        crowd.enter(2, 20);
        assert_eq!(crowd.leave(first), Some(10));
        assert_eq!(crowd.leave(first), None);
        assert_eq!(crowd.enter(1, 12).1, None);
        assert_eq!(crowd.enter(1, 13).1, Some(11));
        assert_eq!((crowd.len(), crowd.of.len(), crowd.is_empty()), (3, 2, false));
    }

    #[test]
    fn a_site_has_many_addresses_of_ipv6_and_is_one_source() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().expect("an address"));
        assert_eq!(source("fd00:1::1"), source("fd00:1:0:0:ffff::2"));
        assert_ne!(source("fd00:1::1"), source("fd00:1:0:1::1"));
        assert_ne!(source("198.18.0.1"), source("198.18.0.2"));
        assert_eq!(source("::ffff:198.18.0.1"), source("198.18.0.1"));
    }
}
