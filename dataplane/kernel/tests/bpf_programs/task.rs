//! What tasks send into their networks.

use dataplane_kernel::bpf::Bpf;
use ebpf_abi::flow::{FLOW_ESTABLISHED, FLOW_FIN_CLIENT, FLOW_RESET};
use ebpf_abi::limits::{BRIDGE_VNI, ROUTER_MAC};
use ebpf_abi::table::ATTACHMENT_WAY_OUT;
use ebpf_abi::{
    DropReason, Frontend, FrontendKey, Ip4, MacAddr, NodeConfig, Port, ProgramId, ReplyFlow, ReplyKey,
    protocol,
};

use crate::harness::{Bench, Expect, bench, client_to};
use crate::support::lab::{CLIENT, Lab, NODES, RING, TASKS, TASKS_OVERLAY, VIP};
use crate::support::packets::{Segment, arp, between, fragment};

/// Task 0's ends: (host end, its MAC and address, the gateway) in the ingress network or the overlay.
fn task_end(lab: &Lab, network: usize) -> (u32, (MacAddr, Ip4), Ip4) {
    let address = [TASKS[0], TASKS_OVERLAY[0]][network];
    let [a, b, c, _] = address.0;
    let ifindex = lab.nodes[1].ifindex(&format!("mv0{network}"));
    (ifindex, (MacAddr::of_endpoint(address), address), Ip4([a, b, c, 1]))
}

#[test]
fn tasks_get_their_arp_answers() {
    bench(1, |bpf, lab| {
        let (ifindex, task, gateway) = task_end(lab, 1);
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, ifindex);
        let peer = (MacAddr::of_endpoint(TASKS_OVERLAY[1]), TASKS_OVERLAY[1]);
        for answer in [(ROUTER_MAC, gateway), (ROUTER_MAC, Ip4(VIP)), peer] {
            let question = arp(1, task, (MacAddr::default(), answer.1), MacAddr::BROADCAST);
            bench.check("asks", &question, &Expect::ForwardAs(arp(2, answer, task, task.0)));
        }
        let asks =
            |who: (MacAddr, Ip4), whom: Ip4| arp(1, who, (MacAddr::default(), whom), MacAddr::BROADCAST);
        for (name, frame, reason) in [
            ("for nobody", asks(task, Ip4([10, 0, 1, 77])), DropReason::NeighbourUnanswered),
            ("for itself", asks(task, task.1), DropReason::NeighbourUnanswered),
            ("an answer", arp(2, task, peer, peer.0), DropReason::NeighbourUnanswered),
            ("cut", asks(task, gateway)[..40].to_vec(), DropReason::Malformed),
            ("from another MAC", asks((peer.0, task.1), gateway), DropReason::SourceAddress),
        ] {
            bench.check(name, &frame, &Expect::Drop(reason));
        }
    });
}

