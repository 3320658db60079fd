//! The decisions, in the programs' order. `ebpf/progs` has the originals: a test compares both.

mod task;

pub(super) use task::leg_to;

use std::net::{IpAddr, SocketAddr};

use dataplane_model::ProtocolNumber;
use dataplane_model::inspect::{HOP, TraceEnd, TraceReport, TraceStep, TraceWay, TunnelledPacket};
use dataplane_model::kernel_state::protocol_name;
use ebpf_abi::flow::FLOW_DSR;
use ebpf_abi::{
    CachedBackend, DropReason, Endpoint, EndpointKey, FlowTuple, ForwardKey, Frontend, FrontendKey, Ip, Ip4,
    NodeConfig, Port, ProgramId, ReplyFlow, ReplyKey, RingKey, TargetPort, TargetPortKey, protocol,
};
use ebpf_packet::hash::{flow_hash, place};

use super::Lookup;
use super::hops::{Verdict, packet_hop};
use crate::bpf::TableError;

/// One trace through one node's tables.
pub struct Walk<'a, T> {
    tables: &'a T,
    config: NodeConfig,
    protocol: ProtocolNumber,
    steps: Vec<TraceStep>,
}

impl<'a, T: Lookup> Walk<'a, T> {
    pub fn new(tables: &'a T, protocol: ProtocolNumber) -> Result<Self, TableError> {
        Ok(Self { tables, config: tables.config()?, protocol, steps: Vec::new() })
    }

