//! The tables as plain ordered maps: what the model reads and writes in place of the kernel's.

use std::collections::{BTreeMap, VecDeque};

use ebpf_abi::ring::EARLIER_RINGS;
use ebpf_abi::{
    Attachment, CachedBackend, Endpoint, EndpointKey, FlowTuple, ForwardFlow, ForwardKey, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Ip, Ip4, NextHop, NodeConfig, OriginalDestination, Peer, Prefix6,
    ReplyFlow, ReplyKey, RingKey, SandboxNetworks, SocketNatKey, StandIn, TargetPort, TargetPortKey, VipFlow,
    VipFlowKey, VipKey,
};

use crate::kernel::{FLOW_ROWS, INCREMENT, MULTIPLIER};
use crate::network::Family;
use crate::packet::Change;

/// All tables of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    pub wanted: Wanted,
    pub written: Written,
    /// The last random number.
    pub random: u32,
}

/// What user space writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub config: NodeConfig,
    pub tick: u32,
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// The ring in use first, then the earlier ones.
    pub rings: BTreeMap<RingKey, Vec<Vec<Ip4>>>,
    pub endpoints: BTreeMap<EndpointKey, Endpoint>,
    pub target_ports: BTreeMap<TargetPortKey, TargetPort>,
    pub peers: BTreeMap<Ip, Peer>,
    pub address_owners: BTreeMap<Ip, Ip>,
    /// By VNI, of networks that have IPv6.
    pub prefixes6: BTreeMap<u32, Prefix6>,
    pub attachments: BTreeMap<u32, Attachment>,
    pub vips: BTreeMap<VipKey, RingKey>,
    pub sandboxes: BTreeMap<u64, SandboxNetworks>,
}

/// What the programs write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    pub next_hops: BTreeMap<Ip, NextHop>,
    pub flow_cache: BTreeMap<FlowTuple, CachedBackend>,
    pub fragments: BTreeMap<FragmentKey, FragmentPorts>,
    pub flows: BTreeMap<ForwardKey, ForwardFlow>,
    pub replies: BTreeMap<ReplyKey, ReplyFlow>,
    pub stand_ins: BTreeMap<Ip4, StandIn>,
    pub socket_nat: BTreeMap<SocketNatKey, OriginalDestination>,
    pub vip_flows: BTreeMap<VipFlowKey, VipFlow>,
    /// When a row of theirs was last made or kept; 0 while there is none.
    pub vips_asked: u32,
    /// How many rows there a task has, as it was counted.
    pub vip_shares: BTreeMap<EndpointKey, u32>,
    /// Flows in the order in which they began, the oldest first.
    pub half_open: VecDeque<ForwardKey>,
    pub gate: Gate,
}

/// How many flows the cache has been given in this second, and what was held back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gate {
    pub tick: u32,
    pub n_new: u32,
    pub n_unremembered: u64,
    pub n_displaced: u64,
}

impl Tables {
    pub fn new(wanted: Wanted, random: u32) -> Self {
        Self { wanted, written: Written::default(), random }
    }

    pub fn next_random(&mut self) -> u32 {
        let next = self.random.wrapping_mul(MULTIPLIER.cast_unsigned());
        self.random = next.wrapping_add(INCREMENT.cast_unsigned());
        self.random
    }

    pub fn apply(&mut self, change: &Change) {
        let (wanted, written) = (&mut self.wanted, &mut self.written);
        match change {
            Change::Config(config) => wanted.config = *config,
            Change::Tick(tick) => wanted.tick = *tick,
            Change::Ring(key, places) => wanted.swap_ring(*key, places),
            Change::Endpoint(key, row) => set(&mut wanted.endpoints, *key, *row),
            Change::TargetPort(key, row) => set(&mut wanted.target_ports, *key, *row),
            Change::AddressOwner(address, owner) => set(&mut wanted.address_owners, *address, *owner),
            Change::Frontend(key, row) => set(&mut wanted.frontends, *key, Some(*row)),
            Change::Prefix6(vni, row) => set(&mut wanted.prefixes6, *vni, *row),
            Change::EmptyCaches => {
                written.next_hops.clear();
                written.flow_cache.clear();
                written.fragments.clear();
            }
            Change::ForgetFlow(forward, reply) => {
                forward.as_ref().and_then(|key| written.flows.remove(key));
                reply.as_ref().and_then(|key| written.replies.remove(key));
            }
            Change::EmptyFlows => {
                written.flows.clear();
                written.replies.clear();
                written.vip_flows.clear();
                written.vips_asked = 0;
            }
            Change::VipShare(task, n_rows) => {
                written.vip_shares.insert(*task, *n_rows);
            }
            Change::ForgetVipFlow(key) => {
                written.vip_flows.remove(key);
            }
        }
    }

