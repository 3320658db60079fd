//! One task.

use std::path::{Path, PathBuf};

use control_model::executor::{ExecutorError, Exit, Found, SandboxPaths};
use control_model::object::{ContainerStatus, HealthStatus, TaskStatus};
use control_model::{Task, TaskId, TaskState, Timestamp};

use super::{Action, DRAIN_TIMEOUT, RETRY_INTERVAL, exit_error, status};

/// How far a task is on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waits for its turn to be prepared.
    Accepted,
    Preparing,
    /// Prepared; waits for its sandbox.
    Ready,
    /// The process is being started, or is not to be sent to yet.
    Starting,
    Running,
    /// Runs, but is to stop as soon as no load balancer sends to it.
    Draining,
    /// Has been signalled.
    Stopping,
    /// No process, and none will come.
    Ended,
}

/// The executor's call under way for a task (a wait apart).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Busy {
    Preparing,
    Starting,
    Stopping,
    Removing,
}

/// A task and what this node has of it.
#[derive(Debug)]
pub(super) struct Entry {
    /// As last assigned; kept when the task has left the set. `None` for a container that was found and is in no set.
    task: Option<Task>,
    in_set: bool,
    phase: Phase,
    busy: Option<Busy>,
    /// What the managers were told last, or knew before.
    told: TaskStatus,
    container: Option<ContainerStatus>,
    /// Since when it is to stop.
    stop_since: Option<Timestamp>,
    /// Revision of the first view in which this node's own load balancers let go of it.
    let_go_in: Option<u64>,
    /// Not before this is a failed call tried again.
    retry_at: Option<Timestamp>,
    /// When its health is watched again: the watch failed.
    watch_at: Option<Timestamp>,
    /// Whether the executor may have anything of it.
    has_files: bool,
}

/// What decides beside the task itself how far it goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outside<'a> {
    /// Its namespace, or why there is none yet; `None` while the data plane is silent about it.
    pub sandbox: Option<&'a Result<PathBuf, String>>,
    /// Fewer than the most preparations are under way, and the data plane has spoken of most tasks.
    pub may_prepare: bool,
    /// Revision of the view that the data plane holds.
    pub applied: u64,
    pub now: Timestamp,
}

impl Entry {
    /// A task that is new in the set; `found` is what the executor has of it from before.
    pub fn new(task: Task, found: Option<Found>, now: Timestamp, actions: &mut Vec<Action>) -> Self {
        let mut entry = Self {
            in_set: true,
            phase: Phase::Accepted,
            busy: None,
            told: task.status.clone(),
            container: None,
            stop_since: None,
            let_go_in: None,
            retry_at: None,
            watch_at: None,
            has_files: found.is_some(),
            task: Some(task),
        };
        match found {
            Some(Found { status: container, exit: Some(exit), .. }) => {
                entry.container = Some(container);
                entry.phase = Phase::Running;
                entry.exited(Ok(exit), now, actions);
            }
            Some(Found { status: container, exit: None, .. }) if container.pid != 0 => {
                entry.run(container, now, actions);
            }
            _ if entry.told.state >= TaskState::Running => entry.lost(now, actions),
            _ => entry.tell(status(TaskState::Accepted, "accepted", now), actions),
        }
        entry.note_desired(now);
        entry
    }

    /// A container that belongs to no task of the set.
    pub fn unwanted(now: Timestamp) -> Self {
        Self {
            task: None,
            in_set: false,
            phase: Phase::Ended,
            busy: None,
            told: TaskStatus::default(),
            container: None,
            stop_since: Some(now),
            let_go_in: None,
            retry_at: None,
            watch_at: None,
            has_files: true,
        }
    }

    pub fn is_busy(&self, with: Busy) -> bool {
        self.busy == Some(with)
    }

    /// Nothing is left of it and nobody wants it.
    pub fn is_over(&self) -> bool {
        !self.in_set && self.phase == Phase::Ended && self.busy.is_none() && !self.has_files
    }

