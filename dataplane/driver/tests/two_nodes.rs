//! Two nodes with real kernels: the whole path of packets, restarts, removal. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "others use the rest")]
mod lab;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;

use dataplane_kernel::bpf::{PinDir, Tables};
use dataplane_kernel::inspect::{self, InspectError};
use dataplane_model::inspect::HookRow;
use dataplane_model::{DataPlane as _, NodeView, change_rows};
use dataplane_plan::{IngressHook, TcAttach};
use lab::{CLIENT, Lab, NODE_A, NODE_B, Node, ask_tcp, ask_udp, serve_tcp, serve_udp, view};

/// More than one segment, more than one window.
const LARGE: usize = 1 << 20;

fn lab_with_servers() -> Lab {
    let lab = Lab::new(|_| {});
    lab.converge(1);
    serve(&lab);
    lab
}

/// What the pins tell, as `meshctl` reads them.
fn read_pins<T: Send + 'static>(node: &Node, read: fn(&Path) -> Result<T, InspectError>) -> T {
    let pins = node.options.bpffs_dir.clone();
    node.ns.run(move || read(&pins).unwrap())
}

fn serve(lab: &Lab) {
    for (node, task, name) in [(&lab.a, 5, "five"), (&lab.b, 6, "six")] {
        let sandbox = node.sandbox(task);
        serve_tcp(&sandbox, 80, name);
        serve_udp(&sandbox, 80, name);
        lab::serve_greetings(&sandbox, 81, name);
    }
}

#[test]
fn tasks_reach_each_other_over_the_tunnel() {
    let lab = lab_with_servers();
    let (five, six) = (lab.a.sandbox(5), lab.b.sandbox(6));

    let there = ask_tcp(&five, (view::app(6), 80), LARGE).unwrap();
    let back = ask_tcp(&six, (view::app(5), 80), LARGE).unwrap();
    let datagram = ask_udp(&five, (view::app(6), 80)).unwrap();

    assert!(there.starts_with("six 10.0.1.5:") && there.ends_with(&LARGE.to_string()), "{there}");
    assert!(back.starts_with("five 10.0.1.6:") && back.ends_with(&LARGE.to_string()), "{back}");
    assert!(datagram.starts_with("six 10.0.1.5:"), "{datagram}");
}

#[test]
fn a_virtual_address_leads_to_all_backends() {
    let lab = lab_with_servers();
    let five = lab.a.sandbox(5);

    let answers: BTreeSet<String> = (0..40)
        .map(|_| ask_tcp(&five, (view::VIP, 80), 10).unwrap())
        .map(|answer| answer.split(' ').next().unwrap().to_owned())
        .collect();

    assert_eq!(answers, BTreeSet::from(["five".to_owned(), "six".to_owned()]));
}

#[test]
fn a_published_port_answers_on_every_node_with_the_clients_address() {
    let lab = lab_with_servers();

    for node in [NODE_A, NODE_B] {
        let mut answered = BTreeSet::new();
        for _ in 0..40 {
            let answer = ask_tcp(&lab.client, (node, 8080), 3000).unwrap();
            let words: Vec<&str> = answer.split(' ').collect();
            assert!(words[1].starts_with(&format!("{CLIENT}:")), "{answer}");
            answered.insert(words[0].to_owned());
        }
        assert_eq!(answered.len(), 2, "by {node}: {answered:?}");
        let datagram = ask_udp(&lab.client, (node, 8080)).unwrap();
        assert!(datagram.contains(&CLIENT.to_string()), "{datagram}");
    }
    ask_tcp(&lab.client, (NODE_A, 8080), LARGE).unwrap();
}

#[test]
fn the_nodes_own_processes_reach_published_ports() {
    let lab = lab_with_servers();

    for _ in 0..10 {
        let by_address = ask_tcp(&lab.a.ns, (NODE_A, 8080), 10).unwrap();
        let by_localhost = ask_tcp(&lab.a.ns, (std::net::Ipv4Addr::LOCALHOST, 8080), 10).unwrap();
        let at_the_other = ask_tcp(&lab.a.ns, (NODE_B, 8080), 10).unwrap();
        for answer in [by_address, by_localhost, at_the_other] {
            assert!(answer.contains(&NODE_A.to_string()), "{answer}");
        }
    }
}