#[test]
fn tasks_reach_their_network_and_no_more() {
    bench(1, |bpf, lab| {
        let (ifindex, task, gateway) = task_end(lab, 1);
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, ifindex);
        let peer = (MacAddr::of_endpoint(TASKS_OVERLAY[1]), TASKS_OVERLAY[1]);
        let router = |address: Ip4| between(task, (ROUTER_MAC, address));
        let frame = between(task, peer).tcp((1, 2), Segment::Syn, b"");
        let expected = between((ROUTER_MAC, task.1), peer).tcp((1, 2), Segment::Syn, b"");
        bench.check("to a task of another node", &frame, &Expect::ForwardAs(expected));
        for address in [gateway, Ip4(VIP)] {
            let expected = between((ROUTER_MAC, address), task).echo_reply();
            bench.check("pings", &router(address).echo_request(), &Expect::ForwardAs(expected));
        }
        let stranger = (task.0, Ip4([10, 0, 1, 9]));
        let mut version6 = router(gateway).udp((1, 2), &[0; 40]);
        version6[12..14].copy_from_slice(&[0x86, 0xdd]);
        let mut no_flow = router(Ip4(VIP)).echo_request();
        no_flow[34] = 13;
        let mut bad_version = router(gateway).udp((1, 2), b"");
        bad_version[14] = 0x55;
        for (name, frame, reason) in [
            ("nobody there", router(Ip4([10, 0, 1, 77])).udp((1, 2), b""), DropReason::NoRoute),
            ("outside", router(CLIENT).udp((1, 2), b""), DropReason::NoRoute),
            ("the gateway but no ping", router(gateway).udp((1, 2), b""), DropReason::NoRoute),
            ("no flow to a virtual address", no_flow, DropReason::VipProtocol),
            ("multicast", router(Ip4([224, 0, 0, 251])).udp((1, 2), b""), DropReason::Group),
            ("spoofed address", between(stranger, peer).udp((1, 2), b""), DropReason::SourceAddress),
            ("spoofed MAC", between((peer.0, task.1), peer).udp((1, 2), b""), DropReason::SourceAddress),
            ("IPv6 in name only", version6, DropReason::Malformed),
            ("IPv4 in name only", bad_version, DropReason::Malformed),
        ] {
            bench.check(name, &frame, &Expect::Drop(reason));
        }
        bench.ifindex = lab.nodes[1].ifindex("up0");
        let frame = between(task, peer).udp((1, 2), b"");
        bench.check("not a task's", &frame, &Expect::Drop(DropReason::UnknownAttachment));
        bench.ifindex = ifindex;
        bench.bpf.tables.config.set(&NodeConfig::default()).unwrap();
        bench.check("no configuration", &frame, &Expect::Drop(DropReason::Unconfigured));
    });
}

/// A client's flow through this very node, and the task's answers to it.
#[test]
fn tasks_answer_clients_as_the_node() {
    bench(1, |bpf, lab| {
        let (ifindex, task, _) = task_end(lab, 0);
        let client = client_to(NODES[1]);
        let uplink = lab.nodes[1].ifindex("up0");
        let to_task = between((ROUTER_MAC, CLIENT), task);
        let datagram = to_task.udp((40_000, 53), b"question");
        for (frame, translated) in [
            (client.tcp((40_000, 8080), Segment::Syn, b""), to_task.tcp((40_000, 80), Segment::Syn, b"")),
            (client.udp((40_000, 5353), b"question"), datagram.clone()),
        ] {
            let mut bench = Bench::received(bpf, ProgramId::MeshUplink, uplink);
            bench.check("the client", &frame, &Expect::ForwardAs(translated));
        }
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, ifindex);
        let answer = between(task, (ROUTER_MAC, CLIENT));
        let restored = between((task.0, NODES[1]), (ROUTER_MAC, CLIENT));
        let frame = answer.tcp((80, 40_000), Segment::SynAck, b"");
        let expected = restored.tcp((8080, 40_000), Segment::SynAck, b"");
        bench.check("TCP", &frame, &Expect::ForwardAs(expected));
        let frame = answer.udp((53, 40_000), b"answer");
        bench.check("UDP", &frame, &Expect::ForwardAs(restored.udp((5353, 40_000), b"answer")));
        let frame = answer.port_unreachable(&datagram);
        let expected = restored.port_unreachable(&client.udp((40_000, 5353), b"question"));
        bench.check("an ICMP error", &frame, &Expect::ForwardAs(with_embedded_checksum_of(expected, &frame)));
        let frame = answer.tcp((80, 40_001), Segment::SynAck, b"");
        bench.check("to no flow", &frame, &Expect::Drop(DropReason::NoRoute));
        bench.bpf.tables.address_owners.remove(&NODES[1].into()).unwrap();
        let frame = answer.udp((53, 40_000), b"answer");
        bench.check("an address without owner", &frame, &Expect::Drop(DropReason::UnknownOwner));
    });
}