    pub fn assign(&mut self, task: Task, now: Timestamp) {
        self.task = Some(task);
        self.in_set = true;
        self.note_desired(now);
    }

    /// The task has left the set.
    pub fn leave(&mut self, now: Timestamp) {
        self.in_set = false;
        self.stop_since.get_or_insert(now);
    }

    /// A view was made of all tasks as they are now.
    pub fn shown(&mut self, revision: u64) {
        if self.phase == Phase::Draining {
            self.let_go_in.get_or_insert(revision);
        }
    }

    fn note_desired(&mut self, now: Timestamp) {
        if self.task.as_ref().is_some_and(|task| task.desired_state >= TaskState::Shutdown) {
            self.stop_since.get_or_insert(now);
        }
    }

    /// When time alone moves it on.
    pub fn deadline(&self) -> Option<Timestamp> {
        let drained = self.stop_since.filter(|_| self.phase == Phase::Draining);
        drained
            .map(|since| since.after(DRAIN_TIMEOUT))
            .into_iter()
            .chain(self.retry_at)
            .chain(self.watch_at)
            .min()
    }

    /// `None` for a container that was found and is in no set.
    pub fn task_and_phase(&self) -> Option<(&Task, Phase)> {
        Some((self.task.as_ref()?, self.phase))
    }

    /// The executor may have something of it, and the data plane too.
    pub fn has_files(&self) -> bool {
        self.has_files
    }

    /// It can't be started without one.
    pub fn needs_sandbox(&self) -> bool {
        matches!(self.phase, Phase::Preparing | Phase::Ready)
    }

    /// Goes as far as possible without a further input. Whether a preparation was begun.
    pub fn advance(&mut self, id: TaskId, outside: &Outside<'_>, actions: &mut Vec<Action>) -> bool {
        let Outside { sandbox, may_prepare, applied, now } = *outside;
        self.watch_again(now, actions);
        if self.retry_at.is_some_and(|at| now < at) {
            return false;
        }
        self.retry_at = None;
        if self.stop_since.is_some() {
            self.advance_stop(applied, now, actions);
        }
        if self.phase == Phase::Ended && !self.in_set && self.busy.is_none() && self.has_files {
            self.busy = Some(Busy::Removing);
            actions.push(Action::Remove(id));
        }
        match (self.phase, sandbox) {
            (Phase::Accepted, _) if self.busy.is_none() && may_prepare => return self.prepare(now, actions),
            (Phase::Ready, Some(Ok(netns))) if self.may_start() => self.start(netns, now, actions),
            (Phase::Ready, Some(Err(reason))) => self.tell_reason(reason, now, actions),
            _ => {}
        }
        false
    }

