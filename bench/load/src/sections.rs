//! What is measured, one module per table or two.

mod assign;
mod change;
mod connect;
mod control;
mod converge;
mod crowd;
mod dns;
mod everywhere;
mod failover;
mod first_task;
mod gateway;
mod http;
mod idle;
mod lost;
mod memory;
mod mesh_http;
mod path;
mod placing;
mod programs;
mod resets;
mod scale;
mod swarm_http;
mod writes;

use clap::ValueEnum;

pub use control::{ControlSection, METHOD as METHOD_OF_CONTROL};
pub use swarm_http::{METHOD as METHOD_BESIDE_SWARM, measure as measure_beside_swarm};

use crate::compare::{Comparison, Plan};
use crate::mesh::LazyMesh;

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Each BPF program by itself
    Programs,
    /// Requests through the routing mesh, by nftables DNAT, by a proxy, and without anything
    Http,
    /// Streams and exchanges from task to task, over a bridge with VXLAN, and over the underlay
    Path,
    /// Queries of our DNS, dnsmasq, and dockerd's
    Dns,
    /// A service of 20 tasks, from the request to the last of them running, against dockerd's swarm
    Converge,
}

impl Section {
    /// Measures all peers of the section. What can't be measured says why in its row.
    pub fn measure(self, plan: Plan, mesh: &LazyMesh) -> Vec<Comparison> {
        match self {
            Self::Programs => programs::measure(plan),
            Self::Http => http::measure(plan, mesh),
            Self::Path => path::measure(plan, mesh),
            Self::Dns => dns::measure(plan),
            Self::Converge => converge::measure(plan, mesh),
        }
    }
}

/// A part of the data plane's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DataplaneSection {
    /// Each BPF program by itself
    Programs,
    /// Requests through the routing mesh, with 1 to 10,000 services, by nftables DNAT, and by a proxy
    Http,
    /// Streams and exchanges from task to task, over a bridge with VXLAN, and over the underlay
    Path,
    /// `connect()` to a virtual address and to a task's own
    Connect,
    /// Queries of our DNS, unbound, dnsmasq, and dockerd's: rate, processor time, answers at half load
    Dns,
    /// One backend changed among 100,000, look-ups among as many, and clients of one that is gone
    Change,
    /// What meshd keeps in memory
    Memory,
}

impl DataplaneSection {
    /// Measures all peers of the section. What can't be measured says why in its row.
    pub fn measure(self, plan: Plan) -> Vec<Comparison> {
        match self {
            Self::Programs => programs::measure(plan),
            Self::Http => mesh_http::measure(plan),
            Self::Path => path::measure_pair(plan),
            Self::Connect => connect::measure(plan),
            Self::Dns => dns::measure_fully(plan),
            Self::Change => change::measure(plan).into_iter().chain([resets::measure(plan)]).collect(),
            Self::Memory => memory::measure(plan),
        }
    }
}
