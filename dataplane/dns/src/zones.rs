//! [`Zones`]: every name that this node's sandboxes can ask for, as plain ordered tables, made of a view by
//! [`ZoneMaker`]. Pure; the server process gets it whole and swaps it whole.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use dataplane_model::{NetworkKey, SandboxId};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

mod build;

pub use build::{ZoneMaker, zones_from_view};

/// How long a client may keep an answer, seconds. Short, because the addresses of tasks come and go; not 0, so that a
/// resolver that caches spares the second of two look-ups for one connection.
pub const DEFAULT_TTL_S: u32 = 5;

/// How long a client may keep that something is not there, seconds, at most: a name asked for just before its service
/// comes must not be missed for long.
pub const MAX_NEGATIVE_TTL_S: u32 = 2;

/// Longest time that may be asked for, seconds: Docker's own, with which its users suffered.
pub const MAX_TTL_S: u32 = 600;

/// How long clients may keep answers about this node's names, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtlPolicy {
    pub found_s: u32,
    /// Of answers that there is no such name or record (RFC 2308 section 5).
    pub denied_s: u32,
}

impl TtlPolicy {
    /// `found_s` for what is there, within [`MAX_TTL_S`]; no more than [`MAX_NEGATIVE_TTL_S`] for what is not.
    pub fn new(found_s: u32) -> Self {
        Self { found_s: found_s.min(MAX_TTL_S), denied_s: found_s.min(MAX_NEGATIVE_TTL_S) }
    }
}

impl Default for TtlPolicy {
    fn default() -> Self {
        Self::new(DEFAULT_TTL_S)
    }
}

/// All names of one node's sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zones {
    /// Of the view that they were made of; comes back in the acknowledgement.
    pub revision: u64,
    pub ttl: TtlPolicy,
    /// One table per network, shared by the sandboxes that are in it.
    pub networks: BTreeMap<NetworkKey, NetworkZone>,
    pub sandboxes: BTreeMap<SandboxId, SandboxZone>,
}

/// The names of one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkZone {
    /// `web.<this>` is `web` in this network alone.
    pub name: String,
    /// Addresses in here are never asked for outside.
    pub subnets: Vec<IpNetwork>,
    /// Lower case, without the last dot. A name without addresses exists: it has no address now. IPv4 comes first.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// Name of each address, lower case, without the network.
    pub reverse: BTreeMap<IpAddr, String>,
    /// Ports of the services, by each of their names in `names` that may stand in an SRV question.
    pub ports: BTreeMap<String, Vec<PortRecord>>,
}

/// A port of a service as SRV questions spell it (RFC 2782): `_<label>._<protocol>.<service>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRecord {
    /// The port's name in the service's spec, or the port's number; lower case, without the underscore.
    pub label: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Where the tasks listen.
    pub port: u16,
}

/// What one sandbox may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxZone {
    /// Its network namespace.
    pub netns: PathBuf,
    /// In the order in which they are asked.
    pub networks: Vec<NetworkKey>,
    pub forwarding: Forwarding,
    /// Addresses of names of one label are not asked for outside: the user said `ndots:1` or more, so the client comes
    /// back with its search domains. As Docker does it.
    pub keeps_short_names: bool,
}

/// Where names go that no network of the sandbox has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forwarding {
    /// Nowhere: the sandbox has no way out.
    Forbidden,
    /// The node's own resolvers, from the node.
    Node,
    /// The task's own resolvers, from the sandbox: they may be in one of its networks.
    Servers(Vec<IpAddr>),
}

#[cfg(test)]
mod tests;
