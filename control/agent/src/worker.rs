//! The agent's worker at its desk: runs the actions that the task machine wants, gives the data plane its views. One
//! tokio task; everything that takes time runs beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use control_model::executor::{Executor, ExecutorError, Provisions};
use control_model::gossip::{Opinion, Said};
use control_model::{AssignmentUpdate, EvenClock, Network, Timestamp};
use control_rpc::digest;
use dataplane_model::{DataPlane, NodeView, Sandbox, SandboxId, Table};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::desk::Desk;
use crate::holdings::Asker;
use crate::machine::{Action, Input};
use crate::session::{Delivery, SharedOutbox};
use crate::set::SetError;
use crate::view::NodeContext;

/// Pause after the executor could not even list its containers.
pub(crate) const LIST_RETRY: Duration = Duration::from_secs(1);

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
    /// Sandboxes of this node that are no task's.
    pub local_sandboxes: watch::Receiver<Table<SandboxId, Sandbox>>,
    /// What gossip thinks, and what it is told.
    pub opinion: watch::Receiver<Arc<Opinion>>,
    pub said: watch::Sender<Arc<Said>>,
}

/// The worker at work.
struct Running {
    executor: Arc<dyn Executor>,
    dataplane: Arc<dyn DataPlane>,
    outbox: Arc<SharedOutbox>,
    views: watch::Sender<Option<Arc<NodeView>>>,
    networks: watch::Sender<Arc<Vec<Network>>>,
    desk: Desk,
    said: watch::Sender<Arc<Said>>,
    calls: JoinSet<Input>,
}

impl Worker {
    /// Works until `stop`. Containers and the data plane stay as they are.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut reports = self.dataplane.watch();
        let revision = reports.borrow().wanted_revision;
        let desk = if self.executor.gives_namespaces() { Desk::of_giver } else { Desk::new };
        let mut running = Running {
            executor: self.executor,
            dataplane: self.dataplane,
            outbox: self.outbox,
            views: self.views,
            networks: self.networks,
            desk: desk(self.context, self.epoch, revision),
            said: self.said,
            calls: JoinSet::new(),
        };
        running.desk.hear(self.opinion.borrow_and_update().clone());
        running.desk.shelter(self.local_sandboxes.borrow_and_update().clone());
        if stop.run_until_cancelled(running.adopt()).await.is_none() {
            return;
        }
        loop {
            let deadline = running.desk.next_deadline().map_or(Duration::MAX, |at| at.since(now()));
            tokio::select! {
                () = stop.cancelled() => return,
                delivery = self.deliveries.recv() => {
                    let Some(Delivery { update, answer }) = delivery else { return };
                    // A session that has gone away opens a new stream and gets a complete set.
                    let _ = answer.send(running.assign(update));
                }
                Ok(()) = self.opinion.changed() => {
                    running.desk.hear(self.opinion.borrow_and_update().clone());
                }
                Ok(()) = self.local_sandboxes.changed() => {
                    running.desk.shelter(self.local_sandboxes.borrow_and_update().clone());
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
                    let actions = running.desk.reported(&reports.borrow_and_update(), now());
                    running.act(actions);
                }
                () = sleep_until_due(deadline) => {
                    let actions = running.desk.tick(now());
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
        let set = self.desk.set();
        if !set.is_complete() {
            return;
        }
        match digest(set.rows()) {
            // The asker may have gone.
            Ok(digest) => drop(asker.send((set.generation(), digest))),
            Err(error) => tracing::error!(%error, "the assignments have no fingerprint"),
        }
    }

    fn assign(&mut self, update: AssignmentUpdate) -> Result<(), SetError> {
        let before = self.desk.set().networks.clone();
        let actions = self.desk.assign(update, now())?;
        if self.desk.set().networks != before {
            self.networks.send_replace(Arc::new(self.desk.networks()));
        }
        self.act(actions);
        Ok(())
    }

    fn input(&mut self, input: Input) {
        log_failure(&input);
        let actions = self.desk.handle(input, now());
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
                    let provisions = match &call {
                        Action::Prepare(task) => self.desk.provisions(task),
                        _ => Provisions::default(),
                    };
                    self.calls.spawn(guarded_call(executor, call, provisions));
                }
            }
        }
    }

    fn tell_gossip(&mut self) {
        let Some(said) = self.desk.say() else { return };
        self.said.send_if_modified(|known| {
            let is_new = **known != said;
            if is_new {
                *known = Arc::new(said);
            }
            is_new
        });
    }

    /// Gives the data plane a new view if anything in it has changed, and gossip what it is to tell.
    fn show_view(&mut self) {
        self.tell_gossip();
        let (view, actions) = self.desk.show(now());
        if let Some(view) = view {
            self.views.send_replace(Some(Arc::new(view.clone())));
            self.dataplane.set_view(view);
        }
        self.act(actions);
    }
}

/// [`run_call`]; a panic in the executor fails the one task, not the worker.
async fn guarded_call(executor: Arc<dyn Executor>, action: Action, provisions: Provisions) -> Input {
    let mut failure = Some(panicked(&action));
    let mut call = Box::pin(run_call(executor, action, provisions));
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
async fn run_call(executor: Arc<dyn Executor>, action: Action, provisions: Provisions) -> Input {
    match action {
        Action::Prepare(task) => Input::Prepared(task.id, executor.prepare(&task, &provisions).await),
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

/// Follows the wall clock, and never jumps: what waits is due when so much time has passed.
fn now() -> Timestamp {
    static CLOCK: LazyLock<(Instant, Mutex<EvenClock>)> =
        LazyLock::new(|| (Instant::now(), Mutex::new(EvenClock::new(wall(), Timestamp(0)))));
    let (start, clock) = &*CLOCK;
    let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
    clock.read(wall(), Timestamp(0).after(start.elapsed()))
}

fn wall() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use control_model::executor::{Exit, Found, SandboxPaths};
    use control_model::object::{ContainerStatus, HealthStatus};
    use control_model::{Task, TaskId};

    use super::*;

    struct Panics;

    #[async_trait]
    impl Executor for Panics {
        async fn prepare(&self, _: &Task, _: &Provisions) -> Result<(), ExecutorError> {
            panic!("prepare")
        }
        async fn start(&self, _: &Task, _: &SandboxPaths) -> Result<ContainerStatus, ExecutorError> {
            panic!("start")
        }
        async fn wait(&self, _: TaskId) -> Result<Exit, ExecutorError> {
            panic!("wait")
        }
        async fn health(&self, _: TaskId, _: HealthStatus) -> Result<Option<HealthStatus>, ExecutorError> {
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
        calls.spawn(guarded_call(Arc::new(Panics), Action::Wait(id), Provisions::default()));
        let waited = calls.join_next().await.expect("one call").expect("no panic comes through");
        assert!(matches!(waited, Input::Exited(of, Err(ExecutorError::Failed(_))) if of == id));
        let removed = guarded_call(Arc::new(Panics), Action::Remove(id), Provisions::default()).await;
        assert!(matches!(removed, Input::Removed(of, Err(_)) if of == id));
    }
}
