//! The tables. Names, keys, values and sizes are the contract's.

use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::{Array, HashMap, HashOfMaps, LruHashMap, PerCpuArray, Queue, RingBuf};
use aya_ebpf::macros::btf_map;
use ebpf_abi::limits::{
    EVENT_BUFFER_BYTES, MAX_ADDRESS_OWNERS, MAX_ATTACHMENTS, MAX_CACHED_FLOWS, MAX_ENDPOINTS, MAX_FLOWS,
    MAX_FRAGMENTED_PACKETS, MAX_FRONTENDS, MAX_HALF_OPEN, MAX_PEERS, MAX_PREFIXES6, MAX_PROGRAMS, MAX_RINGS,
    MAX_SANDBOXES, MAX_SOCKET_NATS, MAX_STAND_INS, MAX_TARGET_PORTS, MAX_VIP_FLOWS, MAX_VIPS,
};
use ebpf_abi::ring::{FIRST_PLACE, RingHeader, WORDS_PER_BLOCK};
use ebpf_abi::{
    Attachment, CachedBackend, CounterRow, DropReason, Endpoint, EndpointKey, FlowEvent, FlowTuple,
    ForwardFlow, ForwardKey, FragmentKey, FragmentPorts, Frontend, FrontendKey, GateRow, Ip, Ip4, NextHop,
    NodeConfig, OriginalDestination, Peer, Prefix6, ReplyFlow, ReplyKey, RingBlock, RingKey, Sampling,
    SandboxNetworks, SocketNatKey, StandIn, TargetPort, TargetPortKey, TellingRow, VipFlow, VipFlowKey,
    VipKey,
};
use ebpf_packet::Version;
use ebpf_packet::hash::place;

/// Tables whose size is a far bound take memory row by row.
const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

/// A ring and its earlier ones, see [`ebpf_abi::ring`]. Arrays of all sizes are swapped in for this one.
pub type Rings = Array<RingBlock, 1, { BPF_F_INNER_MAP as usize }>;

#[btf_map(name = "config")]
static CONFIG: Array<NodeConfig, 1> = Array::new();

#[btf_map(name = "tick")]
static TICK: Array<u32, 1> = Array::new();

#[btf_map(name = "frontends")]
pub static FRONTENDS: HashMap<FrontendKey, Frontend, { MAX_FRONTENDS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "rings")]
static RINGS: HashOfMaps<RingKey, Rings, { MAX_RINGS as usize }, SPARSE> = HashOfMaps::new();

#[btf_map(name = "prefixes6")]
static PREFIXES6: HashMap<u32, Prefix6, { MAX_PREFIXES6 as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "endpoints")]
static ENDPOINTS: HashMap<EndpointKey, Endpoint, { MAX_ENDPOINTS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "target_ports")]
pub static TARGET_PORTS: HashMap<TargetPortKey, TargetPort, { MAX_TARGET_PORTS as usize }, SPARSE> =
    HashMap::new();

#[btf_map(name = "peers")]
static PEERS: HashMap<Ip, Peer, { MAX_PEERS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "address_owners")]
static ADDRESS_OWNERS: HashMap<Ip, Ip, { MAX_ADDRESS_OWNERS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "attachments")]
static ATTACHMENTS: HashMap<u32, Attachment, { MAX_ATTACHMENTS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "vips")]
pub static VIPS: HashMap<VipKey, RingKey, { MAX_VIPS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "sandboxes")]
pub static SANDBOXES: HashMap<u64, SandboxNetworks, { MAX_SANDBOXES as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "next_hops")]
pub static NEXT_HOPS: LruHashMap<Ip, NextHop, { MAX_PEERS as usize }> = LruHashMap::new();

#[btf_map(name = "flow_cache")]
pub static FLOW_CACHE: LruHashMap<FlowTuple, CachedBackend, { MAX_CACHED_FLOWS as usize }> =
    LruHashMap::new();

#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { MAX_FRAGMENTED_PACKETS as usize }> =
    LruHashMap::new();

#[btf_map(name = "flows")]
pub static FLOWS: HashMap<ForwardKey, ForwardFlow, { MAX_FLOWS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "replies")]
pub static REPLIES: HashMap<ReplyKey, ReplyFlow, { MAX_FLOWS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "half_open")]
pub static HALF_OPEN: Queue<ForwardKey, { MAX_HALF_OPEN as usize }> = Queue::new();

#[btf_map(name = "stand_ins")]
pub static STAND_INS: HashMap<Ip4, StandIn, { MAX_STAND_INS as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "vip_flows")]
pub static VIP_FLOWS: HashMap<VipFlowKey, VipFlow, { MAX_VIP_FLOWS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "vip_shares")]
static VIP_SHARES: HashMap<EndpointKey, u32, { MAX_ATTACHMENTS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "vips_asked")]
pub static VIPS_ASKED: Array<u32, 1> = Array::new();

#[btf_map(name = "socket_nat")]
pub static SOCKET_NAT: LruHashMap<SocketNatKey, OriginalDestination, { MAX_SOCKET_NATS as usize }> =
    LruHashMap::new();

#[btf_map(name = "counters")]
pub static COUNTERS: PerCpuArray<CounterRow, { MAX_PROGRAMS as usize }> = PerCpuArray::new();

