//! Single rules of planning.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_model::kernel_state::{AttachmentRole, Device, LinkName, Owner, Place, RingKey, Singleton};
use dataplane_model::{KernelState, NetworkKey, NodeView, Peer, PublishedPort, SandboxId, Table, Vni};
use ebpf_abi::limits::BRIDGE_VNI;
use ipnetwork::{IpNetwork, Ipv6Network};

use super::fixture::{APP, HTTP, INGRESS, NODE_B, NODE_I, WEB, facts, sandbox, view};
use crate::facts::{Forwarding6, NodeFacts};
use crate::{Plan, PlanError, plan};

fn planned(view: &NodeView, facts: &NodeFacts) -> Plan {
    plan(view, facts).unwrap()
}

fn ingress_ring(state: &KernelState) -> BTreeSet<Ipv4Addr> {
    let key = RingKey::of(WEB, Vni::new(4096).unwrap());
    state.rings[&key].0.iter().copied().collect()
}

fn set_ready(view: &mut NodeView, last_octet: u8, ready: bool) {
    let service = view.services.get_mut(&WEB).unwrap();
    for ((_, address), backend) in &mut service.backends {
        if address.octets()[3] == last_octet {
            backend.ready = ready;
        }
    }
}

#[test]
fn backends_that_are_not_ready_leave_the_ring() {
    let mut view = view();
    set_ready(&mut view, 6, false);

    assert_eq!(ingress_ring(&planned(&view, &facts()).state), BTreeSet::from([Ipv4Addr::new(10, 0, 0, 5)]));
}

/// Of 1,000 new flows, how many a backend gets in the network.
fn share_permille(state: &KernelState, vni: u32, last_octet: u8) -> usize {
    let ring = &state.rings[&RingKey::of(WEB, Vni::new(vni).unwrap())].0;
    ring.iter().filter(|address| address.octets()[3] == last_octet).count() * 1000 / ring.len()
}

#[test]
fn a_backend_that_starts_slowly_has_a_share_as_its_weight_says() {
    let mut view = view();
    for (weight, permille) in [(10, 91), (20, 167), (40, 286), (60, 375), (80, 444), (100, 500)] {
        let backends = &mut view.services.get_mut(&WEB).unwrap().backends;
        for ((_, address), backend) in backends {
            if address.octets()[3] == 6 {
                backend.weight = weight;
            }
        }
        let state = planned(&view, &facts()).state;
        // Of the ring of published ports, and of the virtual address: within a place of 251.
        for vni in [4096, 4097] {
            let share = share_permille(&state, vni, 6);
            assert!(share.abs_diff(permille) <= 5, "{share} in {vni}, weight {weight}");
        }
    }
}

#[test]
fn backends_that_start_together_share_alike_and_one_alone_has_all() {
    let mut view = view();
    let even = ring_lengths(&planned(&view, &facts()).state);
    view.services.get_mut(&WEB).unwrap().backends.values_mut().for_each(|backend| backend.weight = 10);
    assert_eq!(ring_lengths(&planned(&view, &facts()).state), even);
    set_ready(&mut view, 5, false);
    assert_eq!(share_permille(&planned(&view, &facts()).state, 4096, 6), 1000);
}

/// Places by backend, of the ring of published ports.
fn ring_lengths(state: &KernelState) -> BTreeMap<Ipv4Addr, usize> {
    let mut lengths = BTreeMap::new();
    for address in state.rings[&RingKey::of(WEB, Vni::new(4096).unwrap())].0.iter() {
        *lengths.entry(*address).or_default() += 1;
    }
    lengths
}

#[test]
fn the_last_backends_stay_though_none_is_ready() {
    let mut view = view();
    set_ready(&mut view, 5, false);
    set_ready(&mut view, 6, false);

    let both = BTreeSet::from([Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::new(10, 0, 0, 6)]);
    assert_eq!(ingress_ring(&planned(&view, &facts()).state), both);
}

/// The last octets of the endpoints of the routing mesh that may get new flows.
fn serving(state: &KernelState) -> BTreeSet<u8> {
    let of_mesh = state.endpoints.iter().filter(|(key, _)| key.vni.get() == 4096);
    of_mesh.filter(|(_, endpoint)| endpoint.serves).map(|(key, _)| key.address.octets()[3]).collect()
}

