//! What others break in a node's kernel: `verify` finds each, and the driver puts it right. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "two_nodes uses the rest")]
mod lab;

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dataplane_driver::VerifyError;
use dataplane_kernel::bpf::{PinDir, Tables};
use dataplane_model::inspect::{Difference, VerifyReport};
use ebpf_abi::{Ip, Ip4};
use lab::seam::Say;
use lab::{Lab, NODE_A, NODE_B, Node, ask_tcp, serve_tcp, view};

/// Something that another program may do to the node, and the row that is not as it should be then.
struct Sabotage {
    table: &'static str,
    /// Part of the row's key.
    key: &'static str,
    harm: &'static dyn Fn(&Node),
}

/// One row of each map goes.
const REMOVED: &[Sabotage] = &[
    broken("settings", "-", &|node| {
        tables(node, |tables| {
            let mut row = tables.config.get().unwrap();
            row.vtep = Ip::UNSPECIFIED;
            tables.config.set(&row).unwrap();
        });
    }),
    broken("peers", "198.18.0.12", &|node| {
        tables(node, |tables| tables.peers.remove(&Ip4::from(NODE_B).into()).unwrap());
    }),
    broken("owners", "198.18.0.12", &|node| {
        tables(node, |tables| tables.address_owners.remove(&IpAddr::V4(NODE_B).into()).unwrap());
    }),
    broken("endpoints", "4097/10.0.1.6", &|node| {
        tables(node, |tables| {
            let rows = tables.endpoints.rows().unwrap();
            let (key, _) = rows.iter().find(|(key, _)| key.address == view::app(6).into()).unwrap();
            tables.endpoints.remove(key).unwrap();
        });
    }),
    broken("ports", "10.0.0.5 tcp/8080", &|node| {
        tables(node, |tables| {
            let rows = tables.target_ports.rows().unwrap();
            let (key, _) =
                rows.iter().find(|(key, _)| key.published.get() == 8080 && key.protocol == 6).unwrap();
            tables.target_ports.remove(key).unwrap();
        });
    }),
    broken("cookies", "task5", &|node| {
        tables(node, |tables| {
            let cookie = *tables.sandboxes.rows().unwrap().first_key_value().unwrap().0;
            tables.sandboxes.remove(&cookie).unwrap();
        });
    }),
    broken("rings", "0000000000000007/4096", &|node| {
        tables(node, |tables| {
            let key = ring(tables, 4096);
            tables.rings.remove(&key).unwrap();
        });
    }),
    broken("vips", "4097/10.0.1.2", &|node| {
        tables(node, |tables| {
            let key = *tables.vips.rows().unwrap().first_key_value().unwrap().0;
            tables.vips.remove(&key).unwrap();
        });
    }),
    broken("frontends", "198.18.0.11:8080/tcp", &|node| {
        tables(node, |tables| {
            let key = frontend(tables);
            tables.frontends.remove(&key).unwrap();
        });
    }),
    broken("attachments", "mv", &|node| {
        tables(node, |tables| {
            let index = *tables.attachments.rows().unwrap().first_key_value().unwrap().0;
            tables.attachments.remove(&index).unwrap();
        });
    }),
];

