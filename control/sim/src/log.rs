//! A model of the replicated log: terms, one leader with a quorum, entries that are lost before they are committed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use control_model::change::{Entry, Object, RequestId};
use control_model::object::Slot;
use control_model::{Change, Task, TaskId};
use control_store::{ApplyError, State};

use crate::event::{Event, Ticket};
use crate::host::HostId;
use crate::mutation::Mutation;
use crate::scale::Meter;
use crate::world::World;

/// As `control-consensus` has it.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
const LEADER_TIMEOUT: Duration = Duration::from_millis(1500);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const LEADER_LOST_AFTER: Duration = Duration::from_secs(2);
const ELECTION: (Duration, Duration) = (Duration::from_millis(900), Duration::from_millis(1500));
/// Between two looks of managers at each other.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// Of an entry: the disks of a quorum.
const FSYNC: (Duration, Duration) = (Duration::from_micros(300), Duration::from_millis(6));

/// Whose write it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    Loops {
        term: u64,
        name: &'static str,
    },
    Liveness {
        term: u64,
    },
    /// A node's words at the start of its session.
    Describe(crate::event::SessionNo),
    Statuses,
    User,
}

impl Purpose {
    /// What a manager decided as the leader.
    pub fn is_leaders(&self) -> bool {
        matches!(self, Self::Loops { .. } | Self::Liveness { .. })
    }
}

/// Why a write was not acknowledged.
#[derive(Debug, Clone)]
pub enum Failure {
    Refused(ApplyError),
    NoLeader,
}

/// One write of a daemon's.
#[derive(Clone)]
pub struct Write {
    pub host: HostId,
    pub life: u64,
    pub entry: Arc<Entry>,
    pub purpose: Purpose,
    deadline: Duration,
}

/// Who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    pub host: HostId,
    pub term: u64,
    life: u64,
}

struct Pending {
    entry: Arc<Entry>,
    ready_at: Duration,
}

/// The log of all managers.
#[derive(Default)]
pub struct Log {
    pub committed: Vec<Arc<Entry>>,
    /// The state that all committed entries make.
    pub state: Arc<State>,
    pub leader: Option<Leader>,
    term: u64,
    lost_since: Option<Duration>,
    patience: Duration,
    pending: VecDeque<Pending>,
    outcomes: BTreeMap<RequestId, (usize, Result<(), ApplyError>)>,
    pub writes: BTreeMap<Ticket, Write>,
    /// Of all writes, their proposers alive or not.
    purposes: BTreeMap<RequestId, Purpose>,
    n_writes: u64,
    /// The leader's machine loses its power with the next write that reaches it.
    pub crash_at_write: bool,
}

impl Log {
    fn knows(&self, request: RequestId) -> bool {
        self.pending.iter().any(|pending| pending.entry.request == request)
    }
}

impl World {
    /// Begins a write of `changes` by the manager on `host`. Its end comes to [`World::write_ended`].
    pub(crate) fn propose(&mut self, host: HostId, changes: Vec<Change>, purpose: Purpose) {
        let request = RequestId(self.random.bits());
        let changes = if self.mutation == Some(Mutation::Twins) { self.with_twins(changes) } else { changes };
        let entry = Arc::new(Entry { request, at: self.even(host), changes });
        self.log.n_writes += 1;
        let ticket = Ticket(self.log.n_writes);
        let (life, deadline) = (self.host(host).life, self.now() + PROPOSE_TIMEOUT);
        self.log.purposes.insert(request, purpose.clone());
        self.log.writes.insert(ticket, Write { host, life, entry, purpose, deadline });
        self.queue.after(Duration::ZERO, Event::Write(ticket));
    }

    /// The mutation's.
    fn with_twins(&mut self, mut changes: Vec<Change>) -> Vec<Change> {
        let mut twins = Vec::new();
        for task in changes.iter().flat_map(Change::created_tasks) {
            if let Slot::Replica(number) = task.slot
                && (task.job_iteration.is_some() || task.node.is_some())
            {
                let id = TaskId::from_bits(self.random.bits());
                let twin = Task { id, slot: Slot::Replica(number + 1), ..task };
                twins.push(Change::Create(Object::Task(Box::new(twin))));
            }
        }
        changes.extend(twins);
        changes
    }

