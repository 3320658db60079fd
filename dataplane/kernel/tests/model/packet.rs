//! What is given to the model and to the programs alike.

use std::fmt;
use std::net::Ipv6Addr;

use ebpf_abi::{
    Endpoint, EndpointKey, ForwardKey, Frontend, FrontendKey, Ip, Ip4, MacAddr, NodeConfig, Port, Prefix6,
    ProgramId, ReplyKey, RingKey, TargetPort, TargetPortKey, VipFlowKey,
};

/// The interfaces that packets name, in a namespace of the test's own.
pub const UPLINK: u32 = 10;
/// What the kernel takes to be for this machine when it comes by the uplink.
pub const UPLINK_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 11]);
pub const TUNNEL: u32 = 11;
/// Host ends of tasks: in the ingress network, in overlays, their ways out; the last belongs to no task.
pub const INGRESS_ENDS: [u32; 3] = [12, 13, 14];
pub const OVERLAY_ENDS: [u32; 2] = [15, 16];
pub const WAYS_OUT: [u32; 2] = [17, 18];
pub const STRAY_END: u32 = 19;
/// What `bpf_xdp_adjust_head` runs see as theirs: loopback.
pub const XDP_UPLINK: u32 = 1;

/// A frame and where a program meets it.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    pub program: ProgramId,
    pub bytes: Vec<u8>,
    /// The interface that the program hangs on.
    pub ifindex: u32,
    /// The interface that the packet entered the host by; 0 for a process of the host.
    pub ingress_ifindex: u32,
    /// VNI and far end of the tunnel that it came through.
    pub tunnel: Option<(u32, Ip)>,
    /// The kernel has put several segments together.
    pub is_aggregate: bool,
    /// What the kernel answers if it is asked for the way to another node.
    pub next_hop: NextHop,
    pub listens: Listens,
}

/// What a task's sockets listen to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Listens {
    pub v6: bool,
    pub v4: bool,
}

/// What the kernel's routes and neighbours say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NextHop {
    /// 0: found; 7: its MAC is not known yet; else there is no way.
    pub result: u32,
    pub ifindex: u32,
    pub gateway: Ip,
    pub mtu: u16,
    pub source: MacAddr,
    pub destination: MacAddr,
}

/// A socket that connects, sends, receives or asks for its peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketCall {
    pub program: ProgramId,
    pub netns_cookie: u64,
    pub socket_cookie: u64,
    pub protocol: u8,
    pub address: SocketAddress,
    pub port: Port,
}

impl SocketCall {
    /// It names an IPv6 address, not IPv4's in another form.
    pub fn is_of_v6_alone(&self) -> bool {
        matches!(self.address, SocketAddress::V6(address) if address.to_ipv4_mapped().is_none())
    }
}

/// As the hooks of IPv4 and of IPv6 see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketAddress {
    V4(Ip4),
    V6(Ipv6Addr),
}

impl SocketAddress {
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::V4(address) => address.0.to_vec(),
            Self::V6(address) => address.octets().to_vec(),
        }
    }
}

/// What user space does in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Config(NodeConfig),
    Tick(u32),
    Ring(RingKey, Vec<Ip4>),
    Endpoint(EndpointKey, Option<Endpoint>),
    TargetPort(TargetPortKey, Option<TargetPort>),
    AddressOwner(Ip, Option<Ip>),
    /// The port is another service's now.
    Frontend(FrontendKey, Frontend),
    /// The IPv6 side of the network with this VNI.
    Prefix6(u32, Option<Prefix6>),
    EmptyCaches,
    ForgetFlow(Option<ForwardKey>, Option<ReplyKey>),
    ForgetVipFlow(VipFlowKey),
    /// A sweep has counted the rows of a task.
    VipShare(EndpointKey, u32),
    EmptyFlows,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Packet(Packet),
    Socket(SocketCall),
    Change(Change),
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} from {}", self.program.label(), self.ifindex, self.ingress_ifindex)?;
        if let Some((vni, remote)) = self.tunnel {
            write!(f, ", VNI {vni} from {remote}")?;
        }
        if self.is_aggregate {
            write!(f, ", aggregate")?;
        }
        write!(f, ", {:?}, {:?}", self.next_hop, self.listens)?;
        write!(f, "\n  {}", hex(&self.bytes))
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}
