//! Services: rings, virtual addresses, frontends and target ports, each service for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use dataplane_model::kernel_state::{
    Endpoint, EndpointKey, Frontend, FrontendKey, PacketFilter, Place, PortKey, Ring, RingKey, Singleton,
    TargetPort, VipKey,
};
use dataplane_model::{
    Backend, FULL_WEIGHT, KernelState, NetworkKey, NodeView, ProtocolNumber, PublishedPort, Service,
    ServiceKey, Table, Vni, put,
};
use ebpf_abi::protocol::{SCTP, TCP, UDP};

use crate::claims::Claims;
use crate::facts::NodeFacts;
use crate::maglev::{self, Weights};
use crate::plan::{all_own_addresses, ingress_vni};

/// What all services are planned from besides their own row and the endpoints.
pub(crate) struct Ground<'a> {
    pub view: &'a NodeView,
    pub facts: &'a NodeFacts,
}

/// The rows of all services, and who wants which.
#[derive(Debug, Default)]
pub(crate) struct Services {
    rows: BTreeMap<ServiceKey, Rows>,
    vips: Claims<VipKey, RingKey>,
    frontends: Claims<FrontendKey, Frontend>,
    ports: Claims<PortKey, TargetPort>,
    targets: Claims<Target, ()>,
    /// Those of all services.
    all_targets: Arc<BTreeSet<Target>>,
    /// The backends of each service, and whether they are in its ring.
    backends: Claims<EndpointKey, bool>,
    problems: BTreeMap<ServiceKey, Vec<String>>,
    contested: BTreeMap<FrontendKey, Vec<String>>,
}

/// Protocol and port that backends of a published service listen on.
type Target = (ProtocolNumber, u16);

/// What one service makes of the kernel.
#[derive(Debug, Default)]
struct Rows {
    /// With the backends that they were computed from.
    rings: BTreeMap<RingKey, (Weights, Ring)>,
    vips: Vec<(VipKey, RingKey)>,
    frontends: Vec<(FrontendKey, Frontend)>,
    ports: Vec<(PortKey, TargetPort)>,
    targets: Vec<(Target, ())>,
    backends: Vec<(EndpointKey, bool)>,
    problems: Vec<String>,
}

impl Services {
    /// With no rows, but with the rings of `before`, which need not be computed again.
    pub(crate) fn afresh(before: Self) -> (Self, Known) {
        (Self::default(), Known(before.rows))
    }

    /// The services that have the endpoint as a backend.
    pub(crate) fn of_endpoint(&self, key: EndpointKey) -> impl Iterator<Item = ServiceKey> {
        self.backends.of(key).map(|(service, _)| service)
    }

    /// A ring holds the endpoint.
    pub(crate) fn serves(&self, key: EndpointKey) -> bool {
        self.backends.of(key).any(|(_, is_in_ring)| *is_in_ring)
    }

    /// Plans `dirty` services anew. The endpoints of `state` are right but for which of them serve.
    pub(crate) fn plan(
        &mut self,
        dirty: &BTreeSet<ServiceKey>,
        ground: &Ground<'_>,
        known: &Known,
        state: &mut KernelState,
    ) {
        let (mut vips, mut frontends, mut ports, mut backends) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut targets = BTreeSet::new();
        for key in dirty {
            let old = self.rows.remove(key).unwrap_or_default();
            let rings = RingSource { own: &old, known: known.0.get(key) };
            let service = ground.view.services.get(key);
            let new = service
                .map(|service| rows(*key, service, ground, (rings, &state.endpoints)))
                .unwrap_or_default();
            self.vips.replace(*key, &old.vips, &new.vips, &mut vips);
            self.frontends.replace(*key, &old.frontends, &new.frontends, &mut frontends);
            self.ports.replace(*key, &old.ports, &new.ports, &mut ports);
            self.targets.replace(*key, &old.targets, &new.targets, &mut targets);
            self.backends.replace(*key, &old.backends, &new.backends, &mut backends);
            write_rings(&old, &new, &mut state.rings);
            self.keep(*key, new, service.is_some());
            // A frontend's problem names the service.
            frontends.extend(
                self.rows.get(key).iter().flat_map(|rows| rows.frontends.iter().map(|(key, _)| *key)),
            );
        }
        self.vips.write(&vips, &mut state.vips);
        self.frontends.write(&frontends, &mut state.frontends);
        self.ports.write(&ports, &mut state.ports);
        self.write_targets(&targets, &mut state.filter);
        for key in backends {
            let row =
                state.endpoints.get(&key).map(|row| Endpoint { serves: self.serves(key), ..row.clone() });
            put(&mut state.endpoints, key, row);
        }
        for key in frontends {
            self.contest(key, ground.view);
        }
    }

