//! Aggregates through tunnels by own headers: out of them at the uplink where that is safe, and by the kernel's device where it
//! is not.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

use ebpf_abi::ProgramId;

use crate::support::lab::{Lab, NODES, TASKS_OVERLAY, tc_mode};
use crate::support::namespace::Namespace;
use crate::support::traffic::{self, PATIENCE};

/// Some 1,500 segments.
const BULK: usize = 1 << 21;
/// A datagram of an aggregate, bytes.
const PART: usize = 1000;
/// Ports at which a task passes connections on.
const TO_NETWORK: u16 = 7000;
const TO_OUTSIDE: u16 = 7001;

/// Both nodes write their own headers, and both tasks serve TCP.
fn lab() -> Lab {
    let lab = Lab::new(tc_mode());
    lab.start();
    (0..2).for_each(|node| lab.allow_own_headers(node));
    lab.tasks.iter().for_each(|task| traffic::serve_tcp(task, 80));
    // A neighbour whose MAC has yet to be asked for is the kernel's.
    traffic::tcp(&lab.tasks[1], TASKS_OVERLAY[0], 80, b"first").unwrap();
    lab
}

fn device_received(lab: &Lab) -> [u64; 2] {
    [0, 1].map(|node| lab.counted(node, ProgramId::MeshVxlan).received)
}

/// No segment takes another way than those before it: what does overtakes them.
#[test]
fn aggregates_for_tasks_leave_their_tunnel_at_the_uplink() {
    let lab = lab();
    let (device, uplink) = (device_received(&lab), lab.counted(1, ProgramId::MeshUplink));
    traffic::tcp(&lab.tasks[1], TASKS_OVERLAY[0], 80, &vec![5; BULK]).unwrap();
    assert_eq!(device_received(&lab), device, "some went by the kernel's device");
    let n_packets = lab.counted(1, ProgramId::MeshUplink).forwarded - uplink.forwarded;
    assert!(n_packets > 0 && n_packets < 1000, "{n_packets} packets are no aggregates");
    lab.check_counters();
}

/// A socket that wants them one by one has the kernel take them apart, which goes by the tunnel's marks.
#[test]
fn aggregated_datagrams_arrive_one_by_one() {
    let lab = lab();
    let device = device_received(&lab);
    let server = lab.tasks[0].run(|| UdpSocket::bind(("0.0.0.0", 53)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let payload: Vec<u8> = (0..10).flat_map(|part| [part; PART]).collect();
    lab.tasks[1].run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        send_aggregated(&socket);
        socket.send_to(&payload, (Ipv4Addr::from(TASKS_OVERLAY[0]), 53)).unwrap();
    });
    let mut datagram = [0; 2 * PART];
    for expected in payload.chunks(PART) {
        let size = server.recv(&mut datagram).unwrap();
        assert!(datagram[..size] == *expected, "{size} bytes of {:?}", datagram.first());
    }
    assert_eq!(device_received(&lab), [device[0], device[1] + 1]);
    lab.check_counters();
}

/// `UDP_SEGMENT`: what the socket sends are datagrams of [`PART`] bytes.
fn send_aggregated(socket: &UdpSocket) {
    const UDP_SEGMENT: libc::c_int = 103;
    let part = libc::c_int::try_from(PART).unwrap();
    let size = libc::socklen_t::try_from(size_of_val(&part)).unwrap();
    // SAFETY: the option is an int, which is there.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            UDP_SEGMENT,
            std::ptr::from_ref(&part).cast(),
            size,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// A task passes connections on, into its network and elsewhere, by interfaces that don't take aggregates: the marks of the
/// tunnel that they still have mislead nobody.
#[test]
fn what_a_task_passes_on_is_taken_apart_rightly() {
    let lab = lab();
    let (router, outside) = (&lab.tasks[0], Namespace::new());
    router.ip(&format!("link add out0 type veth peer name eth0 netns {}", outside.path()));
    router.ip("addr add 192.0.2.1/24 dev out0");
    router.ip("link set out0 up");
    outside.ip("addr add 192.0.2.2/24 dev eth0");
    outside.ip("link set eth0 up");
    traffic::serve_tcp(&outside, 80);
    router.sysctl("ipv4/ip_forward", "1");
    let next = TASKS_OVERLAY[1];
    router.sh(&format!(
        "nft 'table ip t {{ \
           chain a {{ type nat hook prerouting priority -100; \
             tcp dport {TO_NETWORK} dnat to {next}:80; tcp dport {TO_OUTSIDE} dnat to 192.0.2.2:80; }}; \
           chain b {{ type nat hook postrouting priority 100; masquerade; }}; }}'"
    ));
    for offloads in ["on", "off"] {
        let change = format!("tx-udp_tnl-segmentation {offloads} tso {offloads} tx {offloads}");
        lab.nodes[1].sh(&format!("ethtool -K up0 {change}"));
        router.sh(&format!("ethtool -K out0 {change}"));
        for (port, source) in
            [(TO_NETWORK, Ipv4Addr::from(TASKS_OVERLAY[0])), (TO_OUTSIDE, [192, 0, 2, 1].into())]
        {
            let seen = traffic::tcp(&lab.tasks[1], TASKS_OVERLAY[0], port, &vec![7; BULK]).unwrap();
            assert_eq!(seen.ip(), source, "port {port}, offloads {offloads}");
        }
    }
    let hop = lab.with_tables(1, |tables| tables.next_hops.get(&NODES[0].into()).unwrap());
    assert!(hop.is_some_and(|hop| hop.ifindex != 0), "node 1 has no headers of its own");
    lab.check_counters();
}
