//! What runs containers on a machine, and what forwards packets: both take their time, and fail.

use std::time::Duration;

use control_agent::{Action, Input};
use control_model::TaskId;
use control_model::executor::{ExecutorError, Exit};
use control_model::object::ContainerStatus;
use dataplane_model::{NodeView, SandboxStatus};

use crate::event::{Event, SessionNo};
use crate::host::{Container, HostId, Process};
use crate::mutation::Mutation;
use crate::run::GOOD_JOB;
use crate::world::World;

const PREPARES_IN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(700));
const STARTS_IN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
const STOPS_IN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(1500));
const PASSES_IN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(40));
/// How long a process of an image that ends by itself lives.
const SHORT_LIFE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
const STUCK_RETRY: Duration = Duration::from_secs(1);
const PANICKED: &str = "the runtime fails";
/// SIGKILL's.
const KILLED: i32 = 137;

impl World {
    /// A call of the runtime.
    pub(crate) fn call(&mut self, id: HostId, action: Action) {
        let life = self.host(id).life;
        let fails = self.host(id).runtime_fails && self.random.percent(50);
        let failed = || ExecutorError::Failed(PANICKED.to_owned());
        match action {
            Action::Prepare(task) => {
                let result = match task.spec.container.image.as_str() {
                    "bad" => Err(ExecutorError::Rejected("No such image: bad".to_owned())),
                    _ if fails => Err(failed()),
                    _ => Ok(()),
                };
                let task_id = task.id;
                if result.is_ok() {
                    let made = Container { task: *task, process: Process::Made, is_waited_for: false };
                    self.hosts[id.0].containers.entry(task_id).or_insert(made);
                }
                self.called(id, life, Input::Prepared(task_id, result), PREPARES_IN);
            }
            Action::Start(task, _) if fails => {
                self.called(id, life, Input::Started(task.id, Err(failed())), STARTS_IN);
            }
            Action::Start(task, _) => {
                let after = self.random.between(STARTS_IN.0, STARTS_IN.1);
                self.queue.after(after, Event::Started { host: id, life, task: task.id });
            }
            Action::Wait(task) => self.wait(id, life, task),
            Action::Shutdown(task) if fails => {
                self.called(id, life, Input::Stopped(task.id, Err(failed())), STOPS_IN);
            }
            Action::Shutdown(task) => self.stop(id, life, task.id),
            Action::Remove(task) if fails => {
                self.called(id, life, Input::Removed(task, Err(failed())), STARTS_IN);
            }
            Action::Remove(task) => {
                self.kill(id, task);
                self.hosts[id.0].containers.remove(&task);
                self.called(id, life, Input::Removed(task, Ok(())), STARTS_IN);
            }
            // No container here has a health check; the others are no calls.
            Action::WatchHealth(..) | Action::Report(..) | Action::Forget(_) => {}
        }
    }

    fn called(&mut self, host: HostId, life: u64, input: Input, span: (Duration, Duration)) {
        let after = self.random.between(span.0, span.1);
        self.queue.after(after, Event::Called { host, life, input: Box::new(input) });
    }

    pub(crate) fn on_called(&mut self, host: HostId, life: u64, input: Input) {
        if self.host(host).life == life && self.host(host).daemon.is_some() {
            self.desk_input(host, input);
        }
    }

    pub(crate) fn on_started(&mut self, id: HostId, life: u64, task: TaskId) {
        // The runtime's own process makes the container, whoever waits for it.
        let now = self.now();
        let host = &mut self.hosts[id.0];
        let Some(container) = host.containers.get_mut(&task).filter(|_| host.is_powered) else { return };
        if container.process == Process::Made {
            host.n_processes += 1;
            container.process = Process::Runs { pid: host.n_processes, since: now };
        }
        let Process::Runs { pid, .. } = container.process else { return };
        let (image, started) = (container.task.spec.container.image.clone(), container.task.clone());
        self.judge_start(id, &started);
        let code = match image.as_str() {
            "crash" => Some(1),
            "done" | GOOD_JOB => Some(0),
            _ => None,
        };
        if let Some(code) = code {
            let after = self.random.between(SHORT_LIFE.0, SHORT_LIFE.1);
            self.queue.after(after, Event::Exits { host: id, task, pid, code });
        }
        let status = ContainerStatus { pid, ..ContainerStatus::default() };
        let input = Box::new(Input::Started(task, Ok(status)));
        self.queue.after(Duration::ZERO, Event::Called { host: id, life, input });
    }