    /// Writes the target ports into the filter, which may be another than the last time.
    fn write_targets(&mut self, touched: &BTreeSet<Target>, filter: &mut Table<Singleton, PacketFilter>) {
        for target in touched {
            let is_wanted = self.targets.of(*target).next().is_some();
            if is_wanted == self.all_targets.contains(target) {
                continue;
            }
            let all = Arc::make_mut(&mut self.all_targets);
            if is_wanted {
                all.insert(*target)
            } else {
                all.remove(target)
            };
        }
        let held = filter.get(&Singleton).filter(|held| held.targets != self.all_targets);
        if let Some(held) = held.cloned() {
            let targets = Arc::clone(&self.all_targets);
            filter.insert(Singleton, PacketFilter { targets, ..held });
        }
    }

    fn keep(&mut self, key: ServiceKey, mut rows: Rows, exists: bool) {
        let problems = std::mem::take(&mut rows.problems);
        if problems.is_empty() {
            self.problems.remove(&key)
        } else {
            self.problems.insert(key, problems)
        };
        if exists {
            self.rows.insert(key, rows);
        }
    }

    /// Notes who wanted a frontend that another service has.
    fn contest(&mut self, key: FrontendKey, view: &NodeView) {
        let losers = self.frontends.of(key).skip(1).filter_map(|(loser, _)| view.services.get(&loser));
        let text = |loser: &Service| format!("{key} of service {} is taken by another service", loser.name);
        let texts: Vec<String> = losers.map(text).collect();
        if texts.is_empty() {
            self.contested.remove(&key)
        } else {
            self.contested.insert(key, texts)
        };
    }

    /// What of the services is left out, one sentence each.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.values().flatten().chain(self.contested.values().flatten())
    }
}

/// Rings of an earlier plan.
#[derive(Debug, Default)]
pub(crate) struct Known(BTreeMap<ServiceKey, Rows>);

/// Where a service's rings may be found, if they were computed before.
struct RingSource<'a> {
    own: &'a Rows,
    known: Option<&'a Rows>,
}

impl RingSource<'_> {
    fn ring(&self, key: RingKey, backends: &Weights) -> Ring {
        let before =
            [Some(self.own), self.known].into_iter().flatten().filter_map(|rows| rows.rings.get(&key));
        let same = before.into_iter().find(|(of, _)| of == backends);
        same.map_or_else(|| maglev::ring(backends), |(_, ring)| ring.clone())
    }
}

fn write_rings(old: &Rows, new: &Rows, table: &mut Table<RingKey, Ring>) {
    for key in old.rings.keys().filter(|key| !new.rings.contains_key(key)) {
        table.remove(key);
    }
    for (key, (_, ring)) in &new.rings {
        put(table, *key, Some(ring.clone()));
    }
}

