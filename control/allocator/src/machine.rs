//! The machine: what is dirty, in which order it is served, and the writes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use control_model::change::{Change, Object};
use control_model::object::{Endpoint, Network, NetworkAttachment, Service, TaskStatus};
use control_model::spec::{EndpointMode, PortConfig};
use control_model::{NetworkId, ServiceId, Task, TaskId, TaskState, Timestamp};
use control_store::{Event, EventKind, State};
use ipnetwork::IpNetwork;

use crate::check::own_ports;
use crate::network::Networks;
use crate::ports::{PortTable, is_mesh_port};
use crate::subnet::Holder;

/// swarmkit's word for a task that waits for the scheduler.
const PENDING_MESSAGE: &str = "pending task scheduling";
/// Of a task that was asked to stop while it was still new.
const STOPPED_MESSAGE: &str = "stopped before its addresses were allocated";

/// Owns tasks in NEW, `Network.state`, `Service.endpoint` and `Task.attachments`.
#[derive(Debug)]
pub struct Allocator {
    pub(crate) networks: Networks,
    ports: PortTable,
    /// What services have, also when the write is still on its way.
    endpoints: BTreeMap<ServiceId, Endpoint>,
    dirty_networks: BTreeSet<NetworkId>,
    dirty_services: BTreeSet<ServiceId>,
    dirty_tasks: BTreeSet<TaskId>,
    /// Could not be served, and why. Tried again when something was freed or a network came.
    waiting_networks: BTreeSet<NetworkId>,
    waiting_services: BTreeMap<ServiceId, String>,
    waiting_tasks: BTreeSet<TaskId>,
    /// When everything became dirty; `None` once that was looked at.
    started: Option<Timestamp>,
}

impl Allocator {
    /// Notes what is held in `state`; everything else is dirty.
    pub fn new(state: &State, now: Timestamp) -> Self {
        let mut machine = Self {
            networks: Networks::default(),
            ports: PortTable::default(),
            endpoints: BTreeMap::new(),
            dirty_networks: state.networks().iter().map(|n| n.id).collect(),
            dirty_services: state.services().iter().map(|s| s.id).collect(),
            dirty_tasks: BTreeSet::new(),
            waiting_networks: BTreeSet::new(),
            waiting_services: BTreeMap::new(),
            waiting_tasks: BTreeSet::new(),
            started: Some(now),
        };
        for network in state.networks().iter() {
            if let Some(given) = &network.state {
                machine.networks.load(network.id, given);
            }
        }
        for service in state.services().iter() {
            machine.load_service(service);
        }
        for task in state.tasks().iter() {
            machine.note_task(task);
        }
        machine
    }

    /// Takes in what was applied and returns what to write.
    pub fn handle(&mut self, state: &State, events: &[Event], now: Timestamp) -> Vec<Change> {
        for event in events {
            self.note(event);
        }
        self.serve(state, now)
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.started
    }

