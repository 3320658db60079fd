//! What would become of a connection that begins now: the look-ups that the programs make, made by their own keys and
//! hashes, and told one by one. No packet is sent and nothing is written.

mod hops;
mod live;
mod lookup;
mod walk;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use dataplane_model::ProtocolNumber;
use dataplane_model::inspect::{TraceEnd, TraceReport, TunnelledPacket};
use ebpf_abi::Ip;

pub use live::{AT_MOST, LiveError, trace_live, trace_marked};
pub use lookup::Lookup;
pub use walk::Walk;

use super::{InspectError, name_of, open};
use crate::bpf::TableError;

/// Where a connection begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// At the node's uplink: a client's packet with this source.
    Outside(SocketAddr),
    Task(TaskOrigin),
}

/// A task of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskOrigin {
    /// `SO_NETNS_COOKIE` of its sandbox.
    pub netns_cookie: u64,
    /// Its VNIs, and its address in each.
    pub addresses: Vec<(u32, Ipv4Addr)>,
    /// The source of what it sends to far addresses; `None` where no route of its sandbox leads there.
    pub far_source4: Option<Ipv4Addr>,
    /// The same by IPv6.
    pub far_source6: Option<Ipv6Addr>,
    /// The port that its socket has.
    pub port: u16,
}

impl TaskOrigin {
    /// The network in which this is the task's own address.
    fn network_of(&self, address: Ip, tables: &impl Lookup) -> Result<Option<u32>, TableError> {
        for (vni, own) in &self.addresses {
            if tables.name(*vni, address)? == Some((*own).into()) {
                return Ok(Some(*vni));
            }
        }
        Ok(None)
    }

    /// Its way to far addresses by IPv6 is none of its networks.
    fn has_way_out6(&self, tables: &impl Lookup) -> Result<bool, TableError> {
        let Some(source) = self.far_source6 else { return Ok(false) };
        Ok(self.network_of(IpAddr::V6(source).into(), tables)?.is_none())
    }
}

/// From `origin` to `destination`, as far as this node decides.
pub fn trace(
    pin_dir: &Path,
    origin: &Origin,
    destination: SocketAddr,
    protocol: ProtocolNumber,
) -> Result<TraceReport, InspectError> {
    let tables = open(pin_dir)?;
    let walk = Walk::new(&tables, protocol)?;
    let report = match origin {
        Origin::Outside(client) => walk.from_outside(*client, destination)?,
        Origin::Task(task) => walk.from_task(task, destination)?,
    };
    Ok(with_names(report))
}

/// The rest of a way whose packet comes to this node by a tunnel.
pub fn trace_arrival(pin_dir: &Path, packet: &TunnelledPacket) -> Result<TraceReport, InspectError> {
    let tables = open(pin_dir)?;
    Ok(with_names(Walk::new(&tables, packet.protocol)?.from_tunnel(packet)?))
}

/// The walk knows interfaces by their indices alone.
fn with_names(mut report: TraceReport) -> TraceReport {
    for way in &mut report.ways {
        if let TraceEnd::Sandbox { interface, .. } = &mut way.end
            && let Ok(ifindex) = interface.parse()
        {
            *interface = name_of(ifindex);
        }
    }
    report
}
