//! What `meshctl` shows of one node's kernel, read from its maps.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::view::Generation;

mod cluster;
mod dns;
mod gossip;
mod sample;
mod top;
mod trace;

pub use cluster::{Assigned, NodeAnswer, NodeOutcome, NodeRow};
pub use dns::{DnsName, DnsQueryReport, DnsRecord, DnsSandbox, DnsWay, DnsZoneReport};
pub use gossip::{AgentState, GossipAgent, GossipMember, GossipPath, GossipReport, PathState};
pub use sample::{FlowSample, FlowSamples, MAX_SAMPLES, SampledPacket, SampledTunnel};
pub use top::{TopDrop, TopProgram, TopReport, TopRows, TopService};
pub use trace::{
    FamilyError, HOP, TraceChance, TraceEnd, TraceReport, TraceRequest, TraceStep, TraceWay, TunnelledPacket,
};

/// `meshctl status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub hostname: String,
    /// Empty outside a cluster.
    pub node_id: String,
    pub cluster_id: String,
    /// `manager (leader)`, `manager`, `worker`, or `none`.
    pub role: String,
    pub vtep: Option<IpAddr>,
    pub wanted: Generation,
    pub applied: Generation,
    pub hooks: Vec<HookRow>,
    pub errors: Vec<String>,
    /// Read from the pins because meshd does not answer.
    pub from_pins: bool,
}

/// Which program hangs where, and why there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookRow {
    pub interface: String,
    /// `xdp native`, `xdp generic`, `tcx ingress`, `clsact ingress`, `cgroup connect4`, …
    pub hook: String,
    pub program: String,
    pub reason: String,
}

/// `meshctl lb ls`: a frontend or a virtual address, and its ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancerRow {
    /// `198.18.0.11:8080/tcp`, or `10.0.1.2` in a network for a virtual address.
    pub frontend: String,
    /// `ingress` or `vip`.
    pub kind: String,
    pub vni: u32,
    /// Name of the service, where the daemon that knows it answers.
    pub service: String,
    /// Answers go straight to the clients; known where the service's name is.
    #[serde(default)]
    pub dsr: bool,
    pub ring_size: u32,
    pub backends: Vec<LoadBalancerBackend>,
}

/// A backend in a ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancerBackend {
    pub address: Ipv4Addr,
    pub vtep: IpAddr,
    /// Ring places that it holds.
    pub places: u32,
}

/// `meshctl endpoints`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRow {
    pub vni: u32,
    pub address: Ipv4Addr,
    pub mac: String,
    /// Tunnel end of its node; `None` for this node's own.
    pub vtep: Option<IpAddr>,
    /// Host side of its veth pair, for this node's own.
    pub interface: Option<String>,
    /// What it gets of its share of new flows, percent: 0 while it is not ready, less than 100 while it starts slowly. `None`
    /// where no daemon knows, and for what is no backend of a service.
    #[serde(default)]
    pub weight: Option<u8>,
}

/// `meshctl lb ring`: the ring of one service in one network, and what it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingReport {
    /// Name of the service, where the daemon that knows it answers.
    pub service: String,
    pub vni: u32,
    /// Frontends and virtual addresses that the ring serves, as [`LoadBalancerRow::frontend`] has them.
    pub frontends: Vec<String>,
    /// The ring in use first, then the earlier ones that are kept, youngest first.
    pub rings: Vec<RingRow>,
}

/// A ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingRow {
    /// 0 is the one in use, 1 the one before; a ring that was in use more than once is counted where it was last.
    pub age: u8,
    /// Number of places.
    pub size: u32,
    pub backends: Vec<LoadBalancerBackend>,
}

/// Is `text` the name of this frontend (`198.18.0.11:8080/tcp`, also without the protocol) or virtual address?
pub fn is_frontend_named(frontend: &str, text: &str) -> bool {
    frontend == text || frontend.split_once('/').is_some_and(|(socket, _)| socket == text)
}

/// The most rows of either kind that `meshctl lb flows` shows: an answer of a few megabytes.
pub const MAX_FLOWS_SHOWN: usize = 10_000;