#[test]
fn tasks_reach_published_ports_of_every_node() {
    let lab = lab_with_servers();
    // Task 5 is in the ingress network itself; the lone one has its way out and nothing else.
    let mut with_lone = view::of_node(2, NODE_A);
    view::add_lone_task(&mut with_lone, 9);
    lab.a.converge(with_lone);

    for (task, of_own_node) in [(5, "10.0.0.5"), (9, "198.18.0.11")] {
        let sandbox = lab.a.sandbox(task);
        for _ in 0..10 {
            let own = ask_tcp(&sandbox, (NODE_A, 8080), LARGE).unwrap();
            let other = ask_tcp(&sandbox, (NODE_B, 8080), 10).unwrap();
            assert!(own.contains(of_own_node), "task {task}: {own}");
            assert!(other.contains("198.18.0.11"), "task {task}: {other}");
        }
    }
}

#[test]
fn tasks_reach_the_outside_masqueraded() {
    let lab = lab_with_servers();
    serve_tcp(&lab.client, 9000, "outside");

    let answer = ask_tcp(&lab.a.sandbox(5), (CLIENT, 9000), LARGE).unwrap();

    assert!(answer.starts_with("outside 198.18.0.11:"), "{answer}");
}

#[test]
fn a_task_can_not_pass_for_a_node() {
    let lab = lab_with_servers();
    let bind = |port: u16| lab.client.run(move || UdpSocket::bind((CLIENT, port)).unwrap());
    let (tunnel, other) = (bind(4789), bind(4790));
    other.set_read_timeout(Some(lab::PATIENCE)).unwrap();

    lab.a.sandbox(5).run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in [4789, 4790] {
            socket.send_to(b"from a task", (CLIENT, port)).unwrap();
        }
    });

    // The second arrived by the same way, so the first will not come any more.
    other.recv(&mut [0; 64]).unwrap();
    tunnel.set_nonblocking(true).unwrap();
    assert!(tunnel.recv(&mut [0; 64]).is_err(), "a task's datagram reached a tunnel port");
}

#[test]
fn pins_of_another_version_go_when_this_one_has_taken_over() {
    let mut lab = Lab::new(|_| {});
    let pins = lab.a.options.bpffs_dir.clone();
    let (old, foreign) = (pins.join("v0/links"), pins.join("vault"));
    lab.a.converge(view::of_node(1, NODE_A));
    lab.a.kill();
    std::fs::create_dir_all(&old).unwrap();
    std::fs::create_dir_all(&foreign).unwrap();

    lab.a.start();
    assert!(old.exists());
    lab.a.converge(view::of_node(2, NODE_A));

    assert!(!pins.join("v0").exists());
    assert!(foreign.exists());
}

#[test]
fn a_task_that_leaves_leaves_nothing() {
    let lab = lab_with_servers();

    lab.a.converge(view::without_task(2, NODE_A, 5));
    lab.b.converge(view::without_task(2, NODE_B, 5));

    assert!(!lab.a.options.netns_dir().join("task5").exists());
    assert!(!lab.a.ns.shell("ip -o link").contains("mv"));
    for _ in 0..10 {
        let answer = ask_tcp(&lab.client, (NODE_A, 8080), 10).unwrap();
        assert!(answer.starts_with("six "), "{answer}");
    }
    let endpoints = read_pins(&lab.a, inspect::endpoints);
    assert!(endpoints.iter().all(|row| row.interface.is_none()), "{endpoints:?}");
}

#[test]
fn a_node_that_leaves_leaves_nothing() {
    let mut lab = lab_with_servers();
    let pins = lab.a.options.bpffs_dir.clone();
    assert!(pins.exists());

    lab.a.tear_down();

    let links = lab.a.ns.shell("ip -o link");
    assert_eq!(links.lines().count(), 2, "lo and up0: {links}");
    assert!(!pins.exists());
    assert!(!lab.a.ns.shell("nft list tables").contains("meshd"));
    assert_eq!(lab.a.ns.shell("cat /proc/sys/net/ipv4/conf/up0/forwarding").trim(), "0");
}

