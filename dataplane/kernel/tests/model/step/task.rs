//! What a task sends into one of its networks.

use ebpf_abi::flow::FLOW_STRAYED;
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::table::{ATTACHMENT_INGRESS, ATTACHMENT_WAY_OUT};
use ebpf_abi::{Attachment, DropReason, EndpointKey, FlowTuple, Ip, Ip4, ReplyFlow, protocol};

use super::errors::may_be_refused;
use super::rewrite::Side;
use super::translate::may_stand_in;
use super::{Step, Verdict, Walk, Way, is_group};
use crate::frame::{ARP, Link, Segment, changed_checksum, echo_request, put};
use crate::network::{Family, Network};

impl Walk<'_> {
    pub fn task_sends(&mut self) -> Step {
        let attachment = self.tables.wanted.attachments.get(&self.packet.ifindex);
        let attachment = *attachment.ok_or(DropReason::UnknownAttachment)?;
        let link = Link::of(&self.frame).ok_or(DropReason::Malformed)?;
        if link.source != attachment.mac {
            return Err(DropReason::SourceAddress);
        }
        if attachment.flags & ATTACHMENT_WAY_OUT != 0 {
            return self.by_way_out(&attachment, &link);
        }
        if link.kind == ARP {
            return self.arp(&attachment);
        }
        let family = Family::of(link.kind).ok_or(DropReason::NotIp)?;
        if family == Family::V6 && !self.tables.wanted.prefixes6.contains_key(&attachment.vni) {
            return Err(DropReason::NotIp);
        }
        self.tables.config().ok_or(DropReason::Unconfigured)?;
        let ip = Network::of(&self.frame, family).ok_or(DropReason::Malformed)?;
        self.solicitation(&attachment, &link, &ip)
            .unwrap_or_else(|| self.across_network(&attachment, &link, &ip))
    }

    /// What answers clients, and else what is the task's own to say.
    fn by_way_out(&mut self, attachment: &Attachment, link: &Link) -> Step {
        if link.kind == ARP {
            return self.own_arp(attachment);
        }
        let family = Family::of(link.kind).ok_or(DropReason::NotIp)?;
        let ip = Network::of(&self.frame, family).ok_or(DropReason::Malformed)?;
        if let Some(step) = self.answer_by_way_out(&ip, attachment) {
            return step;
        }
        self.own_packet(attachment, &ip)
    }

    /// What answers clients from a socket that let the routing table choose the way, as those of TCP don't; `None` for the rest.
    fn answer_by_way_out(&mut self, ip: &Network, attachment: &Attachment) -> Option<Step> {
        self.tables.config()?;
        let segment =
            self.tables.segment(&self.frame, ip).ok().filter(|segment| !segment.is_of(protocol::TCP))?;
        let flow = self.tables.task_answers(&segment, attachment.address)?;
        self.tables.remember_fragment(ip, &segment);
        Some(self.restore(&segment, attachment, &flow))
    }

    /// To a client, an endpoint, a process of a node, or the router.
    fn across_network(&mut self, attachment: &Attachment, link: &Link, ip: &Network) -> Step {
        if ip.source == Ip::UNSPECIFIED && is_group(ip.destination) {
            return Err(DropReason::Group);
        }
        if self.tables.name(attachment.vni, ip.source) != Some(attachment.address) {
            return Err(DropReason::SourceAddress);
        }
        let is_ingress = attachment.flags & ATTACHMENT_INGRESS != 0;
        if is_group(ip.destination) && !(is_ingress && may_stand_in(ip.destination)) {
            return Err(DropReason::Group);
        }
        if is_ingress && let Some(step) = self.answer_client(ip, attachment) {
            return step;
        }
        let name = self.tables.name(attachment.vni, ip.destination);
        let key = name.map(|address| EndpointKey { vni: attachment.vni, address });
        if let Some(endpoint) = key.and_then(|key| self.tables.wanted.endpoints.get(&key).copied()) {
            if endpoint.is_local() {
                self.set_macs(endpoint.mac, attachment.mac);
                let client = name.ok_or(DropReason::NoRoute)?;
                return self.hand_to_task(attachment.vni, ip, client, &endpoint);
            }
            return self.send_tunnelled(endpoint.vtep, attachment.vni, (endpoint.mac, ROUTER_MAC));
        }
        let owner = self.tables.wanted.address_owners.get(&ip.destination).copied();
        match owner.filter(|_| is_ingress) {
            // A process of this node takes it from the tunnel device.
            Some(owner) if owner.is_unspecified() => {
                Ok(Verdict::Forward(Way::In(self.tables.wanted.config.vxlan_ifindex)))
            }
            Some(node) => self.send_to_node(node, ROUTER_MAC),
            None => match name {
                Some(name) => self.router_answers(attachment, link, (ip, name)),
                None if may_be_refused(&self.frame, ip) => self.refuse_route6(attachment, ip),
                None => Err(DropReason::NoRoute),
            },
        }
    }

    fn answer_client(&mut self, ip: &Network, attachment: &Attachment) -> Option<Step> {
        let task = attachment.address;
        let Ok(segment) = self.tables.segment(&self.frame, ip) else { return self.error_from_task(ip, task) };
        let flow = self.tables.task_answers(&segment, task)?;
        self.tables.remember_fragment(ip, &segment);
        Some(self.restore(&segment, attachment, &flow))
    }

    /// The client sees the address and port that it connected to.
    fn restore(&mut self, segment: &Segment, attachment: &Attachment, flow: &ReplyFlow) -> Step {
        let tuple = &segment.tuple;
        if tuple.source.is_v4()
            && !flow.service.is_v4()
            && let Some(client) = self.tables.meant(tuple.destination)
        {
            return self.restore_as_v6((attachment, segment), client, flow);
        }
        let client = (tuple.destination, tuple.destination_port);
        let task = (tuple.source, tuple.source_port);
        self.translate(segment, Side::Source, task, (flow.service, flow.service_port))?;
        self.translate(segment, Side::Destination, client, (client.0, flow.client_port))?;
        if flow.way & FLOW_STRAYED == 0 {
            return self.leave_from(flow, client.0, attachment.address);
        }
        let service = (flow.service, flow.service_port);
        let tuple = FlowTuple::new((client.0, flow.client_port), service, tuple.protocol);
        self.leave_and_tell(tuple, attachment.address)
    }

    /// The gateway and virtual addresses answer ping; what else is for a virtual address is for a backend.
    fn router_answers(&mut self, attachment: &Attachment, link: &Link, (ip, name): (&Network, Ip4)) -> Step {
        let is_vip = self.is_vip(attachment, name);
        if !is_vip && name != attachment.gateway {
            return Err(DropReason::NoRoute);
        }
        let Some((request, code, sum)) = echo_request(&self.frame, ip) else {
            return if is_vip {
                self.ask_vip(attachment, (ip, name))
            } else {
                self.answer_itself(attachment, ip)
            };
        };
        let reply = match ip.family {
            Family::V4 => 0,
            Family::V6 => 129,
        };
        self.set_macs(link.source, ROUTER_MAC);
        self.swap_addresses(ip);
        let sum = changed_checksum(sum, &[request, code], &[reply, code]).to_be_bytes();
        put(&mut self.frame, ip.family.icmp(), &[reply, code, sum[0], sum[1]]);
        Ok(Verdict::Forward(Way::Out(self.packet.ifindex)))
    }
}
