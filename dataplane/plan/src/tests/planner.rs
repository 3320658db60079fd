//! A planner that has made plans before says what one says that begins.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use dataplane_model::kernel_state::{LinkName, RingKey, Singleton};
use dataplane_model::{
    Attachment, Backend, KernelState, NetworkKey, NodeView, Op, Peer, PublishedPort, RemoteEndpoint, Sandbox,
    SandboxId, Service, ServiceKey, Table, Vni,
};
use proptest::prelude::*;

use super::fixture::{APP, INGRESS, NODE_B, NODE_I, WEB, facts, network, sandbox, view};
use crate::{NodeFacts, Planner, plan, steps};

const OTHER: ServiceKey = ServiceKey(0xef01);

/// A change of the view or the machine, as four numbers; any four mean something.
type Step = [u8; 4];

/// Few networks, services, nodes and addresses, so that rows often meet.
fn take(step: Step, view: &mut NodeView, facts: &mut NodeFacts) {
    let [what, a, b, c] = step;
    let network_key = NetworkKey(u128::from(a % 3) + 1);
    let address = Ipv4Addr::new(10, 0, b % 2, 4 + c % 6);
    let vtep = [NODE_I, NODE_B, Ipv4Addr::new(198, 18, 0, 13)][usize::from(b % 3)];
    match what % 16 {
        0..=2 => put_backend(
            view,
            a,
            (network_key, address),
            Backend {
                task_name: "t".into(),
                vtep: vtep.into(),
                ready: c >= 64,
                weight: if c % 4 == 0 { 40 } else { dataplane_model::FULL_WEIGHT },
            },
        ),
        3 | 4 => drop(service(view, a).backends.remove(&(network_key, address))),
        5 | 6 => {
            let row = RemoteEndpoint { vtep: vtep.into(), task_name: "r".into(), aliases: vec![] };
            drop(view.remote_endpoints.insert((network_key, address), row));
        }
        7 | 8 => drop(view.remote_endpoints.remove(&(network_key, address))),
        9 => {
            let (protocol, published) = ([6, 17, 132][usize::from(b % 3)], 8080 + u16::from(c % 2));
            toggle(&mut service(view, a).ingress_ports, PublishedPort { protocol, published, target: 80 });
            service(view, a).dsr = c > 128;
        }
        10 => match service(view, a).vips.insert(network_key, address) {
            Some(_) if c > 128 => drop(service(view, a).vips.remove(&network_key)),
            _ => {}
        },
        11 => drop(view.services.remove(&service_key(a))),
        12 => toggle_row(&mut view.sandboxes, SandboxId(format!("t{}", b % 4)), attached(a, b, c)),
        13 => toggle_row(
            &mut view.peers,
            vtep.into(),
            Peer {
                hostname: "p".into(),
                addresses: vec![IpAddr::V4(vtep)],
                mtu_bytes: (c > 128).then_some(1500),
            },
        ),
        // The third network sometimes has the number of the second.
        14 => toggle_row(
            &mut view.networks,
            network_key,
            network("n", 4096 + u32::from(a % 3).min(u32::from(c % 2) + 1), b % 2),
        ),
        _ => change_machine(view, facts, a),
    }
}

fn change_machine(view: &mut NodeView, facts: &mut NodeFacts, a: u8) {
    match a % 4 {
        0 => view.ingress = if view.ingress.is_none() { Some(INGRESS) } else { None },
        1 => view.vxlan_port ^= 1,
        2 => facts.uplinks.values_mut().for_each(|uplink| uplink.mtu_bytes ^= 64),
        _ => {
            let second = LinkName::new("up1").unwrap();
            if facts.uplinks.remove(&second).is_none() {
                let mut uplink = facts.uplinks.values().next().unwrap().clone();
                uplink.addresses = vec![Ipv4Addr::new(198, 18, 0, 13)];
                facts.uplinks.insert(second, uplink);
            }
        }
    }
}

fn service_key(a: u8) -> ServiceKey {
    [WEB, OTHER][usize::from(a / 4 % 2)]
}

