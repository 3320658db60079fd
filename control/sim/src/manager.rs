//! A manager's end of the agents' sessions: the product's sessions, streams and checks, on the model's wires.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use control_manager::dispatcher::{SessionGuard, Sessions, Updates, checked_report, generation_of};
use control_manager::entries::MAX_OBJECTS;
use control_manager::leader::Factory;
use control_manager::liveness::reporter::{take_report, to_report};
use control_manager::liveness::table::LivenessTable;
use control_manager::loops;
use control_model::{Assignment, AssignmentUpdate, Change, Dependency, Generation, NodeId, Task, TaskState};
use control_store::{Event as StoreEvent, State};

use crate::event::{Batch, Event, SessionNo};
use crate::host::{HostId, steady};
use crate::leading::Leading;
use crate::log::{Failure, Purpose, Write};
use crate::mutation::Mutation;
use crate::random::Random;
use crate::world::World;

/// As `control-manager` has them.
const GATHER: Duration = Duration::from_millis(10);
const LEADERLESS: Duration = Duration::from_secs(2);
const CATCH_UP: Duration = Duration::from_secs(2);
const REPORT_PERIOD: Duration = Duration::from_secs(1);
/// Between two tries over a way that leads nowhere.
const BLOCKED: Duration = Duration::from_millis(100);

/// What a manager has in memory.
pub struct Manager {
    pub sessions: Arc<Sessions>,
    pub table: Arc<LivenessTable>,
    pub factories: Arc<[Factory]>,
    pub streams: BTreeMap<SessionNo, Stream>,
    /// Who leads in which term, as far as it knows.
    pub leader_seen: Option<(HostId, u64)>,
    pub contact_at: Duration,
    pub leaderless_since: Option<Duration>,
    pub leading: Option<Leading>,
    /// Reports that wait for the one that is being written.
    reports: Vec<(SessionNo, Batch, Vec<Change>)>,
    writing: Vec<(SessionNo, Batch)>,
}

/// The manager's end of a session.
pub struct Stream {
    guard: SessionGuard,
    opened_at: Duration,
    updates: Option<Updates>,
    happened: Vec<StoreEvent>,
    is_flush_due: bool,
    backlog: VecDeque<AssignmentUpdate>,
    is_send_due: bool,
    /// When the last message arrives: none overtakes it.
    last_arrival: Duration,
}

/// Which machines a session is between.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    pub agent: HostId,
    pub agent_life: u64,
    pub manager: HostId,
    pub manager_life: u64,
}

impl Manager {
    /// Of a daemon that has just begun. `ids` gives its tasks' ids.
    pub fn new(mut ids: Random) -> Self {
        let table = Arc::<LivenessTable>::default();
        let (base, n_lives) = (ids.bits(), AtomicU64::new(0));
        let new_ids = move || {
            let life = n_lives.fetch_add(1, Ordering::Relaxed);
            let mut random = Random::new(u64::try_from(base & u128::from(u64::MAX)).expect("64 bits") ^ life);
            let source: Box<dyn FnMut() -> u128 + Send> = Box::new(move || random.bits());
            source
        };
        Self {
            sessions: Sessions::new(table.clone()),
            factories: loops::with_ids(table.clone(), new_ids).into(),
            table,
            streams: BTreeMap::new(),
            leader_seen: None,
            contact_at: Duration::ZERO,
            leaderless_since: Some(Duration::ZERO),
            leading: None,
            reports: Vec::new(),
            writing: Vec::new(),
        }
    }
}

impl World {
    /// The living manager of a session.
    fn manager_of(&mut self, no: SessionNo) -> Option<(Ends, &mut Manager)> {
        let ends = *self.sessions.get(&no)?;
        let host = &mut self.hosts[ends.manager.0];
        if host.life != ends.manager_life {
            return None;
        }
        Some((ends, host.manager_mut()?))
    }

    pub(crate) fn replica(&self, host: HostId) -> Arc<State> {
        self.host(host).replica.as_ref().map(|replica| replica.state.clone()).unwrap_or_default()
    }

