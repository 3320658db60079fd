//! IPv6 behind the gateway bridge: host ports, the way out, and what may not pass. Needs root.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;

use dataplane_kernel::net::namespace::Namespace;
use dataplane_model::kernel_state::{Device, Leg6, LinkName, PacketFilter, Present, Singleton};
use dataplane_model::{KernelState, SandboxId};
use nix::sched::{CloneFlags, setns};

use crate::support::{Node, converge, id, link, observe, ok, wanted};

/// Where a kernel says of single interfaces whether IPv6 is forwarded from them.
const FORCE_FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/force_forwarding";

/// A node with addresses of both families, as the machine outside has.
fn enter() -> Node {
    let node = Node::enter();
    ok("ip addr add 2001:db8::11/64 dev up0 nodad");
    node.outside("ip addr add 2001:db8::100/64 dev eth0 nodad");
    if !Path::new(FORCE_FORWARDING).exists() {
        ok("sysctl -w net.ipv6.conf.all.forwarding=1");
    }
    node
}

/// The node with one task, whose way out has `fd00:18::9` beside 172.18.0.9.
fn wanted6(task: &SandboxId) -> KernelState {
    let mut state = wanted(task);
    if let Some(Device::Bridge { address6, .. }) = state.devices.get_mut(&LinkName::gateway_bridge()) {
        *address6 = Some("fd00:18::1/64".parse().unwrap());
    }
    filter(&mut state).subnet6 = Some("fd00:18::/64".parse().unwrap());
    let side = Leg6 {
        address: "fd00:18::9/64".parse().unwrap(),
        gateway: "fd00:18::1".parse().unwrap(),
        default_route: true,
    };
    state.sandboxes.get_mut(task).unwrap().legs[1].ipv6 = Some(side);
    if Path::new(FORCE_FORWARDING).exists() {
        state.forwarding6.extend([LinkName::gateway_bridge(), link("up0")].map(|link| (link, Present)));
    }
    state
}

fn filter(state: &mut KernelState) -> &mut PacketFilter {
    state.filter.get_mut(&Singleton).unwrap()
}

fn publish(state: &mut KernelState) {
    let target = (Ipv4Addr::new(172, 18, 0, 9), 80);
    filter(state).host_ports = [((6, 8080), target), ((17, 8080), target)].into();
}

/// What `work` returns in another namespace.
fn within<T: Send + 'static>(namespace: File, work: impl FnOnce() -> T + Send + 'static) -> T {
    let entered = std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    entered.join().unwrap()
}

fn sandbox(node: &Node, task: &SandboxId) -> File {
    File::open(node.netns_dir().join(&task.0)).unwrap()
}

/// The kernel begins to listen to questions for an address of IPv6 some time after it has been given: who asks before asks
/// again after a second.
fn in_the_end(reaches: impl Fn() -> bool) -> bool {
    (0..10).any(|_| reaches())
}

fn outside(node: &Node) -> File {
    node.outside.try_clone().unwrap()
}

/// Connects from `client`'s namespace; returns the client's address and whom the task saw.
fn connect(client: File, server: &TcpListener) -> (SocketAddr, SocketAddr) {
    let stream = within(client, || TcpStream::connect("[2001:db8::11]:8080").unwrap());
    let (_, seen) = server.accept().unwrap();
    (stream.local_addr().unwrap(), seen)
}

#[test]
fn host_ports_answer_by_ipv6() {
    let node = enter();
    let task = id("t1");
    let mut wanted = wanted6(&task);
    publish(&mut wanted);
    node.run(converge(&mut node.net(), &wanted));
    assert_eq!(node.run(converge(&mut node.net(), &wanted)), Vec::<String>::new(), "all is read back");
    let (server, datagrams) = within(sandbox(&node, &task), || {
        (TcpListener::bind("[::]:80").unwrap(), UdpSocket::bind("[::]:80").unwrap())
    });

    let (own, seen) = connect(outside(&node), &server);
    assert_eq!(seen, own, "the task sees the client's own address");
    let (own, seen) = connect(File::open("/proc/thread-self/ns/net").unwrap(), &server);
    assert_eq!(seen, own, "as it sees the node's");

    let client = within(outside(&node), || {
        let client = UdpSocket::bind("[::]:0").unwrap();
        client.connect("[2001:db8::11]:8080").unwrap();
        client.send(b"question").unwrap();
        client
    });
    let mut bytes = [0; 16];
    let (_, seen) = datagrams.recv_from(&mut bytes).unwrap();
    datagrams.send_to(b"answer", seen).unwrap();
    let n_bytes = client.recv(&mut bytes).unwrap();
    assert_eq!((seen, &bytes[..n_bytes]), (client.local_addr().unwrap(), &b"answer"[..]));
}

