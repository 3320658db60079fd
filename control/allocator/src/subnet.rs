//! Addresses of one subnet: who holds which, and which rest after use.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use control_model::{ServiceId, TaskId};
use ipnetwork::{IpNetwork, Ipv4Network};

/// Who holds an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holder {
    Gateway,
    Vip(ServiceId),
    Task(TaskId),
}

/// The addresses of one subnet that may be handed out.
///
/// A freed address rests: it is handed out again only when every other one is held, the longest-resting first,
/// so that a peer's stale neighbour entry, flow or DNS answer does not lead to another task.
#[derive(Debug, Clone)]
pub(crate) struct SubnetPool {
    subnet: Ipv4Network,
    /// Addresses that may be handed out: the subnet's (or its range's) without network and broadcast address.
    first: u32,
    last: u32,
    held: BTreeMap<u32, Holder>,
    /// How many of `held` lie between `first` and `last`.
    n_held: u32,
    /// Addresses that rest, each with when it began; and the same by that time, which is a count.
    resting: BTreeMap<u32, u64>,
    rest_order: BTreeMap<u64, u32>,
    n_freed: u64,
    /// Where the search for an address that was never held begins.
    next: u32,
}

impl SubnetPool {
    /// A pool over `range` within `subnet`, `gateway` held. `range` is clipped to the subnet.
    pub(crate) fn new(subnet: Ipv4Network, range: Option<Ipv4Network>, gateway: Option<Ipv4Addr>) -> Self {
        let (low, high) = usable(subnet);
        let (first, last) = range.map_or((low, high), |range| {
            (u32::from(range.network()).max(low), u32::from(range.broadcast()).min(high))
        });
        let mut pool = Self {
            subnet,
            first,
            last,
            held: BTreeMap::new(),
            n_held: 0,
            resting: BTreeMap::new(),
            rest_order: BTreeMap::new(),
            n_freed: 0,
            next: first,
        };
        if let Some(gateway) = gateway {
            pool.hold(gateway, Holder::Gateway);
        }
        pool
    }

    pub(crate) fn subnet(&self) -> Ipv4Network {
        self.subnet
    }

    /// Hands out an address; `None` when all are held.
    pub(crate) fn allocate(&mut self, holder: Holder) -> Option<Ipv4Addr> {
        let address = self.never_held().or_else(|| self.longest_resting())?;
        self.held.insert(address, holder);
        self.n_held += 1;
        self.next = address.saturating_add(1);
        Some(address.into())
    }

    /// Notes an address that `holder` has already. `false` if another holds it.
    pub(crate) fn hold(&mut self, address: Ipv4Addr, holder: Holder) -> bool {
        let address = u32::from(address);
        let n_before = self.held.len();
        let held = *self.held.entry(address).or_insert(holder) == holder;
        if held {
            self.end_rest(address);
            self.n_held += u32::from(self.held.len() > n_before && self.may_give(address));
            // A pool that is built from held addresses goes on after the highest of them.
            if (self.next..=self.last).contains(&address) {
                self.next = address.saturating_add(1);
            }
        }
        held
    }

    /// Frees an address if `holder` holds it.
    pub(crate) fn free(&mut self, address: Ipv4Addr, holder: Holder) -> bool {
        let address = u32::from(address);
        if self.held.get(&address) != Some(&holder) {
            return false;
        }
        self.held.remove(&address);
        if self.may_give(address) {
            self.n_held -= 1;
            self.n_freed += 1;
            self.resting.insert(address, self.n_freed);
            self.rest_order.insert(self.n_freed, address);
        }
        true
    }

    /// Who holds addresses, by address.
    #[cfg(test)]
    pub(crate) fn holders(&self) -> impl Iterator<Item = Holder> {
        self.held.values().copied()
    }

    /// The first address from `next` upwards, then from the start, that is neither held nor resting.
    fn never_held(&self) -> Option<u32> {
        if self.first > self.last {
            return None;
        }
        let size = u64::from(self.last - self.first) + 1;
        if u64::from(self.n_held) + self.resting.len() as u64 >= size {
            return None;
        }
        let start = self.next.clamp(self.first, self.last);
        (start..=self.last).chain(self.first..start).find(|address| !self.is_taken(*address))
    }

    fn may_give(&self, address: u32) -> bool {
        (self.first..=self.last).contains(&address)
    }

    fn is_taken(&self, address: u32) -> bool {
        self.held.contains_key(&address) || self.resting.contains_key(&address)
    }

    fn longest_resting(&mut self) -> Option<u32> {
        let (_, address) = self.rest_order.first_key_value()?;
        let address = *address;
        self.end_rest(address);
        Some(address)
    }

    fn end_rest(&mut self, address: u32) {
        if let Some(since) = self.resting.remove(&address) {
            self.rest_order.remove(&since);
        }
    }
}

/// First and last address that a host may have; /31 and /32 use all (RFC 3021).
fn usable(subnet: Ipv4Network) -> (u32, u32) {
    let (network, broadcast) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
    if subnet.prefix() >= 31 { (network, broadcast) } else { (network + 1, broadcast - 1) }
}

/// Whether two subnets share an address. Those of different families never do.
pub(crate) fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

