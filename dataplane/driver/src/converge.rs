//! One pass: plan, compare, take the steps.

use std::collections::BTreeMap;
use std::mem::discriminant;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use dataplane_kernel::{Kernel, KernelError, Machine};
use dataplane_model::inspect::Difference;
use dataplane_model::kernel_state::{Change, EndpointKey, Hook, HookTarget, LinkName, Program, SocketReset};
use dataplane_model::{KernelState, NodeView, Op, SandboxId};
use dataplane_plan::{IngressHook, NodeFacts, Plan, PlanError, Planner, TcAttach, resets, steps};
use ipnetwork::Ipv4Network;
use tokio::time::sleep_until;

use crate::backoff::Backoff;
use crate::refusals::Refusals;

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
    planner: Planner,
    /// What the kernel holds, as last seen and changed.
    held: Option<KernelState>,
    /// The kernel must be looked at before the next pass.
    is_stale: bool,
    /// As last looked at, for views with this tunnel end.
    machine: Option<Machine>,
    vtep: IpAddr,
    backoff: Backoff,
    refusals: Refusals,
}

/// A plan and the steps that are left of it.
#[derive(Debug)]
pub(crate) struct Pass {
    pub plan: Plan,
    steps: Vec<Op>,
    /// For when the steps are taken.
    resets: Vec<SocketReset>,
    /// Steps that failed in this pass, or that wait for their time after they failed.
    pub failed: Vec<FailedStep>,
    pub n_done: usize,
}

/// What the kernel holds beside what it should.
pub(crate) struct Comparison {
    pub plan: Plan,
    pub differences: Vec<Difference>,
}

/// A step that is not done.
#[derive(Debug, Clone)]
pub(crate) struct FailedStep {
    pub op: Op,
    pub n_failures: u32,
    pub reason: String,
    /// See [`Op::lets_go`].
    lets_go: bool,
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
        let (planner, backoff) = (Planner::default(), Backoff::default());
        Self {
            kernel,
            choices,
            planner,
            held: None,
            is_stale: true,
            machine: None,
            vtep: Ipv4Addr::UNSPECIFIED.into(),
            backoff,
            refusals: Refusals::default(),
        }
    }

    /// Plans for `view`; writes nothing. Costs what has changed since the pass before, unless the kernel must be looked at:
    /// then the machine is too, and nothing of the plan is taken from the one before.
    pub(crate) async fn begin(&mut self, view: &NodeView) -> Result<Pass, PassError> {
        let is_whole = self.is_stale || self.held.is_none();
        // Stays so if the pass can't begin.
        self.is_stale = true;
        if is_whole || self.vtep != view.vtep {
            self.machine = None;
        }
        let machine = match self.machine.take() {
            Some(machine) => machine,
            None => self.kernel.machine(view.vtep).await?,
        };
        self.vtep = view.vtep;
        let machine = self.machine.insert(machine);
        if is_whole {
            self.held = Some(self.kernel.observe().await?);
        }
        let held = self.held.get_or_insert_default();
        self.refusals.keep(&machine.uplinks);
        let facts = facts(self.choices, machine, held, &self.refusals);
        let plan =
            if is_whole { self.planner.plan_whole(view, &facts) } else { self.planner.plan(view, &facts) }?;
        self.is_stale = false;
        Ok(Pass::new(held, plan))
    }

    /// A pass towards nothing: for a node that leaves.
    pub(crate) async fn begin_removal(&mut self, vtep: IpAddr) -> Result<Pass, PassError> {
        self.kernel.machine(vtep).await?;
        let held = self.kernel.observe().await?;
        let pass = Pass::new(&held, Plan::default());
        self.held = Some(held);
        Ok(pass)
    }

    /// Reads all of the kernel and says where it differs from what it should hold for `view`. Changes nothing, also not what a
    /// pass believes of the kernel.
    pub(crate) async fn compare(&mut self, view: &NodeView) -> Result<Comparison, PassError> {
        let machine = self.kernel.machine(view.vtep).await?;
        let held = self.kernel.observe().await?;
        let plan = self.planner.plan_whole(view, &facts(self.choices, &machine, &held, &self.refusals))?;
        let differences = held.differences(&plan.state);
        Ok(Comparison { plan, differences })
    }

    /// Makes what is new.
    pub(crate) async fn put(&mut self, pass: &mut Pass, now: Instant) {
        self.take_steps(pass, now, |op| !op.is_delete()).await;
    }

    /// Removes what is gone.
    pub(crate) async fn delete(&mut self, pass: &mut Pass, now: Instant) {
        self.take_steps(pass, now, Op::is_delete).await;
        self.backoff.keep(pass.failed.iter().map(|failed| &failed.op));
        if self.held.as_ref() == Some(&pass.plan.state) {
            // The same rows, but shared with the next plan: what is shared need not be compared.
            self.held = Some(pass.plan.state.clone());
        }
        if !pass.failed.is_empty() || self.refusals.is_new() {
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
                    Err(error) if self.is_refusal(&op, &error) => {}
                    Err(error) => {
                        self.backoff.note_failure(&op, error.0, now);
                        pass.failed.extend(self.failed_step(op));
                    }
                }
            }
            pass.failed.extend(waiting.into_iter().filter_map(|op| self.failed_step(op)));
        }
    }

    /// A driver that refuses what was only planned because it may be able to is no failure, but a fact for the next plan.
    fn is_refusal(&mut self, op: &Op, error: &KernelError) -> bool {
        let Some(machine) = &self.machine else { return false };
        self.choices.ingress_hook == IngressHook::Auto && self.refusals.note(op, &error.0, &machine.uplinks)
    }

    /// `None` if the step did not fail.
    fn failed_step(&self, op: Op) -> Option<FailedStep> {
        let failed = self.backoff.get(&op)?;
        let lets_go = self.held.as_ref().is_some_and(|held| op.lets_go(held));
        Some(FailedStep { op, n_failures: failed.n_failures, reason: failed.reason.clone(), lets_go })
    }

    /// Looks at the kernel again before the next pass.
    pub(crate) fn distrust(&mut self) {
        self.is_stale = true;
    }

    /// Returns when the machine may have changed, but not before `earliest`.
    pub(crate) async fn news(&mut self, earliest: Instant) {
        sleep_until(earliest.into()).await;
        self.kernel.changed().await;
    }

    /// Has the machine changed since the last pass (an address moved here, an MTU)? The next pass knows it.
    pub(crate) async fn machine_changed(&mut self, vtep: IpAddr) -> bool {
        let Ok(now) = self.kernel.machine(vtep).await else { return false };
        let before = self.machine.replace(now);
        self.vtep = vtep;
        before != self.machine
    }

    pub(crate) fn held(&self) -> Option<&KernelState> {
        self.held.as_ref()
    }

    /// When the next pass has something to do that this one could not.
    pub(crate) fn next_retry(&self) -> Option<Instant> {
        if self.refusals.is_new() { Some(Instant::now()) } else { self.backoff.next() }
    }

    pub(crate) fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }
}

