//! The routing mesh: which backend a client's packet goes to, and how it becomes the task's.

use std::net::IpAddr;

use ebpf_abi::flow::{FLOW_AS_IPV4, FLOW_STRAYED};
use ebpf_abi::limits::{FRAGMENTS_SECS, MAX_NEW_CACHED_FLOWS, ROUTER_MAC};
use ebpf_abi::ring::{EARLIER_RINGS, MAX_HOPS, fingerprint};
use ebpf_abi::{
    CachedBackend, Chooser, DropReason, Endpoint, FlowTuple, FragmentKey, FragmentPorts, FrontendKey, Ip,
    Ip4, RingKey, TargetPortKey,
};
use ebpf_packet::hash::flow_hash;

use super::rewrite::Side;
use super::state::Seen;
use super::{Step, Verdict, Walk, Way};
use crate::frame::{NoPorts, Segment};
use crate::network::{Family, Network, Piece};
use crate::tables::Tables;

/// A backend and what is known of it.
pub type Backend = (Ip4, Endpoint);

impl Tables {
    /// The segment that a frame carries. A later fragment has the ports of its packet's first, for 30 s.
    pub fn segment(&self, frame: &[u8], ip: &Network) -> Result<Segment, NoPorts> {
        self.segment_of_network(frame, ip, 0)
    }

    /// The same between endpoints of a network; 0 is that of the clients outside.
    pub fn segment_of_network(&self, frame: &[u8], ip: &Network, vni: u32) -> Result<Segment, NoPorts> {
        if ip.piece != Piece::Later {
            return Segment::of(frame, ip);
        }
        let key = fragment_key(ip).of_network(vni);
        let ports = self.written.fragments.get(&key);
        let is_fresh = |ports: &&FragmentPorts| self.wanted.tick <= ports.seen + FRAGMENTS_SECS;
        let ports = ports.filter(is_fresh).ok_or(NoPorts::Fragment)?;
        Ok(Segment::with(ip, (ports.source, ports.destination), 0, None))
    }

    pub fn remember_fragment(&mut self, ip: &Network, segment: &Segment) {
        self.remember_in_network(ip, segment, 0);
    }

    pub fn remember_in_network(&mut self, ip: &Network, segment: &Segment, vni: u32) {
        if ip.piece == Piece::First {
            let key = fragment_key(ip).of_network(vni);
            let tuple = &segment.tuple;
            let (source, destination) = (tuple.source_port, tuple.destination_port);
            let ports = FragmentPorts { source, destination, seen: self.wanted.tick };
            self.written.fragments.insert(key, ports);
        }
    }

    pub fn ring_of(&self, tuple: &FlowTuple) -> Option<RingKey> {
        let key = FrontendKey::new(tuple.destination, tuple.destination_port, tuple.protocol);
        self.wanted.frontends.get(&key).map(|frontend| frontend.ring)
    }

    /// The backend at a flow's place, if it still exists.
    pub fn placed(&self, ring: &RingKey, age: usize, tuple: &FlowTuple) -> Option<Backend> {
        let backend = self.wanted.place(ring, age, flow_hash(tuple))?;
        Some((backend, self.backend(backend)?))
    }

    /// The backend that a flow went to before, if it still exists.
    pub fn cached(&self, tuple: &FlowTuple) -> Option<Backend> {
        let backend = self.written.flow_cache.get(tuple)?.backend;
        Some((backend, self.backend(backend)?))
    }

    /// What another node publishes at its address is what this one publishes at localhost.
    pub fn ring_of_other_node(&self, tuple: &FlowTuple) -> Option<RingKey> {
        let owner = self.wanted.address_owners.get(&tuple.destination)?;
        let is_other = *owner != Ip::UNSPECIFIED && tuple.destination != self.wanted.config.vtep;
        let key = FrontendKey::new(Ip4::LOCALHOST, tuple.destination_port, tuple.protocol);
        self.wanted.frontends.get(&key).filter(|_| is_other).map(|frontend| frontend.ring)
    }

    /// Who serves a client's packet that is for this ring; `None` leaves it to the host.
    pub fn choose(&mut self, segment: &Segment, ring: Option<RingKey>) -> Option<Backend> {
        let tuple = &segment.tuple;
        if IpAddr::from(tuple.destination).is_loopback() {
            return None;
        }
        let ring = ring?;
        let cached = self.cached(tuple);
        let known = self.written.flow_cache.get(tuple).copied();
        let is_of_ring = known.is_some_and(|known| known.ring == ring.tag());
        let stays = |endpoint: &Endpoint| {
            if segment.is_datagram() { is_of_ring && endpoint.serves() } else { !segment.begins() }
        };
        if let Some(cached) = cached.filter(|(_, endpoint)| stays(endpoint)) {
            return Some(cached);
        }
        let chosen = self.placed(&ring, 0, tuple)?;
        if segment.begins() || segment.is_datagram() {
            let row = CachedBackend { backend: chosen.0, ring: ring.tag() };
            if known.is_some() || self.admits_to_cache() {
                self.written.flow_cache.insert(*tuple, row);
            }
        }
        Some(chosen)
    }

