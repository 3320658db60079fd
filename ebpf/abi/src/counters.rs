//! What the programs count. For every program: received = forwarded + passed + Σ drops.

use crate::flow::{ForwardKey, ReplyKey};
use crate::limits::{MAX_DROP_REASONS, MAX_PROGRAMS};

map_type! {
    /// One program's packet counts on one CPU.
    pub struct CounterRow: 256 bytes {
        pub received: u64,
        /// Sent on by the program itself.
        pub forwarded: u64,
        /// Left to the kernel's own stack (or to the program beneath).
        pub passed: u64,
        /// By [`DropReason`].
        pub drops: [u64; MAX_DROP_REASONS],
    }
}

map_type! {
    /// What one CPU has let into the tables of flows.
    pub struct GateRow: 96 bytes {
        /// The tick that `n_new` counts in.
        pub tick: u32,
        /// New rows of the flow cache.
        pub n_new: u32,
        /// Choices that the cache was not given, beyond [`crate::limits::MAX_NEW_CACHED_FLOWS`].
        pub n_unremembered: u64,
        /// Half-open flows that made room, beyond [`crate::limits::MAX_HALF_OPEN`].
        pub n_displaced: u64,
        /// Where the programs look at the flow whose turn it is: their stacks have no room.
        pub oldest: ForwardKey,
        pub oldest_reply: ReplyKey,
    }
}

/// Makes an enumeration with number, name and text of each value from one list.
macro_rules! numbered {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $( $value:ident = $number:literal, $label:literal, $text:literal; )+ }
    ) => {
        $(#[$meta])*
        #[repr(u8)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $( #[doc = $text] $value = $number, )+ }

        impl $name {
            /// All values, by number.
            pub const ALL: &'static [Self] = &[ $( Self::$value, )+ ];

            /// A Markdown table of all values.
            pub const TABLE: &'static str = concat!(
                "| number | name | meaning |\n|---|---|---|\n",
                $( "| ", stringify!($number), " | `", $label, "` | ", $text, " |\n", )+
            );

            /// Position in the counters.
            #[inline]
            pub const fn number(self) -> u32 {
                self as u32
            }

            /// The name shown to people and metrics.
            pub const fn label(self) -> &'static str {
                match self { $( Self::$value => $label, )+ }
            }

            /// One sentence.
            pub const fn text(self) -> &'static str {
                match self { $( Self::$value => $text, )+ }
            }
        }
    };
}

numbered! {
    /// Why a packet was dropped.
    pub enum DropReason {
        Malformed = 0, "malformed", "a header is truncated or contradicts itself";
        UnknownPeer = 1, "unknown-peer", "tunnelled by a host that is no node of the cluster";
        UnknownEndpoint = 2, "unknown-endpoint", "tunnelled to an endpoint that is not on this node";
        InnerSource = 3, "inner-source", "tunnelled by a node that does not have the source endpoint";
        UnpublishedPort = 4, "unpublished-port", "for a port that the task does not publish";
        FlowTableFull = 5, "flow-table-full", "no room for another flow to this node's backends";
        SourcePortsExhausted = 6, "source-ports-exhausted", "every source port tried belongs to another flow of the same client";
        Fragment = 7, "fragment", "a fragment of a packet that needs its ports";
        NoBackend = 8, "no-backend", "the service has no endpoint that is ready";
        Tunnel = 9, "tunnel", "the kernel refused to set or tell the tunnel's ends";
        Rewrite = 10, "rewrite", "the kernel refused to change the packet";
        NotIp = 11, "not-ip", "neither IPv4 nor ARP, nor IPv6 where the network has it";
        NeighbourUnanswered = 12, "neighbour-unanswered", "asks (by ARP or neighbour discovery) for an address that nobody has, or needs no answer";
        NoRoute = 13, "no-route", "the network has no endpoint with the destination address";
        SourceAddress = 14, "source-address", "sent by a task with an address or MAC that is not its own";
        UnknownAttachment = 15, "unknown-attachment", "came from an interface that belongs to no task";
        Unconfigured = 16, "unconfigured", "the node's own row is missing";
        UnknownOwner = 17, "unknown-owner", "no node owns the address that a reply must leave from";
        Group = 18, "group", "multicast and broadcast are not carried";
        VipProtocol = 19, "vip-protocol", "sent to a virtual address without ports that a backend could be chosen by; only ping is answered there";
        HostSource = 20, "host-source", "sent into the ingress network with a source address that is not this node's";
        UnknownFlow = 21, "unknown-flow", "an ICMP error about a connection that no backend knows";
        Untranslatable = 22, "untranslatable", "between an IPv6 client and a task that listens on IPv4 alone: can't be said in the other version, or no address was free to stand for the client";
        VipShareFull = 23, "vip-share-full", "the task has its share of the flows to virtual addresses that pass the socket hooks";
    }
}

numbered! {
    /// The programs, as they are called in the object and in the counters.
    pub enum ProgramId {
        MeshXdp = 0, "mesh_xdp", "XDP on an uplink: published ports into the tunnel";
        MeshUplink = 1, "mesh_uplink", "tc ingress of an uplink: published ports, liveness probes, what other nodes have tunnelled";
        MeshVxlan = 2, "mesh_vxlan", "tc ingress of the VXLAN device: the same for what the uplink leaves to the kernel";
        MeshVxlanOut = 3, "mesh_vxlan_out", "tc egress of the VXLAN device: from the node's processes to backends";
        MeshTask = 4, "mesh_task", "tc ingress of a task's host-side veth: ARP, replies, task to task";
        MeshConnect4 = 5, "mesh_connect4", "sockets of the node's processes and sandboxes that connect";
        MeshSendmsg4 = 6, "mesh_sendmsg4", "datagrams sent by sockets that are not connected";
        MeshRecvmsg4 = 7, "mesh_recvmsg4", "datagrams received: whom they seem to come from";
        MeshGetpeername4 = 8, "mesh_getpeername4", "sockets that ask for their peer";
        MeshConnect6 = 9, "mesh_connect6", "as `mesh_connect4`, for IPv6 sockets";
        MeshRecvmsg6 = 10, "mesh_recvmsg6", "as `mesh_recvmsg4`, for IPv6 sockets";
        MeshGetpeername6 = 11, "mesh_getpeername6", "as `mesh_getpeername4`, for IPv6 sockets";
        MeshSendmsg6 = 12, "mesh_sendmsg6", "as `mesh_sendmsg4`, for IPv6 sockets";
    }
}

/// [`ProgramId::MeshXdp`] for generic XDP; counts as that.
pub const GENERIC_XDP_PROGRAM: &str = "mesh_xdp_skb";

/// Passes everything: for the far end of a veth uplink under native XDP, and the base line of measurements. Counts nothing.
pub const PASS_PROGRAM: &str = "mesh_xdp_pass";

const _: () = assert!(DropReason::ALL.len() <= MAX_DROP_REASONS);
const _: () = assert!(ProgramId::ALL.len() <= MAX_PROGRAMS as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions() {
        for (position, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.number() as usize, position);
        }
        for (position, program) in ProgramId::ALL.iter().enumerate() {
            assert_eq!(program.number() as usize, position);
        }
    }

    #[test]
    fn the_table_has_a_row_for_each() {
        assert_eq!(DropReason::TABLE.lines().count(), DropReason::ALL.len() + 2);
    }
}
