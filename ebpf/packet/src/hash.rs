//! From a flow to a place in a ring. Every node computes the same.

use ebpf_abi::{FlowTuple, Ip, Port};

/// Spreads all bits of a 64-bit word over all others (the finaliser of `MurmurHash3`, public domain, by Austin Appleby).
#[inline]
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

/// An odd number with bits all over: keeps the halves of an address apart (2^64 over the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// All of an address and port in one word, in which close neighbours differ.
#[inline]
const fn word(address: Ip, port: Port) -> u64 {
    let b = address.0;
    let high = u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
    let low = u64::from_be_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]);
    let folded = high.wrapping_mul(SPREAD) ^ low;
    folded ^ (port.get() as u64).wrapping_mul(SPREAD)
}

/// Hash of the full tuple, destination included.
#[inline]
pub const fn flow_hash(tuple: &FlowTuple) -> u32 {
    let source = mix(word(tuple.source, tuple.source_port));
    let destination = word(tuple.destination, tuple.destination_port) ^ tuple.protocol as u64;
    (mix(source ^ destination) >> 32) as u32
}

/// Hash of a client's address.
#[inline]
pub const fn client_hash(client: Ip) -> u32 {
    (mix(word(client, Port([0; 2]))) >> 32) as u32
}

/// Hash of a socket and what it sends to.
#[inline]
pub const fn socket_hash(cookie: u64, destination: Ip, port: Port) -> u32 {
    (mix(mix(cookie) ^ word(destination, port)) >> 32) as u32
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

    fn ip(text: &str) -> Ip {
        text.parse::<core::net::IpAddr>().unwrap().into()
    }

    #[test]
    fn flows_spread_evenly() {
        for (client, node) in [("198.18.0.100", "198.18.0.11"), ("2001:db8::100", "2001:db8::11")] {
            let mut counts = [0_u32; 7];
            for port in 0..7000_u16 {
                let tuple =
                    FlowTuple::new((ip(client), Port::new(30_000 + port)), (ip(node), Port::new(8080)), 6);
                counts[place(flow_hash(&tuple), 7) as usize] += 1;
            }
            assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn clients_spread_evenly() {
        let mut counts = [0_u32; 7];
        for number in 0..7000_u32 {
            let mut client = ip("2001:db8::");
            client.0[4..8].copy_from_slice(&number.to_be_bytes());
            let tuple = FlowTuple::new((client, Port::new(30_000)), (ip("2001:db8::11"), Port::new(8080)), 6);
            counts[place(flow_hash(&tuple), 7) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_destination_counts() {
        let client = (ip("198.18.0.100"), Port::new(30_000));
        let hashes = ["198.18.0.11", "198.18.0.12", "198.18.0.13"]
            .map(|node| flow_hash(&FlowTuple::new(client, (ip(node), Port::new(8080)), 6)));
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