#[test]
fn endpoints_serve_while_a_ring_holds_them() {
    let mut view = view();
    let both = planned(&view, &facts()).state;
    set_ready(&mut view, 6, false);
    let drained = planned(&view, &facts()).state;
    set_ready(&mut view, 5, false);
    let none_ready = planned(&view, &facts()).state;
    view.services.get_mut(&WEB).unwrap().ingress_ports.clear();
    let unpublished = planned(&view, &facts()).state;

    assert_eq!(serving(&both), BTreeSet::from([5, 6]));
    assert_eq!(serving(&drained), BTreeSet::from([5]));
    assert_eq!(serving(&none_ready), BTreeSet::from([5, 6]));
    assert_eq!(serving(&unpublished), BTreeSet::new());
    // The row goes before the ring, and stays: connections go on.
    let steps: Vec<String> = crate::steps(&both, &drained).iter().map(ToString::to_string).collect();
    assert_eq!(steps[0], "+ endpoints 4096/10.0.0.6 02:42:0a:00:00:06 node 198.18.0.12");
}

#[test]
fn the_ports_of_a_service_say_that_answers_go_straight_to_clients() {
    let mut view = view();
    let by_tunnel = planned(&view, &facts()).state;
    view.services.get_mut(&WEB).unwrap().dsr = true;
    let direct = planned(&view, &facts()).state;
    assert!(by_tunnel.ports.values().all(|port| !port.dsr));
    let steps: Vec<String> = crate::steps(&by_tunnel, &direct).iter().map(ToString::to_string).collect();
    assert_eq!(steps, ["+ ports 10.0.0.5 tcp/8080 80 dsr"]);
}

#[test]
fn a_backend_without_endpoint_is_not_in_the_ring() {
    let mut view = view();
    view.remote_endpoints.clear();

    assert_eq!(ingress_ring(&planned(&view, &facts()).state), BTreeSet::from([Ipv4Addr::new(10, 0, 0, 5)]));
}

#[test]
fn all_rings_are_the_same_on_both_nodes() {
    let here = view();
    let mut there = view();
    let (id, _) = sandbox(5);
    there.vtep = NODE_B.into();
    there.sandboxes = Table::from_iter([sandbox(6)]);
    there.remote_endpoints.clear();
    for (key, address) in [(INGRESS, Ipv4Addr::new(10, 0, 0, 5)), (APP, Ipv4Addr::new(10, 0, 1, 5))] {
        let endpoint =
            dataplane_model::RemoteEndpoint { vtep: NODE_I.into(), task_name: id.0.clone(), aliases: vec![] };
        there.remote_endpoints.insert((key, address), endpoint);
    }
    let mut their_facts = facts();
    their_facts.uplinks.values_mut().for_each(|uplink| uplink.addresses = vec![NODE_B]);

    assert_eq!(planned(&here, &facts()).state.rings, planned(&there, &their_facts).state.rings);
}

#[test]
fn mtu_follows_the_underlay_and_never_exceeds_it() {
    let mut view = view();
    view.networks.get_mut(&APP).unwrap().mtu_bytes = Some(1400);
    view.networks.get_mut(&INGRESS).unwrap().mtu_bytes = Some(9000);

    let state = planned(&view, &facts()).state;

    let mtus: Vec<u32> = state.sandboxes[&sandbox(5).0].legs.iter().map(|leg| leg.mtu_bytes).collect();
    assert_eq!(mtus, [1450, 1400, 1500]);
}

#[test]
fn the_tunnels_use_the_cluster_s_port() {
    let mut view = view();
    view.vxlan_port = 5789;

    let state = planned(&view, &facts()).state;

    assert_eq!(state.devices[&LinkName::vxlan()].to_string(), "vxlan port 5789 mtu 1450");
    assert_eq!((state.settings[&Singleton].vxlan_port, state.filter[&Singleton].tunnel_port), (5789, 5789));
}

/// The fixture, with an IPv6 prefix for `app` alone and for the ingress network.
fn dual_stack_view() -> NodeView {
    let mut view = view();
    view.networks.get_mut(&APP).unwrap().subnet6 = Some("fd00:1::/64".parse().unwrap());
    view.networks.get_mut(&INGRESS).unwrap().subnet6 = Some("fd00::/64".parse().unwrap());
    view
}

fn ipv6_sides(state: &KernelState) -> Vec<String> {
    let legs = &state.sandboxes[&sandbox(5).0].legs;
    let side = |leg: &dataplane_model::kernel_state::Leg| {
        let side = leg.ipv6?;
        Some(format!("{} {} via {} default {}", leg.name, side.address, side.gateway, side.default_route))
    };
    legs.iter().filter(|leg| leg.bridge.is_none()).filter_map(side).collect()
}

