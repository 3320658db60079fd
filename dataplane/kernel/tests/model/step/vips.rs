//! Virtual addresses for packets that no socket hook has translated.

use ebpf_abi::flow::{FLOW_FIN_CLIENT, FLOW_FIN_TASK, FLOW_RESET, VIP_FLOW_V6, VIP_FLOW_WENT_ON};
use ebpf_abi::limits::{MAX_VIP_ROWS_OF_TASK, ROUTER_MAC};
use ebpf_abi::{
    Attachment, DropReason, Endpoint, EndpointKey, FlowTuple, Ip, Ip4, Port, VipFlow, VipFlowKey, VipKey,
};
use ebpf_packet::hash::flow_hash;

use super::mesh::Backend;
use super::rewrite::Side;
use super::{Step, Verdict, Walk, Way};
use crate::frame::{FIN, NoPorts, RST, Segment, fault, fault_of_answer};
use crate::network::{Family, Network, Piece};
use crate::tables::Tables;

impl Walk<'_> {
    /// To the backend that the flow has, or else gets.
    pub fn ask_vip(&mut self, attachment: &Attachment, (ip, vip): (&Network, Ip4)) -> Step {
        let vni = attachment.vni;
        let segment = match self.tables.segment_of_network(&self.frame, ip, vni) {
            Ok(segment) => segment,
            Err(NoPorts::Protocol) => return self.error_to_vip(attachment, (ip, vip)),
            Err(NoPorts::Fragment) => return Err(DropReason::Fragment),
            Err(NoPorts::Cut) => return Err(DropReason::Malformed),
        };
        self.tables.written.vips_asked = self.tables.wanted.tick.max(1);
        let key = key(&segment.tuple, vni, (attachment.address, vip));
        let (backend, endpoint) = match self.tables.vip_backend(&segment, &key) {
            Some(known) => known,
            None => match self.tables.choose_for_vip(&segment, &key) {
                Some(chosen) => {
                    self.tables.vip_flow_begins(key, chosen.0)?;
                    chosen
                }
                None => return self.nobody_serves(attachment, ip),
            },
        };
        self.tables.remember_in_network(ip, &segment, vni);
        if backend == attachment.address {
            let gateway = self.gateway(attachment, ip.family)?;
            return self.bounce(&segment, attachment, (gateway, ip.source));
        }
        let address = self.tables.address(vni, backend, ip.family).ok_or(DropReason::NotIp)?;
        let asked = (ip.destination, segment.tuple.destination_port);
        self.translate(&segment, Side::Destination, asked, (address, asked.1))?;
        self.send_to_backend(attachment, (backend, endpoint))
    }

    fn send_to_backend(&mut self, attachment: &Attachment, (_, endpoint): Backend) -> Step {
        if endpoint.is_local() {
            self.set_macs(endpoint.mac, attachment.mac);
            return Ok(Verdict::Forward(Way::Sandbox(endpoint.ifindex)));
        }
        self.send_tunnelled(endpoint.vtep, attachment.vni, (endpoint.mac, ROUTER_MAC))
    }

    /// A task that is its own backend is asked by the gateway, and answers that.
    fn bounce(
        &mut self,
        segment: &Segment,
        attachment: &Attachment,
        (source, destination): (Ip, Ip),
    ) -> Step {
        let tuple = segment.tuple;
        let (from, to) = ((tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port));
        self.translate(segment, Side::Source, from, (source, from.1))?;
        self.translate(segment, Side::Destination, to, (destination, to.1))?;
        Ok(self.send_to_itself(attachment))
    }

    fn send_to_itself(&mut self, attachment: &Attachment) -> Verdict {
        self.set_macs(attachment.mac, ROUTER_MAC);
        Verdict::Forward(Way::Sandbox(self.packet.ifindex))
    }

    fn gateway(&self, attachment: &Attachment, family: Family) -> Result<Ip, DropReason> {
        self.tables.address(attachment.vni, attachment.gateway, family).ok_or(DropReason::NotIp)
    }

    /// To the gateway: what a task answers to itself, or says of what it asked itself.
    pub fn answer_itself(&mut self, attachment: &Attachment, ip: &Network) -> Step {
        let (vni, own) = (attachment.vni, attachment.address);
        if self.tables.written.vips_asked == 0 {
            return Err(DropReason::NoRoute);
        }
        let Ok(segment) = self.tables.segment_of_network(&self.frame, ip, vni) else {
            return self.error_to_itself(attachment, ip);
        };
        let key = key(&reversed(&segment.tuple), vni, (own, own)).answers(own);
        let vip = self.tables.vip_answers(&segment, &key).ok_or(DropReason::NoRoute)?;
        self.tables.remember_in_network(ip, &segment, vni);
        let vip = self.tables.address(vni, vip, ip.family).ok_or(DropReason::NotIp)?;
        self.bounce(&segment, attachment, (vip, ip.source))
    }

    fn error_to_itself(&mut self, attachment: &Attachment, ip: &Network) -> Step {
        let (vni, own) = (attachment.vni, attachment.address);
        let asked = fault(&self.frame, ip);
        let asked = asked.filter(|asked| (asked.source, asked.destination) == (ip.destination, ip.source));
        let key = asked.map(|asked| key(&asked, vni, (own, own)).answers(own));
        let row = key.and_then(|key| self.tables.written.vip_flows.get(&key).copied());
        let vip = row.ok_or(DropReason::NoRoute)?.becomes;
        let vip = self.tables.address(vni, vip, ip.family).ok_or(DropReason::NotIp)?;
        self.translate_error(ip.family, (ip.source, vip))?;
        Ok(self.send_to_itself(attachment))
    }

    /// The packet at fault gets these addresses, and the error goes from the second to the first.
    fn translate_error(&mut self, family: Family, (source, destination): (Ip, Ip)) -> Result<(), DropReason> {
        self.translate_fault_address(family, Side::Source, source)?;
        self.set_error_address(family, Side::Destination, source)?;
        self.translate_fault_address(family, Side::Destination, destination)?;
        self.set_error_address(family, Side::Source, destination)
    }

    /// As a closed port answers, if an error can be made.
    fn nobody_serves(&mut self, attachment: &Attachment, ip: &Network) -> Step {
        let kind = match ip.family {
            Family::V4 if ip.has_options() => return Err(DropReason::NoBackend),
            _ if ip.piece != Piece::Whole => return Err(DropReason::NoBackend),
            Family::V4 => [3, 3],
            Family::V6 => [1, 4],
        };
        self.become_error(ip, ip.destination, (kind, 0), 8)?;
        self.set_macs(attachment.mac, ROUTER_MAC);
        Ok(Verdict::Forward(Way::Out(self.packet.ifindex)))
    }

    /// An error about an answer goes to the backend, about what that has sent.
    fn error_to_vip(&mut self, attachment: &Attachment, (ip, vip): (&Network, Ip4)) -> Step {
        let tuple = fault_of_answer(&self.frame, ip).filter(|tuple| tuple.source == ip.source);
        let tuple = tuple.ok_or(DropReason::VipProtocol)?;
        let key = key(&tuple, attachment.vni, (attachment.address, vip));
        let row = self.tables.written.vip_flows.get(&key).copied();
        let backend = row.ok_or(DropReason::UnknownFlow)?.becomes;
        if backend == attachment.address {
            let gateway = self.gateway(attachment, ip.family)?;
            self.translate_error(ip.family, (ip.source, gateway))?;
            return Ok(self.send_to_itself(attachment));
        }
        let endpoint = self.tables.endpoint(key.vni, backend).ok_or(DropReason::UnknownFlow)?;
        let address = self.tables.address(key.vni, backend, ip.family).ok_or(DropReason::NotIp)?;
        self.translate_fault_address(ip.family, Side::Source, address)?;
        self.set_error_address(ip.family, Side::Destination, address)?;
        self.send_to_backend(attachment, (backend, endpoint))
    }

    /// To a task of this node; what answers a flow of its to a virtual address has that as its source.
    pub fn hand_to_task(&mut self, vni: u32, ip: &Network, client: Ip4, endpoint: &Endpoint) -> Step {
        if self.tables.written.vips_asked != 0
            && let Some(backend) = self.tables.name(vni, ip.source)
        {
            self.restore_vip(vni, ip, (client, backend))?;
        }
        Ok(Verdict::Forward(Way::Sandbox(endpoint.ifindex)))
    }

    fn restore_vip(
        &mut self,
        vni: u32,
        ip: &Network,
        (client, backend): (Ip4, Ip4),
    ) -> Result<(), DropReason> {
        let Ok(segment) = self.tables.segment_of_network(&self.frame, ip, vni) else {
            return self.restore_vip_error(vni, ip, (client, backend));
        };
        let asked = reversed(&segment.tuple);
        let key = key(&asked, vni, (client, backend)).answers(backend);
        let Some(vip) = self.tables.vip_answers(&segment, &key) else { return Ok(()) };
        self.tables.remember_in_network(ip, &segment, vni);
        let vip = self.tables.address(vni, vip, ip.family).ok_or(DropReason::NotIp)?;
        let port = segment.tuple.source_port;
        self.translate(&segment, Side::Source, (ip.source, port), (vip, port))
    }

    /// The packet at fault is what the client has sent to the virtual address.
    fn restore_vip_error(
        &mut self,
        vni: u32,
        ip: &Network,
        (client, backend): (Ip4, Ip4),
    ) -> Result<(), DropReason> {
        let asked = fault(&self.frame, ip);
        let asked = asked.filter(|asked| (asked.source, asked.destination) == (ip.destination, ip.source));
        let Some(asked) = asked else { return Ok(()) };
        let key = key(&asked, vni, (client, backend)).answers(backend);
        let Some(row) = self.tables.written.vip_flows.get(&key).copied() else { return Ok(()) };
        let vip = self.tables.address(vni, row.becomes, ip.family).ok_or(DropReason::NotIp)?;
        self.translate_fault_address(ip.family, Side::Destination, vip)?;
        self.set_error_address(ip.family, Side::Source, vip)
    }
}

