//! Making, keeping and removing a node's network, in a namespace of its own. Needs root.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;

use crate::support::{Node, converge, id, observe, ok, shell, wanted, way_out};
use dataplane_kernel::net::given_netns_dir;
use dataplane_kernel::net::namespace::Namespace;
use dataplane_model::KernelState;
use dataplane_model::kernel_state::{Change, Device, LinkName, Singleton};

#[test]
fn a_node_is_made_kept_and_removed() {
    let node = Node::enter();
    let task = id("t1");
    let wanted = wanted(&task);
    let before = ok("ip -o link");

    let made = node.run(converge(&mut node.net(), &wanted));
    let again = node.run(converge(&mut node.net(), &wanted));
    let removed = node.run(converge(&mut node.net(), &KernelState::default()));

    assert_eq!(made.len(), 8, "{made:#?}");
    assert_eq!(again, Vec::<String>::new(), "a restarted meshd has nothing to do");
    assert_eq!(removed.len(), 8, "{removed:#?}");
    assert_eq!(ok("ip -o link").lines().count(), before.lines().count());
    assert!(!node.netns_dir().join("t1").exists());
    assert!(!shell("nft list table inet meshd").status.success());
}

#[test]
fn a_task_reaches_the_outside_and_answers_come_back() {
    let node = Node::enter();
    let task = id("t1");
    node.run(converge(&mut node.net(), &wanted(&task)));

    assert!(node.sandbox_reaches(&task, "198.18.0.100"));
    assert!(node.sandbox_reaches(&task, "127.0.0.1"));

    // The machine outside saw the node's address and knows no route to the bridge's subnet; nor does it get there with one.
    node.outside("ip route add 172.18.0.0/16 via 198.18.0.11");
    assert!(!node.outside_reaches("172.18.0.9"), "nobody begins a connection to a task's way out");
}

#[test]
fn a_sandbox_carries_packets_once_it_is_made() {
    for _ in 0..10 {
        let node = Node::enter();
        let task = id("t1");
        node.run(converge(&mut node.net(), &wanted(&task)));

        // All at once, which doesn't make the kernel notice a carrier, as a question about one would.
        let (here, inside) = (ok("ip -br link"), node.sandbox(&task, "ip -br link"));
        let carrying = |links: &str| links.lines().filter(|link| link.contains(" UP ")).count();
        assert_eq!(carrying(&here), 4, "the uplink, the bridge, two host ends: {here}");
        assert_eq!(carrying(&inside), 2, "two legs: {inside}");
    }
}

#[test]
fn replies_leave_by_the_leg_that_they_came_on() {
    let node = Node::enter();
    let task = id("t1");
    node.run(converge(&mut node.net(), &wanted(&task)));

    let from_overlay = node.sandbox(&task, "ip route get 198.18.0.100 from 10.0.0.5");
    let from_gateway = node.sandbox(&task, "ip route get 198.18.0.100 from 172.18.0.9");
    let new = node.sandbox(&task, "ip route get 198.18.0.100");
    let neighbour = node.sandbox(&task, "ip route get 10.0.0.6 from 10.0.0.5");

    assert!(from_overlay.contains("via 10.0.0.1 dev eth0"), "{from_overlay}");
    assert!(from_gateway.contains("via 172.18.0.1 dev eth1"), "{from_gateway}");
    assert!(new.contains("via 172.18.0.1 dev eth1 src 172.18.0.9"), "{new}");
    assert!(neighbour.contains("dev eth0") && !neighbour.contains("via"), "{neighbour}");
    assert_eq!(node.sandbox(&task, "cat /proc/sys/net/ipv4/conf/all/rp_filter").trim(), "2");
    assert!(!node.sandbox(&task, "ip -6 addr show dev eth0").contains("inet6"));
}

