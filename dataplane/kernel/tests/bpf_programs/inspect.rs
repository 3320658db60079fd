//! What the pins tell of rings, flows and where things are sent.

use std::net::Ipv4Addr;

use dataplane_kernel::inspect::{self, TopReading};
use dataplane_model::inspect::TopReport;
use ebpf_abi::Ip4;

use crate::support::lab::{CLIENT, Lab, NODES, SHARED_RING, TASKS, VIP, tc_mode};
use crate::support::traffic::{serve_tcp, tcp};

fn address(ip: Ip4) -> Ipv4Addr {
    ip.into()
}

#[test]
fn rings_flows_and_forwarding_tables_are_told() {
    let lab = Lab::new(tc_mode());
    lab.tasks.iter().for_each(|task| serve_tcp(task, 80));
    lab.start();
    tcp(&lab.client, NODES[0], 8080, b"hello").unwrap();
    lab.with_tables(0, |tables| {
        let rings = &mut tables.rings;
        rings.swap(&SHARED_RING, &[TASKS[0]]).unwrap();
        rings.swap(&SHARED_RING, &[TASKS[0]]).unwrap();
    });
    let pins: [_; 2] = [0, 1].map(|node| lab.node_pins(node));
    let (rings, cached, fdb) = lab.nodes[0].run(|| {
        let rings = inspect::rings(&pins[0], "198.18.0.11:8081", |_| Some("web".to_owned())).unwrap();
        assert!(inspect::rings(&pins[0], "198.18.0.11", |_| None).unwrap().is_empty());
        (rings, inspect::flows(&pins[0], 10).unwrap(), inspect::fdb(&pins[0]).unwrap())
    });
    assert_eq!((rings.len(), rings[0].service.as_str()), (1, "web"));
    let sizes: Vec<_> =
        rings[0].rings.iter().map(|ring| (ring.age, ring.size, ring.backends.len())).collect();
    assert_eq!(sizes, [(0, 1, 1), (1, 2, 2)]);
    assert!(cached.cached.iter().any(|flow| flow.backend == address(TASKS[0])), "{cached:?}");

    // Task 0 is on node 1.
    let kept = lab.nodes[1].run(|| inspect::flows(&pins[1], 10).unwrap());
    let flow = kept.kept.iter().find(|flow| flow.client.ip() == address(CLIENT)).unwrap();
    assert_eq!((flow.service.to_string().as_str(), flow.backend.port()), ("198.18.0.11:8080", 80));
    assert!(["established", "closing", "closed"].contains(&flow.state.as_str()), "{flow:?}");
    let none = lab.nodes[1].run(|| inspect::flows(&pins[1], 0).unwrap());
    assert_eq!((none.kept.len(), none.n_kept_left_off), (0, kept.kept.len() as u64));

    assert_eq!(fdb.peers, [address(NODES[1])]);
    let owner = |node: usize| fdb.owners.iter().find(|row| row.address == address(NODES[node])).unwrap().vtep;
    assert_eq!((owner(0), owner(1)), (None, Some(address(NODES[1]).into())));
    let local: Vec<_> = fdb.endpoints.iter().filter(|row| row.ifindex.is_some()).collect();
    assert_eq!(local.len(), 2);
    assert!(local.iter().all(|row| row.vtep.is_none() && row.interface.is_some()), "{local:?}");
}

#[test]
fn what_is_new_between_two_looks_is_told() {
    let lab = Lab::new(tc_mode());
    lab.tasks.iter().for_each(|task| serve_tcp(task, 80));
    lab.start();
    let pins = [0, 1].map(|node| lab.node_pins(node));
    let look = |node: usize| lab.nodes[node].run(|| TopReading::take(&pins[node]).unwrap());
    let _measured = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
    tcp(&lab.client, NODES[0], 8080, b"before").unwrap();
    let before = [look(0), look(1)];
    for _ in 0..3 {
        tcp(&lab.client, NODES[0], 8080, b"between").unwrap();
    }
    tcp(&lab.tasks[1], Ip4(VIP), 80, b"by a virtual address").unwrap();
    let [entry, backend] = [0, 1].map(|node| look(node).since(&before[node]));

    let find = |report: &TopReport, port: &str| report.services.iter().find(|row| row.port == port).cloned();
    let published = find(&entry, "8080/tcp").unwrap();
    assert_eq!((published.entering.n_now, published.entering.n_new), (4, 3));
    assert_eq!((published.kept.n_now, find(&backend, "8080/tcp").unwrap().kept.n_new), (0, 3));
    assert_eq!(find(&entry, "10.0.1.2:80/tcp").unwrap().sockets.n_new, 1);
    let uplink = entry.programs.iter().find(|row| row.program == "mesh_uplink").unwrap();
    assert!(uplink.n_packets >= 9, "{uplink:?}");
    assert!(uplink.n_runs >= uplink.n_packets && uplink.run_time_ns > 0, "{uplink:?}");
}
