//! The rows of [`KernelState`](super::KernelState)'s tables, each with its text.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::{Ipv4Network, Ipv6Network};

use crate::view::{Mac, ProtocolNumber, SandboxId, ServiceKey, Vni, address6_of};

/// The name of a network interface, at most 15 bytes (`IFNAMSIZ` less the terminator).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(String);

impl LinkName {
    /// The VXLAN device of all networks.
    pub const VXLAN: &str = "mesh-vx";
    /// The bridge of the way out. Docker's name for it, which `docker network ls` shows.
    pub const GATEWAY_BRIDGE: &str = "docker_gwbridge";
    /// What the host ends of our veth pairs begin with.
    pub const HOST_END_PREFIX: &str = "mv";
    const MAX_BYTES: usize = 15;

    /// `None` if the kernel would refuse the name.
    pub fn new(name: &str) -> Option<Self> {
        let fits = !name.is_empty() && name.len() <= Self::MAX_BYTES;
        let clean =
            !name.contains(['/', ':']) && !name.contains(char::is_whitespace) && name != "." && name != "..";
        (fits && clean).then(|| Self(name.to_owned()))
    }

    pub fn vxlan() -> Self {
        Self(Self::VXLAN.to_owned())
    }

    pub fn gateway_bridge() -> Self {
        Self(Self::GATEWAY_BRIDGE.to_owned())
    }

    /// Host end of a sandbox's attachment to the network with `vni`.
    pub fn of_attachment(sandbox: &SandboxId, vni: Vni) -> Self {
        Self::of_text(&format!("{}/{}", sandbox.0, vni.get()))
    }

    /// Host end of a sandbox's way out.
    pub fn of_gateway_leg(sandbox: &SandboxId) -> Self {
        Self::of_text(&format!("{}/gateway", sandbox.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// May be the host end of a sandbox's link.
    pub fn is_host_end(&self) -> bool {
        let digits = self.0.strip_prefix(Self::HOST_END_PREFIX);
        digits
            .is_some_and(|digits| digits.len() == 11 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
    }

    /// `mv` and 44 bits of the text's hash: fixed, so that the link is found again after a restart. With a thousand
    /// links the chance that two share a name is below 1 in 30 million.
    fn of_text(text: &str) -> Self {
        Self(format!("{}{:011x}", Self::HOST_END_PREFIX, stable_hash(text) >> 20))
    }
}

/// FNV-1a with a last multiplication, so that texts which differ in their last byte differ in all bits: no cryptography,
/// the same on every machine and in every version.
fn stable_hash(text: &str) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let hash = text.bytes().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    (hash ^ (hash >> 32)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

/// The value of a row that has only a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Present;

/// What is known of another node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerRow {
    /// MTU of its underlay, bytes; `None` if it has not said so.
    pub mtu_bytes: Option<u32>,
}

/// The key of a table with one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Singleton;

/// An interface of ours in the node's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// The `collect_md` VXLAN device: no VNI, no peers, no learning; BPF names both per packet.
    /// `over_ipv6`: it takes UDP over IPv6 without checksums (RFC 6935), as tunnels have it.
    Vxlan { port: u16, mtu_bytes: u32, over_ipv6: bool },
    /// A bridge with an address of its own in each family that it has.
    Bridge { address: Ipv4Network, address6: Option<Ipv6Network>, mtu_bytes: u32 },
    /// A host end of ours that leads into no sandbox. Seen, never wanted.
    Stray,
}

/// How the node itself reaches a network: for processes of the host that talk to tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRoute {
    pub device: LinkName,
    /// Of the network's family.
    pub source: IpAddr,
}

/// What the nftables table is made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PacketFilter {
    /// The gateway bridge and the addresses behind it: masqueraded when they leave by another interface.
    pub bridge: LinkName,
    pub subnet: Ipv4Network,
    /// The same of IPv6, where each address has the host number that it has in `subnet`. `None`: no IPv6 passes the bridge.
    pub subnet6: Option<Ipv6Network>,
    /// UDP port of the tunnels, whose packets are not tracked: each flow in a tunnel has an outer source port of its own.
    pub tunnel_port: u16,
    /// The source of what tasks send by their way out to published ports of this very node: the answers of backends,
    /// wherever they are, come back to it. `None` for a node without an IPv4 address.
    pub node: Option<Ipv4Addr>,
    /// Interfaces that forward IPv4 to the bridge alone, because the host has forwarding off.
    pub guarded: BTreeSet<LinkName>,
    /// The same of IPv6.
    pub guarded6: BTreeSet<LinkName>,
    /// Addresses behind the bridge that may answer but not begin: tasks of internal networks with host ports.
    pub no_egress: BTreeSet<Ipv4Addr>,
    /// Ports of `mode=host`: (protocol, published) → (address behind the bridge, target port).
    pub host_ports: BTreeMap<(ProtocolNumber, u16), (Ipv4Addr, u16)>,
    /// What tasks reach by their way out of endpoints of the routing mesh: (protocol, target port) of what is published.
    /// Shared, as it is compared often and seldom another.
    pub targets: Arc<BTreeSet<(ProtocolNumber, u16)>>,
}

impl PacketFilter {
    /// The IPv6 address of who has `address` behind the bridge.
    pub fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.subnet6.map(|subnet6| address6_of(self.subnet, subnet6, address))
    }

