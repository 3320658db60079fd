//! From a flow to a place in a ring. Every node computes the same.

use ebpf_abi::{FlowTuple, Ip4, Port};

/// Spreads all bits of a 64-bit word over all others (the finaliser of `MurmurHash3`, public domain, by Austin Appleby).
#[inline]
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

#[inline]
const fn pair(address: Ip4, port: Port) -> u64 {
    ((address.to_u32() as u64) << 16) | port.get() as u64
}

/// Hash of the full tuple, destination included.
#[inline]
pub const fn flow_hash(tuple: &FlowTuple) -> u32 {
    let source = mix(pair(tuple.source, tuple.source_port));
    let destination = pair(tuple.destination, tuple.destination_port) | (tuple.protocol as u64) << 48;
    (mix(source ^ destination) >> 32) as u32
}

/// Hash of a socket and what it sends to.
#[inline]
pub const fn socket_hash(cookie: u64, destination: Ip4, port: Port) -> u32 {
    (mix(mix(cookie) ^ pair(destination, port)) >> 32) as u32
}

/// The place of `hash` in a ring of `n_places`, without a division: the upper half of the product (Lemire, "Fast Random
/// Integer Generation in an Interval", 2019, section 4). Less than `n_places` unless that is 0.
#[inline]
pub const fn place(hash: u32, n_places: u32) -> u32 {
    ((hash as u64 * n_places as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_spread_evenly() {
        let mut counts = [0_u32; 7];
        for port in 0..7000_u16 {
            let client = (Ip4([198, 18, 0, 100]), Port::new(30_000 + port));
            let tuple = FlowTuple::new(client, (Ip4([198, 18, 0, 11]), Port::new(8080)), 6);
            counts[place(flow_hash(&tuple), 7) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_destination_counts() {
        let client = (Ip4([198, 18, 0, 100]), Port::new(30_000));
        let hashes = [11, 12, 13]
            .map(|node| flow_hash(&FlowTuple::new(client, (Ip4([198, 18, 0, node]), Port::new(8080)), 6)));
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2]);
    }

    #[test]
    fn places_are_inside_the_ring() {
        for n_places in [1, 2, 101, 65_537] {
            assert_eq!(place(0, n_places), 0);
            assert_eq!(place(u32::MAX, n_places), n_places - 1);
        }
    }
}
