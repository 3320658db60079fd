//! The machines and their maps.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use dataplane_kernel::bpf::{Bpf, PinDir, Tables, attach_pass, cgroup2_root, has_tcx, read_drops};
use dataplane_model::kernel_state::HookMode;
use ebpf_abi::table::{ATTACHMENT_INGRESS, CONFIG_XDP_REDIRECT};
use ebpf_abi::{
    Attachment, Endpoint, EndpointKey, Frontend, FrontendKey, Ip, Ip4, MacAddr, NodeConfig, Peer, Port,
    Prefix6, ProgramId, RingKey, SandboxNetworks, TargetPort, TargetPortKey, VipKey, protocol,
};

use super::namespace::Namespace;

pub const INGRESS_VNI: u32 = 4096;
pub const OVERLAY_VNI: u32 = 4097;
pub const VIP: [u8; 4] = [10, 0, 1, 2];
/// Served by task 0 alone.
pub const RING: RingKey = RingKey::new(1, INGRESS_VNI);
/// Served by both tasks.
pub const SHARED_RING: RingKey = RingKey::new(2, INGRESS_VNI);
pub const VIP_RING: RingKey = RingKey::new(2, OVERLAY_VNI);
/// Has no backend.
pub const EMPTY_RING: RingKey = RingKey::new(3, INGRESS_VNI);
/// (ring, protocol, published, target)
pub const PORTS: [(RingKey, u8, u16, u16); 5] = [
    (RING, protocol::TCP, 8080, 80),
    (RING, protocol::UDP, 5353, 53),
    (RING, protocol::UDP, 9999, 99),
    (SHARED_RING, protocol::TCP, 8081, 80),
    (EMPTY_RING, protocol::TCP, 8082, 80),
];

pub const CLIENT: Ip4 = Ip4([198, 18, 0, 100]);
pub const NODES: [Ip4; 2] = [Ip4([198, 18, 0, 11]), Ip4([198, 18, 0, 12])];
/// Task 0 is on node 1, task 1 on node 0.
pub const NODE_OF_TASK: [usize; 2] = [1, 0];
pub const TASKS: [Ip4; 2] = [Ip4([10, 0, 0, 5]), Ip4([10, 0, 0, 6])];
pub const TASKS_OVERLAY: [Ip4; 2] = [Ip4([10, 0, 1, 5]), Ip4([10, 0, 1, 6])];

/// The same by IPv6. The machines have these addresses after [`Lab::enable_ipv6`], the tables know them always.
pub const CLIENT6: Ip = ip6([0xfd00, 0x18, 0, 0, 0, 0, 0, 0x100]);
pub const NODES6: [Ip; 2] =
    [ip6([0xfd00, 0x18, 0, 0, 0, 0, 0, 0x11]), ip6([0xfd00, 0x18, 0, 0, 0, 0, 0, 0x12])];
/// `fd00:0:0:1000::/64` and `fd00:0:0:1001::/64`.
pub const INGRESS_PREFIX: Prefix6 = prefix6(0x1000, TASKS[0]);
pub const OVERLAY_PREFIX: Prefix6 = prefix6(0x1001, TASKS_OVERLAY[0]);
/// Of the gateway bridge, where a test has one.
pub const BRIDGE_PREFIX: Prefix6 = prefix6(0x18, Ip4([172, 18, 0, 1]));

const fn ip6(groups: [u16; 8]) -> Ip {
    let mut bytes = [0; 16];
    let mut index = 0;
    while index < groups.len() {
        [bytes[2 * index], bytes[2 * index + 1]] = groups[index].to_be_bytes();
        index += 1;
    }
    Ip(bytes)
}

/// Of a network whose IPv4 subnet, a /24, has this address.
const fn prefix6(number: u16, Ip4([a, b, c, _]): Ip4) -> Prefix6 {
    Prefix6 { prefix: ip6([0xfd00, 0, 0, number, 0, 0, 0, 0]), subnet: Ip4([a, b, c, 0]), host_mask: 0xff }
}

/// How this kernel's tc programs hang.
pub fn tc_mode() -> HookMode {
    if has_tcx() { HookMode::Tcx } else { HookMode::Clsact }
}

