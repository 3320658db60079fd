//! The decisions, in the programs' order. `ebpf/progs` has the originals: a test compares both.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use dataplane_model::ProtocolNumber;
use dataplane_model::inspect::{
    HOP, TraceChance, TraceEnd, TraceReport, TraceStep, TraceWay, TunnelledPacket,
};
use dataplane_model::kernel_state::protocol_name;
use ebpf_abi::flow::FLOW_DSR;
use ebpf_abi::table::{ATTACHMENT_INGRESS, ATTACHMENT_WAY_OUT};
use ebpf_abi::{
    Attachment, DropReason, Endpoint, EndpointKey, FlowTuple, ForwardKey, FrontendKey, Ip, Ip4, NodeConfig,
    Port, ProgramId, ReplyFlow, ReplyKey, RingKey, SandboxNetworks, TargetPort, TargetPortKey, VipKey,
    protocol,
};
use ebpf_packet::hash::{flow_hash, place};

use super::hops::{Verdict, packet_hop, refused, socket_hop, within_sandbox};
use super::{Lookup, TaskOrigin};
use crate::bpf::TableError;

/// One trace through one node's tables.
pub struct Walk<'a, T> {
    tables: &'a T,
    config: NodeConfig,
    protocol: ProtocolNumber,
    steps: Vec<TraceStep>,
}

/// A task's leg in a network.
type Leg = (u32, Attachment);

impl<'a, T: Lookup> Walk<'a, T> {
    pub fn new(tables: &'a T, protocol: ProtocolNumber) -> Result<Self, TableError> {
        Ok(Self { tables, config: tables.config()?, protocol, steps: Vec::new() })
    }

    /// A client's packet at the uplink.
    pub fn from_outside(
        mut self,
        client: SocketAddrV4,
        destination: SocketAddrV4,
    ) -> Result<TraceReport, TableError> {
        let tuple = FlowTuple::new(pair(client), pair(destination), self.protocol);
        let end = self.uplink(&tuple)?;
        self.hop(ProgramId::MeshUplink, &end);
        Ok(self.only(end))
    }

    /// A socket of a task, and then its packet.
    pub fn from_task(
        mut self,
        task: &TaskOrigin,
        destination: SocketAddrV4,
    ) -> Result<TraceReport, TableError> {
        let translated = match self.tables.sandbox(task.netns_cookie)? {
            None => {
                self.say("socket", "the sandbox has no row: its sockets are not translated");
                None
            }
            Some(networks) => self.service(&networks, pair(destination))?,
        };
        let Some((ring, target)) = translated else {
            let end = self.packet(task, destination)?;
            return Ok(self.only(end));
        };
        let places = self.places(&ring)?;
        if places.is_empty() {
            self.say("ring", "has no place: the system call fails with ECONNREFUSED");
            self.say(HOP, socket_hop(self.protocol, None));
            let end = refused(self.protocol);
            return Ok(self.only(end));
        }
        self.each_backend(task, &places, target)
    }

