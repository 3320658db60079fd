//! What is remembered of translated sockets goes with them. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "two_nodes uses the rest")]
mod lab;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::ops::ControlFlow;
use std::sync::Arc;

use dataplane_kernel::bpf::{PinDir, Tables};
use dataplane_kernel::{Kernel as _, LinuxKernel, LinuxOptions, Pause, Sweeper as _};
use lab::{Lab, Node, view};

/// Sweeps until sockets have been looked at twice.
const TWO_LOOKS: usize = 7;

/// As many sockets as there are kinds: by the published port, from the node, and to the virtual address, from a task: a connection, a connected socket for datagrams,
/// and one that isn't.
fn sockets(node: &Node) -> (Vec<TcpStream>, Vec<UdpSocket>) {
    let ask = |to: (Ipv4Addr, u16)| {
        let stream = TcpStream::connect(to).unwrap();
        let datagrams = [(); 2].map(|()| UdpSocket::bind("0.0.0.0:0").unwrap());
        datagrams[0].connect(to).unwrap();
        datagrams[1].send_to(b"?", to).unwrap();
        (stream, datagrams)
    };
    let from_node = node.ns.run(move || ask((Ipv4Addr::LOCALHOST, 8080)));
    let from_task = node.sandbox(5).run(move || ask((view::VIP, 80)));
    (vec![from_node.0, from_task.0], from_node.1.into_iter().chain(from_task.1).collect())
}

/// The numbers of the sockets whose translation is known.
fn remembered(node: &Node) -> BTreeSet<u64> {
    let tables = Tables::open(&PinDir::new(&node.options.bpffs_dir)).unwrap();
    tables.socket_nat.rows().unwrap().keys().map(|key| key.socket_cookie).collect()
}

/// As the driver's thread does it.
fn sweep(node: &Node, n_sweeps: usize) {
    let options = LinuxOptions {
        netns_dir: node.options.netns_dir(),
        uplinks: vec![],
        bpffs_dir: node.options.bpffs_dir.clone(),
        cgroup2_root: None,
    };
    node.ns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let mut sweeper = LinuxKernel::open(options).unwrap().sweeper();
        let pause: Pause = Arc::new(|| ControlFlow::Continue(()));
        for _ in 0..n_sweeps {
            sweeper.sweep(&pause).unwrap();
        }
    });
}

#[test]
fn translations_of_closed_sockets_are_collected_and_no_others() {
    let mut lab = Lab::new(|_| {});
    lab.converge(1);
    for (node, task, name) in [(&lab.a, 5, "five"), (&lab.b, 6, "six")] {
        lab::serve_greetings(&node.sandbox(task), 80, name);
        lab::serve_udp(&node.sandbox(task), 80, name);
    }
    lab.a.kill();
    let open = sockets(&lab.a);
    let open_cookies = remembered(&lab.a);
    drop(sockets(&lab.a));
    let all = remembered(&lab.a);
    assert_eq!((open_cookies.len(), all.len()), (6, 12));

    sweep(&lab.a, TWO_LOOKS - 1);
    assert_eq!(remembered(&lab.a), all, "a socket may be about to be listed");
    sweep(&lab.a, TWO_LOOKS);

    assert_eq!(remembered(&lab.a), open_cookies);
    drop(open);
}