#[test]
fn who_does_not_listen_by_ipv6_refuses() {
    let node = enter();
    let task = id("t1");
    let (plain, mut published) = (wanted6(&task), wanted6(&task));
    publish(&mut published);
    let mut net = node.net();
    let client =
        || within(outside(&node), || TcpStream::connect("[2001:db8::11]:8080").map(drop).unwrap_err().kind());
    node.run(converge(&mut net, &published));
    let server = within(sandbox(&node, &task), || TcpListener::bind("0.0.0.0:80").unwrap());

    let of_ipv4_alone = client();
    drop(server);
    let server = within(sandbox(&node, &task), || TcpListener::bind("[::]:80").unwrap());
    connect(outside(&node), &server);
    node.run(converge(&mut net, &plain));
    let withdrawn = client();

    assert_eq!((of_ipv4_alone, withdrawn), (ErrorKind::ConnectionRefused, ErrorKind::ConnectionRefused));
}

#[test]
fn nothing_else_is_forwarded() {
    let node = enter();
    let task = id("t1");
    node.run(converge(&mut node.net(), &wanted6(&task)));
    let behind = Namespace::create(&node.netns_dir().join("behind"), || Ok(())).unwrap();
    drop(behind);
    let behind = node.netns_dir().join("behind");
    ok(&format!("ip link add up1 type veth peer name eth0 netns {}", behind.display()));
    ok("ip addr add 2001:db8:1::11/64 dev up1 nodad");
    ok("ip link set up1 up");
    let behind = id("behind");
    node.sandbox(&behind, "ip addr add 2001:db8:1::100/64 dev eth0 nodad");
    node.sandbox(&behind, "ip link set eth0 up");
    node.sandbox(&behind, "ip route add default via 2001:db8:1::11");
    node.outside("ip route add default via 2001:db8::11");

    assert!(in_the_end(|| node.outside_reaches("2001:db8::11")));
    assert!(in_the_end(|| node.sandbox_reaches(&behind, "2001:db8:1::11")));
    assert!(!node.outside_reaches("fd00:18::9"), "nobody begins a connection to a task's way out");
    assert!(!node.outside_reaches("2001:db8:1::100"), "the node is nobody's router");
}

/// Whom a server outside at `to` sees when the task connects to it.
fn seen_outside(node: &Node, task: &SandboxId, to: SocketAddr) -> SocketAddr {
    let server = within(outside(node), move || TcpListener::bind(to).unwrap());
    within(sandbox(node, task), move || TcpStream::connect(to).map(drop).unwrap());
    server.accept().unwrap().1
}

#[test]
fn the_way_out_is_masqueraded() {
    let node = enter();
    let task = id("t1");
    let mut wanted = wanted6(&task);
    // Further away than the node's own link.
    node.outside("ip addr add 2001:db8:ffff::1/128 dev lo nodad");
    ok("ip route add default via 2001:db8::100");
    node.run(converge(&mut node.net(), &wanted));
    for to in ["[2001:db8::100]:7777", "[2001:db8:ffff::1]:7777"] {
        let seen = seen_outside(&node, &task, to.parse().unwrap());
        assert_eq!(seen.ip().to_string(), "2001:db8::11", "{to}");
    }

    let inside = Namespace::open(&node.netns_dir().join(&task.0)).unwrap().unwrap();
    assert_eq!(inside.far_source4().unwrap(), "172.18.0.9".parse().ok());
    assert_eq!(inside.far_source6().unwrap(), "fd00:18::9".parse().ok());

    filter(&mut wanted).no_egress = [Ipv4Addr::new(172, 18, 0, 9)].into();
    node.run(converge(&mut node.net(), &wanted));
    assert!(!node.sandbox_reaches(&task, "2001:db8:ffff::1"), "a task of internal networks has no way out");
    assert!(!node.sandbox_reaches(&task, "2001:db8::11"));
}

/// At once, and as often as it is asked: more often than a kernel says "no route" in a second.
#[test]
fn where_the_node_has_no_route_tasks_are_refused() {
    let node = enter();
    let task = id("t1");
    node.run(converge(&mut node.net(), &wanted6(&task)));
    assert!(in_the_end(|| node.sandbox_reaches(&task, "fd00:18::1")));
    let refused = within(sandbox(&node, &task), || {
        let to: SocketAddr = "[2001:db8:ffff::1]:443".parse().unwrap();
        // The kernel gives up later than this only if nobody answers; a loaded machine answers late.
        let patience = std::time::Duration::from_secs(30);
        (0..50).map(|_| TcpStream::connect_timeout(&to, patience).unwrap_err().kind()).collect::<Vec<_>>()
    });

    assert!(refused.iter().all(|kind| *kind == ErrorKind::ConnectionRefused), "{refused:?}");
}

