//! [`Driver`]: what meshd holds.

use std::path::PathBuf;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use dataplane_kernel::inspect::hook_name;
use dataplane_kernel::{Kernel, KernelError, LinuxKernel, LinuxOptions};
use dataplane_model::inspect::{HookRow, VerifyReport};
use dataplane_model::kernel_state::HookTarget;
use dataplane_model::{DataPlane, KernelState, NodeView, Report};
use tokio::sync::{mpsc, oneshot, watch};

use crate::converge::{Choices, Converger};
use crate::flow_sweeps::FlowSweeps;
use crate::names::Names;
use crate::options::DriverOptions;
use crate::report::Progress;
use crate::resets::Resets;
use crate::sweep::Sweep;
use crate::worker::{Channels, Request, Shown, VerifyError, Worker};

/// A node's data plane. Dropping it leaves everything as it is: traffic goes on.
pub struct Driver {
    views: watch::Sender<Option<NodeView>>,
    reports: watch::Receiver<Report>,
    requests: mpsc::Sender<Request>,
    shown: Arc<Mutex<Shown>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Why a driver could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot start the data plane's thread")]
    Thread(#[from] io::Error),
    #[error("cannot open the kernel: {0}")]
    Kernel(#[from] KernelError),
}

/// What a tear-down left behind.
#[derive(Debug, thiserror::Error)]
pub enum TeardownError {
    #[error("left behind: {}", .0.join("; "))]
    Left(Vec<String>),
    #[error("the data plane's thread has ended")]
    Ended,
}

impl Driver {
    /// Starts over this machine's kernel, in the network namespace of the calling thread. Nothing is written before the
    /// first view.
    pub fn start(options: &DriverOptions) -> Result<Self, StartError> {
        let linux = LinuxOptions {
            netns_dir: options.netns_dir(),
            uplinks: options.uplinks.clone(),
            bpffs_dir: options.bpffs_dir.clone(),
            cgroup2_root: options.cgroup2_root.clone(),
        };
        Self::start_with(options, move || LinuxKernel::open(linux))
    }

    /// Starts with a kernel that `open` makes. The kernel is used on one thread alone, which works in the network
    /// namespace of the caller's. Nothing is written before the first view.
    pub fn start_with<K: Kernel>(
        options: &DriverOptions,
        open: impl FnOnce() -> Result<K, KernelError> + Send + 'static,
    ) -> Result<Self, StartError> {
        let (views, wanted) = watch::channel(None);
        let (reports, published) = watch::channel(Report::default());
        let (requests, asked) = mpsc::channel(1);
        let shown = Arc::new(Mutex::new(Shown::default()));
        let channels = Channels { views: wanted, reports, requests: asked, shown: Arc::clone(&shown) };
        let (opened, outcome) = std_mpsc::channel();
        let options = options.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("dataplane".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let kernel = match open() {
                    Ok(kernel) => kernel,
                    Err(error) => return drop(opened.send(Err(StartError::Kernel(error)))),
                };
                let started = Resets::start(kernel.sockets())
                    .and_then(|resets| Ok((resets, FlowSweeps::start(kernel.sweeper())?)));
                let (resets, flow_sweeps) = match started {
                    Ok(threads) => threads,
                    Err(error) => return drop(opened.send(Err(StartError::Thread(error)))),
                };
                let _waits = opened.send(Ok(()));
                worker(&options, kernel, (resets, flow_sweeps, channels)).run().await;
            });
        })?;
        let ended = || StartError::Kernel(KernelError("its thread ended".to_owned()));
        outcome.recv().unwrap_or_else(|_| Err(ended()))?;
        Ok(Self { views, reports: published, requests, shown, thread: Some(thread) })
    }

    /// Removes everything of ours from the node, and the DNS process: for a node that leaves the cluster. The driver does
    /// nothing after it.
    pub async fn tear_down(&self) -> Result<(), TeardownError> {
        let (answer, left) = oneshot::channel();
        self.requests.send(Request::TearDown(answer)).await.map_err(|_| TeardownError::Ended)?;
        let left = left.await.map_err(|_| TeardownError::Ended)?;
        if left.is_empty() { Ok(()) } else { Err(TeardownError::Left(left)) }
    }

    /// Compares the kernel with what it should hold for the newest view: reads all of it, changes nothing. The report names no
    /// node.
    pub async fn verify(&self) -> Result<VerifyReport, VerifyError> {
        let (answer, report) = oneshot::channel();
        self.requests.send(Request::Verify(answer)).await.map_err(|_| VerifyError::Ended)?;
        report.await.unwrap_or(Err(VerifyError::Ended))
    }

    /// What the kernel should hold for the newest view that was planned.
    pub fn wanted_state(&self) -> KernelState {
        self.with_shown(|shown| shown.plan.state.clone())
    }

    /// What the kernel held after the last pass.
    pub fn held_state(&self) -> KernelState {
        self.with_shown(|shown| shown.held.clone())
    }

    /// Which program hangs where, and why there.
    pub fn hooks(&self) -> Vec<HookRow> {
        self.with_shown(|shown| {
            let row = |(hook, mode): (&dataplane_model::kernel_state::Hook, _)| HookRow {
                interface: match &hook.target {
                    HookTarget::Interface(link) => link.to_string(),
                    HookTarget::CgroupRoot => "cgroup root".to_owned(),
                },
                hook: hook_name(hook.program.name(), mode),
                program: hook.program.name().to_owned(),
                reason: shown
                    .plan
                    .reasons
                    .get(hook)
                    .cloned()
                    .unwrap_or_else(|| "no view wants it".to_owned()),
            };
            shown.held.hooks.iter().map(|(hook, mode)| row((hook, *mode))).collect()
        })
    }

    fn with_shown<T>(&self, read: impl FnOnce(&Shown) -> T) -> T {
        read(&self.shown.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl DataPlane for Driver {
    fn set_view(&self, view: NodeView) {
        self.views.send_if_modified(|held| {
            let is_newer = held.as_ref().is_none_or(|held| held.revision < view.revision);
            if is_newer {
                *held = Some(view);
            }
            is_newer
        });
    }

    fn watch(&self) -> watch::Receiver<Report> {
        self.reports.clone()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Closing the requests ends the worker after the pass that it is in.
        let (closed, _) = mpsc::channel(1);
        self.requests = closed;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn worker<K: Kernel>(
    options: &DriverOptions,
    kernel: K,
    (resets, flow_sweeps, channels): (Resets, FlowSweeps, Channels),
) -> Worker<K> {
    let choices = Choices {
        ingress_hook: options.ingress_hook,
        tc_attach: options.tc_attach,
        gateway_subnet: options.gateway_subnet,
    };
    let netns_dir: PathBuf = options.netns_dir();
    Worker {
        converger: Converger::new(kernel, choices),
        names: Names::start(options),
        resets,
        flow_sweeps,
        sweep: Sweep::default(),
        channels,
        netns_dir,
        progress: Progress::default(),
    }
}
