//! The agent's worker: owns the assignment set and the task machine, runs the machine's actions, keeps the data
//! plane's view up to date. One tokio task; everything that takes time runs beside it.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use control_model::executor::{Executor, ExecutorError};
use control_model::{AssignmentUpdate, Network, TaskId, Timestamp};
use control_rpc::digest;
use dataplane_model::{DataPlane, NodeView, Report, SandboxStatus};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::holdings::Asker;
use crate::machine::{Action, Input, Machine};
use crate::session::{Delivery, SharedOutbox};
use crate::set::{AssignmentSet, SetError};
use crate::view::{NodeContext, ViewMaker, addresses6};

/// Pause after the executor could not even list its containers.
const LIST_RETRY: Duration = Duration::from_secs(1);

/// The worker's parts.
pub(crate) struct Worker {
    pub executor: Arc<dyn Executor>,
    pub dataplane: Arc<dyn DataPlane>,
    pub context: NodeContext,
    /// Nothing of an earlier fencing epoch is obeyed.
    pub epoch: u64,
    pub outbox: Arc<SharedOutbox>,
    pub deliveries: mpsc::Receiver<Delivery>,
    pub views: watch::Sender<Option<Arc<NodeView>>>,
    pub networks: watch::Sender<Arc<Vec<Network>>>,
    /// Who wants to know what the node has.
    pub asked: mpsc::Receiver<Asker>,
}

/// The worker at work.
struct Running {
    executor: Arc<dyn Executor>,
    dataplane: Arc<dyn DataPlane>,
    outbox: Arc<SharedOutbox>,
    views: watch::Sender<Option<Arc<NodeView>>>,
    networks: watch::Sender<Arc<Vec<Network>>>,
    machine: Machine,
    set: AssignmentSet,
    maker: ViewMaker,
    calls: JoinSet<Input>,
    revision: u64,
}

impl Worker {
    /// Works until `stop`. Containers and the data plane stay as they are.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut reports = self.dataplane.watch();
        let revision = reports.borrow().wanted_revision;
        let mut running = Running {
            executor: self.executor,
            dataplane: self.dataplane,
            outbox: self.outbox,
            views: self.views,
            networks: self.networks,
            machine: Machine::new(),
            set: AssignmentSet::since(self.epoch),
            maker: ViewMaker::new(self.context),
            calls: JoinSet::new(),
            revision,
        };
        if stop.run_until_cancelled(running.adopt()).await.is_none() {
            return;
        }
        loop {
            let deadline = running.machine.next_deadline().map_or(Duration::MAX, |at| at.since(now()));
            tokio::select! {
                () = stop.cancelled() => return,
                delivery = self.deliveries.recv() => {
                    let Some(Delivery { update, answer }) = delivery else { return };
                    // A session that has gone away opens a new stream and gets a complete set.
                    let _ = answer.send(running.assign(update));
                }
                Some(asker) = self.asked.recv() => running.tell_holdings(asker),
                Some(result) = running.calls.join_next() => {
                    running.input(result.expect("a call catches its panics"));
                    // Many tasks end or start at once: one view for all of them.
                    while let Some(result) = running.calls.try_join_next() {
                        running.input(result.expect("a call catches its panics"));
                    }
                }
                Ok(()) = reports.changed() => {
                    let (sandboxes, applied) = {
                        let report = reports.borrow_and_update();
                        (sandboxes(&report), report.applied_revision)
                    };
                    running.input(Input::Sandboxes(sandboxes));
                    running.input(Input::Applied(applied));
                }
                () = sleep_until_due(deadline) => {
                    let actions = running.machine.tick(now());
                    running.act(actions);
                }
            }
            running.show_view();
        }
    }
}

impl Running {
    /// Takes over what an earlier daemon left running.
    async fn adopt(&mut self) {
        loop {
            match self.executor.list_ours().await {
                Ok(found) => return self.input(Input::Found(found)),
                Err(error) => tracing::warn!(%error, "the executor can't list its containers"),
            }
            tokio::time::sleep(LIST_RETRY).await;
        }
    }

