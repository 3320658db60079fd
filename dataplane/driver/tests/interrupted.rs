//! A driver that ends in the middle of its work, over the real kernel: the next one finds what is half made and makes it
//! whole. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "two_nodes uses the rest")]
mod lab;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dataplane_model::{DataPlane as _, KernelState};
use lab::seam::Say;
use lab::{Lab, NODE_A, Node, ask_tcp, serve_tcp, view};

/// Starts the node's driver with `n_steps` before it is interrupted, and ends it when it has taken them.
fn start_interrupted(node: &mut Node, n_steps: usize, view: dataplane_model::NodeView) {
    let n_left = Arc::new(AtomicUsize::new(n_steps));
    let left = Arc::clone(&n_left);
    let take = |n_left: usize| n_left.checked_sub(1);
    let may_apply = move |_: &_| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
    node.start_with(Say { may_apply: Arc::new(may_apply), ..Say::default() });
    let driver = node.driver();
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