/// A runtime has made the namespace, and turned IPv6 off in it.
#[test]
fn a_namespace_that_is_given_becomes_the_sandbox() {
    let node = Node::enter();
    let task = id("t1");
    let given = given_netns_dir(&node.netns_dir()).join(&task.0);
    let theirs = Namespace::create(&given, || {
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        Ok(())
    });
    let cookie = theirs.unwrap().cookie().unwrap();

    let made = node.run(converge(&mut node.net(), &wanted(&task)));
    let again = node.run(converge(&mut node.net(), &wanted(&task)));
    let sandbox = Namespace::open(&node.netns_dir().join(&task.0)).unwrap().unwrap();
    assert_eq!((made.len(), again.len()), (8, 0));
    assert_eq!(sandbox.cookie().unwrap(), cookie, "it is theirs");
    assert!(node.sandbox_reaches(&task, "198.18.0.100"));
    assert!(node.sandbox(&task, "ip -6 addr show dev lo").contains("::1"));
    assert_eq!(node.sandbox(&task, "cat /proc/sys/net/ipv4/conf/all/rp_filter").trim(), "2");

    node.run(converge(&mut node.net(), &KernelState::default()));
    assert!(given.exists(), "it is theirs to remove");
    Namespace::remove(&given).unwrap();
}

#[test]
fn two_tasks_do_not_meet_on_the_way_out() {
    let node = Node::enter();
    let (one, two) = (id("t1"), id("t2"));
    let mut wanted = wanted(&one);
    let mut leg = way_out(&two, 10);
    leg.name = crate::support::link("eth0");
    wanted.sandboxes.insert(two.clone(), dataplane_model::kernel_state::SandboxNet { legs: vec![leg] });
    node.run(converge(&mut node.net(), &wanted));

    assert!(node.sandbox_reaches(&two, "172.18.0.1"));
    assert!(!node.sandbox_reaches(&two, "172.18.0.9"));
}

/// Changes something behind meshd's back.
type Damage<'a> = Box<dyn Fn() + 'a>;

