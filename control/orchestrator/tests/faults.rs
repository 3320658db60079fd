//! Random users and faults over the loops together: whatever happened, once it stops every service is as asked.
//!
//! `FAULT_SEED=n` replays one seed; `FAULT_SEEDS=n` tries that many.

mod cluster;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use cluster::{Cluster, new_service, zero_node};
use control_model::change::{Change, Object, ObjectRef};
use control_model::object::{JobStatus, Network, Node, NodeState, Service, UpdateState};
use control_model::spec::{
    Availability, FailureAction, NetworkAttachmentSpec, NetworkSpec, PortConfig, Protocol, PublishMode,
    ServiceMode, ServiceSpec, UpdateOrder,
};
use control_model::{NetworkId, NodeId, ServiceId, Task, TaskState, Timestamp};
use control_orchestrator::is_task_dirty;
use control_store::State;

/// Seeds of one run of the tests; each takes a second or so.
const SEEDS: u64 = 12;
/// What users and faults do before the cluster is left alone.
const N_ACTIONS: usize = 120;
/// How long services that are to be mended wait for a write of their update.
const MENDING: Duration = Duration::from_secs(20);
/// Longest time for all to be well again: an update of all slots, one after another, with restarts and monitors.
const HEALING: Duration = Duration::from_mins(3);

#[test]
fn every_service_is_as_asked_in_the_end() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = number("FAULT_SEED").map_or(0..number("FAULT_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    for seed in seeds {
        println!("FAULT_SEED={seed} cargo test -p control-orchestrator --test faults");
        let mut world = World { cluster: Cluster::new(), random: Random(seed), n_created: 0 };
        world.play();
        world.heal();
        world.check();
    }
}

/// xorshift64* over a mixed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((x ^ (x >> 31)) % u64::try_from(n.max(1)).expect("64 bits")).expect("below a usize")
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())].clone()) }
    }
}

struct World {
    cluster: Cluster,
    random: Random,
    n_created: usize,
}

impl World {
    fn play(&mut self) {
        let mut random = Random(self.random.0 ^ 1);
        let clock = self.cluster.clock();
        self.cluster.interfere = Some(Box::new(move |state, _| interference(state, clock(), &mut random)));
        (0..4).for_each(|_| self.add_node());
        (0..2).for_each(|_| self.add_network());
        for _ in 0..N_ACTIONS {
            self.act();
            let steps = self.random.below(12);
            (0..steps).for_each(|_| self.cluster.step());
        }
    }

    fn act(&mut self) {
        match self.random.below(20) {
            0..3 => self.add_service(),
            3..7 => self.update_service(),
            7 => self.remove_service(),
            8..11 => self.break_node(),
            11 | 12 => self.set_availability(),
            13..17 => self.doom_task(),
            17 => self.cluster.change_leader(),
            18 => self.mute_node(),
            // Longer than any delay or time-out; now and then longer than a lost node is waited for.
            19 if self.random.below(3) == 0 => {
                let hours = [1, 1, 25][self.random.below(3)];
                self.cluster.skip(Duration::from_hours(hours));
            }
            _ if self.cluster.state().nodes().len() < 7 => self.add_node(),
            _ => self.remove_node(),
        }
    }

    fn next_name(&mut self, kind: &str) -> String {
        self.n_created += 1;
        format!("{kind}{}", self.n_created)
    }

    fn add_node(&mut self) {
        let name = self.next_name("node");
        let node = zero_node(NodeId::from_bits(self.cluster.ids.next()), &name);
        self.cluster.commit(vec![Change::Create(Object::Node(Box::new(node)))]);
    }

    fn add_network(&mut self) {
        let network = Network::new(
            NetworkId::from_bits(self.cluster.ids.next()),
            NetworkSpec { name: self.next_name("net"), ..NetworkSpec::default() },
        );
        self.cluster.commit(vec![Change::Create(Object::Network(Box::new(network)))]);
    }

    fn add_service(&mut self) {
        if self.cluster.state().services().len() >= 5 {
            return;
        }
        let name = self.next_name("s");
        let mut service = new_service(ServiceId::from_bits(self.cluster.ids.next()), &name);
        service.spec.mode = match self.random.below(8) {
            0 | 1 => ServiceMode::Global,
            2 => ServiceMode::GlobalJob,
            3 | 4 => ServiceMode::ReplicatedJob { max_concurrent: 0, total_completions: 0 },
            _ => ServiceMode::default(),
        };
        service.job = service.spec.mode.is_job().then(JobStatus::default);
        self.edit(&mut service.spec);
        self.cluster.commit(vec![Change::Create(Object::Service(Box::new(service)))]);
    }

