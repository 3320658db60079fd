//! One name, two families: an endpoint's IPv6 address is its network's IPv6 prefix with the host number of its IPv4
//! address, so that nothing more has to be given out or looked up (ADR 0007).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::id::ClusterId;
use crate::object::{Network, NetworkAttachment, NetworkState};

/// Prefix length of a cluster's own IPv6 addresses, and of one network among them (RFC 4193 section 3.1).
const CLUSTER_PREFIX: u8 = 48;
const NETWORK_PREFIX: u8 = 64;

/// The cluster's own prefix for networks that were given none. The 40 bits that shall be random (RFC 4193 section
/// 3.2.2) are of the cluster's id, which is.
pub fn cluster_prefix(cluster: ClusterId) -> Ipv6Network {
    const UNIQUE_LOCAL: u128 = 0xfd << 120;
    let global_id = cluster.bits() & ((1 << 40) - 1);
    network(UNIQUE_LOCAL | global_id << 80, CLUSTER_PREFIX)
}

/// The part of the cluster's own prefix that is the network's with this VNI: its subnet id is the VNI's last 16 bits.
pub fn own_subnet6(cluster: ClusterId, vni: u32) -> Ipv6Network {
    let prefix = cluster_prefix(cluster).network().to_bits();
    network(prefix | u128::from(vni & 0xffff) << 64, NETWORK_PREFIX)
}

fn network(bits: u128, prefix: u8) -> Ipv6Network {
    Ipv6Network::new(bits.into(), prefix).expect("at most 128 bits")
}

/// The longest prefix of an IPv6 subnet in which each host number of an IPv4 subnet fits.
pub const fn longest_prefix6(subnet: u8) -> u8 {
    96 + subnet
}

/// An IPv4 subnet's first host address: its gateway, unless the user names another. Of /31 and /32 the first address
/// (RFC 3021).
pub fn first_host(subnet: Ipv4Network) -> Ipv4Addr {
    let first = subnet.network();
    if subnet.prefix() >= 31 { first } else { Ipv4Addr::from_bits(first.to_bits() + 1) }
}

/// The IPv6 address of the endpoint that has `address` in `subnet`.
pub fn address6(subnet: Ipv4Network, subnet6: Ipv6Network, address: Ipv4Addr) -> Ipv6Addr {
    let host = address.to_bits() & !subnet.mask().to_bits();
    (subnet6.network().to_bits() | u128::from(host)).into()
}

impl NetworkState {
    /// The IPv4 subnet and its gateway; `None` for what has none yet.
    pub fn subnet(&self) -> Option<(Ipv4Network, Ipv4Addr)> {
        self.ipam.iter().find_map(|ipam| match (ipam.subnet, ipam.gateway) {
            (IpNetwork::V4(subnet), Some(IpAddr::V4(gateway))) => Some((subnet, gateway)),
            _ => None,
        })
    }

    /// The IPv6 subnet, if the network has one.
    pub fn subnet6(&self) -> Option<Ipv6Network> {
        self.ipam.iter().find_map(|ipam| match ipam.subnet {
            IpNetwork::V6(subnet6) => Some(subnet6),
            IpNetwork::V4(_) => None,
        })
    }

    /// The IPv6 address, with its prefix length, of the endpoint that has this IPv4 address.
    pub fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Network> {
        let ((subnet, _), subnet6) = self.subnet().zip(self.subnet6())?;
        Ipv6Network::new(address6(subnet, subnet6, address), subnet6.prefix()).ok()
    }
}

impl Network {
    /// The IPv6 address of an endpoint, in networks that were made with IPv6: those whose users know of it.
    pub fn address6(&self, attachment: &NetworkAttachment) -> Option<Ipv6Network> {
        let IpAddr::V4(address) = attachment.address.ip() else { return None };
        self.state.as_ref().filter(|_| self.spec.ipv6)?.address6(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_its_own_prefix_and_each_network_a_part_of_it() {
        let cluster = ClusterId::from_bits(0xffff_0000_0012_3456_789a);
        assert_eq!(cluster_prefix(cluster).to_string(), "fd12:3456:789a::/48");
        assert_eq!(own_subnet6(cluster, 4096).to_string(), "fd12:3456:789a:1000::/64");
        assert_eq!(own_subnet6(cluster, 0x1_2345).to_string(), "fd12:3456:789a:2345::/64");
    }

    #[test]
    fn the_host_number_is_the_same_in_both_families() {
        for (subnet, subnet6, address, expected) in [
            ("10.0.9.0/24", "fd00:9::/64", "10.0.9.5", "fd00:9::5"),
            ("10.0.9.64/26", "fd00:9::/122", "10.0.9.69", "fd00:9::5"),
            ("10.1.0.0/16", "2001:db8:0:7::/64", "10.1.2.3", "2001:db8:0:7::203"),
        ] {
            let subnet6 = subnet6.parse().expect("a subnet");
            let found = address6(subnet.parse().expect("a subnet"), subnet6, address.parse().expect("one"));
            assert_eq!(found.to_string(), expected);
        }
        assert_eq!(longest_prefix6(24), 120);
    }
}
