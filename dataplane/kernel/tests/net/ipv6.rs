//! The IPv6 side of a node's network, in a namespace of its own. Needs root.

use std::net::{IpAddr, Ipv6Addr};

use crate::support::{Node, converge, id, observe, ok, overlay, wanted, way_out};
use dataplane_model::kernel_state::{Leg, Leg6, LinkName, NodeRoute, SandboxNet};
use dataplane_model::{KernelState, SandboxId};

/// A leg in the ingress network, which has `fd00:9::/64` too.
fn dual(id: &SandboxId, last: u8) -> Leg {
    let ipv6 = Leg6 {
        address: format!("fd00:9::{last:x}/64").parse().unwrap(),
        gateway: "fd00:9::1".parse().unwrap(),
        default_route: true,
    };
    Leg { ipv6: Some(ipv6), ..overlay(id, last) }
}

/// A node with a task that has a leg in a network of both families, and a way out.
fn dual_stack(task: &SandboxId) -> KernelState {
    let mut state = wanted(task);
    state.sandboxes.insert(task.clone(), SandboxNet { legs: vec![dual(task, 5), way_out(task, 9)] });
    state
}

/// Two tasks whose host ends meet in a bridge of the test's, as the programs would let them meet.
fn two_neighbours(node: &Node) -> (SandboxId, SandboxId) {
    let (one, two) = (id("t1"), id("t2"));
    let mut wanted = wanted(&one);
    for (task, last) in [(&one, 5), (&two, 6)] {
        wanted.sandboxes.insert(task.clone(), SandboxNet { legs: vec![dual(task, last)] });
    }
    node.run(converge(&mut node.net(), &wanted));
    ok("ip link add br-test type bridge");
    ok("ip link set br-test up");
    for task in [&one, &two] {
        let host = &wanted.sandboxes[task].legs[0].host;
        ok(&format!("ip link set {host} master br-test"));
    }
    (one, two)
}

#[test]
fn neighbours_find_each_other_without_link_local_addresses() {
    let node = Node::enter();
    let (one, two) = two_neighbours(&node);

    assert!(node.sandbox_reaches(&one, "fd00:9::6"));
    assert!(node.sandbox_reaches(&two, "fd00:9::5"));
    let addresses = node.sandbox(&one, "ip -6 -o addr show dev eth0");
    assert_eq!(addresses.lines().count(), 1, "{addresses}");
    assert!(addresses.contains("fd00:9::5/64") && addresses.contains("nodad"), "{addresses}");
    assert!(!addresses.contains("tentative"), "{addresses}");
}

/// The kernel asks a neighbour that it knows again from no packet's address, so from a link-local one; without one it
/// doesn't ask, forgets the neighbour, and asks everybody when the next packet is there.
#[test]
fn a_neighbour_that_was_forgotten_is_found_again() {
    let node = Node::enter();
    let (one, _) = two_neighbours(&node);
    assert!(node.sandbox_reaches(&one, "fd00:9::6"));

    for state in ["stale", "probe", "failed"] {
        let mac = if state == "failed" { "" } else { "lladdr 02:42:0a:00:00:06" };
        node.sandbox(&one, &format!("ip -6 neigh replace fd00:9::6 {mac} dev eth0 nud {state}"));
        assert!(node.sandbox_reaches(&one, "fd00:9::6"), "{state}");
    }
}

#[test]
fn answers_leave_by_the_leg_that_was_asked() {
    let node = Node::enter();
    let task = id("t1");
    node.run(converge(&mut node.net(), &dual_stack(&task)));

    let bound = node.sandbox(&task, "ip -6 route get 2001:db8::7 from fd00:9::5");
    let unbound = node.sandbox(&task, "ip -6 route get 2001:db8::7");
    let neighbour = node.sandbox(&task, "ip -6 route get fd00:9::6 from fd00:9::5");
    let main = node.sandbox(&task, "ip -6 route show table main default");

    assert!(bound.contains("via fd00:9::1 dev eth0 table 100"), "{bound}");
    assert!(unbound.contains("via fd00:9::1 dev eth0") && unbound.contains("src fd00:9::5"), "{unbound}");
    assert!(neighbour.contains("dev eth0 table 100") && !neighbour.contains("via"), "{neighbour}");
    assert!(main.contains("metric 65536"), "{main}");
    // What makes addresses, or believes routers, is off; and the way out has no IPv6.
    let setting = |name: &str| node.sandbox(&task, &format!("cat /proc/sys/net/ipv6/conf/{name}"));
    assert_eq!(setting("eth0/accept_ra").trim(), "0");
    assert_eq!(setting("eth0/addr_gen_mode").trim(), "1");
    assert_eq!(setting("eth1/disable_ipv6").trim(), "1");
}