/// One row of each map says something else, or is one too many.
const ALTERED: &[Sabotage] = &[
    broken("settings", "-", &|node| {
        tables(node, |tables| {
            let mut row = tables.config.get().unwrap();
            row.uplink_mtu = 576;
            tables.config.set(&row).unwrap();
        });
    }),
    broken("peers", "198.18.0.99", &|node| {
        tables(node, |tables| {
            let (_, row) = tables.peers.rows().unwrap().pop_first().unwrap();
            tables.peers.insert(&Ip4([198, 18, 0, 99]).into(), &row).unwrap();
        });
    }),
    broken("owners", "198.18.0.12", &|node| {
        tables(node, |tables| {
            let elsewhere = Ip4([198, 18, 0, 99]).into();
            tables.address_owners.insert(&IpAddr::V4(NODE_B).into(), &elsewhere).unwrap();
        });
    }),
    broken("endpoints", "4096/10.0.0.6", &|node| {
        tables(node, |tables| {
            let rows = tables.endpoints.rows().unwrap();
            let (key, row) = rows.iter().find(|(key, _)| key.address == view::ingress(6).into()).unwrap();
            let mut row = *row;
            row.vtep = Ip4([198, 18, 0, 99]).into();
            tables.endpoints.insert(key, &row).unwrap();
        });
    }),
    broken("endpoints", "4096/10.0.0.77", &|node| {
        tables(node, |tables| {
            let rows = tables.endpoints.rows().unwrap();
            let (key, row) = rows.iter().find(|(key, _)| key.address == view::ingress(6).into()).unwrap();
            let mut key = *key;
            key.address = view::ingress(77).into();
            tables.endpoints.insert(&key, row).unwrap();
        });
    }),
    broken("ports", "10.0.0.5 tcp/8080", &|node| {
        tables(node, |tables| {
            let rows = tables.target_ports.rows().unwrap();
            let (key, _) =
                rows.iter().find(|(key, _)| key.published.get() == 8080 && key.protocol == 6).unwrap();
            let (_, other) = rows.iter().find(|(key, _)| key.published.get() == 8081).unwrap();
            tables.target_ports.insert(key, other).unwrap();
        });
    }),
    broken("ports", "10.0.0.5 udp/8080", &|node| {
        tables(node, |tables| {
            let rows = tables.target_ports.rows().unwrap();
            let (key, row) = rows.iter().find(|(key, _)| key.protocol == 17).unwrap();
            tables.target_ports.insert(key, &row.with_dsr(true)).unwrap();
        });
    }),
    broken("cookies", "task5", &|node| {
        tables(node, |tables| {
            let (cookie, mut row) = tables.sandboxes.rows().unwrap().pop_first().unwrap();
            row.n_vnis -= 1;
            tables.sandboxes.insert(&cookie, &row).unwrap();
        });
    }),
    broken("rings", "0000000000000007/4097", &|node| {
        tables(node, |tables| {
            let key = ring(tables, 4097);
            tables.rings.swap(&key, &[view::app(5).into(); 251]).unwrap();
        });
    }),
    broken("vips", "4097/10.0.1.2", &|node| {
        tables(node, |tables| {
            let key = *tables.vips.rows().unwrap().first_key_value().unwrap().0;
            let elsewhere = ring(tables, 4096);
            tables.vips.insert(&key, &elsewhere).unwrap();
        });
    }),
    broken("frontends", "198.18.0.11:8080/tcp", &|node| {
        tables(node, |tables| {
            let key = frontend(tables);
            let mut row = tables.frontends.get(&key).unwrap().unwrap();
            row.ring = ring(tables, 4097);
            tables.frontends.insert(&key, &row).unwrap();
        });
    }),
    broken("attachments", "mv", &|node| {
        tables(node, |tables| {
            let (index, mut row) = tables.attachments.rows().unwrap().pop_first().unwrap();
            row.mtu = 576;
            tables.attachments.insert(&index, &row).unwrap();
        });
    }),
];

/// Routes, rules, addresses and interfaces, in the node and in the sandbox; what all of it needs comes last.
const NETWORK: &[Sabotage] = &[
    broken("routes", "10.0.0.0/24", &|node| sh(node, "ip route del 10.0.0.0/24")),
    broken("forwarding", "docker_gwbridge", &|node| {
        node.ns.run(|| fs::write("/proc/sys/net/ipv4/conf/docker_gwbridge/forwarding", "0").unwrap());
    }),
    broken("sandboxes", "task5", &|node| sh_inside(node, "ip route del default table 100")),
    broken("sandboxes", "task5", &|node| sh_inside(node, "ip link set eth1 mtu 576")),
    broken("sandboxes", "task5", &|node| sh_inside(node, "ip route del default table main")),
    broken("filter", "-", &|node| sh(node, "nft flush table inet meshd")),
    broken("devices", "docker_gwbridge", &|node| sh(node, "ip link set docker_gwbridge down")),
    broken("devices", "mesh-vx", &|node| sh(node, "ip link set mesh-vx down")),
    broken("sandboxes", "task5", &|node| sh_inside(node, "ip link set lo down")),
];

/// The same, further; and the hooks.
const DETACHED: &[Sabotage] = &[
    broken("sandboxes", "task5", &|node| sh_inside(node, "ip rule del priority 1000 table 100")),
    broken("sandboxes", "task5", &|node| sh_inside(node, "ip addr flush dev eth1")),
    broken("sandboxes", "task5", &|node| sh_inside(node, "ip link del eth2")),
    broken("filter", "-", &|node| sh(node, "nft delete table inet meshd")),
    broken("hooks", "mesh_uplink on up0", &|node| unpin(node, "mesh_uplink")),
    broken("hooks", "mesh_vxlan on mesh-vx", &|node| unpin(node, "mesh_vxlan")),
    broken("hooks", "mesh_vxlan_out on mesh-vx", &|node| unpin(node, "mesh_vxlan_out")),
    broken("hooks", "mesh_task on mv", &|node| unpin(node, "mesh_task")),
    broken("hooks", "mesh_connect4 on the cgroup root", &|node| unpin(node, "mesh_connect4")),
    broken("devices", "mesh-vx", &|node| sh(node, "ip link del mesh-vx")),
];

/// The IPv6 side of a sandbox's links; of the node's own routes, `dataplane-kernel`'s tests.
const IPV6: &[Sabotage] = &[
    broken("sandboxes", "task5", &|node| sh_inside(node, "ip -6 route del default table 100")),
    broken("sandboxes", "task5", &|node| sh_inside(node, "ip -6 addr flush dev eth1")),
];

