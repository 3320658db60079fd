//! What others have in a node's kernel is theirs: a driver that comes, heals and goes leaves it as it was. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "others use the rest")]
mod lab;

use std::fs;
use std::path::PathBuf;

use dataplane_driver::DriverOptions;
use dataplane_kernel::bpf::{Bpf, attach_pass, cgroup2_root};
use dataplane_model::kernel_state::HookMode;
use dataplane_plan::{IngressHook, TcAttach};
use ebpf_abi::ProgramId;
use lab::picture::picture;
use lab::{Lab, NODE_A, Ns, ask_tcp, serve_tcp, view};
use nix::net::if_::if_nametoindex;

/// Of each kind of thing that the driver makes, one of others that is as like ours as can be.
const THINGS: &[&str] = &[
    "ip link add foreign0 type veth peer name foreign1",
    "ip link set foreign0 up",
    "ip link set foreign1 up",
    "ip addr add 192.0.2.1/24 dev foreign0",
    // A host end's name.
    "ip link add mv0123456789a type bridge",
    "ip link add foreign-vx type vxlan id 4096 dstport 8472 nolearning",
    "ip route add 203.0.113.0/24 via 198.18.0.100 proto 99",
    // A sandbox's table.
    "ip route add 203.0.113.0/24 via 198.18.0.100 table 100",
    "ip rule add from 192.0.2.0/24 lookup 100 pref 1000",
    "ip -6 route add 2001:db8:77::/48 dev up0 table 100",
    "ip -6 rule add from 2001:db8:77::/48 lookup 100 pref 1000",
    "nft add table inet foreign",
    "nft add chain inet foreign forward { type filter hook forward priority 0 ; policy accept ; }",
    "nft add rule inet foreign forward ip saddr 192.0.2.66 drop",
    "nft add table ip foreign-nat",
    "nft add chain ip foreign-nat postrouting { type nat hook postrouting priority 100 ; }",
    "nft add rule ip foreign-nat postrouting ip saddr 192.0.2.0/24 masquerade",
    "tc qdisc add dev up0 clsact",
];

/// What others have in a node.
struct Foreign {
    pins: PathBuf,
    ns: Ns,
    programs: Option<Bpf>,
}

impl Foreign {
    fn new(ns: &Ns) -> Self {
        let pins = PathBuf::from(format!(
            "/sys/fs/bpf/foreign-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let mut foreign = Self { pins: pins.clone(), ns: Ns::open(ns.path().as_ref()), programs: None };
        // A filter that takes nothing.
        let filter = std::env::temp_dir().join(pins.file_name().unwrap());
        fs::write(&filter, "1,6 0 0 0").unwrap();
        let path = filter.clone();
        foreign.programs = ns.run(move || {
            for command in THINGS {
                lab::shell(command);
            }
            for way in ["ingress", "egress"] {
                let place = format!("dev up0 {way} protocol all prio 7");
                lab::shell(&format!("tc filter add {place} bpf bytecode-file {}", path.display()));
            }
            fs::write("/proc/sys/net/ipv4/conf/foreign0/forwarding", "1").unwrap();
            // Programs that know of nothing pass everything.
            let (up0, mut bpf) = (if_nametoindex("up0").unwrap(), Bpf::open(&pins).unwrap());
            bpf.hooks.attach(ProgramId::MeshUplink, up0, HookMode::Tcx).unwrap();
            bpf.hooks.attach_cgroup(ProgramId::MeshGetpeername4, &cgroup2_root().unwrap()).unwrap();
            attach_pass(up0, &pins.join("pass")).unwrap();
            Some(bpf)
        });
        fs::remove_file(filter).unwrap();
        foreign
    }

    fn picture(&self) -> String {
        let further = self.ns.run(|| {
            let forwarding = fs::read_to_string("/proc/sys/net/ipv4/conf/foreign0/forwarding").unwrap();
            let filters =
                ["ingress", "egress"].map(|way| lab::shell(&format!("tc filter show dev up0 {way}")));
            format!("{filters:?}\n{}\n{forwarding}", lab::shell("ip -d link show up0"))
        });
        let hooks = self.programs.as_ref().unwrap().hooks.attached().unwrap();
        format!("{}{further}{hooks:?}", picture(&self.ns))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // A failed test has made the directory alone.
        let _released = self.programs.take().map(Bpf::release);
        let _removed = fs::remove_dir_all(&self.pins);
    }
}

fn is_left_alone(choose: impl Fn(&mut DriverOptions)) {
    let mut lab = Lab::new(choose);
    let foreign = Foreign::new(&lab.a.ns);
    let before = foreign.picture();

    lab.converge(1);
    serve_tcp(&lab.a.sandbox(5), 80, "five");
    serve_tcp(&lab.b.sandbox(6), 80, "six");
    ask_tcp(&lab.client, (NODE_A, 8080), 10).unwrap();
    lab.a.ns.shell("ip link del mesh-vx");
    lab.a.ns.shell("nft delete table inet meshd");
    lab.a.kill();
    lab.a.start();
    lab.a.converge(view::of_node(2, NODE_A));
    ask_tcp(&lab.client, (NODE_A, 8080), 10).unwrap();
    lab.a.tear_down();

    assert_eq!(foreign.picture(), before);
}

#[test]
fn things_of_others_stay_beside_links() {
    is_left_alone(|_| {});
}

#[test]
fn things_of_others_stay_beside_filters() {
    is_left_alone(|options| options.tc_attach = TcAttach::Clsact);
}

/// An interface has one XDP program.
#[test]
fn anothers_xdp_stays_where_ours_was_wanted() {
    is_left_alone(|options| options.ingress_hook = IngressHook::Xdp);
}
