//! Whose sockets are reset when endpoints go.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dataplane_model::{KernelState, NodeView, SandboxId};

use super::fixture::{APP, INGRESS, facts, network, sandbox, view};
use crate::{NodeFacts, plan, strays};

fn planned(view: &NodeView) -> KernelState {
    plan(view, &facts()).unwrap().state
}

/// The resets on the way from one view to another.
fn resets(held: &KernelState, wanted: &KernelState) -> Vec<String> {
    crate::resets(held, wanted).iter().map(ToString::to_string).collect()
}

/// Takes the other node's endpoints out of all networks but the routing mesh's.
fn leave_app(view: &mut NodeView) {
    let rows = std::mem::take(&mut view.remote_endpoints);
    view.remote_endpoints = rows.into_iter().filter(|((network, _), _)| *network == INGRESS).collect();
}

/// Adds a task that is in no network but `app`, whose subnet is `10.0.<third>.0/24`.
fn add_task_in_app_alone(view: &mut NodeView, third: u8) {
    let (_, mut alone) = sandbox(9);
    view.networks.insert(APP, network("app", 4097, third));
    alone.attachments.retain(|attachment| attachment.network == APP);
    alone.attachments.iter_mut().for_each(|attachment| {
        attachment.address = Ipv4Addr::new(10, 0, third, 9);
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
        ["sockets 4096 to 10.0.0.6 in t5 t8 t9 node", "sockets 4097 to 10.0.1.6 in t5 t9"]
    );
    assert_eq!(resets(&held, &held), Vec::<String>::new());
}

#[test]
fn an_address_means_another_where_a_subnet_overlaps() {
    let mut view = view();
    view.sandboxes.clear();
    leave_app(&mut view);
    add_task_in_app_alone(&mut view, 0);
    let held = planned(&view);
    view.remote_endpoints.clear();

    assert_eq!(resets(&held, &planned(&view)), ["sockets 4096 to 10.0.0.6 in node"]);
}

/// The same addresses are its neighbours', whom it talks to.
#[test]
fn a_node_in_an_overlapping_network_of_its_own_has_nothing_to_reset() {
    let mut view = view();
    let facts = NodeFacts { connected: ["10.0.0.0/16".parse().unwrap()].into(), ..facts() };
    let held = plan(&view, &facts).unwrap().state;
    view.remote_endpoints.clear();

    let resets = resets(&held, &plan(&view, &facts).unwrap().state);

    assert_eq!(resets, ["sockets 4096 to 10.0.0.6 in t5", "sockets 4097 to 10.0.1.6 in t5"]);
    assert_eq!(strays_of(None, &[[10, 0, 0, 99]], &held), [""; 0]);
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
        ["sockets 4096 to 10.0.0.8 in t5 node", "sockets 4097 to 10.0.1.8 in t5"]
    );
    assert_eq!(
        resets(&planned(&view()), &KernelState::default()),
        ["sockets 4096 to 10.0.0.5 10.0.0.6 in node"]
    );
}

/// The strays among the peers of one namespace.
fn strays_of(place: Option<&str>, peers: &[[u8; 4]], held: &KernelState) -> Vec<String> {
    let peers = peers.iter().copied().map(Ipv4Addr::from).collect();
    let place = place.map(|id| SandboxId(id.into()));
    strays(&BTreeMap::from([(place, peers)]), held).iter().map(ToString::to_string).collect()
}

#[test]
fn peers_that_are_nobodys_are_strays() {
    let mut view = view();
    add_task_in_app_alone(&mut view, 1);
    let held = planned(&view);
    // Endpoints here and there, the gateway, the virtual address; then one that is gone, in each network; then strangers.
    let peers = [
        [10, 0, 0, 5],
        [10, 0, 0, 6],
        [10, 0, 1, 1],
        [10, 0, 1, 2],
        [10, 0, 0, 77],
        [10, 0, 1, 78],
        [172, 18, 0, 9],
        [192, 0, 2, 1],
    ];

    assert_eq!(
        strays_of(Some("t5"), &peers, &held),
        ["sockets 4096 to 10.0.0.77 in t5", "sockets 4097 to 10.0.1.78 in t5"]
    );
    assert_eq!(
        strays_of(Some("t9"), &peers, &held),
        ["sockets 4096 to 10.0.0.77 in t9", "sockets 4097 to 10.0.1.78 in t9"]
    );
    // The node reaches no network but by published ports.
    assert_eq!(strays_of(None, &peers, &held), ["sockets 4096 to 10.0.0.77 in node"]);
}

#[test]
fn an_address_that_is_somebodys_in_one_of_two_networks_is_no_stray() {
    let mut view = view();
    let mut app = network("app", 4097, 0);
    app.gateway = Ipv4Addr::new(10, 0, 0, 3);
    view.networks.insert(APP, app);
    let (_, mut both) = sandbox(9);
    both.attachments.iter_mut().for_each(|attachment| attachment.address = Ipv4Addr::new(10, 0, 0, 9));
    view.sandboxes.insert(SandboxId("t9".into()), both);
    view.services.clear();
    leave_app(&mut view);

    let held = planned(&view);

    // 10.0.0.6 lives in the ingress network alone; 10.0.0.77 in neither.
    let peers = [[10, 0, 0, 6], [10, 0, 0, 77]];
    assert_eq!(strays_of(Some("t9"), &peers, &held), ["sockets 4096 to 10.0.0.77 in t9"]);
}