pub struct Lab {
    pub switch: Namespace,
    pub client: Namespace,
    pub nodes: [Namespace; 2],
    pub tasks: [Namespace; 2],
    pin_dir: PathBuf,
    mode: HookMode,
}

impl Lab {
    /// Everything but programs and maps.
    pub fn new(mode: HookMode) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("meshd-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Self {
            switch: Namespace::new(),
            client: Namespace::new(),
            nodes: [Namespace::new(), Namespace::new()],
            tasks: [Namespace::new(), Namespace::new()],
            pin_dir: PathBuf::from("/sys/fs/bpf").join(name),
            mode,
        };
        lab.switch.ip("link add br0 type bridge");
        lab.switch.ip("link set br0 up");
        lab.plug(&lab.client, "sw-c", CLIENT);
        for (node, address) in NODES.iter().enumerate() {
            lab.plug(&lab.nodes[node], &format!("sw-{node}"), *address);
            lab.make_node(node);
        }
        for task in 0..2 {
            lab.make_task(task);
        }
        lab
    }

    fn plug(&self, host: &Namespace, port: &str, address: Ip4) {
        self.switch.ip(&format!("link add {port} type veth peer name up0 netns {}", host.path()));
        self.switch.ip(&format!("link set {port} master br0 up"));
        host.ip(&format!("addr add {address}/24 dev up0"));
        host.ip("link set up0 up");
    }

    /// As strict as a host can be: nothing is forwarded by the kernel itself, and sources are checked.
    fn make_node(&self, node: usize) {
        let namespace = &self.nodes[node];
        namespace.sysctl("ipv4/ip_forward", "0");
        namespace.ip("link add mesh-vx type vxlan external dstport 4789 nolearning udp6zerocsumrx");
        namespace.ip("link set mesh-vx arp off up");
        namespace.ip(&format!("route add 10.0.0.0/24 dev mesh-vx src {}", NODES[node]));
        for interface in ["all", "up0", "mesh-vx"] {
            namespace.sysctl(&format!("ipv4/conf/{interface}/rp_filter"), "1");
        }
    }

    fn make_task(&self, task: usize) {
        let node = &self.nodes[NODE_OF_TASK[task]];
        let sandbox = &self.tasks[task];
        for (index, address) in [TASKS[task], TASKS_OVERLAY[task]].into_iter().enumerate() {
            let host_end = format!("mv{task}{index}");
            node.ip(&format!(
                "link add {host_end} mtu 1450 type veth peer name eth{index} netns {}",
                sandbox.path()
            ));
            node.ip(&format!("link set {host_end} up"));
            node.sysctl(&format!("ipv4/conf/{host_end}/rp_filter"), "1");
            sandbox.ip(&format!("link set eth{index} address {} mtu 1450 up", MacAddr::of_endpoint(address)));
            sandbox.ip(&format!("addr add {address}/24 dev eth{index}"));
        }
        sandbox.ip("route add default via 10.0.0.1 dev eth0");
    }

    /// How its tc programs hang.
    pub fn mode(&self) -> HookMode {
        self.mode
    }

    pub fn node_pins(&self, node: usize) -> PathBuf {
        self.pin_dir.join(format!("node{node}"))
    }

    /// Runs `work` in a node's namespace, with its maps: the programs stay what they are, and nothing has to verify them again.
    pub fn with_tables<T: Send>(&self, node: usize, work: impl FnOnce(&mut Tables) -> T + Send) -> T {
        let pins = PinDir::new(&self.node_pins(node));
        self.nodes[node].run(|| work(&mut Tables::open(&pins).unwrap()))
    }

    /// Opens node `node`'s programs and maps, and runs `work` in the node's namespace.
    pub fn with_bpf<T: Send>(&self, node: usize, work: impl FnOnce(&mut Bpf) -> T + Send) -> T {
        let pins = self.node_pins(node);
        self.nodes[node].run(|| work(&mut Bpf::open(&pins).unwrap()))
    }

    /// Fills the maps and attaches the tc and socket programs of both nodes; then lets go of them.
    pub fn start(&self) {
        for node in 0..2 {
            let facts = self.facts(node);
            self.with_bpf(node, |bpf| {
                fill(&mut bpf.tables, &facts);
                attach(bpf, &facts, self.mode);
            });
        }
    }

    /// Gives all machines their IPv6 addresses; false if this kernel has no IPv6.
    pub fn enable_ipv6(&self) -> bool {
        if !Path::new("/proc/sys/net/ipv6").exists() {
            return false;
        }
        self.client.add_address6("up0", CLIENT6);
        for (node, address) in NODES6.into_iter().enumerate() {
            let namespace = &self.nodes[node];
            namespace.add_address6("up0", address);
            // Whom it forwards to a machine asks for from its link-local address.
            namespace.ip(&format!("addr add fe80::{}/64 dev up0 nodad", node + 1));
            namespace.sysctl("ipv6/conf/mesh-vx/disable_ipv6", "0");
            namespace.ip(&format!("route add {}/64 dev mesh-vx src {address}", INGRESS_PREFIX.prefix));
        }
        for (task, sandbox) in self.tasks.iter().enumerate() {
            sandbox.add_address6("eth0", INGRESS_PREFIX.address(TASKS[task]));
            sandbox.add_address6("eth1", OVERLAY_PREFIX.address(TASKS_OVERLAY[task]));
            let gateway = INGRESS_PREFIX.address(Ip4([10, 0, 0, 1]));
            sandbox.ip(&format!("route add default via {gateway} dev eth0"));
        }
        true
    }

    /// From here on the nodes' tunnels are over IPv6, which takes 20 bytes more. The machines must have it.
    pub fn tunnel_over_ipv6(&self) {
        const MTU: u32 = 1430;
        for node in 0..2 {
            let other = NODES6[1 - node];
            self.with_tables(node, |tables| {
                let mut config = tables.config.get().unwrap();
                config.vtep = NODES6[node];
                tables.config.set(&config).unwrap();
                tables.peers.remove(&NODES[1 - node].into()).unwrap();
                tables.peers.insert(&other, &Peer::default()).unwrap();
                for address in [NODES[1 - node].into(), other] {
                    tables.address_owners.insert(&address, &other).unwrap();
                }
                for (key, mut row) in tables.endpoints.rows().unwrap() {
                    if !row.is_local() {
                        row.vtep = other;
                        tables.endpoints.insert(&key, &row).unwrap();
                    }
                }
                for (key, mut row) in tables.attachments.rows().unwrap() {
                    row.mtu = MTU;
                    tables.attachments.insert(&key, &row).unwrap();
                }
            });
            let task = NODE_OF_TASK.iter().position(|of| *of == node).unwrap();
            for index in 0..2 {
                self.nodes[node].ip(&format!("link set mv{task}{index} mtu {MTU}"));
                self.tasks[task].ip(&format!("link set eth{index} mtu {MTU}"));
            }
        }
    }

    /// Gives a node's underlay this MTU, and its tasks what that leaves; the other node is told.
    pub fn set_underlay_mtu(&self, node: usize, mtu: u32) {
        const OVERHEAD: u32 = 50;
        self.switch.ip(&format!("link set sw-{node} mtu {mtu}"));
        self.nodes[node].ip(&format!("link set up0 mtu {mtu}"));
        self.nodes[node].ip(&format!("link set mesh-vx mtu {}", mtu - OVERHEAD));
        let task = NODE_OF_TASK.iter().position(|of| *of == node).unwrap();
        for index in 0..2 {
            self.nodes[node].ip(&format!("link set mv{task}{index} mtu {}", mtu - OVERHEAD));
            self.tasks[task].ip(&format!("link set eth{index} mtu {}", mtu - OVERHEAD));
        }
        self.with_tables(node, |tables| {
            let mut config = tables.config.get().unwrap();
            config.uplink_mtu = mtu;
            tables.config.set(&config).unwrap();
            for (key, mut row) in tables.attachments.rows().unwrap() {
                row.mtu = mtu - OVERHEAD;
                tables.attachments.insert(&key, &row).unwrap();
            }
        });
        self.with_tables(1 - node, |tables| tables.peers.insert(&NODES[node].into(), &Peer { mtu }).unwrap());
    }

    /// Lets a node's programs put headers of their own in front of what they tunnel: without forwarding on the uplink the kernel
    /// tells no program the next hop.
    pub fn allow_own_headers(&self, node: usize) {
        self.nodes[node].sysctl("ipv4/conf/up0/forwarding", "1");
        if Path::new("/proc/sys/net/ipv6").exists() {
            self.nodes[node].sysctl("ipv6/conf/mesh-vx/forwarding", "1");
        }
    }

    /// Hangs the XDP program on both uplinks. On veth that takes a program at the far end, whole packets (no checksum or
    /// segmentation left to do), and forwarding on the uplink, without which the kernel tells XDP no next hop.
    pub fn start_xdp(&self) {
        for node in 0..2 {
            let port = format!("sw-{node}");
            let ifindex = self.switch.ifindex(&port);
            let pin = self.pin_dir.join(format!("pass{node}"));
            self.switch.run(|| attach_pass(ifindex, &pin).unwrap());
            self.switch.sh(&format!("ethtool -K {port} tx off"));
            self.allow_own_headers(node);
            let uplink = self.nodes[node].ifindex("up0");
            self.with_bpf(node, |bpf| {
                bpf.hooks.attach(ProgramId::MeshXdp, uplink, HookMode::XdpNative).unwrap();
            });
        }
    }

    /// The same by `XDP_REDIRECT`: the far end needs no program, but GRO.
    pub fn start_xdp_redirect(&self) {
        for node in 0..2 {
            self.switch.sh(&format!("ethtool -K sw-{node} tx off gro on"));
            self.allow_own_headers(node);
            let uplink = self.nodes[node].ifindex("up0");
            self.with_bpf(node, |bpf| {
                let mut config = bpf.tables.config.get().unwrap();
                config.flags |= CONFIG_XDP_REDIRECT;
                bpf.tables.config.set(&config).unwrap();
                bpf.hooks.attach(ProgramId::MeshXdp, uplink, HookMode::XdpNative).unwrap();
            });
        }
    }

    /// Hangs the XDP program behind the drivers of both uplinks, where it gets what they hand on: aggregates, and checksums that
    /// their sender has left to be made. The far ends need nothing.
    pub fn start_xdp_generic(&self) {
        for node in 0..2 {
            self.allow_own_headers(node);
            let uplink = self.nodes[node].ifindex("up0");
            self.with_bpf(node, |bpf| {
                bpf.hooks.attach(ProgramId::MeshXdp, uplink, HookMode::XdpGeneric).unwrap();
            });
        }
    }

    /// Lets the switch's ports send single segments with whole checksums, as those of metal do.
    pub fn switch_off_offloads(&self) {
        (0..2).for_each(|node| self.switch.sh(&format!("ethtool -K sw-{node} tx off")));
    }

    /// Gives [`RING`] these places on both nodes.
    pub fn swap_ring(&self, places: &[Ip4]) {
        (0..2).for_each(|node| self.with_tables(node, |tables| tables.rings.swap(&RING, places).unwrap()));
    }

    /// Gives [`RING`] of one node this history, youngest first.
    pub fn set_rings(&self, node: usize, rings: &[Vec<Ip4>]) {
        self.with_tables(node, |tables| {
            tables.rings.remove(&RING).unwrap();
            rings.iter().rev().for_each(|places| tables.rings.swap(&RING, places).unwrap());
        });
    }

    /// Publishes another TCP port of task 0's.
    pub fn publish(&self, published: u16, target: u16) {
        for (node, address) in NODES6.into_iter().enumerate() {
            self.with_tables(node, |tables| {
                for address in [NODES[node].into(), address, Ip::LOCALHOST4] {
                    let key = FrontendKey::new(address, Port::new(published), protocol::TCP);
                    tables.frontends.insert(&key, &Frontend::new(RING, Port::new(target))).unwrap();
                }
                let key = TargetPortKey::new(TASKS[0], Port::new(published), protocol::TCP);
                tables.target_ports.insert(&key, &TargetPort::new(Port::new(target))).unwrap();
            });
        }
    }

    /// Answers of all published ports leave from the tasks' own nodes, if these can send them there.
    pub fn answer_directly(&self) {
        for node in 0..2 {
            self.allow_own_headers(node);
            self.with_tables(node, |tables| answer_directly(tables, true));
        }
    }

    /// Lets both nodes forget which backends the flows that enter by them have.
    pub fn empty_caches(&self) {
        for node in 0..2 {
            self.with_tables(node, |tables| {
                let cache = &mut tables.flow_cache;
                cache.rows().unwrap().keys().for_each(|flow| cache.remove(flow).unwrap());
            });
        }
    }

    /// What one program of a node has counted.
    pub fn counted(&self, node: usize, program: ProgramId) -> ebpf_abi::CounterRow {
        Tables::open(&PinDir::new(&self.node_pins(node))).unwrap().counters.program(program).unwrap()
    }

    fn facts(&self, node: usize) -> Facts {
        let namespace = &self.nodes[node];
        let task = NODE_OF_TASK.iter().position(|of| *of == node).unwrap();
        Facts {
            node,
            task,
            cookie: namespace.cookie(),
            sandbox_cookie: self.tasks[task].cookie(),
            uplink: namespace.ifindex("up0"),
            vxlan: namespace.ifindex("mesh-vx"),
            host_ends: [0, 1].map(|index| namespace.ifindex(&format!("mv{task}{index}"))),
            sandbox: namespace.peer_namespace(&format!("mv{task}0")) + 1,
        }
    }

    /// received = forwarded + passed + Σ drops, for every program of every node. Returns all drops by name.
    pub fn check_counters(&self) -> Vec<(usize, String, String, u64)> {
        let mut drops = Vec::new();
        for node in 0..2 {
            let tables = Tables::open(&PinDir::new(&self.node_pins(node))).unwrap();
            for program in read_drops(&tables.counters).unwrap().programs {
                assert_eq!(program.unaccounted(), 0, "{program:?}");
                drops.extend(
                    program
                        .drops
                        .into_iter()
                        .map(|(reason, count)| (node, program.program.clone(), reason, count)),
                );
            }
        }
        drops
    }
}