    fn tell_holdings(&self, asker: Asker) {
        if !self.set.is_complete() {
            return;
        }
        match digest(self.set.rows()) {
            // The asker may have gone.
            Ok(digest) => drop(asker.send((self.set.generation(), digest))),
            Err(error) => tracing::error!(%error, "the assignments have no fingerprint"),
        }
    }

    fn assign(&mut self, update: AssignmentUpdate) -> Result<(), SetError> {
        let (before, is_complete) =
            (self.set.networks.clone(), matches!(update, AssignmentUpdate::Complete { .. }));
        let touched = touched_tasks(&update);
        self.set.apply(update)?;
        if self.set.networks != before {
            self.networks.send_replace(Arc::new(self.set.networks.values().cloned().collect()));
        }
        let input = if is_complete {
            Input::Set(self.set.tasks.clone().into_iter().collect())
        } else {
            Input::Changed(touched.into_iter().map(|id| (id, self.set.tasks.get(&id).cloned())).collect())
        };
        self.input(input);
        Ok(())
    }

    fn input(&mut self, input: Input) {
        log_failure(&input);
        let actions = self.machine.handle(input, now());
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Report(id, status) => {
                    tracing::debug!(task = %id, state = status.state.as_str(), error = status.error, "task");
                    self.outbox.lock().put(id, status);
                    self.outbox.changed.notify_one();
                }
                Action::Forget(id) => self.outbox.lock().forget(id),
                call => {
                    let executor = Arc::clone(&self.executor);
                    let addresses6 = match &call {
                        Action::Prepare(task) => addresses6(task, &self.set.networks),
                        _ => Vec::new(),
                    };
                    self.calls.spawn(guarded_call(executor, call, addresses6));
                }
            }
        }
    }

    /// Gives the data plane a new view if anything in it has changed. Before the first complete set there is none: an
    /// incomplete view would take away what still serves.
    fn show_view(&mut self) {
        if !self.set.is_complete() {
            return;
        }
        let Some(view) = self.maker.next(&self.set, self.machine.tasks()) else { return };
        let view = NodeView { revision: self.revision, ..view.clone() };
        if self.views.borrow().as_deref() != Some(&view) {
            self.revision += 1;
            let view = NodeView { revision: self.revision, ..view };
            self.views.send_replace(Some(Arc::new(view.clone())));
            self.dataplane.set_view(view);
        }
        self.input(Input::Shown(self.revision));
    }
}

/// [`run_call`]; a panic in the executor fails the one task, not the worker.
async fn guarded_call(executor: Arc<dyn Executor>, action: Action, addresses6: Vec<Ipv6Addr>) -> Input {
    let mut failure = Some(panicked(&action));
    let mut call = Box::pin(run_call(executor, action, addresses6));
    std::future::poll_fn(move |context| {
        catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context)))
            .unwrap_or_else(|_| Poll::Ready(failure.take().expect("a call ends once")))
    })
    .await
}

/// The result of an action whose call has panicked. The panic's own words are in the log.
fn panicked(action: &Action) -> Input {
    let error = ExecutorError::Failed("the executor panicked".to_owned());
    match action {
        Action::Prepare(task) => Input::Prepared(task.id, Err(error)),
        Action::Start(task, _) => Input::Started(task.id, Err(error)),
        Action::Wait(id) => Input::Exited(*id, Err(error)),
        Action::WatchHealth(id, _) => Input::Health(*id, Err(error)),
        Action::Shutdown(task) => Input::Stopped(task.id, Err(error)),
        Action::Remove(id) => Input::Removed(*id, Err(error)),
        Action::Report(..) | Action::Forget(_) => unreachable!("these are no calls of the executor"),
    }
}

