//! ICMP errors: made here, steered to a backend, and sent by a task.

use ebpf_abi::flow::FLOW_AS_IPV4;
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{Attachment, Chooser, DropReason, FlowTuple, Ip, Ip4, ReplyFlow, ReplyKey, protocol};

use super::mesh::Backend;
use super::rewrite::Side;
use super::state::Seen;
use super::{Step, Verdict, Walk, Way};
use crate::frame::{ETHERNET, at, checksum, fault, fault_of_answer, put};
use crate::network::{Family, Network, Piece, pseudo_header};
use crate::tables::address6;

/// Nobody is told of an error about an error (RFC 4443 section 2.4 (e)), nor, here, about a piece of a packet.
pub fn may_be_refused(frame: &[u8], ip: &Network) -> bool {
    let kind = at::<1>(frame, ETHERNET + ip.header_len).map_or(0, |[kind]| kind);
    let is_error = ip.protocol == protocol::ICMP6 && kind < 128;
    ip.piece == Piece::Whole && !is_error
}

impl Walk<'_> {
    /// "Fragmentation needed" of an answer that is too long behind an IPv6 header.
    pub fn refuse_answer(&mut self, attachment: &Attachment, ip: &Network, fits: u16) -> Step {
        self.become_error(ip, ip.destination, ([3, 4], fits), 8)?;
        self.set_macs(attachment.mac, ROUTER_MAC);
        Ok(Verdict::Forward(Way::Out(self.packet.ifindex)))
    }

    /// "No route to destination" (RFC 4443 section 3.1) of a network's gateway, back to the task that sent the packet.
    pub fn refuse_route6(&mut self, attachment: &Attachment, ip: &Network) -> Step {
        let prefix = self.tables.wanted.prefixes6.get(&attachment.vni).ok_or(DropReason::NoRoute)?;
        let gateway = address6(prefix, attachment.gateway);
        self.become_error(ip, gateway, ([1, 0], 0), 8)?;
        self.set_macs(attachment.mac, ROUTER_MAC);
        Ok(Verdict::Forward(Way::Out(self.packet.ifindex)))
    }

    /// Makes an error from `source` of the packet, of which it carries the header and so many bytes.
    pub fn become_error(
        &mut self,
        ip: &Network,
        source: Ip,
        (kind, mtu): ([u8; 2], u16),
        n_carried: usize,
    ) -> Result<(), DropReason> {
        let carried = ETHERNET + ip.family.header_len() + n_carried;
        let carried = self.frame.get(ETHERNET..carried).ok_or(DropReason::Malformed)?.to_vec();
        let [high, low] = mtu.to_be_bytes();
        let addresses = [source, ip.source].map(|address| ip.family.bytes(address)).concat();
        let mut header = match ip.family {
            Family::V4 => vec![0x45, 0, 0, 56, 0, 0, 0, 0, 64, protocol::ICMP, 0, 0],
            Family::V6 => vec![0x60, 0, 0, 0, 0, 48 + u8::try_from(n_carried).unwrap(), protocol::ICMP6, 64],
        };
        header.extend(addresses);
        let mut message = [kind[0], kind[1], 0, 0, 0, 0, high, low].to_vec();
        message.extend(carried);
        let covered = match ip.family {
            Family::V4 => {
                let sum = checksum(&header).to_be_bytes();
                put(&mut header, 10, &sum);
                message.clone()
            }
            Family::V6 => {
                let mut covered = pseudo_header(
                    (source, ip.source),
                    protocol::ICMP6,
                    u16::try_from(message.len()).unwrap(),
                );
                covered.extend(&message);
                covered
            }
        };
        put(&mut message, 2, &checksum(&covered).to_be_bytes());
        self.frame.truncate(ETHERNET);
        self.frame.extend(header);
        self.frame.extend(message);
        Ok(())
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
        Some(self.send_tunnelled(backend.1.vtep, vni, (backend.1.mac, ROUTER_MAC)))
    }

    /// To a backend of this node that knows the flow, or to who may.
    pub fn deliver_error(&mut self, tuple: &FlowTuple, backend: Backend, chooser: Chooser) -> Step {
        let family = Family::of_address(tuple.source);
        if let Some(seen) = self.tables.known_flow(tuple, backend.0) {
            return self.hand_over_error((tuple.source, family), backend, seen);
        }
        let (other, next) = self.tables.other(tuple, backend.0, chooser).ok_or(DropReason::UnknownFlow)?;
        if !other.1.is_local() {
            return self.ask_other_node(&other.1, next);
        }
        let seen = self.tables.known_flow(tuple, other.0).ok_or(DropReason::UnknownFlow)?;
        self.hand_over_error((tuple.source, family), other, seen)
    }

    /// The packet at fault becomes what the task sent.
    fn hand_over_error(
        &mut self,
        (client, family): (Ip, Family),
        (backend, endpoint): Backend,
        seen: Seen,
    ) -> Step {
        if seen.family == FLOW_AS_IPV4 {
            return self.hand_over_error_as_v4(client, (backend, endpoint), seen);
        }
        let task = self.task_address(backend, family)?;
        self.translate_fault_address(family, Side::Source, task)?;
        self.translate_fault_port(family, Side::Source, seen.target)?;
        self.translate_fault_port(family, Side::Destination, seen.client)?;
        self.set_error_address(family, Side::Destination, task)?;
        self.set_macs(endpoint.mac, ROUTER_MAC);
        Ok(Verdict::Forward(Way::Sandbox(endpoint.ifindex)))
    }

    /// The error, about a client's packet, of the task with this name; the packet becomes what the client sent. `None` if it is
    /// about none.
    pub fn error_from_task(&mut self, ip: &Network, task: Ip4) -> Option<Step> {
        let asked = fault(&self.frame, ip)?;
        if asked.destination != ip.source {
            return None;
        }
        let client = (self.tables.meant(asked.source)?, asked.source_port);
        let key = ReplyKey::new((task, asked.destination_port), client, asked.protocol);
        let flow = *self.tables.written.replies.get(&key)?;
        if ip.family == Family::V4 && !flow.service.is_v4() {
            return Some(self.restore_error_as_v6(client.0, &flow, task));
        }
        Some(self.restore_error(ip, &flow, task))
    }

    fn restore_error(&mut self, ip: &Network, flow: &ReplyFlow, task: Ip4) -> Step {
        self.translate_fault_address(ip.family, Side::Destination, flow.service)?;
        self.translate_fault_port(ip.family, Side::Source, flow.client_port)?;
        self.translate_fault_port(ip.family, Side::Destination, flow.service_port)?;
        self.set_error_address(ip.family, Side::Source, flow.service)?;
        self.leave_from(flow, ip.destination, task)
    }
}