    pub(crate) fn on_write(&mut self, ticket: Ticket) {
        let Some(write) = self.log.writes.get(&ticket).cloned() else { return };
        if self.host(write.host).manager().is_none() || self.host(write.host).life != write.life {
            self.log.writes.remove(&ticket);
            return;
        }
        if let Some(outcome) = self.known_outcome(&write) {
            self.log.writes.remove(&ticket);
            return self.write_ended(&write, outcome.map_err(Failure::Refused));
        }
        if self.now() >= write.deadline {
            self.log.writes.remove(&ticket);
            return self.write_ended(&write, Err(Failure::NoLeader));
        }
        let seen = self.host(write.host).manager().and_then(|manager| manager.leader_seen);
        let Some((leader, term)) = seen.filter(|(leader, _)| self.net.leads(write.host, *leader)) else {
            return self.queue.after(RETRY_PAUSE, Event::Write(ticket));
        };
        if !self.log.knows(write.entry.request) && !self.log.outcomes.contains_key(&write.entry.request) {
            let delay = self.delay(write.host, leader);
            self.queue.after(delay, Event::Append { ticket, leader, term });
        }
        self.queue.after(LEADER_TIMEOUT, Event::Write(ticket));
    }

    /// What the proposer can know: the leader's answer, once its own replica has the entry.
    fn known_outcome(&self, write: &Write) -> Option<Result<(), ApplyError>> {
        let (index, outcome) = self.log.outcomes.get(&write.entry.request)?;
        let leader = self.log.leader?.host;
        let applied = self.host(write.host).replica.as_ref()?.applied;
        (self.net.is_both_ways(write.host, leader) && applied >= *index).then(|| outcome.clone())
    }

    pub(crate) fn on_append(&mut self, ticket: Ticket, host: HostId, term: u64) {
        let Some(write) = self.log.writes.get(&ticket) else { return };
        if self.log.leader.is_none_or(|leader| (leader.host, leader.term) != (host, term)) {
            // Whoever thinks to lead without leading takes it and never commits it.
            return;
        }
        let entry = write.entry.clone();
        let fsync = self.random.between(FSYNC.0, FSYNC.1);
        self.log.pending.push_back(Pending { entry, ready_at: self.now() + fsync });
        self.queue.after(fsync, Event::Commit);
        if std::mem::take(&mut self.log.crash_at_write) {
            self.crash_machine(host);
        }
    }

    /// Commits what a quorum has on disk.
    pub(crate) fn on_commit(&mut self) {
        let Some(leader) = self.log.leader.filter(|leader| self.does_lead(*leader)) else { return };
        let mut n_committed = 0;
        while self.log.pending.front().is_some_and(|pending| pending.ready_at <= self.now()) {
            let Some(pending) = self.log.pending.pop_front() else { return };
            self.commit_entry(&pending.entry);
            n_committed += 1;
        }
        if n_committed == 0 {
            return;
        }
        let begun = self.meter.as_ref().map(Meter::read);
        self.on_replicate(leader.host);
        self.measured(begun);
        for host in self.managers() {
            if host != leader.host {
                let delay = self.net.delay();
                self.queue.after(delay, Event::Replicate(host));
            }
        }
    }

    /// What the first manager wrote when it made the cluster.
    pub(crate) fn first_entry(&mut self, entry: &Arc<Entry>) {
        self.commit_entry(entry);
    }

    fn commit_entry(&mut self, entry: &Arc<Entry>) {
        let index = self.log.committed.len() + 1;
        self.log.committed.push(entry.clone());
        let mut state = (*self.log.state).clone();
        state.pass_time(entry.at);
        let applied = state.apply(index as u64, entry);
        self.log.state = Arc::new(state);
        let tickets: Vec<Ticket> = self
            .log
            .writes
            .iter()
            .filter(|(_, write)| write.entry.request == entry.request)
            .map(|(ticket, _)| *ticket)
            .collect();
        let purpose = self.log.purposes.get(&entry.request).cloned();
        let (outcome, events) = match applied {
            Ok(events) => (Ok(()), events),
            Err(error) => (Err(error), Vec::new()),
        };
        self.log.outcomes.insert(entry.request, (index, outcome));
        for ticket in tickets {
            let delay = self.net.delay();
            self.queue.after(delay, Event::Write(ticket));
        }
        self.judge_commit(purpose.as_ref(), &events);
    }

