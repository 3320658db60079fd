//! A kernel between driver and Linux, in which a test has a say.

use std::net::IpAddr;
use std::sync::Arc;

use dataplane_driver::{Driver, DriverOptions};
use dataplane_kernel::linux::LinuxSweeper;
use dataplane_kernel::net::NodeSockets;
use dataplane_kernel::{Kernel, KernelError, LinuxKernel, LinuxOptions, Machine};
use dataplane_model::{KernelState, Op};

/// What the test has to say.
#[derive(Clone)]
pub struct Say {
    /// A step fails if this says so.
    pub may_apply: Arc<dyn Fn(&Op) -> bool + Send + Sync>,
    /// Hears of every step when it is taken.
    pub applied: Arc<dyn Fn() + Send + Sync>,
    /// The machine looks as it did before until the kernel says that it changed.
    pub by_news_alone: bool,
}

impl Default for Say {
    fn default() -> Self {
        Self { may_apply: Arc::new(|_| true), applied: Arc::new(|| {}), by_news_alone: false }
    }
}

pub struct Seam {
    kernel: LinuxKernel,
    say: Say,
    seen: Option<Machine>,
}

/// Starts a driver over such a kernel, in the calling thread's namespace.
pub fn start(options: &DriverOptions, say: Say) -> Driver {
    let linux = LinuxOptions {
        netns_dir: options.netns_dir(),
        uplinks: vec![],
        bpffs_dir: options.bpffs_dir.clone(),
        cgroup2_root: None,
    };
    let open = move || Ok(Seam { kernel: LinuxKernel::open(linux)?, say, seen: None });
    Driver::start_with(options, open).expect("the driver starts")
}

impl Kernel for Seam {
    type Sockets = NodeSockets;
    type Sweeper = LinuxSweeper;

    async fn machine(&mut self, vtep: IpAddr) -> Result<Machine, KernelError> {
        if let Some(seen) = self.seen.as_ref().filter(|_| self.say.by_news_alone) {
            return Ok(seen.clone());
        }
        let machine = self.kernel.machine(vtep).await?;
        Ok(self.seen.insert(machine).clone())
    }

    async fn changed(&mut self) {
        self.kernel.changed().await;
        self.seen = None;
    }

    async fn observe(&mut self) -> Result<KernelState, KernelError> {
        self.kernel.observe().await
    }

    async fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
        if !(self.say.may_apply)(op) {
            return Err(KernelError("the test says no".to_owned()));
        }
        let applied = self.kernel.apply(op).await;
        (self.say.applied)();
        applied
    }

    fn sockets(&self) -> NodeSockets {
        self.kernel.sockets()
    }

    fn sweeper(&self) -> LinuxSweeper {
        self.kernel.sweeper()
    }

    fn tick(&mut self) -> Result<(), KernelError> {
        self.kernel.tick()
    }

    fn settle(&mut self) -> Result<(), KernelError> {
        self.kernel.settle()
    }

    fn release(&mut self) -> Result<(), KernelError> {
        self.kernel.release()
    }
}
