//! The agent of a node: the product's desk and outbox, and a session over the model's wires.

use std::time::Duration;

use control_agent::{Action, Desk, Input, Managers, Outbox};
use control_model::executor::Found;
use control_model::object::ContainerStatus;
use control_model::{Assignment, AssignmentUpdate, DependencyId, EvenClock, Generation};

use crate::event::{Batch, Event, SessionNo};
use crate::host::{AgentSession, Daemon, HostId, Process, steady};
use crate::manager::{Ends, Manager};
use crate::world::World;

/// As `control-agent` has them.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const GOOD_SESSION: Duration = Duration::from_secs(2);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A manager takes a session for gone when nothing answers for so long.
const KEEPALIVE: Duration = Duration::from_secs(15);

impl World {
    /// `meshd` begins on a machine that has power.
    pub(crate) fn on_daemon_starts(&mut self, id: HostId) {
        if !self.host(id).is_powered || self.host(id).daemon.is_some() {
            return;
        }
        let managers = self.managers().into_iter().map(HostId::addr).collect();
        let ids = self.random.fork();
        let gossip = self.scenario.has_gossip().then(|| self.new_gossip(id));
        let (wall, now) = (self.wall(id), self.now());
        let host = &mut self.hosts[id.0];
        host.life += 1;
        let life = host.life;
        host.path.wanted = None;
        host.path.report = dataplane_model::Report::default();
        host.path.is_pass_due = false;
        let found = host.containers.iter_mut().map(|(task, container)| {
            container.is_waited_for = false;
            let pid = if let Process::Runs { pid, .. } = container.process { pid } else { 0 };
            let exit = if let Process::Ended(exit) = &container.process { Some(exit.clone()) } else { None };
            Found { task: *task, status: ContainerStatus { pid, ..ContainerStatus::default() }, exit }
        });
        let found = found.collect();
        let is_manager = host.replica.is_some();
        host.daemon = Some(Daemon {
            life,
            desk: Desk::new(id.context(), 0, 0),
            outbox: Outbox::default(),
            managers: Managers::new(managers),
            session: None,
            attempts: 0,
            due_at: None,
            manager: is_manager.then(|| Manager::new(ids)),
            gossip,
            clock: EvenClock::new(wall, steady(now)),
        });
        self.laws.disturbed_at = self.queue.now();
        if is_manager {
            self.queue.after(Duration::from_millis(500), Event::Report { host: id, life });
        }
        self.desk_input(id, Input::Found(found));
        self.queue.after(Duration::from_millis(20), Event::Dial { host: id, life });
    }

    pub(crate) fn on_dial(&mut self, id: HostId, life: u64) {
        let local = self.host(id).manager().map(|_| id.addr());
        let Some(daemon) = self.hosts[id.0].daemon.as_mut().filter(|d| d.life == life && d.session.is_none())
        else {
            return;
        };
        let Some(with) = daemon.managers.next(local).and_then(HostId::of_addr) else { return };
        self.n_sessions += 1;
        let no = SessionNo(self.n_sessions);
        daemon.session = Some(AgentSession {
            no: no.0,
            with,
            is_open: false,
            opened_at: self.queue.now(),
            sending: None,
            n_beats: 0,
            n_answers: 0,
            told: dataplane_model::Generation::default(),
        });
        let manager_life = self.host(with).life;
        self.sessions.insert(no, Ends { agent: id, agent_life: life, manager: with, manager_life });
        let delay = self.delay(id, with);
        if !self.net.leads(id, with) || !self.host(with).is_powered {
            self.queue.after(CALL_TIMEOUT, Event::OpenAnswered(no, None));
        } else if self.host(with).manager().is_none() {
            self.queue.after(delay * 2, Event::OpenAnswered(no, None));
        } else {
            self.queue.after(delay, Event::OpenArrives(no));
            // An answer that never comes.
            self.queue.after(CALL_TIMEOUT, Event::OpenAnswered(no, None));
        }
    }

    /// The agent's end of a session, while it lasts.
    fn session(&mut self, no: SessionNo) -> Option<(HostId, &mut Daemon)> {
        let ends = *self.sessions.get(&no)?;
        let daemon = self.hosts[ends.agent.0].daemon.as_mut().filter(|d| d.life == ends.agent_life)?;
        let is_present = daemon.session.as_ref().is_some_and(|session| session.no == no.0);
        is_present.then_some((ends.agent, daemon))
    }

    fn open_session(&mut self, no: SessionNo) -> Option<(HostId, &mut Daemon, HostId)> {
        let with = self.sessions.get(&no)?.manager;
        let (id, daemon) = self.session(no)?;
        daemon.session.as_ref().is_some_and(|session| session.is_open).then_some((id, daemon, with))
    }