    /// What a table that someone else changed reads as. Differs from every filter that is planned: no bridge has this name.
    pub fn spoiled() -> Self {
        Self {
            bridge: LinkName("spoiled".to_owned()),
            subnet: Ipv4Network::from(Ipv4Addr::UNSPECIFIED),
            subnet6: None,
            tunnel_port: 0,
            node: None,
            guarded: BTreeSet::new(),
            guarded6: BTreeSet::new(),
            no_egress: BTreeSet::new(),
            host_ports: BTreeMap::new(),
            targets: Arc::default(),
        }
    }
}

/// What the BPF programs know of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub vtep: IpAddr,
    pub vxlan_port: u16,
    pub vxlan_device: LinkName,
    /// The interface that holds the tunnel end's address.
    pub uplink: LinkName,
    /// The routing mesh's network.
    pub ingress: Option<Vni>,
    pub underlay_mtu_bytes: u32,
}

impl Settings {
    pub(super) fn mentions(&self, link: &LinkName) -> bool {
        self.vxlan_device == *link || self.uplink == *link
    }
}

/// A network namespace and its links, in the order `eth0`, `eth1`, …
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxNet {
    pub legs: Vec<Leg>,
}

/// A veth pair from a sandbox to the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// Name inside the sandbox.
    pub name: LinkName,
    /// The other end, in the node's namespace.
    pub host: LinkName,
    /// Bridge that the other end is a port of; overlay legs have none, BPF forwards for them.
    pub bridge: Option<LinkName>,
    pub address: Ipv4Network,
    pub mac: Mac,
    pub mtu_bytes: u32,
    pub gateway: Ipv4Addr,
    /// Routing table of packets that are sent from this leg's address.
    pub table: u32,
    /// Also the way to everywhere else.
    pub default_route: bool,
    /// In a network that has IPv6 too.
    pub ipv6: Option<Leg6>,
}

/// The IPv6 side of a leg, in the same routing table. It has this one address: none of its own making, not even a
/// link-local one, and nothing that a router says is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg6 {
    pub address: Ipv6Network,
    pub gateway: Ipv6Addr,
    /// Also the way to everywhere else, if there is no other.
    pub default_route: bool,
}

/// An address's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    ThisNode,
    /// The node with this tunnel end.
    Node(IpAddr),
}