/// The embedded packet's own UDP checksum is no one's to correct: it stays as the task saw it. The ICMP checksum covers
/// it.
fn with_embedded_checksum_of(mut frame: Vec<u8>, other: &[u8]) -> Vec<u8> {
    const EMBEDDED_UDP_CHECKSUM: std::ops::Range<usize> = 14 + 20 + 8 + 20 + 6..14 + 20 + 8 + 20 + 8;
    frame[EMBEDDED_UDP_CHECKSUM].copy_from_slice(&other[EMBEDDED_UDP_CHECKSUM]);
    frame[36..38].fill(0);
    let checksum = ebpf_packet::checksum::full(&frame[34..]);
    frame[36..38].copy_from_slice(&checksum);
    frame
}

/// A server that answers datagrams from an unbound socket leaves the way to its routing table, which takes the way out.
#[test]
fn datagrams_answer_clients_by_the_way_out_too() {
    bench(1, |bpf, lab| {
        let client = client_to(NODES[1]);
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, lab.nodes[1].ifindex("up0"));
        let to_task = between((ROUTER_MAC, CLIENT), (MacAddr::of_endpoint(TASKS[0]), TASKS[0]));
        let asked = Expect::ForwardAs(to_task.udp((40_000, 53), b"question"));
        bench.check("the client", &client.udp((40_000, 5353), b"question"), &asked);

        let way_out = (MacAddr([2, 0x42, 172, 18, 0, 3]), Ip4([172, 18, 0, 3]));
        let bridge = MacAddr([2, 0x42, 172, 18, 0, 1]);
        let (ifindex, _, _) = task_end(lab, 1);
        let mut row = bench.bpf.tables.attachments.get(&ifindex).unwrap().unwrap();
        (row.vni, row.address) = (BRIDGE_VNI, TASKS[0]);
        (row.mac, row.flags) = (way_out.0, ATTACHMENT_WAY_OUT);
        bench.bpf.tables.attachments.insert(&ifindex, &row).unwrap();
        (bench.program, bench.ifindex, bench.ingress_ifindex) = (ProgramId::MeshTask, ifindex, ifindex);
        let answer = between(way_out, (bridge, CLIENT));
        let restored = between((way_out.0, NODES[1]), (bridge, CLIENT)).udp((5353, 40_000), b"answer");
        bench.check("answers", &answer.udp((53, 40_000), b"answer"), &Expect::ForwardAs(restored));
        for (name, frame) in [
            ("to another port of the client", answer.udp((53, 40_001), b"")),
            ("a connection of the task's own", answer.tcp((53, 40_000), Segment::Syn, b"")),
        ] {
            bench.check(name, &frame, &Expect::Pass);
        }
        // Whatever source the task's routes gave it; but from its own MAC.
        let by_ingress = between((way_out.0, TASKS[0]), (bridge, CLIENT));
        let restored = between((way_out.0, NODES[1]), (bridge, CLIENT)).udp((5353, 40_000), b"answer");
        bench.check("answers", &by_ingress.udp((53, 40_000), b"answer"), &Expect::ForwardAs(restored));
        let spoofed = Expect::Drop(DropReason::SourceAddress);
        bench.check("to nobody's question", &by_ingress.udp((53, 40_001), b""), &spoofed);
        let other_mac = between((MacAddr::of_endpoint(TASKS[0]), way_out.1), (bridge, CLIENT));
        bench.check("from another MAC", &other_mac.udp((53, 40_000), b"answer"), &spoofed);
    });
}

