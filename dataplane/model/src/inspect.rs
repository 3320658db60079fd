//! What `meshctl` shows of one node's kernel, read from its maps.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::view::Generation;

/// `meshctl status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub hostname: String,
    /// Empty outside a cluster.
    pub node_id: String,
    pub cluster_id: String,
    /// `manager (leader)`, `manager`, `worker`, or `none`.
    pub role: String,
    pub vtep: Option<Ipv4Addr>,
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
    pub ring_size: u32,
    pub backends: Vec<LoadBalancerBackend>,
}

/// A backend in a ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancerBackend {
    pub address: Ipv4Addr,
    pub vtep: Ipv4Addr,
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
    pub vtep: Option<Ipv4Addr>,
    /// Host side of its veth pair, for this node's own.
    pub interface: Option<String>,
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
