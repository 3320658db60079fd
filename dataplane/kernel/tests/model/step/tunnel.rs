//! The tunnel device: packets that come out of tunnels, and those that this node's processes send into the ingress network.

use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{Chooser, DropReason, EndpointKey, FlowTuple, Ip, Ip4, MacAddr, TargetPort, protocol};

use super::state::Seen;
use super::{Step, Verdict, Walk, Way, is_group};
use crate::frame::{Link, NoPorts, Segment, fault_of_answer};
use crate::network::{Family, Network};

impl Walk<'_> {
    pub fn tunnel_receives(&mut self) -> Step {
        let Some((vni, remote)) = self.packet.tunnel else {
            // For a process of this node, put here by a program.
            self.for_host = true;
            return Ok(Verdict::Pass);
        };
        self.tables.config().ok_or(DropReason::Unconfigured)?;
        if !self.tables.wanted.peers.contains_key(&remote) {
            return Err(DropReason::UnknownPeer);
        }
        self.arrives(vni, remote)
    }

    /// A packet of a peer, out of its tunnel.
    pub fn arrives(&mut self, vni: u32, remote: Ip) -> Step {
        let config = self.tables.wanted.config;
        let (link, ip) = self.ip()?;
        if link.destination == ROUTER_MAC && vni == config.ingress_vni {
            return self.node_receives(&ip, remote, link.source);
        }
        let [0x02, 0x42, a, b, c, d] = link.destination.0 else { return Err(DropReason::UnknownEndpoint) };
        let address = Ip4([a, b, c, d]);
        let endpoint = self.tables.wanted.endpoints.get(&EndpointKey { vni, address });
        let endpoint = *endpoint.filter(|endpoint| endpoint.is_local()).ok_or(DropReason::UnknownEndpoint)?;
        if self.tables.name(vni, ip.destination) == Some(address) {
            self.check_sender(vni, remote, ip.source)?;
            if let Some(segment) = self.of_process(&ip).filter(|_| vni == config.ingress_vni) {
                let seen = self.process_asks(&ip, &segment, address)?;
                return self.hand_over(&segment, (address, endpoint), seen);
            }
            return self.hand_to_task(vni, &ip, address, &endpoint);
        }
        if vni != config.ingress_vni {
            return Err(DropReason::UnknownEndpoint);
        }
        let chooser = Chooser::of(link.source).ok_or(DropReason::InnerSource)?;
        if let Some(tuple) = fault_of_answer(&self.frame, &ip) {
            return self.deliver_error(&tuple, (address, endpoint), chooser);
        }
        let segment = self.tables.segment(&self.frame, &ip).map_err(|reason| match reason {
            NoPorts::Cut => DropReason::Malformed,
            NoPorts::Fragment => DropReason::Fragment,
            NoPorts::Protocol => DropReason::UnpublishedPort,
        })?;
        self.tables.remember_fragment(&ip, &segment);
        self.deliver(&segment, (address, endpoint), Some(chooser))
    }

    /// An answer on its way to a client, or a packet for a process of this node.
    fn node_receives(&mut self, ip: &Network, remote: Ip, sender: MacAddr) -> Step {
        if self.tables.is_own(ip.source) {
            self.learn_from_answer(ip, remote, sender);
            return Ok(self.leave_here(ip.destination));
        }
        if !self.tables.is_own(ip.destination) {
            return Err(DropReason::UnknownOwner);
        }
        let config = self.tables.wanted.config;
        self.check_sender(config.ingress_vni, remote, ip.source)?;
        if self.packet.ifindex != config.vxlan_ifindex {
            return Ok(Verdict::Forward(Way::In(config.vxlan_ifindex)));
        }
        self.for_host = true;
        Ok(Verdict::Pass)
    }

    /// The answer of a flow that went astray has its backend's MAC, which the node of that backend may say.
    fn learn_from_answer(&mut self, ip: &Network, remote: Ip, sender: MacAddr) {
        let [0x02, 0x42, a, b, c, d] = sender.0 else { return };
        let backend = Ip4([a, b, c, d]);
        let is_its = self.tables.backend(backend).is_some_and(|endpoint| endpoint.vtep == remote);
        if let Some(answer) = Segment::of(&self.frame, ip).ok().filter(|_| is_its) {
            let (source, destination) = (answer.tuple.source, answer.tuple.destination);
            let client = (destination, answer.tuple.destination_port);
            let service = (source, answer.tuple.source_port);
            self.tables.learn(FlowTuple::new(client, service, ip.protocol), backend);
        }
    }

    /// A node speaks for its own endpoints, and in the ingress network for its own addresses.
    fn check_sender(&self, vni: u32, remote: Ip, source: Ip) -> Result<(), DropReason> {
        let wanted = &self.tables.wanted;
        let key = self.tables.name(vni, source).map(|address| EndpointKey { vni, address });
        let endpoint = key.and_then(|key| wanted.endpoints.get(&key));
        let has_endpoint = endpoint.is_some_and(|endpoint| endpoint.vtep == remote);
        let has_address =
            vni == wanted.config.ingress_vni && wanted.address_owners.get(&source) == Some(&remote);
        if has_endpoint || has_address { Ok(()) } else { Err(DropReason::InnerSource) }
    }

    /// What programs sent to the device has its tunnel already; a process of this node wants an endpoint of the ingress
    /// network.
    pub fn tunnel_sends(&mut self) -> Step {
        if self.packet.ingress_ifindex != 0 && self.packet.tunnel.is_some() {
            return Ok(Verdict::Pass);
        }
        let config = self.tables.config().ok_or(DropReason::Unconfigured)?;
        let (_, ip) = self.ip()?;
        if is_group(ip.destination) {
            return Err(DropReason::Group);
        }
        if !self.tables.is_own(ip.source) {
            return Err(DropReason::HostSource);
        }
        let name = self.tables.name(config.ingress_vni, ip.destination).ok_or(DropReason::NoRoute)?;
        let endpoint = self.tables.backend(name).ok_or(DropReason::NoRoute)?;
        if endpoint.is_local() {
            self.set_macs(endpoint.mac, ROUTER_MAC);
            if let Some(segment) = self.of_process(&ip) {
                let seen = self.process_asks(&ip, &segment, name)?;
                self.rewrite(&segment, (name, endpoint), seen)?;
            }
            return Ok(Verdict::Forward(Way::Out(endpoint.ifindex)));
        }
        self.clamp(endpoint.vtep)?;
        if let Some(fits) = self.told(endpoint.vtep) {
            return self.refuse_length(fits);
        }
        self.set_macs(endpoint.mac, ROUTER_MAC);
        self.tunnel = Some((config.ingress_vni, endpoint.vtep));
        Ok(Verdict::Pass)
    }

    /// What a node's own process sends to an endpoint, if the answer may come from another of the task's addresses: datagrams,
    /// and SCTP.
    fn of_process(&self, ip: &Network) -> Option<Segment> {
        let may_stray = [protocol::UDP, protocol::SCTP].contains(&ip.protocol);
        let is_nodes = self.tables.wanted.address_owners.contains_key(&ip.source);
        let vni = self.tables.wanted.config.ingress_vni;
        (may_stray && is_nodes).then(|| self.tables.segment_of_network(&self.frame, ip, vni).ok())?
    }

    /// Has a row like a client's, by the task's own address and port.
    fn process_asks(&mut self, ip: &Network, segment: &Segment, task: Ip4) -> Result<Seen, DropReason> {
        self.tables.remember_in_network(ip, segment, self.tables.wanted.config.ingress_vni);
        if let Some(seen) = self.tables.client_sends(segment, task, 0) {
            return Ok(seen);
        }
        self.tables.flow_begins(segment, task, TargetPort::new(segment.tuple.destination_port))
    }

    fn ip(&self) -> Result<(Link, Network), DropReason> {
        let link = Link::of(&self.frame).ok_or(DropReason::Malformed)?;
        let family = Family::of(link.kind).ok_or(DropReason::NotIp)?;
        Ok((link, Network::of(&self.frame, family).ok_or(DropReason::Malformed)?))
    }
}
