//! The tunnel device, in and out; and the same frames where the uplink takes them.

use std::os::fd::AsRawFd as _;

use ebpf_abi::limits::{PROBE_VNI, ROUTER_MAC};
use ebpf_abi::{CounterRow, DropReason, Ip4, MacAddr, ProgramId};

use crate::harness::{Bench, Expect, NODE_MAC, bench};
use crate::support::lab::{CLIENT, INGRESS_VNI, Lab, NODES, OVERLAY_VNI, TASKS, TASKS_OVERLAY, tc_mode};
use crate::support::namespace::Namespace;
use crate::support::packets::{Segment, between, fragment, vxlan, with_total_len};

/// Ethernet type of a protocol that no network carries.
const LLDP: [u8; 2] = [0x88, 0xcc];

#[test]
fn host_processes_send_into_the_ingress_network_only() {
    bench(0, |bpf, lab| {
        let ifindex = lab.nodes[0].ifindex("mesh-vx");
        let mut bench = Bench { bpf, program: ProgramId::MeshVxlanOut, ifindex, ingress_ifindex: 0 };
        let from = |source: Ip4, to: Ip4| between((NODE_MAC, source), (NODE_MAC, to));
        for (task, forwards) in [(0, false), (1, true)] {
            let frame = from(NODES[0], TASKS[task]).tcp((1, 80), Segment::Syn, b"");
            let bytes = between((ROUTER_MAC, NODES[0]), (MacAddr::of_endpoint(TASKS[task]), TASKS[task]))
                .tcp((1, 80), Segment::Syn, b"");
            let expect = if forwards { Expect::ForwardAs(bytes) } else { Expect::PassAs(bytes) };
            bench.check("to a task", &frame, &expect);
        }
        let mut not_ip = from(NODES[0], TASKS[0]).udp((1, 2), &[0; 40]);
        not_ip[12..14].copy_from_slice(&LLDP);
        for (name, frame, reason) in [
            ("from elsewhere", from(CLIENT, TASKS[0]).udp((1, 2), b""), DropReason::HostSource),
            ("to nobody", from(NODES[0], Ip4([10, 0, 0, 77])).udp((1, 2), b""), DropReason::NoRoute),
            ("multicast", from(NODES[0], Ip4([224, 0, 0, 1])).udp((1, 2), b""), DropReason::Group),
            ("LLDP", not_ip, DropReason::NotIp),
        ] {
            bench.check(name, &frame, &Expect::Drop(reason));
        }
        bench.ingress_ifindex = lab.nodes[0].ifindex("up0");
        let frame = from(CLIENT, TASKS[0]).udp((1, 2), b"");
        bench.check("forwarded with a foreign address", &frame, &Expect::Drop(DropReason::HostSource));
    });
}

