//! What must hold after every step, whatever happens.

mod nodes;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use control_model::object::{Node, NodeState, Service};
use control_model::spec::{PublishMode, UpdateOrder};
use control_model::{Generation, NetworkId, ServiceId, Task, TaskId, TaskState};
use control_store::{Event as StoreEvent, EventKind, State};

use crate::host::HostId;
use crate::log::Purpose;
use crate::world::World;
pub use services::{job_unfinished, uneven};

/// As `control-orchestrator` and `control-agent` have them.
const DRAIN_GIVEN_UP: Duration = Duration::from_secs(3);
const AGENT_GIVES_UP: Duration = Duration::from_secs(10);
const OLD_TASK_TIMEOUT: Duration = Duration::from_mins(1);
/// Longest time from what a loop has seen to the write that follows from it.
const DECIDED_WITHIN: Duration = Duration::from_millis(300);
/// What a steady clock may be off by the rounding of events.
const SLACK: Duration = Duration::from_millis(1);
/// Clocks that catch up after a jump run so much faster or slower at most.
const EVEN_PERCENT: u32 = 25;

/// What the laws have to remember.
#[derive(Debug, Default)]
pub struct Laws {
    /// Since when each task is to stop.
    leaving: BTreeMap<TaskId, Duration>,
    created: BTreeMap<TaskId, Duration>,
    /// When each node was last said to be ready again.
    ready_since: BTreeMap<HostId, Duration>,
    /// Services whose updates have ever started a task beside the old one.
    start_first: BTreeSet<ServiceId>,
    /// A wall clock has jumped: daemons' clocks catch up.
    pub clocks_jumped: bool,
    /// Of a large cluster where nothing fails nothing is checked: it would take too long.
    pub is_off: bool,
    /// When a leader was last elected: where clocks have jumped, its clock may be ahead of its predecessor's.
    pub elected_at: Duration,
    /// When something last broke, was mended, or began.
    pub disturbed_at: Duration,
}

impl Laws {
    /// How long a daemon waits that is to wait for `span` by its own clock.
    fn at_least(&self, span: Duration) -> Duration {
        if self.clocks_jumped { span * 100 / (100 + EVEN_PERCENT) } else { span }
    }
}

impl World {
    /// An entry was committed.
    pub(crate) fn judge_commit(&mut self, purpose: Option<&Purpose>, events: &[StoreEvent]) {
        if self.laws.is_off {
            return;
        }
        let mut is_place_taken = false;
        for event in events {
            match &event.kind {
                EventKind::Task(before, after) => {
                    is_place_taken |=
                        before.as_ref().map(|t| &t.attachments) != after.as_ref().map(|t| &t.attachments);
                    self.judge_task(purpose, before.as_deref(), after.as_deref());
                }
                EventKind::Node(before, after) => self.note_node(before.as_deref(), after.as_deref()),
                EventKind::Service(_, after) => {
                    is_place_taken = true;
                    self.note_service(after.as_deref());
                }
                EventKind::Network(..) => is_place_taken = true,
                EventKind::Cluster(..) | EventKind::Dependency(..) => {}
            }
        }
        if is_place_taken {
            let state = self.log.state.clone();
            if let Some(what) = twice_taken(&state) {
                self.fail("addresses, ports and networks are unique", what);
            }
        }
    }

    fn judge_task(&mut self, purpose: Option<&Purpose>, before: Option<&Task>, after: Option<&Task>) {
        let now = self.now();
        let Some(task) = after else { return };
        self.note(|| {
            let (state, desired) = (task.status.state, task.desired_state);
            let at = task.node.and_then(HostId::of_node);
            format!(
                "{} {state:?} wanted {desired:?} drained {} at {at:?} {}",
                task.name(),
                task.drained,
                task.status.error
            )
        });
        if task.desired_state >= TaskState::Shutdown {
            self.laws.leaving.entry(task.id).or_insert(now);
        }
        let Some(before) = before else {
            self.laws.created.insert(task.id, now);
            if task.status.state != TaskState::New {
                self.fail("tasks begin new", task.name());
            }
            return self.judge_new(task);
        };
        let grows = task.status.state >= before.status.state
            && task.desired_state >= before.desired_state
            && task.drained >= before.drained
            && task.weight >= before.weight
            && (before.node.is_none() || before.node == task.node)
            && (before.service, before.slot) == (task.service, task.slot);
        if !grows {
            self.fail("a task's states only grow", format!("{before:?} became {task:?}"));
        }
        let (old, new) = (before.status.state, task.status.state);
        if let Some(purpose) = purpose.filter(|purpose| old != new && !may_move(purpose, old, new)) {
            self.fail(
                "each state has one owner",
                format!("{}: {old:?} to {new:?} by {purpose:?}", task.name()),
            );
        }
        if new.is_terminal() && new != TaskState::Orphaned {
            self.judge_end(task);
        }
    }

