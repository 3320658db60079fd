//! The walk over hand-written tables. That the programs do the same is shown by `tests/bpf_programs/trace.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use dataplane_model::inspect::TraceChance;
use ebpf_abi::limits::BRIDGE_VNI;
use ebpf_abi::table::{ATTACHMENT_INGRESS, ATTACHMENT_WAY_OUT};
use ebpf_abi::{Attachment, ForwardFlow, Frontend, MacAddr, Prefix6, SandboxNetworks, TargetPort, VipKey};

use super::*;
use crate::inspect::trace::TaskOrigin;

const INGRESS: u32 = 4096;
const OVERLAY: u32 = 4097;
const HERE: Ip = Ip::v4(Ip4([198, 18, 0, 11]));
const THERE: Ip = Ip::v4(Ip4([198, 18, 0, 12]));
const LOCAL: Ip4 = Ip4([10, 0, 0, 5]);
const REMOTE: Ip4 = Ip4([10, 0, 0, 6]);
const VIP: Ip4 = Ip4([10, 0, 1, 2]);
const WEB: RingKey = RingKey::new(7, INGRESS);
const WEB_OVERLAY: RingKey = RingKey::new(7, OVERLAY);
const COOKIE: u64 = 99;

#[derive(Default)]
struct Fixture {
    config: NodeConfig,
    frontends: BTreeMap<FrontendKey, Frontend>,
    cached: BTreeMap<FlowTuple, CachedBackend>,
    rings: BTreeMap<RingKey, Vec<Ip4>>,
    endpoints: BTreeMap<EndpointKey, Endpoint>,
    targets: BTreeMap<TargetPortKey, TargetPort>,
    flows: BTreeMap<ForwardKey, ForwardFlow>,
    replies: BTreeMap<ReplyKey, ReplyFlow>,
    peers: BTreeSet<Ip>,
    owners: BTreeMap<Ip, Ip>,
    vips: BTreeMap<VipKey, RingKey>,
    sandboxes: BTreeMap<u64, SandboxNetworks>,
    attachments: BTreeMap<u32, Attachment>,
    prefixes6: BTreeMap<u32, Prefix6>,
}

impl Lookup for Fixture {
    fn config(&self) -> Result<NodeConfig, TableError> {
        Ok(self.config)
    }

    fn frontend(&self, key: &FrontendKey) -> Result<Option<Frontend>, TableError> {
        Ok(self.frontends.get(key).copied())
    }

    fn cached(&self, tuple: &FlowTuple) -> Result<Option<CachedBackend>, TableError> {
        Ok(self.cached.get(tuple).copied())
    }

    fn places(&self, ring: &RingKey) -> Result<Option<Vec<Ip4>>, TableError> {
        Ok(self.rings.get(ring).cloned())
    }

    fn endpoint(&self, key: &EndpointKey) -> Result<Option<Endpoint>, TableError> {
        Ok(self.endpoints.get(key).copied())
    }

    fn target(&self, key: &TargetPortKey) -> Result<Option<TargetPort>, TableError> {
        Ok(self.targets.get(key).copied())
    }

    fn flow(&self, key: &ForwardKey) -> Result<Option<ForwardFlow>, TableError> {
        Ok(self.flows.get(key).copied())
    }

    fn reply(&self, key: &ReplyKey) -> Result<Option<ReplyFlow>, TableError> {
        Ok(self.replies.get(key).copied())
    }

    fn is_peer(&self, vtep: Ip) -> Result<bool, TableError> {
        Ok(self.peers.contains(&vtep))
    }

    fn owner(&self, address: Ip) -> Result<Option<Ip>, TableError> {
        Ok(self.owners.get(&address).copied())
    }

    fn vip(&self, key: &VipKey) -> Result<Option<RingKey>, TableError> {
        Ok(self.vips.get(key).copied())
    }

    fn sandbox(&self, cookie: u64) -> Result<Option<SandboxNetworks>, TableError> {
        Ok(self.sandboxes.get(&cookie).copied())
    }

    fn attachments(&self) -> Result<BTreeMap<u32, Attachment>, TableError> {
        Ok(self.attachments.clone())
    }

    fn prefix6(&self, vni: u32) -> Result<Option<Prefix6>, TableError> {
        Ok(self.prefixes6.get(&vni).copied())
    }
}

