//! One pass: plan, compare, take the steps.

use std::collections::BTreeMap;
use std::mem::discriminant;
use std::net::Ipv4Addr;
use std::time::Instant;

use dataplane_kernel::{Kernel, KernelError, Machine};
use dataplane_model::kernel_state::{EndpointKey, SocketReset};
use dataplane_model::{KernelState, NodeView, Op, SandboxId};
use dataplane_plan::{IngressHook, NodeFacts, Plan, PlanError, RingMemo, TcAttach, plan, steps};
use ipnetwork::Ipv4Network;

use crate::backoff::Backoff;

/// A reset that failed so often is given up, within two seconds: its sockets time out by themselves.
const RESET_ATTEMPTS: u32 = 5;

/// What the operator chose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choices {
    pub ingress_hook: IngressHook,
    pub tc_attach: TcAttach,
    pub gateway_subnet: Ipv4Network,
}

/// Leads the kernel towards views.
pub(crate) struct Converger<K> {
    kernel: K,
    choices: Choices,
    memo: RingMemo,
    /// What the kernel holds, as last seen and changed.
    held: Option<KernelState>,
    /// The kernel must be looked at before the next pass.
    is_stale: bool,
    machine: Option<Machine>,
    backoff: Backoff,
    /// Resets that failed. No row remembers them.
    unfinished: Vec<SocketReset>,
}

/// A plan and the steps that are left of it.
#[derive(Debug)]
pub(crate) struct Pass {
    pub plan: Plan,
    steps: Vec<Op>,
    /// Steps that failed in this pass, or that wait for their time after they failed.
    pub failed: Vec<FailedStep>,
    pub n_done: usize,
}

/// A step that is not done.
#[derive(Debug, Clone)]
pub(crate) struct FailedStep {
    pub op: Op,
    pub n_failures: u32,
    pub reason: String,
}