    /// Anything about a spec changes, an update's own settings with it.
    fn edit(&mut self, spec: &mut ServiceSpec) {
        match &mut spec.mode {
            ServiceMode::Replicated { replicas } => *replicas = self.random.below(9) as u64,
            ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
                *max_concurrent = 1 + self.random.below(4) as u64;
                *total_completions = self.random.below(9) as u64;
            }
            ServiceMode::Global | ServiceMode::GlobalJob => {}
        }
        let images = ["v1", "v2", "v3", "bad", "crash", "done"].map(String::from);
        if self.random.below(2) == 0 {
            spec.task.container.image = self.random.pick(&images).expect("images");
        }
        if self.random.below(3) == 0 {
            let networks: Vec<_> =
                self.cluster.state().networks().iter().filter(|n| !n.spec.ingress).map(|n| n.id).collect();
            let target = self.random.pick(&networks).expect("networks");
            spec.task.networks = vec![NetworkAttachmentSpec { target, aliases: Vec::new() }];
        }
        if self.random.below(3) == 0 {
            let port = PortConfig::new(Protocol::Tcp, 80, 0, PublishMode::Ingress);
            spec.endpoint.ports = vec![port; self.random.below(3)];
        }
        if self.random.below(3) == 0 {
            spec.labels.insert(ServiceSpec::REBALANCE_LABEL.into(), "2".into());
        }
        spec.update.parallelism = self.random.below(3) as u64;
        spec.update.order =
            if self.random.below(2) == 0 { UpdateOrder::StopFirst } else { UpdateOrder::StartFirst };
        let actions = [FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback];
        spec.update.failure_action = self.random.pick(&actions).expect("actions");
        spec.update.monitor = Duration::from_secs(self.random.below(4) as u64);
    }

    fn update_service(&mut self) {
        let Some(old) = self.any_service() else { return };
        let mut new = Service::clone(&old);
        self.edit(&mut new.spec);
        self.write_update(&old, new);
    }

    fn write_update(&mut self, old: &Service, new: Service) {
        let change = updated(old, new, self.cluster.now());
        self.cluster.commit(vec![change]);
    }

    fn any_service(&mut self) -> Option<std::sync::Arc<Service>> {
        let state = self.cluster.state();
        let services: Vec<_> = state.services().iter().filter(|s| !s.pending_delete).cloned().collect();
        self.random.pick(&services)
    }

    fn any_node(&mut self) -> Node {
        let nodes: Vec<_> = self.cluster.state().nodes().iter().cloned().collect();
        Node::clone(&self.random.pick(&nodes).expect("nodes"))
    }

    fn remove_service(&mut self) {
        let Some(service) = self.any_service() else { return };
        if self.random.below(3) == 0 {
            return self.cluster.commit(vec![Change::Delete(ObjectRef::Service(service.id))]);
        }
        let going = Service { pending_delete: true, ..Service::clone(&service) };
        let object = Object::Service(Box::new(going));
        self.cluster.commit(vec![Change::Update { object, expected: service.meta.version }]);
    }

    fn break_node(&mut self) {
        let node = self.any_node();
        let lives = [(NodeState::Down, false), (NodeState::Down, true), (NodeState::Ready, true)];
        let (state, data_path_alive) = self.random.pick(&lives).expect("lives");
        self.cluster.set_life(node.id, state, data_path_alive);
    }

    fn set_availability(&mut self) {
        let mut node = self.any_node();
        let all = [Availability::Active, Availability::Pause, Availability::Drain];
        node.spec.availability = self.random.pick(&all).expect("availabilities");
        self.write_node(node);
    }

    fn write_node(&mut self, node: Node) {
        let expected = node.meta.version;
        self.cluster.commit(vec![Change::Update { object: Object::Node(Box::new(node)), expected }]);
    }

    fn remove_node(&mut self) {
        let node = self.any_node();
        self.cluster.agents.dead.insert(node.id);
        self.cluster.commit(vec![Change::Delete(ObjectRef::Node(node.id))]);
    }

    fn doom_task(&mut self) {
        let state = self.cluster.state();
        let running: Vec<_> = state
            .tasks()
            .iter()
            .filter(|task| task.status.state == TaskState::Running)
            .map(|task| task.id)
            .collect();
        self.cluster.agents.doomed.extend(self.random.pick(&running));
    }

    fn mute_node(&mut self) {
        let node = self.any_node();
        self.cluster.silent.push(node.id);
    }

    /// Everything works again, and all images are good.
    fn heal(&mut self) {
        self.cluster.interfere = None;
        self.cluster.silent.clear();
        self.cluster.agents.doomed.clear();
        let nodes: Vec<Node> = self.cluster.state().nodes().iter().map(|node| Node::clone(node)).collect();
        for mut node in nodes {
            if node.spec.availability != Availability::Active {
                node.spec.availability = Availability::Active;
                self.write_node(node.clone());
            }
            self.cluster.set_life(node.id, NodeState::Ready, true);
        }
        self.mend_services();
        self.cluster.run(HEALING);
    }

    /// The good images come in the worst moment where there is one: between a look that ends in an update's status, and its
    /// write.
    fn mend_services(&mut self) {
        let state = self.cluster.state();
        let going: BTreeSet<ServiceId> =
            state.services().iter().filter(|service| !service.pending_delete).map(|s| s.id).collect();
        let left = Rc::new(RefCell::new(going));
        let (others, clock) = (left.clone(), self.cluster.clock());
        self.cluster.interfere = Some(Box::new(move |state, changes| {
            let statuses = changes.iter().filter_map(|change| match change {
                Change::UpdateStatus { id, .. } => Some(*id),
                _ => None,
            });
            let ids = statuses.filter(|id| others.borrow_mut().remove(id));
            ids.map(|id| mended(state.services().get(&id).expect("a service"), clock())).collect()
        }));
        self.cluster.run(MENDING);
        self.cluster.interfere = None;
        let state = self.cluster.state();
        for id in left.take() {
            let change = mended(state.services().get(&id).expect("a service"), self.cluster.now());
            self.cluster.commit(vec![change]);
        }
    }

    fn check(&self) {
        let state = self.cluster.state();
        for service in state.services().iter() {
            assert!(!service.pending_delete, "{} still goes", service.spec.name);
            check_service(&state, service);
        }
        let orphans = state.tasks().iter().filter(|t| state.services().get(&t.service).is_none());
        assert_eq!(orphans.count(), 0, "tasks of removed services");
    }
}