/// Behind the gateway bridge a task is who its MAC says, in the networks' absence as well.
#[test]
fn by_the_way_out_tasks_send_as_themselves() {
    bench(1, |bpf, lab| {
        let address = |last| Ip4([172, 18, 0, last]);
        let [own, other] = [3, 4].map(|last| (MacAddr::of_endpoint(address(last)), address(last)));
        let bridge = (MacAddr([2, 0x42, 172, 18, 0, 1]), address(1));
        let (ifindex, _, _) = task_end(lab, 1);
        let mut row = bpf.tables.attachments.get(&ifindex).unwrap().unwrap();
        (row.vni, row.address) = (BRIDGE_VNI, own.1);
        (row.mac, row.flags) = (own.0, ATTACHMENT_WAY_OUT);
        bpf.tables.attachments.insert(&ifindex, &row).unwrap();
        let mut bench = Bench::received(bpf, ProgramId::MeshTask, ifindex);
        let says = |operation, who| arp(operation, who, bridge, MacAddr::BROADCAST);
        let to = |source: (MacAddr, Ip4)| between(source, (bridge.0, CLIENT));
        let later = |frame| fragment(frame, 64, false);
        for (name, frame) in [
            ("a connection", to(own).tcp((1, 2), Segment::Syn, b"")),
            ("a datagram", to(own).udp((1, 2), b"")),
            ("a ping", to(own).echo_request()),
            ("a fragment", later(to(own).udp((1, 2), &[0; 64]))),
            ("asks for the bridge", says(1, own)),
            ("answers the bridge", says(2, own)),
        ] {
            bench.check(name, &frame, &Expect::Pass);
        }
        let mut other_kind = says(1, own);
        other_kind[17] = 0xdd;
        for (name, frame) in [
            ("a connection of another", to((own.0, other.1)).tcp((1, 2), Segment::Syn, b"")),
            ("of nobody", to((own.0, address(200))).udp((1, 2), b"")),
            ("of the node", to((own.0, NODES[1])).udp((1, 2), b"")),
            ("a fragment of another", later(to((own.0, other.1)).udp((1, 2), &[0; 64]))),
            ("from another MAC", to((other.0, own.1)).echo_request()),
            ("no address yet", to((own.0, Ip4::UNSPECIFIED)).udp((68, 67), b"")),
            ("answers for another", says(2, (own.0, other.1))),
            ("asks as the bridge", says(1, (own.0, bridge.1))),
            ("says another's MAC", says(2, (other.0, own.1))),
            ("ARP about other addresses", other_kind),
        ] {
            bench.check(name, &frame, &Expect::Drop(DropReason::SourceAddress));
        }
        let mut other_type = to(own).udp((1, 2), b"");
        other_type[12..14].copy_from_slice(&[0x88, 0xcc]);
        bench.check("no IP", &other_type, &Expect::Drop(DropReason::NotIp));
        let mut too_short = to(own).udp((1, 2), b"");
        too_short[14] = 0x44;
        bench.check("half a header", &too_short, &Expect::Drop(DropReason::Malformed));
        bench.check("half a question", &says(1, own)[..30], &Expect::Drop(DropReason::Malformed));
    });
}

/// A closed flow gives its source port back: the task sees the client's own port again, through whatever node.
#[test]
fn closed_flows_give_their_ports_back() {
    bench(1, |bpf, lab| {
        let (ifindex, task, _) = task_end(lab, 0);
        let uplink = lab.nodes[1].ifindex("up0");
        let frontend = FrontendKey::new(NODES[0], Port::new(8080), protocol::TCP);
        bpf.tables.frontends.insert(&frontend, &Frontend::new(RING, Port::new(80))).unwrap();
        let to_task = between((ROUTER_MAC, CLIENT), task);
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, uplink);
        for segment in [Segment::Syn, Segment::Fin] {
            let frame = client_to(NODES[1]).tcp((40_000, 8080), segment, b"");
            bench.check("client", &frame, &Expect::ForwardAs(to_task.tcp((40_000, 80), segment, b"")));
        }
        (bench.program, bench.ifindex, bench.ingress_ifindex) = (ProgramId::MeshTask, ifindex, ifindex);
        let answer = between(task, (ROUTER_MAC, CLIENT)).tcp((80, 40_000), Segment::Fin, b"");
        let restored =
            between((task.0, NODES[1]), (ROUTER_MAC, CLIENT)).tcp((8080, 40_000), Segment::Fin, b"");
        bench.check("task", &answer, &Expect::ForwardAs(restored));
        let flows = bench.bpf.tables.replies.rows().unwrap();
        assert!(flows.len() == 1 && flows.values().all(ReplyFlow::is_closed), "{flows:?}");
        (bench.program, bench.ifindex, bench.ingress_ifindex) = (ProgramId::MeshUplink, uplink, uplink);
        let frame = client_to(NODES[0]).tcp((40_000, 8080), Segment::Syn, b"");
        let expected = to_task.tcp((40_000, 80), Segment::Syn, b"");
        bench.check("again, by another address", &frame, &Expect::ForwardAs(expected));

        let late = client_to(NODES[1]).tcp((40_000, 8080), Segment::Fin, b"");
        bench.check_forwarded("a late segment of the flow that is over", &late);
        let key = ReplyKey::new((TASKS[0], Port::new(80)), (CLIENT, Port::new(40_000)), protocol::TCP);
        let reply = bench.bpf.tables.replies.get(&key).unwrap().unwrap();
        assert_eq!(
            (reply.service, reply.closing),
            (NODES[0].into(), 0),
            "the flow that has the port now goes on"
        );
    });
}