fn service(view: &mut NodeView, a: u8) -> &mut Service {
    let like = Service { name: format!("s{}", a / 4 % 2), ..super::fixture::view().services[&WEB].clone() };
    view.services.entry(service_key(a)).or_insert(like)
}

fn put_backend(view: &mut NodeView, a: u8, key: (NetworkKey, Ipv4Addr), backend: Backend) {
    service(view, a).backends.insert(key, backend);
}

fn attached(a: u8, b: u8, c: u8) -> Sandbox {
    let attachment = |network, third| Attachment {
        network,
        address: Ipv4Addr::new(10, 0, third, 4 + c % 6),
        aliases: vec![],
    };
    let mut row = sandbox(4 + b % 4).1;
    row.attachments = vec![attachment(INGRESS, 0), attachment(APP, 1)];
    row.attachments.truncate(usize::from(a % 3));
    row.host_ports =
        if c > 200 { vec![PublishedPort { protocol: 6, published: 9000, target: 90 }] } else { vec![] };
    row
}

fn toggle(ports: &mut Vec<PublishedPort>, port: PublishedPort) {
    let n_ports = ports.len();
    ports.retain(|held| *held != port);
    if ports.len() == n_ports {
        ports.push(port);
    }
}

fn toggle_row<K: Ord + Clone, V: Clone + PartialEq>(table: &mut Table<K, V>, key: K, row: V) {
    if table.get(&key) == Some(&row) {
        table.remove(&key);
    } else {
        table.insert(key, row);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// State, problems and reasons are those of a plan from nothing, and so are the steps between two plans, though these
    /// share their rows.
    #[test]
    fn after_any_changes_it_plans_as_from_nothing(changes in prop::collection::vec(any::<Step>(), 1..50)) {
        let (mut view, mut facts) = (view(), facts());
        let mut planner = Planner::default();
        let (mut held, mut held_alone) = (KernelState::default(), KernelState::default());
        for change in changes {
            take(change, &mut view, &mut facts);
            let planned = planner.plan(&view, &facts).unwrap();
            let alone = plan(&view, &facts).unwrap();
            prop_assert_eq!(planned.state.to_string(), alone.state.to_string());
            prop_assert!(planned == alone);
            prop_assert_eq!(steps(&held, &planned.state), steps(&held_alone, &alone.state));
            (held, held_alone) = (planned.state, alone.state);
        }
    }

    /// The steps lead from any plan to any other; what hung on the links of a sandbox that is made anew goes one pass later.
    #[test]
    fn the_steps_end_in_the_plan(changes in prop::collection::vec(any::<Step>(), 1..40)) {
        let (mut view, mut facts) = (view(), facts());
        let mut planner = Planner::default();
        let mut held = KernelState::default();
        for change in changes {
            take(change, &mut view, &mut facts);
            let wanted = planner.plan(&view, &facts).unwrap().state;
            for _ in 0..2 {
                for step in steps(&held, &wanted) {
                    held.record(&step);
                }
            }
            prop_assert_eq!(held.to_string(), wanted.to_string());
            prop_assert!(held == wanted);
        }
    }
}

/// A view with many services beside `web`, none of which has a backend that `web` has.
fn crowded() -> NodeView {
    let mut view = view();
    for n in 0..200_u8 {
        let address = Ipv4Addr::new(10, 0, 0, 30 + n);
        let mut service = view.services[&WEB].clone();
        service.ingress_ports =
            vec![PublishedPort { protocol: 6, published: 10_000 + u16::from(n), target: 80 }];
        service.vips.clear();
        let backend = Backend {
            task_name: "t".into(),
            vtep: NODE_B.into(),
            ready: true,
            weight: dataplane_model::FULL_WEIGHT,
        };
        service.backends = [((INGRESS, address), backend)].into();
        view.services.insert(ServiceKey(u128::from(n)), service);
        let row = RemoteEndpoint { vtep: NODE_B.into(), task_name: "t".into(), aliases: vec![] };
        view.remote_endpoints.insert((INGRESS, address), row);
    }
    view
}

#[test]
fn what_does_not_change_is_neither_planned_nor_copied() {
    let (mut view, facts) = (crowded(), facts());
    let mut planner = Planner::default();
    let before = planner.plan(&view, &facts).unwrap().state;
    let web = view.services.get_mut(&WEB).unwrap();
    web.backends.get_mut(&(INGRESS, Ipv4Addr::new(10, 0, 0, 6))).unwrap().ready = false;

    let after = planner.plan(&view, &facts).unwrap().state;

    // The ring, and the endpoint that no longer serves; whole tables are the same ones.
    assert_eq!(steps(&before, &after).len(), 2);
    assert!(before.frontends.ptr_eq(&after.frontends) && before.vips.ptr_eq(&after.vips));
    assert!(before.owners.ptr_eq(&after.owners) && before.hooks.ptr_eq(&after.hooks));
    assert!(before.sandboxes.ptr_eq(&after.sandboxes));
}

#[test]
fn a_step_of_a_slow_start_is_one_ring() {
    let (mut view, facts) = (crowded(), facts());
    let mut planner = Planner::default();
    let mut before = planner.plan(&view, &facts).unwrap().state;
    for weight in [10, 20, 40, 60, 80, 100] {
        let web = view.services.get_mut(&WEB).unwrap();
        web.backends.get_mut(&(INGRESS, Ipv4Addr::new(10, 0, 0, 6))).unwrap().weight = weight;

        let after = planner.plan(&view, &facts).unwrap().state;

        let ops = steps(&before, &after);
        assert!(matches!(ops[..], [Op::Ring(_)]), "{ops:?}");
        assert!(before.endpoints.ptr_eq(&after.endpoints) && before.frontends.ptr_eq(&after.frontends));
        before = after;
    }
}

#[test]
fn rings_are_kept_when_all_else_is_planned_again() {
    let (view, facts) = (crowded(), facts());
    let mut planner = Planner::default();
    let before = planner.plan(&view, &facts).unwrap().state;

    let after = planner.plan_whole(&view, &facts).unwrap().state;

    let key = RingKey::of(WEB, Vni::new(4096).unwrap());
    assert!(Arc::ptr_eq(&before.rings[&key].0, &after.rings[&key].0));
    assert_eq!(before, after);
}

/// The filter's set is made anew when it is another, not when a backend or a sandbox is.
#[test]
fn tasks_reach_what_is_published() {
    let port = |protocol, published, target| PublishedPort { protocol, published, target };
    let mut planner = Planner::default();
    let mut targets = |view: &NodeView| {
        let plan = planner.plan(view, &facts()).unwrap();
        Arc::clone(&plan.state.filter[&Singleton].targets)
    };
    let mut view = view();
    let first = targets(&view);
    assert_eq!(*first, [(6, 80)].into());

    view.sandboxes.extend([sandbox(7)]);
    view.services.get_mut(&WEB).unwrap().backends.remove(&(INGRESS, Ipv4Addr::new(10, 0, 0, 6)));
    assert!(Arc::ptr_eq(&targets(&view), &first), "it was made again");

    let other = Service {
        name: "other".into(),
        ingress_ports: vec![port(6, 8081, 80), port(17, 53, 5353), port(33, 9, 9)],
        ..view.services[&WEB].clone()
    };
    view.services.insert(OTHER, other);
    assert_eq!(*targets(&view), [(6, 80), (17, 5353)].into());
    view.services.get_mut(&WEB).unwrap().ingress_ports = vec![port(6, 8080, 81)];
    assert_eq!(*targets(&view), [(6, 80), (6, 81), (17, 5353)].into());
    view.services.remove(&OTHER);
    assert_eq!(*targets(&view), [(6, 81)].into());
}

#[test]
fn a_planner_outlives_a_view_that_it_cannot_plan() {
    let (view, facts) = (view(), facts());
    let mut planner = Planner::default();
    let before = planner.plan(&view, &facts).unwrap();
    let lost = NodeView { vtep: Ipv4Addr::new(192, 0, 2, 1).into(), ..view.clone() };

    assert!(planner.plan(&lost, &facts).is_err());

    assert_eq!(planner.plan(&view, &facts).unwrap(), before);
}
