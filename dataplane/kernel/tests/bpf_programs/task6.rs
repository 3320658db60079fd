//! What tasks send into their networks by IPv6.

use ebpf_abi::limits::{BRIDGE_VNI, ROUTER_MAC};
use ebpf_abi::table::ATTACHMENT_WAY_OUT;
use ebpf_abi::{DropReason, Ip, Ip4, MacAddr, ProgramId};

use crate::harness::{Bench, Expect, bench};
use crate::support::lab::{BRIDGE_PREFIX, CLIENT6, Lab, OVERLAY_PREFIX, OVERLAY_VNI, TASKS_OVERLAY, VIP};
use crate::support::packets::{Between, Segment, between, fragment6, with_options6};

/// No route to the destination.
const UNREACHABLE: [u8; 2] = [1, 0];
const SOLICITATION: [u8; 2] = [135, 0];
const ADVERTISEMENT: [u8; 2] = [136, 0];
/// Options that tell a MAC (RFC 4861 section 4.6.1): of the sender, of the target.
const SOURCE_ADDRESS: [u8; 2] = [1, 1];
const TARGET_ADDRESS: [u8; 2] = [2, 1];
/// No router has passed it on.
const DIRECT: u8 = 255;

/// Where parts of a frame without extension headers are.
const PAYLOAD_LEN: usize = 18;
const CHECKSUM: usize = 56;

fn at(last: u8) -> Ip {
    OVERLAY_PREFIX.address(Ip4([10, 0, 1, last]))
}

/// The task in the overlay network that has this number: its MAC and address.
fn member(task: usize) -> (MacAddr, Ip) {
    let name = TASKS_OVERLAY[task];
    (MacAddr::of_endpoint(name), OVERLAY_PREFIX.address(name))
}

/// Host end of task 0's leg in the overlay network.
fn host_end(lab: &Lab) -> u32 {
    lab.nodes[1].ifindex("mv01")
}

/// Where everybody listens whose address ends as this one (RFC 4291 section 2.7.1).
fn solicited_node(address: Ip) -> (MacAddr, Ip) {
    let [.., a, b, c] = address.0;
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
    (MacAddr([0x33, 0x33, 0xff, a, b, c]), Ip(group))
}

/// Target and options of a neighbour message.
fn body(flags: u8, target: Ip, options: &[u8]) -> Vec<u8> {
    [&[flags, 0, 0, 0], &target.0[..], options].concat()
}

fn of_sender(mac: MacAddr) -> Vec<u8> {
    [&SOURCE_ADDRESS[..], &mac.0].concat()
}

/// `task` asks everybody for `target`, as kernels do.
fn asks(task: (MacAddr, Ip), target: Ip) -> Vec<u8> {
    let body = body(0, target, &of_sender(task.0));
    between(task, solicited_node(target)).icmp6(DIRECT, SOLICITATION, &body)
}

/// The answer to it.
fn answers(task: (MacAddr, Ip), (mac, target): (MacAddr, Ip)) -> Vec<u8> {
    let option = [&TARGET_ADDRESS[..], &mac.0].concat();
    between((mac, target), task).icmp6(DIRECT, ADVERTISEMENT, &body(0x60, target, &option))
}