    pub(crate) fn on_open_answered(&mut self, no: SessionNo, managers: Option<Vec<std::net::SocketAddr>>) {
        let Some((id, daemon)) = self.session(no) else { return };
        let Some(session) = daemon.session.as_mut().filter(|session| !session.is_open) else { return };
        let Some(managers) = managers else { return self.on_session_ends(no) };
        session.is_open = true;
        let with = session.with;
        daemon.managers.replace(managers);
        daemon.managers.succeeded(with.addr());
        daemon.outbox.resend_all();
        let asked_in = self.delay(id, with);
        self.queue.after(asked_in, Event::StreamBegins { no, n_tries: 0 });
        self.queue.after(Duration::ZERO, Event::Beat(no));
        self.queue.after(Duration::ZERO, Event::Statuses(no));
    }

    /// The agent's end is over: another manager is tried after a pause.
    pub(crate) fn on_session_ends(&mut self, no: SessionNo) {
        let now = self.now();
        let Some((id, daemon)) = self.session(no) else { return };
        let Some(session) = daemon.session.take() else { return };
        daemon.managers.failed(session.with.addr());
        if session.is_open && now.saturating_sub(session.opened_at) >= GOOD_SESSION {
            daemon.attempts = 0;
        }
        let bound = (PAUSE_MIN * 4u32.pow(daemon.attempts.min(4))).min(LONGEST_PAUSE);
        daemon.attempts += 1;
        let life = daemon.life;
        let pause = PAUSE_MIN + self.random.between(Duration::ZERO, bound);
        self.queue.after(pause, Event::Dial { host: id, life });
        let heard = if self.net.leads(id, session.with) { self.delay(id, session.with) } else { KEEPALIVE };
        self.queue.after(heard, Event::SessionGone(no));
    }

    pub(crate) fn on_beat(&mut self, no: SessionNo) {
        let Some((id, _, with)) = self.open_session(no) else { return };
        let applied = self.host(id).path.report.applied;
        let Some((_, daemon, _)) = self.open_session(no) else { return };
        let Some(session) = &mut daemon.session else { return };
        // One at a time.
        if session.n_answers < session.n_beats {
            return;
        }
        session.n_beats += 1;
        session.told = applied;
        let n_beats = session.n_beats;
        if self.net.leads(id, with) {
            let delay = self.delay(id, with);
            let applied = Generation { epoch: applied.epoch, index: applied.index };
            self.queue.after(delay, Event::BeatArrives(no, applied));
        }
        self.queue.after(CALL_TIMEOUT, Event::BeatLate(no, n_beats));
    }

    pub(crate) fn on_beat_answered(&mut self, no: SessionNo, is_valid: bool) {
        if !is_valid {
            return self.on_session_ends(no);
        }
        let Some((id, _, _)) = self.open_session(no) else { return };
        let applied = self.host(id).path.report.applied;
        let Some((_, daemon, _)) = self.open_session(no) else { return };
        let Some(session) = &mut daemon.session else { return };
        session.n_answers = session.n_beats;
        let pause = if session.told == applied { HEARTBEAT_PERIOD } else { Duration::ZERO };
        let n_beats = session.n_beats;
        self.queue.after(pause, Event::BeatDue(no, n_beats));
    }

    pub(crate) fn on_beat_due(&mut self, no: SessionNo, n_beats: u64) {
        let Some((_, daemon, _)) = self.open_session(no) else { return };
        if daemon.session.as_ref().is_some_and(|session| session.n_beats == n_beats) {
            self.on_beat(no);
        }
    }

    pub(crate) fn on_beat_late(&mut self, no: SessionNo, n_beats: u64) {
        let Some((_, daemon, _)) = self.open_session(no) else { return };
        if daemon.session.as_ref().is_some_and(|session| session.n_answers < n_beats) {
            self.on_session_ends(no);
        }
    }

    pub(crate) fn on_statuses(&mut self, no: SessionNo) {
        let Some((id, daemon, with)) = self.open_session(no) else { return };
        let batch = daemon.outbox.batch();
        let Some(session) = daemon.session.as_mut().filter(|session| session.sending.is_none()) else {
            return;
        };
        if batch.is_empty() {
            return;
        }
        session.sending = Some(batch.clone());
        if self.net.leads(id, with) {
            let delay = self.delay(id, with);
            self.queue.after(delay, Event::StatusesArrive(no, batch.clone()));
        }
        self.queue.after(CALL_TIMEOUT, Event::StatusesAnswered(no, batch, false));
    }

