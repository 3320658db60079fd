//! Flows, written by the programs. User space only collects the dead ones.
//!
//! Clients, and the addresses that they connect to, are of either family. A backend has one name, its IPv4 address in the
//! routing mesh's network, whichever of its addresses the packets have.

use crate::wire::{Ip, Ip4, Port};

map_type! {
    /// A packet's addresses as the client sent it.
    pub struct FlowTuple: 40 bytes {
        pub source: Ip,
        pub destination: Ip,
        pub source_port: Port,
        pub destination_port: Port,
        pub protocol: u8,
        pad: u8,
        pad_word: u16,
    }
}

map_type! {
    /// Who serves a client's flow, as the node remembers it that the flow enters by.
    pub struct CachedBackend: 8 bytes {
        pub backend: Ip4,
        /// [`RingKey::tag`](crate::RingKey::tag) of the ring that chose the backend; 0 where the backend's node told of the flow: it
        /// is a connection then, which needs no ring.
        pub ring: u32,
    }
}

map_type! {
    /// A packet that comes in fragments, as it arrives (RFC 791 section 2.3, RFC 8200 section 4.5). IPv4's id is in the last
    /// two bytes.
    pub struct FragmentKey: 40 bytes {
        pub source: Ip,
        pub destination: Ip,
        pub id: [u8; 4],
        pub protocol: u8,
        /// The network that the addresses are of, big endian; zero for the underlay's.
        pub vni: [u8; 3],
    }
}

map_type! {
    /// The ports of its first fragment.
    pub struct FragmentPorts: 8 bytes {
        pub source: Port,
        pub destination: Port,
        /// Tick of the first fragment.
        pub seen: u32,
    }
}

map_type! {
    /// A client's flow to a backend of this node, as it arrives.
    pub struct ForwardKey: 44 bytes {
        pub client: Ip,
        /// The node address that the client connected to.
        pub service: Ip,
        pub endpoint: Ip4,
        pub client_port: Port,
        /// The published port.
        pub service_port: Port,
        pub protocol: u8,
        pad: u8,
        pad_word: u16,
    }
}

map_type! {
    /// How a client's packets are rewritten.
    pub struct ForwardFlow: 12 bytes {
        /// Tick of the last packet.
        pub last_seen: u32,
        pub target_port: Port,
        /// The source port that the task sees: the client's own, unless another flow has it.
        pub client_port: Port,
        /// [`FLOW_ESTABLISHED`] or 0.
        pub state: u8,
        /// As in the reply row.
        pub way: u8,
        /// [`FLOW_AS_IPV4`] or 0.
        pub family: u8,
        pad: u8,
    }
}

map_type! {
    /// The same flow as the task's answers carry it.
    pub struct ReplyKey: 28 bytes {
        pub endpoint: Ip4,
        pub client: Ip,
        pub target_port: Port,
        /// As the task sees it.
        pub client_port: Port,
        pub protocol: u8,
        pad: u8,
        pad_word: u16,
    }
}

map_type! {
    /// How the task's answers are rewritten back.
    pub struct ReplyFlow: 28 bytes {
        /// Tick of the last packet.
        pub last_seen: u32,
        /// The node address that the client connected to. The answer goes to the node that owns it now.
        pub service: Ip,
        pub service_port: Port,
        /// The client's own source port.
        pub client_port: Port,
        /// `FLOW_FIN_*` and [`FLOW_RESET`], of both directions.
        pub closing: u8,
        /// [`FLOW_ANSWERED`] or 0.
        pub answered: u8,
        /// [`FLOW_STRAYED`] and [`FLOW_DSR`].
        pub way: u8,
        pad: u8,
    }
}

map_type! {
    /// A flow of a task of this node to a virtual address, whose packets have passed the socket hooks: as these packets are, or
    /// as the answers to them are that come from the backend.
    pub struct VipFlowKey: 20 bytes {
        pub vni: u32,
        /// The task's name.
        pub client: Ip4,
        /// The virtual address; of answers the backend's name.
        pub service: Ip4,
        pub client_port: Port,
        pub service_port: Port,
        pub protocol: u8,
        /// `VIP_FLOW_*`.
        pub kind: u8,
        pad: u16,
    }
}

map_type! {
    /// What is known of one direction of such a flow.
    pub struct VipFlow: 12 bytes {
        /// Tick of the last packet.
        pub last_seen: u32,
        /// What `service` is replaced by: the backend's name, of answers the virtual address.
        pub becomes: Ip4,
        /// `FLOW_FIN_*` and [`FLOW_RESET`], of this direction.
        pub closing: u8,
        /// [`VIP_FLOW_WENT_ON`] or 0.
        pub state: u8,
        pad: u16,
    }
}

/// The direction of the answers.
pub const VIP_FLOW_ANSWERS: u8 = 1;
/// The packets are IPv6: one name has two addresses.
pub const VIP_FLOW_V6: u8 = 2;

/// More than a first SYN, a RST, or (towards the backend) the first packet at all came this way.
pub const VIP_FLOW_WENT_ON: u8 = 1;

/// The client went on after the task had answered: any other flow is forgotten much sooner.
pub const FLOW_ESTABLISHED: u8 = 1;

/// The client comes by IPv6, and the task gets its packets by IPv4, from an address that stands for it, see
/// [`crate::stand_in`]. The other rows and keys have the client's own.
pub const FLOW_AS_IPV4: u8 = 4;

/// The task has sent something other than a RST.
pub const FLOW_ANSWERED: u8 = 1;

/// The client's last packet came by a detour: the node that it enters by doesn't know its backend. Answers tell that node
/// whose they are.
pub const FLOW_STRAYED: u8 = 1;