    /// The endpoint with this address in the ingress network.
    pub fn backend(&self, address: Ip4) -> Option<Endpoint> {
        self.wanted.endpoints.get(&EndpointKey { vni: self.wanted.config.ingress_vni, address }).copied()
    }

    /// Who has an address in a network: an endpoint's name is its IPv4 address, and its IPv6 address the network's prefix with
    /// the same host number.
    pub fn name(&self, vni: u32, address: Ip) -> Option<Ip4> {
        if address.is_v4() {
            return Some(address.low());
        }
        let row = self.wanted.prefixes6.get(&vni)?;
        let host = u128::from_be_bytes(address.0).checked_sub(u128::from_be_bytes(row.prefix.0))?;
        let host = u32::try_from(host).ok().filter(|host| *host <= row.host_mask)?;
        Some(Ip4::from_u32(row.subnet.to_u32() + host))
    }

    /// The other way round; `None` if the network has no such family.
    pub fn address(&self, vni: u32, name: Ip4, family: Family) -> Option<Ip> {
        match family {
            Family::V4 => Some(name.into()),
            Family::V6 => self.wanted.prefixes6.get(&vni).map(|row| address6(row, name)),
        }
    }

    pub fn is_own(&self, address: Ip) -> bool {
        self.wanted.address_owners.get(&address) == Some(&Ip::UNSPECIFIED)
    }

    /// Nothing is forwarded before user space has said who this node is.
    pub fn config(&self) -> Option<NodeConfig> {
        Some(self.wanted.config).filter(|config| config.vtep != Ip::UNSPECIFIED)
    }
}

/// The IPv6 address of who has this name.
pub fn address6(network: &Prefix6, name: Ip4) -> Ip {
    let host = name.to_u32() % (network.host_mask + 1);
    Ip((u128::from_be_bytes(network.prefix.0) + u128::from(host)).to_be_bytes())
}

impl Wanted {
    /// The ring in use becomes the latest of its earlier ones, each of which is there once; one without backends chose
    /// nothing, and is forgotten.
    pub fn swap_ring(&mut self, key: RingKey, places: &[Ip4]) {
        let history = self.rings.entry(key).or_default();
        if history.first().is_some_and(|in_use| in_use == places) {
            return;
        }
        history.retain(|ring| !ring.is_empty() && ring != places);
        history.insert(0, places.to_vec());
        history.truncate(usize::from(EARLIER_RINGS) + 1);
    }

    /// Who has a hash's place in the ring that was in use `age` changes ago (Lemire's multiplication).
    pub fn place(&self, ring: &RingKey, age: usize, hash: u32) -> Option<Ip4> {
        let places = self.rings.get(ring)?.get(age)?;
        let index = (u64::from(hash) * places.len() as u64) >> 32;
        places.get(usize::try_from(index).unwrap()).copied()
    }
}

impl Written {
    pub fn flows_are_full(&self) -> bool {
        self.flows.len() >= FLOW_ROWS as usize
    }

    pub fn replies_are_full(&self) -> bool {
        self.replies.len() >= FLOW_ROWS as usize
    }
}

fn set<K: Ord, V>(rows: &mut BTreeMap<K, V>, key: K, row: Option<V>) {
    match row {
        Some(row) => rows.insert(key, row),
        None => rows.remove(&key),
    };
}
