//! The thread that owns the kernel: waits for a reason, makes a pass, reports.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane_kernel::{Kernel, KernelError};
use dataplane_model::inspect::VerifyReport;
use dataplane_model::kernel_state::EndpointKey;
use dataplane_model::{KernelState, NodeView, Op, Report, SandboxId};
use dataplane_plan::{Plan, strays};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::converge::{Comparison, Converger, Pass, PassError};
use crate::flow_sweeps::FlowSweeps;
use crate::names::Names;
use crate::report::Progress;
use crate::resets::Resets;
use crate::sweep::{Peers, Sweep};

/// The programs' clock.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks at the machine, should it have changed unheard: what it forwards, for one, nobody tells.
const MACHINE_PERIOD: Duration = Duration::from_secs(5);
/// Between two looks for the sake of news: an interface that flaps must not keep the worker busy.
const NEWS_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at all that is ours, for what others changed behind our back.
const DRIFT_PERIOD: Duration = Duration::from_secs(30);
/// After a pass that could not even begin.
const BLOCKED_DELAY: Duration = Duration::from_secs(1);

/// What the worker is asked besides views.
pub(crate) enum Request {
    /// Remove all that is ours and end; answers what could not be removed.
    TearDown(oneshot::Sender<Vec<String>>),
    /// Compare the kernel with what it should hold.
    Verify(oneshot::Sender<Result<VerifyReport, VerifyError>>),
}

/// Why the kernel could not be compared with what it should hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("nothing is wanted yet: no assignments have come from a manager")]
    NoView,
    #[error("{0}")]
    Blocked(String),
    #[error("the data plane's thread has ended")]
    Ended,
}

/// The worker's ends of the driver's channels.
pub(crate) struct Channels {
    pub views: watch::Receiver<Option<NodeView>>,
    pub reports: watch::Sender<Report>,
    pub requests: mpsc::Receiver<Request>,
    pub shown: Arc<Mutex<Shown>>,
}

/// What inspection shows of the last pass.
#[derive(Debug, Default, Clone)]
pub(crate) struct Shown {
    pub plan: Plan,
    pub held: KernelState,
}

pub(crate) struct Worker<K> {
    pub converger: Converger<K>,
    pub names: Names,
    pub resets: Resets,
    pub flow_sweeps: FlowSweeps,
    pub sweep: Sweep,
    pub channels: Channels,
    pub netns_dir: PathBuf,
    pub progress: Progress,
}

/// Why a pass is made, or none.
enum Wake {
    Pass,
    Look,
    News,
    Swept(Peers),
    Report,
    Tick,
    TearDown(oneshot::Sender<Vec<String>>),
    Verify(oneshot::Sender<Result<VerifyReport, VerifyError>>),
    Leave,
}

/// When the worker looks around by itself.
struct Timers {
    ticks: tokio::time::Interval,
    looks: tokio::time::Interval,
    drift: tokio::time::Interval,
    blocked_until: Option<Instant>,
    /// News are not heard before.
    next_news: Instant,
}

impl<K: Kernel> Worker<K> {
    /// Returns when the driver is dropped (all stays as it is) or has torn down.
    pub(crate) async fn run(mut self) {
        let mut timers = Timers::new();
        loop {
            match self.wait(&mut timers).await {
                Wake::Pass => {
                    timers.blocked_until = self.pass().await.err().map(|()| Instant::now() + BLOCKED_DELAY);
                }
                Wake::Look => self.look().await,
                Wake::News => {
                    self.look().await;
                    timers.next_news = Instant::now() + NEWS_PAUSE;
                }
                Wake::Swept(peers) => self.reset_strays(&peers),
                Wake::Report => self.publish(),
                Wake::Tick => self.tick(),
                Wake::Verify(answer) => {
                    // Who asked may have gone.
                    let _gone = answer.send(self.verify().await);
                }
                Wake::TearDown(answer) => {
                    // They hold on to the tables.
                    self.flow_sweeps.finish();
                    let left = self.tear_down().await;
                    self.resets.finish();
                    self.names.stop().await;
                    let _gone = answer.send(left);
                    return;
                }
                Wake::Leave => return,
            }
        }
    }

    async fn wait(&mut self, timers: &mut Timers) -> Wake {
        let has_view = self.channels.views.borrow().is_some();
        let retry = timers.blocked_until.or_else(|| self.converger.next_retry());
        tokio::select! {
            biased;
            request = self.channels.requests.recv() => match request {
                Some(Request::TearDown(answer)) => Wake::TearDown(answer),
                Some(Request::Verify(answer)) => Wake::Verify(answer),
                None => Wake::Leave,
            },
            _ = timers.ticks.tick() => Wake::Tick,
            changed = self.channels.views.changed() => if changed.is_ok() { Wake::Pass } else { Wake::Leave },
            () = sleep_until(retry.unwrap_or_else(Instant::now).into()), if has_view && retry.is_some() => Wake::Pass,
            () = self.names.changed() => Wake::Report,
            () = self.resets.changed() => Wake::Report,
            peers = self.sweep.peers() => Wake::Swept(peers),
            () = self.converger.news(timers.next_news), if has_view => Wake::News,
            _ = timers.looks.tick(), if has_view => Wake::Look,
            _ = timers.drift.tick(), if has_view => {
                self.converger.distrust();
                Wake::Pass
            }
        }
    }

    /// An address that came or went changes frontends and owners.
    async fn look(&mut self) {
        let Some(vtep) = self.channels.views.borrow().as_ref().map(|view| view.vtep) else { return };
        if self.converger.machine_changed(vtep).await {
            tracing::info!("this node's interfaces changed");
            let _blocked = self.pass().await;
        }
    }