#[test]
fn a_leg_has_its_host_number_in_ipv6_too() {
    let planned = planned(&dual_stack_view(), &facts());

    assert_eq!(
        ipv6_sides(&planned.state),
        ["eth0 fd00::5/64 via fd00::1 default true", "eth1 fd00:1::5/64 via fd00:1::1 default false"]
    );
    assert_eq!(planned.problems, Vec::<String>::new());
}

#[test]
fn the_node_reaches_the_ingress_network_over_ipv6_if_it_has_an_address() {
    let mut facts = facts();
    let subnet6: IpNetwork = "fd00::/64".parse().unwrap();
    let without = planned(&dual_stack_view(), &facts).state;
    facts.uplinks.values_mut().for_each(|uplink| {
        uplink.addresses6 = ["2001:db8::12", "2001:db8::11"].map(|address| address.parse().unwrap()).into();
    });
    let with = planned(&dual_stack_view(), &facts).state;

    assert!(!without.routes.contains_key(&subnet6));
    assert_eq!(with.routes[&subnet6].to_string(), "dev mesh-vx src 2001:db8::11");
    assert_eq!(with.routes.len(), 2);
}

#[test]
fn what_cannot_carry_ipv6_says_so_and_carries_ipv4() {
    let mut small = facts();
    small.uplinks.values_mut().for_each(|uplink| uplink.mtu_bytes = 1280 + 49);
    let none = NodeFacts { has_ipv6: false, ..facts() };
    let mut asked = dual_stack_view();
    asked.networks.get_mut(&APP).unwrap().mtu_bytes = Some(1279);

    let (small, none, asked) =
        (planned(&dual_stack_view(), &small), planned(&dual_stack_view(), &none), planned(&asked, &facts()));

    for planned in [&small, &none] {
        assert_eq!(ipv6_sides(&planned.state), Vec::<String>::new());
        assert_eq!(planned.problems.len(), 2, "{:?}", planned.problems);
        assert!(planned.refused.is_empty());
    }
    assert!(small.problems[0].contains("may have 1279 bytes, and 1280 is the least"), "{:?}", small.problems);
    assert_eq!(ipv6_sides(&asked.state).len(), 1, "the ingress network");
}

#[test]
fn peers_rows_say_what_their_underlays_take() {
    let said = |mtu_bytes| {
        let mut view = view();
        view.peers.get_mut(&IpAddr::V4(NODE_B)).unwrap().mtu_bytes = mtu_bytes;
        let peers = planned(&view, &facts()).state.peers;
        peers.get(&IpAddr::V4(NODE_B)).unwrap().to_string()
    };
    assert_eq!([None, Some(1500)].map(said), ["", "mtu 1500"]);
}

/// Without an IPv4 address, and with one of which the tunnels know nothing.
#[test]
fn a_node_of_ipv6_tunnels_there_and_needs_no_ipv4_address() {
    let (vtep, peer): (Ipv6Addr, Ipv6Addr) = ("fd00::11".parse().unwrap(), "fd00::12".parse().unwrap());
    let mut view = dual_stack_view();
    view.vtep = vtep.into();
    let other = view.peers.remove(&IpAddr::V4(NODE_B)).unwrap();
    view.peers.insert(peer.into(), other);
    for (address, mtu_bytes) in [(None, 1500), (Some(NODE_I), 1500), (None, 1280 + 69)] {
        let mut facts = facts();
        for uplink in facts.uplinks.values_mut() {
            (uplink.addresses, uplink.addresses6) = (address.into_iter().collect(), vec![vtep]);
            uplink.mtu_bytes = mtu_bytes;
        }

        let Plan { state, problems, .. } = planned(&view, &facts);

        let vxlan = Device::Vxlan { port: 4789, mtu_bytes: mtu_bytes - 70, over_ipv6: true };
        assert_eq!(state.devices[&LinkName::vxlan()], vxlan);
        assert_eq!(state.settings[&Singleton].vtep, IpAddr::V6(vtep));
        assert_eq!(state.filter[&Singleton].node, address);
        let sources = state.routes.values().map(|route| route.source);
        let carries_ipv6 = mtu_bytes >= 1280 + 70;
        let expected: Vec<IpAddr> =
            address.map(IpAddr::V4).into_iter().chain(carries_ipv6.then_some(vtep.into())).collect();
        assert_eq!(sources.collect::<Vec<_>>(), expected);
        assert_eq!(problems.is_empty(), carries_ipv6, "{problems:?}");
        assert_eq!(state.owners[&IpAddr::V6(peer)], Owner::Node(peer.into()));
    }
}

