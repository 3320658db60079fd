//! Tables that user space writes and the programs read.

use crate::flow::FLOW_DSR;
use crate::ring::RingKey;
use crate::wire::{Ip, Ip4, MacAddr, Port};

map_type! {
    /// This node. All zero until user space has written it: the programs then pass everything.
    pub struct NodeConfig: 48 bytes {
        /// `SO_NETNS_COOKIE` of the node's namespace: which sockets are the node's own.
        pub netns_cookie: u64,
        /// This node's tunnel end: all tunnels have its family.
        pub vtep: Ip,
        pub vxlan_ifindex: u32,
        /// The VNI of the routing mesh; 0 while there is none.
        pub ingress_vni: u32,
        /// The interface that holds the tunnel end's address: replies to clients leave here.
        pub uplink_ifindex: u32,
        /// Its MTU, bytes: what XDP may send in one piece.
        pub uplink_mtu: u32,
        /// `CONFIG_*`.
        pub flags: u32,
        /// UDP port of the tunnels.
        pub vxlan_port: Port,
        /// Zero.
        pub reserved: [u8; 2],
    }
}

/// XDP sends by `XDP_REDIRECT` to the interface on which the packet came, not by `XDP_TX`: for veth uplinks whose peer
/// has GRO on and no XDP program.
pub const CONFIG_XDP_REDIRECT: u32 = 1;

map_type! {
    /// Where clients connect: an address of this node (or 127.0.0.1, for its own processes only) and a published port.
    pub struct FrontendKey: 20 bytes {
        pub address: Ip,
        pub port: Port,
        pub protocol: u8,
        pad: u8,
    }
}

map_type! {
    /// What serves a frontend.
    pub struct Frontend: 24 bytes {
        /// Its VNI is that of the routing mesh.
        pub ring: RingKey,
        /// The port that the backends listen on; for host processes, which are translated at the socket.
        pub target: Port,
        pad: [u8; 6],
    }
}

map_type! {
    /// The IPv6 side of a network: an endpoint, gateway or virtual address has one name there, its IPv4 address, and its IPv6
    /// address is the prefix with the same host number.
    pub struct Prefix6: 24 bytes {
        /// All bits behind the prefix are zero.
        pub prefix: Ip,
        /// The IPv4 subnet's address.
        pub subnet: Ip4,
        /// The bits of the IPv4 host number, as in [`Ip4::to_u32`].
        pub host_mask: u32,
    }
}

impl Prefix6 {
    /// The IPv6 address of the endpoint with this name.
    #[inline]
    pub const fn address(&self, name: Ip4) -> Ip {
        let [a, b, c, d] = self.prefix.to_be_words();
        Ip::from_be_words([a, b, c, d | (name.to_u32() & self.host_mask).to_be()])
    }

    /// Who has this IPv6 address; `None` if it is none of the network.
    #[inline]
    pub const fn name(&self, address: Ip) -> Option<Ip4> {
        let (prefix, whole) = (self.prefix.to_be_words(), address.to_be_words());
        let number = address.low().to_u32() ^ self.prefix.low().to_u32();
        let is_of_network = prefix[0] == whole[0] && prefix[1] == whole[1] && prefix[2] == whole[2];
        if !is_of_network || number & !self.host_mask != 0 {
            return None;
        }
        Some(Ip4::from_u32(self.subnet.to_u32() | number))
    }
}

map_type! {
    /// An endpoint's name: addresses of different networks may be equal.
    pub struct EndpointKey: 8 bytes {
        pub vni: u32,
        pub address: Ip4,
    }
}

map_type! {
    /// An endpoint, on this node or another.
    pub struct Endpoint: 32 bytes {
        /// Tunnel end of its node; unspecified if it is this node's own.
        pub vtep: Ip,
        /// Host end of its veth pair if it is this node's own, else 0.
        pub ifindex: u32,
        /// `ENDPOINT_*`.
        pub flags: u32,
        pub mac: MacAddr,
        pad: [u8; 2],
    }
}

/// A ring of the endpoint's network holds it: it may get new flows. Without this it keeps the connections that it has, and
/// datagrams, whose flows have no end that could be waited for, go elsewhere at once.
pub const ENDPOINT_SERVES: u32 = 1;

map_type! {
    /// A published port of one of this node's own endpoints in the ingress network.
    pub struct TargetPortKey: 8 bytes {
        pub endpoint: Ip4,
        pub published: Port,
        pub protocol: u8,
        pad: u8,
    }
}

map_type! {
    /// The port that the task listens on.
    pub struct TargetPort: 4 bytes {
        pub target: Port,
        /// How answers go: [`crate::flow::FLOW_DSR`] or 0.
        pub way: u8,
        pad: u8,
    }
}