    /// Leads the kernel to the newest view. `Err` if that could not even begin.
    async fn pass(&mut self) -> Result<(), ()> {
        let Some(view) = self.channels.views.borrow_and_update().clone() else { return Ok(()) };
        let result = self.try_pass(&view).await;
        match &result {
            Ok(pass) => {
                log(&view, pass);
                self.progress.note_pass(&view, pass);
            }
            Err(error) => {
                tracing::warn!(%error, revision = view.revision, "the view can't be applied");
                self.progress.note_blocked(error.to_string());
            }
        }
        if let Ok(pass) = &result {
            let shown =
                Shown { plan: pass.plan.clone(), held: self.converger.held().cloned().unwrap_or_default() };
            *self.channels.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
        }
        self.publish();
        result.map(drop).map_err(drop)
    }

    async fn try_pass(&mut self, view: &NodeView) -> Result<Pass, PassError> {
        let now = Instant::now();
        let mut pass = self.converger.begin(view).await?;
        self.resets.spare(|vni, address| {
            pass.plan.state.endpoints.contains_key(&EndpointKey { vni, address: *address })
        });
        self.converger.put(&mut pass, now).await;
        // Names come before the removal, so that sockets in sandboxes that leave are closed by then.
        if let Some(held) = self.converger.held() {
            self.names.serve(view, held, pass.touches_sandboxes());
            let leaving = held.sandboxes.keys().filter(|id| !view.sandboxes.contains_key(*id));
            let leaving: Vec<SandboxId> = leaving.cloned().collect();
            if !leaving.is_empty() {
                self.names.wait_until_closed(&leaving).await;
            }
        }
        self.converger.delete(&mut pass, now).await;
        self.push_resets(&pass);
        let has_taken_over = self.converger.held().is_some_and(|held| pass.has_taken_over(held));
        if has_taken_over {
            self.converger.kernel().settle()?;
        }
        if has_taken_over && pass.knows_all_endpoints() {
            self.sweep.begin_once(&self.converger.kernel().sockets(), &pass.plan.state);
        }
        Ok(pass)
    }

    async fn verify(&mut self) -> Result<VerifyReport, VerifyError> {
        let view = self.channels.views.borrow().clone().ok_or(VerifyError::NoView)?;
        let compared = self.converger.compare(&view).await;
        let Comparison { plan, differences } =
            compared.map_err(|error| VerifyError::Blocked(error.to_string()))?;
        let refused = plan.refused.iter().map(|(id, reason)| format!("sandbox {id}: {reason}"));
        Ok(VerifyReport {
            wanted: view.generation,
            applied: self.progress.applied(),
            n_rows: plan.state.n_rows() as u64,
            differences,
            problems: refused.chain(plan.problems.iter().cloned()).collect(),
            ..VerifyReport::default()
        })
    }

    fn push_resets(&self, pass: &Pass) {
        let held = self.converger.held();
        held.map(|held| pass.due_resets(held)).iter().flatten().for_each(|reset| self.resets.push(reset));
    }

    /// Sockets that an older driver would have reset, had it lived to.
    fn reset_strays(&self, peers: &Peers) {
        let held = self.converger.held();
        held.map(|held| strays(peers, held)).iter().flatten().for_each(|reset| self.resets.push(reset));
    }

    fn publish(&mut self) {
        self.progress.note_resets(self.resets.errors());
        let Some(view) = self.channels.views.borrow().clone() else { return };
        let dns = self.names.status();
        let report = self.progress.report(&view, self.converger.held(), dns.as_ref(), &self.netns_dir);
        self.channels.reports.send_if_modified(|last| {
            let differs = *last != report;
            *last = report;
            differs
        });
    }

    fn tick(&mut self) {
        if let Err(error) = self.converger.kernel().tick() {
            tracing::warn!(%error, "the programs' clock stands still");
        }
    }

    /// Removes all that is ours. Returns what is left, one sentence each.
    async fn tear_down(&mut self) -> Vec<String> {
        let nowhere = std::net::Ipv4Addr::UNSPECIFIED.into();
        let vtep = self.channels.views.borrow().as_ref().map_or(nowhere, |view| view.vtep);
        let mut left = Vec::new();
        match self.converger.begin_removal(vtep).await {
            Ok(mut pass) => {
                self.converger.delete(&mut pass, Instant::now()).await;
                self.push_resets(&pass);
                left.extend(pass.failed.iter().map(|failed| format!("{}: {}", failed.op, failed.reason)));
            }
            Err(error) => left.push(error.to_string()),
        }
        let released: Result<(), KernelError> = self.converger.kernel().release();
        left.extend(released.err().map(|error| error.to_string()));
        left
    }
}

impl Timers {
    fn new() -> Self {
        let every = |period| {
            let mut timer = interval(period);
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            timer.reset();
            timer
        };
        Self {
            ticks: every(TICK),
            looks: every(MACHINE_PERIOD),
            drift: every(DRIFT_PERIOD),
            blocked_until: None,
            next_news: Instant::now(),
        }
    }
}

fn log(view: &NodeView, pass: &Pass) {
    let (revision, n_done) = (view.revision, pass.n_done);
    if pass.failed.is_empty() {
        tracing::debug!(revision, n_done, "view applied");
    }
    let is_new = |failed: &&crate::converge::FailedStep| failed.n_failures == 1;
    for failed in pass.failed.iter().filter(is_new) {
        let op: &Op = &failed.op;
        tracing::warn!(revision, step = %op, reason = failed.reason, "a step failed and will be tried again");
    }
}