    /// A packet that another node has put into a tunnel.
    pub fn from_tunnel(mut self, packet: &TunnelledPacket) -> Result<TraceReport, TableError> {
        let end = self.arrival(packet)?;
        let device = ProgramId::MeshVxlan;
        if matches!(&end, TraceEnd::Dropped { program, .. } if program == device.label()) {
            self.say(HOP, packet_hop(ProgramId::MeshUplink.label(), Verdict::Passed));
            self.hop(device, &end);
        } else {
            self.hop(ProgramId::MeshUplink, &end);
        }
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
        let name = self.port_name(tuple.destination.low(), tuple.destination_port);
        // Localhost is for the node's own processes: from outside it is nobody's.
        let frontend = if tuple.destination.is_loopback() { None } else { self.tables.frontend(&key)? };
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

    /// By the cache if a datagram's flow is known there and its backend still serves, else by the ring.
    fn backend(&mut self, tuple: &FlowTuple, ring: &RingKey) -> Result<Option<(Ip4, Endpoint)>, TableError> {
        if self.protocol == protocol::UDP
            && let Some(known) = self.tables.cached(tuple)?
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
            return Ok(sandbox((backend, flow.target_port), endpoint));
        }
        let says = if self.is_port_free(tuple, (backend, target))? {
            format!("new: the task sees {}:{}", tuple.source, tuple.source_port)
        } else {
            format!(
                "new: the task sees {}, by another port: another flow has {}",
                tuple.source, tuple.source_port
            )
        };
        self.say("flow", says);
        Ok(sandbox((backend, target), endpoint))
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
            source: socket((tuple.source.low(), tuple.source_port)),
            destination: socket((tuple.destination.low(), tuple.destination_port)),
            protocol: self.protocol,
        })
    }

    /// `mesh_uplink`, for what is meant for an endpoint. What it doesn't take `mesh_vxlan` gets from the kernel's device, and
    /// decides alike: a connection's first packet is that only if a stranger sent it.
    fn arrival(&mut self, packet: &TunnelledPacket) -> Result<TraceEnd, TableError> {
        const PROGRAM: ProgramId = ProgramId::MeshUplink;
        if self.config.vtep.is_unspecified() {
            self.say("config", "no row");
            return Ok(dropped(ProgramId::MeshVxlan, DropReason::Unconfigured));
        }
        let from = Ip::from(packet.from);
        if !self.tables.is_peer(from)? {
            self.say("peer", format!("{from} is no node of the cluster"));
            return Ok(dropped(ProgramId::MeshVxlan, DropReason::UnknownPeer));
        }
        let address = Ip4::from(packet.endpoint);
        let Some(endpoint) = self.endpoint(packet.vni, address)?.filter(Endpoint::is_local) else {
            return Ok(dropped(PROGRAM, DropReason::UnknownEndpoint));
        };
        let tuple = FlowTuple::new(pair(packet.source), pair(packet.destination), packet.protocol);
        if tuple.destination.low() == address {
            if !self.is_speaker(packet.vni, tuple.source.low(), from)? {
                self.say("source", format!("{} is not node {from}'s", tuple.source));
                return Ok(dropped(PROGRAM, DropReason::InnerSource));
            }
            self.say("source", format!("{} is node {from}'s", tuple.source));
            return Ok(sandbox((address, tuple.destination_port), &endpoint));
        }
        if packet.vni != self.config.ingress_vni {
            self.say("endpoint", format!("{address} is not the packet's destination {}", tuple.destination));
            return Ok(dropped(PROGRAM, DropReason::UnknownEndpoint));
        }
        self.deliver(PROGRAM, &tuple, (address, &endpoint))
    }

    /// A node speaks for its own endpoints, and in the ingress network for its own addresses.
    fn is_speaker(&self, vni: u32, source: Ip4, node: Ip) -> Result<bool, TableError> {
        let endpoint = self.tables.endpoint(&EndpointKey { vni, address: source })?;
        if endpoint.is_some_and(|endpoint| endpoint.vtep == node) {
            return Ok(true);
        }
        Ok(vni == self.config.ingress_vni && self.tables.owner(source.into())? == Some(node))
    }

    /// `mesh_connect4` and `mesh_sendmsg4`: the ring and port that a task's socket is translated to.
    fn service(
        &mut self,
        networks: &SandboxNetworks,
        (address, port): (Ip4, Port),
    ) -> Result<Option<(RingKey, Port)>, TableError> {
        let name = self.port_name(address, port);
        if self.protocol == protocol::SCTP {
            self.say("socket", "the kernel asks no program about sockets of SCTP: not translated");
            return Ok(None);
        }
        if !address.is_loopback() && !address.is_unspecified() {
            let key = FrontendKey::new(address, port, self.protocol);
            if let Some(frontend) = self.tables.frontend(&key)? {
                self.say("frontend", format!("{name} leads to {}", ring_name(&frontend.ring)));
                return Ok(Some((frontend.ring, frontend.target)));
            }
        }
        if self.protocol == protocol::TCP || self.protocol == protocol::UDP {
            let n_vnis = usize::try_from(networks.n_vnis).unwrap_or(usize::MAX);
            for vni in networks.vnis.iter().take(n_vnis) {
                if let Some(ring) = self.tables.vip(&VipKey { vni: *vni, address })? {
                    self.say(
                        "virtual address",
                        format!("{address} in VNI {vni} leads to {}", ring_name(&ring)),
                    );
                    return Ok(Some((ring, port)));
                }
            }
        }
        self.say("socket", format!("{name} is neither virtual nor published here: not translated"));
        Ok(None)
    }

    /// Sockets are placed by chance, datagrams of one socket alike: each backend is a way.
    fn each_backend(
        self,
        task: &TaskOrigin,
        places: &[Ip4],
        target: Port,
    ) -> Result<TraceReport, TableError> {
        let mut shares: BTreeMap<Ip4, u32> = BTreeMap::new();
        for backend in places {
            *shares.entry(*backend).or_default() += 1;
        }
        let of = shares.values().sum();
        let mut report = TraceReport::default();
        for (backend, n_places) in shares {
            let mut walk = Self {
                tables: self.tables,
                config: self.config,
                protocol: self.protocol,
                steps: self.steps.clone(),
            };
            walk.say(
                "ring",
                format!("{n_places} of {of} places are {backend}'s: the socket goes to {backend}:{target}"),
            );
            let translated = socket((backend, target));
            walk.say(HOP, socket_hop(self.protocol, Some(translated)));
            let end = walk.packet(task, translated)?;
            let chance = Some(TraceChance { places: n_places, of });
            report.ways.push(TraceWay { chance, steps: walk.steps, end });
        }
        Ok(report)
    }

    /// The packet that leaves a task's sandbox: by the leg whose subnet has the destination, else by the way out.
    fn packet(&mut self, task: &TaskOrigin, destination: SocketAddrV4) -> Result<TraceEnd, TableError> {
        let attachments = self.tables.attachments()?;
        let is_its = |leg: &Attachment| task.addresses.contains(&(leg.vni, leg.address.into()));
        let own: Vec<Leg> = attachments.into_iter().filter(|(_, leg)| is_its(leg)).collect();
        let address = Ip4::from(*destination.ip());
        if task.has(*destination.ip()) {
            self.say("sandbox", "the task's own address: no program sees the packet");
            return Ok(within_sandbox(destination));
        }
        let is_inside = |leg: &Attachment| leg.flags & ATTACHMENT_WAY_OUT == 0 && has(leg, address);
        let Some(leg) = own.iter().find(|(_, leg)| is_inside(leg)) else {
            return self.way_out(task, destination);
        };
        if !self.has_neighbour(&leg.1, address)? {
            self.say("neighbour", format!("nobody answers for {address}: the packet is not even sent"));
            let end = dropped(ProgramId::MeshTask, DropReason::NeighbourUnanswered);
            self.hop(ProgramId::MeshTask, &end);
            return Ok(end);
        }
        let source = socket((leg.1.address, Port::new(task.port)));
        let end = self.leg(leg, source, destination)?;
        self.hop(ProgramId::MeshTask, &end);
        Ok(end)
    }

    /// `mesh_task` answers the task's question for the address's MAC, if it does not know it still.
    fn has_neighbour(&self, leg: &Attachment, address: Ip4) -> Result<bool, TableError> {
        let (vni, is_own) = (leg.vni, address == leg.address);
        let is_known = address == leg.gateway
            || self.tables.vip(&VipKey { vni, address })?.is_some()
            || self.tables.endpoint(&EndpointKey { vni, address })?.is_some();
        Ok(is_known && !is_own)
    }

    /// `mesh_task`.
    fn leg(
        &mut self,
        (ifindex, leg): &Leg,
        source: SocketAddrV4,
        destination: SocketAddrV4,
    ) -> Result<TraceEnd, TableError> {
        const PROGRAM: ProgramId = ProgramId::MeshTask;
        self.say("attachment", format!("by {} in VNI {}, interface {ifindex}", leg.address, leg.vni));
        if self.config.vtep.is_unspecified() {
            self.say("config", "no row");
            return Ok(dropped(PROGRAM, DropReason::Unconfigured));
        }
        let tuple = FlowTuple::new(pair(source), pair(destination), self.protocol);
        let address = tuple.destination.low();
        if let Some(endpoint) = self.endpoint(leg.vni, address)? {
            if endpoint.is_local() {
                return Ok(sandbox((address, tuple.destination_port), &endpoint));
            }
            return Ok(self.tunnel(leg.vni, (address, &endpoint), &tuple));
        }
        if leg.flags & ATTACHMENT_INGRESS != 0 && self.tables.owner(tuple.destination)?.is_some() {
            self.say("owner", "a node's address: to a process there");
            return Ok(TraceEnd::Host);
        }
        let is_vip = self.tables.vip(&VipKey { vni: leg.vni, address })?.is_some();
        let reason = if is_vip { DropReason::VipProtocol } else { DropReason::NoRoute };
        self.say("route", reason.text());
        Ok(dropped(PROGRAM, reason))
    }

    /// Past the sandbox's networks. The node forwards what is for the ingress network to the VXLAN device, with an address of
    /// its own: `mesh_vxlan_out`.
    fn way_out(&mut self, task: &TaskOrigin, destination: SocketAddrV4) -> Result<TraceEnd, TableError> {
        let (address, port) = pair(destination);
        let vni = self.config.ingress_vni;
        let endpoint = self.tables.endpoint(&EndpointKey { vni, address })?;
        let is_ingress = vni != 0 && endpoint.is_some();
        self.say(
            "way out",
            "no leg of the task has the destination: the node forwards it, if the task has a way out",
        );
        self.say(HOP, packet_hop(ProgramId::MeshTask.label(), Verdict::Passed));
        let Some(endpoint) = endpoint.filter(|_| is_ingress) else { return Ok(TraceEnd::Host) };
        let _ = self.endpoint(vni, address)?;
        let verdict = if endpoint.is_local() { Verdict::Forwarded } else { Verdict::Passed };
        self.say(HOP, packet_hop(ProgramId::MeshVxlanOut.label(), verdict));
        if endpoint.is_local() {
            return Ok(sandbox((address, port), &endpoint));
        }
        let source = (self.config.vtep, Port::new(task.port));
        let tuple = FlowTuple::new(source, (address, port), self.protocol);
        Ok(self.tunnel(vni, (address, &endpoint), &tuple))
    }

    fn port_name(&self, address: Ip4, port: Port) -> String {
        format!("{address}:{port}/{}", protocol_name(self.protocol))
    }
}

/// The leg's subnet has the address.
fn has(leg: &Attachment, address: Ip4) -> bool {
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(leg.prefix.into())).unwrap_or(0);
    leg.address.to_u32() & mask == address.to_u32() & mask
}

fn sandbox(destination: (Ip4, Port), endpoint: &Endpoint) -> TraceEnd {
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

fn pair(socket: SocketAddrV4) -> (Ip4, Port) {
    ((*socket.ip()).into(), Port::new(socket.port()))
}

fn socket((address, port): (Ip4, Port)) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(address), port.get())
}

#[cfg(test)]
mod tests;