#[test]
fn a_way_out_is_a_route_to_other_machines() {
    let node = Node::enter();
    let mut net = node.net();
    let mut has_way_out = || node.run(net.machine([198, 18, 0, 11].into(), None)).unwrap().has_way_out6;
    let link_local_alone = has_way_out();
    ok("ip -6 route add blackhole default");
    let blackhole = has_way_out();
    ok("ip -6 route del blackhole default");
    ok("ip addr add 2001:db8::11/64 dev up0 nodad");
    let own_link = has_way_out();
    ok("ip addr del 2001:db8::11/64 dev up0");
    ok("ip -6 route add default via fe80::1 dev up0");
    let default = has_way_out();

    assert_eq!((link_local_alone, blackhole, own_link, default), (false, false, true, true));
}

/// Changes something behind meshd's back.
type Damage<'a> = Box<dyn Fn() + 'a>;

#[test]
fn drift_of_the_way_out_is_seen_and_put_right() {
    let node = enter();
    let task = id("t1");
    let mut wanted = wanted6(&task);
    publish(&mut wanted);
    let mut net = node.net();
    node.run(converge(&mut net, &wanted));
    let here = |command: &'static str| -> Damage<'_> { Box::new(|| drop(ok(command))) };
    let mut damages = vec![
        ("the bridge's address is gone", here("ip -6 addr flush dev docker_gwbridge")),
        ("the bridge has one more", here("ip addr add fd00:19::1/64 dev docker_gwbridge nodad")),
        ("the bridge has no IPv6", here("sysctl -w net.ipv6.conf.docker_gwbridge.disable_ipv6=1")),
        ("the bridge believes routers", here("sysctl -w net.ipv6.conf.docker_gwbridge.accept_ra=1")),
        ("a rule is gone", here("nft flush chain inet meshd prerouting")),
        ("the way out is gone", Box::new(|| drop(node.sandbox(&task, "ip -6 route del default")))),
        ("the address inside is gone", Box::new(|| drop(node.sandbox(&task, "ip -6 addr flush dev eth1")))),
    ];
    if Path::new(FORCE_FORWARDING).exists() {
        let off = "sysctl -w net.ipv6.conf.up0.force_forwarding=0";
        damages.push(("the uplink does not forward", here(off)));
    }

    for (name, damage) in damages {
        damage();
        assert!(!node.run(converge(&mut net, &wanted)).is_empty(), "{name}: nothing was seen");
        assert_eq!(node.run(observe(&mut net)), wanted, "{name}");
    }
}

#[test]
fn ipv6_comes_to_the_way_out_and_goes() {
    let node = enter();
    let task = id("t1");
    let (plain, both) = (wanted(&task), wanted6(&task));
    let mut net = node.net();
    for wanted in [&plain, &both, &plain] {
        node.run(converge(&mut net, wanted));
        // Rows of a device that has changed count as gone with it; those that aren't wanted are seen by the next look.
        node.run(converge(&mut net, wanted));
        assert_eq!(node.run(observe(&mut net)), *wanted);
    }

    assert_eq!(ok("ip -6 -o addr show dev docker_gwbridge"), "");
    node.run(converge(&mut net, &both));
    node.run(converge(&mut net, &KernelState::default()));
    if Path::new(FORCE_FORWARDING).exists() {
        assert_eq!(ok("sysctl -n net.ipv6.conf.up0.force_forwarding").trim(), "0");
    }
}

/// An uplink that has its address and its way out from a router keeps both: none of the switches that make it a router's are
/// touched.
#[test]
fn an_uplink_goes_on_believing_its_router() {
    if !Path::new(FORCE_FORWARDING).exists() {
        println!("skipped: all.forwarding is the operator's in this kernel, and so is accept_ra");
        return;
    }
    let node = enter();
    let all = || {
        ok("sysctl -n net.ipv6.conf.up0.accept_ra net.ipv6.conf.up0.forwarding net.ipv6.conf.all.forwarding")
    };
    let before = all();
    node.run(converge(&mut node.net(), &wanted6(&id("t1"))));

    assert_eq!(all(), before);
    assert_eq!(before.split_whitespace().collect::<Vec<_>>(), ["1", "0", "0"]);
}
