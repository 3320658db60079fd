//! Sizes of tables and the fixed numbers of the data plane. Reaching a size is an error that names the table.

use crate::wire::MacAddr;

/// Destination MAC of packets tunnelled to a node itself rather than to one of its endpoints, and the MAC that answers
/// for gateways and virtual addresses in every network. The same on all nodes: the tunnel's outer address says which node.
pub const ROUTER_MAC: MacAddr = MacAddr(*b"\x02MESH\x00");

/// VNI of liveness probes: never a network's. The data path of a node echoes such datagrams (RFC 7348 leaves the choice
/// of VNIs to the operator; the allocator starts at 4096 and goes up).
pub const PROBE_VNI: u32 = 0x00ff_ffff;
/// In place of a VNI for what is behind the gateway bridge: never a network's either, and in no tunnel.
pub const BRIDGE_VNI: u32 = 0x00ff_fffe;

/// Published ports × own addresses (and localhost): 4,000 ports on 16 addresses.
pub const MAX_FRONTENDS: u32 = 65_536;
/// One per service and network.
pub const MAX_RINGS: u32 = 32_768;
/// Places of one ring (see [`crate::ring`]).
pub const MAX_RING_PLACES: u32 = 65_537;
/// Networks with IPv6 that this node takes part in.
pub const MAX_PREFIXES6: u32 = 8_192;
/// Endpoints of all networks that this node takes part in.
pub const MAX_ENDPOINTS: u32 = 131_072;
/// Published ports of this node's own endpoints.
pub const MAX_TARGET_PORTS: u32 = 65_536;
/// Nodes of the cluster.
pub const MAX_PEERS: u32 = 8_192;
/// Addresses of all nodes.
pub const MAX_ADDRESS_OWNERS: u32 = 32_768;
/// Task attachments of this node.
pub const MAX_ATTACHMENTS: u32 = 16_384;
/// One per service and network.
pub const MAX_VIPS: u32 = 32_768;
/// Sandboxes of this node.
pub const MAX_SANDBOXES: u32 = 8_192;
/// Networks that one sandbox's sockets are translated for; the verifier wants a fixed bound.
pub const MAX_SANDBOX_NETWORKS: usize = 16;
/// Flows remembered by an ingress node. A cache: the oldest make room.
pub const MAX_CACHED_FLOWS: u32 = 131_072;
/// New rows of that cache per CPU and second. A flood of connections that begin turns it over no faster: with two CPUs in 16 s,
/// with sixteen in 2 s. What is beyond is served all the same, by its ring, and found again if that changes.
pub const MAX_NEW_CACHED_FLOWS: u32 = 4_096;
/// Packets whose fragments are on their way. A cache: the oldest make room, and their last fragments are lost.
pub const MAX_FRAGMENTED_PACKETS: u32 = 16_384;
/// For how long the fragments of a packet may come, seconds: as long as Linux waits for them (RFC 791 section 3.2 lets the
/// receiver choose). Then the packet's id may be another packet's (RFC 8900 section 3.5).
pub const FRAGMENTS_SECS: u32 = 30;
/// Flows of this node's backends. State: a full table refuses new flows under
/// [`crate::DropReason::FlowTableFull`]. Closed flows stay for 10 to 15 s: this is room for 70,000 new connections a second.
pub const MAX_FLOWS: u32 = 1_048_576;
/// Flows among the youngest of this node's backends that may be half-open: a flow that isn't established when so many have
/// begun after it makes room. So flows that a client alone begins, with whatever address, fill a quarter of the table at
/// most. One that is live all the same begins anew with its next packet. At 30,000 new connections a second a handshake may
/// take 8 s.
pub const MAX_HALF_OPEN: u32 = MAX_FLOWS / 4;
/// Clients that come by IPv6 to tasks of this node that listen on IPv4 alone: all addresses of [`crate::stand_in`].
pub const MAX_STAND_INS: u32 = 1 << 18;
/// Rows of flows to virtual addresses that have passed the socket hooks, two of each flow. State: a full table refuses new flows
/// under [`crate::DropReason::FlowTableFull`]. As closed flows stay for 10 to 15 s, room for 8,000 new connections a second of
/// this node's tasks.
pub const MAX_VIP_FLOWS: u32 = 262_144;
/// Rows of those that the flows of one task in one network may have: so one task leaves room for the others, and seven more must
/// do the same as it before there is none. A full share refuses new flows under [`crate::DropReason::VipShareFull`]: it is
/// room for 1,000 new connections a second, and for 6,000 when it is nearly full and closed ones go sooner.
pub const MAX_VIP_ROWS_OF_TASK: u32 = MAX_VIP_FLOWS / 8;
/// Translated sockets that ask for their peer's name or receive datagrams.
pub const MAX_SOCKET_NATS: u32 = 65_536;
/// Source ports tried before a flow that collides with another is refused.
pub const SOURCE_PORT_TRIES: u32 = 16;
/// Bytes of the ring buffer of events: some 6,000, which is one read of user space that is late by a second at 6,000 events a
/// second. A power of two, as the kernel wants it. What finds no room is counted.
pub const EVENT_BUFFER_BYTES: u32 = 1 << 20;
/// Programs and drop reasons that the counters have room for.
pub const MAX_PROGRAMS: u32 = 16;
pub const MAX_DROP_REASONS: usize = 29;
