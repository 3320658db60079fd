//! Names of maps, programs and pins.
//!
//! Pins: `<pin dir>/v<ABI_VERSION>/maps/<map>` and `<pin dir>/v<ABI_VERSION>/links/<program>-<where>`, see
//! [`LINKS_DIR`]; the maps of flows in `<pin dir>/flows<FLOW_LAYOUT>`. The BPF file system allows no dots.

/// Directory of the pinned maps inside the versioned directory.
pub const MAPS_DIR: &str = "maps";
/// Directory of the pinned links inside the versioned directory: `<program>-<interface index>-<kind>` with kind `tcx`,
/// `clsact` (there the pin is the program's: a filter has no link), `native` or `generic` (XDP), and `<program>-cgroup`.
pub const LINKS_DIR: &str = "links";

/// Begins the name of the directory of the maps of flows; [`crate::FLOW_LAYOUT`] ends it.
pub const FLOWS_DIR: &str = "flows";

/// Names of the maps, in the object and as pins.
pub mod map {
    /// Array\[1\] of [`crate::NodeConfig`].
    pub const CONFIG: &str = "config";
    /// Array\[1\] of `u32`: seconds counted by user space. The programs never ask the clock.
    pub const TICK: &str = "tick";
    /// [`crate::FrontendKey`] → [`crate::Frontend`].
    pub const FRONTENDS: &str = "frontends";
    /// [`crate::RingKey`] → inner array, see [`crate::ring`].
    pub const RINGS: &str = "rings";
    /// VNI `u32` → [`crate::Prefix6`], for networks that have IPv6.
    pub const PREFIXES6: &str = "prefixes6";
    /// [`crate::EndpointKey`] → [`crate::Endpoint`].
    pub const ENDPOINTS: &str = "endpoints";
    /// [`crate::TargetPortKey`] → [`crate::TargetPort`].
    pub const TARGET_PORTS: &str = "target_ports";
    /// Tunnel end [`crate::Ip`] → [`crate::Peer`].
    pub const PEERS: &str = "peers";
    /// Node address [`crate::Ip`] → tunnel end [`crate::Ip`] of its owner; unspecified for this node.
    pub const ADDRESS_OWNERS: &str = "address_owners";
    /// Interface index `u32` of the host end of a veth pair → [`crate::Attachment`].
    pub const ATTACHMENTS: &str = "attachments";
    /// [`crate::VipKey`] → [`crate::RingKey`].
    pub const VIPS: &str = "vips";
    /// netns cookie `u64` → [`crate::SandboxNetworks`].
    pub const SANDBOXES: &str = "sandboxes";
    /// LRU: [`crate::FlowTuple`] → [`crate::CachedBackend`].
    pub const FLOW_CACHE: &str = "flow_cache";
    /// LRU: tunnel end [`crate::Ip`] → [`crate::NextHop`].
    pub const NEXT_HOPS: &str = "next_hops";
    /// LRU: [`crate::FragmentKey`] → [`crate::FragmentPorts`].
    pub const FRAGMENTS: &str = "fragments";
    /// [`crate::ForwardKey`] → [`crate::ForwardFlow`].
    pub const FLOWS: &str = "flows";
    /// [`crate::ReplyKey`] → [`crate::ReplyFlow`].
    pub const REPLIES: &str = "replies";
    /// Queue of [`crate::ForwardKey`]: flows in the order in which they began, as far as they may be half-open.
    pub const HALF_OPEN: &str = "half_open";
    /// IPv4 address [`crate::Ip4`] → [`crate::StandIn`].
    pub const STAND_INS: &str = "stand_ins";
    /// [`crate::VipFlowKey`] → [`crate::VipFlow`].
    pub const VIP_FLOWS: &str = "vip_flows";
    /// Array\[1\] of `u32`: tick of the last packet that made or kept a row there; 0 while there is none, and no packet has to
    /// be looked for among answers.
    pub const VIPS_ASKED: &str = "vips_asked";
    /// Task's attachment [`crate::EndpointKey`] → `u32`: how many rows its flows have there. Counted up by the programs, and counted
    /// anew by user space with each sweep.
    pub const VIP_SHARES: &str = "vip_shares";
    /// LRU: [`crate::SocketNatKey`] → [`crate::OriginalDestination`].
    pub const SOCKET_NAT: &str = "socket_nat";
    /// Per-CPU array, [`crate::ProgramId`] → [`crate::CounterRow`].
    pub const COUNTERS: &str = "counters";
    /// Per-CPU array\[1\] of [`crate::GateRow`].
    pub const GATE: &str = "gate";

    /// Array\[1\] of [`crate::Sampling`].
    pub const SAMPLING: &str = "sampling";
    /// Ring buffer of [`crate::FlowEvent`].
    pub const EVENTS: &str = "events";
    /// Per-CPU array\[1\] of [`crate::TellingRow`].
    pub const TELLING: &str = "telling";

    /// What outlives a change of the ABI, as long as [`crate::FLOW_LAYOUT`] stays: flows, and the clock that they are dated by.
    pub const OF_FLOWS: [&str; 10] = [
        TICK, FLOW_CACHE, FLOWS, REPLIES, HALF_OPEN, STAND_INS, VIP_FLOWS, VIPS_ASKED, VIP_SHARES, SOCKET_NAT,
    ];

    /// All of them: what is pinned.
    pub const ALL: [&str; 28] = [
        CONFIG,
        TICK,
        FRONTENDS,
        RINGS,
        PREFIXES6,
        ENDPOINTS,
        TARGET_PORTS,
        PEERS,
        ADDRESS_OWNERS,
        ATTACHMENTS,
        VIPS,
        SANDBOXES,
        NEXT_HOPS,
        FLOW_CACHE,
        FRAGMENTS,
        FLOWS,
        REPLIES,
        HALF_OPEN,
        STAND_INS,
        VIP_FLOWS,
        VIPS_ASKED,
        VIP_SHARES,
        SOCKET_NAT,
        COUNTERS,
        GATE,
        SAMPLING,
        EVENTS,
        TELLING,
    ];
}