/// Runs one action of the machine; its result is the machine's next input.
async fn run_call(executor: Arc<dyn Executor>, action: Action, addresses6: Vec<Ipv6Addr>) -> Input {
    match action {
        Action::Prepare(task) => Input::Prepared(task.id, executor.prepare(&task, &addresses6).await),
        Action::Start(task, sandbox) => Input::Started(task.id, executor.start(&task, &sandbox).await),
        Action::Wait(id) => Input::Exited(id, executor.wait(id).await),
        Action::WatchHealth(id, known) => Input::Health(id, executor.health(id, known).await),
        Action::Shutdown(task) => Input::Stopped(task.id, executor.shutdown(&task).await),
        Action::Remove(id) => {
            let killed = executor.terminate(id).await;
            Input::Removed(id, killed.and(executor.remove(id).await))
        }
        Action::Report(..) | Action::Forget(_) => unreachable!("these are no calls of the executor"),
    }
}

/// Tasks that an increment names.
fn touched_tasks(update: &AssignmentUpdate) -> Vec<TaskId> {
    use control_model::{Assignment, AssignmentKey};
    let AssignmentUpdate::Incremental { upserts, removals, .. } = update else { return Vec::new() };
    let put = upserts.iter().map(Assignment::key);
    let keys = put.chain(removals.iter().copied());
    keys.filter_map(|key| if let AssignmentKey::Task(id) = key { Some(id) } else { None }).collect()
}

fn sandboxes(report: &Report) -> BTreeMap<TaskId, Result<PathBuf, String>> {
    let rows = report.sandboxes.iter().filter_map(|(id, status)| {
        let status = match status {
            SandboxStatus::Ready { netns } => Ok(netns.clone()),
            SandboxStatus::Failed { reason } => Err(reason.clone()),
        };
        Some((id.0.parse().ok()?, status))
    });
    rows.collect()
}

/// What is tried again without any status that would say so.
fn log_failure(input: &Input) {
    match input {
        Input::Stopped(task, Err(error)) => tracing::warn!(%task, %error, "not stopped"),
        Input::Removed(task, Err(error)) => tracing::warn!(%task, %error, "not removed"),
        _ => {}
    }
}

async fn sleep_until_due(after: Duration) {
    if after == Duration::MAX {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(after).await;
}

fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use control_model::Task;
    use control_model::executor::{Exit, Found, SandboxPaths};
    use control_model::object::{ContainerStatus, HealthStatus};

    use super::*;

    struct Panics;

    #[async_trait]
    impl Executor for Panics {
        async fn prepare(&self, _: &Task, _: &[Ipv6Addr]) -> Result<(), ExecutorError> {
            panic!("prepare")
        }
        async fn start(&self, _: &Task, _: &SandboxPaths) -> Result<ContainerStatus, ExecutorError> {
            panic!("start")
        }
        async fn wait(&self, _: TaskId) -> Result<Exit, ExecutorError> {
            panic!("wait")
        }
        async fn health(&self, _: TaskId, _: HealthStatus) -> Result<HealthStatus, ExecutorError> {
            panic!("health")
        }
        async fn shutdown(&self, _: &Task) -> Result<(), ExecutorError> {
            panic!("shutdown")
        }
        async fn terminate(&self, _: TaskId) -> Result<(), ExecutorError> {
            panic!("terminate")
        }
        async fn remove(&self, _: TaskId) -> Result<(), ExecutorError> {
            panic!("remove")
        }
        async fn list_ours(&self) -> Result<Vec<Found>, ExecutorError> {
            panic!("list")
        }
    }

    #[tokio::test]
    async fn a_panic_of_the_executor_is_the_calls_failure() {
        let id = TaskId::from_bits(7);
        let mut calls = JoinSet::new();
        calls.spawn(guarded_call(Arc::new(Panics), Action::Wait(id), Vec::new()));
        let waited = calls.join_next().await.expect("one call").expect("no panic comes through");
        assert!(matches!(waited, Input::Exited(of, Err(ExecutorError::Failed(_))) if of == id));
        let removed = guarded_call(Arc::new(Panics), Action::Remove(id), Vec::new()).await;
        assert!(matches!(removed, Input::Removed(of, Err(_)) if of == id));
    }
}