/// `meshctl lb flows`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsReport {
    /// What this node remembers of the flows that enter by it; at most the limit asked for.
    pub cached: Vec<CachedFlow>,
    /// How many more there are.
    pub n_cached_left_off: u64,
    /// Flows of this node's own backends; at most the limit asked for.
    pub kept: Vec<KeptFlow>,
    pub n_kept_left_off: u64,
    /// Choices that the cache was not given, because too many flows began in one second.
    pub n_unremembered: u64,
    /// Half-open flows that made room for younger ones.
    pub n_displaced: u64,
}

/// A row of the flow cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedFlow {
    pub protocol: String,
    pub client: SocketAddr,
    /// The address and published port that the client connected to.
    pub service: SocketAddr,
    pub backend: Ipv4Addr,
}

/// A flow to a backend of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFlow {
    pub protocol: String,
    pub client: SocketAddr,
    /// The address and published port that the client connected to.
    pub service: SocketAddr,
    /// The task's address and port.
    pub backend: SocketAddr,
    /// The source port that the task sees: the client's own, unless another flow has it.
    pub client_port_seen: u16,
    /// The address that the task sees, where that isn't the client's own: it listens on IPv4 alone, and the client came by IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address_seen: Option<Ipv4Addr>,
    /// `new`, `answered` (the client has not gone on yet), `established`, `closing` (one side has ended), `closed`.
    pub state: String,
    /// Seconds since the last packet of either direction.
    pub idle_secs: u32,
}

/// `meshctl fdb`: where the node sends what it has for others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbReport {
    /// Tunnel ends of the other nodes.
    pub peers: Vec<IpAddr>,
    pub owners: Vec<OwnerRow>,
    pub endpoints: Vec<FdbEndpoint>,
}

/// Which node has an address that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRow {
    pub address: IpAddr,
    /// Tunnel end of its owner; `None` for this node.
    pub vtep: Option<IpAddr>,
}

/// An endpoint, with all that its row says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbEndpoint {
    pub vni: u32,
    pub address: Ipv4Addr,
    pub mac: String,
    /// Tunnel end of its node; `None` for this node's own.
    pub vtep: Option<IpAddr>,
    /// Host side of its veth pair, for this node's own.
    pub ifindex: Option<u32>,
    pub interface: Option<String>,
    /// It may get new flows.
    pub serves: bool,
}

/// `meshctl verify`: what a node's kernel holds beside what it should.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    pub hostname: String,
    pub node_id: String,
    /// Of the newest view that the managers' assignments made, which is what was compared with.
    pub wanted: Generation,
    /// Of the newest view that the kernel has held whole.
    pub applied: Generation,
    /// Rows that should be there.
    pub n_rows: u64,
    /// By a manager, with what its state wants: then a node that has missed assignments shows it.
    #[serde(default)]
    pub is_compared: bool,
    pub differences: Vec<Difference>,
    /// What of the view can't be in the kernel, and what the driver could not do, one sentence each.
    pub problems: Vec<String>,
}

/// A row that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// As in [`crate::KernelState`]: `endpoints`, `sandboxes`, `hooks`, …
    pub table: String,
    pub key: String,
    /// `None`: there is no such row.
    pub is: Option<String>,
    /// `None`: there should be none.
    pub should: Option<String>,
}

impl VerifyReport {
    /// The kernel holds all that it should, and nothing else.
    pub fn is_sound(&self) -> bool {
        self.differences.is_empty() && self.problems.is_empty()
    }
}

/// `meshctl drops`: what each program did with the packets that it saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropsReport {
    pub programs: Vec<ProgramCounters>,
}

/// One program's packet counts. `received = forwarded + passed + Σ drops`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramCounters {
    pub program: String,
    pub received: u64,
    pub forwarded: u64,
    pub passed: u64,
    /// Reason and count; reasons with no drop are left out.
    pub drops: Vec<(String, u64)>,
}

impl ProgramCounters {
    /// Packets that were received and not accounted for; zero in a sound data plane.
    pub fn unaccounted(&self) -> i128 {
        let drops: u128 = self.drops.iter().map(|(_, count)| u128::from(*count)).sum();
        let accounted = u128::from(self.forwarded) + u128::from(self.passed) + drops;
        i128::from(self.received) - i128::try_from(accounted).unwrap_or(i128::MAX)
    }
}