#[test]
fn neighbours_are_found() {
    bench(1, |bpf, lab| {
        let task = member(0);
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, host_end(lab));
        for (name, found) in
            [("gateway", (ROUTER_MAC, at(1))), ("VIP", (ROUTER_MAC, at(VIP[3]))), ("task", member(1))]
        {
            bench.check(name, &asks(task, found.1), &Expect::ForwardAs(answers(task, found)));
        }
        let found = member(1);
        let answer = Expect::ForwardAs(answers(task, found));
        let to = |destination, options: &[u8]| {
            between(task, destination).icmp6(DIRECT, SOLICITATION, &body(0, found.1, options))
        };
        let group = solicited_node(found.1);
        let nonce = [&of_sender(task.0)[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat();
        bench.check("asks only it", &to(found, &of_sender(task.0)), &answer);
        bench.check("without an option", &to(group, b""), &answer);
        bench.check("with two options", &to(group, &nonce), &answer);
        let longest = [of_sender(task.0), vec![14, 5], vec![0; 38]].concat();
        bench.check("with long options", &to(group, &longest), &answer);
    });
}

#[test]
fn questions_for_neighbours_are_refused() {
    bench(1, |bpf, lab| {
        let (task, peer) = (member(0), member(1));
        let nobody = (MacAddr::of_endpoint(TASKS_OVERLAY[0]), Ip::UNSPECIFIED);
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, host_end(lab));
        let sound = asks(task, peer.1);
        let changed = |position: usize, byte: u8| {
            let mut frame = sound.clone();
            frame[position] = byte;
            frame
        };
        let with = |hop_limit, kind, options: &[u8]| {
            between(task, solicited_node(peer.1)).icmp6(hop_limit, kind, &body(0, peer.1, options))
        };
        let mut short = sound.clone();
        short[PAYLOAD_LEN..PAYLOAD_LEN + 2].copy_from_slice(&[0, 24]);
        for (name, frame, reason) in [
            ("for nobody", asks(task, at(77)), DropReason::NeighbourUnanswered),
            ("for itself", asks(task, task.1), DropReason::NeighbourUnanswered),
            ("for an address elsewhere", asks(task, CLIENT6), DropReason::NeighbourUnanswered),
            ("beyond the subnet", asks(task, Ip([0xfd; 16])), DropReason::NeighbourUnanswered),
            ("is it taken?", asks(nobody, task.1), DropReason::NeighbourUnanswered),
            ("is another's taken?", asks(nobody, peer.1), DropReason::NeighbourUnanswered),
            ("from another MAC", asks((peer.0, task.1), peer.1), DropReason::SourceAddress),
            ("from another address", asks((task.0, at(9)), peer.1), DropReason::SourceAddress),
            ("from a link-local address", asks((task.0, Ip::LOCALHOST6), peer.1), DropReason::SourceAddress),
            ("wrong checksum", changed(CHECKSUM, !sound[CHECKSUM]), DropReason::Malformed),
            ("another target than summed up", changed(77, 1), DropReason::Malformed),
            ("cut", sound[..70].to_vec(), DropReason::Malformed),
            ("cut in the option", sound[..80].to_vec(), DropReason::Malformed),
            ("shorter than it says", short, DropReason::Malformed),
            ("has been passed on", with(64, SOLICITATION, &of_sender(task.0)), DropReason::Malformed),
            ("another code", with(DIRECT, [135, 1], &of_sender(task.0)), DropReason::Malformed),
            (
                "an option of no length",
                with(DIRECT, SOLICITATION, &[1, 0, 0, 0, 0, 0, 0, 0]),
                DropReason::Malformed,
            ),
            (
                "an option too long",
                with(DIRECT, SOLICITATION, &[1, 2, 0, 0, 0, 0, 0, 0]),
                DropReason::Malformed,
            ),
            ("half an option", with(DIRECT, SOLICITATION, &[1, 1, 0, 0]), DropReason::Malformed),
            ("too many options", with(DIRECT, SOLICITATION, &[1; 56]), DropReason::Malformed),
            ("behind options", with_options6(&sound), DropReason::Group),
        ] {
            bench.check(name, &frame, &Expect::Drop(reason));
        }
        bench.bpf.tables.prefixes6.remove(&OVERLAY_VNI).unwrap();
        bench.check("no IPv6 here", &sound, &Expect::Drop(DropReason::NotIp));
    });
}

#[test]
fn tasks_reach_their_network_and_no_more() {
    bench(1, |bpf, lab| {
        let (task, peer) = (member(0), member(1));
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, host_end(lab));
        let inner = between((ROUTER_MAC, task.1), peer);
        let (to_peer, ports) = (between(task, peer), (1, 2));
        for (name, frame, expected) in [
            ("TCP", to_peer.tcp(ports, Segment::Syn, b""), inner.tcp(ports, Segment::Syn, b"")),
            ("UDP", to_peer.udp(ports, b"hello"), inner.udp(ports, b"hello")),
            ("ping", to_peer.echo_request(), inner.echo_request()),
            ("options", with_options6(&to_peer.udp(ports, b"x")), with_options6(&inner.udp(ports, b"x"))),
        ] {
            bench.check(name, &frame, &Expect::ForwardAs(expected));
        }
        let fragments = |way: &Between, place| fragment6(&way.udp(ports, &[7; 2000]), place, 1);
        for place in [(0, 1200), (1200, 1200)] {
            bench.check(
                "fragment",
                &fragments(&to_peer, place),
                &Expect::ForwardAs(fragments(&inner, place)),
            );
        }
        for last in [1, VIP[3]] {
            let answer = between((ROUTER_MAC, at(last)), task).echo_reply();
            let ping = between(task, (ROUTER_MAC, at(last))).echo_request();
            bench.check("pings", &ping, &Expect::ForwardAs(answer));
        }
        for (name, frame, reason) in refused(task, peer) {
            bench.check(name, &frame, &Expect::Drop(reason));
        }
    });
}