    fn advance_stop(&mut self, applied: u64, now: Timestamp, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Accepted | Phase::Preparing | Phase::Ready => {
                self.end(status(TaskState::Shutdown, "shutdown", now), actions);
            }
            Phase::Running | Phase::Draining if self.may_signal(applied, now) => self.stop(actions),
            Phase::Running => self.phase = Phase::Draining,
            // Runs, and was in no ring yet.
            Phase::Starting if self.busy.is_none() => self.stop(actions),
            Phase::Draining | Phase::Starting | Phase::Stopping | Phase::Ended => {}
        }
    }

    /// No load balancer sends to it any more, or nobody is there to say so. What the managers know may be older than this
    /// node's own view: they don't ask a node that is down.
    fn may_signal(&self, applied: u64, now: Timestamp) -> bool {
        let let_go_here = self.let_go_in.is_some_and(|revision| revision <= applied);
        let drained = self.task.as_ref().is_none_or(|task| task.drained) || !self.in_set;
        let waited = self.stop_since.is_some_and(|since| now.since(since) >= DRAIN_TIMEOUT);
        (drained && let_go_here) || waited
    }

    fn stop(&mut self, actions: &mut Vec<Action>) {
        let task = self.task.clone().expect("what runs has an assignment");
        self.phase = Phase::Stopping;
        self.busy = Some(Busy::Stopping);
        actions.push(Action::Shutdown(Box::new(task)));
    }

    fn prepare(&mut self, now: Timestamp, actions: &mut Vec<Action>) -> bool {
        let Some(task) = self.task.clone() else { return false };
        self.phase = Phase::Preparing;
        self.busy = Some(Busy::Preparing);
        self.has_files = true;
        self.tell(status(TaskState::Preparing, "preparing", now), actions);
        actions.push(Action::Prepare(Box::new(task)));
        true
    }

    /// The orchestrator holds a task back at READY until the restart delay has passed and the task before it has stopped.
    fn may_start(&self) -> bool {
        self.task.as_ref().is_some_and(Task::is_to_run)
    }

    fn start(&mut self, netns: &Path, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(task) = self.task.clone() else { return };
        self.phase = Phase::Starting;
        self.busy = Some(Busy::Starting);
        self.tell(status(TaskState::Starting, "starting", now), actions);
        actions.push(Action::Start(Box::new(task), SandboxPaths { netns: netns.to_owned() }));
    }

    pub fn prepared(&mut self, result: Result<(), ExecutorError>, now: Timestamp, actions: &mut Vec<Action>) {
        self.busy = None;
        if self.phase != Phase::Preparing {
            return;
        }
        match result {
            Ok(()) => {
                self.phase = Phase::Ready;
                self.tell(status(TaskState::Ready, "prepared", now), actions);
            }
            Err(error) => {
                let rejected = status(TaskState::Rejected, "preparing", now);
                self.end(TaskStatus { error: error.to_string(), ..rejected }, actions);
            }
        }
    }

    pub fn started(
        &mut self,
        result: Result<ContainerStatus, ExecutorError>,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        self.busy = None;
        match result {
            Ok(container) => self.run(container, now, actions),
            Err(error) => {
                let failed = status(TaskState::Failed, "starting", now);
                self.end(TaskStatus { error: error.to_string(), ..failed }, actions);
            }
        }
    }

    fn run(&mut self, container: ContainerStatus, now: Timestamp, actions: &mut Vec<Action>) {
        let id = self.task.as_ref().expect("what runs has an assignment").id;
        let health = container.health;
        self.container = Some(container);
        self.phase = Phase::Starting;
        // What the managers know as running is sent to, whatever a daemon that starts anew still looks for.
        if health != Some(HealthStatus::Starting) || self.told.state >= TaskState::Running {
            self.phase = Phase::Running;
            self.tell(status(TaskState::Running, "started", now), actions);
        }
        actions.push(Action::Wait(id));
        match health {
            None => {}
            Some(HealthStatus::Unhealthy) => self.give_up(now, actions),
            Some(known) => actions.push(Action::WatchHealth(id, known)),
        }
    }

    /// A container enters rotation with the first success of its check, or when it listens, and is stopped and replaced when it
    /// is found unhealthy (as by moby's `cluster/executor/container`); but nothing is lost for it, as it is drained before.
    pub fn health(
        &mut self,
        result: &Result<Option<HealthStatus>, ExecutorError>,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        if !self.is_watched() {
            return;
        }
        let Ok(health) = *result else {
            // An end is the wait's to tell. What runs on is not left without a check for one error.
            self.watch_at = Some(now.after(RETRY_INTERVAL));
            return;
        };
        let (Some(task), Some(container)) = (&self.task, &mut self.container) else { return };
        container.health = health;
        if health == Some(HealthStatus::Unhealthy) {
            return self.give_up(now, actions);
        }
        actions.extend(health.map(|known| Action::WatchHealth(task.id, known)));
        if self.phase == Phase::Starting && health != Some(HealthStatus::Starting) {
            self.phase = Phase::Running;
            self.tell(status(TaskState::Running, "started", now), actions);
        }
    }

    /// What its check says still counts.
    fn is_watched(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running | Phase::Draining)
    }

    fn watch_again(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if self.watch_at.is_none_or(|at| now < at) {
            return;
        }
        self.watch_at = None;
        let known = self.container.as_ref().and_then(|container| container.health);
        if let (true, Some(task), Some(known)) = (self.is_watched(), &self.task, known) {
            actions.push(Action::WatchHealth(task.id, known));
        }
    }

    /// The container is unhealthy: the managers are told first, so that every node lets go of it.
    fn give_up(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.stop_since.get_or_insert(now);
        if self.told.state == TaskState::Running {
            let container = self.container.clone();
            self.send(TaskStatus { container, ..status(TaskState::Running, "started", now) }, actions);
        }
    }

    fn is_unhealthy(&self) -> bool {
        self.container.as_ref().is_some_and(|container| container.health == Some(HealthStatus::Unhealthy))
    }

    /// The managers know it as running, and there is nothing: its files went with a disk or a reboot.
    fn lost(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.fail("task: container is gone from its node".to_owned(), now, actions);
    }

    pub fn exited(&mut self, result: Result<Exit, ExecutorError>, now: Timestamp, actions: &mut Vec<Action>) {
        if let (Ok(exit), Some(container)) = (&result, &mut self.container) {
            container.exit_code = exit.code;
        }
        // A daemon that was restarted does not know whether it has signalled the process: the wish decides.
        let unwanted = self.task.as_ref().is_some_and(|task| task.desired_state >= TaskState::Shutdown);
        match (self.phase, result) {
            (Phase::Ended, _) => {}
            (_, Ok(_)) if unwanted => self.end(status(TaskState::Shutdown, "shutdown", now), actions),
            (_, Ok(exit)) if self.is_unhealthy() => self.fail(exit_error(&exit, true), now, actions),
            (Phase::Stopping, _) => self.end(status(TaskState::Shutdown, "shutdown", now), actions),
            (_, Ok(exit)) if exit.code == 0 => {
                self.end(status(TaskState::Complete, "finished", now), actions);
            }
            (_, Ok(exit)) => self.fail(exit_error(&exit, false), now, actions),
            (_, Err(error)) => self.fail(error.to_string(), now, actions),
        }
    }

    /// It had been started.
    fn fail(&mut self, error: String, now: Timestamp, actions: &mut Vec<Action>) {
        let failed = status(TaskState::Failed, "started", now);
        self.end(TaskStatus { error, ..failed }, actions);
    }

    /// The end itself is seen by the wait, which also has the exit code.
    pub fn stopped(&mut self, result: &Result<(), ExecutorError>, now: Timestamp) {
        self.busy = None;
        if result.is_err() && self.phase == Phase::Stopping {
            self.phase = Phase::Draining;
            self.retry_at = Some(now.after(RETRY_INTERVAL));
        }
    }

    pub fn removed(&mut self) {
        self.busy = None;
        self.has_files = false;
    }

    pub fn not_removed(&mut self, now: Timestamp) {
        self.busy = None;
        self.retry_at = Some(now.after(RETRY_INTERVAL));
    }

    fn end(&mut self, last: TaskStatus, actions: &mut Vec<Action>) {
        self.phase = Phase::Ended;
        self.tell(last, actions);
    }

    /// Says what a task that can't go on waits for, once per reason.
    fn tell_reason(&mut self, reason: &str, now: Timestamp, actions: &mut Vec<Action>) {
        if self.told.state == TaskState::Ready && self.told.error != reason {
            let waiting =
                TaskStatus { error: reason.to_owned(), ..status(TaskState::Ready, "prepared", now) };
            self.send(waiting, actions);
        }
    }

    /// Reports a status, unless the managers know of a later state: a task's state only grows.
    fn tell(&mut self, mut status: TaskStatus, actions: &mut Vec<Action>) {
        status.container.clone_from(&self.container);
        if status.state > self.told.state {
            self.send(status, actions);
        }
    }

    fn send(&mut self, status: TaskStatus, actions: &mut Vec<Action>) {
        self.told = status.clone();
        if let Some(task) = self.task.as_ref().filter(|_| self.in_set) {
            actions.push(Action::Report(task.id, status));
        }
    }
}