/// The task may not believe a RST (RFC 5961), and the programs don't know its window: a flow that is established stays one, and keeps
/// its port, until the task has said so itself.
#[test]
fn a_clients_rst_does_not_end_what_is_established() {
    bench(1, |bpf, lab| {
        let (ifindex, task, _) = task_end(lab, 0);
        let uplink = lab.nodes[1].ifindex("up0");
        let frontend = FrontendKey::new(NODES[0], Port::new(8080), protocol::TCP);
        bpf.tables.frontends.insert(&frontend, &Frontend::new(RING, Port::new(80))).unwrap();
        let closing = |bpf: &Bpf, port| {
            let key = ReplyKey::new((TASKS[0], Port::new(80)), (CLIENT, Port::new(port)), protocol::TCP);
            bpf.tables.replies.get(&key).unwrap().unwrap().closing
        };
        let client = |bpf: &mut Bpf, node, segment| {
            let frame = client_to(node).tcp((1, 8080), segment, b"");
            Bench::received(bpf, ProgramId::MeshUplink, uplink).check_forwarded("the client", &frame);
        };
        let task_says = |bpf: &mut Bpf, segment| {
            let frame = between(task, (ROUTER_MAC, CLIENT)).tcp((80, 1), segment, b"");
            Bench::received(bpf, ProgramId::MeshTask, ifindex).check_forwarded("the task", &frame);
        };
        client(bpf, NODES[1], Segment::Syn);
        task_says(bpf, Segment::SynAck);
        client(bpf, NODES[1], Segment::Ack);

        client(bpf, NODES[1], Segment::Rst);
        assert_eq!(closing(bpf, 1), FLOW_FIN_CLIENT);
        client(bpf, NODES[0], Segment::Syn);
        let colliding = bpf.tables.replies.rows().unwrap();
        let seen: Vec<u16> =
            colliding.keys().map(|key| key.client_port.get()).filter(|port| *port != 1).collect();
        assert_eq!((colliding.len(), seen.len()), (2, 1), "the other flow gets a port of its own");
        bpf.tables.tick.set(&600).unwrap();
        bpf.tables.sweep_flows().unwrap();
        task_says(bpf, Segment::Ack);

        task_says(bpf, Segment::Rst);
        assert_eq!(closing(bpf, 1), FLOW_FIN_CLIENT | FLOW_RESET);
        bpf.tables.tick.set(&611).unwrap();
        bpf.tables.sweep_flows().unwrap();
        assert!(bpf.tables.replies.rows().unwrap().is_empty(), "the task's own is final");
    });
}