    pub(crate) fn on_open_arrives(&mut self, no: SessionNo) {
        let Some((ends, manager)) = self.manager_of(no) else { return self.refuse(no) };
        if manager.leader_seen.is_none() {
            return self.refuse(no);
        }
        let node = ends.agent.node();
        if self.replica(ends.manager).nodes().get(&node).is_none() {
            self.on_replicate(ends.manager);
        }
        let state = self.replica(ends.manager);
        let Some(known) = state.nodes().get(&node) else { return self.refuse(no) };
        let description = ends.agent.description(self.scenario.has_gossip());
        if known.description == description {
            return self.open(no);
        }
        let change = Change::NodeDescription { id: node, description: Box::new(description) };
        self.propose(ends.manager, vec![change], Purpose::Describe(no));
    }

    fn refuse(&mut self, no: SessionNo) {
        self.answer(no, Event::OpenAnswered(no, None));
    }

    /// A manager's answer to an agent; lost where no way leads.
    fn answer(&mut self, no: SessionNo, event: Event) {
        let Some(ends) = self.sessions.get(&no).copied() else { return };
        if self.net.leads(ends.manager, ends.agent) {
            let delay = self.delay(ends.manager, ends.agent);
            self.queue.after(delay, event);
        }
    }

    fn open(&mut self, no: SessionNo) {
        let now = self.now();
        let Some((ends, manager)) = self.manager_of(no) else { return };
        let guard = manager.sessions.open(ends.agent.node(), Some(ends.agent.ip()), steady(now));
        let stream = Stream {
            guard,
            opened_at: now,
            updates: None,
            happened: Vec::new(),
            is_flush_due: false,
            backlog: VecDeque::new(),
            is_send_due: false,
            last_arrival: now,
        };
        manager.streams.insert(no, stream);
        self.close_superseded(ends.manager);
        let state = self.replica(ends.manager);
        let managers = state.nodes().iter().filter_map(|node| Some(node.manager?.addr)).collect();
        self.answer(no, Event::OpenAnswered(no, Some(managers)));
    }

    pub(crate) fn on_stream_begins(&mut self, no: SessionNo, n_tries: u32) {
        let now = self.now();
        let Some((ends, manager)) = self.manager_of(no) else { return };
        let Some(stream) = manager.streams.get(&no) else { return };
        let is_late = now.saturating_sub(stream.opened_at) >= CATCH_UP;
        let leader = manager.leader_seen.map(|(leader, _)| leader);
        self.on_replicate(ends.manager);
        let is_caught_up = leader.is_some_and(|leader| self.net.is_both_ways(ends.manager, leader))
            && self.log.leader.is_some_and(|now| Some(now.host) == leader);
        if !is_caught_up && !is_late {
            return self.queue.after(BLOCKED, Event::StreamBegins { no, n_tries: n_tries + 1 });
        }
        let state = self.replica(ends.manager);
        let foreign = self.foreign_row(ends.agent.node());
        let Some((ends, manager)) = self.manager_of(no) else { return };
        let Some(stream) = manager.streams.get_mut(&no) else { return };
        let (updates, mut complete) = Updates::open(ends.agent.node(), state);
        manager.sessions.sent(&stream.guard, updates.generation());
        if let AssignmentUpdate::Complete { set, .. } = &mut complete {
            set.extend(foreign);
        }
        stream.updates = Some(updates);
        stream.happened.clear();
        stream.backlog.push_back(complete);
        self.on_stream_send(no);
    }

    /// What is no business of `node`, where a mutation has it sent there.
    fn foreign_row(&self, node: NodeId) -> Option<Assignment> {
        let state = &self.log.state;
        match self.mutation? {
            Mutation::ForeignTask => {
                let task = state.tasks().iter().find(|task| task.node.is_some_and(|other| other != node))?;
                Some(Assignment::Task(Box::new(Task::clone(task))))
            }
            Mutation::ForeignSecret => {
                let needs = |id| {
                    let mut files =
                        state.tasks_of_node(node).flat_map(|task| &task.spec.container.dependencies);
                    files.any(|file| file.id == id)
                };
                let secret = state.dependencies().iter().find(|secret| !needs(secret.id))?;
                Some(Assignment::Dependency(Box::new(Dependency::clone(secret))))
            }
            _ => None,
        }
    }