map_type! {
    /// Another node. Tunnelled packets from anyone else are dropped.
    pub struct Peer: 4 bytes {
        /// MTU of its underlay, bytes; 0 if it has not said so: then this node's own.
        pub mtu: u32,
    }
}

map_type! {
    /// A task's place in a network, by the host end of its veth pair.
    pub struct Attachment: 28 bytes {
        pub vni: u32,
        pub address: Ip4,
        pub gateway: Ip4,
        /// MTU of the task's end, bytes.
        pub mtu: u32,
        pub mac: MacAddr,
        /// `ATTACHMENT_*`.
        pub flags: u8,
        /// Length of the subnet's prefix, bits.
        pub prefix: u8,
        /// The id of the sandbox's namespace in the node's (`RTM_GETNSID`), plus one; 0 if that isn't known.
        pub sandbox: u32,
    }
}

/// The attachment is in the ingress network: look for published-port replies, and let the task answer host processes of
/// any node.
pub const ATTACHMENT_INGRESS: u8 = 1;

/// The way out of a task, its leg at the gateway bridge: the VNI is [`crate::limits::BRIDGE_VNI`], MAC, gateway and MTU are the
/// way out's own, and `address` is the one that the task has in the ingress network, or of its own here if it isn't there.
/// Datagrams that answer clients of published ports are taken, as a server that answers from an unbound socket lets its
/// routing table choose the interface and the source address. All else passes if it is from the address that the MAC names.
pub const ATTACHMENT_WAY_OUT: u8 = 2;

map_type! {
    /// A service's virtual address in a network.
    pub struct VipKey: 8 bytes {
        pub vni: u32,
        pub address: Ip4,
    }
}

impl FrontendKey {
    #[inline]
    pub fn new(address: impl Into<Ip>, port: Port, protocol: u8) -> Self {
        Self { address: address.into(), port, protocol, pad: 0 }
    }
}

impl Frontend {
    pub const fn new(ring: RingKey, target: Port) -> Self {
        Self { ring, target, pad: [0; 6] }
    }
}

impl Endpoint {
    /// An endpoint of this node, which serves nothing yet.
    pub const fn local(mac: MacAddr, ifindex: u32) -> Self {
        Self { vtep: Ip::UNSPECIFIED, ifindex, flags: 0, mac, pad: [0; 2] }
    }

    /// An endpoint of the node with this tunnel end, which serves nothing yet.
    pub const fn remote(mac: MacAddr, vtep: Ip) -> Self {
        Self { vtep, ifindex: 0, flags: 0, mac, pad: [0; 2] }
    }

    /// The same endpoint, which may get new flows or may not.
    #[must_use]
    pub const fn serving(mut self, serves: bool) -> Self {
        self.flags = if serves { ENDPOINT_SERVES } else { 0 };
        self
    }

    #[inline]
    pub const fn serves(&self) -> bool {
        self.flags & ENDPOINT_SERVES != 0
    }

    #[inline]
    pub const fn is_local(&self) -> bool {
        self.ifindex != 0
    }
}

impl TargetPortKey {
    #[inline]
    pub const fn new(endpoint: Ip4, published: Port, protocol: u8) -> Self {
        Self { endpoint, published, protocol, pad: 0 }
    }
}

impl TargetPort {
    #[inline]
    pub const fn new(target: Port) -> Self {
        Self { target, way: 0, pad: 0 }
    }

    /// The same port, whose answers go straight to the clients or don't.
    #[inline]
    #[must_use]
    pub const fn with_dsr(mut self, is_direct: bool) -> Self {
        self.way = if is_direct { FLOW_DSR } else { 0 };
        self
    }
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn one_name_two_addresses() {
        let subnet = Ip4::from(Ipv4Addr::new(10, 0, 9, 0));
        for (prefix, address) in [("fd00:9::", "fd00:9::7"), ("fd00:9::1:ff00", "fd00:9::1:ff07")] {
            let network = Prefix6 { prefix: ip(prefix), subnet, host_mask: 0xff };
            let name = Ip4::from(Ipv4Addr::new(10, 0, 9, 7));
            assert_eq!(network.address(name), ip(address));
            assert_eq!(network.name(ip(address)), Some(name));
        }
        let network = Prefix6 { prefix: ip("fd00:9::"), subnet, host_mask: 0xff };
        for foreign in ["fd00:8::7", "fd00:9::107", "fd00:9::1:0:7", "10.0.9.7", "fd00:9:0:1::7"] {
            assert_eq!(network.name(ip(foreign)), None, "{foreign}");
        }
    }
}