    /// A manager hears from the leader, and applies what is committed.
    pub(crate) fn on_replicate(&mut self, host: HostId) {
        let Some(leader) = self.log.leader.filter(|leader| self.does_lead(*leader)) else { return };
        let is_reached = self.does_run(host) && self.net.is_both_ways(host, leader.host);
        if self.host(host).manager().is_none() || !is_reached {
            return;
        }
        let n_committed = self.log.committed.len();
        let forgets = self.mutation == Some(Mutation::ForgottenEntry) && host == HostId(1);
        loop {
            let Some(replica) = &mut self.hosts[host.0].replica else { return };
            if replica.applied >= n_committed {
                break;
            }
            replica.applied += 1;
            let index = replica.applied;
            let mut state = (*replica.state).clone();
            let mut events = Vec::new();
            if forgets && index.is_multiple_of(97) {
                state.advance(index as u64);
            } else {
                // A refused entry changes nothing anywhere.
                let entry = &self.log.committed[index - 1];
                state.pass_time(entry.at);
                events = state.apply(index as u64, entry).unwrap_or_default();
            }
            replica.state = Arc::new(state);
            self.applied(host, events);
        }
        // Its loops are made of all that it found.
        self.heard_leader(host, leader);
        self.after_applying(host);
        let waiting: Vec<Ticket> = self
            .log
            .writes
            .iter()
            .filter(|(_, write)| write.host == host)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in waiting {
            let is_known = self.log.writes.get(&ticket).is_some_and(|w| self.known_outcome(w).is_some());
            if is_known {
                self.queue.after(Duration::ZERO, Event::Write(ticket));
            }
        }
    }

    fn heard_leader(&mut self, host: HostId, leader: Leader) {
        let now = self.now();
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        manager.contact_at = now;
        manager.leaderless_since = None;
        let seen = Some((leader.host, leader.term));
        if manager.leader_seen != seen {
            manager.leader_seen = seen;
            self.leadership_changed(host);
        }
    }

    /// Every manager looks for the leader; where there is none for long enough, one is elected.
    pub(crate) fn on_raft(&mut self) {
        self.queue.after(HEARTBEAT, Event::Raft);
        self.elect();
        // A leader leads when all that it found in its log is applied.
        self.on_commit();
        for host in self.managers().into_iter().filter(|host| self.does_run(*host)).collect::<Vec<_>>() {
            self.on_replicate(host);
            self.notice_silence(host);
        }
    }

    fn notice_silence(&mut self, host: HostId) {
        let now = self.now();
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        if manager.leader_seen.is_some() && now.saturating_sub(manager.contact_at) > LEADER_LOST_AFTER {
            manager.leader_seen = None;
            manager.leaderless_since = Some(now);
            self.leadership_changed(host);
        }
        self.send_away(host);
    }

    fn elect(&mut self) {
        if self.log.leader.is_some_and(|leader| self.does_lead(leader)) {
            self.log.lost_since = None;
            return;
        }
        let now = self.now();
        let Some(since) = self.log.lost_since else {
            self.log.lost_since = Some(now);
            self.log.patience = self.random.between(ELECTION.0, ELECTION.1);
            return;
        };
        if now.saturating_sub(since) < self.log.patience {
            return;
        }
        let able: Vec<HostId> = self.managers().into_iter().filter(|host| self.has_quorum(*host)).collect();
        let Some(host) = self.random.pick(&able).copied() else { return };
        self.log.term += 1;
        // How far the old leader's last entries had come is chance; no acknowledged one is among them.
        let kept = self.random.below(self.log.pending.len() + 1);
        self.log.pending.truncate(kept);
        for pending in &mut self.log.pending {
            pending.ready_at = now;
        }
        let life = self.host(host).life;
        self.laws.elected_at = now;
        self.log.leader = Some(Leader { host, term: self.log.term, life });
        self.log.lost_since = None;
    }

    fn does_lead(&self, leader: Leader) -> bool {
        self.host(leader.host).life == leader.life && self.has_quorum(leader.host)
    }

    fn has_quorum(&self, host: HostId) -> bool {
        let managers = self.managers();
        let reached = managers
            .iter()
            .filter(|m| self.host(**m).manager().is_some() && self.does_run(**m))
            .filter(|m| self.net.is_both_ways(**m, host))
            .count();
        self.host(host).manager().is_some() && self.does_run(host) && 2 * reached > managers.len()
    }
}
