//! Ways to other nodes, written by the programs.

use crate::wire::{Ip, MacAddr};

map_type! {
    /// What the kernel's routes and neighbours said of the way to another node.
    pub struct NextHop: 44 bytes {
        /// The tick in which they were asked; the answer holds until the next.
        pub seen: u32,
        /// Not 0: the next packet that comes by tc asks again.
        pub to_renew: u32,
        /// The interface that leads there; 0 if the kernel's own tunnel device has to send.
        pub ifindex: u32,
        /// The router on the way, or the node itself.
        pub gateway: Ip,
        /// Longest packet of the way and of the node at its end, bytes; 0 if the kernel has told of no way.
        pub mtu: u32,
        /// The interface's MAC.
        pub source: MacAddr,
        /// The router's, or the node's.
        pub destination: MacAddr,
    }
}

/// A packet is the one that asks the kernel again, although the tick has not moved, if a CPU has had so many since the last
/// one: while nobody counts the seconds, a way that has changed is found all the same. XDP, which doesn't ask, hands it to tc.
pub const PACKETS_PER_LOOK: u64 = 1024;