/// The passes over the flow tables take time: what they found dead may live again when it is to be removed.
#[test]
fn a_sweep_spares_flows_that_began_meanwhile() {
    bench(1, |bpf, lab| {
        let uplink = lab.nodes[1].ifindex("up0");
        let frontend = FrontendKey::new(NODES[0], Port::new(8080), protocol::TCP);
        bpf.tables.frontends.insert(&frontend, &Frontend::new(RING, Port::new(80))).unwrap();
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, uplink);
        let segment = |node, port, segment| client_to(node).tcp((port, 8080), segment, b"");
        for port in [1, 2, 3] {
            bench.check_forwarded("it begins", &segment(NODES[1], port, Segment::Syn));
            bench.check_forwarded("and is cut off", &segment(NODES[1], port, Segment::Rst));
        }
        bench.bpf.tables.tick.set(&12).unwrap();

        let dead = bench.bpf.tables.dead_flows().unwrap();
        bench.check_forwarded("again", &segment(NODES[1], 1, Segment::Syn));
        bench.check_forwarded("another one has its port", &segment(NODES[0], 2, Segment::Syn));
        let sweep = bench.bpf.tables.remove_dead(&dead).unwrap();

        assert_eq!(sweep.n_removed, 1);
        let replies = bench.bpf.tables.replies.rows().unwrap();
        let left: Vec<_> =
            replies.iter().map(|(key, reply)| (key.client_port.get(), reply.service)).collect();
        assert_eq!(left, [(1, NODES[1].into()), (2, NODES[0].into())]);
        let forward = bench.bpf.tables.flows.rows().unwrap();
        assert!(
            replies.iter().all(|(key, reply)| forward.contains_key(&key.forward_key(reply))),
            "{forward:?}"
        );
    });
}

/// Whatever a client sends by itself leaves its flow half-open: with a borrowed address it could fill the table for days.
#[test]
fn flows_are_established_by_answers_alone() {
    bench(1, |bpf, lab| {
        let (ifindex, task, _) = task_end(lab, 0);
        let uplink = lab.nodes[1].ifindex("up0");
        let (client, to_task) = (client_to(NODES[1]), between((ROUTER_MAC, CLIENT), task));
        let mut bench = Bench::received(bpf, ProgramId::MeshUplink, uplink);
        for (port, segment) in
            [(1, Segment::Syn), (1, Segment::Ack), (2, Segment::Ack), (2, Segment::Ack), (3, Segment::Syn)]
        {
            let expected = Expect::ForwardAs(to_task.tcp((port, 80), segment, b""));
            bench.check("a client", &client.tcp((port, 8080), segment, b""), &expected);
        }
        for port in [1, 3] {
            (bench.program, bench.ifindex, bench.ingress_ifindex) = (ProgramId::MeshTask, ifindex, ifindex);
            let answer = between(task, (ROUTER_MAC, CLIENT)).tcp((80, port), Segment::SynAck, b"");
            let restored = between((task.0, NODES[1]), (ROUTER_MAC, CLIENT));
            let expected = Expect::ForwardAs(restored.tcp((8080, port), Segment::SynAck, b""));
            bench.check("the task", &answer, &expected);
        }
        let established = |bench: &Bench<'_>| -> Vec<u16> {
            let rows = bench.bpf.tables.flows.rows().unwrap();
            let rows = rows.into_iter().filter(|(_, row)| row.state == FLOW_ESTABLISHED);
            rows.map(|(key, _)| u16::from_be_bytes(key.client_port.0)).collect()
        };
        assert!(established(&bench).is_empty(), "{:?}", established(&bench));
        (bench.program, bench.ifindex, bench.ingress_ifindex) = (ProgramId::MeshUplink, uplink, uplink);
        let expected = Expect::ForwardAs(to_task.tcp((1, 80), Segment::Ack, b""));
        bench.check("goes on", &client.tcp((1, 8080), Segment::Ack, b""), &expected);
        assert_eq!(established(&bench), [1]);
        bench.bpf.tables.tick.set(&66).unwrap();
        let sweep = bench.bpf.tables.sweep_flows().unwrap();
        assert_eq!((sweep.n_kept, sweep.n_removed), (1, 2));
        assert_eq!(established(&bench), [1]);
    });
}