impl Drop for Lab {
    /// Links and maps end with their pins; filters, interfaces and processes' routes with the namespaces.
    fn drop(&mut self) {
        for node in 0..2 {
            let _ = std::fs::remove_file(self.pin_dir.join(format!("pass{node}")));
            PinDir::new(&self.node_pins(node)).remove_all().unwrap();
        }
        let _ = std::fs::remove_dir(&self.pin_dir);
    }
}

/// All published ports of a node's tasks do so from the client's next packet on, or not any more.
pub fn answer_directly(tables: &mut Tables, is_direct: bool) {
    for (key, row) in tables.target_ports.rows().unwrap() {
        tables.target_ports.insert(&key, &row.with_dsr(is_direct)).unwrap();
    }
}

struct Facts {
    node: usize,
    task: usize,
    cookie: u64,
    sandbox_cookie: u64,
    uplink: u32,
    vxlan: u32,
    host_ends: [u32; 2],
    /// The id of the task's namespace in the node's, plus one.
    sandbox: u32,
}

fn fill(tables: &mut Tables, facts: &Facts) {
    let config = NodeConfig {
        netns_cookie: facts.cookie,
        vtep: NODES[facts.node].into(),
        vxlan_ifindex: facts.vxlan,
        ingress_vni: INGRESS_VNI,
        uplink_ifindex: facts.uplink,
        uplink_mtu: 1500,
        vxlan_port: Port::new(4789),
        ..NodeConfig::default()
    };
    tables.config.set(&config).unwrap();
    tables.tick.set(&1).unwrap();
    let other = NODES[1 - facts.node].into();
    tables.peers.insert(&other, &Peer::default()).unwrap();
    tables.address_owners.insert(&other, &other).unwrap();
    tables.address_owners.insert(&NODES[facts.node].into(), &Ip::UNSPECIFIED).unwrap();
    tables.address_owners.insert(&NODES6[1 - facts.node], &other).unwrap();
    tables.address_owners.insert(&NODES6[facts.node], &Ip::UNSPECIFIED).unwrap();
    tables.prefixes6.insert(&INGRESS_VNI, &INGRESS_PREFIX).unwrap();
    tables.prefixes6.insert(&OVERLAY_VNI, &OVERLAY_PREFIX).unwrap();
    fill_endpoints(tables, facts);
    fill_services(tables, facts);
}

