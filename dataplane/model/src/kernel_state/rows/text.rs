//! One row as one line, for operators, golden tests and logs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use super::{
    AttachmentRole, AttachmentRow, Device, Dual, Endpoint, EndpointKey, Frontend, FrontendKey, Hook,
    HookMode, HookTarget, Leg, Leg6, LinkName, NodeRoute, Owner, PacketFilter, PeerRow, Place, PortKey,
    Present, Ring, RingKey, SandboxNet, Settings, Singleton, TargetPort, VipKey, Vnis,
};
use crate::view::{ProtocolNumber, SandboxId, Vni};

/// `tcp`, `udp`, `sctp`, or the number.
pub fn protocol_name(protocol: ProtocolNumber) -> String {
    match protocol {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn join<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Present {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl fmt::Display for PeerRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mtu_bytes.map_or(Ok(()), |mtu_bytes| write!(f, "mtu {mtu_bytes}"))
    }
}

impl fmt::Display for Singleton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("-")
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan { port, mtu_bytes: 0, .. } => {
                write!(f, "vxlan port {port}, down or not as it was made")
            }
            Self::Vxlan { port, mtu_bytes, over_ipv6 } => {
                let over = if *over_ipv6 { " over IPv6" } else { "" };
                write!(f, "vxlan port {port} mtu {mtu_bytes}{over}")
            }
            Self::Bridge { address, .. } if address.prefix() == 0 => {
                f.write_str("bridge, down or without address")
            }
            Self::Bridge { address, address6: Some(address6), mtu_bytes } => {
                write!(f, "bridge {address} and {address6} mtu {mtu_bytes}")
            }
            Self::Bridge { address, address6: None, mtu_bytes } => {
                write!(f, "bridge {address} mtu {mtu_bytes}")
            }
            Self::Stray => f.write_str("stray"),
        }
    }
}

impl fmt::Display for NodeRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev {} src {}", self.device, self.source)
    }
}

impl fmt::Display for PacketFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::spoiled() {
            return f.write_str("rules that someone else changed");
        }
        write!(f, "masquerade {}", self.subnet)?;
        if let Some(subnet6) = self.subnet6 {
            write!(f, " and {subnet6}")?;
        }
        write!(f, " behind {} tunnel ", self.bridge)?;
        match self.node {
            Some(node) => write!(f, "{node}:{}", self.tunnel_port)?,
            None => write!(f, "port {}", self.tunnel_port)?,
        }
        if !self.guarded.is_empty() {
            write!(f, " guarded {}", join(&self.guarded))?;
        }
        if self.guarded6 != self.guarded {
            write!(f, " by IPv6 {}", join(&self.guarded6))?;
        }
        if !self.no_egress.is_empty() {
            write!(f, " no-egress {}", join(&self.no_egress))?;
        }
        let ports: &BTreeMap<_, _> = &self.host_ports;
        for ((protocol, published), (address, target)) in ports {
            write!(f, " {}/{published}->{address}:{target}", protocol_name(*protocol))?;
        }
        if !self.targets.is_empty() {
            let target = |(protocol, port): &(u8, u16)| format!("{}/{port}", protocol_name(*protocol));
            write!(f, " targets {}", join(self.targets.iter().map(target)))?;
        }
        Ok(())
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ingress = self.ingress.map_or_else(|| "none".to_owned(), |vni| vni.to_string());
        let Self { vxlan_device, uplink, underlay_mtu_bytes, .. } = self;
        let vtep = SocketAddr::new(self.vtep, self.vxlan_port);
        write!(f, "vtep {vtep} dev {vxlan_device} uplink {uplink} mtu {underlay_mtu_bytes} ingress {ingress}")
    }
}

impl fmt::Display for SandboxNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.legs.is_empty() {
            return f.write_str("no whole link");
        }
        for (position, leg) in self.legs.iter().enumerate() {
            if position > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{leg}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, host, address, mac, mtu_bytes, gateway, table, .. } = self;
        write!(f, "{name} {address} {mac} mtu {mtu_bytes} via {gateway} table {table} host {host}")?;
        if let Some(bridge) = &self.bridge {
            write!(f, " bridge {bridge}")?;
        }
        if self.default_route {
            f.write_str(" default")?;
        }
        if let Some(Leg6 { address, gateway, default_route }) = &self.ipv6 {
            write!(f, " and {address} via {gateway}{}", if *default_route { " default" } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisNode => f.write_str("this node"),
            Self::Node(vtep) => write!(f, "node {vtep}"),
        }
    }
}

impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vni, self.address)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Local(link) => write!(f, "{} dev {link}", self.mac)?,
            Place::Remote(vtep) => write!(f, "{} node {vtep}", self.mac)?,
        }
        f.write_str(if self.serves { " serves" } else { "" })
    }
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.endpoint, protocol_name(self.protocol), self.published)
    }
}

impl fmt::Display for TargetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.port, if self.dsr { " dsr" } else { "" })
    }
}

impl fmt::Display for Vnis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&join(&self.0))
    }
}

impl fmt::Display for RingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}/{}", self.service, self.vni)
    }
}

/// Its size and how many places each backend holds: the places themselves would fill pages.
impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut places = BTreeMap::new();
        for backend in self.0.iter() {
            *places.entry(backend).or_insert(0_u32) += 1;
        }
        write!(f, "{} places", self.0.len())?;
        for (backend, count) in places {
            write!(f, " {backend}*{count}")?;
        }
        Ok(())
    }
}

impl fmt::Display for VipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vni, self.address)
    }
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, port, protocol } = *self;
        write!(f, "{}/{}", SocketAddr::new(address, port), protocol_name(protocol))
    }
}

impl fmt::Display for Dual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}", self.subnet, self.subnet6)
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.ring, self.target)
    }
}

impl fmt::Display for AttachmentRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vni, address, mac, gateway, mtu_bytes, role } = self;
        write!(f, "vni {vni} {address} {mac} via {gateway} mtu {mtu_bytes}")?;
        f.write_str(match role {
            AttachmentRole::Overlay => "",
            AttachmentRole::Ingress => " ingress",
            AttachmentRole::WayOut => " way out",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            HookTarget::Interface(link) => write!(f, "{} on {link}", self.program.name()),
            HookTarget::CgroupRoot => write!(f, "{} on the cgroup root", self.program.name()),
        }
    }
}

impl fmt::Display for HookMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::XdpNative => "xdp native",
            Self::XdpGeneric => "xdp generic",
            Self::Cgroup => "cgroup",
        })
    }
}