impl Tables {
    fn endpoint(&self, vni: u32, address: Ip4) -> Option<Endpoint> {
        self.wanted.endpoints.get(&EndpointKey { vni, address }).copied()
    }

    /// The backend of a flow that goes on: a connection's while it exists, a datagram's while it serves.
    fn vip_backend(&mut self, segment: &Segment, key: &VipFlowKey) -> Option<Backend> {
        let backend = self.written.vip_flows.get(key)?.becomes;
        let endpoint = self.endpoint(key.vni, backend)?;
        let stays = if segment.is_datagram() { endpoint.serves() } else { !segment.begins() };
        if stays {
            self.note(segment, key, FLOW_FIN_CLIENT);
        }
        stays.then_some((backend, endpoint))
    }

    /// What an answer's source becomes, if it is one.
    fn vip_answers(&mut self, segment: &Segment, key: &VipFlowKey) -> Option<Ip4> {
        let vip = self.written.vip_flows.get(key)?.becomes;
        self.note(segment, key, FLOW_FIN_TASK);
        Some(vip)
    }

    fn note(&mut self, segment: &Segment, key: &VipFlowKey, fin: u8) {
        let row = self.written.vip_flows.get_mut(key).unwrap();
        row.last_seen = self.wanted.tick;
        if segment.flags & FIN != 0 {
            row.closing |= fin;
        }
        if segment.flags & RST != 0 {
            let is_doubtful = fin == FLOW_FIN_CLIENT && row.state == VIP_FLOW_WENT_ON;
            row.closing |= if is_doubtful { FLOW_FIN_CLIENT } else { FLOW_RESET };
        } else if !segment.begins() {
            row.state = VIP_FLOW_WENT_ON;
        }
    }

