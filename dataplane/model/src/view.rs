//! [`NodeView`]: all that one node's data plane has to know, as plain ordered tables. A view is whole: the next one
//! replaces it, nothing depends on the one before.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use crate::Table;

/// A VXLAN network identifier, 24 bits (RFC 7348 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vni(u32);

impl Vni {
    /// `None` if the number has more than 24 bits.
    pub const fn new(number: u32) -> Option<Self> {
        if number < 1 << 24 { Some(Self(number)) } else { None }
    }

    pub const fn get(self) -> u32 {
        self.0
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of the endpoint with this IPv4 address: `02:42` and the four bytes, as Docker does it.
    pub const fn of_endpoint(ip: Ipv4Addr) -> Self {
        let [a, b, c, d] = ip.octets();
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&text.join(":"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How new the control plane's state is that a view was made of: fencing epoch first, then log index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation {
    pub epoch: u64,
    pub index: u64,
}

/// A sandbox's name: the 25 digits of its task's id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SandboxId(pub String);

/// A network's name in keys: the 128 bits of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetworkKey(pub u128);

/// A service's name in keys: the 128 bits of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey(pub u128);

/// All that one node's data plane has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Raised by the agent with every view; an older view is refused.
    pub revision: u64,
    /// Of the assignments that the view was made of; acknowledged to the managers when applied.
    pub generation: Generation,
    /// This node's tunnel end.
    pub vtep: IpAddr,
    /// UDP port of the tunnels.
    pub vxlan_port: u16,
    /// The VNI of the routing mesh, once there is one.
    pub ingress: Option<NetworkKey>,
    pub networks: Table<NetworkKey, Network>,
    /// One per task of this node, from before its container starts until after it is removed.
    pub sandboxes: Table<SandboxId, Sandbox>,
    /// Endpoints of the networks above that live on other nodes, by (network, address).
    pub remote_endpoints: Table<(NetworkKey, Ipv4Addr), RemoteEndpoint>,
    pub services: Table<ServiceKey, Service>,
    /// All nodes of the cluster but this one, by tunnel end.
    pub peers: Table<IpAddr, Peer>,
}

/// An overlay network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub name: String,
    pub vni: Vni,
    pub subnet: Ipv4Network,
    pub gateway: Ipv4Addr,
    /// The prefix of the IPv6 addresses, in which each endpoint has the host number that it has in `subnet`; its host
    /// part is at least as long.
    pub subnet6: Option<Ipv6Network>,
    /// No way out, and no forwarding of names.
    pub internal: bool,
    /// Asked-for MTU of the endpoints, bytes; `None` follows the underlay.
    pub mtu_bytes: Option<u32>,
}

impl Network {
    /// The IPv6 address of the endpoint that has `address` in `subnet`: the prefix of `subnet6` and the same host number.
    /// `None` in a network without IPv6.
    pub fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.subnet6.map(|subnet6| address6_of(self.subnet, subnet6, address))
    }
}

/// The address in `subnet6` with the host number that `address` has in `subnet`.
pub fn address6_of(subnet: Ipv4Network, subnet6: Ipv6Network, address: Ipv4Addr) -> Ipv6Addr {
    let host = address.to_bits() & !subnet.mask().to_bits();
    (subnet6.network().to_bits() | u128::from(host)).into()
}

/// The IPv4 address of the endpoint that [`Network::address6`] gives `address6` in a network with these subnets. `None`
/// for an address that none of its endpoints can have.
pub fn endpoint_of(subnet: Ipv4Network, subnet6: Ipv6Network, address6: Ipv6Addr) -> Option<Ipv4Addr> {
    let host = u32::try_from(address6.to_bits() ^ subnet6.network().to_bits()).ok()?;
    let is_host = host & subnet.mask().to_bits() == 0;
    is_host.then(|| (subnet.network().to_bits() | host).into())
}

/// The network namespace of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// `<service>.<slot>.<task id>`.
    pub task_name: String,
    /// Host name of the container.
    pub hostname: String,
    /// At most one per network, the ingress network included.
    pub attachments: Vec<Attachment>,
    /// Masqueraded way out. False if the task is in internal networks only.
    pub egress: bool,
    /// Ports of `mode=host`: (protocol, published, target).
    pub host_ports: Vec<PublishedPort>,
    /// Written to the container's `resolv.conf` by the runtime; here for what DNS must forward to.
    pub dns_servers: Vec<IpAddr>,
    /// Options of `resolv.conf(5)` that the user asked for; here because an `ndots` of one or more keeps names of one
    /// label from being forwarded.
    pub dns_options: Vec<String>,
}