#[btf_map(name = "gate")]
pub static GATE: PerCpuArray<GateRow, 1> = PerCpuArray::new();

#[btf_map(name = "sampling")]
pub static SAMPLING: Array<Sampling, 1> = Array::new();

#[btf_map(name = "events")]
pub static EVENTS: RingBuf<FlowEvent, { EVENT_BUFFER_BYTES as usize }> = RingBuf::new();

#[btf_map(name = "telling")]
pub static TELLING: PerCpuArray<TellingRow, 1> = PerCpuArray::new();

/// This node's row; `None` while user space has not written it.
#[inline(always)]
pub fn config() -> Option<&'static NodeConfig> {
    CONFIG.get(0).filter(|config| !config.vtep.is_unspecified())
}

/// Seconds, as user space counts them.
#[inline(always)]
pub fn tick() -> u32 {
    TICK.get(0).copied().unwrap_or(0)
}

/// A copy: the row may be reused once another is written.
#[inline(always)]
pub fn endpoint(vni: u32, address: Ip4) -> Option<Endpoint> {
    // SAFETY: user space alone writes this table; a row replaced under us is read whole or stale, and both are in use.
    unsafe { ENDPOINTS.get(EndpointKey { vni, address }) }.copied()
}

/// Who has this address in a network: the name of an endpoint, gateway or virtual address. `None` for an IPv6 address that is
/// none of the network's.
#[inline(always)]
pub fn name(vni: u32, address: Ip) -> Option<Ip4> {
    if address.is_v4() { Some(address.low()) } else { prefix6(vni)?.name(address) }
}

/// The address of that version that a name in a network has; `None` if the network has no IPv6.
#[inline(always)]
pub fn address(vni: u32, name: Ip4, version: Version) -> Option<Ip> {
    match version {
        Version::V4 => Some(Ip::v4(name)),
        Version::V6 => Some(prefix6(vni)?.address(name)),
    }
}

#[inline(always)]
pub fn prefix6(vni: u32) -> Option<&'static Prefix6> {
    // SAFETY: as in `endpoint`.
    unsafe { PREFIXES6.get(vni) }
}

#[inline(always)]
pub fn is_peer(vtep: Ip) -> bool {
    PEERS.get_ptr(vtep).is_some()
}

/// The MTU that another node has said its underlay has, bytes; 0 if it hasn't.
#[inline(always)]
pub fn peer_mtu(vtep: &Ip) -> u32 {
    // SAFETY: as in `endpoint`.
    unsafe { PEERS.get(vtep) }.map_or(0, |peer| peer.mtu)
}

/// The tunnel end of the node that owns this address; unspecified for this node itself.
#[inline(always)]
pub fn address_owner(address: Ip) -> Option<Ip> {
    // SAFETY: as in `endpoint`.
    unsafe { ADDRESS_OWNERS.get(address) }.copied()
}

#[inline(always)]
pub fn is_of_node(address: &Ip) -> bool {
    ADDRESS_OWNERS.get_ptr(address).is_some()
}

/// The address is one of this node's own.
#[inline(always)]
pub fn is_own(address: Ip) -> bool {
    address_owner(address).is_some_and(Ip::is_unspecified)
}

#[inline(always)]
pub fn attachment(ifindex: u32) -> Option<Attachment> {
    // SAFETY: as in `endpoint`.
    unsafe { ATTACHMENTS.get(ifindex) }.copied()
}

/// How many rows the flows to virtual addresses of a task have; it stays in its place while this program runs.
#[inline(always)]
pub fn vip_share(task: &EndpointKey) -> Result<*mut u32, DropReason> {
    if let Some(share) = VIP_SHARES.get_ptr_mut(task) {
        return Ok(share);
    }
    // Another CPU may have been first.
    let _ = VIP_SHARES.insert(task, 0, BPF_NOEXIST.into());
    VIP_SHARES.get_ptr_mut(task).ok_or(DropReason::VipShareFull)
}

/// The ring of a service, with its earlier ones.
#[inline(always)]
pub fn rings(key: &RingKey) -> Option<&'static Rings> {
    // SAFETY: a ring that is swapped out lives on until this program ends.
    unsafe { RINGS.get(key) }
}

/// The backend at the flow's place in the ring in use; `None` if the ring is absent or empty.
#[inline(always)]
pub fn pick(ring: &RingKey, flow_hash: u32) -> Option<Ip4> {
    let rings = rings(ring)?;
    let n_places = RingHeader(rings.get(0)?).n_places(0);
    if n_places == 0 { None } else { backend_at(rings, FIRST_PLACE + place(flow_hash, n_places)) }
}

/// The backend at the flow's place in the ring of an age; `None` if that ring is absent or empty.
#[inline(always)]
pub fn pick_earlier(rings: &Rings, header: RingHeader<'_>, age: u8, flow_hash: u32) -> Option<Ip4> {
    let n_places = header.n_places(age);
    if n_places == 0 {
        return None;
    }
    backend_at(rings, header.first_place(age) + place(flow_hash, n_places))
}

#[inline(always)]
fn backend_at(rings: &Rings, word: u32) -> Option<Ip4> {
    let block = rings.get(word / WORDS_PER_BLOCK)?;
    Some(Ip4::from_be_u32(block[(word % WORDS_PER_BLOCK) as usize]))
}