#[test]
fn what_the_kernel_shows_is_what_was_wanted() {
    let lab = lab_with_servers();
    for _ in 0..20 {
        ask_tcp(&lab.client, (NODE_A, 8080), 10).unwrap();
    }

    let rows = read_pins(&lab.a, inspect::load_balancers);
    let published = rows.iter().find(|row| row.frontend == "198.18.0.11:8080/tcp").unwrap();
    assert_eq!((published.kind.as_str(), published.backends.len()), ("ingress", 2));
    let hooks = lab.a.driver().hooks();
    assert!(hooks.iter().any(|row| row.interface == "up0" && !row.reason.is_empty()), "{hooks:?}");
    let named = |rows: &[HookRow]| -> BTreeSet<[String; 3]> {
        rows.iter().cloned().map(|row| [row.interface, row.hook, row.program]).collect()
    };
    assert_eq!(named(&hooks), named(&read_pins(&lab.a, inspect::hooks)), "with and without the driver");
    let drops = read_pins(&lab.a, inspect::drops);
    for program in &drops.programs {
        assert_eq!(program.unaccounted(), 0, "{program:?}");
    }
    assert!(drops.programs.iter().any(|program| program.program == "mesh_uplink" && program.forwarded > 0));
    // By these the programs find the sockets of tasks.
    let tables = Tables::open(&PinDir::new(&lab.a.options.bpffs_dir)).unwrap();
    let attachments = tables.attachments.rows().unwrap();
    assert!(!attachments.is_empty() && attachments.values().all(|row| row.sandbox != 0), "{attachments:?}");
}

#[test]
fn clsact_carries_the_same_traffic() {
    let lab = Lab::new(|options| options.tc_attach = TcAttach::Clsact);
    lab.converge(1);
    serve(&lab);

    for node in [NODE_A, NODE_B] {
        for _ in 0..10 {
            ask_tcp(&lab.client, (node, 8080), 3000).unwrap();
        }
    }
    ask_tcp(&lab.a.sandbox(5), (view::app(6), 80), LARGE).unwrap();
    assert!(lab.a.driver().hooks().iter().any(|row| row.hook == "clsact ingress"));
}

#[test]
fn xdp_carries_the_same_traffic_and_tc_stays_beneath() {
    let lab = Lab::new(|options| options.ingress_hook = IngressHook::Xdp);
    for port in ["sw11", "sw12"] {
        // What a switch of metal does by itself: checksums are complete, and frames are taken without a program.
        lab.switch.shell(&format!("ethtool -K {port} tx off gro on"));
    }
    lab.converge(1);
    serve(&lab);

    for node in [NODE_A, NODE_B] {
        for _ in 0..10 {
            let answer = ask_tcp(&lab.client, (node, 8080), 3000).unwrap();
            assert!(answer.contains(&CLIENT.to_string()), "{answer}");
        }
    }
    let hooks = lab.a.driver().hooks();
    let on_uplink: BTreeSet<&str> =
        hooks.iter().filter(|row| row.interface == "up0").map(|row| row.program.as_str()).collect();
    assert_eq!(on_uplink, BTreeSet::from(["mesh_uplink", "mesh_xdp"]));
    let drops = read_pins(&lab.a, inspect::drops);
    assert!(
        drops.programs.iter().any(|program| program.program == "mesh_xdp" && program.forwarded > 0),
        "{drops:?}"
    );
}