/// Why a pass could not even begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    #[error("cannot read the kernel: {0}")]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl<K: Kernel> Converger<K> {
    pub(crate) fn new(kernel: K, choices: Choices) -> Self {
        let (memo, backoff) = (RingMemo::default(), Backoff::default());
        let unfinished = Vec::new();
        Self { kernel, choices, memo, held: None, is_stale: true, machine: None, backoff, unfinished }
    }

    /// Plans for `view`; writes nothing.
    pub(crate) async fn begin(&mut self, view: &NodeView) -> Result<Pass, PassError> {
        let machine = self.kernel.machine(view.vtep).await?;
        let held = match self.held.take_if(|_| !self.is_stale) {
            Some(held) => held,
            None => self.kernel.observe().await?,
        };
        self.is_stale = false;
        let held = self.held.insert(held);
        let facts = facts(self.choices, &machine, held);
        self.machine = Some(machine);
        let plan = plan(view, &facts, &mut self.memo)?;
        let mut steps = steps(held, &plan.state);
        steps.extend(unfinished(std::mem::take(&mut self.unfinished), &plan.state));
        Ok(Pass { plan, steps, failed: Vec::new(), n_done: 0 })
    }

    /// A pass towards nothing: for a node that leaves.
    pub(crate) async fn begin_removal(&mut self, vtep: Ipv4Addr) -> Result<Pass, PassError> {
        self.kernel.machine(vtep).await?;
        let held = self.kernel.observe().await?;
        let steps = steps(&held, &KernelState::default());
        self.held = Some(held);
        Ok(Pass { plan: Plan::default(), steps, failed: Vec::new(), n_done: 0 })
    }

    /// Makes what is new.
    pub(crate) async fn put(&mut self, pass: &mut Pass, now: Instant) {
        self.take_steps(pass, now, |op| !op.is_delete()).await;
    }

    /// Removes what is gone.
    pub(crate) async fn delete(&mut self, pass: &mut Pass, now: Instant) {
        self.take_steps(pass, now, Op::is_delete).await;
        pass.failed.retain(|failed| {
            let is_given_up = !failed.op.is_row() && failed.n_failures >= RESET_ATTEMPTS;
            if is_given_up {
                tracing::warn!(step = %failed.op, reason = failed.reason, "sockets could not be reset");
            }
            !is_given_up
        });
        self.unfinished.extend(pass.failed.iter().filter_map(|failed| match &failed.op {
            Op::Reset(reset) => Some(reset.clone()),
            _ => None,
        }));
        self.backoff.keep(pass.failed.iter().map(|failed| &failed.op));
        if !pass.is_applied() {
            // A step that failed may have done half of its work.
            self.is_stale = true;
        }
    }

    async fn take_steps(&mut self, pass: &mut Pass, now: Instant, is_meant: impl Fn(&Op) -> bool) {
        let meant: Vec<Op> = pass.steps.iter().filter(|op| is_meant(op)).cloned().collect();
        for table in meant.chunk_by(|one, next| discriminant(one) == discriminant(next)) {
            let (due, waiting): (Vec<Op>, Vec<Op>) =
                table.iter().cloned().partition(|op| self.backoff.is_due(op, now));
            let outcomes = self.kernel.apply_all(&due).await;
            for (op, outcome) in due.into_iter().zip(outcomes) {
                match outcome {
                    Ok(()) => {
                        pass.n_done += 1;
                        self.held.get_or_insert_default().record(&op);
                    }
                    Err(error) => {
                        self.backoff.note_failure(&op, error.0, now);
                        pass.failed.extend(self.failed_step(op));
                    }
                }
            }
            pass.failed.extend(waiting.into_iter().filter_map(|op| self.failed_step(op)));
        }
    }

    /// `None` if the step did not fail.
    fn failed_step(&self, op: Op) -> Option<FailedStep> {
        let failed = self.backoff.get(&op)?;
        Some(FailedStep { op, n_failures: failed.n_failures, reason: failed.reason.clone() })
    }

    /// Looks at the kernel again before the next pass.
    pub(crate) fn distrust(&mut self) {
        self.is_stale = true;
    }

    /// Has the machine changed since the last pass (an address moved here, an MTU)?
    pub(crate) async fn machine_changed(&mut self, vtep: Ipv4Addr) -> bool {
        let now = self.kernel.machine(vtep).await.ok();
        now.is_some() && now != self.machine
    }

    pub(crate) fn held(&self) -> Option<&KernelState> {
        self.held.as_ref()
    }

    pub(crate) fn next_retry(&self) -> Option<Instant> {
        self.backoff.next()
    }

    pub(crate) fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }
}

impl Pass {
    /// The kernel holds all rows that were planned.
    pub(crate) fn is_applied(&self) -> bool {
        self.failed.iter().all(|failed| !failed.op.is_row())
    }
}

/// The resets that are to be tried again: not for an address that exists again.
fn unfinished(resets: Vec<SocketReset>, wanted: &KernelState) -> impl Iterator<Item = Op> + '_ {
    resets.into_iter().filter_map(|reset| {
        let vni = reset.vni;
        let is_back =
            |address: &Ipv4Addr| wanted.endpoints.contains_key(&EndpointKey { vni, address: *address });
        reset.without(is_back).map(Op::Reset)
    })
}

fn facts(choices: Choices, machine: &Machine, held: &KernelState) -> NodeFacts {
    let Choices { ingress_hook, tc_attach, gateway_subnet } = choices;
    NodeFacts {
        uplinks: machine.uplinks.clone(),
        host_forwards: machine.host_forwards,
        has_tcx: machine.has_tcx,
        has_socket_reset: machine.has_socket_reset,
        ingress_hook,
        tc_attach,
        gateway_subnet,
        gateway_addresses: gateway_addresses(held),
    }
}

/// The addresses behind the gateway bridge that sandboxes have: the kernel is where they are remembered.
fn gateway_addresses(held: &KernelState) -> BTreeMap<SandboxId, Ipv4Addr> {
    let address = |(id, net): (&SandboxId, &dataplane_model::kernel_state::SandboxNet)| {
        let leg = net.legs.iter().find(|leg| leg.bridge.is_some())?;
        Some((id.clone(), leg.address.ip()))
    };
    held.sandboxes.iter().filter_map(address).collect()
}
