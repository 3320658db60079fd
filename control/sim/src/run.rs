//! One run: a cluster begins, users and faults do their work, everything is mended, and all must be as asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control_manager::assignments::NodeAssignments;
use control_model::change::{Change, Entry, Object, RequestId};
use control_model::object::{Cluster, ManagerStatus, Network, Node, NodeState, Service, UpdateState};
use control_model::slow_start::FULL_WEIGHT;
use control_model::spec::{Availability, Role, ServiceMode};
use control_model::{Assignment, AssignmentKey, ClusterId, NetworkId, Task, TaskState};
use control_orchestrator::is_task_dirty;
use control_store::State;

use crate::act::updated;
use crate::event::Event;
use crate::faults::SOME_LOSS;
use crate::host::{Host, HostId};
use crate::laws::{job_unfinished, uneven};
use crate::log::Purpose;
use crate::mutation::Mutation;
use crate::scenario::Scenario;
use crate::world::{Broken, World};

/// For the first leader, and the nodes' first sessions.
const BEGINNING: Duration = Duration::from_secs(5);
/// How long users and faults act.
const PLAY: Duration = Duration::from_secs(30);
/// Longest time for all to be well again: an update of all slots, one after another, with restarts and monitors.
const HEALING: Duration = Duration::from_mins(5);
/// Between two looks whether all is well.
const LOOK: Duration = Duration::from_secs(1);
const GOOD_IMAGE: &str = "v9";
/// Ends well by itself.
pub const GOOD_JOB: &str = "job";

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub scenario: Scenario,
    pub seed: u64,
    pub mutation: Option<Mutation>,
    /// Prints what happens.
    pub is_traced: bool,
}

/// What a run that broke no law was like. The same for the same run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub n_events: u64,
    pub n_entries: usize,
    /// Virtual time, from the end of all faults until everything was as asked.
    pub healed_after: Duration,
}

impl Run {
    /// Runs, or says which law was broken first.
    pub fn run(self) -> Result<Outcome, Broken> {
        let mut world = World::new(self.scenario, self.seed, self.mutation, self.is_traced);
        world.begin();
        world.run(BEGINNING)?;
        if self.scenario == Scenario::Stalls {
            world.net.loss_percent = SOME_LOSS;
        }
        world.queue.after(Duration::ZERO, Event::Act);
        world.run(PLAY)?;
        world.mend();
        let healed_after = world.heal()?;
        let (n_events, n_entries) = (world.n_events(), world.log.committed.len());
        Ok(Outcome { n_events, n_entries, healed_after })
    }
}

impl World {
    pub(crate) fn begin(&mut self) {
        let nodes = self.hosts.iter().map(|host| {
            let role = if host.replica.is_some() { Role::Manager } else { Role::Worker };
            let mut node = Node::new(host.id.node(), role);
            let manager = ManagerStatus { raft_id: host.id.0 as u64 + 1, addr: host.id.addr() };
            node.manager = host.replica.is_some().then_some(manager);
            Object::Node(Box::new(node))
        });
        let cluster = Cluster { epoch: 1, ..Cluster::new(ClusterId::from_bits(1)) };
        let ingress = Network::ingress(NetworkId::from_bits(1));
        let objects = [Object::Cluster(Box::new(cluster)), Object::Network(Box::new(ingress))];
        let changes = objects.into_iter().chain(nodes).map(Change::Create).collect();
        let entry = Entry { request: RequestId(0), at: self.wall(HostId(0)), changes };
        self.first_entry(&Arc::new(entry));
        for id in 0..self.hosts.len() {
            self.queue.after(Duration::from_millis(10), Event::DaemonStarts(HostId(id)));
        }
        self.queue.after(Duration::from_millis(50), Event::Raft);
    }

    /// Nothing fails any more.
    fn mend(&mut self) {
        self.is_healed = true;
        self.note(|| "everything is mended".to_owned());
        self.net.heal();
        self.log.crash_at_write = false;
        for host in &mut self.hosts {
            host.clock_ahead = 0;
            host.is_powered = true;
            host.stalled_until = Duration::ZERO;
            host.runtime_fails = false;
            (host.path.is_stuck, host.path.is_dead) = (false, false);
            self.queue.after(Duration::from_millis(100), Event::DaemonStarts(host.id));
        }
    }

