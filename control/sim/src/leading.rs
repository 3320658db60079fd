//! The leader's work: the product's loops and its judgement of who lives, on virtual time.

use std::time::Duration;

use control_manager::leader::{Happened, Loops, last_stamp};
use control_manager::liveness::Liveness;
use control_manager::liveness::rounds::Rounds;
use control_model::Timestamp;
use control_model::gossip::Opinion;
use control_store::{Event as StoreEvent, State};

use crate::event::Event;
use crate::host::{HostId, steady};
use crate::log::{Failure, Purpose};
use crate::world::World;

/// As `control-manager` has them.
const RETRY: Duration = Duration::from_millis(200);
const JUDGE_RETRY: Duration = Duration::from_millis(300);

/// One term's.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a wait of its own, begun and ended by other events"
)]
pub struct Leading {
    pub term: u64,
    loops: Loops,
    pub events: Vec<StoreEvent>,
    /// An entry was applied, with or without events.
    pub has_batch: bool,
    has_begun: bool,
    /// A write of the loops is on its way; or they have failed, and begin anew.
    is_busy: bool,
    has_failed: bool,
    n_acks_seen: u64,
    due_at: Option<Duration>,
    liveness: Liveness,
    rounds: Rounds<HostId>,
    is_judging: bool,
    judge_at: Option<Duration>,
}

impl World {
    /// The manager on `host` sees another leader than before.
    pub(crate) fn leadership_changed(&mut self, host: HostId) {
        let (state, now) = (self.replica(host), self.now());
        let opinion = self.opinion_of(host);
        // A leader's writes are dropped with it, and nobody else takes them.
        self.log.writes.retain(|_, write| write.host != host || !write.purpose.is_leaders());
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        manager.leading = None;
        let Some((_, term)) = manager.leader_seen.filter(|(leader, _)| *leader == host) else { return };
        let even = self.even_after(host, &state);
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        let started = steady(now);
        let mut liveness = Liveness::new(host.node(), started);
        liveness.gossip(&opinion);
        manager.leading = Some(Leading {
            term,
            loops: Loops::new(manager.factories.clone(), &state, even),
            events: Vec::new(),
            has_batch: false,
            has_begun: false,
            is_busy: false,
            has_failed: false,
            n_acks_seen: 0,
            due_at: None,
            liveness,
            rounds: Rounds::new(started),
            is_judging: false,
            judge_at: None,
        });
        self.queue.after(Duration::ZERO, Event::Loops { host, term });
        self.queue.after(Duration::ZERO, Event::Probe { host, term });
    }

    /// A time after all that its predecessors have stamped.
    fn even_after(&mut self, host: HostId, state: &State) -> Timestamp {
        if let Some(daemon) = &mut self.hosts[host.0].daemon {
            daemon.clock.advance_to(last_stamp(state));
        }
        self.even(host)
    }

    fn leading(&mut self, host: HostId, term: u64) -> Option<&mut Leading> {
        self.hosts[host.0].manager_mut()?.leading.as_mut().filter(|leading| leading.term == term)
    }

    pub(crate) fn on_loops(&mut self, host: HostId, term: u64) {
        let (state, now) = (self.replica(host), self.now());
        let even = self.even_after(host, &state);
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        let factories = manager.factories.clone();
        let Some(leading) = manager.leading.as_mut().filter(|leading| leading.term == term) else { return };
        if leading.due_at.is_some_and(|at| at <= now) {
            leading.due_at = None;
        }
        if std::mem::take(&mut leading.has_failed) {
            leading.loops = Loops::new(factories, &state, even);
            leading.events.clear();
            (leading.has_begun, leading.is_busy) = (false, false);
        }
        self.run_loops(host);
    }

    /// Lets the loops answer what has happened, until they wait for a write or for time.
    pub(crate) fn run_loops(&mut self, host: HostId) {
        let (state, now, even) = (self.replica(host), self.now(), self.even(host));
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        let n_acks = *manager.table.watch_acks().borrow();
        let Some(leading) = &mut manager.leading else { return };
        let term = leading.term;
        for _ in 0..100 {
            if leading.is_busy || leading.has_failed {
                return;
            }
            if let Some(changes) = leading.loops.next_write(&state, even) {
                leading.is_busy = true;
                let purpose = Purpose::Loops { term, name: leading.loops.writer() };
                return self.propose(host, changes, purpose);
            }
            let Some(happened) = leading.next_happened(n_acks, even) else {
                let Some(deadline) = leading.loops.next_deadline() else { return };
                let at = now + deadline.since(even);
                if leading.due_at.is_none_or(|due| at < due) {
                    leading.due_at = Some(at);
                    self.queue.after(at.saturating_sub(now), Event::Loops { host, term });
                }
                return;
            };
            leading.loops.tell(happened);
        }
        self.fail("the leader's loops come to an end", "100 rounds without a write or a deadline".into());
    }