    /// A task that is said to have ended has no process.
    fn judge_end(&mut self, task: &Task) {
        let Some(host) = task.node.and_then(HostId::of_node) else { return };
        let container = self.hosts.get(host.0).and_then(|host| host.containers.get(&task.id));
        if container.is_some_and(crate::host::Container::runs) {
            self.fail("what has ended has no process", format!("{} at {host:?}", task.name()));
        }
    }

    fn note_node(&mut self, before: Option<&Node>, after: Option<&Node>) {
        let Some(node) = after else { return };
        let Some(host) = HostId::of_node(node.id) else { return };
        self.judge_node(node);
        let is_ready = |node: &Node| node.status.state == NodeState::Ready;
        self.note(|| format!("{host:?} {:?} path {}", node.status.state, node.status.data_path_alive));
        if is_ready(node) && !before.is_some_and(is_ready) {
            self.laws.ready_since.insert(host, self.queue.now());
        }
    }

    fn note_service(&mut self, service: Option<&Service>) {
        let Some(service) = service else { return };
        let orders = [service.spec.update.order, service.spec.rollback.order];
        // A move starts first too.
        if orders.contains(&UpdateOrder::StartFirst) || service.spec.rebalance().is_some() {
            self.laws.start_first.insert(service.id);
        }
    }

    /// The leader has taken the node for ready all the time since then.
    fn was_ready_since(&self, host: HostId, since: Duration) -> bool {
        let node = self.log.state.nodes().get(&host.node());
        node.is_some_and(|node| node.status.state == NodeState::Ready)
            && self.laws.ready_since.get(&host).is_some_and(|at| *at <= since)
    }

    /// A process gets its stop signal: nobody who is up sends to it any more, or was waited for long enough.
    pub(crate) fn judge_signal(&mut self, id: HostId, task: &Task) {
        let state = self.log.state.clone();
        let truth = state.tasks().get(&task.id).filter(|t| !t.status.state.is_terminal());
        let Some(truth) = truth.filter(|_| !self.laws.is_off) else { return };
        let Some(since) = self.laws.leaving.get(&task.id).copied() else {
            return self
                .fail("nothing is stopped that nobody wants stopped", format!("{} at {id:?}", task.name()));
        };
        let waited = self.now().saturating_sub(since) + SLACK;
        if !truth.drained && waited < self.laws.at_least(AGENT_GIVES_UP) {
            return self.fail("drain comes before the signal", format!("{} is not drained", task.name()));
        }
        if waited >= self.laws.at_least(DRAIN_GIVEN_UP) {
            return;
        }
        let name = task.name();
        let senders = self.hosts.iter().filter(|host| host.routes_to(&name));
        let sender = senders.map(|host| host.id).find(|host| self.was_ready_since(*host, since));
        if let Some(sender) = sender {
            let what = format!("{name} is signalled after {waited:?} while {sender:?} sends to it");
            self.fail("drain comes before the signal", what);
        }
    }