#[test]
fn an_address_held_here_is_here() {
    let mut view = view();
    let moved = Ipv4Addr::new(198, 18, 0, 50);
    view.peers.get_mut(&IpAddr::V4(NODE_B)).unwrap().addresses.push(moved.into());
    let mut facts = facts();
    facts.uplinks.values_mut().for_each(|uplink| uplink.addresses.push(moved));

    let state = planned(&view, &facts).state;

    assert_eq!(state.owners[&IpAddr::from(moved)], Owner::ThisNode);
    assert_eq!(state.owners[&IpAddr::from(NODE_B)], Owner::Node(NODE_B.into()));
    assert!(state.frontends.keys().any(|key| key.address == moved && key.port == 8080));
}

#[test]
fn a_tunnels_end_that_another_node_has_taken_over_is_that_nodes() {
    for heir in [[198, 18, 0, 1], [198, 18, 0, 250]].map(Ipv4Addr::from) {
        let mut view = view();
        view.peers.get_mut(&IpAddr::V4(NODE_B)).unwrap().addresses.clear();
        let addresses = vec![heir.into(), NODE_B.into()];
        view.peers.insert(heir.into(), Peer { hostname: "heir".into(), addresses, mtu_bytes: None });

        let owners = planned(&view, &facts()).state.owners;

        assert_eq!(
            (owners[&IpAddr::from(NODE_B)], owners[&IpAddr::from(heir)]),
            (Owner::Node(heir.into()), Owner::Node(heir.into()))
        );
    }
}

#[test]
fn a_sandbox_here_wins_over_a_remote_endpoint_with_its_address() {
    let mut view = view();
    let stale = view.remote_endpoints.values().next().unwrap().clone();
    view.remote_endpoints.insert((INGRESS, Ipv4Addr::new(10, 0, 0, 5)), stale);

    let state = planned(&view, &facts()).state;

    let mine = state.endpoints.iter().find(|(key, _)| key.address == Ipv4Addr::new(10, 0, 0, 5)).unwrap().1;
    assert!(matches!(mine.place, Place::Local(_)));
}

#[test]
fn gateway_addresses_are_kept_and_never_shared() {
    let mut view = view();
    view.sandboxes.extend((10..60).map(sandbox));
    let first = planned(&view, &facts()).state;
    let legs = |state: &KernelState| -> Vec<(SandboxId, Ipv4Addr)> {
        let gateway = |net: &dataplane_model::kernel_state::SandboxNet| net.legs[2].address.ip();
        state.sandboxes.iter().map(|(id, net)| (id.clone(), gateway(net))).collect()
    };
    let mut facts = facts();
    facts.gateway_addresses = legs(&first).into_iter().collect();
    view.sandboxes.extend((60..90).map(sandbox));

    let second = planned(&view, &facts).state;

    let addresses: BTreeSet<Ipv4Addr> = legs(&second).into_iter().map(|(_, address)| address).collect();
    assert_eq!(addresses.len(), second.sandboxes.len());
    for (id, address) in legs(&first) {
        assert_eq!(second.sandboxes[&id].legs[2].address.ip(), address);
    }
}

#[test]
fn a_full_gateway_subnet_refuses_the_next_sandbox() {
    let mut view = view();
    view.sandboxes.extend((10..17).map(sandbox));
    let mut facts = facts();
    facts.gateway_subnet = "172.18.0.0/29".parse().unwrap();

    let planned = planned(&view, &facts);

    assert_eq!(planned.state.sandboxes.len(), 5);
    assert_eq!(planned.refused.len(), 3);
}

#[test]
fn the_gateway_subnet_makes_way_for_nodes_and_networks() {
    let mut view = view();
    view.peers.get_mut(&IpAddr::V4(NODE_B)).unwrap().addresses.push("172.18.3.4".parse().unwrap());
    view.networks.get_mut(&APP).unwrap().subnet = "172.19.7.0/24".parse().unwrap();
    let mut facts = facts();
    facts.uplinks.values_mut().for_each(|uplink| uplink.addresses.push(Ipv4Addr::new(172, 20, 0, 9)));

    let state = planned(&view, &facts).state;

    assert_eq!(state.filter[&Singleton].subnet, "172.21.0.0/16".parse().unwrap());
    assert_eq!(state.sandboxes[&sandbox(5).0].legs[2].gateway, Ipv4Addr::new(172, 21, 0, 1));
}