    pub(crate) fn on_statuses_answered(&mut self, no: SessionNo, batch: &Batch, is_written: bool) {
        let Some((_, daemon, _)) = self.open_session(no) else { return };
        let Some(session) = &mut daemon.session else { return };
        if session.sending.as_ref() != Some(batch) {
            return;
        }
        if !is_written {
            return self.on_session_ends(no);
        }
        session.sending = None;
        daemon.outbox.acknowledge(batch);
        self.on_statuses(no);
    }

    pub(crate) fn on_update(&mut self, no: SessionNo, update: AssignmentUpdate) {
        let Some((id, _, _)) = self.open_session(no) else { return };
        self.judge_update(id, &update);
        let (now, before) = (self.even(id), self.generation_of(id));
        let Some((_, daemon, _)) = self.open_session(no) else { return };
        match daemon.desk.assign(update, now) {
            Ok(actions) => {
                self.judge_generation(id, before);
                self.judge_secrets(id);
                self.perform(id, actions);
                self.show_view(id);
            }
            Err(_) => self.on_session_ends(no),
        }
    }

    /// How new the assignments of a machine's daemon are.
    pub(crate) fn generation_of(&self, id: HostId) -> Generation {
        self.host(id).daemon.as_ref().map(|d| d.desk.set().generation()).unwrap_or_default()
    }

    /// A result for the daemon's task machine.
    pub(crate) fn desk_input(&mut self, id: HostId, input: Input) {
        let now = self.even(id);
        let Some(daemon) = &mut self.hosts[id.0].daemon else { return };
        let actions = daemon.desk.handle(input, now);
        self.perform(id, actions);
        self.show_view(id);
    }

    pub(crate) fn on_desk(&mut self, id: HostId, life: u64) {
        let now = self.even(id);
        let true_now = self.now();
        let Some(daemon) = self.hosts[id.0].daemon.as_mut().filter(|d| d.life == life) else { return };
        daemon.due_at = daemon.due_at.filter(|at| *at > true_now);
        if daemon.desk.next_deadline().is_some_and(|at| at <= now) {
            let actions = daemon.desk.tick(now);
            self.perform(id, actions);
        }
        self.show_view(id);
    }

    /// After every input: a new view for the data plane, and a look at when time moves the machine on.
    pub(crate) fn show_view(&mut self, id: HostId) {
        self.tell_gossip(id);
        let now = self.even(id);
        let Some(daemon) = &mut self.hosts[id.0].daemon else { return };
        let life = daemon.life;
        let (view, actions) = daemon.desk.show(now);
        if let Some(at) = daemon.desk.next_deadline() {
            let span = at.since(now).max(Duration::from_millis(1));
            let at = self.queue.now() + span;
            if daemon.due_at.is_none_or(|due| at < due) {
                daemon.due_at = Some(at);
                self.queue.after(span, Event::Desk { host: id, life });
            }
        }
        if let Some(view) = view {
            self.set_view(id, view);
        }
        self.perform(id, actions);
    }

    pub(crate) fn perform(&mut self, id: HostId, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Report(task, status) => {
                    let Some(daemon) = &mut self.hosts[id.0].daemon else { return };
                    daemon.outbox.put(task, status);
                    let no = daemon.session.as_ref().map(|session| SessionNo(session.no));
                    if let Some(no) = no {
                        self.queue.after(Duration::ZERO, Event::Statuses(no));
                    }
                }
                Action::Forget(task) => {
                    if let Some(daemon) = &mut self.hosts[id.0].daemon {
                        daemon.outbox.forget(task);
                    }
                }
                call => self.call(id, call),
            }
        }
    }

    /// Nobody is told of a task that is not its own.
    fn judge_update(&mut self, id: HostId, update: &AssignmentUpdate) {
        let (AssignmentUpdate::Complete { set: rows, .. }
        | AssignmentUpdate::Incremental { upserts: rows, .. }) = update;
        let foreign = rows.iter().find_map(|row| match row {
            Assignment::Task(task) if task.node != Some(id.node()) => Some(task.name()),
            _ => None,
        });
        if let Some(name) = foreign {
            self.fail("nobody gets a task that is not its own", format!("{name} at {id:?}"));
        }
    }

    /// Nobody has a secret that none of its tasks needs.
    fn judge_secrets(&mut self, id: HostId) {
        let Some(daemon) = &self.hosts[id.0].daemon else { return };
        let set = daemon.desk.set();
        let is_needed = |secret: &DependencyId| {
            let mut files = set.tasks.values().flat_map(|task| &task.spec.container.dependencies);
            files.any(|file| file.id == *secret)
        };
        let needless = set.dependencies.values().find(|secret| !is_needed(&secret.id));
        if let Some(name) = needless.map(|secret| secret.spec.name.clone()) {
            self.fail("nobody has a secret that none of its tasks needs", format!("{name} at {id:?}"));
        }
    }
}