    /// A process begins: no other one runs in its slot, unless an order allows it or its node can't be heard.
    pub(crate) fn judge_start(&mut self, id: HostId, task: &Task) {
        let created = self.laws.created.get(&task.id).copied().filter(|_| !self.laws.is_off);
        let Some(created) = created else { return };
        let is_excused = self.laws.start_first.contains(&task.service)
            || self.now().saturating_sub(created) >= self.laws.at_least(OLD_TASK_TIMEOUT)
            || (self.laws.clocks_jumped && self.laws.elected_at >= created)
            || !self.was_ready_since(id, created);
        if is_excused {
            return;
        }
        // Its node may have been down when that was decided, and back when it was written.
        let decided = created.saturating_sub(DECIDED_WITHIN);
        let state = self.log.state.clone();
        let is_rival = |other: &Task| {
            let same_slot = (other.service, other.slot) == (task.service, task.slot);
            same_slot && other.id != task.id && state.tasks().get(&other.id).is_some()
        };
        let rival = self.hosts.iter().find_map(|host| {
            let mut running = host.containers.values().filter(|container| container.runs());
            let rival = running.find(|container| is_rival(&container.task))?;
            self.was_ready_since(host.id, decided).then(|| format!("{} at {:?}", rival.task.name(), host.id))
        });
        if let Some(rival) = rival {
            let what = format!("{} at {id:?} beside {rival}", task.name());
            self.fail("a slot has one process", what);
        }
    }

    /// Assignments never become older.
    pub(crate) fn judge_generation(&mut self, id: HostId, before: Generation) {
        let after = self.generation_of(id);
        if after < before {
            self.fail("assignments never become older", format!("{id:?}: {before:?} to {after:?}"));
        }
    }
}

/// Who may move a task from one state to another.
fn may_move(purpose: &Purpose, old: TaskState, new: TaskState) -> bool {
    match purpose {
        Purpose::Loops { name: "allocator", .. } => {
            old == TaskState::New && [TaskState::Pending, TaskState::Shutdown].contains(&new)
        }
        Purpose::Loops { name: "scheduler", .. } => {
            old == TaskState::Pending && [TaskState::Assigned, TaskState::Shutdown].contains(&new)
        }
        Purpose::Loops { name: "orchestrator", .. } => {
            new == TaskState::Orphaned && old >= TaskState::Assigned
        }
        Purpose::Statuses => {
            (TaskState::Assigned..=TaskState::Running).contains(&old)
                && (TaskState::Accepted..=TaskState::Rejected).contains(&new)
        }
        Purpose::Loops { .. } | Purpose::Liveness { .. } | Purpose::Describe(_) | Purpose::User => false,
    }
}

/// An address, a port or a VNI that two have.
pub fn twice_taken(state: &State) -> Option<String> {
    twice_addressed(state).or_else(|| twice_published(state)).or_else(|| twice_numbered(state))
}

fn twice_addressed(state: &State) -> Option<String> {
    let gateways = state.networks().iter().flat_map(|network| {
        let ipam = network.state.iter().flat_map(|s| &s.ipam).filter_map(|ipam| ipam.gateway);
        ipam.map(|gateway| (network.id, gateway, "a gateway".to_owned()))
    });
    let vips = state.services().iter().flat_map(|service| {
        let vips = service.endpoint.iter().flat_map(|endpoint| &endpoint.vips);
        vips.map(|(network, vip)| (*network, IpAddr::V4(*vip), service.spec.name.clone()))
    });
    let tasks = state
        .tasks()
        .iter()
        .filter(|task| !task.status.state.is_terminal())
        .flat_map(|task| task.attachments.iter().map(|a| (a.network, a.address.ip(), task.name())));
    let mut held: BTreeMap<(NetworkId, IpAddr), String> = BTreeMap::new();
    for (network, address, who) in gateways.chain(vips).chain(tasks) {
        if let Some(other) = held.insert((network, address), who.clone()) {
            return Some(format!("{address} of {other} and of {who}"));
        }
    }
    None
}

fn twice_published(state: &State) -> Option<String> {
    let mut ports = BTreeSet::new();
    let published = state.services().iter().flat_map(|s| s.endpoint.iter().flat_map(|e| &e.ports));
    let mut ingress = published.filter(|port| port.mode == PublishMode::Ingress && port.published != 0);
    ingress
        .find(|port| !ports.insert((port.protocol, port.published)))
        .map(|port| format!("port {}", port.published))
}

fn twice_numbered(state: &State) -> Option<String> {
    let mut numbers = BTreeSet::new();
    let mut given = state.networks().iter().filter_map(|network| network.state.as_ref());
    given.find(|network| !numbers.insert(network.vni)).map(|network| format!("VNI {}", network.vni))
}