/// Frames through a real tunnel device: what arrives there has a tunnel key only so.
#[test]
fn tunnels_carry_what_their_nodes_may_send() {
    let lab = Lab::new(tc_mode());
    lab.start();
    let task = (MacAddr::of_endpoint(TASKS[0]), TASKS[0]);
    let overlay = (MacAddr::of_endpoint(TASKS_OVERLAY[0]), TASKS_OVERLAY[0]);
    let peer = (MacAddr::of_endpoint(TASKS_OVERLAY[1]), TASKS_OVERLAY[1]);
    let client = |to: Ip4| between((ROUTER_MAC, CLIENT), (task.0, to));
    let published = client(NODES[0]).tcp((40_000, 8080), Segment::Syn, b"");
    let mut not_ip = published.clone();
    not_ip[12..14].copy_from_slice(&LLDP);
    let bad_length = with_total_len(published.clone(), 19);
    let mut bad_fragment = published.clone();
    bad_fragment.truncate(14 + 20 + 3);
    let elsewhere = between(peer, (MacAddr::of_endpoint(Ip4([10, 0, 1, 9])), overlay.1)).udp((1, 2), b"");
    let own_mac_other_address = between(peer, (overlay.0, Ip4([10, 0, 1, 9]))).udp((1, 2), b"");
    let spoofed = between((peer.0, Ip4([10, 0, 1, 8])), overlay).udp((1, 2), b"");
    let not_ours = between((ROUTER_MAC, NODES[0]), (ROUTER_MAC, CLIENT)).udp((1, 2), b"");
    let spoofed_to_host = between((ROUTER_MAC, Ip4([9, 9, 9, 9])), (ROUTER_MAC, NODES[1])).udp((1, 2), b"");
    let ping_to_node = client(NODES[0]).echo_request();
    for taker in [Taker::Device, Taker::DeviceInSpiteOf] {
        let seen = Seen::Drop(DropReason::UnknownPeer);
        inject(&lab, &lab.client, (INGRESS_VNI, &published), (taker, seen));
    }
    for (vni, frame, seen) in [
        (INGRESS_VNI, published, Seen::Forwarded),
        (OVERLAY_VNI, between(peer, overlay).udp((1, 2), b""), Seen::Forwarded),
        (INGRESS_VNI, between((ROUTER_MAC, NODES[0]), task).udp((1, 2), b""), Seen::Forwarded),
        (
            INGRESS_VNI,
            between((ROUTER_MAC, NODES[1]), (ROUTER_MAC, CLIENT)).udp((1, 2), b""),
            Seen::Forwarded,
        ),
        (INGRESS_VNI, between((ROUTER_MAC, TASKS[1]), (ROUTER_MAC, NODES[1])).udp((1, 2), b""), Seen::Passed),
        (INGRESS_VNI, not_ip, Seen::Drop(DropReason::NotIp)),
        (INGRESS_VNI, bad_length, Seen::Drop(DropReason::Malformed)),
        (INGRESS_VNI, bad_fragment, Seen::Drop(DropReason::Malformed)),
        (INGRESS_VNI, ping_to_node, Seen::Drop(DropReason::UnpublishedPort)),
        (INGRESS_VNI, client(NODES[0]).udp((1, 1234), b""), Seen::Drop(DropReason::UnpublishedPort)),
        (
            INGRESS_VNI,
            fragment(client(NODES[0]).udp((1, 5353), &[0; 64]), 8, false),
            Seen::Drop(DropReason::Fragment),
        ),
        (INGRESS_VNI, not_ours, Seen::Drop(DropReason::UnknownOwner)),
        (INGRESS_VNI, spoofed_to_host, Seen::Drop(DropReason::InnerSource)),
        (OVERLAY_VNI, elsewhere, Seen::Drop(DropReason::UnknownEndpoint)),
        (OVERLAY_VNI, own_mac_other_address, Seen::Drop(DropReason::UnknownEndpoint)),
        (OVERLAY_VNI, spoofed, Seen::Drop(DropReason::InnerSource)),
        (5000, between(peer, overlay).udp((1, 2), b""), Seen::Drop(DropReason::UnknownEndpoint)),
        (PROBE_VNI + 1 - 2, between(peer, overlay).udp((1, 2), b""), Seen::Drop(DropReason::UnknownEndpoint)),
    ] {
        inject(&lab, &lab.nodes[0], (vni, &frame), (Taker::Device, seen));
        // What is out of the ordinary the uplink leaves to the device, and what is for the node's own processes it puts there.
        let (taker, seen) = match seen {
            Seen::Drop(DropReason::NotIp) => (Taker::DeviceInSpiteOf, seen),
            Seen::Passed => (Taker::Uplink, Seen::Forwarded),
            other => (Taker::Uplink, other),
        };
        inject(&lab, &lab.nodes[0], (vni, &frame), (taker, seen));
    }
    lab.check_counters();
}

/// What takes a packet out of its tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taker {
    /// The program on the uplink. A packet has no UDP checksum then, as nodes send it.
    Uplink,
    /// The kernel's device, because the packet has a checksum to verify.
    Device,
    /// The kernel's device, for another reason.
    DeviceInSpiteOf,
}

impl Taker {
    const fn program(self) -> ProgramId {
        match self {
            Self::Uplink => ProgramId::MeshUplink,
            Self::Device | Self::DeviceInSpiteOf => ProgramId::MeshVxlan,
        }
    }
}

/// What the program there counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Forwarded,
    Passed,
    Drop(DropReason),
}

impl Seen {
    fn count(self, row: &CounterRow) -> u64 {
        match self {
            Self::Forwarded => row.forwarded,
            Self::Passed => row.passed,
            Self::Drop(reason) => row.drops[reason.number() as usize],
        }
    }
}

/// Sends a frame through a tunnel from `namespace` to node 1, and waits until it is counted as it should be.
#[track_caller]
pub fn inject(lab: &Lab, namespace: &Namespace, (vni, frame): (u32, &[u8]), (taker, seen): (Taker, Seen)) {
    let before = lab.counted(1, taker.program());
    namespace.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        if taker != Taker::Device {
            without_checksum(&socket);
        }
        let to = (std::net::Ipv4Addr::from(NODES[1]), 4789);
        socket.send_to(&vxlan(vni, frame), to).unwrap();
    });
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        let after = lab.counted(1, taker.program());
        if seen.count(&after) > seen.count(&before) {
            return;
        }
        assert!(std::time::Instant::now() < patience, "{taker:?}: {seen:?} expected, counted {after:?}");
        std::thread::yield_now();
    }
}

/// What the socket sends has the checksum 0, "none" (RFC 768).
fn without_checksum(socket: &std::net::UdpSocket) {
    let yes: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&yes)).unwrap();
    // SAFETY: the option is an int, which is there.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            std::ptr::from_ref(&yes).cast(),
            size,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
