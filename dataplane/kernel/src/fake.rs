//! A kernel in memory, for simulation and tests: takes every step, or fails where it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dataplane_model::{KernelState, Op, SandboxId};
use tokio::sync::Notify;

use crate::net::Machine;
use crate::seam::{Kernel, KernelError, Pause, Sockets, Sweeper};

/// Handles share one kernel: a driver that is restarted finds it as the last one left it.
#[derive(Debug, Clone)]
pub struct FakeKernel {
    shared: Arc<Mutex<Shared>>,
    /// The machine is another.
    changed: Arc<Notify>,
}

/// What the kernel holds, and what it was asked to do.
#[derive(Debug)]
struct Shared {
    machine: Machine,
    state: KernelState,
    /// Every step tried, as text; failed ones begin with `!`.
    log: Vec<String>,
    n_tried: usize,
    fail_at: BTreeSet<usize>,
    fail_texts: BTreeSet<String>,
    n_observed: usize,
    n_ticks: usize,
    /// Sweeps that began; those that ended early.
    n_sweeps: (usize, usize),
    sweeps_last: bool,
    /// Of each namespace's sockets.
    peers: BTreeMap<Option<SandboxId>, BTreeSet<Ipv4Addr>>,
}

impl FakeKernel {
    pub fn new(machine: Machine) -> Self {
        let shared = Shared {
            machine,
            state: KernelState::default(),
            log: Vec::new(),
            n_tried: 0,
            fail_at: BTreeSet::new(),
            fail_texts: BTreeSet::new(),
            n_observed: 0,
            n_ticks: 0,
            n_sweeps: (0, 0),
            sweeps_last: false,
            peers: BTreeMap::new(),
        };
        Self { shared: Arc::new(Mutex::new(shared)), changed: Arc::default() }
    }

    /// Fails the `n`-th step from now (the next one is 0), once.
    pub fn fail_step(&self, n: usize) {
        let mut shared = self.lock();
        let at = shared.n_tried + n;
        shared.fail_at.insert(at);
    }

    /// Fails all steps whose text contains `text`, until [`FakeKernel::heal`].
    pub fn fail_steps_with(&self, text: &str) {
        self.lock().fail_texts.insert(text.to_owned());
    }

    pub fn heal(&self) {
        let mut shared = self.lock();
        shared.fail_at.clear();
        shared.fail_texts.clear();
    }

    /// Changes what the kernel holds behind the driver's back.
    pub fn damage(&self, damage: impl FnOnce(&mut KernelState)) {
        damage(&mut self.lock().state);
    }

    pub fn set_machine(&self, machine: Machine) {
        self.lock().machine = machine;
        self.changed.notify_one();
    }

    /// Who the sockets of a sandbox, or of the node (`None`), are connected to.
    pub fn connect(&self, sandbox: Option<SandboxId>, peer: Ipv4Addr) {
        self.lock().peers.entry(sandbox).or_default().insert(peer);
    }

    pub fn state(&self) -> KernelState {
        self.lock().state.clone()
    }

    /// The steps tried since the last call.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().log)
    }

    pub fn n_observed(&self) -> usize {
        self.lock().n_observed
    }

    pub fn n_ticks(&self) -> usize {
        self.lock().n_ticks
    }

    /// Sweeps of flows have always another row to look at.
    pub fn let_sweeps_last(&self) {
        self.lock().sweeps_last = true;
    }

    /// Sweeps of flows that began, and those of them that were told to end early.
    pub fn n_sweeps(&self) -> (usize, usize) {
        self.lock().n_sweeps
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Writes down what was tried, and whether it is to fail.
    fn note(&mut self, text: String, is_to_fail: bool) -> Result<(), KernelError> {
        if is_to_fail || self.fail_texts.iter().any(|part| text.contains(part)) {
            self.log.push(format!("! {text}"));
            return Err(KernelError(format!("told to fail: {text}")));
        }
        self.log.push(text);
        Ok(())
    }
}

impl Sockets for FakeKernel {
    fn reset(&self, sandbox: Option<&SandboxId>, peers: &BTreeSet<Ipv4Addr>) -> Result<(), KernelError> {
        let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
        let place = sandbox.map_or("node", |id| &id.0);
        // No step: resets go their own way, so that their number among the steps is chance.
        self.lock().note(format!("x sockets to {} in {place}", peers.join(" ")), false)
    }

    fn peers(&self, sandbox: Option<&SandboxId>) -> Result<BTreeSet<Ipv4Addr>, KernelError> {
        Ok(self.lock().peers.get(&sandbox.cloned()).cloned().unwrap_or_default())
    }
}

impl Sweeper for FakeKernel {
    fn sweep(&mut self, pause: &Pause) -> Result<(), KernelError> {
        self.lock().n_sweeps.0 += 1;
        while self.lock().sweeps_last {
            if pause().is_break() {
                self.lock().n_sweeps.1 += 1;
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Kernel for FakeKernel {
    type Sockets = Self;
    type Sweeper = Self;

    async fn machine(&mut self, _vtep: IpAddr) -> Result<Machine, KernelError> {
        Ok(self.lock().machine.clone())
    }

    async fn changed(&mut self) {
        self.changed.notified().await;
    }

    async fn observe(&mut self) -> Result<KernelState, KernelError> {
        let mut shared = self.lock();
        shared.n_observed += 1;
        Ok(shared.state.clone())
    }

    async fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
        let mut shared = self.lock();
        let text = op.to_string();
        let position = shared.n_tried;
        shared.n_tried += 1;
        let is_to_fail = shared.fail_at.remove(&position);
        shared.note(text, is_to_fail)?;
        shared.state.record(op);
        Ok(())
    }

    fn sockets(&self) -> Self {
        self.clone()
    }

    fn sweeper(&self) -> Self {
        self.clone()
    }

    fn tick(&mut self) -> Result<(), KernelError> {
        self.lock().n_ticks += 1;
        Ok(())
    }

    fn settle(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    fn release(&mut self) -> Result<(), KernelError> {
        Ok(())
    }
}
