//! Overlay networks by IPv6: real sockets of tasks on two nodes and on one, beside the same by IPv4.

use std::net::{IpAddr, SocketAddr, TcpStream};

use dataplane_kernel::bpf::has_tcx;
use dataplane_model::kernel_state::HookMode;
use ebpf_abi::{DropReason, Ip, Ip4, ProgramId, RingKey, VipKey};

use crate::support::lab::{
    CLIENT6, INGRESS_PREFIX, Lab, NODES, OVERLAY_PREFIX, OVERLAY_VNI, TASKS, TASKS_OVERLAY, VIP, VIP_RING,
    tc_mode,
};
use crate::support::traffic::{
    PATIENCE, exchange, ping, serve_tcp, serve_udp, tcp, udp, udp_by_ipv6_socket, udp_connected,
};

/// More than any socket buffer: segmentation and checksum offload are at work.
const BULK: usize = 8 << 20;

/// A virtual address whose one backend is task 1, beside [`VIP`], whose one is task 0.
const OTHER_VIP: Ip4 = Ip4([10, 0, 1, 3]);

fn ip(address: Ip) -> IpAddr {
    address.into()
}

fn overlay(name: Ip4) -> Ip {
    OVERLAY_PREFIX.address(name)
}

/// `None` if this kernel has no IPv6.
pub fn lab(mode: HookMode) -> Option<Lab> {
    let lab = Lab::new(mode);
    if !lab.enable_ipv6() {
        println!("skipped: this kernel has no IPv6");
        return None;
    }
    for task in &lab.tasks {
        serve_tcp(task, 80);
        serve_udp(task, 53);
    }
    lab.start();
    for node in 0..2 {
        lab.with_tables(node, |tables| {
            let ring = RingKey::new(7, OVERLAY_VNI);
            tables.rings.swap(&ring, &[TASKS_OVERLAY[1]]).unwrap();
            tables.vips.insert(&VipKey { vni: OVERLAY_VNI, address: OTHER_VIP }, &ring).unwrap();
        });
    }
    Some(lab)
}

/// By address and by virtual address, from and to each node.
pub fn tasks_reach_each_other(lab: &Lab) {
    let bulk: Vec<u8> = (0..=250).cycle().take(BULK).collect();
    for (task, vip) in [(1, Ip4(VIP)), (0, OTHER_VIP)] {
        let (from, seen) = (&lab.tasks[task], overlay(TASKS_OVERLAY[task]));
        for to in [overlay(TASKS_OVERLAY[1 - task]), overlay(vip)] {
            for payload in [&b""[..], b"hello", &bulk] {
                let peer = tcp(from, to, 80, payload).unwrap_or_else(|error| panic!("to {to}: {error}"));
                assert_eq!(peer.ip(), ip(seen), "to {to}");
            }
            for size in [1, 1402, 1403, 4000, 60_000] {
                let (peer, answers) =
                    udp(from, to, 53, size).unwrap_or_else(|error| panic!("to {to}, {size}: {error}"));
                assert_eq!((peer.ip(), answers), (ip(seen), (ip(to), 53).into()), "to {to}");
            }
            udp_connected(from, to, 53).unwrap();
        }
    }
}

/// Endpoints, gateways and virtual addresses.
pub fn pings_are_answered(lab: &Lab) {
    let (gateway, ingress) = (overlay(Ip4([10, 0, 1, 1])), INGRESS_PREFIX);
    for task in 0..2 {
        for to in [
            overlay(TASKS_OVERLAY[1 - task]),
            overlay(Ip4(VIP)),
            gateway,
            ingress.address(TASKS[1 - task]),
            ingress.address(Ip4([10, 0, 0, 1])),
        ] {
            assert!(ping(&lab.tasks[task], to), "task {task}: {to} does not answer");
        }
    }
}

/// A task that asks for the virtual address whose backend it is itself.
fn a_task_serves_itself(lab: &Lab) {
    let own = overlay(TASKS_OVERLAY[0]);
    let peer = tcp(&lab.tasks[0], overlay(Ip4(VIP)), 80, b"hello").unwrap();
    assert_eq!(peer.ip(), ip(own));
}

