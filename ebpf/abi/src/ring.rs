//! Rings: Maglev look-up tables (Eisenbud et al., NSDI 2016, section 3.4), one inner array per service and network.
//!
//! Place 0 of the inner array holds the number of places that follow; the places hold backends' addresses. Size and
//! places thus change in one swap of the inner map.

map_type! {
    /// Names a ring: a service in a network.
    pub struct RingKey: 16 bytes {
        /// The low 64 bits of the service's id.
        pub service: u64,
        pub vni: u32,
        pad: u32,
    }
}

impl RingKey {
    pub const fn new(service: u64, vni: u32) -> Self {
        Self { service, vni, pad: 0 }
    }
}

/// Index of the inner array's element that holds the number of places.
pub const PLACES_INDEX: u32 = 0;

/// Index of the first place.
pub const FIRST_PLACE_INDEX: u32 = 1;