    fn choose_for_vip(&self, segment: &Segment, key: &VipFlowKey) -> Option<Backend> {
        let ring = self.wanted.vips.get(&VipKey { vni: key.vni, address: key.service })?;
        let backend = self.wanted.place(ring, 0, flow_hash(&segment.tuple))?;
        Some((backend, self.endpoint(key.vni, backend)?))
    }

    fn vip_flow_begins(&mut self, key: VipFlowKey, backend: Ip4) -> Result<(), DropReason> {
        let tick = self.wanted.tick;
        let answers = key.answers(backend);
        let share =
            self.written.vip_shares.entry(EndpointKey { vni: key.vni, address: key.client }).or_default();
        if *share >= MAX_VIP_ROWS_OF_TASK {
            return Err(DropReason::VipShareFull);
        }
        let mut n_made = 0;
        for (row, becomes) in [(answers, key.service), (key, backend)] {
            let flows = &mut self.written.vip_flows;
            if flows.len() >= crate::kernel::FLOW_ROWS as usize && !flows.contains_key(&row) {
                flows.remove(&answers);
                return Err(DropReason::FlowTableFull);
            }
            n_made += u32::from(flows.insert(row, VipFlow::new(becomes, tick)).is_none());
        }
        *share += n_made;
        Ok(())
    }
}

/// Of a flow whose client and service have these names.
fn key(tuple: &FlowTuple, vni: u32, (client, service): (Ip4, Ip4)) -> VipFlowKey {
    let kind = match Family::of_address(tuple.source) {
        Family::V4 => 0,
        Family::V6 => VIP_FLOW_V6,
    };
    let (client, service) = ((client, tuple.source_port), (service, tuple.destination_port));
    VipFlowKey::new(vni, client, service, tuple.protocol, kind)
}

/// Of the packets that this one answers.
fn reversed(tuple: &FlowTuple) -> FlowTuple {
    let (source, destination): ((Ip, Port), (Ip, Port)) =
        ((tuple.destination, tuple.destination_port), (tuple.source, tuple.source_port));
    FlowTuple::new(source, destination, tuple.protocol)
}