    fn wait(&mut self, id: HostId, life: u64, task: TaskId) {
        let Some(container) = self.hosts[id.0].containers.get_mut(&task) else {
            let unknown = Err(ExecutorError::Unknown(task));
            return self.called(id, life, Input::Exited(task, unknown), STARTS_IN);
        };
        if let Process::Ended(exit) = &container.process {
            let exit = exit.clone();
            return self.called(id, life, Input::Exited(task, Ok(exit)), (Duration::ZERO, STARTS_IN.0));
        }
        container.is_waited_for = true;
    }

    fn stop(&mut self, id: HostId, life: u64, task: TaskId) {
        let container = self.hosts[id.0].containers.get(&task);
        let after = self.random.between(STOPS_IN.0, STOPS_IN.1);
        if let Some(Container { process: Process::Runs { pid, .. }, task: stopped, .. }) = container {
            let (pid, stopped) = (*pid, stopped.clone());
            self.judge_signal(id, &stopped);
            let mut ends_after = after;
            if self.mutation == Some(Mutation::LateStop) {
                ends_after += Duration::from_secs(20);
                let exit = Exit { code: 0, out_of_memory: false };
                self.called(id, life, Input::Exited(task, Ok(exit)), STOPS_IN);
            }
            self.queue.after(ends_after, Event::Exits { host: id, task, pid, code: 0 });
        }
        let input = Box::new(Input::Stopped(task, Ok(())));
        self.queue.after(after, Event::Called { host: id, life, input });
    }

    fn kill(&mut self, id: HostId, task: TaskId) {
        let container = self.hosts[id.0].containers.get(&task);
        let pid =
            container.and_then(|c| if let Process::Runs { pid, .. } = c.process { Some(pid) } else { None });
        if let Some(pid) = pid {
            self.on_exits(id, task, pid, KILLED);
        }
    }

    pub(crate) fn on_exits(&mut self, id: HostId, task: TaskId, pid: i32, code: i32) {
        let host = &mut self.hosts[id.0];
        let life = host.life;
        let Some(container) = host.containers.get_mut(&task) else { return };
        if !matches!(container.process, Process::Runs { pid: present, .. } if present == pid) {
            return;
        }
        let exit = Exit { code, out_of_memory: false };
        container.process = Process::Ended(exit.clone());
        if std::mem::take(&mut container.is_waited_for) {
            self.called(id, life, Input::Exited(task, Ok(exit)), (Duration::ZERO, STARTS_IN.0));
        }
    }

    /// The daemon wants `view` from now on.
    pub(crate) fn set_view(&mut self, id: HostId, view: NodeView) {
        let life = self.host(id).life;
        let acknowledges_early = self.mutation == Some(Mutation::EarlyAcknowledgement);
        let path = &mut self.hosts[id.0].path;
        path.report.wanted_revision = view.revision;
        path.report.wanted = view.generation;
        if acknowledges_early {
            path.report.applied = view.generation;
            path.report.applied_revision = view.revision;
        }
        path.wanted = Some(view);
        if !std::mem::replace(&mut path.is_pass_due, true) {
            let slowness = if acknowledges_early { 20 } else { 1 };
            let after = self.random.between(PASSES_IN.0, PASSES_IN.1) * slowness;
            self.queue.after(after, Event::Pass { host: id, life });
        }
    }

    pub(crate) fn on_pass(&mut self, id: HostId, life: u64) {
        let now = self.even(id);
        let host = &mut self.hosts[id.0];
        if host.life != life || host.daemon.is_none() {
            return;
        }
        let path = &mut host.path;
        path.is_pass_due = false;
        if path.is_stuck {
            path.is_pass_due = true;
            path.report.errors = vec!["the kernel refuses".to_owned()];
            return self.queue.after(STUCK_RETRY, Event::Pass { host: id, life });
        }
        let Some(view) = path.wanted.clone() else { return };
        path.report.applied = view.generation;
        path.report.applied_revision = view.revision;
        path.report.errors.clear();
        let ready = |id: &dataplane_model::SandboxId| SandboxStatus::Ready { netns: id.0.clone().into() };
        path.report.sandboxes = view.sandboxes.keys().map(|id| (id.clone(), ready(id))).collect();
        let backends = view.services.values().flat_map(|service| service.backends.values());
        path.routes = backends.filter(|b| b.ready).map(|b| b.task_name.clone()).collect();
        path.kernel = Some(view);
        let report = path.report.clone();
        let Some(daemon) = &mut host.daemon else { return };
        let actions = daemon.desk.reported(&report, now);
        let no = daemon.session.as_ref().map(|session| SessionNo(session.no));
        self.perform(id, actions);
        self.show_view(id);
        if let Some(no) = no {
            self.queue.after(Duration::ZERO, Event::Beat(no));
        }
    }
}