fn fill_endpoints(tables: &mut Tables, facts: &Facts) {
    for (index, (vni, addresses)) in
        [(INGRESS_VNI, TASKS), (OVERLAY_VNI, TASKS_OVERLAY)].into_iter().enumerate()
    {
        for (task, address) in addresses.into_iter().enumerate() {
            let mac = MacAddr::of_endpoint(address);
            let endpoint = if task == facts.task {
                Endpoint::local(mac, facts.host_ends[index])
            } else {
                Endpoint::remote(mac, NODES[NODE_OF_TASK[task]].into())
            };
            tables.endpoints.insert(&EndpointKey { vni, address }, &endpoint.serving(true)).unwrap();
        }
        let address = addresses[facts.task];
        let [a, b, c, _] = address.0;
        let attachment = Attachment {
            vni,
            address,
            gateway: Ip4([a, b, c, 1]),
            mtu: 1450,
            mac: MacAddr::of_endpoint(address),
            flags: if vni == INGRESS_VNI { ATTACHMENT_INGRESS } else { 0 },
            prefix: 24,
            sandbox: facts.sandbox,
        };
        tables.attachments.insert(&facts.host_ends[index], &attachment).unwrap();
    }
}

fn fill_services(tables: &mut Tables, facts: &Facts) {
    tables.rings.swap(&RING, &[TASKS[0]]).unwrap();
    tables.rings.swap(&SHARED_RING, &TASKS).unwrap();
    tables.rings.swap(&VIP_RING, &[TASKS_OVERLAY[0]]).unwrap();
    tables.rings.swap(&EMPTY_RING, &[]).unwrap();
    tables.vips.insert(&VipKey { vni: OVERLAY_VNI, address: Ip4(VIP) }, &VIP_RING).unwrap();
    let networks = SandboxNetworks::new(&[INGRESS_VNI, OVERLAY_VNI]).unwrap();
    tables.sandboxes.insert(&facts.sandbox_cookie, &networks).unwrap();
    for (ring, protocol, published, target) in PORTS {
        for address in [NODES[facts.node].into(), NODES6[facts.node], Ip::LOCALHOST4] {
            let key = FrontendKey::new(address, Port::new(published), protocol);
            tables.frontends.insert(&key, &Frontend::new(ring, Port::new(target))).unwrap();
        }
        let key = TargetPortKey::new(TASKS[facts.task], Port::new(published), protocol);
        tables.target_ports.insert(&key, &TargetPort::new(Port::new(target))).unwrap();
    }
}

fn attach(bpf: &mut Bpf, facts: &Facts, mode: HookMode) {
    for (program, ifindex) in [
        (ProgramId::MeshUplink, facts.uplink),
        (ProgramId::MeshVxlan, facts.vxlan),
        (ProgramId::MeshVxlanOut, facts.vxlan),
        (ProgramId::MeshTask, facts.host_ends[0]),
        (ProgramId::MeshTask, facts.host_ends[1]),
    ] {
        bpf.hooks.attach(program, ifindex, mode).unwrap();
    }
    let cgroup = cgroup2_root().unwrap();
    for program in [
        ProgramId::MeshConnect4,
        ProgramId::MeshSendmsg4,
        ProgramId::MeshRecvmsg4,
        ProgramId::MeshGetpeername4,
        ProgramId::MeshConnect6,
        ProgramId::MeshSendmsg6,
        ProgramId::MeshRecvmsg6,
        ProgramId::MeshGetpeername6,
    ] {
        bpf.hooks.attach_cgroup(program, &cgroup).unwrap();
    }
}