/// The IPv6 prefix behind the gateway bridge, as each part of the state that has it says.
fn gateway_prefix6(state: &KernelState) -> Option<Ipv6Network> {
    let prefix = state.filter[&Singleton].subnet6;
    let Device::Bridge { address6, .. } = state.devices[&LinkName::gateway_bridge()] else { panic!() };
    let side = state.sandboxes[&sandbox(5).0].legs[2].ipv6;
    let first = prefix.map(|prefix| Ipv6Addr::from(prefix.network().to_bits() + 1));
    assert_eq!((address6.map(|own| own.ip()), side.map(|side| side.gateway)), (first, first));
    if let Some((prefix, side)) = prefix.zip(side) {
        assert!(prefix.prefix() == 64 && prefix.contains(side.address.ip()));
        assert!(prefix.network().is_unique_local(), "{prefix}");
    }
    prefix
}

#[test]
fn the_gateway_prefix_makes_way_for_nodes_and_networks() {
    let free = gateway_prefix6(&planned(&view(), &facts()).state).unwrap();
    let (mut taken, mut found) = (view(), vec![free]);
    taken.networks.get_mut(&APP).unwrap().subnet6 = Some(free);
    found.extend(gateway_prefix6(&planned(&taken, &facts()).state));
    let others = &mut taken.peers.get_mut(&IpAddr::V4(NODE_B)).unwrap().addresses;
    others.push(Ipv6Addr::from(found[1].network().to_bits() + 7).into());
    found.extend(gateway_prefix6(&planned(&taken, &facts()).state));
    let mut held = facts();
    held.uplinks
        .values_mut()
        .for_each(|uplink| uplink.addresses6 = vec![Ipv6Addr::from(found[2].network().to_bits() + 7)]);
    found.extend(gateway_prefix6(&planned(&taken, &held).state));

    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 4, "{found:?}");
}

#[test]
fn ipv6_is_forwarded_as_the_host_lets_us() {
    let mut view = view();
    view.sandboxes.get_mut(&sandbox(5).0).unwrap().host_ports.push(HTTP);
    let with = |forwarding6: Forwarding6| {
        let mut facts = NodeFacts { forwarding6, ..facts() };
        facts
            .uplinks
            .values_mut()
            .for_each(|uplink| uplink.addresses6 = vec!["2001:db8::11".parse().unwrap()]);
        planned(&view, &facts)
    };
    let (off, ours, host) = (with(Forwarding6::Off), with(Forwarding6::ByInterface), with(Forwarding6::Host));

    let links =
        |names: &[&str]| -> Vec<LinkName> { names.iter().filter_map(|name| LinkName::new(name)).collect() };
    let guarded =
        |plan: &Plan| -> Vec<LinkName> { plan.state.filter[&Singleton].guarded6.iter().cloned().collect() };
    let forwarding = |plan: &Plan| -> Vec<LinkName> { plan.state.forwarding6.keys().cloned().collect() };
    assert_eq!(forwarding(&ours), links(&["docker_gwbridge", "up0"]));
    assert_eq!(guarded(&ours), links(&["mesh-vx", "up0"]));
    assert!(gateway_prefix6(&ours.state).is_some() && gateway_prefix6(&host.state).is_some());
    assert_eq!((forwarding(&host), guarded(&host)), (vec![], links(&["mesh-vx"])));
    assert_eq!((forwarding(&off), gateway_prefix6(&off.state)), (vec![], None));
    assert!(ours.problems.is_empty() && host.problems.is_empty());
    assert!(off.problems[0].contains("answer by IPv4 alone"), "{:?}", off.problems);
}

#[test]
fn tasks_have_a_way_out_by_ipv6_where_their_node_has_one() {
    let leads_out = |egress: bool, facts: &NodeFacts| {
        let mut view = view();
        let sandbox = view.sandboxes.get_mut(&sandbox(5).0).unwrap();
        (sandbox.egress, sandbox.host_ports) = (egress, vec![HTTP]);
        planned(&view, facts).state.sandboxes.values().next().unwrap().legs[2]
            .ipv6
            .map(|side| side.default_route)
    };
    let none = NodeFacts { has_way_out6: false, ..facts() };
    let off = NodeFacts { forwarding6: Forwarding6::Off, ..facts() };

    assert_eq!(leads_out(true, &facts()), Some(true));
    assert_eq!(leads_out(true, &none), Some(false), "its ports answer who is there");
    assert_eq!(leads_out(false, &facts()), Some(false), "internal networks");
    assert_eq!(leads_out(true, &off), None);
}