/// There is no way out by IPv6, and the gateway says so.
#[test]
fn destinations_outside_are_refused() {
    bench(1, |bpf, lab| {
        let task = member(0);
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, host_end(lab));
        let to_outside = between(task, (ROUTER_MAC, CLIENT6));
        let from_router = between((ROUTER_MAC, at(1)), task);
        for (name, frame) in [
            ("TCP", to_outside.tcp((1, 2), Segment::Syn, b"")),
            ("UDP", to_outside.udp((1, 2), &[7; 1000])),
            ("UDP without a byte", to_outside.udp((1, 2), b"")),
            ("ping", to_outside.echo_request()),
            ("behind options", with_options6(&to_outside.udp((1, 2), b""))),
        ] {
            let carried = &frame[14..14 + 48];
            let error = from_router.icmp6(64, UNREACHABLE, &[&[0; 4], carried].concat());
            bench.check(name, &frame, &Expect::ForwardAs(error));
        }
        let too_short = to_outside.udp((1, 2), b"")[..58].to_vec();
        bench.check("cut", &too_short, &Expect::Drop(DropReason::Malformed));
    });
}

/// What a task may not send, and why not.
fn refused(task: (MacAddr, Ip), peer: (MacAddr, Ip)) -> Vec<(&'static str, Vec<u8>, DropReason)> {
    let router = |address: Ip| between(task, (ROUTER_MAC, address));
    let from = |source| between(source, peer).udp((1, 2), b"");
    let mut bad_version = from(task);
    bad_version[14] = 0x45;
    let mapped = Ip::v4(TASKS_OVERLAY[1]);
    let mut to_mapped = from(task);
    to_mapped[38..54].copy_from_slice(&mapped.0);
    let all_nodes = Ip([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let listens = between((task.0, Ip::UNSPECIFIED), (MacAddr([0x33, 0x33, 0, 0, 0, 0x16]), all_nodes));
    vec![
        ("nobody there", router(at(77)).udp((1, 2), b""), DropReason::NoRoute),
        (
            "an error to an address outside",
            router(CLIENT6).port_unreachable(&from(task)),
            DropReason::NoRoute,
        ),
        (
            "a piece to an address outside",
            fragment6(&router(CLIENT6).udp((1, 2), &[7; 64]), (32, 64), 1),
            DropReason::NoRoute,
        ),
        ("the gateway but no ping", router(at(1)).udp((1, 2), b""), DropReason::NoRoute),
        ("a ping behind options", with_options6(&router(at(VIP[3])).echo_request()), DropReason::VipProtocol),
        ("multicast", router(all_nodes).udp((1, 2), b""), DropReason::Group),
        ("which groups it listens to", listens.icmp6(1, [143, 0], &[0; 8]), DropReason::Group),
        ("spoofed address", from((task.0, at(9))), DropReason::SourceAddress),
        ("another network's address", from((task.0, CLIENT6)), DropReason::SourceAddress),
        ("no address", from((task.0, Ip::UNSPECIFIED)), DropReason::SourceAddress),
        ("spoofed MAC", from((peer.0, task.1)), DropReason::SourceAddress),
        ("IPv6 in name only", bad_version, DropReason::Malformed),
        ("a mapped address", to_mapped, DropReason::Malformed),
    ]
}

#[test]
fn a_network_without_prefix_carries_ipv4_alone() {
    bench(1, |bpf, lab| {
        let (task, peer) = (member(0), member(1));
        bpf.tables.prefixes6.remove(&OVERLAY_VNI).unwrap();
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, host_end(lab));
        let frame = between(task, peer).udp((1, 2), b"");
        bench.check("IPv6", &frame, &Expect::Drop(DropReason::NotIp));
        let (from, to) = ((task.0, TASKS_OVERLAY[0]), (peer.0, TASKS_OVERLAY[1]));
        let expected = between((ROUTER_MAC, from.1), to).udp((1, 2), b"");
        bench.check("IPv4", &between(from, to).udp((1, 2), b""), &Expect::ForwardAs(expected));
    });
}

/// Behind the gateway bridge a task is who its MAC says: the prefix there gives it an address, its kernel a link-local one.
#[test]
fn by_the_way_out_tasks_send_as_themselves() {
    bench(1, |bpf, lab| {
        let ifindex = host_end(lab);
        let behind = |last| {
            let name = Ip4([172, 18, 0, last]);
            (MacAddr::of_endpoint(name), BRIDGE_PREFIX.address(name))
        };
        let (own, other, bridge) = (behind(3), behind(4), behind(1));
        let mut row = bpf.tables.attachments.get(&ifindex).unwrap().unwrap();
        (row.vni, row.mac, row.flags) = (BRIDGE_VNI, own.0, ATTACHMENT_WAY_OUT);
        bpf.tables.attachments.insert(&ifindex, &row).unwrap();
        bpf.tables.prefixes6.insert(&BRIDGE_VNI, &BRIDGE_PREFIX).unwrap();
        let link_local = (own.0, own.0.link_local());
        let (nobody, outside) = ((own.0, Ip::UNSPECIFIED), (bridge.0, CLIENT6));
        let routers = (MacAddr([0x33, 0x33, 0, 0, 0, 2]), Ip(*b"\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\x02"));
        let advertises = |from, target: Ip| {
            let options = [&TARGET_ADDRESS[..], &own.0.0].concat();
            between(from, bridge).icmp6(DIRECT, ADVERTISEMENT, &body(0x60, target, &options))
        };
        let says = |from, kind| between(from, routers).icmp6(DIRECT, [kind, 0], &[0; 20]);
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, ifindex);
        for (name, frame) in [
            ("a connection", between(own, outside).tcp((1, 2), Segment::Syn, b"")),
            ("a fragment", fragment6(&between(own, outside).udp((1, 2), &[0; 64]), (8, 16), 1)),
            ("asks for the bridge", asks(own, bridge.1)),
            ("asks before it has an address", asks(link_local, bridge.1)),
            ("wants its address", asks(nobody, own.1)),
            ("wants its link-local address", asks(nobody, link_local.1)),
            ("answers", advertises(own, own.1)),
            ("answers by the link-local address", advertises(link_local, link_local.1)),
            ("which groups it listens to", with_options6(&says(nobody, 143))),
            ("looks for routers", says(link_local, 133)),
        ] {
            bench.check(name, &frame, &Expect::Pass);
        }
        let others = (own.0, other.0.link_local());
        let forged = advertises(own, other.1);
        for (name, frame) in [
            ("as another", between((own.0, other.1), outside).tcp((1, 2), Segment::Syn, b"")),
            ("as nobody's", between((own.0, member(0).1), outside).udp((1, 2), b"")),
            ("from another MAC", between((other.0, own.1), outside).udp((1, 2), b"")),
            ("a datagram of the link", between(link_local, outside).udp((1, 2), b"")),
            ("a datagram of nobody", between(nobody, outside).udp((1, 2), b"")),
            ("answers for another", forged.clone()),
            ("the same behind options", with_options6(&forged)),
            ("the same in pieces", fragment6(&forged, (0, 24), 1)),
            ("answers for the bridge", advertises(link_local, bridge.1)),
            ("answers as another", advertises(others, own.1)),
            ("wants another's address", asks(nobody, other.1)),
            ("asks as another", asks(others, bridge.1)),
            ("says to be a router", says(link_local, 134)),
            ("redirects", says(link_local, 137)),
        ] {
            bench.check(name, &frame, &Expect::Drop(DropReason::SourceAddress));
        }
        bench.check("an answer for half", &forged[..70], &Expect::Drop(DropReason::Malformed));

        bench.bpf.tables.prefixes6.remove(&BRIDGE_VNI).unwrap();
        let frame = between(own, outside).udp((1, 2), b"");
        bench.check("a bridge without IPv6", &frame, &Expect::Drop(DropReason::SourceAddress));
    });
}

#[test]
fn tasks_of_one_node_meet_on_it() {
    bench(1, |bpf, lab| {
        let (task, peer) = (member(0), member(1));
        let ifindex = host_end(lab);
        let key = ebpf_abi::EndpointKey { vni: OVERLAY_VNI, address: TASKS_OVERLAY[1] };
        // Its own host end stands for the other's: what counts is the way that the program chooses.
        bpf.tables.endpoints.insert(&key, &ebpf_abi::Endpoint::local(peer.0, ifindex)).unwrap();
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, ifindex);
        let frame = between(task, peer).tcp((1, 2), Segment::Syn, b"");
        bench.check("on this node", &frame, &Expect::ForwardAs(frame.clone()));
    });
}
