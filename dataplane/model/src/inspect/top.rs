//! What `meshctl top` shows.

use serde::{Deserialize, Serialize};

/// `meshctl top`: what happened between two looks at the maps, about a second apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopReport {
    pub elapsed_ms: u64,
    /// Those with most that is new come first.
    pub services: Vec<TopService>,
    pub programs: Vec<TopProgram>,
    pub drops: Vec<TopDrop>,
}

/// What goes to one published port (`8080/tcp`), or to one port of a virtual address (`10.0.1.2:80/tcp`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopService {
    pub port: String,
    /// Name of the service, where the daemon that knows it answers.
    pub service: String,
    /// Flows in the cache: of clients that enter by this node.
    pub entering: TopRows,
    /// Flows kept for this node's own backends.
    pub kept: TopRows,
    /// Sockets of this node that were translated: of its processes and of its tasks.
    pub sockets: TopRows,
}

/// Rows of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopRows {
    pub n_now: u64,
    /// Those that were not there at the first look. One that came and went in between is not counted.
    pub n_new: u64,
}

/// A program's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopProgram {
    pub program: String,
    /// Packets that it counted.
    pub n_packets: u64,
    /// Runs that the kernel measured, and their time altogether: 0 unless `kernel.bpf_stats_enabled` is on. Those of a
    /// socket hook are for everybody's sockets.
    pub n_runs: u64,
    pub run_time_ns: u64,
}

/// What a program dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopDrop {
    pub program: String,
    pub reason: String,
    pub n_packets: u64,
}