/// What the service makes of the kernel, where `endpoints` are.
fn rows(
    key: ServiceKey,
    service: &Service,
    ground: &Ground<'_>,
    (rings, endpoints): (RingSource<'_>, &Table<EndpointKey, Endpoint>),
) -> Rows {
    let Ground { view, facts } = ground;
    let mut rows = Rows::default();
    let mut networks = BTreeMap::new();
    for (network, vip) in &service.vips {
        let Some(vni) = view.networks.get(network).map(|network| network.vni) else { continue };
        networks.insert(*network, vni);
        rows.vips.push((VipKey { vni, address: *vip }, RingKey::of(key, vni)));
    }
    if let (Some(network), Some(vni)) = (view.ingress, ingress_vni(view)) {
        let published = publishable(service, &mut rows.problems);
        if !published.is_empty() {
            networks.insert(network, vni);
            rows.frontends = frontends(&published, RingKey::of(key, vni), facts);
            rows.ports = target_ports(service, &published, (network, vni), endpoints);
            rows.targets = published.iter().map(|port| ((port.protocol, port.target), ())).collect();
        }
    }
    for (network, vni) in networks {
        let reachable = |address: &Ipv4Addr| endpoints.contains_key(&EndpointKey { vni, address: *address });
        let chosen = chosen_backends(service, network, reachable);
        let in_ring = |address| (EndpointKey { vni, address }, chosen.contains_key(&address));
        rows.backends.extend(addresses(service, network).map(|(address, _)| in_ring(address)));
        let ring_key = RingKey::of(key, vni);
        let ring = rings.ring(ring_key, &chosen);
        rows.rings.insert(ring_key, (chosen, ring));
    }
    rows
}

/// The service's backends in one network.
fn addresses(service: &Service, network: NetworkKey) -> impl Iterator<Item = (Ipv4Addr, &Backend)> {
    let all = (network, Ipv4Addr::UNSPECIFIED)..=(network, Ipv4Addr::BROADCAST);
    service.backends.range(all).map(|((_, address), backend)| (*address, backend))
}

/// The backends that new flows may go to: those that are ready. Where none is, those that still exist: a task that is
/// being drained or has just begun may answer, an empty ring can't (fail static). An address whose node is unknown is
/// left out: packets to it could only be dropped. Weights count beside each other:
/// tasks that start together share alike, and one that is alone has all.
fn chosen_backends(service: &Service, network: NetworkKey, reachable: impl Fn(&Ipv4Addr) -> bool) -> Weights {
    let (mut ready, mut rest) = (Weights::new(), Weights::new());
    for (address, backend) in addresses(service, network).filter(|(address, _)| reachable(address)) {
        if backend.ready {
            ready.insert(address, backend.weight.max(1))
        } else {
            rest.insert(address, FULL_WEIGHT)
        };
    }
    if ready.is_empty() { rest } else { ready }
}

/// The ports that the programs can serve.
fn publishable(service: &Service, problems: &mut Vec<String>) -> Vec<PublishedPort> {
    let (known, unknown): (Vec<_>, Vec<_>) =
        service.ingress_ports.iter().partition(|port| matches!(port.protocol, TCP | UDP | SCTP));
    problems.extend(unknown.iter().map(|port| {
        let PublishedPort { protocol, published, .. } = port;
        format!(
            "port {published} of service {}: the routing mesh carries TCP, UDP and SCTP, not protocol {protocol}",
            service.name
        )
    }));
    known
}

/// Each own address, and 127.0.0.1 for the node's own processes.
fn frontends(ports: &[PublishedPort], ring: RingKey, facts: &NodeFacts) -> Vec<(FrontendKey, Frontend)> {
    let of_port = |port: &PublishedPort| {
        let PublishedPort { protocol, published, target } = *port;
        let key = move |address| FrontendKey { address, protocol, port: published };
        let addresses = all_own_addresses(facts).chain([Ipv4Addr::LOCALHOST.into()]);
        addresses.map(move |address| (key(address), Frontend { ring, target })).collect::<Vec<_>>()
    };
    ports.iter().flat_map(of_port).collect()
}

/// On the node of the task, published port → target port.
fn target_ports(
    service: &Service,
    ports: &[PublishedPort],
    (network, vni): (NetworkKey, Vni),
    endpoints: &Table<EndpointKey, Endpoint>,
) -> Vec<(PortKey, TargetPort)> {
    let is_here = |address: &Ipv4Addr| {
        let here = endpoints.get(&EndpointKey { vni, address: *address });
        here.is_some_and(|here| matches!(here.place, Place::Local(_)))
    };
    let here = addresses(service, network).map(|(address, _)| address).filter(is_here);
    let of_endpoint = |endpoint| {
        let key = move |port: &PublishedPort| PortKey {
            endpoint,
            protocol: port.protocol,
            published: port.published,
        };
        ports.iter().map(move |port| (key(port), TargetPort { port: port.target, dsr: service.dsr }))
    };
    here.flat_map(of_endpoint).collect()
}