    pub(crate) fn loops_wrote(&mut self, host: HostId, term: u64, outcome: Result<(), Failure>) {
        let (state, even) = (self.replica(host), self.even(host));
        let Some(leading) = self.leading(host, term) else { return };
        leading.is_busy = false;
        match outcome {
            Ok(()) => {}
            Err(Failure::Refused(error)) => leading.loops.refused(&error, &state, even),
            Err(Failure::NoLeader) => {
                leading.has_failed = true;
                return self.queue.after(RETRY, Event::Loops { host, term });
            }
        }
        self.run_loops(host);
    }

    /// Sends the probes that are due.
    pub(crate) fn on_probe(&mut self, host: HostId, term: u64) {
        let (state, now) = (self.replica(host), self.now());
        let own_path = !self.host(host).path.is_dead;
        let Some(leading) = self.leading(host, term) else { return };
        let at = steady(now);
        if leading.rounds.is_complete() && own_path {
            leading.liveness.probe_answered(host.node(), at);
        }
        let others = state.nodes().iter().filter(|node| node.description.data_path_addr.is_some());
        let others = others.filter_map(|node| HostId::of_node(node.id)).filter(|other| *other != host);
        let burst: Vec<HostId> = leading.rounds.burst(at, || others.collect()).collect();
        let mut has_died = false;
        for target in &burst {
            has_died |= leading.liveness.probe_sent(target.node(), at);
        }
        let is_due = has_died || leading.rounds.is_complete();
        let next = leading.rounds.next_burst().since(at).max(Duration::from_millis(1));
        self.queue.after(next, Event::Probe { host, term });
        for target in burst {
            if own_path && self.net.datagram(host, target) {
                let delay = self.net.delay();
                self.queue.after(delay, Event::ProbeArrives { leader: host, term, at: target });
            }
        }
        if is_due {
            self.on_judge(host, term);
        }
    }

    pub(crate) fn on_probe_arrives(&mut self, leader: HostId, term: u64, at: HostId) {
        let target = self.host(at);
        if target.is_powered && !target.path.is_dead && self.net.datagram(at, leader) {
            let delay = self.net.delay();
            self.queue.after(delay, Event::ProbeAnswered { leader, term, by: at });
        }
    }

    pub(crate) fn on_probe_answered(&mut self, leader: HostId, term: u64, by: HostId) {
        let (now, own_path) = (self.now(), !self.host(leader).path.is_dead);
        if let Some(leading) = self.leading(leader, term).filter(|_| own_path) {
            leading.liveness.probe_answered(by.node(), steady(now));
        }
    }

    /// This node's gossip thinks otherwise than before.
    pub(crate) fn heard_by_leader(&mut self, host: HostId, opinion: &Opinion) {
        let leading = self.hosts[host.0].manager_mut().and_then(|manager| manager.leading.as_mut());
        let Some(leading) = leading else { return };
        leading.liveness.gossip(opinion);
        let term = leading.term;
        self.on_judge(host, term);
    }

    /// Writes what follows from heartbeats and probes.
    pub(crate) fn on_judge(&mut self, host: HostId, term: u64) {
        let (state, now) = (self.replica(host), self.now());
        let Some(manager) = self.hosts[host.0].manager_mut() else { return };
        let Some(leading) = manager.leading.as_mut().filter(|leading| leading.term == term) else { return };
        leading.judge_at = leading.judge_at.filter(|at| *at > now);
        if leading.is_judging {
            return;
        }
        leading.liveness.hear(manager.table.snapshot(), steady(now));
        manager.table.retain(|id| state.nodes().get(id).is_some());
        let changes = leading.liveness.tick(&state, steady(now));
        if changes.is_empty() {
            let Some(at) = leading.liveness.next_deadline() else { return };
            let at = now + at.since(steady(now));
            if leading.judge_at.is_none_or(|due| at < due) {
                leading.judge_at = Some(at);
                self.queue.after(at.saturating_sub(now), Event::Judge { host, term });
            }
            return;
        }
        leading.is_judging = true;
        self.propose(host, changes, Purpose::Liveness { term });
    }

    pub(crate) fn judged(&mut self, host: HostId, term: u64, is_written: bool) {
        if let Some(leading) = self.leading(host, term) {
            leading.is_judging = false;
        }
        let pause = if is_written { Duration::ZERO } else { JUDGE_RETRY };
        self.queue.after(pause, Event::Judge { host, term });
    }
}

impl Leading {
    /// What the loops are to be told now; `None` if nothing.
    fn next_happened(&mut self, n_acks: u64, even: Timestamp) -> Option<Happened> {
        if !std::mem::replace(&mut self.has_begun, true) {
            return Some(Happened::Began);
        }
        if std::mem::take(&mut self.has_batch) {
            return Some(Happened::Events(std::mem::take(&mut self.events)));
        }
        if std::mem::replace(&mut self.n_acks_seen, n_acks) != n_acks {
            return Some(Happened::Acknowledged);
        }
        let is_due = self.loops.next_deadline().is_some_and(|at| at <= even);
        is_due.then_some(Happened::Due)
    }
}
