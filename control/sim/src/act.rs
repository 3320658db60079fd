//! Users: what they ask for until the cluster is left alone.

use std::sync::Arc;
use std::time::Duration;

use control_model::change::{Change, Object, ObjectRef};
use control_model::dependency::{DependencyFile, DependencySpec};
use control_model::object::{JobStatus, Network, Node, Service};
use control_model::spec::{
    Availability, FailureAction, NetworkAttachmentSpec, NetworkSpec, PortConfig, Protocol, PublishMode,
    ServiceMode, ServiceSpec, UpdateOrder,
};
use control_model::{Dependency, DependencyId, DependencyKind, NetworkId, ServiceId, Timestamp};
use control_store::State;

use crate::event::Event;
use crate::host::HostId;
use crate::log::Purpose;
use crate::world::World;

/// Between two acts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(2500));
const MAX_SERVICES: usize = 4;
const MAX_SECRETS: usize = 3;
/// Slow start of services that have it.
const SLOW_START: &str = "5s";

impl World {
    /// One act, and the time of the next one.
    pub(crate) fn on_act(&mut self) {
        if self.is_healed {
            return;
        }
        let pause = self.random.between(PAUSE.0, PAUSE.1);
        self.queue.after(pause, Event::Act);
        if self.random.percent(self.scenario.percent_of_faults()) {
            self.disturb();
        } else {
            self.use_cluster();
        }
    }

    fn use_cluster(&mut self) {
        let able: Vec<HostId> =
            self.managers().into_iter().filter(|host| self.host(*host).manager().is_some()).collect();
        let Some(by) = self.random.pick(&able).copied() else { return };
        let state = self.replica(by);
        let now = self.wall(by);
        let changes = match self.random.below(20) {
            0..5 => self.new_service(&state, now),
            5..13 => self.update_service(&state, now),
            13 | 14 => self.remove_service(&state),
            15 => self.new_network(&state),
            16 => self.new_secret(&state),
            17 => self.remove_secret(&state),
            _ => self.set_availability(&state),
        };
        if !changes.is_empty() {
            self.note(|| format!("a user writes {} by {by:?}", describe(&changes)));
            self.propose(by, changes, Purpose::User);
        }
    }

    fn next_name(&mut self, kind: &str) -> String {
        self.n_created += 1;
        format!("{kind}{}", self.n_created)
    }

    fn new_service(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        if state.services().len() >= MAX_SERVICES {
            return Vec::new();
        }
        let mut spec = ServiceSpec { name: self.next_name("s"), ..ServiceSpec::default() };
        spec.task.container.image = "v1".into();
        spec.mode = self.any_mode();
        if self.random.percent(self.scenario.percent_rebalanced()) {
            let limit = ["1", "2", "50%"][self.random.below(3)];
            spec.labels.insert(ServiceSpec::REBALANCE_LABEL.to_owned(), limit.to_owned());
        }
        if self.random.percent(10) {
            spec.labels.insert(ServiceSpec::SLOW_START_LABEL.to_owned(), SLOW_START.to_owned());
        }
        self.edit(state, &mut spec);
        let id = ServiceId::from_bits(self.random.bits());
        let job = spec.mode.is_job().then_some(JobStatus { iteration: 0, last_execution: now });
        vec![Change::Create(Object::Service(Box::new(Service { job, ..Service::new(id, spec) })))]
    }