impl Pass {
    fn new(held: &KernelState, plan: Plan) -> Self {
        let (steps, resets) = (steps(held, &plan.state), resets(held, &plan.state));
        Self { plan, steps, resets, failed: Vec::new(), n_done: 0 }
    }

    /// No new flow goes to a task that the view has let go of, whatever else failed.
    pub(crate) fn has_let_go(&self) -> bool {
        self.failed.iter().all(|failed| !failed.lets_go)
    }

    /// Our own programs have all that they need to carry the node's traffic; `held` is what the kernel holds. XDP is not
    /// needed, tc is beneath it, nor is the hook of a task whose sandbox could not be made.
    pub(crate) fn has_taken_over(&self, held: &KernelState) -> bool {
        let is_host_end =
            |link: &LinkName| held.sandboxes.values().any(|net| net.legs.iter().any(|leg| leg.host == *link));
        let is_needed = |op: &Op| match op {
            Op::Hook(Change::Put(Hook { program: Program::Xdp, .. }, _)) => false,
            Op::Hook(Change::Put(
                Hook { program: Program::Task, target: HookTarget::Interface(link) },
                _,
            )) => is_host_end(link),
            Op::Settings(_) | Op::Hook(Change::Put(..)) => true,
            _ => false,
        };
        self.has_let_go() && !self.failed.iter().any(|failed| is_needed(&failed.op))
    }

    /// All endpoints of other nodes are known, so that an address which isn't is nobody's.
    pub(crate) fn knows_all_endpoints(&self) -> bool {
        let is_endpoint = |op: &Op| matches!(op, Op::Endpoint(_)) && op.subject().is_none();
        !self.failed.iter().any(|failed| is_endpoint(&failed.op))
    }

    /// Sandboxes are made, mended or removed.
    pub(crate) fn touches_sandboxes(&self) -> bool {
        self.steps.iter().any(|op| matches!(op, Op::Sandbox(_)))
    }

    /// The resets for endpoints whose rows are gone by now; `held` is what the kernel holds.
    pub(crate) fn due_resets(&self, held: &KernelState) -> Vec<SocketReset> {
        let mut due = self.resets.clone();
        for reset in &mut due {
            let vni = reset.vni;
            reset.retain_gone(|at| held.endpoints.contains_key(&EndpointKey { vni, address: *at }));
        }
        due
    }
}

fn facts(choices: Choices, machine: &Machine, held: &KernelState, refusals: &Refusals) -> NodeFacts {
    let Choices { ingress_hook, tc_attach, gateway_subnet } = choices;
    NodeFacts {
        uplinks: machine.uplinks.clone(),
        connected: machine.connected.clone(),
        host_forwards: machine.host_forwards,
        forwarding6: machine.forwarding6,
        has_way_out6: machine.has_way_out6,
        has_tcx: machine.has_tcx,
        has_ipv6: machine.has_ipv6,
        has_socket_reset: machine.has_socket_reset,
        ingress_hook,
        tc_attach,
        xdp_refusals: refusals.of(&machine.uplinks),
        gateway_subnet,
        gateway_subnet6: None,
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
