//! What the programs tell of single packets, when they are asked to.

use crate::wire::{Ip, Port};

/// Bytes of a frame that are told: the headers of a tunnel, and those of a TCP segment in it.
pub const N_HEAD_BYTES: usize = 128;

map_type! {
    /// Of which packets the programs tell. All zero: of none.
    pub struct Sampling: 24 bytes {
        /// Not zero: some packets are told of.
        pub is_on: u32,
        /// One of so many packets, by chance; 0 for none but marked ones.
        pub every: u32,
        /// `CLOCK_MONOTONIC` after which nothing is told any more, ns: who asked may have died.
        pub until_ns: u64,
        /// Every IPv4 packet with this source port is told of, also in a tunnel, if the port is not 0 …
        pub marked_port: Port,
        /// … and the protocol is this one.
        pub marked_protocol: u8,
        pub reserved: [u8; 5],
    }
}

map_type! {
    /// One CPU's part in it.
    pub struct TellingRow: 16 bytes {
        /// Events that found no room.
        pub n_lost: u64,
        /// The packet that the running program tells of; 0 for none. The programs' stacks have no room for it.
        pub packet: u32,
        /// Why that packet was dropped, if it was.
        pub reason: u32,
    }
}

/// [`FlowEvent::stage`]: as the program got the packet.
pub const STAGE_RECEIVED: u8 = 0;
/// Left to the kernel's stack, or the program beneath.
pub const STAGE_PASSED: u8 = 1;
/// Sent on.
pub const STAGE_FORWARDED: u8 = 2;
/// Dropped, for the reason told.
pub const STAGE_DROPPED: u8 = 3;

map_type! {
    /// A packet before or after a program.
    pub struct FlowEvent: 176 bytes {
        /// `CLOCK_MONOTONIC`, ns.
        pub at_ns: u64,
        /// By chance, not 0, and the same before and after.
        pub packet: u32,
        /// The interface that the program hangs on.
        pub ifindex: u32,
        /// Of the frame, bytes.
        pub len: u32,
        /// The sender of the tunnel that the packet came by; unspecified if it came by none.
        pub remote: Ip,
        /// Of that tunnel.
        pub vni: u32,
        /// [`crate::ProgramId`].
        pub program: u8,
        /// `STAGE_*`.
        pub stage: u8,
        /// [`crate::DropReason`] of one that is dropped.
        pub reason: u8,
        pub reserved: [u8; 5],
        /// The frame's first bytes, as many of them as there are of 128, 104, 92, 64, 54, 42 or 14; zero behind.
        pub head: [[u8; 32]; N_HEAD_BYTES / 32],
    }
}