/// How the two addresses of an endpoint belong together: the same host number in both. `subnet6` is as long as leaves room
/// for that number and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dual {
    pub subnet: Ipv4Network,
    pub subnet6: Ipv6Network,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointKey {
    pub vni: Vni,
    pub address: Ipv4Addr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub mac: Mac,
    pub place: Place,
    /// A ring of its network holds it: it may get new flows.
    pub serves: bool,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Behind this host end of a veth pair.
    Local(LinkName),
    /// On the node with this tunnel end.
    Remote(IpAddr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    /// The task's address in the ingress network.
    pub endpoint: Ipv4Addr,
    pub protocol: ProtocolNumber,
    pub published: u16,
}

/// Where a task listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetPort {
    pub port: u16,
    /// Answers go straight to the clients.
    pub dsr: bool,
}

/// Networks of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vnis(pub BTreeSet<Vni>);

/// The low 64 bits of a service's id, which are as random as all of them: two services of one cluster share them with a
/// chance of n² in 2⁶⁵.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingKey {
    pub service: u64,
    pub vni: Vni,
}

impl RingKey {
    pub fn of(service: ServiceKey, vni: Vni) -> Self {
        Self { service: u64::try_from(service.0 & u128::from(u64::MAX)).expect("masked to 64 bits"), vni }
    }
}

/// A Maglev table: each place holds a backend's address. Shared, because a large one is a quarter of a megabyte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring(pub Arc<[Ipv4Addr]>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VipKey {
    pub vni: Vni,
    pub address: Ipv4Addr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendKey {
    pub address: IpAddr,
    pub protocol: ProtocolNumber,
    pub port: u16,
}

/// What serves a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontend {
    pub ring: RingKey,
    /// The port that the backends listen on.
    pub target: u16,
}

/// Who may send from the host end of a veth pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachmentRow {
    pub vni: Vni,
    pub address: Ipv4Network,
    pub mac: Mac,
    pub gateway: Ipv4Addr,
    pub mtu_bytes: u32,
    pub role: AttachmentRole,
}

/// What a veth pair is to published ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachmentRole {
    /// Nothing: an overlay network of the user's.
    Overlay,
    /// In the routing mesh's network: answers leave here.
    Ingress,
    /// The way out. Datagrams of a task of the routing mesh that answer from an unbound socket leave here: the row's address is
    /// the task's there, or the way out's own. What answers no client must be from the address that the MAC names.
    WayOut,
}

/// Where one program hangs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    pub program: Program,
    pub target: HookTarget,
}

/// A BPF program, by what it looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    Task,
    Vxlan,
    VxlanOut,
    Connect4,
    Sendmsg4,
    Recvmsg4,
    Getpeername4,
    Connect6,
    Sendmsg6,
    Recvmsg6,
    Getpeername6,
    Uplink,
    Xdp,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookTarget {
    Interface(LinkName),
    /// The root of the cgroup v2 hierarchy.
    CgroupRoot,
}

/// How a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookMode {
    /// A pinned tc link (kernel 6.6 and newer).
    Tcx,
    /// A filter of the clsact qdisc with our priority and handle.
    Clsact,
    XdpNative,
    XdpGeneric,
    Cgroup,
}

impl Program {
    /// Those that translate sockets, all of them on the root cgroup.
    pub const OF_SOCKETS: [Self; 8] = [
        Self::Connect4,
        Self::Sendmsg4,
        Self::Recvmsg4,
        Self::Getpeername4,
        Self::Connect6,
        Self::Sendmsg6,
        Self::Recvmsg6,
        Self::Getpeername6,
    ];

    /// Its name in the BPF object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Task => "mesh_task",
            Self::Vxlan => "mesh_vxlan",
            Self::VxlanOut => "mesh_vxlan_out",
            Self::Connect4 => "mesh_connect4",
            Self::Sendmsg4 => "mesh_sendmsg4",
            Self::Recvmsg4 => "mesh_recvmsg4",
            Self::Getpeername4 => "mesh_getpeername4",
            Self::Connect6 => "mesh_connect6",
            Self::Sendmsg6 => "mesh_sendmsg6",
            Self::Recvmsg6 => "mesh_recvmsg6",
            Self::Getpeername6 => "mesh_getpeername6",
            Self::Uplink => "mesh_uplink",
            Self::Xdp => "mesh_xdp",
        }
    }
}

mod text;
pub use text::protocol_name;
