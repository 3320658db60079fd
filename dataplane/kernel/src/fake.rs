//! A kernel in memory, for simulation and tests: takes every step, or fails where it is told to.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dataplane_model::{KernelState, Op};

use crate::net::Machine;
use crate::seam::{Kernel, KernelError};

/// Handles share one kernel: a driver that is restarted finds it as the last one left it.
#[derive(Debug, Clone)]
pub struct FakeKernel {
    shared: Arc<Mutex<Shared>>,
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
        };
        Self { shared: Arc::new(Mutex::new(shared)) }
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

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for FakeKernel {
    async fn machine(&mut self, _vtep: Ipv4Addr) -> Result<Machine, KernelError> {
        Ok(self.lock().machine.clone())
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
        if shared.fail_at.remove(&position) || shared.fail_texts.iter().any(|part| text.contains(part)) {
            shared.log.push(format!("! {text}"));
            return Err(KernelError(format!("told to fail: {text}")));
        }
        shared.state.record(op);
        shared.log.push(text);
        Ok(())
    }

    fn tick(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    fn settle(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    fn release(&mut self) -> Result<(), KernelError> {
        Ok(())
    }
}
