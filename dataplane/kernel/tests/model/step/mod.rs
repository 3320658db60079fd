//! The model: what the data path should do with a packet, by `docs/ARCHITECTURE.md` ("Packet walk"), over plain tables.
//!
//! Written for reading, not for speed, and without the programs' code: of the contract it uses the rows' types, and the
//! hashes that say which place of a ring a flow has.

mod errors;
mod headers;
mod mesh;
mod neighbour;
mod path;
mod rewrite;
mod socket;
mod state;
mod task;
mod translate;
mod tunnel;
mod uplink;
mod vips;
mod way_out;

pub use headers::FLOW_HASH;

use ebpf_abi::flow::FLOW_DSR;
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{DropReason, FlowTuple, Ip, Ip4, MacAddr, ProgramId, ReplyFlow};

use crate::network::Family;
use crate::packet::{Packet, SocketCall};
use crate::tables::Tables;

/// Where a packet goes that a program sends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Out of an interface, with the MACs that it has.
    Out(u32),
    /// As if an interface had received it.
    In(u32),
    /// Into the sandbox at the other end of a veth pair.
    Sandbox(u32),
    /// Out of an interface, by routes and neighbours.
    Routed(u32),
    /// Out of an interface, to this neighbour.
    Neighbour(u32, Ip4),
    /// Back out of the interface that XDP runs on: by `XDP_TX`, or as a redirection.
    Back { redirected: bool },
    /// A socket that was translated.
    Translated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To the host's stack, or the program beneath.
    Pass,
    Forward(Way),
    Drop(DropReason),
    /// A socket hook that leaves a stranger's socket alone, and doesn't count it.
    Ignore,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    /// The frame, unless it was dropped; of a socket its address and port.
    pub bytes: Vec<u8>,
    /// VNI and far end of the tunnel that it was given.
    pub tunnel: Option<(u32, Ip)>,
    /// The host takes it whatever its destination MAC.
    pub for_host: bool,
}

/// A packet on its way through one program.
struct Walk<'a> {
    tables: &'a mut Tables,
    packet: &'a Packet,
    frame: Vec<u8>,
    tunnel: Option<(u32, Ip)>,
    for_host: bool,
    /// The frame as its sender has sent it, out of its tunnel.
    sent: Vec<u8>,
    /// It is a packet of the other family now, of which its sender knows nothing.
    is_translated: bool,
}

type Step = Result<Verdict, DropReason>;

/// Runs a packet through its program.
pub fn step(tables: &mut Tables, packet: &Packet) -> Outcome {
    let frame = packet.bytes.clone();
    let sent = frame.clone();
    let mut walk = Walk { tables, packet, frame, tunnel: None, for_host: false, sent, is_translated: false };
    let result = match packet.program {
        ProgramId::MeshXdp => Ok(walk.xdp()),
        ProgramId::MeshUplink => walk.uplink(),
        ProgramId::MeshVxlan => walk.tunnel_receives(),
        ProgramId::MeshVxlanOut => walk.tunnel_sends(),
        ProgramId::MeshTask => walk.task_sends(),
        other => unreachable!("{} takes no packets", other.label()),
    };
    let (tunnel, for_host) = (walk.tunnel, walk.for_host);
    match result {
        Ok(verdict) => Outcome { verdict, bytes: walk.frame, tunnel, for_host },
        Err(reason) => Outcome { verdict: Verdict::Drop(reason), bytes: Vec::new(), tunnel, for_host },
    }
}

/// Runs a socket's call through its hook.
pub fn socket_step(tables: &mut Tables, call: &SocketCall) -> Outcome {
    let (verdict, (address, port)) = socket::step(tables, call);
    let bytes = [address.bytes().as_slice(), &port.0].concat();
    Outcome { verdict, bytes, tunnel: None, for_host: false }
}

/// Multicast, reserved or broadcast (RFC 5771, RFC 1112 section 4, RFC 4291 section 2.7).
fn is_group(address: Ip) -> bool {
    match Family::of_address(address) {
        Family::V4 => address.low().0[0] >= 224,
        Family::V6 => address.0[0] == 0xff,
    }
}

impl Walk<'_> {
    /// The address that a task of the routing mesh has in the family of its client; the network may have none.
    fn task_address(&self, task: Ip4, family: Family) -> Result<Ip, DropReason> {
        let vni = self.tables.wanted.config.ingress_vni;
        self.tables.address(vni, task, family).ok_or(DropReason::NotIp)
    }

    /// A packet to a flow's client, which leaves from the node that has the address now that the client asked, or from this
    /// one, if the service wants that and the kernel knows a way.
    fn leave_from(&mut self, flow: &ReplyFlow, client: Ip, task: Ip4) -> Step {
        let Ok(owner) = self.owner(flow.service) else {
            return self.answer_process(flow.service, client, task);
        };
        match owner {
            owner if owner.is_unspecified() => Ok(self.leave_here(client)),
            _ if flow.way & FLOW_DSR != 0 && self.reaches(client) => Ok(self.leave_here(client)),
            owner => self.send_to_node(owner, ROUTER_MAC),
        }
    }

    /// The client is no node, and the kernel's way to it, whose neighbour may be unknown still, leads out of the uplink.
    fn reaches(&self, client: Ip) -> bool {
        const NO_NEIGHBOUR: u32 = 7;
        let hop = self.packet.next_hop;
        let is_node = self.tables.wanted.address_owners.contains_key(&client);
        let is_found = hop.result == 0 || hop.result == NO_NEIGHBOUR;
        !is_node && is_found && hop.ifindex == self.tables.wanted.config.uplink_ifindex
    }

    /// The same for an answer of a flow, as its client's packets have it, that comes here by a detour: the node that they
    /// enter by learns who answers.
    fn leave_and_tell(&mut self, tuple: FlowTuple, backend: Ip4) -> Step {
        let Ok(owner) = self.owner(tuple.destination) else {
            return self.answer_process(tuple.destination, tuple.source, backend);
        };
        match owner {
            owner if owner.is_unspecified() => {
                self.tables.learn(tuple, backend);
                Ok(self.leave_here(tuple.source))
            }
            owner => self.send_to_node(owner, MacAddr::of_endpoint(backend)),
        }
    }

    /// A process that has asked the task by the task's own address is on the node that it has its address from.
    fn answer_process(&mut self, service: Ip, process: Ip, task: Ip4) -> Step {
        if self.tables.name(self.tables.wanted.config.ingress_vni, service) != Some(task) {
            return Err(DropReason::UnknownOwner);
        }
        match self.owner(process)? {
            owner if owner.is_unspecified() => Ok(self.leave_here(process)),
            owner => self.send_to_node(owner, ROUTER_MAC),
        }
    }

    /// The tunnel's end of the node that has an address; unspecified for this one.
    fn owner(&self, address: Ip) -> Result<Ip, DropReason> {
        self.tables.wanted.address_owners.get(&address).copied().ok_or(DropReason::UnknownOwner)
    }

    fn send_to_node(&mut self, node: Ip, sender: MacAddr) -> Step {
        self.send_tunnelled(node, self.tables.wanted.config.ingress_vni, (ROUTER_MAC, sender))
    }

    /// To a client outside, or to a process of this node.
    fn leave_here(&self, client: Ip) -> Verdict {
        let config = &self.tables.wanted.config;
        Verdict::Forward(if self.tables.is_own(client) {
            Way::In(config.vxlan_ifindex)
        } else {
            Way::Routed(config.uplink_ifindex)
        })
    }
}