    /// Waits until all is as asked; returns after how long it was.
    fn heal(&mut self) -> Result<Duration, Broken> {
        let begun = self.now();
        loop {
            self.run(LOOK)?;
            self.want_good();
            let Some(why) = self.unsettled() else { return Ok(self.now().saturating_sub(begun)) };
            if self.now().saturating_sub(begun) > HEALING {
                self.fail("all is as asked once nothing fails", why);
            }
        }
    }

    /// All nodes are to be active, and all images good ones.
    fn want_good(&mut self) {
        let state = self.log.state.clone();
        let Some(by) = self.log.leader.map(|leader| leader.host) else { return };
        if self.host(by).manager().is_none() {
            return;
        }
        for node in state.nodes().iter().filter(|node| node.spec.availability != Availability::Active) {
            let mut changed = Node::clone(node);
            changed.spec.availability = Availability::Active;
            let object = Object::Node(Box::new(changed));
            self.propose(by, vec![Change::Update { object, expected: node.meta.version }], Purpose::User);
        }
        let services = state.services().iter().filter(|service| !service.pending_delete);
        let now = self.wall(by);
        for old in services.filter(|service| service.spec.task.container.image != good_image(service)) {
            let mut new = Service::clone(old);
            new.spec.task.container.image = good_image(old).into();
            self.propose(by, vec![updated(old, new, now)], Purpose::User);
        }
    }

    /// What is not as it should be.
    fn unsettled(&self) -> Option<String> {
        let state = &self.log.state;
        let services = state.services().iter().find_map(|service| not_as_asked(state, service));
        let orphan = || state.tasks().iter().find(|task| state.services().get(&task.service).is_none());
        services
            .or_else(|| orphan().map(|task| format!("{} has no service", task.name())))
            .or_else(|| self.hosts.iter().find_map(|host| self.host_unsettled(host)))
    }

    fn host_unsettled(&self, host: &Host) -> Option<String> {
        let (id, state) = (host.id, &self.log.state);
        if let Some(replica) = &host.replica {
            if replica.applied != self.log.committed.len() {
                return Some(format!("{id:?} is behind"));
            }
            if let Some(event) = replica.state.diff(state).first() {
                return Some(format!("{id:?} has another state: {event:?}"));
            }
        }
        let Some(node) = state.nodes().get(&id.node()) else { return Some(format!("{id:?} is no node")) };
        if node.status.state != NodeState::Ready || !node.status.data_path_alive {
            return Some(format!("{id:?} is {:?}", node.status));
        }
        let Some(daemon) = &host.daemon else { return Some(format!("{id:?} has no daemon")) };
        let wanted = normal(NodeAssignments::new(id.node(), state.clone()).complete());
        let has = normal(daemon.desk.set().rows());
        if let Some((key, _)) = wanted.iter().find(|(key, row)| has.get(key) != Some(*row)) {
            return Some(format!(
                "{id:?} lacks {key:?}, or has another: {:?}, not {:?}",
                has.get(key),
                wanted[key]
            ));
        }
        if let Some(key) = has.keys().find(|key| !wanted.contains_key(key)) {
            return Some(format!("{id:?} has {key:?} still"));
        }
        let report = &host.path.report;
        if report.applied_revision != report.wanted_revision {
            return Some(format!("the kernel of {id:?} lags"));
        }
        Self::routes_unsettled(host).or_else(|| self.containers_unsettled(host))
    }

    /// New flows go to what is ready, and to nothing else.
    fn routes_unsettled(host: &Host) -> Option<String> {
        let set = host.daemon.as_ref()?.desk.set();
        let ready = set.endpoints.values().filter(|e| e.ready && set.services.contains_key(&e.service));
        let wanted: BTreeSet<String> = ready.map(|endpoint| endpoint.name.clone()).collect();
        let differs = wanted.symmetric_difference(&host.path.routes).next();
        differs.map(|name| format!("{:?} routes to {name}, or should", host.id))
    }

