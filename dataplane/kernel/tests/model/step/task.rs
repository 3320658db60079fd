//! What a task sends into one of its networks.

use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::table::{ATTACHMENT_INGRESS, ATTACHMENT_WAY_OUT};
use ebpf_abi::{Attachment, DropReason, EndpointKey, FlowTuple, Ip4, MacAddr, ReplyFlow, VipKey};

use super::rewrite::{CLIENT_SIDE, SERVICE_SIDE};
use super::{Step, Verdict, Walk, Way};
use crate::frame::{
    ARP, ETHERNET, ICMP, IPV4, Link, Network, Segment, at, changed_checksum, echo_request, put,
};

impl Walk<'_> {
    pub fn task_sends(&mut self) -> Step {
        let attachment = self.tables.wanted.attachments.get(&self.packet.ifindex);
        let attachment = *attachment.ok_or(DropReason::UnknownAttachment)?;
        if attachment.flags & ATTACHMENT_WAY_OUT != 0 {
            return self.by_way_out(&attachment).unwrap_or(Ok(Verdict::Pass));
        }
        let link = Link::of(&self.frame).ok_or(DropReason::Malformed)?;
        if link.source != attachment.mac {
            return Err(DropReason::SourceAddress);
        }
        match link.kind {
            ARP => self.arp(&attachment),
            IPV4 => self.across_network(&attachment, &link),
            _ => Err(DropReason::NotIp),
        }
    }

    /// The datagrams that answer clients, from a socket that let the routing table choose the way; `None` for the rest.
    fn by_way_out(&mut self, attachment: &Attachment) -> Option<Step> {
        Link::of(&self.frame).filter(|link| link.kind == IPV4)?;
        self.tables.config()?;
        let ip = Network::of(&self.frame)?;
        let segment = self.tables.segment(&self.frame, &ip).ok().filter(Segment::is_datagram)?;
        let mut as_if_bound = segment;
        as_if_bound.tuple.source = attachment.address.into();
        let flow = self.tables.task_answers(&as_if_bound)?;
        self.tables.remember_fragment(&ip, &segment);
        Some(self.restore(&segment, attachment.address, &flow))
    }

    /// Answers who-has (RFC 826) for the gateway, virtual addresses and endpoints.
    fn arp(&mut self, attachment: &Attachment) -> Step {
        const WHO_HAS: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
        let question: [u8; 28] = at(&self.frame, ETHERNET).ok_or(DropReason::Malformed)?;
        if question[..8] != WHO_HAS {
            return Err(DropReason::NeighbourUnanswered);
        }
        if question[8..14] != attachment.mac.0 {
            return Err(DropReason::SourceAddress);
        }
        let target = Ip4(at(&question, 24).ok_or(DropReason::Malformed)?);
        let mac = self.mac_of(attachment, target).filter(|_| target != attachment.address);
        let MacAddr(mac) = mac.ok_or(DropReason::NeighbourUnanswered)?;
        let mut answer = [attachment.mac.0, mac].concat();
        answer.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        answer.extend(mac);
        answer.extend(target.0);
        answer.extend(&question[8..18]);
        put(&mut self.frame, 0, &answer);
        Ok(Verdict::Forward(Way::Out(self.packet.ifindex)))
    }

    fn mac_of(&self, attachment: &Attachment, address: Ip4) -> Option<MacAddr> {
        if address == attachment.gateway || self.is_vip(attachment, address) {
            return Some(ROUTER_MAC);
        }
        let key = EndpointKey { vni: attachment.vni, address };
        self.tables.wanted.endpoints.get(&key).map(|endpoint| endpoint.mac)
    }

    fn is_vip(&self, attachment: &Attachment, address: Ip4) -> bool {
        self.tables.wanted.vips.contains_key(&VipKey { vni: attachment.vni, address })
    }

    fn across_network(&mut self, attachment: &Attachment, link: &Link) -> Step {
        self.tables.config().ok_or(DropReason::Unconfigured)?;
        let ip = Network::of(&self.frame).ok_or(DropReason::Malformed)?;
        if ip.source != attachment.address {
            return Err(DropReason::SourceAddress);
        }
        if ip.destination.0[0] >= 224 {
            return Err(DropReason::Group);
        }
        let is_ingress = attachment.flags & ATTACHMENT_INGRESS != 0;
        if is_ingress && let Some(step) = self.answer_client(&ip) {
            return step;
        }
        let key = EndpointKey { vni: attachment.vni, address: ip.destination };
        if let Some(endpoint) = self.tables.wanted.endpoints.get(&key).copied() {
            if endpoint.is_local() {
                self.set_macs(endpoint.mac, attachment.mac);
                return Ok(Verdict::Forward(Way::Sandbox(endpoint.ifindex)));
            }
            return Ok(self.send_tunnelled(endpoint.vtep, attachment.vni, (endpoint.mac, ROUTER_MAC)));
        }
        let owner = self.tables.wanted.address_owners.get(&ip.destination).copied();
        match owner.filter(|_| is_ingress) {
            // A process of this node takes it from the tunnel device.
            Some(Ip4::UNSPECIFIED) => Ok(Verdict::Forward(Way::In(self.tables.wanted.config.vxlan_ifindex))),
            Some(node) => Ok(self.send_to_node(node, ROUTER_MAC)),
            None => self.router_answers(attachment, link, &ip),
        }
    }

    fn answer_client(&mut self, ip: &Network) -> Option<Step> {
        let Ok(segment) = self.tables.segment(&self.frame, ip) else { return self.error_from_task(ip) };
        let flow = self.tables.task_answers(&segment)?;
        self.tables.remember_fragment(ip, &segment);
        Some(self.restore(&segment, ip.source, &flow))
    }

    /// The client sees the address and port that it connected to.
    fn restore(&mut self, segment: &Segment, backend: Ip4, flow: &ReplyFlow) -> Step {
        let (task, client) = (
            (segment.tuple.source.low(), segment.tuple.source_port),
            (segment.tuple.destination.low(), segment.tuple.destination_port),
        );
        self.translate(segment, CLIENT_SIDE, task, (flow.service.low(), flow.service_port))?;
        self.translate(segment, SERVICE_SIDE, client, (client.0, flow.client_port))?;
        if flow.strayed == 0 {
            return self.leave_from(flow.service.low(), client.0);
        }
        let service = (flow.service, flow.service_port);
        let tuple = FlowTuple::new((client.0, flow.client_port), service, segment.tuple.protocol);
        self.leave_and_tell(tuple, backend)
    }

    /// The gateway and virtual addresses answer ping, and nothing else.
    fn router_answers(&mut self, attachment: &Attachment, link: &Link, ip: &Network) -> Step {
        let is_vip = self.is_vip(attachment, ip.destination);
        if !is_vip && ip.destination != attachment.gateway {
            return Err(DropReason::NoRoute);
        }
        let refusal = if is_vip { DropReason::VipProtocol } else { DropReason::NoRoute };
        let (code, sum) = echo_request(&self.frame, ip).ok_or(refusal)?;
        self.set_macs(link.source, ROUTER_MAC);
        self.swap_addresses(ip);
        let sum = changed_checksum(sum, &[8, code], &[0, code]);
        put(&mut self.frame, ICMP, &[0, code]);
        put(&mut self.frame, ICMP + 2, &sum.to_be_bytes());
        Ok(Verdict::Forward(Way::Out(self.packet.ifindex)))
    }
}