    /// A client's packet at the uplink.
    pub fn from_outside(
        mut self,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Result<TraceReport, TableError> {
        let tuple = FlowTuple::new(pair(client), pair(destination), self.protocol);
        let end = self.uplink(&tuple)?;
        self.hop(ProgramId::MeshUplink, &end);
        Ok(self.only(end))
    }

    /// A packet that another node has put into a tunnel.
    pub fn from_tunnel(mut self, packet: &TunnelledPacket) -> Result<TraceReport, TableError> {
        let (program, end) = self.arrival(packet)?;
        if program == ProgramId::MeshVxlan {
            self.say(HOP, packet_hop(ProgramId::MeshUplink.label(), Verdict::Passed));
        }
        self.hop(program, &end);
        Ok(self.only(end))
    }

    fn only(self, end: TraceEnd) -> TraceReport {
        TraceReport { ways: vec![TraceWay { chance: None, steps: self.steps, end }] }
    }

    fn say(&mut self, at: &str, says: impl Into<String>) {
        self.steps.push(TraceStep { node: self.config.vtep.into(), at: at.to_owned(), says: says.into() });
    }

    /// What the program does with a packet that ends so.
    fn hop(&mut self, program: ProgramId, end: &TraceEnd) {
        let verdict = match end {
            TraceEnd::Dropped { reason, .. } => Verdict::Dropped(reason),
            TraceEnd::Host if program == ProgramId::MeshUplink => Verdict::Passed,
            _ => Verdict::Forwarded,
        };
        self.say(HOP, packet_hop(program.label(), verdict));
    }

    /// `mesh_uplink` and `mesh_xdp`.
    fn uplink(&mut self, tuple: &FlowTuple) -> Result<TraceEnd, TableError> {
        if self.config.vtep.is_unspecified() || self.config.ingress_vni == 0 {
            self.say("config", "the node has no routing mesh: its programs let everything pass");
            return Ok(TraceEnd::Host);
        }
        let key = FrontendKey::new(tuple.destination, tuple.destination_port, tuple.protocol);
        let name = self.port_name(tuple.destination, tuple.destination_port);
        // Localhost is for the node's own processes: from outside it is nobody's.
        let own = if tuple.destination.is_loopback() { None } else { self.tables.frontend(&key)? };
        let frontend = if own.is_some() { own } else { self.frontend_of_other_node(&key)? };
        let Some(frontend) = frontend else {
            self.say("frontend", format!("{name} is no published port of this node"));
            return Ok(TraceEnd::Host);
        };
        self.say("frontend", format!("{name} leads to {}", ring_name(&frontend.ring)));
        let Some((backend, endpoint)) = self.backend(tuple, &frontend.ring)? else {
            self.say("uplink", "nobody serves it: left to the node's stack, as for a closed port");
            return Ok(TraceEnd::Host);
        };
        if endpoint.is_local() {
            return self.deliver(ProgramId::MeshUplink, tuple, (backend, &endpoint));
        }
        Ok(self.tunnel(self.config.ingress_vni, (backend, &endpoint), tuple))
    }

    /// `ingress::ring_of_other_node`, for frames that are addressed to this machine.
    fn frontend_of_other_node(&mut self, key: &FrontendKey) -> Result<Option<Frontend>, TableError> {
        let owner = self.tables.owner(key.address)?.filter(|owner| !owner.is_unspecified());
        let Some(owner) = owner.filter(|_| key.address != self.config.vtep) else { return Ok(None) };
        let asked = FrontendKey::new(Ip::LOCALHOST4, key.port, key.protocol);
        let frontend = self.tables.frontend(&asked)?;
        if frontend.is_some() {
            self.say("owner", format!("{} is node {owner}'s: served as it would", key.address));
        }
        Ok(frontend)
    }

    /// By the cache if a datagram's flow is known there, the port has the same ring as then, and the backend still serves; else by
    /// the ring.
    fn backend(&mut self, tuple: &FlowTuple, ring: &RingKey) -> Result<Option<(Ip4, Endpoint)>, TableError> {
        if self.protocol == protocol::UDP
            && let Some(CachedBackend { backend: known, .. }) = self.cached_by(ring, tuple)?
        {
            let endpoint = self.endpoint(self.config.ingress_vni, known)?;
            if let Some(endpoint) = endpoint.filter(Endpoint::serves) {
                self.say("flow cache", format!("datagrams of this flow go to {known}"));
                return Ok(Some((known, endpoint)));
            }
            self.say("flow cache", format!("{known} serves no more"));
        }
        let places = self.places(ring)?;
        let n_places = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let index = place(flow_hash(tuple), n_places);
        let Some(backend) = usize::try_from(index).ok().and_then(|index| places.get(index)).copied() else {
            self.say("ring", "is absent or has no place");
            return Ok(None);
        };
        self.say("ring", format!("place {index} of {n_places} is {backend}'s"));
        let endpoint = self.endpoint(self.config.ingress_vni, backend)?;
        Ok(endpoint.map(|endpoint| (backend, endpoint)))
    }

    fn cached_by(&mut self, ring: &RingKey, tuple: &FlowTuple) -> Result<Option<CachedBackend>, TableError> {
        let Some(known) = self.tables.cached(tuple)? else { return Ok(None) };
        let is_of_ring = known.ring == ring.tag();
        if !is_of_ring {
            self.say("flow cache", format!("{} was another service's choice", known.backend));
        }
        Ok(is_of_ring.then_some(known))
    }

    /// Of the ring in use; none where there is no such ring.
    fn places(&self, ring: &RingKey) -> Result<Vec<Ip4>, TableError> {
        Ok(self.tables.places(ring)?.unwrap_or_default())
    }

    /// Looks an endpoint up, and says what is there.
    fn endpoint(&mut self, vni: u32, address: Ip4) -> Result<Option<Endpoint>, TableError> {
        let endpoint = self.tables.endpoint(&EndpointKey { vni, address })?;
        let says = match endpoint {
            None => "no row".to_owned(),
            Some(endpoint) if endpoint.is_local() => format!("of this node, interface {}", endpoint.ifindex),
            Some(endpoint) => format!("of node {}", endpoint.vtep),
        };
        self.say("endpoint", format!("{address} in VNI {vni}: {says}"));
        Ok(endpoint)
    }

    /// `ingress::deliver` for a flow's first packet.
    fn deliver(
        &mut self,
        program: ProgramId,
        tuple: &FlowTuple,
        (backend, endpoint): (Ip4, &Endpoint),
    ) -> Result<TraceEnd, TableError> {
        let published = tuple.destination_port;
        let key = TargetPortKey::new(backend, published, tuple.protocol);
        let Some(TargetPort { target, way, .. }) = self.tables.target(&key)? else {
            self.say("target port", format!("{backend} publishes no port {published}"));
            return Ok(dropped(program, DropReason::UnpublishedPort));
        };
        self.say("target port", format!("published {published} is {target}"));
        if way & FLOW_DSR != 0 {
            self.answers(tuple)?;
        }
        if let Some(flow) = self.tables.flow(&ForwardKey::new(tuple, backend))? {
            self.say("flow", format!("known: the task sees it from port {}", flow.client_port));
            return self.handed_over(program, tuple, (backend, flow.target_port), endpoint);
        }
        let says = if self.is_port_free(tuple, (backend, target))? {
            format!("new: the task sees {}", socket((tuple.source, tuple.source_port)))
        } else {
            format!(
                "new: the task sees {}, by another port: another flow has {}",
                tuple.source, tuple.source_port
            )
        };
        self.say("flow", says);
        self.handed_over(program, tuple, (backend, target), endpoint)
    }

    /// The task has an address of the client's family, or the packet can't be made one for it.
    fn handed_over(
        &self,
        program: ProgramId,
        tuple: &FlowTuple,
        (backend, port): (Ip4, Port),
        endpoint: &Endpoint,
    ) -> Result<TraceEnd, TableError> {
        let address = self.tables.address(self.config.ingress_vni, backend, tuple.destination.is_v4())?;
        Ok(address.map_or(dropped(program, DropReason::NotIp), |address| sandbox((address, port), endpoint)))
    }

    /// `route::leave_from` for the answers of a service with direct server return. Routes are the kernel's own.
    fn answers(&mut self, tuple: &FlowTuple) -> Result<(), TableError> {
        if self.tables.owner(tuple.destination)?.is_none_or(Ip::is_unspecified) {
            return Ok(());
        }
        self.say(
            "answers",
            match self.tables.owner(tuple.source)? {
                None => "straight to the client if this node's route there leads out of the uplink, else by the tunnel",
                Some(_) => "by the tunnel: the client is a node",
            },
        );
        Ok(())
    }

    /// No living flow of the client through another node has its port at the task.
    fn is_port_free(&self, tuple: &FlowTuple, task: (Ip4, Port)) -> Result<bool, TableError> {
        let client = (tuple.source, tuple.source_port);
        let own = ReplyFlow::new((tuple.destination, tuple.destination_port), tuple.source_port, 0);
        let other = self.tables.reply(&ReplyKey::new(task, client, tuple.protocol))?;
        Ok(other.is_none_or(|other| other.is_same_flow(&own) || other.is_closed()))
    }

    fn tunnel(&mut self, vni: u32, (address, endpoint): (Ip4, &Endpoint), tuple: &FlowTuple) -> TraceEnd {
        self.say("tunnel", format!("to {} with VNI {vni}", endpoint.vtep));
        TraceEnd::Tunnel(TunnelledPacket {
            from: self.config.vtep.into(),
            to: endpoint.vtep.into(),
            vni,
            endpoint: address.into(),
            source: socket((tuple.source, tuple.source_port)),
            destination: socket((tuple.destination, tuple.destination_port)),
            protocol: self.protocol,
        })
    }

    /// What is meant for an endpoint, and the program that decides it. `mesh_uplink` takes IPv4 packets of peers out of tunnels
    /// over IPv4, and packets of both versions out of those over IPv6; all others come to `mesh_vxlan` from the kernel's device.
    /// Both decide alike: a connection's first packet is that only if a stranger sent it.
    fn arrival(&mut self, packet: &TunnelledPacket) -> Result<(ProgramId, TraceEnd), TableError> {
        const DEVICE: ProgramId = ProgramId::MeshVxlan;
        if self.config.vtep.is_unspecified() {
            self.say("config", "no row");
            return Ok((DEVICE, dropped(DEVICE, DropReason::Unconfigured)));
        }
        let from = Ip::from(packet.from);
        if !self.tables.is_peer(from)? {
            self.say("peer", format!("{from} is no node of the cluster"));
            return Ok((DEVICE, dropped(DEVICE, DropReason::UnknownPeer)));
        }
        let is_plain = packet.destination.is_ipv4() || packet.from.is_ipv6();
        let program = if is_plain { ProgramId::MeshUplink } else { DEVICE };
        Ok((program, self.of_peer(program, packet)?))
    }

    /// `vxlan::decide`.
    fn of_peer(&mut self, program: ProgramId, packet: &TunnelledPacket) -> Result<TraceEnd, TableError> {
        let (address, from) = (Ip4::from(packet.endpoint), Ip::from(packet.from));
        let Some(endpoint) = self.endpoint(packet.vni, address)?.filter(Endpoint::is_local) else {
            return Ok(dropped(program, DropReason::UnknownEndpoint));
        };
        let tuple = FlowTuple::new(pair(packet.source), pair(packet.destination), packet.protocol);
        if self.tables.name(packet.vni, tuple.destination)? == Some(address) {
            if !self.is_speaker(packet.vni, tuple.source, from)? {
                self.say("source", format!("{} is not node {from}'s", tuple.source));
                return Ok(dropped(program, DropReason::InnerSource));
            }
            self.say("source", format!("{} is node {from}'s", tuple.source));
            return Ok(sandbox((tuple.destination, tuple.destination_port), &endpoint));
        }
        if packet.vni != self.config.ingress_vni {
            self.say("endpoint", format!("{address} is not the packet's destination {}", tuple.destination));
            return Ok(dropped(program, DropReason::UnknownEndpoint));
        }
        self.deliver(program, &tuple, (address, &endpoint))
    }

    /// A node speaks for its own endpoints, and in the ingress network for its own addresses.
    fn is_speaker(&self, vni: u32, source: Ip, node: Ip) -> Result<bool, TableError> {
        if let Some(address) = self.tables.name(vni, source)?
            && let Some(endpoint) = self.tables.endpoint(&EndpointKey { vni, address })?
            && endpoint.vtep == node
        {
            return Ok(true);
        }
        Ok(vni == self.config.ingress_vni && self.tables.owner(source)? == Some(node))
    }

    fn port_name(&self, address: Ip, port: Port) -> String {
        format!("{}/{}", socket((address, port)), protocol_name(self.protocol))
    }
}

fn sandbox(destination: (Ip, Port), endpoint: &Endpoint) -> TraceEnd {
    TraceEnd::Sandbox {
        destination: socket(destination),
        interface: endpoint.ifindex.to_string(),
        task: String::new(),
    }
}

fn dropped(program: ProgramId, reason: DropReason) -> TraceEnd {
    let (program, reason) = names(program, reason);
    TraceEnd::Dropped { program, reason }
}

fn names(program: ProgramId, reason: DropReason) -> (String, String) {
    (program.label().to_owned(), reason.label().to_owned())
}

fn ring_name(ring: &RingKey) -> String {
    format!("the ring {:016x} in VNI {}", ring.service, ring.vni)
}

fn pair(socket: SocketAddr) -> (Ip, Port) {
    (socket.ip().into(), Port::new(socket.port()))
}

fn socket((address, port): (Ip, Port)) -> SocketAddr {
    SocketAddr::new(IpAddr::from(address), port.get())
}

#[cfg(test)]
mod tests;