/// Sockets show whom they asked for, also when they have moved on; mapped addresses stay what they are beside them.
fn sockets_see_what_they_asked_for(lab: &Lab) {
    let vip = SocketAddr::from((ip(overlay(Ip4(VIP))), 80));
    let stream = lab.tasks[1].run(|| TcpStream::connect_timeout(&vip, PATIENCE)).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), vip, "getpeername");
    assert_eq!(exchange(stream, b"hello").unwrap().ip(), ip(overlay(TASKS_OVERLAY[1])));
    let mapped = std::net::Ipv4Addr::from(VIP).to_ipv6_mapped();
    let to = [ip(overlay(Ip4(VIP))), mapped.into(), ip(overlay(TASKS_OVERLAY[0]))];
    for to in to.map(|address| SocketAddr::from((address, 53))) {
        for is_connected in [false, true] {
            let (_, from) = udp_by_ipv6_socket(&lab.tasks[1], to, is_connected).unwrap();
            assert_eq!(from, to, "connected: {is_connected}");
        }
    }
}

/// Without a backend a socket is told at once.
fn a_service_without_backends_refuses(lab: &Lab) {
    lab.with_tables(0, |tables| tables.rings.swap(&VIP_RING, &[]).unwrap());
    let error = tcp(&lab.tasks[1], overlay(Ip4(VIP)), 80, b"").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    lab.with_tables(0, |tables| tables.rings.swap(&VIP_RING, &[TASKS_OVERLAY[0]]).unwrap());
}

fn walk(lab: &Lab) {
    tasks_reach_each_other(lab);
    pings_are_answered(lab);
    a_task_serves_itself(lab);
    sockets_see_what_they_asked_for(lab);
    a_service_without_backends_refuses(lab);
    lab.check_counters();
}

#[test]
fn overlays_carry_ipv6_by_tcx() {
    if has_tcx()
        && let Some(lab) = lab(HookMode::Tcx)
    {
        walk(&lab);
    }
}

#[test]
fn overlays_carry_ipv6_by_clsact() {
    if let Some(lab) = lab(HookMode::Clsact) {
        walk(&lab);
    }
}

/// Headers of our own are IPv4's alone so far: of IPv6 the kernel's device takes care beside them.
#[test]
fn overlays_carry_ipv6_beside_own_headers() {
    if let Some(lab) = lab(tc_mode()) {
        (0..2).for_each(|node| lab.allow_own_headers(node));
        walk(&lab);
        tcp(&lab.tasks[1], TASKS_OVERLAY[0], 80, b"by IPv4").unwrap();
        let hop = lab.with_tables(0, |tables| tables.next_hops.get(&NODES[1].into()).unwrap());
        assert!(hop.is_some_and(|hop| hop.ifindex != 0), "{hop:?}");
    }
}

/// A task that has no way to an IPv6 address outside is told so, and may go on to the next address at once.
#[test]
fn destinations_outside_are_refused_at_once() {
    if let Some(lab) = lab(tc_mode()) {
        // By the ingress network's leg, which is the only way out that IPv6 has. Datagrams' sockets are not told of missing
        // routes, which may come.
        let error = tcp(&lab.tasks[1], CLIENT6, 80, b"").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable, "{error}");
        let drops = lab.check_counters();
        let program = ProgramId::MeshTask.label();
        let no_route = DropReason::NoRoute.label();
        assert!(!drops.iter().any(|(_, of, reason, n)| of == program && reason == no_route && *n > 0));
    }
}

/// Two networks with the same addresses of both families: what each task reaches is its own network's.
#[test]
fn networks_may_have_the_same_addresses() {
    let Some(lab) = lab(tc_mode()) else { return };
    let other_vni = OVERLAY_VNI + 1;
    for node in 0..2 {
        lab.with_tables(node, |tables| tables.prefixes6.insert(&other_vni, &OVERLAY_PREFIX).unwrap());
    }
    // Task 1 is in the other network now, where nobody has task 0's address.
    let host_end = lab.nodes[0].ifindex("mv11");
    lab.with_tables(0, |tables| {
        let mut row = tables.attachments.get(&host_end).unwrap().unwrap();
        row.vni = other_vni;
        tables.attachments.insert(&host_end, &row).unwrap();
    });
    assert!(!ping(&lab.tasks[1], overlay(TASKS_OVERLAY[0])), "across networks");
    assert!(ping(&lab.tasks[1], overlay(Ip4([10, 0, 1, 1]))), "its own gateway");
}
