//! What a task sends: the decisions of the socket programs, of `mesh_task` and of `mesh_vxlan_out`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use dataplane_model::inspect::{HOP, TraceChance, TraceEnd, TraceReport, TraceWay};
use ebpf_abi::table::{ATTACHMENT_INGRESS, ATTACHMENT_WAY_OUT};
use ebpf_abi::{
    Attachment, DropReason, EndpointKey, FlowTuple, FrontendKey, Ip, Ip4, Port, ProgramId, RingKey,
    SandboxNetworks, VipKey, protocol,
};

use ebpf_packet::hash::{flow_hash, place};

use super::super::hops::{Verdict, no_route, packet_hop, refused, refused_by, socket_hop, within_sandbox};
use super::super::{Lookup, TaskOrigin};
use super::{Walk, dropped, pair, ring_name, sandbox, socket};
use crate::bpf::TableError;

/// A task's leg in a network.
type Leg = (u32, Attachment);

/// What a socket's destination stands for.
struct Service {
    ring: RingKey,
    /// The backends' port.
    target: Port,
    /// By which of their addresses backends are reached.
    is_v4: bool,
}

impl<T: Lookup> Walk<'_, T> {
    /// A socket of a task, and then its packet.
    pub fn from_task(
        mut self,
        task: &TaskOrigin,
        destination: SocketAddr,
    ) -> Result<TraceReport, TableError> {
        let translated = match self.tables.sandbox(task.netns_cookie)? {
            None => {
                self.say("socket", "the sandbox has no row: its sockets are not translated");
                None
            }
            Some(networks) => self.service(&networks, pair(destination))?,
        };
        let Some(service) = translated else {
            let end = self.packet(task, destination)?;
            return Ok(self.only(end));
        };
        let places = self.places(&service.ring)?;
        let has_family = service.is_v4 || self.tables.prefix6(service.ring.vni)?.is_some();
        if places.is_empty() || !has_family {
            self.say("ring", "has no place: the system call fails with ECONNREFUSED");
            self.say(HOP, socket_hop(self.protocol, destination.is_ipv4(), None));
            let end = refused(self.protocol, destination.is_ipv4());
            return Ok(self.only(end));
        }
        self.each_backend(task, &places, (&service, destination.is_ipv4()))
    }

    /// `mesh_connect4`, `mesh_sendmsg4` and those of IPv6: what a task's socket is translated to. The trace's datagrams are of
    /// sockets that are not connected.
    fn service(
        &mut self,
        networks: &SandboxNetworks,
        (address, port): (Ip, Port),
    ) -> Result<Option<Service>, TableError> {
        let name = self.port_name(address, port);
        if self.protocol == protocol::SCTP {
            self.say("socket", "the kernel asks no program about sockets of SCTP: not translated");
            return Ok(None);
        }
        if !address.is_loopback() && !address.is_unspecified() {
            let is_nodes = !address.is_v4() && self.tables.owner(address)?.is_some();
            let asked = if is_nodes { Ip::LOCALHOST4 } else { address };
            if let Some(frontend) = self.tables.frontend(&FrontendKey::new(asked, port, self.protocol))? {
                self.say("frontend", format!("{name} leads to {}", ring_name(&frontend.ring)));
                let is_v4 = address.is_v4() || self.protocol != protocol::UDP;
                return Ok(Some(Service { ring: frontend.ring, target: frontend.target, is_v4 }));
            }
        }
        if self.protocol == protocol::TCP || self.protocol == protocol::UDP {
            let n_vnis = usize::try_from(networks.n_vnis).unwrap_or(usize::MAX);
            for vni in networks.vnis.iter().take(n_vnis) {
                let Some(vip) = self.tables.name(*vni, address)? else { continue };
                if let Some(ring) = self.tables.vip(&VipKey { vni: *vni, address: vip })? {
                    self.say(
                        "virtual address",
                        format!("{address} in VNI {vni} leads to {}", ring_name(&ring)),
                    );
                    return Ok(Some(Service { ring, target: port, is_v4: address.is_v4() }));
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
        (service, is_v4): (&Service, bool),
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
            let address = self.tables.address(service.ring.vni, backend, service.is_v4)?;
            let translated = socket((address.unwrap_or(backend.into()), service.target));
            walk.say(
                "ring",
                format!("{n_places} of {of} places are {backend}'s: the socket goes to {translated}"),
            );
            walk.say(HOP, socket_hop(self.protocol, is_v4, Some(translated)));
            let end = walk.packet(task, translated)?;
            let chance = Some(TraceChance { places: n_places, of });
            report.ways.push(TraceWay { chance, steps: walk.steps, end });
        }
        Ok(report)
    }

    /// The packet that leaves a task's sandbox: by the leg whose subnet has the destination, else by the way out.
    fn packet(&mut self, task: &TaskOrigin, destination: SocketAddr) -> Result<TraceEnd, TableError> {
        let (address, _) = pair(destination);
        if task.network_of(address, self.tables)?.is_some() {
            self.say("sandbox", "the task's own address: no program sees the packet");
            return Ok(within_sandbox(destination));
        }
        let Some(leg) = leg_to(self.tables, task, address)? else {
            return self.way_out(task, destination);
        };
        // Through a gateway, which always answers, where the leg's network does not have the destination.
        let name = self.tables.name(leg.1.vni, address)?.unwrap_or(leg.1.gateway);
        if !self.has_neighbour(&leg.1, name)? {
            self.say("neighbour", format!("nobody answers for {address}: the packet is not even sent"));
            let end = dropped(ProgramId::MeshTask, DropReason::NeighbourUnanswered);
            self.hop(ProgramId::MeshTask, &end);
            return Ok(end);
        }
        let own = self.tables.address(leg.1.vni, leg.1.address, address.is_v4())?;
        let source = socket((own.unwrap_or(leg.1.address.into()), Port::new(task.port)));
        let end = self.leg(&leg, source, destination)?;
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
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Result<TraceEnd, TableError> {
        const PROGRAM: ProgramId = ProgramId::MeshTask;
        self.say("attachment", format!("by {} in VNI {}, interface {ifindex}", leg.address, leg.vni));
        if self.config.vtep.is_unspecified() {
            self.say("config", "no row");
            return Ok(dropped(PROGRAM, DropReason::Unconfigured));
        }
        let tuple = FlowTuple::new(pair(source), pair(destination), self.protocol);
        let named = self.tables.name(leg.vni, tuple.destination)?;
        let address = named.unwrap_or(Ip4::UNSPECIFIED);
        if let Some(endpoint) = self.endpoint(leg.vni, address)? {
            if endpoint.is_local() {
                return Ok(sandbox((tuple.destination, tuple.destination_port), &endpoint));
            }
            return Ok(self.tunnel(leg.vni, (address, &endpoint), &tuple));
        }
        if leg.flags & ATTACHMENT_INGRESS != 0 && self.tables.owner(tuple.destination)?.is_some() {
            self.say("owner", "a node's address: to a process there");
            return Ok(TraceEnd::Host);
        }
        if named.is_none() {
            self.say("route", "by IPv6 there is no way out of the network: its router says so");
            return Ok(no_route());
        }
        if let Some(ring) = self.tables.vip(&VipKey { vni: leg.vni, address })? {
            return self.past_hooks(leg, &tuple, &ring);
        }
        self.say("route", DropReason::NoRoute.text());
        Ok(dropped(PROGRAM, DropReason::NoRoute))
    }

    /// `vips::ask` for a flow's first packet. Its way back is not looked at.
    fn past_hooks(
        &mut self,
        leg: &Attachment,
        tuple: &FlowTuple,
        ring: &RingKey,
    ) -> Result<TraceEnd, TableError> {
        let name = self.port_name(tuple.destination, tuple.destination_port);
        self.say("virtual address", format!("{name} leads to {}", ring_name(ring)));
        let places = self.places(ring)?;
        let n_places = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let index = place(flow_hash(tuple), n_places);
        let backend = usize::try_from(index).ok().and_then(|index| places.get(index)).copied();
        let Some(backend) = backend else {
            self.say("ring", "has no place: the client is told that the port is closed");
            return Ok(refused_by(ProgramId::MeshTask));
        };
        self.say("ring", format!("place {index} of {n_places} is {backend}'s"));
        let is_v4 = tuple.destination.is_v4();
        let found = self.endpoint(leg.vni, backend)?.zip(self.tables.address(leg.vni, backend, is_v4)?);
        let Some((endpoint, address)) = found else {
            return Ok(refused_by(ProgramId::MeshTask));
        };
        if endpoint.is_local() {
            return Ok(sandbox((address, tuple.destination_port), &endpoint));
        }
        let source = (tuple.source, tuple.source_port);
        let sent = FlowTuple::new(source, (address, tuple.destination_port), tuple.protocol);
        Ok(self.tunnel(leg.vni, (backend, &endpoint), &sent))
    }

    /// Past the sandbox's networks. The node forwards what is for the ingress network to the VXLAN device, with an address of
    /// its own: `mesh_vxlan_out`.
    fn way_out(&mut self, task: &TaskOrigin, destination: SocketAddr) -> Result<TraceEnd, TableError> {
        let (destination, port) = pair(destination);
        if !destination.is_v4() && !task.has_way_out6(self.tables)? {
            self.say("way out", "has no IPv6: the system call fails");
            return Ok(TraceEnd::Host);
        }
        let (vni, address) = (self.config.ingress_vni, destination.to_v4());
        let endpoint = match address {
            Some(address) if vni != 0 => self.tables.endpoint(&EndpointKey { vni, address })?,
            _ => None,
        };
        self.say(
            "way out",
            "no leg of the task has the destination: the node forwards it, if the task has a way out",
        );
        let own = task.far_source4.map(Ip4::from);
        let is_way_out = |leg: &Attachment| leg.flags & ATTACHMENT_WAY_OUT != 0 && leg.mac.endpoint() == own;
        if own.is_some() && self.tables.attachments()?.values().any(is_way_out) {
            self.say(HOP, packet_hop(ProgramId::MeshTask.label(), Verdict::Passed));
        }
        let Some((endpoint, address)) = endpoint.zip(address) else { return Ok(TraceEnd::Host) };
        let _ = self.endpoint(vni, address)?;
        let verdict = if endpoint.is_local() { Verdict::Forwarded } else { Verdict::Passed };
        self.say(HOP, packet_hop(ProgramId::MeshVxlanOut.label(), verdict));
        if endpoint.is_local() {
            return Ok(sandbox((destination, port), &endpoint));
        }
        let source = (self.config.vtep, Port::new(task.port));
        let tuple = FlowTuple::new(source, (destination, port), self.protocol);
        Ok(self.tunnel(vni, (address, &endpoint), &tuple))
    }
}

/// The task's legs in networks, by interface.
fn own_legs(tables: &impl Lookup, task: &TaskOrigin) -> Result<Vec<Leg>, TableError> {
    let is_its = |leg: &Attachment| task.addresses.contains(&(leg.vni, leg.address.into()));
    Ok(tables.attachments()?.into_iter().filter(|(_, leg)| is_its(leg)).collect())
}

/// The leg whose subnet has the address; `None` for what goes by the way out. A task that has none by IPv6 sends all by the
/// routing mesh's leg.
pub fn leg_to(tables: &impl Lookup, task: &TaskOrigin, address: Ip) -> Result<Option<Leg>, TableError> {
    let legs = own_legs(tables, task)?;
    if address.is_v4() {
        return Ok(legs.into_iter().find(|(_, leg)| has(leg, address.low())));
    }
    for leg in &legs {
        if tables.name(leg.1.vni, address)?.is_some() {
            return Ok(Some(*leg));
        }
    }
    if task.has_way_out6(tables)? {
        return Ok(None);
    }
    // Of other legs it is the source address's, which the kernel chooses among them: they answer alike.
    let (ingress, others): (Vec<Leg>, Vec<Leg>) =
        legs.into_iter().partition(|(_, leg)| leg.flags & ATTACHMENT_INGRESS != 0);
    for leg in ingress.into_iter().chain(others) {
        if tables.prefix6(leg.1.vni)?.is_some() {
            return Ok(Some(leg));
        }
    }
    Ok(None)
}

/// The leg's subnet has the address.
fn has(leg: &Attachment, address: Ip4) -> bool {
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(leg.prefix.into())).unwrap_or(0);
    leg.address.to_u32() & mask == address.to_u32() & mask
}