/// A node with one task (`LOCAL`) of a service that has another one elsewhere (`REMOTE`): published at 8080, with a virtual
/// address in an overlay network.
fn node() -> Fixture {
    let mut node = Fixture {
        config: NodeConfig { vtep: HERE, ingress_vni: INGRESS, ..NodeConfig::default() },
        ..Fixture::default()
    };
    let key = FrontendKey::new(HERE, Port::new(8080), protocol::TCP);
    node.frontends.insert(key, Frontend::new(WEB, Port::new(80)));
    node.rings.insert(WEB, vec![LOCAL, REMOTE]);
    node.rings.insert(WEB_OVERLAY, vec![overlay(LOCAL), overlay(REMOTE), overlay(REMOTE)]);
    for (vni, local, remote) in [(INGRESS, LOCAL, REMOTE), (OVERLAY, overlay(LOCAL), overlay(REMOTE))] {
        let ifindex = vni - INGRESS + 1;
        let mac = MacAddr::of_endpoint(local);
        node.endpoints
            .insert(EndpointKey { vni, address: local }, Endpoint::local(mac, ifindex).serving(true));
        let far = Endpoint::remote(MacAddr::of_endpoint(remote), THERE).serving(true);
        node.endpoints.insert(EndpointKey { vni, address: remote }, far);
        let flags = if vni == INGRESS { ATTACHMENT_INGRESS } else { 0 };
        let leg = Attachment { vni, address: local, mac, flags, prefix: 24, ..Attachment::default() };
        node.attachments.insert(ifindex, leg);
    }
    let key = TargetPortKey::new(LOCAL, Port::new(8080), protocol::TCP);
    node.targets.insert(key, TargetPort::new(Port::new(80)));
    node.peers.insert(THERE);
    node.owners.extend([(HERE, Ip::UNSPECIFIED), (THERE, THERE)]);
    node.vips.insert(VipKey { vni: OVERLAY, address: VIP }, WEB_OVERLAY);
    node.sandboxes.insert(COOKIE, SandboxNetworks::new(&[INGRESS, OVERLAY]).unwrap());
    node
}

