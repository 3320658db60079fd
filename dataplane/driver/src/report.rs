//! From a pass to the [`Report`] that the agent reads.

use std::collections::BTreeMap;
use std::path::Path;

use dataplane_dns::DnsStatus;
use dataplane_kernel::net::netns_path;
use dataplane_model::kernel_state::Subject;
use dataplane_model::{Generation, KernelState, NodeView, Report, SandboxId, SandboxStatus};

use crate::converge::{FailedStep, Pass};

/// A sandbox that failed so often has failed: its task should know. Before, it may be a race that ends by itself.
const FAILURES_TO_REPORT: u32 = 3;

/// What was last done, kept between passes.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    applied_revision: u64,
    applied: Generation,
    failed: Vec<FailedStep>,
    refused: BTreeMap<SandboxId, String>,
    problems: Vec<String>,
    /// Why the last pass could not begin.
    blocked: Option<String>,
    /// Resets that failed, one sentence each.
    resets: Vec<String>,
}

impl Progress {
    pub(crate) fn note_pass(&mut self, view: &NodeView, pass: &Pass) {
        if pass.has_let_go() {
            self.applied_revision = view.revision;
            self.applied = view.generation;
        }
        self.failed.clone_from(&pass.failed);
        self.refused.clone_from(&pass.plan.refused);
        self.problems.clone_from(&pass.plan.problems);
        self.blocked = None;
    }

    pub(crate) fn note_blocked(&mut self, reason: String) {
        self.blocked = Some(reason);
    }

    /// See [`Report::applied`].
    pub(crate) fn applied(&self) -> Generation {
        self.applied
    }

    pub(crate) fn note_resets(&mut self, errors: Vec<String>) {
        self.resets = errors;
    }

    /// The report for `view`, of which the kernel holds `held`. `dns` is `None` where there are no names.
    pub(crate) fn report(
        &self,
        view: &NodeView,
        held: Option<&KernelState>,
        dns: Option<&DnsStatus>,
        netns_dir: &Path,
    ) -> Report {
        let status = |id: &SandboxId| Some((id.clone(), self.sandbox(id, held, dns, netns_dir)?));
        Report {
            wanted_revision: view.revision,
            wanted: view.generation,
            applied_revision: self.applied_revision,
            applied: self.applied,
            sandboxes: view.sandboxes.keys().filter_map(status).collect(),
            errors: self.errors(dns),
        }
    }

    /// `None` while it is being made.
    fn sandbox(
        &self,
        id: &SandboxId,
        held: Option<&KernelState>,
        dns: Option<&DnsStatus>,
        netns_dir: &Path,
    ) -> Option<SandboxStatus> {
        if let Some(reason) = self.refused.get(id) {
            return Some(SandboxStatus::Failed { reason: reason.clone() });
        }
        let net = held?.sandboxes.get(id);
        let concerns = |failed: &&FailedStep| match failed.op.subject() {
            Some(Subject::Sandbox(subject)) => subject == id,
            Some(Subject::Link(link)) => net.is_some_and(|net| net.legs.iter().any(|leg| leg.host == *link)),
            // Of the whole node: the sandbox waits, its task is not to blame.
            None => false,
        };
        if let Some(failed) = self.failed.iter().find(concerns) {
            let reason = format!("{}: {}", failed.op, failed.reason);
            return (failed.n_failures >= FAILURES_TO_REPORT).then_some(SandboxStatus::Failed { reason });
        }
        let is_node_whole = self.failed.iter().all(|failed| failed.op.subject().is_some());
        let has_names = dns.is_none_or(|dns| dns.served.contains(id));
        let netns = netns_path(netns_dir, id);
        (net.is_some() && is_node_whole && has_names).then_some(SandboxStatus::Ready { netns })
    }

    fn errors(&self, dns: Option<&DnsStatus>) -> Vec<String> {
        let steps = self.failed.iter().map(|failed| format!("{}: {}", failed.op, failed.reason));
        let refused = self.refused.iter().map(|(id, reason)| format!("sandbox {id}: {reason}"));
        let unnamed = dns
            .into_iter()
            .flat_map(|dns| &dns.failed)
            .map(|(id, why)| format!("names of sandbox {id}: {why}"));
        let no_dns = dns.filter(|dns| !dns.connected).and_then(|dns| dns.error.clone());
        let no_dns = no_dns.map(|error| format!("names: {error}"));
        let blocked = self.blocked.iter().cloned();
        blocked
            .chain(steps)
            .chain(refused)
            .chain(self.problems.iter().cloned())
            .chain(self.resets.iter().cloned())
            .chain(unnamed)
            .chain(no_dns)
            .collect()
    }
}