#[test]
fn ipv6_comes_to_a_leg_and_goes_and_the_connections_of_ipv4_stay() {
    let node = Node::enter();
    let task = id("t1");
    let (plain, both) = (wanted(&task), dual_stack(&task));
    let mut net = node.net();
    node.run(converge(&mut net, &plain));
    // By netlink: /sys is that of the namespace which mounted it.
    let index = || {
        let shown = node.sandbox(&task, "ip -o link show dev eth0");
        shown.split(':').next().expect("a word").parse::<u32>().expect("an index")
    };
    let before = index();

    node.run(converge(&mut net, &both));
    assert_eq!(node.run(observe(&mut net)), both);
    node.run(converge(&mut net, &plain));
    assert_eq!(node.run(observe(&mut net)), plain);

    assert_eq!(index(), before);
    assert_eq!(node.sandbox(&task, "ip -6 -o addr show dev eth0"), "");
    assert!(!node.sandbox(&task, "ip -6 rule").contains("fd00:9::5"));
    assert_eq!(node.sandbox(&task, "ip -6 route show table all dev eth0"), "");
}

/// Changes something behind meshd's back.
type Damage<'a> = Box<dyn Fn() + 'a>;

#[test]
fn drift_of_ipv6_is_seen_and_put_right() {
    let node = Node::enter();
    let task = id("t1");
    let mut wanted = dual_stack(&task);
    ok("ip addr add 2001:db8::11/64 dev up0 nodad");
    let source = IpAddr::V6("2001:db8::11".parse().unwrap());
    let route = NodeRoute { device: LinkName::vxlan(), source };
    wanted.routes.insert("fd00:9::/64".parse().unwrap(), route);
    let mut net = node.net();
    node.run(converge(&mut net, &wanted));
    assert_eq!(node.run(observe(&mut net)), wanted);
    let inside = |command: &'static str| -> Damage<'_> { Box::new(|| drop(node.sandbox(&task, command))) };
    let damages: [(&str, Damage<'_>); 9] = [
        ("a rule inside is gone", inside("ip -6 rule del from fd00:9::5")),
        ("a route inside is gone", inside("ip -6 route del default table 100")),
        ("the subnet's route inside is gone", inside("ip -6 route del fd00:9::/64 table 100")),
        ("the way to everywhere is gone", inside("ip -6 route del default")),
        ("the address inside is gone", inside("ip -6 addr flush dev eth0")),
        ("there is one more address inside", inside("ip addr add fd00:9::77/64 dev eth0 nodad")),
        ("IPv6 is off inside", inside("sysctl -w net.ipv6.conf.eth0.disable_ipv6=1")),
        ("a leg believes routers", inside("sysctl -w net.ipv6.conf.eth0.accept_ra=1")),
        ("the node's own route is gone", Box::new(|| drop(ok("ip -6 route del fd00:9::/64")))),
    ];

    for (name, damage) in damages {
        damage();
        let steps = node.run(converge(&mut net, &wanted));
        assert!(!steps.is_empty(), "{name}: nothing was seen");
        assert_eq!(node.run(observe(&mut net)), wanted, "{name}");
    }
}

#[test]
fn an_uplink_is_known_by_its_lasting_addresses() {
    let node = Node::enter();
    ok("ip addr add 2001:db8::11/64 dev up0 nodad");
    ok("ip addr add fd00:1::11/64 dev up0 nodad");
    ok("ip addr add 2001:db8::12/64 dev up0 nodad preferred_lft 0");
    let mut net = node.net();

    let machine = node.run(net.machine([198, 18, 0, 11].into(), None)).unwrap();

    let mut found: Vec<Ipv6Addr> = machine.uplinks.values().next().unwrap().addresses6.clone();
    found.sort();
    assert_eq!(found, ["2001:db8::11", "fd00:1::11"].map(|address| address.parse::<Ipv6Addr>().unwrap()));
}