/// `docker swarm init --data-path-port`.
#[test]
fn another_data_path_port_carries_the_same_traffic() {
    const PORT: u16 = 7789;
    let lab = Lab::new(|options| options.ingress_hook = IngressHook::Xdp);
    for port in ["sw11", "sw12"] {
        lab.switch.shell(&format!("ethtool -K {port} tx off gro on"));
    }
    for (node, vtep) in [(&lab.a, NODE_A), (&lab.b, NODE_B)] {
        node.converge(NodeView { vxlan_port: PORT, ..view::of_node(1, vtep) });
    }
    serve(&lab);

    for node in [NODE_A, NODE_B] {
        let names = (0..40).map(|_| ask_tcp(&lab.client, (node, 8080), 10).unwrap());
        let names: BTreeSet<String> = names.map(|answer| answer[..4].to_owned()).collect();
        assert_eq!(names.len(), 2, "one of them is behind the tunnel: {names:?}");
    }
    ask_tcp(&lab.a.sandbox(5), (view::app(6), 80), LARGE).unwrap();
    ask_udp(&lab.b.sandbox(6), (view::app(5), 80)).unwrap();
    assert!(lab.a.ns.shell("ip -d link show mesh-vx").contains(&format!("dstport {PORT}")));
}

/// Native XDP of a driver whose buffers are shorter than such frames takes them in several.
#[test]
fn xdp_takes_jumbo_frames() {
    const BULK: usize = 8 << 20;
    let lab = Lab::new(|options| options.ingress_hook = IngressHook::Xdp);
    for port in ["sw100", "sw11", "sw12"] {
        lab.switch.shell(&format!("ip link set {port} mtu 9000"));
        lab.switch.shell(&format!("ethtool -K {port} tx off gro on"));
    }
    for host in [&lab.client, &lab.a.ns, &lab.b.ns] {
        host.shell("ip link set up0 mtu 9000");
    }
    lab.converge(1);
    serve(&lab);

    for (node, name_there) in [(NODE_A, "six "), (NODE_B, "five ")] {
        let mut answers = (0..40).map(|_| ask_tcp(&lab.client, (node, 8080), BULK).unwrap());
        let there = answers.find(|answer| answer.starts_with(name_there));
        let there = there.expect("the ring leads to the other node, too");
        assert!(there.contains(&CLIENT.to_string()) && there.ends_with(&BULK.to_string()), "{there}");
    }
    for node in [&lab.a, &lab.b] {
        let errors = &node.driver().watch().borrow().errors.clone();
        assert_eq!(*errors, Vec::<String>::new());
        let drops = read_pins(node, inspect::drops);
        let xdp = drops.programs.iter().find(|program| program.program == "mesh_xdp").unwrap();
        // Jumbo frames: in those of 1,500 bytes it would be six times as many.
        assert!((BULK / 9000..BULK / 2000).contains(&usize::try_from(xdp.forwarded).unwrap()), "{xdp:?}");
    }
}

#[test]
fn a_backend_that_drains_keeps_its_connections() {
    let lab = lab_with_servers();
    // A connection by node a to each of the tasks.
    let held: Vec<(TcpStream, String)> = (0..20).map(|_| lab.client.run(open_and_greet)).collect();
    let drained = |revision, vtep| {
        let mut view = view::of_node(revision, vtep);
        change_rows(&mut view.services, |service| {
            service
                .backends
                .iter_mut()
                .for_each(|((_, address), backend)| backend.ready = address.octets()[3] != 5);
        });
        view
    };

    lab.a.converge(drained(2, NODE_A));
    lab.b.converge(drained(2, NODE_B));
    let new: BTreeSet<String> = (0..20).map(|_| lab.client.run(open_and_greet).1).collect();

    assert_eq!(new, BTreeSet::from(["six".to_owned()]));
    assert!(held.iter().any(|(_, name)| name == "five"), "{held:?}");
    for (mut stream, name) in held {
        stream.write_all(b"still there?").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer).starts_with(&name), "{name}");
    }
}

/// A connection to an echo server, and who answered the first line.
fn open_and_greet() -> (TcpStream, String) {
    let mut stream = TcpStream::connect((NODE_A, 8081)).unwrap();
    stream.set_read_timeout(Some(lab::PATIENCE)).unwrap();
    stream.write_all(b"who?").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    (stream, String::from_utf8_lossy(&answer).trim().to_owned())
}