    /// So many new rows a second may a flood make.
    fn admits_to_cache(&mut self) -> bool {
        let gate = &mut self.written.gate;
        if gate.tick != self.wanted.tick {
            (gate.tick, gate.n_new) = (self.wanted.tick, 0);
        }
        let admits = gate.n_new < MAX_NEW_CACHED_FLOWS;
        if admits {
            gate.n_new += 1;
        } else {
            gate.n_unremembered += 1;
        }
        admits
    }

    /// The next backend to ask for a flow that `asked` doesn't know: one of another node, or one here that knows it. The
    /// search goes on behind the ring that chose `asked`, or where the number of hops says, and ends with the hops.
    pub fn other(&self, tuple: &FlowTuple, asked: Ip4, chooser: Chooser) -> Option<(Backend, Chooser)> {
        let key = FrontendKey::new(Ip4::LOCALHOST, tuple.destination_port, tuple.protocol);
        let ring = self.wanted.frontends.get(&key)?.ring;
        let history = self.wanted.rings.get(&ring)?;
        let is_chooser = |places: &Vec<Ip4>| !places.is_empty() && fingerprint(places) == chooser.fingerprint;
        let hops = usize::from(chooser.hops);
        let first = match history.iter().position(is_chooser) {
            _ if hops == 0 => 0,
            Some(age) => (age + 1).max(hops / 2),
            None => hops,
        };
        (first..=usize::from(EARLIER_RINGS)).filter(|_| chooser.hops < MAX_HOPS).find_map(|age| {
            let (backend, endpoint) = self.placed(&ring, age, tuple)?;
            let may_know = !endpoint.is_local() || self.known_flow(tuple, backend).is_some();
            let next = Chooser { hops: chooser.hops + 1, fingerprint: fingerprint(&history[age]) };
            (backend != asked && may_know).then_some(((backend, endpoint), next))
        })
    }

    /// Remembers which backend a flow that enters here was found at.
    pub fn learn(&mut self, tuple: FlowTuple, backend: Ip4) {
        let known = self.written.flow_cache.entry(tuple).or_default();
        if known.backend != backend {
            *known = CachedBackend { backend, ring: 0 };
        }
    }
}

impl Walk<'_> {
    /// To a backend of this node. `chooser` is `None` for a packet that enters here.
    pub fn deliver(&mut self, segment: &Segment, backend: Backend, chooser: Option<Chooser>) -> Step {
        let tuple = &segment.tuple;
        let key = TargetPortKey::new(backend.0, tuple.destination_port, tuple.protocol);
        let published = self.tables.wanted.target_ports.get(&key).copied();
        let target = published.or_else(|| self.tables.target_of_old(segment, backend.0));
        let target = target.ok_or(DropReason::UnpublishedPort)?;
        let way = |by_detour: bool| target.way | if by_detour { FLOW_STRAYED } else { 0 };
        let asked_by = chooser.unwrap_or(Chooser::IN_USE);
        if let Some(seen) = self.tables.client_sends(segment, backend.0, way(asked_by.hops > 0)) {
            return self.hand_over(segment, backend, seen);
        }
        if !segment.is_datagram()
            && !segment.begins()
            && let Some((other, next)) = self.tables.other(tuple, backend.0, asked_by)
        {
            if !other.1.is_local() {
                return self.ask_other_node(&other.1, next);
            }
            if let Some(seen) = self.tables.client_sends(segment, other.0, way(chooser.is_some())) {
                if chooser.is_none() {
                    self.tables.learn(*tuple, other.0);
                }
                return self.hand_over(segment, other, seen);
            }
        }
        let seen = self.tables.flow_begins(segment, backend.0, target)?;
        self.hand_over(segment, backend, seen)
    }

    /// To a backend of another node that may know the flow; the inner source says why it is asked.
    pub fn ask_other_node(&mut self, endpoint: &Endpoint, chooser: Chooser) -> Step {
        let vni = self.tables.wanted.config.ingress_vni;
        self.send_tunnelled(endpoint.vtep, vni, (endpoint.mac, chooser.mac()))
    }

    pub fn hand_over(&mut self, segment: &Segment, (backend, endpoint): Backend, mut seen: Seen) -> Step {
        self.settle(segment, (backend, endpoint), &mut seen);
        if seen.family == FLOW_AS_IPV4 {
            return self.hand_over_as_v4(segment, (backend, endpoint), seen);
        }
        self.rewrite(segment, (backend, endpoint), seen)?;
        Ok(Verdict::Forward(Way::Sandbox(endpoint.ifindex)))
    }

    /// Becomes the task's, by the family that it came by.
    pub fn rewrite(
        &mut self,
        segment: &Segment,
        (backend, endpoint): Backend,
        seen: Seen,
    ) -> Result<(), DropReason> {
        let tuple = segment.tuple;
        self.set_macs(endpoint.mac, ROUTER_MAC);
        let task = self.task_address(backend, Family::of_address(tuple.destination))?;
        let client = (tuple.source, tuple.source_port);
        self.translate(segment, Side::Source, client, (client.0, seen.client))?;
        let service = (tuple.destination, tuple.destination_port);
        self.translate(segment, Side::Destination, service, (task, seen.target))
    }
}

fn fragment_key(ip: &Network) -> FragmentKey {
    FragmentKey::new(ip.source, ip.destination, ip.id, ip.protocol)
}
