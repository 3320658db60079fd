//! Users and faults: what is done to the cluster until it is left alone.

use std::sync::Arc;
use std::time::Duration;

use control_model::change::{Change, Object, ObjectRef};
use control_model::object::{Network, Node, Service};
use control_model::spec::{
    Availability, FailureAction, NetworkAttachmentSpec, NetworkSpec, PortConfig, Protocol, PublishMode,
    ServiceMode, ServiceSpec, UpdateOrder,
};
use control_model::{NetworkId, ServiceId};
use control_store::State;

use crate::event::Event;
use crate::host::HostId;
use crate::log::Purpose;
use crate::scenario::Scenario;
use crate::world::World;

/// Between two acts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(2500));
const MAX_SERVICES: usize = 4;
/// How long a daemon or machine is away.
const AWAY: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(25));
/// Half of it back, half of it ahead.
const LARGEST_JUMP_SECS: usize = 7200;

impl World {
    /// One act, and the time of the next one.
    pub(crate) fn on_act(&mut self) {
        if self.is_healed {
            return;
        }
        let pause = self.random.between(PAUSE.0, PAUSE.1);
        self.queue.after(pause, Event::Act);
        if self.random.percent(50) && self.scenario != Scenario::Calm {
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
        let changes = match self.random.below(20) {
            0..5 => self.new_service(&state),
            5..13 => self.update_service(&state),
            13 | 14 => self.remove_service(&state),
            15 | 16 => self.new_network(&state),
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

    fn new_service(&mut self, state: &State) -> Vec<Change> {
        if state.services().len() >= MAX_SERVICES {
            return Vec::new();
        }
        let mut spec = ServiceSpec { name: self.next_name("s"), ..ServiceSpec::default() };
        spec.task.container.image = "v1".into();
        if self.random.percent(25) {
            spec.mode = ServiceMode::Global;
        }
        self.edit(state, &mut spec);
        let id = ServiceId::from_bits(self.random.bits());
        vec![Change::Create(Object::Service(Box::new(Service::new(id, spec))))]
    }

    /// Anything about a spec changes, an update's own settings with it.
    fn edit(&mut self, state: &State, spec: &mut ServiceSpec) {
        let random = &mut self.random;
        if let ServiceMode::Replicated { replicas } = &mut spec.mode {
            *replicas = random.below(6) as u64;
        }
        if random.percent(50) {
            let images = ["v1", "v2", "v3", "bad", "crash", "done"];
            let image = *random.pick(&images).unwrap_or(&"v1");
            image.clone_into(&mut spec.task.container.image);
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

    fn update_service(&mut self, state: &State) -> Vec<Change> {
        let Some(old) = self.any_service(state) else { return Vec::new() };
        let mut new = Service::clone(&old);
        self.edit(state, &mut new.spec);
        vec![updated(&old, new)]
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

    fn set_availability(&mut self, state: &State) -> Vec<Change> {
        let nodes: Vec<_> = state.nodes().iter().cloned().collect();
        let Some(node) = self.random.pick(&nodes) else { return Vec::new() };
        let mut changed = Node::clone(node);
        let all = [Availability::Active, Availability::Active, Availability::Pause, Availability::Drain];
        changed.spec.availability = *self.random.pick(&all).unwrap_or(&Availability::Active);
        vec![Change::Update { object: Object::Node(Box::new(changed)), expected: node.meta.version }]
    }

    fn any_host(&mut self) -> HostId {
        HostId(self.random.below(self.hosts.len()))
    }

    /// Something breaks, or is mended.
    fn disturb(&mut self) {
        let scenario = self.scenario;
        let kinds = [Scenario::Crashes, Scenario::Partitions, Scenario::Runtimes, Scenario::Clocks];
        let kinds: Vec<Scenario> = kinds.into_iter().filter(|kind| scenario.has(*kind)).collect();
        let id = self.any_host();
        match self.random.pick(&kinds) {
            Some(Scenario::Crashes) => self.crash(id),
            Some(Scenario::Partitions) => self.partition(id),
            Some(Scenario::Runtimes) => self.refuse_work(id),
            Some(Scenario::Clocks) => self.turn_clock(id),
            _ => {}
        }
    }

    fn crash(&mut self, id: HostId) {
        let away = self.random.between(AWAY.0, AWAY.1);
        match self.random.below(4) {
            0 | 1 if self.host(id).daemon.is_some() => {
                self.crash_daemon(id);
                self.note(|| format!("the daemon of {id:?} is killed"));
                self.queue.after(away, Event::DaemonStarts(id));
            }
            2 if self.host(id).is_powered => {
                self.crash_machine(id);
            }
            3 => self.log.crash_at_write = true,
            _ => {}
        }
        // Machines that lost their power get it back, one now and then.
        let off: Vec<HostId> =
            self.hosts.iter().filter(|host| !host.is_powered).map(|host| host.id).collect();
        if let Some(back) = self.random.pick(&off).copied().filter(|back| *back != id) {
            self.hosts[back.0].is_powered = true;
            if self.random.percent(20) {
                self.hosts[back.0].containers.clear();
                self.note(|| format!("{back:?} comes back without its containers"));
            }
            self.queue.after(Duration::from_secs(1), Event::DaemonStarts(back));
        }
    }

    fn partition(&mut self, id: HostId) {
        let others: Vec<HostId> = self.hosts.iter().map(|host| host.id).filter(|host| *host != id).collect();
        let other = self.random.pick(&others).copied();
        match self.random.below(6) {
            0 => others.iter().for_each(|other| {
                self.net.cut(id, *other);
                self.net.cut(*other, id);
            }),
            1 => others.iter().for_each(|other| self.net.cut(id, *other)),
            2 => others.iter().for_each(|other| self.net.cut(*other, id)),
            3 => self.net.loss_percent = self.random.below(40),
            4 => other.into_iter().for_each(|other| self.net.cut(id, other)),
            _ => self.net.heal(),
        }
        self.note(|| format!("ways of {id:?} are cut or mended"));
    }

    fn refuse_work(&mut self, id: HostId) {
        let percent = self.random.below(4);
        let host = &mut self.hosts[id.0];
        match percent {
            0 => host.path.is_stuck = !host.path.is_stuck,
            1 => host.runtime_fails = !host.runtime_fails,
            2 => host.path.is_dead = !host.path.is_dead,
            _ => (host.path.is_stuck, host.runtime_fails, host.path.is_dead) = (false, false, false),
        }
        let (stuck, fails, dead) = (host.path.is_stuck, host.runtime_fails, host.path.is_dead);
        self.note(|| format!("{id:?}: kernel stuck {stuck}, runtime fails {fails}, data path dead {dead}"));
    }

    fn turn_clock(&mut self, id: HostId) {
        let seconds = i64::try_from(self.random.below(LARGEST_JUMP_SECS)).expect("hours") - 3600;
        self.hosts[id.0].clock_ahead = seconds * 1_000_000_000;
        self.laws.clocks_jumped = true;
        self.note(|| format!("the clock of {id:?} is {seconds} s ahead"));
    }
}

/// A user's update of a service.
pub fn updated(old: &Service, mut new: Service) -> Change {
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
