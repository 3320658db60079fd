//! All maps of one node, by what they hold. See [`ebpf_abi::names::map`].

use ebpf_abi::names::map;
use ebpf_abi::{
    Attachment, CachedBackend, Endpoint, EndpointKey, FlowTuple, ForwardFlow, ForwardKey, Frontend,
    FrontendKey, Ip, Ip4, NextHop, NodeConfig, OriginalDestination, Peer, Prefix6, ReplyFlow, ReplyKey,
    RingKey, SandboxNetworks, SocketNatKey, StandIn, TargetPort, TargetPortKey, VipFlow, VipFlowKey, VipKey,
};

use super::counters::{Counters, Gate};
use super::pins::PinDir;
use super::rings::Rings;
use super::table::{Single, Table, TableError};
use crate::seam::Pause;

/// The pinned maps.
pub struct Tables {
    pub config: Single<NodeConfig>,
    /// Seconds; to be counted up once a second.
    pub tick: Single<u32>,
    pub frontends: Table<FrontendKey, Frontend>,
    pub rings: Rings,
    pub endpoints: Table<EndpointKey, Endpoint>,
    pub target_ports: Table<TargetPortKey, TargetPort>,
    pub peers: Table<Ip, Peer>,
    pub address_owners: Table<Ip, Ip>,
    /// By VNI.
    pub prefixes6: Table<u32, Prefix6>,
    /// By interface index.
    pub attachments: Table<u32, Attachment>,
    pub vips: Table<VipKey, RingKey>,
    /// By netns cookie.
    pub sandboxes: Table<u64, SandboxNetworks>,
    /// By tunnel end.
    pub next_hops: Table<Ip, NextHop>,
    pub flow_cache: Table<FlowTuple, CachedBackend>,
    pub flows: Table<ForwardKey, ForwardFlow>,
    pub replies: Table<ReplyKey, ReplyFlow>,
    /// IPv4 addresses that stand for clients who come by IPv6.
    pub stand_ins: Table<Ip4, StandIn>,
    pub vip_flows: Table<VipFlowKey, VipFlow>,
    /// Tick of the last packet of those flows; 0 while there are none.
    pub vips_asked: Single<u32>,
    /// How many of their rows a task's flows have.
    pub vip_shares: Table<EndpointKey, u32>,
    pub socket_nat: Table<SocketNatKey, OriginalDestination>,
    pub counters: Counters,
    pub gate: Gate,
}

impl Tables {
    /// Opens what [`Bpf::open`](super::Bpf::open) has pinned. Enough to read a data plane whose daemon is gone.
    pub fn open(pins: &PinDir) -> Result<Self, TableError> {
        Ok(Self {
            config: Single::open(pins, map::CONFIG)?,
            tick: Single::open(pins, map::TICK)?,
            frontends: Table::open(pins, map::FRONTENDS)?,
            rings: Rings::open(pins)?,
            endpoints: Table::open(pins, map::ENDPOINTS)?,
            target_ports: Table::open(pins, map::TARGET_PORTS)?,
            peers: Table::open(pins, map::PEERS)?,
            address_owners: Table::open(pins, map::ADDRESS_OWNERS)?,
            prefixes6: Table::open(pins, map::PREFIXES6)?,
            attachments: Table::open(pins, map::ATTACHMENTS)?,
            vips: Table::open(pins, map::VIPS)?,
            sandboxes: Table::open(pins, map::SANDBOXES)?,
            next_hops: Table::open(pins, map::NEXT_HOPS)?,
            flow_cache: Table::open(pins, map::FLOW_CACHE)?,
            flows: Table::open(pins, map::FLOWS)?,
            replies: Table::open(pins, map::REPLIES)?,
            stand_ins: Table::open(pins, map::STAND_INS)?,
            vip_flows: Table::open(pins, map::VIP_FLOWS)?,
            vips_asked: Single::open(pins, map::VIPS_ASKED)?,
            vip_shares: Table::open(pins, map::VIP_SHARES)?,
            socket_nat: Table::open(pins, map::SOCKET_NAT)?,
            counters: Counters::open(pins)?,
            gate: Gate::open(pins)?,
        })
    }

    /// For sweeps beside other work: they ask `pause` for their turn after every few thousand rows.
    #[must_use]
    pub fn in_turns(self, pause: &Pause) -> Self {
        Self {
            flows: self.flows.in_turns(pause),
            replies: self.replies.in_turns(pause),
            stand_ins: self.stand_ins.in_turns(pause),
            vip_flows: self.vip_flows.in_turns(pause),
            socket_nat: self.socket_nat.in_turns(pause),
            ..self
        }
    }
}