#[cfg(test)]
mod tests {
    use control_model::families::first_host;

    use super::*;

    fn pool(prefix: u8) -> SubnetPool {
        let subnet = Ipv4Network::new([10, 0, 1, 0].into(), prefix).unwrap();
        SubnetPool::new(subnet, None, Some(first_host(subnet)))
    }

    fn task(n: u128) -> Holder {
        Holder::Task(TaskId::from_bits(n))
    }

    #[test]
    fn never_hands_out_network_gateway_or_broadcast() {
        let mut pool = pool(29);
        let all: Vec<_> = std::iter::from_fn(|| pool.allocate(task(1))).collect();
        assert_eq!(all, (2..=6).map(|host| Ipv4Addr::new(10, 0, 1, host)).collect::<Vec<_>>());
    }

    #[test]
    fn a_freed_address_rests_until_all_others_are_held() {
        let mut pool = pool(29);
        let first = pool.allocate(task(1)).unwrap();
        let second = pool.allocate(task(2)).unwrap();
        assert!(pool.free(second, task(2)) && pool.free(first, task(1)));
        let rest: Vec<_> = std::iter::from_fn(|| pool.allocate(task(3))).collect();
        assert_eq!(rest.iter().map(|a| a.octets()[3]).collect::<Vec<_>>(), [4, 5, 6, 3, 2]);
    }

    #[test]
    fn an_address_that_was_held_again_begins_its_rest_anew() {
        let mut pool = pool(29);
        let given: Vec<_> = std::iter::from_fn(|| pool.allocate(task(1))).collect();
        assert!(pool.free(given[0], task(1)) && pool.free(given[1], task(1)));
        for _ in 0..1_000 {
            assert!(pool.hold(given[0], task(2)) && pool.free(given[0], task(2)));
        }
        assert_eq!((pool.resting.len(), pool.rest_order.len()), (2, 2), "nothing is noted twice");
        assert_eq!(pool.allocate(task(3)), Some(given[1]));
        assert_eq!(pool.allocate(task(3)), Some(given[0]));
    }

    /// Any order of taking and giving back: no address is held twice, lost, or given again before all others that are
    /// free have rested less.
    #[test]
    fn addresses_rest_and_none_leaks_in_a_hundred_thousand_cycles() {
        let mut pool = pool(24);
        let mut held: Vec<(Ipv4Addr, Holder)> = Vec::new();
        // When each address was freed last; 0 for never.
        let mut freed: BTreeMap<Ipv4Addr, u64> = (2..=254).map(|h| (Ipv4Addr::new(10, 0, 1, h), 0)).collect();
        let mut random = 1_u64;
        for cycle in 1..=200_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let n = usize::try_from(random >> 33).expect("31 bits");
            // Now nearly empty, now full.
            let wanted = if (cycle / 1_000).is_multiple_of(2) { 253 } else { n % 40 };
            if held.len() < wanted {
                let holder = task(u128::from(cycle));
                let address = pool.allocate(holder).expect("not full");
                let since = freed.remove(&address).expect("it was free");
                assert!(freed.values().all(|other| since <= *other), "{address} rested less than another");
                held.push((address, holder));
            } else if !held.is_empty() {
                let (address, holder) = held.swap_remove(n % held.len());
                assert!(pool.free(address, holder));
                freed.insert(address, cycle);
            }
            assert_eq!(held.len() + freed.len(), 253);
        }
        for (address, holder) in held {
            assert!(pool.free(address, holder));
        }
        assert_eq!(pool.holders().collect::<Vec<_>>(), [Holder::Gateway]);
        assert_eq!(std::iter::from_fn(|| pool.allocate(task(1))).count(), 253);
    }

    #[test]
    fn only_the_holder_frees() {
        let mut pool = pool(24);
        let address = pool.allocate(task(1)).unwrap();
        assert!(!pool.free(address, task(2)));
        assert!(!pool.hold(address, task(2)));
        assert!(pool.hold(address, task(1)));
        assert!(pool.free(address, task(1)));
        assert!(!pool.free(address, task(1)));
    }

    #[test]
    fn keeps_to_the_range() {
        let subnet: Ipv4Network = "10.0.1.0/24".parse().unwrap();
        let mut pool = SubnetPool::new(subnet, "10.0.1.252/30".parse().ok(), Some(first_host(subnet)));
        let all: Vec<_> = std::iter::from_fn(|| pool.allocate(task(1))).map(|a| a.octets()[3]).collect();
        assert_eq!(all, [252, 253, 254]);
    }

    #[test]
    fn a_held_address_outside_the_range_is_kept_and_freed() {
        let subnet: Ipv4Network = "10.0.1.0/24".parse().unwrap();
        let mut pool = SubnetPool::new(subnet, "10.0.1.252/30".parse().ok(), None);
        assert!(pool.hold([10, 0, 1, 9].into(), task(1)));
        assert!(pool.free([10, 0, 1, 9].into(), task(1)));
        let all: Vec<_> = std::iter::from_fn(|| pool.allocate(task(1))).map(|a| a.octets()[3]).collect();
        assert_eq!(all, [252, 253, 254]);
    }
}