#[test]
fn a_task_of_internal_networks_has_no_way_out() {
    let mut view = view();
    let (id, _) = sandbox(5);
    let sandbox = view.sandboxes.get_mut(&id).unwrap();
    sandbox.egress = false;

    let without_ports = planned(&view, &facts()).state;
    view.sandboxes.get_mut(&id).unwrap().host_ports.push(HTTP);
    let with_ports = planned(&view, &facts()).state;

    assert_eq!(without_ports.sandboxes[&id].legs.len(), 2);
    let leg = &with_ports.sandboxes[&id].legs[2];
    assert!(!leg.default_route);
    assert_eq!(with_ports.filter[&Singleton].no_egress, BTreeSet::from([leg.address.ip()]));
    // The program there knows who it is: to clients of published ports, or to nobody but the bridge.
    let row = with_ports.attachments[&leg.host];
    assert_eq!((row.vni.get(), row.mac, row.role), (BRIDGE_VNI, leg.mac, AttachmentRole::WayOut));
    assert_eq!(row.address.ip(), Ipv4Addr::new(10, 0, 0, 5));
    view.sandboxes.get_mut(&id).unwrap().attachments.remove(0);
    let elsewhere = planned(&view, &facts()).state;
    let leg = elsewhere.sandboxes[&id].legs.last().unwrap();
    assert_eq!(elsewhere.attachments[&leg.host].address, leg.address);
    assert_eq!(with_ports.filter[&Singleton].host_ports[&(6, 8080)], (leg.address.ip(), 80));
}

#[test]
fn what_the_kernel_cannot_do_is_refused_by_name() {
    let mut view = view();
    view.services.get_mut(&WEB).unwrap().ingress_ports.push(PublishedPort {
        protocol: 33,
        published: 9,
        target: 9,
    });
    let (id, mut lost) = sandbox(7);
    lost.attachments[0].network = NetworkKey(99);
    view.sandboxes.insert(id.clone(), lost);

    let planned = planned(&view, &facts());

    assert!(planned.problems[0].contains("protocol 33"), "{:?}", planned.problems);
    assert!(planned.refused[&id].contains("unknown network"), "{:?}", planned.refused);
    assert!(!planned.state.sandboxes.contains_key(&id));
}

#[test]
fn each_protocol_of_the_routing_mesh_has_its_rows() {
    for protocol in [6, 17, 132] {
        let mut view = view();
        let ports = &mut view.services.get_mut(&WEB).unwrap().ingress_ports;
        *ports = vec![PublishedPort { protocol, published: 9999, target: 7 }];

        let Plan { state, problems, .. } = planned(&view, &facts());

        assert_eq!(problems, [""; 0]);
        assert!(state.frontends.keys().any(|key| (key.protocol, key.port) == (protocol, 9999)));
        assert!(state.ports.keys().any(|key| (key.protocol, key.published) == (protocol, 9999)));
    }
}

#[test]
fn the_nodes_own_network_is_not_taken_from_it() {
    let view = view();
    let subnet = IpNetwork::from(view.networks[&INGRESS].subnet);
    assert!(planned(&view, &facts()).state.routes.contains_key(&subnet));
    for own in ["10.0.0.0/24", "10.0.0.0/16", "10.0.0.128/25"] {
        let own: IpNetwork = own.parse().unwrap();
        let facts = NodeFacts { connected: [own].into(), ..facts() };

        let Plan { state, problems, .. } = planned(&view, &facts);

        assert!(!state.routes.contains_key(&subnet), "{own}");
        assert!(problems.iter().any(|problem| problem.contains(&own.to_string())), "{problems:?}");
        assert!(!state.frontends.is_empty());
    }
}

#[test]
fn no_interface_with_the_tunnel_end_is_an_error() {
    let mut view = view();
    view.vtep = Ipv4Addr::new(192, 0, 2, 1).into();

    let refused = plan(&view, &facts());

    assert_eq!(refused, Err(PlanError::NoUplink { vtep: view.vtep }));
}
