//! The only crate that touches the kernel's network: netlink, nftables, BPF programs and maps.

pub mod net;