    fn any_mode(&mut self) -> ServiceMode {
        let is_job = self.random.percent(self.scenario.percent_of_jobs());
        match (is_job, self.random.percent(25)) {
            (true, true) => ServiceMode::GlobalJob,
            (true, false) => ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: 1 },
            (false, true) => ServiceMode::Global,
            (false, false) => ServiceMode::Replicated { replicas: 1 },
        }
    }

    fn resize(&mut self, mode: &mut ServiceMode) {
        let random = &mut self.random;
        match mode {
            ServiceMode::Replicated { replicas } => *replicas = random.below(6) as u64,
            ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
                *total_completions = random.below(6) as u64;
                *max_concurrent = 1 + random.below(3) as u64;
            }
            ServiceMode::Global | ServiceMode::GlobalJob => {}
        }
    }

    /// Anything about a spec changes, an update's own settings with it.
    fn edit(&mut self, state: &State, spec: &mut ServiceSpec) {
        self.resize(&mut spec.mode);
        let random = &mut self.random;
        if random.percent(50) {
            let images: &[&str] = if spec.mode.is_job() {
                &["done", "done", "done", "crash", "bad", "v1"]
            } else {
                &["v1", "v2", "v3", "bad", "crash", "done"]
            };
            let image = *random.pick(images).unwrap_or(&"v1");
            image.clone_into(&mut spec.task.container.image);
        }
        if spec.mode.is_job() {
            spec.task.restart.max_attempts = random.below(3) as u64;
        }
        if random.percent(40) {
            let own = state.networks().iter().filter(|n| !n.spec.ingress && !n.pending_delete);
            let own: Vec<NetworkId> = own.map(|n| n.id).collect();
            let target = random.pick(&own).copied();
            let attached = target.map(|target| NetworkAttachmentSpec { target, aliases: Vec::new() });
            spec.task.networks = attached.into_iter().collect();
        }
        if random.percent(40) {
            let port = PortConfig::new(Protocol::Tcp, 80, 0, PublishMode::Ingress);
            spec.endpoint.ports = vec![port; random.below(3)];
        }
        if random.percent(40) {
            let all: Vec<_> = state.dependencies().iter().cloned().collect();
            spec.task.container.dependencies =
                random.pick(&all).map(|secret| file_of(secret)).into_iter().collect();
        }
        spec.task.restart.delay = Duration::from_secs(random.below(4) as u64);
        spec.update.parallelism = random.below(3) as u64;
        let is_start_first = random.percent(30);
        spec.update.order = if is_start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let actions = [FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback];
        spec.update.failure_action = *random.pick(&actions).unwrap_or(&FailureAction::Pause);
        spec.update.monitor = Duration::from_secs(random.below(4) as u64);
        spec.update.delay = Duration::from_secs(random.below(2) as u64);
    }

    fn any_service(&mut self, state: &State) -> Option<Arc<Service>> {
        let services: Vec<_> = state.services().iter().filter(|s| !s.pending_delete).cloned().collect();
        self.random.pick(&services).cloned()
    }

    fn update_service(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        let Some(old) = self.any_service(state) else { return Vec::new() };
        let mut new = Service::clone(&old);
        self.edit(state, &mut new.spec);
        vec![updated(&old, new, now)]
    }

    fn remove_service(&mut self, state: &State) -> Vec<Change> {
        let Some(service) = self.any_service(state) else { return Vec::new() };
        let going = Service { pending_delete: true, ..Service::clone(&service) };
        let object = Object::Service(Box::new(going));
        vec![Change::Update { object, expected: service.meta.version }]
    }

    fn new_network(&mut self, state: &State) -> Vec<Change> {
        if state.networks().len() >= 4 {
            return Vec::new();
        }
        let id = NetworkId::from_bits(self.random.bits());
        let spec = NetworkSpec { name: self.next_name("net"), ..NetworkSpec::default() };
        vec![Change::Create(Object::Network(Box::new(Network::new(id, spec))))]
    }

    fn new_secret(&mut self, state: &State) -> Vec<Change> {
        if state.dependencies().len() >= MAX_SECRETS {
            return Vec::new();
        }
        let id = DependencyId::from_bits(self.random.bits());
        let spec = DependencySpec { name: self.next_name("secret"), ..DependencySpec::default() };
        let secret = Dependency::new(id, DependencyKind::Secret, spec);
        vec![Change::Create(Object::Dependency(Box::new(secret)))]
    }

    /// One that no service refers to, as the API has it; tasks of an earlier spec may.
    fn remove_secret(&mut self, state: &State) -> Vec<Change> {
        let files = |service: &Arc<Service>| service.spec.task.container.dependencies.clone();
        let used: Vec<DependencyFile> = state.services().iter().flat_map(files).collect();
        let unused = state.dependencies().iter().map(|secret| secret.id);
        let unused: Vec<_> = unused.filter(|id| used.iter().all(|file| file.id != *id)).collect();
        let going = self.random.pick(&unused).map(|id| Change::Delete(ObjectRef::Dependency(*id)));
        going.into_iter().collect()
    }

    fn set_availability(&mut self, state: &State) -> Vec<Change> {
        let nodes: Vec<_> = state.nodes().iter().cloned().collect();
        let Some(node) = self.random.pick(&nodes) else { return Vec::new() };
        let mut changed = Node::clone(node);
        let all = [Availability::Active, Availability::Active, Availability::Pause, Availability::Drain];
        changed.spec.availability = *self.random.pick(&all).unwrap_or(&Availability::Active);
        vec![Change::Update { object: Object::Node(Box::new(changed)), expected: node.meta.version }]
    }
}

fn file_of(secret: &Dependency) -> DependencyFile {
    DependencyFile {
        kind: secret.kind,
        id: secret.id,
        name: secret.spec.name.clone(),
        target: secret.spec.name.clone(),
        uid: 0,
        gid: 0,
        mode: 0o444,
    }
}

/// A user's update of a service. A job runs again.
pub fn updated(old: &Service, mut new: Service, now: Timestamp) -> Change {
    new.job = old.job.map(|job| JobStatus { iteration: job.iteration + 1, last_execution: now });
    new.previous_spec = Some(Box::new(old.spec.clone()));
    new.update_status = None;
    Change::Update { object: Object::Service(Box::new(new)), expected: old.meta.version }
}

fn describe(changes: &[Change]) -> String {
    let words = changes.iter().map(|change| match change {
        Change::Create(Object::Service(s)) => {
            format!("new {} {:?} {}", s.spec.name, s.spec.mode, s.spec.task.container.image)
        }
        Change::Update { object: Object::Service(s), .. } if s.pending_delete => {
            format!("{} goes", s.spec.name)
        }
        Change::Update { object: Object::Service(s), .. } => {
            format!(
                "{} {:?} {} {:?}",
                s.spec.name, s.spec.mode, s.spec.task.container.image, s.spec.update.order
            )
        }
        Change::Update { object: Object::Node(n), .. } => {
            format!("{} {:?}", n.description.hostname, n.spec.availability)
        }
        Change::Delete(ObjectRef::Service(id)) => format!("{id} is gone"),
        other => format!("{other:?}").chars().take(60).collect(),
    });
    words.collect::<Vec<_>>().join(", ")
}