/// A task's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub network: NetworkKey,
    pub address: Ipv4Addr,
    /// Names for this endpoint in this network besides the service's.
    pub aliases: Vec<String>,
}

/// A transport protocol number (IANA): 6 TCP, 17 UDP, 132 SCTP.
pub type ProtocolNumber = u8;

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    pub protocol: ProtocolNumber,
    pub published: u16,
    pub target: u16,
}

/// A port that a service declares.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServicePort {
    /// The user's name for it; may be empty.
    pub name: String,
    pub protocol: ProtocolNumber,
    pub target: u16,
}

/// An endpoint on another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteEndpoint {
    /// The other node's tunnel end.
    pub vtep: IpAddr,
    /// Task name, for DNS.
    pub task_name: String,
    pub aliases: Vec<String>,
}

/// A service: names, virtual addresses, published ports, backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    /// By network; absent for `dnsrr`.
    pub vips: BTreeMap<NetworkKey, Ipv4Addr>,
    /// Further names of the service, by network: a row for each network that it is in, also where it has none.
    pub aliases: BTreeMap<NetworkKey, Vec<String>>,
    /// Ports published through the routing mesh.
    pub ingress_ports: Vec<PublishedPort>,
    /// Direct server return: answers from these ports leave from the task's own node where that can send them, not by the
    /// node that the client asked.
    pub dsr: bool,
    /// All ports that the service declares, however they are published: what SRV records tell.
    pub ports: Vec<ServicePort>,
    /// Every endpoint of the service's tasks, this node's included, by (network, address).
    pub backends: BTreeMap<(NetworkKey, Ipv4Addr), Backend>,
}

/// A task of a service, seen from one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub task_name: String,
    /// Its node's tunnel end (may be this node's own).
    pub vtep: IpAddr,
    /// New flows may be sent to it. A backend that is not ready keeps the flows that it has.
    pub ready: bool,
    /// What it gets of its share of new flows beside others that take all of theirs, percent: a task that starts slowly has
    /// less than [`FULL_WEIGHT`].
    pub weight: u8,
}

/// Of a backend that takes its whole share.
pub const FULL_WEIGHT: u8 = 100;

/// Another node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub hostname: String,
    /// All addresses that it owns now; no two peers have one.
    pub addresses: Vec<IpAddr>,
    /// Of its underlay, bytes; `None` if it has not said so.
    pub mtu_bytes: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(subnet: &str, subnet6: Option<&str>) -> Network {
        Network {
            name: "both".into(),
            vni: Vni::new(4096).unwrap(),
            subnet: subnet.parse().unwrap(),
            gateway: [10, 0, 9, 1].into(),
            subnet6: subnet6.map(|subnet6| subnet6.parse().unwrap()),
            internal: false,
            mtu_bytes: None,
        }
    }

    #[test]
    fn an_endpoint_has_the_same_host_number_in_both_families() {
        let both = |subnet: &str, subnet6: &str, address: &str| {
            network(subnet, Some(subnet6)).address6(address.parse().unwrap()).unwrap().to_string()
        };
        assert_eq!(both("10.0.9.0/24", "fd00:9::/64", "10.0.9.5"), "fd00:9::5");
        assert_eq!(both("10.0.9.0/24", "fd00:9::/120", "10.0.9.255"), "fd00:9::ff");
        assert_eq!(both("10.0.9.64/26", "fd00:9::40/122", "10.0.9.69"), "fd00:9::45");
        assert_eq!(both("10.1.0.0/16", "fd00:9::/64", "10.1.2.3"), "fd00:9::203");
        assert_eq!(both("10.0.0.0/8", "fd00:9::/64", "10.1.2.3"), "fd00:9::1:203");
        assert_eq!(network("10.0.9.0/24", None).address6([10, 0, 9, 5].into()), None);
    }

    #[test]
    fn the_ipv6_address_names_the_endpoint() {
        let network = network("10.0.9.64/26", Some("fd00:9::/64"));
        let (subnet, subnet6) = (network.subnet, network.subnet6.unwrap());
        let endpoint = |address6: &str| endpoint_of(subnet, subnet6, address6.parse().unwrap());
        for host in 64..128 {
            let address = Ipv4Addr::new(10, 0, 9, host);
            assert_eq!(endpoint_of(subnet, subnet6, network.address6(address).unwrap()), Some(address));
        }
        assert_eq!(endpoint("fd00:9::40"), None, "a host number of seven bits");
        assert_eq!(endpoint("fd00:9::1:0:5"), None, "beyond 32 bits");
        assert_eq!(endpoint("fd00:8::5"), None, "another prefix");
    }
}
