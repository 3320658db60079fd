//! The contract between the BPF programs and user space: map keys and values, names, limits, drop reasons.
//!
//! Everything here is plain data with a layout that is fixed by `repr(C)` and asserted at compile time. A change of any
//! layout or meaning raises [`ABI_VERSION`]: maps of two versions never share a pin. The maps of flows have a version of
//! their own, [`FLOW_LAYOUT`]: connections go on over a change of all the rest.
//!
//! Addresses of clients and of nodes are of either family ([`Ip`]); endpoints are named by their IPv4 address ([`Ip4`]), and
//! have an IPv6 address beside it by [`table::Prefix6`].
#![no_std]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]

#[macro_use]
mod layout;

pub mod counters;
pub mod flow;
pub mod limits;
pub mod names;
pub mod next_hop;
pub mod ring;
pub mod sample;
pub mod socket;
pub mod stand_in;
pub mod table;
pub mod wire;

pub use counters::{CounterRow, DropReason, GateRow, ProgramId};
pub use flow::{
    CachedBackend, FlowTuple, ForwardFlow, ForwardKey, FragmentKey, FragmentPorts, ReplyFlow, ReplyKey,
    VipFlow, VipFlowKey,
};
pub use next_hop::NextHop;
pub use ring::{Chooser, RingBlock, RingKey};
pub use sample::{FlowEvent, Sampling, TellingRow};
pub use socket::{OriginalDestination, SandboxNetworks, SocketNatKey};
pub use stand_in::StandIn;
pub use table::{
    Attachment, Endpoint, EndpointKey, Frontend, FrontendKey, NodeConfig, Peer, Prefix6, TargetPort,
    TargetPortKey, VipKey,
};
pub use wire::{Ip, Ip4, MacAddr, Port};

/// Version of this contract; part of the pins' path.
pub const ABI_VERSION: u32 = 10;

/// Version of layout and meaning of the maps in [`names::map::OF_FLOWS`]; part of their pins' path. Changing it ends the
/// connections that a node's backends have with clients outside.
pub const FLOW_LAYOUT: u32 = 3;

/// Transport protocol numbers (IANA) that the programs know.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMP6: u8 = 58;
    pub const SCTP: u8 = 132;
}