/// As the API does it. A job runs again.
fn updated(old: &Service, mut new: Service, now: Timestamp) -> Change {
    new.previous_spec = Some(Box::new(old.spec.clone()));
    new.update_status = None;
    new.job = old.job.map(|job| JobStatus { iteration: job.iteration + 1, last_execution: now });
    Change::Update { object: Object::Service(Box::new(new)), expected: old.meta.version }
}

/// An update to a good image.
fn mended(old: &Service, now: Timestamp) -> Change {
    let mut new = old.clone();
    new.spec.task.container.image = if new.job.is_some() { "done" } else { "v9" }.into();
    updated(old, new, now)
}

/// Now and then a user writes a service in the middle of a loop's look: labels it, which leaves its update as it is, asks for
/// another image, or for the same once more.
fn interference(state: &State, now: Timestamp, random: &mut Random) -> Vec<Change> {
    let services: Vec<_> = state.services().iter().collect();
    let Some(service) = random.pick(&services).filter(|_| random.below(10) == 0) else { return Vec::new() };
    let mut new = Service::clone(service);
    match random.below(4) {
        0 => {
            let images = ["v1", "v2", "bad", "crash"].map(String::from);
            new.spec.task.container.image = random.pick(&images).expect("images");
            vec![updated(service, new, now)]
        }
        1 => vec![updated(service, new, now)],
        _ => {
            new.spec.labels.insert("n".into(), random.below(1000).to_string());
            vec![Change::Update { object: Object::Service(Box::new(new)), expected: service.meta.version }]
        }
    }
}

fn check_service(state: &State, service: &Service) {
    let name = &service.spec.name;
    if let Some(job) = service.job {
        return check_job(state, service, job.iteration);
    }
    let wanted: Vec<&Task> = state
        .tasks_of_service(service.id)
        .map(AsRef::as_ref)
        .filter(|task| task.desired_state <= TaskState::Running)
        .collect();
    let n_wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas } => usize::try_from(replicas).expect("few"),
        _ => state.nodes().len(),
    };
    assert_eq!(wanted.len(), n_wanted, "{name}: {wanted:#?}");
    let slots: BTreeSet<_> = wanted.iter().map(|task| task.slot).collect();
    assert_eq!(slots.len(), n_wanted, "{name}: a task in each slot");
    for task in &wanted {
        assert_eq!(task.status.state, TaskState::Running, "{name}: {task:#?}");
        let node = task.node.and_then(|id| state.nodes().get(&id)).map(AsRef::as_ref);
        assert!(!is_task_dirty(service, task, node), "{name}: {task:#?}");
    }
    let status = service.update_status.as_ref().map(|status| status.state);
    let ended = [None, Some(UpdateState::Completed), Some(UpdateState::RollbackCompleted)];
    assert!(ended.contains(&status), "{name}: {status:?}");
    let mut kept: BTreeMap<_, usize> = BTreeMap::new();
    for task in state.tasks_of_service(service.id) {
        *kept.entry(task.slot).or_default() += 1;
    }
    let limit = state.cluster().map_or(0, |cluster| cluster.spec.task_history_limit);
    let most = kept.values().copied().max().unwrap_or(0);
    assert!(i64::try_from(most).expect("few") <= limit, "{name}: {most} tasks in one slot");
}

/// One task of the run has ended well in each slot, and none is left that has something to do.
fn check_job(state: &State, service: &Service, run: u64) {
    let name = &service.spec.name;
    let n_wanted = match service.spec.mode {
        ServiceMode::ReplicatedJob { total_completions, .. } => {
            usize::try_from(total_completions).expect("few")
        }
        _ => state.nodes().len(),
    };
    let (done, others): (Vec<&Task>, Vec<_>) = state
        .tasks_of_service(service.id)
        .map(AsRef::as_ref)
        .partition(|task| task.job_iteration == Some(run) && task.status.state == TaskState::Complete);
    let slots: BTreeSet<_> = done.iter().map(|task| task.slot).collect();
    assert_eq!((done.len(), slots.len()), (n_wanted, n_wanted), "{name}: {done:#?}");
    for task in others {
        assert!(task.desired_state >= TaskState::Shutdown, "{name}: {task:#?}");
    }
}
