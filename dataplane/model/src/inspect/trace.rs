//! What `meshctl trace` shows.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::view::ProtocolNumber;

/// `meshctl trace`: what would become of a connection that begins now, or of its first datagram.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceReport {
    /// More than one where chance decides.
    pub ways: Vec<TraceWay>,
}

/// One way, from the first look-up to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceWay {
    /// How likely it is, where chance decides.
    pub chance: Option<TraceChance>,
    pub steps: Vec<TraceStep>,
    pub end: TraceEnd,
}

/// So many of a ring's places lead this way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceChance {
    pub places: u32,
    pub of: u32,
}

/// [`TraceStep::at`] of what a program did: a way through the tables and a packet's real way have the same of these.
pub const HOP: &str = "program";

impl TraceWay {
    /// What the programs do, node by node.
    pub fn hops(&self) -> Vec<(IpAddr, &str)> {
        let hops = self.steps.iter().filter(|step| step.at == HOP);
        hops.map(|step| (step.node, step.says.as_str())).collect()
    }
}

/// What one look-up says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStep {
    /// Tunnel end of the node that looks it up.
    pub node: IpAddr,
    /// `frontend`, `flow cache`, `ring`, `endpoint`, …
    pub at: String,
    pub says: String,
}

/// Where a way ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceEnd {
    /// In a task's sandbox.
    Sandbox {
        /// As the task sees it.
        destination: SocketAddrV4,
        interface: String,
        /// Name of the task, where the daemon that knows it answers.
        task: String,
    },
    /// In a tunnel to another node.
    Tunnel(TunnelledPacket),
    /// With the node's own network stack: no map decides.
    Host,
    /// `program` drops it. `reason` is what it counts.
    Dropped { program: String, reason: String },
    /// The system call fails with ECONNREFUSED, and `program` counts the reason.
    Refused { program: String, reason: String },
}

/// A packet in a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelledPacket {
    /// Tunnel ends.
    pub from: IpAddr,
    pub to: IpAddr,
    pub vni: u32,
    /// Named by the inner destination MAC.
    pub endpoint: Ipv4Addr,
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub protocol: ProtocolNumber,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRequest {
    /// A task of the node (name, id, or the beginning of one), or `outside/ADDRESS[:PORT]`.
    pub from: String,
    /// `SERVICE:PORT` or `ADDRESS:PORT`.
    pub to: String,
    pub protocol: ProtocolNumber,
    /// Source port, where `from` has none.
    pub port: u16,
}

impl TraceRequest {
    /// The client outside that the packet comes from; `None` if it comes from a task.
    pub fn client(&self) -> Option<SocketAddrV4> {
        let client = self.from.strip_prefix("outside/")?;
        let address = || client.parse().ok().map(|address| SocketAddrV4::new(address, self.port));
        client.parse().ok().or_else(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_an_address_and_maybe_a_port() {
        let client = |from: &str| {
            let (from, to) = (from.to_owned(), String::new());
            TraceRequest { from, to, protocol: 6, port: 40_000 }.client().map(|client| client.to_string())
        };
        assert_eq!(client("outside/192.0.2.1:7").as_deref(), Some("192.0.2.1:7"));
        assert_eq!(client("outside/192.0.2.1").as_deref(), Some("192.0.2.1:40000"));
        assert_eq!([client("web.1"), client("outside/"), client("outside/::1")], [None, None, None]);
    }
}
