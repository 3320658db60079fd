//! Whose sockets are reset when endpoints go.

use dataplane_model::{KernelState, NodeView, SandboxId};

use super::fixture::{APP, INGRESS, facts, network, sandbox, view};
use crate::{RingMemo, plan, steps};

fn planned(view: &NodeView) -> KernelState {
    plan(view, &facts(), &mut RingMemo::default()).unwrap().state
}

/// The resets on the way from one view to another.
fn resets(held: &KernelState, wanted: &KernelState) -> Vec<String> {
    let steps = steps(held, wanted);
    steps.iter().filter(|step| !step.is_row()).map(ToString::to_string).collect()
}

/// Adds a task that is in no network but `app`, whose subnet is `10.0.<third>.0/24`.
fn add_task_in_app_alone(view: &mut NodeView, third: u8) {
    let (_, mut alone) = sandbox(9);
    view.networks.insert(APP, network("app", 4097, third));
    alone.attachments.retain(|attachment| attachment.network == APP);
    alone.attachments.iter_mut().for_each(|attachment| {
        attachment.address = std::net::Ipv4Addr::new(10, 0, third, 9);
    });
    view.sandboxes.insert(SandboxId("t9".into()), alone);
}

#[test]
fn each_network_is_reset_where_it_is_reached() {
    let mut view = view();
    add_task_in_app_alone(&mut view, 1);
    view.sandboxes.insert(SandboxId("t8".into()), {
        let (_, mut alone) = sandbox(8);
        alone.attachments.clear();
        alone
    });
    let held = planned(&view);
    view.remote_endpoints.clear();

    // A published port is reached from everywhere on the node, a virtual address inside its network.
    assert_eq!(
        resets(&held, &planned(&view)),
        ["x sockets 4096 to 10.0.0.6 in t5 t8 t9 node", "x sockets 4097 to 10.0.1.6 in t5 t9"]
    );
    assert_eq!(resets(&held, &held), Vec::<String>::new());
}

#[test]
fn an_address_means_another_where_a_subnet_overlaps() {
    let mut view = view();
    view.sandboxes.clear();
    view.remote_endpoints.retain(|(network, _), _| *network == INGRESS);
    add_task_in_app_alone(&mut view, 0);
    let held = planned(&view);
    view.remote_endpoints.clear();

    assert_eq!(resets(&held, &planned(&view)), ["x sockets 4096 to 10.0.0.6 in node"]);
}

#[test]
fn a_sandbox_that_leaves_or_comes_has_nothing_to_reset() {
    let mut before = view();
    before.sandboxes.insert(SandboxId("t8".into()), sandbox(8).1);
    let held = planned(&before);
    let mut after = view();
    after.sandboxes.insert(SandboxId("t9".into()), sandbox(9).1);

    assert_eq!(
        resets(&held, &planned(&after)),
        ["x sockets 4096 to 10.0.0.8 in t5 node", "x sockets 4097 to 10.0.1.8 in t5"]
    );
    assert_eq!(
        resets(&planned(&view()), &KernelState::default()),
        ["x sockets 4096 to 10.0.0.5 10.0.0.6 in node"]
    );
}
