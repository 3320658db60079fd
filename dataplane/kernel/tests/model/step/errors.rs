//! ICMP errors: made here, steered to a backend, and sent by a task.

use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{Chooser, DropReason, FlowTuple, Ip4, Port, ReplyKey, protocol};

use super::mesh::Backend;
use super::rewrite::{DESTINATION, SOURCE};
use super::state::Seen;
use super::{Step, Verdict, Walk, Way};
use crate::frame::{ETHERNET, Link, Network, checksum, fault, fault_of_answer, put};

/// Of the packet at fault an error carries the header and 64 bits (RFC 792).
const CARRIED: usize = 28;
/// What the tunnel's headers take of an underlay packet.
pub const TUNNEL_OVERHEAD: u32 = 50;

impl Walk<'_> {
    /// "Fragmentation needed" with the size that fits (RFC 1191 section 4), back to who sent the packet.
    pub fn refuse_length(&mut self, link: &Link, ip: &Network) -> Step {
        let carried = self.frame.get(ETHERNET..ETHERNET + CARRIED).ok_or(DropReason::Malformed)?.to_vec();
        let fits = self.tables.wanted.config.uplink_mtu.saturating_sub(TUNNEL_OVERHEAD);
        let mut header = vec![0x45, 0, 0, 56, 0, 0, 0, 0, 64, protocol::ICMP, 0, 0];
        header.extend([ip.destination.0, ip.source.0].concat());
        let sum = checksum(&header).to_be_bytes();
        put(&mut header, 10, &sum);
        let mut message = vec![3, 4, 0, 0, 0, 0];
        message.extend(u16::try_from(fits).unwrap_or(u16::MAX).to_be_bytes());
        message.extend(carried);
        let sum = checksum(&message).to_be_bytes();
        put(&mut message, 2, &sum);
        self.frame.truncate(ETHERNET);
        self.frame.extend(header);
        self.frame.extend(message);
        self.set_macs(link.source, link.destination);
        Ok(Verdict::Forward(Way::Out(self.packet.ifindex)))
    }

    /// An error from outside about a backend's answer; `None` if it is about nothing published.
    pub fn error_from_outside(&mut self, ip: &Network) -> Option<Step> {
        let tuple = fault_of_answer(&self.frame, ip)?;
        let ring = self.tables.ring_of(&tuple)?;
        let backend = self.tables.cached(&tuple).or_else(|| self.tables.placed(&ring, 0, &tuple))?;
        if backend.1.is_local() {
            return Some(self.deliver_error(&tuple, backend, Chooser::IN_USE));
        }
        let vni = self.tables.wanted.config.ingress_vni;
        Some(Ok(self.send_tunnelled(backend.1.vtep, vni, (backend.1.mac, ROUTER_MAC))))
    }

    /// To a backend of this node that knows the flow, or to who may.
    pub fn deliver_error(&mut self, tuple: &FlowTuple, backend: Backend, chooser: Chooser) -> Step {
        if let Some(seen) = self.tables.known_flow(tuple, backend.0) {
            return self.hand_over_error(backend, seen);
        }
        let (other, next) = self.tables.other(tuple, backend.0, chooser).ok_or(DropReason::UnknownFlow)?;
        if !other.1.is_local() {
            return Ok(self.ask_other_node(&other.1, next));
        }
        let seen = self.tables.known_flow(tuple, other.0).ok_or(DropReason::UnknownFlow)?;
        self.hand_over_error(other, seen)
    }

    /// The packet at fault becomes what the task sent.
    fn hand_over_error(&mut self, (backend, endpoint): Backend, seen: Seen) -> Step {
        self.translate_fault_address(12, backend)?;
        self.translate_fault_port(0, seen.target)?;
        self.translate_fault_port(2, seen.client)?;
        self.set_address(DESTINATION, backend)?;
        self.set_macs(endpoint.mac, ROUTER_MAC);
        Ok(Verdict::Forward(Way::Sandbox(endpoint.ifindex)))
    }

    /// A task's error about a client's packet, which becomes what the client sent; `None` if it is about none.
    pub fn error_from_task(&mut self, ip: &Network) -> Option<Step> {
        let asked = fault(&self.frame, ip)?;
        if asked.destination != ip.source.into() {
            return None;
        }
        let client = (asked.source, asked.source_port);
        let key = ReplyKey::new((asked.destination.low(), asked.destination_port), client, asked.protocol);
        let flow = *self.tables.written.replies.get(&key)?;
        Some(self.restore_error(ip.destination, flow.service.low(), (flow.client_port, flow.service_port)))
    }

    fn restore_error(&mut self, client: Ip4, service: Ip4, ports: (Port, Port)) -> Step {
        self.translate_fault_address(16, service)?;
        self.translate_fault_port(0, ports.0)?;
        self.translate_fault_port(2, ports.1)?;
        self.set_address(SOURCE, service)?;
        self.leave_from(service, client)
    }
}