    /// Serves what is dirty.
    pub fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        self.serve(state, now)
    }

    fn note(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Network(_, Some(network)) => {
                if let Some(given) = &network.state {
                    self.networks.load(network.id, given);
                }
                self.dirty_networks.insert(network.id);
            }
            EventKind::Network(Some(network), None) => {
                self.networks.remove(network.id);
                self.dirty_networks.remove(&network.id);
                self.waiting_networks.remove(&network.id);
                self.wake_all();
            }
            EventKind::Service(_, Some(service)) => {
                self.dirty_services.insert(service.id);
            }
            EventKind::Service(Some(service), None) => self.forget_service(service),
            EventKind::Task(_, Some(task)) => self.note_task(task),
            EventKind::Task(Some(task), None) => {
                self.dirty_tasks.remove(&task.id);
                self.waiting_tasks.remove(&task.id);
                self.free_task(task);
            }
            // A pool to take from, for networks that came before it.
            EventKind::Cluster(..) => self.wake_all(),
            _ => {}
        }
    }

    fn load_service(&mut self, service: &Service) {
        let Some(endpoint) = &service.endpoint else { return };
        for (network, vip) in &endpoint.vips {
            self.networks.hold_address(*network, *vip, Holder::Vip(service.id));
        }
        for port in endpoint.ports.iter().filter(|port| is_mesh_port(port) && port.published != 0) {
            self.ports.hold(port.protocol, port.published, service.id);
        }
        self.endpoints.insert(service.id, endpoint.clone());
    }

    fn forget_service(&mut self, service: &Service) {
        self.dirty_services.remove(&service.id);
        self.waiting_services.remove(&service.id);
        if let Some(endpoint) = self.endpoints.remove(&service.id) {
            self.free_endpoint(service.id, &endpoint, &Endpoint::default());
            self.wake_all();
        }
    }

    fn note_task(&mut self, task: &Task) {
        if task.status.state.is_terminal() {
            self.waiting_tasks.remove(&task.id);
            self.free_task(task);
        } else if task.status.state == TaskState::New {
            self.dirty_tasks.insert(task.id);
        } else {
            self.networks.hold_task(task);
        }
    }

    fn free_task(&mut self, task: &Task) {
        if self.networks.free_task(task) {
            self.wake_all();
        }
    }

    /// Frees what `old` has and `new` has not.
    fn free_endpoint(&mut self, service: ServiceId, old: &Endpoint, new: &Endpoint) {
        for (network, vip) in old.vips.iter().filter(|vip| !new.vips.contains(vip)) {
            self.networks.free_address(*network, *vip, Holder::Vip(service));
        }
        for port in old.ports.iter().filter(|port| is_mesh_port(port)) {
            let kept = new.ports.iter().any(|other| {
                is_mesh_port(other) && (other.protocol, other.published) == (port.protocol, port.published)
            });
            if !kept {
                self.ports.free(port.protocol, port.published, service);
            }
        }
    }

    /// Something was freed or came: who waits is tried again.
    fn wake_all(&mut self) {
        self.dirty_networks.append(&mut self.waiting_networks);
        self.dirty_services.extend(self.waiting_services.keys());
        self.dirty_tasks.append(&mut self.waiting_tasks);
    }

    /// Networks before the services that have VIPs in them, services before their tasks.
    fn serve(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        self.started = None;
        let mut changes = Vec::new();
        let mut networks: Vec<_> = std::mem::take(&mut self.dirty_networks)
            .iter()
            .filter_map(|id| state.networks().get(id))
            .collect();
        // The ingress network takes the pool's first subnet.
        networks.sort_by_key(|network| !network.spec.ingress);
        for network in networks {
            changes.extend(self.serve_network(state, network));
        }
        while let Some(id) = self.dirty_services.pop_first() {
            if let Some(service) = state.services().get(&id) {
                changes.extend(self.serve_service(state, service));
            }
        }
        while let Some(id) = self.dirty_tasks.pop_first() {
            if let Some(task) = state.tasks().get(&id) {
                changes.extend(self.serve_task(state, task, now));
            }
        }
        changes
    }

    fn serve_network(&mut self, state: &State, network: &Network) -> Option<Change> {
        if network.state.is_some() || network.pending_delete || self.networks.is_allocated(network.id) {
            return None;
        }
        if let Ok(given) = self.networks.allocate(network, state.cluster().map(AsRef::as_ref)) {
            self.dirty_services.extend(self.waiting_services.keys());
            self.dirty_tasks.append(&mut self.waiting_tasks);
            let object = Object::Network(Box::new(Network { state: Some(given), ..network.clone() }));
            Some(Change::Update { object, expected: network.meta.version })
        } else {
            self.waiting_networks.insert(network.id);
            None
        }
    }

    fn serve_service(&mut self, state: &State, service: &Service) -> Option<Change> {
        if service.pending_delete {
            return None;
        }
        let old = self.endpoints.get(&service.id).cloned().unwrap_or_default();
        match self.endpoint(state, service, &old) {
            Ok(endpoint) => {
                let waited = self.waiting_services.remove(&service.id).is_some();
                let is_new = self.endpoints.insert(service.id, endpoint.clone()).is_none();
                if is_new || waited {
                    self.dirty_tasks.append(&mut self.waiting_tasks);
                }
                if !is_new && old == endpoint {
                    return None;
                }
                self.free_endpoint(service.id, &old, &endpoint);
                if !is_new {
                    self.wake_all();
                }
                let object =
                    Object::Service(Box::new(Service { endpoint: Some(endpoint), ..service.clone() }));
                Some(Change::Update { object, expected: service.meta.version })
            }
            Err(reason) => {
                self.waiting_services.insert(service.id, reason);
                None
            }
        }
    }

    /// What the service should have. Takes nothing new when something is missing.
    fn endpoint(&mut self, state: &State, service: &Service, old: &Endpoint) -> Result<Endpoint, String> {
        let spec = &service.spec.endpoint;
        let networks = match spec.mode {
            EndpointMode::Vip => self.networks_of(state, &service.spec.task.networks, &spec.ports)?,
            EndpointMode::Dnsrr => Vec::new(),
        };
        if spec.ports.iter().any(|port| port.published == 0) {
            self.ports.set_own(own_ports(state));
        }
        let ports = self
            .ports
            .allocate(service.id, &spec.ports, &old.ports)
            .map_err(|port| format!("port '{}' is already in use by another service", port.published))?;
        let mut endpoint = Endpoint { mode: spec.mode, ports, vips: Vec::with_capacity(networks.len()) };
        for network in networks {
            let Some(vip) = self.vip(network, service.id, old) else {
                self.free_endpoint(service.id, &endpoint, old);
                return Err(format!("no address is free on network {}", network_name(state, network)));
            };
            endpoint.vips.push((network, vip));
        }
        Ok(endpoint)
    }

    fn vip(&mut self, network: NetworkId, service: ServiceId, old: &Endpoint) -> Option<Ipv4Addr> {
        let kept = old.vips.iter().find(|(of, _)| *of == network);
        kept.map(|(_, vip)| *vip)
            .or_else(|| Some(self.networks.allocate_address(network, Holder::Vip(service))?.ip()))
    }

    /// The ingress network if a port is published in the mesh, then those asked for, each once.
    /// `Err` says which is missing.
    fn networks_of(
        &self,
        state: &State,
        asked: &[control_model::spec::NetworkAttachmentSpec],
        ports: &[PortConfig],
    ) -> Result<Vec<NetworkId>, String> {
        let mut networks = Vec::with_capacity(asked.len() + 1);
        if ports.iter().any(is_mesh_port) {
            networks.push(state.ingress_network().ok_or("there is no ingress network")?.id);
        }
        for target in asked.iter().map(|asked| asked.target) {
            if !networks.contains(&target) {
                networks.push(target);
            }
        }
        for network in &networks {
            let leaving = state.networks().get(network).is_none_or(|network| network.pending_delete);
            if leaving || !self.networks.is_allocated(*network) {
                return Err(format!("network {} is not available", network_name(state, *network)));
            }
        }
        Ok(networks)
    }

    fn serve_task(&mut self, state: &State, task: &Task, now: Timestamp) -> Option<Change> {
        if task.status.state != TaskState::New {
            return None;
        }
        if task.desired_state >= TaskState::Shutdown {
            let status = TaskStatus {
                state: TaskState::Shutdown,
                at: now,
                message: STOPPED_MESSAGE.into(),
                ..TaskStatus::default()
            };
            return Some(Change::TaskStatus { id: task.id, status });
        }
        match self.allocate_task(state, task) {
            Ok((attachments, ports)) => {
                let status = TaskStatus {
                    state: TaskState::Pending,
                    at: now,
                    message: PENDING_MESSAGE.into(),
                    ..TaskStatus::default()
                };
                let allocated = Task { attachments, ports, status, ..task.clone() };
                let object = Object::Task(Box::new(allocated));
                Some(Change::Update { object, expected: task.meta.version })
            }
            Err(reason) => {
                self.waiting_tasks.insert(task.id);
                (task.status.error != reason).then(|| Change::TaskStatus {
                    id: task.id,
                    status: TaskStatus { error: reason, at: now.max(task.status.at), ..task.status.clone() },
                })
            }
        }
    }

    fn allocate_task(
        &mut self,
        state: &State,
        task: &Task,
    ) -> Result<(Vec<NetworkAttachment>, Vec<PortConfig>), String> {
        if let Some(reason) = self.waiting_services.get(&task.service) {
            return Err(reason.clone());
        }
        let ports = if task.is_attachment() {
            task.ports.clone()
        } else {
            let endpoint =
                self.endpoints.get(&task.service).ok_or("the service has no addresses and ports yet")?;
            filled_ports(&task.ports, &endpoint.ports)
        };
        let networks = self.networks_of(state, &task.spec.networks, &task.ports)?;
        let mut attachments: Vec<NetworkAttachment> = Vec::with_capacity(networks.len());
        for network in networks {
            let Some(address) = self.networks.allocate_address(network, Holder::Task(task.id)) else {
                self.networks.free_task(&Task { attachments, ..task.clone() });
                return Err(format!("no address is free on network {}", network_name(state, network)));
            };
            let asked = task.spec.networks.iter().filter(|asked| asked.target == network);
            let aliases = asked.flat_map(|asked| asked.aliases.iter().cloned()).collect();
            attachments.push(NetworkAttachment { network, address: IpNetwork::V4(address), aliases });
        }
        Ok((attachments, ports))
    }
}

/// The task's ports with those that were chosen by us taken from the service's.
fn filled_ports(ports: &[PortConfig], given: &[PortConfig]) -> Vec<PortConfig> {
    let mut given: Vec<&PortConfig> = given.iter().filter(|port| is_mesh_port(port)).collect();
    let mut fill = |port: &PortConfig| {
        let found = given.iter().position(|given| {
            port.published == 0 && (given.protocol, given.target) == (port.protocol, port.target)
        });
        found.filter(|_| is_mesh_port(port)).map_or(port.published, |at| given.remove(at).published)
    };
    ports.iter().map(|port| PortConfig { published: fill(port), ..port.clone() }).collect()
}

fn network_name(state: &State, id: NetworkId) -> String {
    state.networks().get(&id).map_or_else(|| id.to_string(), |network| network.spec.name.clone())
}
