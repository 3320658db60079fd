//! A driver that ends in the middle of its work, over the real kernel: the next one finds what is half made and makes it
//! whole. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "two_nodes uses the rest")]
mod lab;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dataplane_driver::Driver;
use dataplane_kernel::{Kernel, KernelError, LinuxKernel, LinuxOptions, Machine};
use dataplane_model::{DataPlane as _, KernelState, Op};
use lab::{Lab, NODE_A, Node, ask_tcp, serve_tcp, view};

/// Takes so many steps and then none.
struct Interrupted {
    kernel: LinuxKernel,
    n_left: Arc<AtomicUsize>,
}

impl Kernel for Interrupted {
    async fn machine(&mut self, vtep: Ipv4Addr) -> Result<Machine, KernelError> {
        self.kernel.machine(vtep).await
    }

    async fn observe(&mut self) -> Result<KernelState, KernelError> {
        self.kernel.observe().await
    }

    async fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
        let is_left = |n_left: usize| n_left.checked_sub(1);
        if self.n_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_left).is_err() {
            return Err(KernelError("interrupted".to_owned()));
        }
        self.kernel.apply(op).await
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

/// Starts the node's driver with `n_steps` before it is interrupted, and ends it when it has taken them.
fn start_interrupted(node: &mut Node, n_steps: usize, view: dataplane_model::NodeView) {
    let n_left = Arc::new(AtomicUsize::new(n_steps));
    let (options, left) = (node.options.clone(), Arc::clone(&n_left));
    let driver = node.ns.run(move || {
        let linux = LinuxOptions {
            netns_dir: options.netns_dir(),
            uplinks: vec![],
            bpffs_dir: options.bpffs_dir.clone(),
            cgroup2_root: None,
        };
        Driver::start_with(&options, move || {
            Ok(Interrupted { kernel: LinuxKernel::open(linux)?, n_left: left })
        })
        .unwrap()
    });
    driver.set_view(view);
    let reports = driver.watch();
    let is_over = || !reports.borrow().errors.is_empty() || reports.borrow().applied_revision > 0;
    lab::wait_until("it is interrupted", is_over, || n_left.load(Ordering::Relaxed).to_string());
}

#[test]
fn what_was_half_made_is_made_whole() {
    let mut lab = Lab::new(|_| {});
    lab.b.converge(view::of_node(1, lab::NODE_B));
    serve_tcp(&lab.b.sandbox(6), 80, "six");
    lab.a.converge(view::of_node(1, NODE_A));
    let n_steps = lab.a.driver().wanted_state();
    let n_steps = KernelState::default().ops_to(&n_steps).len();
    lab.a.tear_down();

    // A prime stride meets every kind of step without trying each.
    for interrupted_after in (0..n_steps).step_by(5) {
        start_interrupted(&mut lab.a, interrupted_after, view::of_node(1, NODE_A));
        lab.a.start();
        lab.a.converge(view::of_node(2, NODE_A));
        serve_tcp(&lab.a.sandbox(5), 80, "five");

        assert_eq!(
            lab.a.driver().held_state(),
            lab.a.driver().wanted_state(),
            "after {interrupted_after} steps"
        );
        for _ in 0..4 {
            ask_tcp(&lab.client, (NODE_A, 8080), 10).unwrap();
        }
        ask_tcp(&lab.a.sandbox(5), (view::app(6), 80), 10).unwrap();
        lab.a.tear_down();
        let links = lab.a.ns.shell("ip -o link");
        assert_eq!(links.lines().count(), 2, "after {interrupted_after} steps: {links}");
    }
}
