//! What `meshctl trace` shows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

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
        destination: SocketAddr,
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
    /// `program` answers it as the task's router would: there is no way.
    NoRoute { program: String },
    /// The system call fails with ECONNREFUSED, and `program` counts the reason; or `mesh_task` answers the packet as a closed port
    /// does.
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
    pub source: SocketAddr,
    pub destination: SocketAddr,
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
    /// A name has an address of each family: that of IPv6 is meant. A client outside decides by its own.
    pub ipv6: bool,
}

impl TraceRequest {
    /// By which family a name is looked up.
    pub fn is_ipv6(&self) -> bool {
        self.client().map_or(self.ipv6, |client| client.is_ipv6())
    }

    /// The destination, if a packet can go there.
    pub fn checked(&self, to: SocketAddr) -> Result<SocketAddr, FamilyError> {
        if self.client().is_some_and(|client| client.is_ipv6() != to.is_ipv6()) {
            return Err(FamilyError::Mixed { from: self.from.clone(), to });
        }
        if self.ipv6 && to.is_ipv4() { Err(FamilyError::NoIpv6(to)) } else { Ok(to) }
    }

    /// The client outside that the packet comes from; `None` if it comes from a task.
    pub fn client(&self) -> Option<SocketAddr> {
        let client = self.from.strip_prefix("outside/")?;
        let address = || client.parse().ok().map(|address| SocketAddr::new(address, self.port));
        client.parse().ok().or_else(address)
    }
}

/// What is asked for is not of one family.
#[derive(Debug, thiserror::Error)]
pub enum FamilyError {
    #[error("{from} and {to} are not of one family: no packet goes between them")]
    Mixed { from: String, to: SocketAddr },
    #[error("IPv6 was asked for, and {0} is IPv4")]
    NoIpv6(SocketAddr),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_an_address_and_maybe_a_port() {
        let client = |from: &str| {
            let (from, to) = (from.to_owned(), String::new());
            let request = TraceRequest { from, to, protocol: 6, port: 40_000, ipv6: false };
            request.client().map(|client| client.to_string())
        };
        assert_eq!(client("outside/192.0.2.1:7").as_deref(), Some("192.0.2.1:7"));
        assert_eq!(client("outside/192.0.2.1").as_deref(), Some("192.0.2.1:40000"));
        assert_eq!(client("outside/2001:db8::1").as_deref(), Some("[2001:db8::1]:40000"));
        assert_eq!(client("outside/[2001:db8::1]:7").as_deref(), Some("[2001:db8::1]:7"));
        assert_eq!([client("web.1"), client("outside/"), client("outside/web")], [None, None, None]);
    }

    #[test]
    fn families_are_not_mixed() {
        let request = |from: &str, ipv6| {
            let (from, to) = (from.to_owned(), String::new());
            TraceRequest { from, to, protocol: 6, port: 40_000, ipv6 }
        };
        let (v4, v6) = ("192.0.2.9:80".parse().unwrap(), "[2001:db8::9]:80".parse().unwrap());
        for (from, ipv6, is_ipv6, takes) in [
            ("web.1", false, false, (true, true)),
            ("web.1", true, true, (false, true)),
            ("outside/192.0.2.1", false, false, (true, false)),
            ("outside/192.0.2.1", true, false, (false, false)),
            ("outside/2001:db8::1", false, true, (false, true)),
            ("outside/2001:db8::1", true, true, (false, true)),
        ] {
            let request = request(from, ipv6);
            assert_eq!(request.is_ipv6(), is_ipv6, "{from}");
            assert_eq!((request.checked(v4).is_ok(), request.checked(v6).is_ok()), takes, "{from} {ipv6}");
        }
    }
}
