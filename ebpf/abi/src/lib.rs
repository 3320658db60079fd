//! The contract between the BPF programs and user space: map keys and values, names, limits, drop reasons.
//!
//! Everything here is plain data with a layout that is fixed by `repr(C)` and asserted at compile time. A change of any
//! layout or meaning raises [`ABI_VERSION`]: maps of two versions never share a pin.
//!
//! IPv4 only. IPv6 will be a new version with new keys.
#![no_std]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]

#[macro_use]
mod layout;

pub mod counters;
pub mod flow;
pub mod limits;
pub mod names;
pub mod ring;
pub mod socket;
pub mod table;
pub mod wire;

pub use counters::{CounterRow, DropReason, ProgramId};
pub use flow::{FlowTuple, ForwardFlow, ForwardKey, FragmentKey, FragmentPorts, ReplyFlow, ReplyKey};
pub use ring::{Chooser, RingBlock, RingKey};
pub use socket::{OriginalDestination, SandboxNetworks, SocketNatKey};
pub use table::{
    Attachment, Endpoint, EndpointKey, Frontend, FrontendKey, NodeConfig, Peer, TargetPort, TargetPortKey,
    VipKey,
};
pub use wire::{Ip4, MacAddr, Port};

/// Version of this contract; part of the pins' path.
pub const ABI_VERSION: u32 = 5;

/// Transport protocol numbers (IANA) that the programs know.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
}
