//! [`Kernel`]: the seam between deciding and doing. Linux is one kernel, [`crate::fake::FakeKernel`] the other.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::ControlFlow;
use std::sync::Arc;

use dataplane_model::{KernelState, Op, SandboxId};

use crate::net::Machine;

/// A node's kernel, as far as it is ours. Used from one thread.
pub trait Kernel {
    type Sockets: Sockets;
    type Sweeper: Sweeper;

    /// What planning must know of the machine. `vtep` chooses the uplink where none was named.
    fn machine(&mut self, vtep: IpAddr) -> impl Future<Output = Result<Machine, KernelError>>;

    /// Returns when [`Kernel::machine`] may say something else than before: interfaces or addresses changed. The future may
    /// be dropped at any time, nothing is missed.
    fn changed(&mut self) -> impl Future<Output = ()>;

    /// All that is ours. Changes nothing.
    fn observe(&mut self) -> impl Future<Output = Result<KernelState, KernelError>>;

    /// One step. Doing a step that is done is success.
    fn apply(&mut self, op: &Op) -> impl Future<Output = Result<(), KernelError>>;

    /// Steps on one table, which do not need each other: a kernel may take them together. One outcome per step.
    fn apply_all(&mut self, ops: &[Op]) -> impl Future<Output = Vec<Result<(), KernelError>>> {
        async move {
            let mut outcomes = Vec::with_capacity(ops.len());
            for op in ops {
                outcomes.push(self.apply(op).await);
            }
            outcomes
        }
    }

    /// Others' sockets, which need nothing else of the kernel.
    fn sockets(&self) -> Self::Sockets;

    /// The programs' own tables, by handles of its own.
    fn sweeper(&self) -> Self::Sweeper;

    /// Called about once a second, before the first view too: moves the programs' clock on, also of those that an older meshd
    /// has left.
    fn tick(&mut self) -> Result<(), KernelError>;

    /// Called when a view is applied completely: lets go of what an older meshd left, whose part is taken over by now.
    fn settle(&mut self) -> Result<(), KernelError>;

    /// Lets go of what no row stands for (pinned maps with their flows). For a node that leaves.
    fn release(&mut self) -> Result<(), KernelError>;
}

/// The tables that the programs fill by themselves. Used on a thread of its own: a full table takes seconds.
pub trait Sweeper: Send + 'static {
    /// Removes flows that have ended. After every few thousand rows it asks `pause` for its turn, and ends early where that
    /// breaks.
    fn sweep(&mut self, pause: &Pause) -> Result<(), KernelError>;
}

/// Returns when there is time for more, or that there will be none.
pub type Pause = Arc<dyn Fn() -> ControlFlow<()> + Send + Sync>;

/// The sockets of the processes in a sandbox, or (`None`) in the node's own namespace. Used on any thread that began in
/// the node's namespace. A sandbox that is gone has none.
pub trait Sockets: Clone + Send + 'static {
    /// Ends TCP sockets and connected UDP sockets with a peer among `peers`, which are asked for by their IPv4 or IPv6
    /// addresses.
    fn reset(&self, sandbox: Option<&SandboxId>, peers: &BTreeSet<Ipv4Addr>) -> Result<(), KernelError>;

    /// The peers of all of them.
    fn peers(&self, sandbox: Option<&SandboxId>) -> Result<BTreeSet<Ipv4Addr>, KernelError>;
}

/// Why the kernel refused, as a sentence with all its causes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KernelError(pub String);

impl KernelError {
    /// Joins an error and its causes.
    pub fn of(error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        Self(text)
    }
}