/// Direct server return: answers leave from the task's own node where that can send them. Those of a flow that strayed go to
/// the node that they have to tell.
pub const FLOW_DSR: u8 = 2;

/// A FIN of the client was seen.
pub const FLOW_FIN_CLIENT: u8 = 1;
/// A FIN of the task was seen.
pub const FLOW_FIN_TASK: u8 = 2;
/// A RST was seen.
pub const FLOW_RESET: u8 = 4;

impl CachedBackend {
    pub const NONE: Self = Self { backend: Ip4::UNSPECIFIED, ring: 0 };
}

impl FlowTuple {
    #[inline]
    pub fn new(source: (impl Into<Ip>, Port), destination: (impl Into<Ip>, Port), protocol: u8) -> Self {
        Self {
            source: source.0.into(),
            destination: destination.0.into(),
            source_port: source.1,
            destination_port: destination.1,
            protocol,
            pad: 0,
            pad_word: 0,
        }
    }
}

impl FlowTuple {
    /// Of the packets that answer.
    #[inline]
    #[must_use]
    pub fn reversed(&self) -> Self {
        let (source, destination) =
            ((self.source, self.source_port), (self.destination, self.destination_port));
        Self::new(destination, source, self.protocol)
    }
}

impl FragmentKey {
    #[inline]
    pub const fn new(source: Ip, destination: Ip, id: [u8; 4], protocol: u8) -> Self {
        Self { source, destination, id, protocol, vni: [0; 3] }
    }

    /// The same packet between endpoints of a network.
    #[inline]
    #[must_use]
    pub const fn of_network(mut self, vni: u32) -> Self {
        let [_, a, b, c] = vni.to_be_bytes();
        self.vni = [a, b, c];
        self
    }
}

impl VipFlowKey {
    /// `kind` is [`VIP_FLOW_V6`] or 0.
    #[inline]
    pub const fn new(vni: u32, client: (Ip4, Port), vip: (Ip4, Port), protocol: u8, kind: u8) -> Self {
        Self {
            vni,
            client: client.0,
            service: vip.0,
            client_port: client.1,
            service_port: vip.1,
            protocol,
            kind,
            pad: 0,
        }
    }

    /// The key of the answers of a flow with this key, which its backend gives.
    #[inline]
    #[must_use]
    pub const fn answers(mut self, backend: Ip4) -> Self {
        self.service = backend;
        self.kind |= VIP_FLOW_ANSWERS;
        self
    }

    /// The key of the flow that is answered, of a key of answers.
    #[must_use]
    pub const fn asked(mut self, vip: Ip4) -> Self {
        self.service = vip;
        self.kind &= !VIP_FLOW_ANSWERS;
        self
    }

    pub const fn is_of_answers(&self) -> bool {
        self.kind & VIP_FLOW_ANSWERS != 0
    }
}

impl VipFlow {
    #[inline]
    pub const fn new(becomes: Ip4, last_seen: u32) -> Self {
        Self { last_seen, becomes, closing: 0, state: 0, pad: 0 }
    }
}

impl ForwardKey {
    /// `tuple` is as the client sent it.
    #[inline]
    pub const fn new(tuple: &FlowTuple, endpoint: Ip4) -> Self {
        Self {
            client: tuple.source,
            service: tuple.destination,
            endpoint,
            client_port: tuple.source_port,
            service_port: tuple.destination_port,
            protocol: tuple.protocol,
            pad: 0,
            pad_word: 0,
        }
    }
}

impl ForwardFlow {
    #[inline]
    pub const fn new(target_port: Port, client_port: Port, last_seen: u32) -> Self {
        Self { last_seen, target_port, client_port, state: 0, way: 0, family: 0, pad: 0 }
    }
}

impl ReplyKey {
    #[inline]
    pub fn new(endpoint: (Ip4, Port), client: (impl Into<Ip>, Port), protocol: u8) -> Self {
        Self {
            endpoint: endpoint.0,
            client: client.0.into(),
            target_port: endpoint.1,
            client_port: client.1,
            protocol,
            pad: 0,
            pad_word: 0,
        }
    }

    /// The other direction's key.
    #[inline]
    pub const fn forward_key(&self, flow: &ReplyFlow) -> ForwardKey {
        ForwardKey {
            client: self.client,
            service: flow.service,
            endpoint: self.endpoint,
            client_port: flow.client_port,
            service_port: flow.service_port,
            protocol: self.protocol,
            pad: 0,
            pad_word: 0,
        }
    }
}

impl ReplyFlow {
    #[inline]
    pub fn new(service: (impl Into<Ip>, Port), client_port: Port, last_seen: u32) -> Self {
        Self {
            last_seen,
            service: service.0.into(),
            service_port: service.1,
            client_port,
            closing: 0,
            answered: 0,
            way: 0,
            pad: 0,
        }
    }
}

impl ReplyFlow {
    /// Both sides have said goodbye, or one has cut the connection (RFC 9293 section 3.6).
    #[inline]
    pub const fn is_closed(&self) -> bool {
        is_closed(self.closing)
    }

    /// Both rows belong to the same flow of the same client.
    #[inline]
    pub fn is_same_flow(&self, other: &Self) -> bool {
        self.service == other.service
            && self.service_port == other.service_port
            && self.client_port == other.client_port
    }
}

/// What both directions have seen ends the flow.
#[inline]
pub const fn is_closed(closing: u8) -> bool {
    const BOTH_FINS: u8 = FLOW_FIN_CLIENT | FLOW_FIN_TASK;
    closing & FLOW_RESET != 0 || closing & BOTH_FINS == BOTH_FINS
}