    pub(crate) fn on_stream_flush(&mut self, no: SessionNo) {
        let loses_removals = self.mutation == Some(Mutation::LostRemovals);
        let Some((ends, _)) = self.manager_of(no) else { return };
        let state = self.replica(ends.manager);
        let Some((_, manager)) = self.manager_of(no) else { return };
        let Some(stream) = manager.streams.get_mut(&no) else { return };
        stream.is_flush_due = false;
        let Some(updates) = &mut stream.updates else { return };
        let happened = std::mem::take(&mut stream.happened);
        let through = generation_of(&state);
        let Some(mut update) = updates.advance(state, &happened) else {
            return manager.sessions.looked_through(&stream.guard, through);
        };
        manager.sessions.sent(&stream.guard, updates.generation());
        if let (true, AssignmentUpdate::Incremental { removals, .. }) = (loses_removals, &mut update) {
            removals.clear();
        }
        stream.backlog.push_back(update);
        self.on_stream_send(no);
    }

    pub(crate) fn on_stream_retry(&mut self, no: SessionNo) {
        if let Some((_, manager)) = self.manager_of(no)
            && let Some(stream) = manager.streams.get_mut(&no)
        {
            stream.is_send_due = false;
            self.on_stream_send(no);
        }
    }

    /// Messages of a stream arrive in order, or wait.
    fn on_stream_send(&mut self, no: SessionNo) {
        let Some(ends) = self.sessions.get(&no).copied() else { return };
        let (now, delay) = (self.now(), self.delay(ends.manager, ends.agent));
        let leads = self.net.is_both_ways(ends.manager, ends.agent);
        let host = &mut self.hosts[ends.manager.0];
        let Some(manager) = host.daemon.as_mut().and_then(|d| d.manager.as_mut()) else { return };
        let Some(stream) = manager.streams.get_mut(&no) else { return };
        if !leads {
            if !std::mem::replace(&mut stream.is_send_due, true) {
                self.queue.after(BLOCKED, Event::StreamSend(no));
            }
            return;
        }
        let arrival = (now + delay).max(stream.last_arrival);
        stream.last_arrival = arrival;
        for update in std::mem::take(&mut stream.backlog) {
            self.meter.iter_mut().for_each(|meter| meter.sent(&update));
            self.queue.after(arrival.saturating_sub(now), Event::Update(no, update));
        }
    }

    /// The manager on `host` has applied an entry.
    pub(crate) fn applied(&mut self, host: HostId, events: Vec<StoreEvent>) {
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        for (no, stream) in &mut manager.streams {
            stream.happened.extend(events.iter().cloned());
            if !std::mem::replace(&mut stream.is_flush_due, true) {
                self.queue.after(GATHER, Event::StreamFlush(*no));
            }
        }
        if let Some(leading) = &mut manager.leading {
            leading.events.extend(events);
            leading.has_batch = true;
        }
    }

    pub(crate) fn after_applying(&mut self, host: HostId) {
        let state = self.replica(host);
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        let mut gone = Vec::new();
        for no in manager.streams.keys() {
            let is_removed =
                self.sessions.get(no).is_some_and(|e| state.nodes().get(&e.agent.node()).is_none());
            if is_removed {
                gone.push(*no);
            }
        }
        for no in gone {
            self.close(no);
        }
        self.run_loops(host);
    }

    /// Sends agents away when no leader is known for long.
    pub(crate) fn send_away(&mut self, host: HostId) {
        let now = self.now();
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        if manager.leaderless_since.is_some_and(|since| now.saturating_sub(since) > LEADERLESS) {
            manager.sessions.close_all();
            self.close_superseded(host);
        }
    }

    fn close_superseded(&mut self, host: HostId) {
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        let streams = manager.streams.iter();
        let closed: Vec<SessionNo> =
            streams.filter(|(_, stream)| stream.guard.closed.is_cancelled()).map(|(no, _)| *no).collect();
        for no in closed {
            self.close(no);
        }
    }

    /// The manager ends a session.
    fn close(&mut self, no: SessionNo) {
        if let Some((_, manager)) = self.manager_of(no) {
            manager.streams.remove(&no);
        }
        self.answer(no, Event::SessionEnds(no));
    }

    /// The manager hears that the agent's end is gone.
    pub(crate) fn on_session_gone(&mut self, no: SessionNo) {
        if let Some((_, manager)) = self.manager_of(no) {
            manager.streams.remove(&no);
        }
    }

