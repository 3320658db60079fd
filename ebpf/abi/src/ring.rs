//! Rings: Maglev look-up tables (Eisenbud et al., NSDI 2016, section 3.4), one inner array per service and network.
//!
//! Place 0 of the inner array holds the number of places that follow; the places hold backends' addresses. Size and
//! places thus change in one swap of the inner map.
//!
//! A ring that was swapped out stays for a while as an earlier ring, under the same key with a higher age: a connection
//! whose first packets it placed can be found again by it.

use crate::limits::ROUTER_MAC;
use crate::wire::MacAddr;

map_type! {
    /// Names a ring: a service in a network, now or before.
    pub struct RingKey: 16 bytes {
        /// The low 64 bits of the service's id.
        pub service: u64,
        pub vni: u32,
        /// How many times the ring has changed since; 0 is the one in use.
        pub age: u8,
        pad: [u8; 3],
    }
}

impl RingKey {
    /// The ring in use.
    pub const fn new(service: u64, vni: u32) -> Self {
        Self { service, vni, age: 0, pad: [0; 3] }
    }

    /// What the ring was `age` changes ago.
    #[inline]
    #[must_use]
    pub const fn earlier(self, age: u8) -> Self {
        Self { age, ..self }
    }
}

/// Earlier rings that are kept: so often may a ring change between a connection's beginning and the loss of its row in the
/// ingress node's cache. A rolling update changes a ring twice per batch, scaling up to once per task.
pub const EARLIER_RINGS: u8 = 8;

/// Source MAC inside the tunnel of a packet whose connection is looked for: the ring of this age chose its destination. With
/// age 0 it is [`ROUTER_MAC`], as of all that the ring in use chooses.
#[inline]
pub const fn chooser_mac(age: u8) -> MacAddr {
    let mut mac = ROUTER_MAC.0;
    mac[5] = age;
    MacAddr(mac)
}

/// The age in a [`chooser_mac`]; `None` of any other MAC.
#[inline]
pub fn chooser_age(mac: MacAddr) -> Option<u8> {
    let age = mac.0[5];
    (mac == chooser_mac(age)).then_some(age)
}

/// Index of the inner array's element that holds the number of places.
pub const PLACES_INDEX: u32 = 0;

/// Index of the first place.
pub const FIRST_PLACE_INDEX: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chooser_is_told_by_its_mac() {
        assert_eq!(chooser_mac(0), ROUTER_MAC);
        assert_eq!(chooser_age(chooser_mac(3)), Some(3));
        assert_eq!(chooser_age(MacAddr([2, 0x42, 10, 0, 0, 0])), None);
    }
}
