//! Packet parsing, hashing and the headers that the data plane builds. The BPF programs and the host tests run this same
//! code.
//!
//! Nothing here knows a map or a helper: bytes in, values out. Multi-byte fields stay in network order as the newtypes of
//! [`ebpf_abi::wire`].
#![no_std]
#![forbid(unsafe_code)]

pub mod arp;
pub mod bytes;
pub mod checksum;
pub mod ethernet;
pub mod flow;
pub mod hash;
pub mod icmp;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod sctp;
pub mod translate;
pub mod vxlan;

pub use bytes::{Bytes, Truncated};
pub use ethernet::Ethernet;
pub use flow::{Flow, NoFlow};
pub use ip::{IpHeader, Version};