const fn broken(table: &'static str, key: &'static str, harm: &'static dyn Fn(&Node)) -> Sabotage {
    Sabotage { table, key, harm }
}

fn tables(node: &Node, harm: impl FnOnce(&mut Tables)) {
    harm(&mut Tables::open(&PinDir::new(&node.options.bpffs_dir)).unwrap());
}

fn ring(tables: &Tables, vni: u32) -> ebpf_abi::RingKey {
    tables.rings.keys().unwrap().into_iter().find(|key| key.vni == vni).unwrap()
}

/// Of TCP port 8080 at the node's address.
fn frontend(tables: &Tables) -> ebpf_abi::FrontendKey {
    let keys = tables.frontends.rows().unwrap().into_keys();
    let is_it = |key: &ebpf_abi::FrontendKey| {
        key.address == IpAddr::V4(NODE_A).into() && key.port.get() == 8080 && key.protocol == 6
    };
    keys.into_iter().find(is_it).unwrap()
}

fn sh(node: &Node, command: &str) {
    node.ns.shell(command);
}

fn sh_inside(node: &Node, command: &str) {
    node.sandbox(5).shell(command);
}

/// Detaches one hook of the program: its link goes with its pin.
fn unpin(node: &Node, program: &str) {
    let pins = PinDir::new(&node.options.bpffs_dir);
    let pin = pins.hooks().unwrap().into_iter().find(|pin| pin.program.label() == program).unwrap();
    fs::remove_file(pins.hook(&pin)).unwrap();
}

fn verify(node: &Node) -> Result<VerifyReport, VerifyError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(node.driver().verify())
}

fn differences(node: &Node) -> Vec<Difference> {
    verify(node).unwrap().differences
}

/// Each is found, by what it changes in what was found before.
fn check_found(node: &Node, sabotages: &[Sabotage]) {
    for Sabotage { table, key, harm } in sabotages {
        let before = differences(node);
        harm(node);
        let found = differences(node);
        let is_it = |found: &Difference| found.table == *table && found.key.contains(key);
        let is_new = found.iter().any(|found| is_it(found) && !before.contains(found));
        assert!(is_new, "{table} {key}: before {before:#?}, then {found:#?}");
    }
}

fn check_healed(node: &Node) {
    lab::wait_until("it heals", || verify(node).unwrap().is_sound(), || format!("{:#?}", verify(node)));
}

/// A lab whose node `a` a test can keep from changing anything.
struct Still {
    lab: Lab,
    holds_still: Arc<AtomicBool>,
}

impl Still {
    /// Both nodes are as they should be, and may change.
    fn new() -> Self {
        let mut still = Self { lab: Lab::new(|_| {}), holds_still: Arc::default() };
        still.restart();
        assert_eq!(verify(&still.lab.a), Err(VerifyError::NoView));
        still.lab.converge(1);
        let report = verify(&still.lab.a).unwrap();
        assert!(report.is_sound() && report.n_rows > 30, "{report:#?}");
        still
    }

    fn hold(&self, holds_still: bool) {
        self.holds_still.store(holds_still, Ordering::Relaxed);
    }

    /// The driver of `a` is killed, and another starts.
    fn restart(&mut self) {
        self.lab.a.kill();
        let flag = Arc::clone(&self.holds_still);
        let may_apply = Arc::new(move |_: &_| !flag.load(Ordering::Relaxed));
        self.lab.a.start_with(Say { may_apply, ..Say::default() });
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        // Else the lab could not be taken down.
        self.hold(false);
    }
}

fn check_traffic(lab: &Lab) {
    serve_tcp(&lab.a.sandbox(5), 80, "five");
    serve_tcp(&lab.b.sandbox(6), 80, "six");
    for _ in 0..8 {
        ask_tcp(&lab.client, (NODE_A, 8080), 10).unwrap();
    }
    ask_tcp(&lab.a.sandbox(5), (view::app(6), 80), 10).unwrap();
    ask_tcp(&lab.a.sandbox(5), (view::VIP, 80), 10).unwrap();
}

#[test]
fn what_a_running_driver_finds_broken_heals() {
    let still = Still::new();
    still.hold(true);
    check_found(&still.lab.a, REMOVED);
    check_found(&still.lab.a, NETWORK);
    still.hold(false);
    check_healed(&still.lab.a);
    check_traffic(&still.lab);
}

#[test]
fn what_a_driver_finds_broken_when_it_starts_heals() {
    let mut still = Still::new();
    for (sabotages, revision) in [(ALTERED, 2), (DETACHED, 3), (IPV6, 4)] {
        still.hold(true);
        check_found(&still.lab.a, sabotages);
        still.hold(false);
        still.restart();
        still.lab.a.converge(view::of_node(revision, NODE_A));
        check_healed(&still.lab.a);
    }
    check_traffic(&still.lab);
}
