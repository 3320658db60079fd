//! What `meshctl dns` shows.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// `meshctl dns zone`: what the node's DNS process answers from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsZoneReport {
    /// Of the zones that are served.
    pub revision: u64,
    pub sandboxes: Vec<DnsSandbox>,
    pub names: Vec<DnsName>,
}

/// A sandbox that is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSandbox {
    /// Id of its task.
    pub sandbox: String,
    /// Name of its task, where the daemon that knows it answers.
    pub task: String,
    /// In the order in which they are asked.
    pub networks: Vec<String>,
    /// `nowhere`, `node` (the node's resolvers), or the task's own resolvers: where names go that no network has.
    pub forwarding: String,
    /// Addresses of names of one label are not asked for outside.
    pub keeps_short_names: bool,
}

/// The records of one name and type in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsName {
    pub network: String,
    pub name: String,
    /// `A`, `AAAA`, `PTR` or `SRV`; empty for a name that exists and has no address now.
    pub record_type: String,
    /// Addresses; the name that an address has; of a service's port its number.
    pub values: Vec<String>,
    /// How long a client may keep the answer, seconds.
    pub ttl_s: u32,
}

/// `meshctl dns query`: an answer as a task gets it, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsQueryReport {
    /// Id of the task.
    pub sandbox: String,
    pub name: String,
    pub record_type: String,
    /// `NOERROR`, `NXDOMAIN`, `SERVFAIL`, …
    pub code: String,
    pub way: DnsWay,
    /// In the DNS process, microseconds.
    pub took_us: u64,
    pub answers: Vec<DnsRecord>,
    pub authorities: Vec<DnsRecord>,
    pub additionals: Vec<DnsRecord>,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DnsWay {
    /// The sandbox's networks.
    OwnZone,
    /// Nobody: no network has the name, and it may not be asked for outside.
    NotForwarded,
    /// Kept since `age_s` seconds.
    Cache { resolver: Option<SocketAddr>, age_s: u32 },
    /// Kept, and past its time: no resolver gave a better one.
    Stale { resolver: Option<SocketAddr> },
    /// This resolver, asked now.
    Resolver { resolver: Option<SocketAddr> },
    /// Nobody: no resolver answered, now or a moment ago, or the sandbox has reached a limit.
    Nobody,
}

/// A record of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecord {
    pub name: String,
    pub record_type: String,
    pub ttl_s: u32,
    pub data: String,
}