    pub(crate) fn on_beat_arrives(&mut self, no: SessionNo, applied: Generation) {
        let now = self.now();
        let is_lost = self.mutation == Some(Mutation::LostHeartbeats);
        let Some((ends, manager)) = self.manager_of(no) else { return };
        let stream = manager.streams.get(&no).filter(|stream| !stream.guard.closed.is_cancelled());
        let is_valid = stream.is_some();
        if let Some(stream) = stream.filter(|_| !is_lost) {
            manager.sessions.heartbeat(&stream.guard, applied, steady(now));
        }
        self.answer(no, Event::BeatAnswered(no, is_valid));
        self.run_loops(ends.manager);
    }

    pub(crate) fn on_statuses_arrive(&mut self, no: SessionNo, batch: Batch) {
        let Some((ends, manager)) = self.manager_of(no) else { return };
        if !manager.streams.contains_key(&no) {
            return self.answer(no, Event::StatusesAnswered(no, batch, false));
        }
        let mut batch = batch;
        if self.mutation == Some(Mutation::InventedStatus) {
            let running = batch.iter_mut().find(|(_, status)| status.state == TaskState::Running);
            if let Some((_, status)) = running {
                status.state = TaskState::Failed;
            }
        }
        if batch.iter().any(|(id, _)| self.replica(ends.manager).tasks().get(id).is_none()) {
            self.on_replicate(ends.manager);
        }
        let state = self.replica(ends.manager);
        let Ok(changes) = checked_report(ends.agent.node(), &state, batch.clone()) else {
            return self.answer(no, Event::StatusesAnswered(no, batch, false));
        };
        if changes.is_empty() {
            return self.answer(no, Event::StatusesAnswered(no, batch, true));
        }
        let Some((_, manager)) = self.manager_of(no) else { return };
        manager.reports.push((no, batch, changes));
        self.write_reports(ends.manager);
    }

    fn write_reports(&mut self, host: HostId) {
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        if !manager.writing.is_empty() || manager.reports.is_empty() {
            return;
        }
        let mut changes = Vec::new();
        for (no, batch, wanted) in std::mem::take(&mut manager.reports) {
            if changes.is_empty() || changes.len() + wanted.len() <= MAX_OBJECTS {
                changes.extend(wanted);
                manager.writing.push((no, batch));
            } else {
                manager.reports.push((no, batch, wanted));
            }
        }
        self.propose(host, changes, Purpose::Statuses);
    }

    /// What becomes of a write that has ended.
    pub(crate) fn write_ended(&mut self, write: &Write, outcome: Result<(), Failure>) {
        match write.purpose {
            Purpose::Loops { term, .. } => self.loops_wrote(write.host, term, outcome),
            Purpose::Liveness { term } => self.judged(write.host, term, outcome.is_ok()),
            Purpose::Describe(no) if outcome.is_ok() => self.open(no),
            Purpose::Describe(no) => self.refuse(no),
            Purpose::Statuses => {
                let Some(manager) = self.hosts[write.host.0].manager_mut() else { return };
                for (no, batch) in std::mem::take(&mut manager.writing) {
                    self.answer(no, Event::StatusesAnswered(no, batch, outcome.is_ok()));
                }
                self.write_reports(write.host);
            }
            Purpose::User => {}
        }
    }

    /// A follower tells the leader whom it has heard.
    pub(crate) fn on_report(&mut self, host: HostId, life: u64) {
        let now = self.now();
        if self.host(host).life != life {
            return;
        }
        self.queue.after(REPORT_PERIOD, Event::Report { host, life });
        self.tell_leader(host, now);
    }

    fn tell_leader(&mut self, host: HostId, now: Duration) {
        let Some(manager) = self.host(host).manager() else { return };
        let Some((leader, _)) = manager.leader_seen.filter(|(leader, _)| *leader != host) else { return };
        let report = to_report(manager.table.snapshot(), steady(now));
        if self.net.is_both_ways(host, leader) {
            let delay = self.delay(host, leader);
            self.queue.after(delay, Event::ReportArrives { leader, report });
        }
    }

    pub(crate) fn on_report_arrives(&mut self, leader: HostId, report: &control_rpc::pb::LivenessReport) {
        let now = self.now();
        let Some(manager) = self.host(leader).manager() else { return };
        if take_report(&manager.table, report, steady(now)).is_err() {
            return self.fail("a report of liveness is refused", String::new());
        }
        self.run_loops(leader);
    }
}