    /// What runs is what the managers know as running.
    fn containers_unsettled(&self, host: &Host) -> Option<String> {
        let running: BTreeSet<_> =
            host.containers.iter().filter(|(_, container)| container.runs()).map(|(id, _)| *id).collect();
        let known = self.log.state.tasks_of_node(host.id.node());
        let known: BTreeSet<_> =
            known.filter(|task| task.status.state == TaskState::Running).map(|task| task.id).collect();
        let differs = running.symmetric_difference(&known).next();
        differs.map(|task| format!("{:?} runs {task}, or should", host.id))
    }
}

/// Rows by key, without what a node is not told again.
fn normal(rows: impl IntoIterator<Item = Assignment>) -> BTreeMap<AssignmentKey, Assignment> {
    let strip = |row: Assignment| match row {
        Assignment::Task(mut task) => {
            task.meta = control_model::object::Meta::default();
            task.life = control_model::object::Life::default();
            task.status = control_model::object::TaskStatus::default();
            Assignment::Task(task)
        }
        row => row,
    };
    rows.into_iter().map(|row| (row.key(), strip(row))).collect()
}

fn not_as_asked(state: &State, service: &Service) -> Option<String> {
    let name = &service.spec.name;
    if service.pending_delete {
        return Some(format!("{name} still goes"));
    }
    if service.spec.task.container.image != good_image(service) {
        return Some(format!("{name} has its bad image"));
    }
    if service.spec.mode.is_job() {
        return job_unfinished(state, service).or_else(|| too_much_history(state, service));
    }
    let tasks = || state.tasks_of_service(service.id).map(AsRef::as_ref);
    let wanted: Vec<&Task> = tasks().filter(|task| task.desired_state <= TaskState::Running).collect();
    let n_wanted = match service.spec.mode {
        ServiceMode::Replicated { replicas } => usize::try_from(replicas).unwrap_or(usize::MAX),
        ServiceMode::Global => state.nodes().len(),
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => return None,
    };
    let slots: BTreeSet<_> = wanted.iter().map(|task| task.slot).collect();
    if wanted.len() != n_wanted || slots.len() != n_wanted {
        return Some(format!("{name} has {} tasks in {} slots, not {n_wanted}", wanted.len(), slots.len()));
    }
    for task in wanted {
        let node = task.node.and_then(|id| state.nodes().get(&id)).map(AsRef::as_ref);
        let is_well = task.status.state == TaskState::Running && task.weight == FULL_WEIGHT;
        if !is_well || is_task_dirty(service, task, node) {
            return Some(format!("{} is {:?}: {}", task.name(), task.status, task.spec.container.image));
        }
    }
    let status = service.update_status.as_ref().map(|status| status.state);
    if ![None, Some(UpdateState::Completed), Some(UpdateState::RollbackCompleted)].contains(&status) {
        return Some(format!("{name}: {status:?}"));
    }
    uneven(state, service).or_else(|| too_much_history(state, service))
}

fn good_image(service: &Service) -> &'static str {
    if service.spec.mode.is_job() { GOOD_JOB } else { GOOD_IMAGE }
}

/// A slot keeps as many tasks as the cluster's limit says, or as counting restarts needs.
fn too_much_history(state: &State, service: &Service) -> Option<String> {
    let mut kept: BTreeMap<_, usize> = BTreeMap::new();
    let tasks = state.tasks_of_service(service.id);
    tasks.for_each(|task| *kept.entry(task.slot).or_default() += 1);
    let of_cluster = state.cluster().map_or(0, |cluster| cluster.spec.task_history_limit);
    let limit = match service.spec.task.restart.max_attempts {
        0 => of_cluster,
        attempts => i64::try_from(attempts).unwrap_or(i64::MAX).saturating_add(1),
    };
    let most = kept.values().copied().max().unwrap_or(0);
    let is_over = i64::try_from(most).unwrap_or(i64::MAX) > limit;
    is_over.then(|| format!("{}: {most} tasks in one slot", service.spec.name))
}
