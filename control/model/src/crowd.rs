//! Callers who have proven nothing yet, of whom there may be so many at once: the oldest of whoever has most gives way to a newer
//! one. So who floods pushes itself out, and others are served all the same. Where many sound ones come at once from one place, those
//! who are being served may be spared for a time: else none of them would ever be done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::time::Timestamp;

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
    spared_for: Duration,
    next: u64,
    there: BTreeMap<u64, There<K, E>>,
    of: BTreeMap<K, BTreeSet<u64>>,
}

#[derive(Debug)]
struct There<K, E> {
    kind: K,
    since: Timestamp,
    end: E,
}

impl<K: Copy + Ord, E> Crowd<K, E> {
    /// At most `limit` at once, and `limit_each` of a kind.
    pub fn new(limit: usize, limit_each: usize) -> Self {
        let (there, of) = (BTreeMap::new(), BTreeMap::new());
        Self { limit, limit_each, spared_for: Duration::ZERO, next: 0, there, of }
    }

    /// Who is there for less than `time` gives way to no other of its kind: the newer one goes.
    #[must_use]
    pub fn sparing(self, time: Duration) -> Self {
        Self { spared_for: time, ..self }
    }

    /// Somebody of `kind` comes. Returns the number to leave with, and what ends the one that gives way, be it this one.
    pub fn enter(&mut self, kind: K, end: E, now: Timestamp) -> (u64, Option<E>) {
        let number = self.next;
        self.next += 1;
        self.there.insert(number, There { kind, since: now, end });
        self.of.entry(kind).or_default().insert(number);
        let goes = self.one_too_many(kind).map(|oldest| self.spare(oldest, number, now));
        (number, goes.and_then(|number| self.leave(number)))
    }

    /// Who has `number` goes; leaving twice is nothing.
    pub fn leave(&mut self, number: u64) -> Option<E> {
        let There { kind, end, .. } = self.there.remove(&number)?;
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

    /// Who goes: `oldest`, or the newcomer.
    fn spare(&self, oldest: u64, newcomer: u64, now: Timestamp) -> u64 {
        let (Some(old), Some(new)) = (self.there.get(&oldest), self.there.get(&newcomer)) else {
            return oldest;
        };
        let is_fair = self.of[&old.kind].len() > self.of[&new.kind].len();
        if is_fair || now.since(old.since) >= self.spared_for { oldest } else { newcomer }
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

    const NOW: Timestamp = Timestamp(5_000_000_000);

    #[test]
    fn who_has_most_gives_way() {
        let mut crowd = Crowd::new(4, 9);
        for end in ["a0", "a1", "a2", "b0"] {
            assert_eq!(crowd.enter(&end[..1], end, NOW).1, None);
        }
        assert_eq!(crowd.enter("b", "b1", NOW).1, Some("a0"));
        assert_eq!(crowd.enter("c", "c0", NOW).1, Some("a1"), "both have two, and this is the oldest");
        assert_eq!(crowd.enter("c", "c1", NOW).1, Some("b0"));
        assert_eq!(crowd.enter("c", "c2", NOW).1, Some("c0"));
        assert_eq!(crowd.len(), 4);
    }

    #[test]
    fn a_kind_has_its_own_limit_and_who_left_makes_room() {
        let mut crowd = Crowd::new(100, 2);
        let (first, _) = crowd.enter(1, 10, NOW);
        crowd.enter(1, 11, NOW);
        crowd.enter(2, 20, NOW);
        assert_eq!(crowd.leave(first), Some(10));
        assert_eq!(crowd.leave(first), None);
        assert_eq!(crowd.enter(1, 12, NOW).1, None);
        assert_eq!(crowd.enter(1, 13, NOW).1, Some(11));
        assert_eq!((crowd.len(), crowd.of.len(), crowd.is_empty()), (3, 2, false));
    }

    #[test]
    fn who_is_being_served_is_spared_for_a_time_among_its_like() {
        let mut crowd = Crowd::new(3, 9).sparing(Duration::from_secs(1));
        for end in ["a0", "a1", "a2"] {
            assert_eq!(crowd.enter("a", end, NOW).1, None);
        }
        let soon = NOW.after(Duration::from_millis(999));
        assert_eq!(crowd.enter("a", "a3", soon).1, Some("a3"), "the newcomer goes");
        assert_eq!(crowd.enter("b", "b0", soon).1, Some("a0"), "another has less than they");
        assert_eq!(crowd.enter("b", "b1", soon).1, Some("b1"), "and not more");
        assert_eq!(crowd.enter("a", "a4", NOW.after(Duration::from_secs(1))).1, Some("a1"));
        assert_eq!(crowd.len(), 3);
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
