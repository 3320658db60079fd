//! The walks of clients, nodes and tasks where the nodes' tunnels are over IPv6; and what others send by such tunnels.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use dataplane_kernel::bpf::has_tcx;
use dataplane_model::kernel_state::HookMode;
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{DropReason, Ip, Peer, ProgramId};

use crate::support::lab::{INGRESS_VNI, Lab, NODES, NODES6, OVERLAY_PREFIX, TASKS_OVERLAY, tc_mode};
use crate::support::traffic::{tcp, udp, wait_until};
use crate::{overlay6, walk};

const BULK: usize = 4 << 20;
/// What IPv6 takes more than IPv4.
const NARROWER: u16 = 20;

/// `None` on a kernel without IPv6.
fn lab(mode: HookMode) -> Option<Lab> {
    let lab = overlay6::lab(mode)?;
    lab.tunnel_over_ipv6();
    Some(lab)
}

/// Outer packets that a node has cut up.
fn n_fragments(lab: &Lab, node: usize) -> u64 {
    let counters = lab.nodes[node].run(|| std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap());
    let line = counters.lines().find(|line| line.starts_with("Ip6FragCreates")).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

/// Whole segments of both families fit: both ends of a task's cable know what the tunnel takes.
fn bulk_is_not_fragmented(lab: &Lab) {
    let bulk = vec![7; BULK];
    for to in [TASKS_OVERLAY[0].into(), OVERLAY_PREFIX.address(TASKS_OVERLAY[0])] {
        tcp(&lab.tasks[1], to, 80, &bulk).unwrap_or_else(|error| panic!("to {to}: {error}"));
    }
    assert_eq!([0, 1].map(|node| n_fragments(lab, node)), [0, 0]);
}

fn walk(lab: &Lab) {
    bulk_is_not_fragmented(lab);
    // Nobody on the way fragments: who sends fragments that are too long is told so by the first.
    let _lost = udp(&lab.client, NODES[0], 5353, 4000);
    udp(&lab.client, NODES[0], 5353, 4000).unwrap();
    for side in [walk::V4, walk::V6].map(|side| side.narrower(NARROWER)) {
        walk::clients_learn_the_path_mtu(lab, &side);
        walk::clients_are_served(lab, &side);
        walk::connections_outlive_cache_and_ring(lab, &side);
        walk::errors_reach_tasks(lab, &side);
    }
    walk::nodes_are_served(lab);
    walk::nodes_are_served_by_ipv6(lab);
    walk::tasks_are_served(lab);
    overlay6::tasks_reach_each_other(lab);
    overlay6::pings_are_answered(lab);
    lab.check_counters();
}

fn next_hop(lab: &Lab, node: usize) -> Option<(u32, Ip)> {
    let hop = lab.with_tables(node, |tables| tables.next_hops.get(&NODES6[1 - node]).unwrap());
    hop.filter(|hop| hop.ifindex != 0).map(|hop| (hop.mtu, hop.gateway))
}

#[test]
fn walk_over_ipv6_by_own_headers() {
    let Some(lab) = lab(tc_mode()) else { return };
    (0..2).for_each(|node| lab.allow_own_headers(node));
    walk(&lab);
    assert_eq!([0, 1].map(|node| next_hop(&lab, node)), [Some((1500, NODES6[1])), Some((1500, NODES6[0]))]);
}

#[test]
fn walk_over_ipv6_by_the_kernels_device() {
    let Some(lab) = lab(HookMode::Clsact) else { return };
    walk(&lab);
    assert_eq!([0, 1].map(|node| next_hop(&lab, node)), [None; 2]);
    if has_tcx() {
        assert_eq!(tc_mode(), HookMode::Tcx, "the other walk is of the other hook");
    }
}

/// By either way into a node: its uplink's program takes what it knows, the kernel's device the rest.
#[test]
fn tunnels_over_ipv6_of_strangers_are_refused() {
    let Some(lab) = lab(tc_mode()) else { return };
    (0..2).for_each(|node| lab.allow_own_headers(node));
    tcp(&lab.tasks[1], TASKS_OVERLAY[0], 80, b"known").unwrap();
    lab.with_tables(1, |tables| tables.peers.remove(&NODES6[0]).unwrap());
    tcp(&lab.tasks[1], TASKS_OVERLAY[0], 80, b"unknown").unwrap_err();
    assert!(n_unknown_peers(&lab, 1) > 0);
    lab.with_tables(1, |tables| tables.peers.insert(&NODES6[0], &Peer::default()).unwrap());
    tcp(&lab.tasks[1], TASKS_OVERLAY[0], 80, b"known").unwrap();
}

/// The kernel's device takes tunnels of both families whatever the cluster's is: what comes by the other one is nobody's.
#[test]
fn a_node_of_ipv4_tunnels_takes_none_over_ipv6() {
    let lab = Lab::new(tc_mode());
    lab.start();
    if !lab.enable_ipv6() {
        return;
    }
    let vni = INGRESS_VNI.to_be_bytes();
    let vxlan = [8, 0, 0, 0, vni[1], vni[2], vni[3], 0];
    let ethernet = [&ROUTER_MAC.0[..], &[2, 0, 0, 0, 0, 9], &[0x08, 0x00]].concat();
    let datagram = [&vxlan[..], &ethernet, &[0x45; 40]].concat();
    let to = SocketAddr::new(IpAddr::from(NODES6[0]), 4789);
    lab.client.run(|| UdpSocket::bind("[::]:0").unwrap().send_to(&datagram, to).unwrap());
    wait_until("the packet to be refused", || n_unknown_peers(&lab, 0) > 0);
    assert_eq!(lab.counted(0, ProgramId::MeshVxlan).passed, 0);
}

fn n_unknown_peers(lab: &Lab, node: usize) -> u64 {
    let counted = lab.counted(node, ProgramId::MeshVxlan);
    counted.drops[usize::try_from(DropReason::UnknownPeer.number()).unwrap()]
}