fn overlay(address: Ip4) -> Ip4 {
    let [a, b, _, d] = address.0;
    Ip4([a, b, 1, d])
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn task() -> TaskOrigin {
    let addresses = vec![(INGRESS, LOCAL.into()), (OVERLAY, overlay(LOCAL).into())];
    TaskOrigin { netns_cookie: COOKIE, addresses, far_source4: None, far_source6: None, port: 40_000 }
}

/// Steps and end, a line each.
fn text(report: &TraceReport) -> String {
    let mut out = String::new();
    for way in &report.ways {
        for step in way.steps.iter().filter(|step| step.at != HOP) {
            writeln!(out, "{}: {}", step.at, step.says).unwrap();
        }
        writeln!(out, "=> {:?}", way.end).unwrap();
    }
    out
}

fn from_outside(node: &Fixture, port: u16, to: &str) -> TraceReport {
    let client = SocketAddr::new([198, 18, 0, 100].into(), port);
    Walk::new(node, protocol::TCP).unwrap().from_outside(client, at(to)).unwrap()
}

/// A client port whose connection the ring gives to this backend.
fn port_to(backend: Ip4) -> u16 {
    let is_it = |port: &u16| {
        let client = (Ip4([198, 18, 0, 100]), Port::new(*port));
        let tuple = FlowTuple::new(client, (HERE, Port::new(8080)), protocol::TCP);
        [LOCAL, REMOTE][place(flow_hash(&tuple), 2) as usize] == backend
    };
    (40_000..50_000).find(is_it).unwrap()
}

#[test]
fn a_client_is_led_to_a_task_of_this_node() {
    let (node, port) = (node(), port_to(LOCAL));
    let expected = format!(
        "\
frontend: 198.18.0.11:8080/tcp leads to the ring 0000000000000007 in VNI 4096
ring: place 0 of 2 is 10.0.0.5's
endpoint: 10.0.0.5 in VNI 4096: of this node, interface 1
target port: published 8080 is 80
flow: new: the task sees 198.18.0.100:{port}
=> Sandbox {{ destination: 10.0.0.5:80, interface: \"1\", task: \"\" }}
"
    );
    assert_eq!(text(&from_outside(&node, port, "198.18.0.11:8080")), expected);
}

#[test]
fn a_client_is_led_through_a_tunnel_to_the_other_node() {
    let mut node = node();
    let report = from_outside(&node, port_to(REMOTE), "198.18.0.11:8080");
    let TraceEnd::Tunnel(packet) = report.ways[0].end else { panic!("{report:?}") };
    assert_eq!((packet.to, packet.endpoint), (THERE.into(), REMOTE.into()));

    // The other node: `REMOTE` is its own there.
    node.config.vtep = THERE;
    node.peers = BTreeSet::from([HERE]);
    let arrival = |node: &Fixture| {
        let report = Walk::new(node, protocol::TCP).unwrap().from_tunnel(&packet).unwrap();
        report.ways[0].end.clone()
    };
    assert_eq!(arrival(&node), dropped(ProgramId::MeshUplink, DropReason::UnknownEndpoint));
    let key = EndpointKey { vni: INGRESS, address: REMOTE };
    node.endpoints.insert(key, Endpoint::local(MacAddr::of_endpoint(REMOTE), 3));
    assert_eq!(arrival(&node), dropped(ProgramId::MeshUplink, DropReason::UnpublishedPort));
    let key = TargetPortKey::new(REMOTE, Port::new(8080), protocol::TCP);
    node.targets.insert(key, TargetPort::new(Port::new(80)));
    let there =
        TraceEnd::Sandbox { destination: at("10.0.0.6:80"), interface: "3".into(), task: String::new() };
    assert_eq!(arrival(&node), there);
    let answers = |node: &Fixture| {
        let report = Walk::new(node, protocol::TCP).unwrap().from_tunnel(&packet).unwrap();
        let steps = report.ways[0].steps.iter().filter(|step| step.at == "answers");
        steps.map(|step| step.says.clone()).collect::<Vec<_>>()
    };
    node.owners = [(HERE, HERE)].into();
    assert_eq!(answers(&node), [""; 0]);
    node.targets.insert(key, TargetPort::new(Port::new(80)).with_dsr(true));
    assert_eq!(arrival(&node), there);
    let says = answers(&node).concat();
    assert!(says.starts_with("straight to the client"), "{says}");
    node.owners.insert(packet.source.ip().into(), HERE);
    assert_eq!(answers(&node), ["by the tunnel: the client is a node"]);
    node.peers.clear();
    assert_eq!(arrival(&node), dropped(ProgramId::MeshVxlan, DropReason::UnknownPeer));
}

#[test]
fn what_nobody_serves_is_the_hosts() {
    let mut node = node();
    assert_eq!(from_outside(&node, 1, "198.18.0.11:9").ways[0].end, TraceEnd::Host);
    assert_eq!(from_outside(&node, 1, "127.0.0.1:8080").ways[0].end, TraceEnd::Host);
    node.rings.insert(WEB, Vec::new());
    let report = from_outside(&node, 1, "198.18.0.11:8080");
    assert!(text(&report).ends_with(
        "ring: is absent or has no place\nuplink: nobody serves it: left to the node's stack, as for a closed port\n=> Host\n"
    ));
    node.config = NodeConfig::default();
    assert_eq!(from_outside(&node, 1, "198.18.0.11:8080").ways[0].end, TraceEnd::Host);
}

#[test]
fn a_socket_to_a_virtual_address_has_as_many_ways_as_backends() {
    let node = node();
    let report = Walk::new(&node, protocol::TCP).unwrap().from_task(&task(), at("10.0.1.2:80")).unwrap();
    let ends: Vec<_> = report.ways.iter().map(|way| (way.chance.unwrap(), &way.end)).collect();
    let chance = |places| TraceChance { places, of: 3 };
    let packet = TunnelledPacket {
        from: HERE.into(),
        to: THERE.into(),
        vni: OVERLAY,
        endpoint: overlay(REMOTE).into(),
        source: at("10.0.1.5:40000"),
        destination: at("10.0.1.6:80"),
        protocol: protocol::TCP,
    };
    let here =
        TraceEnd::Sandbox { destination: at("10.0.1.5:80"), interface: "lo".into(), task: String::new() };
    assert_eq!(ends, [(chance(1), &here), (chance(2), &TraceEnd::Tunnel(packet))]);
    assert!(text(&report).starts_with("virtual address: 10.0.1.2 in VNI 4097 leads to the ring"));
}

#[test]
fn sockets_without_backends_are_refused_also_untranslated_ones() {
    let mut node = node();
    node.rings.insert(WEB_OVERLAY, Vec::new());
    let trace = |node: &Fixture, protocol, to: &str| {
        let report = Walk::new(node, protocol).unwrap().from_task(&task(), at(to)).unwrap();
        report.ways[0].end.clone()
    };
    for (protocol, program) in
        [(protocol::TCP, ProgramId::MeshConnect4), (protocol::UDP, ProgramId::MeshSendmsg4)]
    {
        let (program, reason) = names(program, DropReason::NoBackend);
        assert_eq!(trace(&node, protocol, "10.0.1.2:80"), TraceEnd::Refused { program, reason });
    }
    let (program, reason) = names(ProgramId::MeshTask, DropReason::NoBackend);
    let past = TraceEnd::Refused { program, reason };
    assert_eq!(trace(&node, protocol::SCTP, "10.0.1.2:80"), past, "no program is asked");
    node.sandboxes.clear();
    assert_eq!(trace(&node, protocol::TCP, "10.0.1.2:80"), past);
    let nobody = dropped(ProgramId::MeshTask, DropReason::NeighbourUnanswered);
    assert_eq!(trace(&node, protocol::TCP, "10.0.1.77:80"), nobody);
    assert_eq!(trace(&node, protocol::TCP, "203.0.113.9:80"), TraceEnd::Host);
}

/// `node`, with IPv6: a prefix of each network, and an address of each node.
fn node6() -> Fixture {
    let mut node = node();
    for (vni, prefix, subnet) in
        [(INGRESS, "fd00:0:0:1000::", LOCAL), (OVERLAY, "fd00:0:0:1001::", overlay(LOCAL))]
    {
        let [a, b, c, _] = subnet.0;
        let (prefix, subnet) = (ip(prefix), Ip4([a, b, c, 0]));
        node.prefixes6.insert(vni, Prefix6 { prefix, subnet, host_mask: 0xff });
    }
    node.owners.extend([(ip("2001:db8::11"), Ip::UNSPECIFIED), (ip("2001:db8::12"), THERE)]);
    for address in [ip("2001:db8::11"), Ip::LOCALHOST4] {
        let key = FrontendKey::new(address, Port::new(8080), protocol::TCP);
        node.frontends.insert(key, Frontend::new(WEB, Port::new(80)));
    }
    node
}

fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().unwrap().into()
}

#[test]
fn a_client_by_ipv6_needs_a_task_with_ipv6() {
    let mut node = node6();
    node.rings.insert(WEB, vec![LOCAL]);
    let from_outside = |node: &Fixture, to: &str| {
        let walk = Walk::new(node, protocol::TCP).unwrap();
        text(&walk.from_outside(at("[2001:db8::100]:40000"), at(to)).unwrap())
    };
    let served = "\
endpoint: 10.0.0.5 in VNI 4096: of this node, interface 1
target port: published 8080 is 80
flow: new: the task sees [2001:db8::100]:40000
=> Sandbox { destination: [fd00:0:0:1000::5]:80, interface: \"1\", task: \"\" }
";
    let ring = "leads to the ring 0000000000000007 in VNI 4096\nring: place 0 of 1 is 10.0.0.5's\n";
    let own = format!("frontend: [2001:db8::11]:8080/tcp {ring}{served}");
    assert_eq!(from_outside(&node, "[2001:db8::11]:8080"), own);
    let owner = "owner: 2001:db8::12 is node 198.18.0.12's: served as it would";
    let other = format!("{owner}\nfrontend: [2001:db8::12]:8080/tcp {ring}{served}");
    assert_eq!(from_outside(&node, "[2001:db8::12]:8080"), other);
    assert!(from_outside(&node, "[2001:db8::13]:8080").ends_with("=> Host\n"));
    node.prefixes6.clear();
    let end = dropped(ProgramId::MeshUplink, DropReason::NotIp);
    assert!(from_outside(&node, "[2001:db8::11]:8080").ends_with(&format!("=> {end:?}\n")));
}

#[test]
fn a_task_by_ipv6_comes_out_of_the_kernels_device() {
    let mut node = node6();
    let virtual_address = at("[fd00:0:0:1001::2]:80");
    let trace = |node: &Fixture, to| {
        let report = Walk::new(node, protocol::TCP).unwrap().from_task(&task(), to).unwrap();
        (report.ways.last().unwrap().end.clone(), report)
    };
    let (end, report) = trace(&node, virtual_address);
    let TraceEnd::Tunnel(packet) = end else { panic!("{report:?}") };
    assert_eq!((packet.source, packet.endpoint), (at("[fd00:0:0:1001::5]:40000"), overlay(REMOTE).into()));
    assert_eq!(packet.destination, at("[fd00:0:0:1001::6]:80"));

    let mut there = node6();
    (there.config.vtep, there.peers) = (THERE, BTreeSet::from([HERE]));
    let [remote, local] =
        [REMOTE, LOCAL].map(|address| EndpointKey { vni: OVERLAY, address: overlay(address) });
    there.endpoints.insert(remote, Endpoint::local(MacAddr::of_endpoint(remote.address), 3));
    there.endpoints.insert(local, Endpoint::remote(MacAddr::of_endpoint(local.address), HERE));
    let arrival = Walk::new(&there, protocol::TCP).unwrap().from_tunnel(&packet).unwrap();
    let says: Vec<&str> = arrival.ways[0].hops().into_iter().map(|(_, says)| says).collect();
    assert_eq!(says, ["mesh_uplink: passed", "mesh_vxlan: forwarded"]);
    let end = &arrival.ways[0].end;
    assert!(
        matches!(end, TraceEnd::Sandbox { destination, .. } if *destination == packet.destination),
        "{end:?}"
    );

    // Out of a tunnel over IPv6 the uplink's program takes it.
    let here = ip("2001:db8:1::11");
    there.peers.insert(here);
    there.endpoints.insert(local, Endpoint::remote(MacAddr::of_endpoint(local.address), here));
    let over_ipv6 = TunnelledPacket { from: here.into(), ..packet };
    let arrival = Walk::new(&there, protocol::TCP).unwrap().from_tunnel(&over_ipv6).unwrap();
    let says: Vec<&str> = arrival.ways[0].hops().into_iter().map(|(_, says)| says).collect();
    assert_eq!(says, ["mesh_uplink: forwarded"]);
    assert_eq!(&arrival.ways[0].end, end);

    // By its way out, if it has one: the program there sees the packet.
    let behind = Ip4([172, 18, 0, 9]);
    let (mac, flags) = (MacAddr::of_endpoint(behind), ATTACHMENT_WAY_OUT);
    let way_out = Attachment { vni: BRIDGE_VNI, address: LOCAL, mac, flags, ..Attachment::default() };
    node.attachments.insert(9, way_out);
    for (source, is_by_leg) in [("fdaa::9", false), ("fd00:0:0:1000::5", true)] {
        let far_source4 = Some(behind.into());
        let task = TaskOrigin { far_source4, far_source6: source.parse().ok(), ..task() };
        let walk = Walk::new(&node, protocol::TCP).unwrap();
        let way = walk.from_task(&task, at("[2001:db8::77]:80")).unwrap().ways.remove(0);
        let no_route = TraceEnd::NoRoute { program: "mesh_task".to_owned() };
        assert_eq!(way.end, if is_by_leg { no_route } else { TraceEnd::Host }, "{source}");
        let passes = way.hops().iter().any(|(_, says)| *says == "mesh_task: passed");
        assert_eq!(passes, !is_by_leg, "{source}");
    }

    // Without IPv6 in the network nothing has that address: no route of the sandbox leads there but the routing mesh's.
    node.prefixes6.remove(&OVERLAY);
    assert_eq!(trace(&node, virtual_address).0, TraceEnd::NoRoute { program: "mesh_task".to_owned() });
    node.prefixes6 = node6().prefixes6;
    node.prefixes6.remove(&INGRESS);
    let (end, report) = trace(&node, at("[2001:db8::77]:80"));
    assert_eq!(end, TraceEnd::NoRoute { program: "mesh_task".to_owned() });
    assert!(text(&report).contains("attachment: by 10.0.1.5 in VNI 4097"), "{}", text(&report));
    node.prefixes6.clear();
    assert_eq!(trace(&node, virtual_address).0, TraceEnd::Host);
}