#[test]
fn drift_is_seen_and_put_right() {
    let node = Node::enter();
    let task = id("t1");
    let wanted = wanted(&task);
    let mut net = node.net();
    node.run(converge(&mut net, &wanted));
    let host = wanted.sandboxes[&task].legs[0].host.clone();
    let damages: [(&str, Damage<'_>); 10] = [
        ("a rule inside is gone", Box::new(|| drop(node.sandbox(&task, "ip rule del from 10.0.0.5")))),
        ("a route inside is gone", Box::new(|| drop(node.sandbox(&task, "ip route del default table 100")))),
        ("the address inside is another", Box::new(|| drop(node.sandbox(&task, "ip addr flush dev eth0")))),
        ("the MTU is another", Box::new(|| drop(node.sandbox(&task, "ip link set eth0 mtu 1500")))),
        ("the link is gone", Box::new(|| drop(ok(&format!("ip link del {host}"))))),
        ("the VXLAN device answers ARP", Box::new(|| drop(ok("ip link set mesh-vx arp on")))),
        ("the VXLAN device is gone", Box::new(|| drop(ok("ip link del mesh-vx")))),
        ("the table is gone", Box::new(|| drop(ok("nft delete table inet meshd")))),
        (
            "localhost is a martian",
            Box::new(|| drop(ok("sysctl -w net.ipv4.conf.docker_gwbridge.route_localnet=0"))),
        ),
        ("a rule of the table is gone", Box::new(|| drop(ok("nft flush chain inet meshd postrouting")))),
    ];

    for (what, damage) in damages {
        damage();
        let repaired = node.run(converge(&mut net, &wanted));
        let rest = node.run(converge(&mut net, &wanted));
        assert!(!repaired.is_empty(), "{what}: not seen");
        assert_eq!(rest, Vec::<String>::new(), "{what}");
    }
}

#[test]
fn a_lost_mount_and_a_stray_link_are_put_right() {
    let node = Node::enter();
    let task = id("t1");
    let wanted = wanted(&task);
    let mut net = node.net();
    node.run(converge(&mut net, &wanted));
    // A process that still runs in the namespace: the host ends stay.
    let keep = fs::File::open(node.netns_dir().join("t1")).unwrap();
    Namespace::remove(&node.netns_dir().join("t1")).unwrap();
    ok("ip link add mv00000000abc type veth peer name other");

    let repaired = node.run(converge(&mut net, &wanted));
    drop(keep);

    assert!(repaired.iter().any(|step| step == "- devices mv00000000abc"), "{repaired:#?}");
    assert_eq!(node.run(converge(&mut net, &wanted)), Vec::<String>::new());
    assert_eq!(node.run(observe(&mut net)), wanted);
}

#[test]
fn the_tunnel_device_has_the_port_that_is_wanted() {
    let node = Node::enter();
    let mut wanted = wanted(&id("t1"));
    let mut net = node.net();
    node.run(converge(&mut net, &wanted));
    assert!(ok("ip -d link show mesh-vx").contains("dstport 4789"));
    let device = Device::Vxlan { port: 5789, mtu_bytes: 1400, over_ipv6: true };
    wanted.devices.insert(LinkName::vxlan(), device);

    node.run(converge(&mut net, &wanted));

    let shown = ok("ip -d link show mesh-vx");
    assert!(shown.contains("dstport 5789") && shown.contains("mtu 1400"), "{shown}");
    assert_eq!(node.run(observe(&mut net)), wanted);
}

#[test]
fn both_ends_of_a_link_have_the_mtu_that_is_wanted() {
    let node = Node::enter();
    let task = id("t1");
    let mut wanted = wanted(&task);
    wanted.sandboxes.get_mut(&task).unwrap().legs[0].mtu_bytes = 1337;
    node.run(converge(&mut node.net(), &wanted));

    let host = &wanted.sandboxes[&task].legs[0].host;
    assert!(ok(&format!("ip link show {host}")).contains("mtu 1337"));
    assert!(node.sandbox(&task, "ip link show eth0").contains("mtu 1337"));
}

#[test]
fn a_foreign_bridge_is_left_alone() {
    let node = Node::enter();
    ok("ip link add docker_gwbridge type bridge");
    let mut net = node.net();

    let held = node.run(observe(&mut net));
    let wanted = wanted(&id("t1"));
    let device = dataplane_model::Op::Device(Change::Put(
        LinkName::gateway_bridge(),
        wanted.devices[&LinkName::gateway_bridge()].clone(),
    ));
    let refused = node.run(net.apply(&device));
    let gone = dataplane_model::Op::Device(Change::Delete(LinkName::gateway_bridge()));
    node.run(net.apply(&gone)).unwrap();

    assert!(held.devices.is_empty());
    assert!(refused.unwrap_err().to_string().contains("is not meshd's"));
    ok("ip link show docker_gwbridge");
}

/// What is there when its maker died before it could say more of it.
#[test]
fn a_bridge_that_was_just_made_is_known_as_ours() {
    let node = Node::enter();
    let group = u32::from_be_bytes(*b"mesh");
    for finishes in [true, false] {
        ok(&format!("ip link add docker_gwbridge group {group} type bridge"));
        let mut net = node.net();
        assert!(node.run(observe(&mut net)).devices.contains_key(&LinkName::gateway_bridge()));
        if finishes {
            let wanted = wanted(&id("t1"));
            node.run(converge(&mut net, &wanted));
            assert!(ok("ip link show docker_gwbridge").contains("alias meshd"));
        }
        let gone = dataplane_model::Op::Device(Change::Delete(LinkName::gateway_bridge()));
        node.run(net.apply(&gone)).unwrap();
        assert!(!ok("ip link show").contains("docker_gwbridge"));
    }
}

/// Also one with a metric, which ours would be preferred to.
#[test]
fn a_foreign_route_is_left_alone() {
    let node = Node::enter();
    let mut net = node.net();
    let wanted = wanted(&id("t1"));
    let (subnet, route) = wanted.routes.iter().next().unwrap();
    let device = LinkName::vxlan();
    let make = dataplane_model::Op::Device(Change::Put(device.clone(), wanted.devices[&device].clone()));
    node.run(net.apply(&make)).unwrap();
    for metric in ["", "metric 100"] {
        ok(&format!("ip route add {subnet} dev up0 {metric}"));
        let before = shell("ip route show table main").stdout;

        let refused = node.run(net.apply(&dataplane_model::Op::Route(Change::Put(*subnet, route.clone()))));
        node.run(net.apply(&dataplane_model::Op::Route(Change::Delete(*subnet)))).unwrap();

        assert!(refused.unwrap_err().to_string().contains(&subnet.to_string()));
        assert_eq!(shell("ip route show table main").stdout, before);
        ok(&format!("ip route del {subnet} dev up0 {metric}"));
    }
}

/// The bridge takes answers for them, and nothing else.
#[test]
fn nobody_reaches_the_nodes_loopback_addresses() {
    let node = Node::enter();
    let task = id("t1");
    node.run(converge(&mut node.net(), &wanted(&task)));
    node.sandbox(&task, "ip route del local 127.0.0.0/8 dev lo table local");
    node.sandbox(&task, "ip route add 127.0.0.9/32 via 172.18.0.1 src 172.18.0.9");
    let server = std::net::UdpSocket::bind("127.0.0.9:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let to = server.local_addr().unwrap();
    let send = |to: std::net::SocketAddr| {
        let namespace = fs::File::open(node.netns_dir().join("t1")).unwrap();
        let sending = std::thread::spawn(move || {
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            std::net::UdpSocket::bind("172.18.0.9:0").unwrap().send_to(b"x", to).unwrap();
        });
        sending.join().unwrap();
    };
    send(to);
    // What leaves the one way has gone through the other: the bridge is no queue.
    let heard = std::net::UdpSocket::bind("172.18.0.1:0").unwrap();
    send(heard.local_addr().unwrap());
    heard.recv(&mut [0; 1]).unwrap();
    assert!(server.recv(&mut [0; 1]).is_err(), "a task's datagram has come");
    ok("nft delete table inet meshd");
    send(to);
    server.set_nonblocking(false).unwrap();
    server.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    assert_eq!(server.recv(&mut [0; 1]).unwrap(), 1, "the rule is what keeps it off");
}

#[test]
fn host_ports_lead_to_their_task() {
    let node = Node::enter();
    let task = id("t1");
    let mut wanted = wanted(&task);
    let filter = wanted.filter.get_mut(&Singleton).unwrap();
    let address = Ipv4Addr::new(172, 18, 0, 9);
    filter.host_ports = BTreeMap::from([((6, 8080), (address, 80)), ((17, 8080), (address, 53))]);
    let mut net = node.net();
    node.run(converge(&mut net, &wanted));
    let namespace = fs::File::open(node.netns_dir().join("t1")).unwrap();
    let server = std::thread::spawn(move || {
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let datagrams = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
        (std::net::TcpListener::bind("0.0.0.0:80").unwrap(), datagrams)
    })
    .join()
    .unwrap();
    let (server, datagrams) = server;
    let outside = node.outside.try_clone().unwrap();
    let client = std::thread::spawn(move || {
        nix::sched::setns(&outside, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("198.18.0.11:8080").unwrap();
        socket.send(b"question").unwrap();
        let mut answer = [0; 16];
        let n_bytes = socket.recv(&mut answer).unwrap();
        assert_eq!(&answer[..n_bytes], b"answer", "the same number of another protocol");
        let stream = std::net::TcpStream::connect("198.18.0.11:8080").unwrap();
        stream.local_addr().unwrap()
    });

    let (_, asks) = datagrams.recv_from(&mut [0; 16]).unwrap();
    datagrams.send_to(b"answer", asks).unwrap();
    let (_stream, seen) = server.accept().unwrap();
    let own = std::net::TcpStream::connect("198.18.0.11:8080").unwrap();
    let (_stream, _) = server.accept().unwrap();

    assert_eq!(seen, client.join().unwrap(), "the task sees the client's own address");
    drop(own);
    let own = std::net::TcpStream::connect("127.0.0.1:8080").unwrap();
    let (_stream, seen) = server.accept().unwrap();
    assert_eq!(seen.ip(), Ipv4Addr::new(172, 18, 0, 1), "by localhost it sees the bridge's");
    drop(own);
    assert_eq!(node.run(converge(&mut node.net(), &wanted)), Vec::<String>::new(), "the ports are read back");
}
