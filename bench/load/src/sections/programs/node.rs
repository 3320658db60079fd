//! The node whose programs are run: its interfaces, its maps, and the packets that come to it.

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context as _, Result, anyhow};
use dataplane_kernel::bpf::{Bpf, Replaced, Tables, attach_pass};
use dataplane_model::kernel_state::HookMode;
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::table::ATTACHMENT_INGRESS;
use ebpf_abi::{
    Attachment, Endpoint, EndpointKey, Frontend, FrontendKey, Ip, Ip4, MacAddr, NextHop, NodeConfig, Peer,
    Port, ProgramId, RingKey, TargetPort, TargetPortKey, protocol,
};
use etherparse::PacketBuilder;

use crate::netns::Namespace;

const CLIENT: Ip4 = Ip4([198, 18, 0, 100]);
const NODE: Ip4 = Ip4([198, 18, 0, 11]);
pub const OTHER_NODE: Ip4 = Ip4([198, 18, 0, 12]);
const CLIENT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 100]);
const NODE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 11]);
const OTHER_NODE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 12]);

pub const INGRESS_VNI: u32 = 4096;
pub const OVERLAY_VNI: u32 = 4097;

/// This node's task and the other node's, in the ingress network and in the overlay.
const LOCAL_BACKEND: Ip4 = Ip4([10, 0, 0, 5]);
const REMOTE_BACKEND: Ip4 = Ip4([10, 0, 0, 6]);
const LOCAL_TASK: Ip4 = Ip4([10, 0, 1, 5]);
const REMOTE_TASK: Ip4 = Ip4([10, 0, 1, 6]);

const LOCAL_PORT: u16 = 8080;
const REMOTE_PORT: u16 = 8081;
const TARGET_PORT: u16 = 80;
const CLIENT_PORT: u16 = 40_000;
/// Ports and backends of services that no packet is for count up from here.
const FIRST_OTHER_PORT: u16 = 10_000;
const FIRST_OTHER_BACKEND: u32 = 0x0a10_0000;

/// What an HTTP request has, bytes.
const PAYLOAD: [u8; 100] = [b'x'; 100];

/// Services that no packet is for.
#[derive(Debug, Clone, Copy)]
pub struct Others {
    pub n_services: u16,
    /// Of each, on another node.
    pub n_backends: u32,
}

impl Others {
    pub const NONE: Self = Self { n_services: 0, n_backends: 0 };
}

/// A namespace with an uplink, the tunnel device and a task's two host ends; programs loaded, maps filled.
pub struct Node {
    bpf: Mutex<Option<Bpf>>,
    pins: PathBuf,
    namespace: Namespace,
    far: Namespace,
    pub uplink: u32,
    pub vxlan: u32,
    pub ingress_end: u32,
    pub overlay_end: u32,
}

impl Node {
    pub fn start(others: Others) -> Result<Self> {
        let role = format!("prog{}", others.n_services);
        let namespace = Namespace::new(&role)?;
        let far = Namespace::new(&format!("{role}far"))?;
        for link in ["up0", "mv0", "mv1"] {
            namespace.ip(&format!("link add {link} type veth peer name {link} netns {}", far.name()))?;
            namespace.ip(&format!("link set {link} up"))?;
            far.ip(&format!("link set {link} up"))?;
        }
        namespace.ip(&format!("link set up0 address {NODE_MAC}"))?;
        namespace.ip(&format!("addr add {NODE}/24 dev up0"))?;
        namespace.ip(&format!("neigh replace {OTHER_NODE} lladdr {OTHER_NODE_MAC} dev up0 nud permanent"))?;
        namespace.ip("link add mesh-vx type vxlan external dstport 4789 nolearning")?;
        namespace.ip("link set mesh-vx up")?;
        namespace.place().run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/conf/up0/forwarding"])?;
        let pins = PathBuf::from("/sys/fs/bpf").join(namespace.name());
        let index =
            |link: &'static str| namespace.place().inside(|| Ok(nix::net::if_::if_nametoindex(link)?));
        let (uplink, vxlan, ingress_end, overlay_end) =
            (index("up0")?, index("mesh-vx")?, index("mv0")?, index("mv1")?);
        let far_uplink = far.place().inside(|| Ok(nix::net::if_::if_nametoindex("up0")?))?;
        let node =
            Self { bpf: Mutex::new(None), pins, namespace, far, uplink, vxlan, ingress_end, overlay_end };
        let bpf = node.namespace.place().inside(|| {
            let mut bpf = Bpf::open(&node.pins)?;
            node.fill(&mut bpf.tables)?;
            fill_others(&mut bpf.tables, others)?;
            bpf.hooks.attach(ProgramId::MeshXdp, uplink, HookMode::XdpNative)?;
            Ok(bpf)
        })?;
        node.bpf.lock().map_err(|_| anyhow!("a run panicked"))?.replace(bpf);
        node.far.place().inside(|| Ok(attach_pass(far_uplink, &node.pins.join("pass"))?))?;
        Ok(node)
    }

    /// Runs `work` with the programs, in the node's namespace: interfaces are looked up there.
    pub fn run<T: Send>(&self, work: impl FnOnce(&mut Bpf) -> Result<T> + Send) -> Result<T> {
        let mut bpf = self.bpf.lock().map_err(|_| anyhow!("a run panicked"))?;
        let bpf = bpf.as_mut().context("the programs are loaded")?;
        self.namespace.place().inside(|| work(bpf))
    }

    /// What tc would ask the kernel for, once in this tick: nothing but the program that is measured runs. tc itself leaves
    /// what it tunnels to the kernel's device: own headers make a packet longer and mark it as tunnelled, which can't be undone.
    pub fn tell_next_hop(&self, tables: &mut Tables, tick: u32, is_for_xdp: bool) -> Result<()> {
        let hop = NextHop {
            seen: tick,
            to_renew: 0,
            ifindex: if is_for_xdp { self.uplink } else { 0 },
            gateway: OTHER_NODE.into(),
            mtu: 1500,
            source: NODE_MAC,
            destination: OTHER_NODE_MAC,
        };
        Ok(tables.next_hops.insert(&OTHER_NODE.into(), &hop)?)
    }

    fn fill(&self, tables: &mut Tables) -> Result<()> {
        tables.config.set(&NodeConfig {
            netns_cookie: 0,
            vtep: NODE.into(),
            vxlan_ifindex: self.vxlan,
            ingress_vni: INGRESS_VNI,
            uplink_ifindex: self.uplink,
            uplink_mtu: 1500,
            vxlan_port: Port::new(4789),
            ..NodeConfig::default()
        })?;
        tables.tick.set(&1)?;
        tables.peers.insert(&OTHER_NODE.into(), &Peer::default())?;
        tables.address_owners.insert(&NODE.into(), &Ip::UNSPECIFIED)?;
        tables.address_owners.insert(&OTHER_NODE.into(), &OTHER_NODE.into())?;
        self.fill_endpoints(tables)?;
        fill_services(tables)
    }

    fn fill_endpoints(&self, tables: &mut Tables) -> Result<()> {
        for (vni, local, remote, ifindex, flags) in [
            (INGRESS_VNI, LOCAL_BACKEND, REMOTE_BACKEND, self.ingress_end, ATTACHMENT_INGRESS),
            (OVERLAY_VNI, LOCAL_TASK, REMOTE_TASK, self.overlay_end, 0),
        ] {
            let mac = MacAddr::of_endpoint(local);
            tables.endpoints.insert(&EndpointKey { vni, address: local }, &Endpoint::local(mac, ifindex))?;
            let remote_endpoint = Endpoint::remote(MacAddr::of_endpoint(remote), OTHER_NODE.into());
            tables.endpoints.insert(&EndpointKey { vni, address: remote }, &remote_endpoint)?;
            let [a, b, c, _] = local.0;
            let gateway = Ip4([a, b, c, 1]);
            let attachment =
                Attachment { vni, address: local, gateway, mtu: 1450, mac, flags, prefix: 24, sandbox: 0 };
            tables.attachments.insert(&ifindex, &attachment)?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.pins.join("pass"));
        if !self.pins.exists() {
            return;
        }
        let released = self.namespace.place().inside(|| Ok(Bpf::open(&self.pins)?.release()?));
        if let Err(error) = released {
            eprintln!("bench-load: can't release the programs: {error:#}");
        }
        let _ = std::fs::remove_dir(&self.pins);
    }
}

fn fill_services(tables: &mut Tables) -> Result<()> {
    for (number, published, backend) in [(1, LOCAL_PORT, LOCAL_BACKEND), (2, REMOTE_PORT, REMOTE_BACKEND)] {
        let ring = RingKey::new(number, INGRESS_VNI);
        tables.rings.swap(&ring, &[backend])?;
        let frontend = FrontendKey::new(NODE, Port::new(published), protocol::TCP);
        tables.frontends.insert(&frontend, &Frontend::new(ring, Port::new(TARGET_PORT)))?;
        let key = TargetPortKey::new(backend, Port::new(published), protocol::TCP);
        tables.target_ports.insert(&key, &TargetPort::new(Port::new(TARGET_PORT)))?;
    }
    Ok(())
}

fn fill_others(tables: &mut Tables, others: Others) -> Result<()> {
    let mut rings = Vec::new();
    for number in 0..others.n_services {
        let ring = RingKey::new(u64::from(number) + 10, INGRESS_VNI);
        let frontend = FrontendKey::new(NODE, Port::new(FIRST_OTHER_PORT + number), protocol::TCP);
        tables.frontends.insert(&frontend, &Frontend::new(ring, Port::new(TARGET_PORT)))?;
        let first = u32::from(number) * others.n_backends;
        let backends: Vec<Ip4> =
            (first..first + others.n_backends).map(|n| Ip4::from_u32(FIRST_OTHER_BACKEND + n)).collect();
        for backend in &backends {
            let endpoint = Endpoint::remote(MacAddr::of_endpoint(*backend), OTHER_NODE.into());
            tables.endpoints.insert(&EndpointKey { vni: INGRESS_VNI, address: *backend }, &endpoint)?;
        }
        rings.push((ring, backends));
    }
    Ok(tables.rings.swap_all(&rings, |_| Replaced::Stay)?)
}

/// A segment of an established connection, as a SYN is the rare case.
fn segment(from: (MacAddr, Ip4, u16), to: (MacAddr, Ip4, u16), syn: bool) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2(from.0.0, to.0.0).ipv4(from.1.0, to.1.0, 64).tcp(from.2, to.2, 1, 1024);
    let (builder, payload) = if syn { (builder.syn(), &[][..]) } else { (builder.ack(1), &PAYLOAD[..]) };
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).expect("a vector takes all");
    frame
}

/// A node and a port of it that the client connects to.
pub type Published = (Ip4, u16);

pub const TO_REMOTE: Published = (NODE, REMOTE_PORT);
pub const TO_LOCAL: Published = (NODE, LOCAL_PORT);
pub const TO_LOCAL_BY_OTHER: Published = (OTHER_NODE, LOCAL_PORT);

const CLIENT_END: (MacAddr, Ip4, u16) = (CLIENT_MAC, CLIENT, CLIENT_PORT);
/// Of the connection by the other node: the task can't tell two of one port apart.
const OTHER_CLIENT_PORT: u16 = CLIENT_PORT + 1;

fn client_end(to: Published) -> (MacAddr, Ip4, u16) {
    if to.0 == OTHER_NODE { (CLIENT_MAC, CLIENT, OTHER_CLIENT_PORT) } else { CLIENT_END }
}

pub fn client_opens(to: Published) -> Vec<u8> {
    segment(client_end(to), (NODE_MAC, to.0, to.1), true)
}

pub fn client_sends(to: Published) -> Vec<u8> {
    segment(client_end(to), (NODE_MAC, to.0, to.1), false)
}

/// A client's frame as the other node tunnels it to this node's backend.
pub fn into_tunnel(mut frame: Vec<u8>) -> Vec<u8> {
    frame[0..6].copy_from_slice(&MacAddr::of_endpoint(LOCAL_BACKEND).0);
    frame[6..12].copy_from_slice(&ROUTER_MAC.0);
    frame
}

pub fn backend_to_client() -> Vec<u8> {
    segment(backend_end(), (ROUTER_MAC, CLIENT, CLIENT_PORT), false)
}

pub fn backend_to_client_of_other() -> Vec<u8> {
    segment(backend_end(), (ROUTER_MAC, CLIENT, OTHER_CLIENT_PORT), false)
}

/// The other node's backend answers a client of this node.
pub fn answer_to_client() -> Vec<u8> {
    segment((ROUTER_MAC, NODE, REMOTE_PORT), (ROUTER_MAC, CLIENT, CLIENT_PORT), false)
}

pub fn task_to_remote_task() -> Vec<u8> {
    segment(task_end(LOCAL_TASK), task_end(REMOTE_TASK), false)
}

pub fn remote_task_to_task() -> Vec<u8> {
    segment(task_end(REMOTE_TASK), task_end(LOCAL_TASK), false)
}

fn backend_end() -> (MacAddr, Ip4, u16) {
    (MacAddr::of_endpoint(LOCAL_BACKEND), LOCAL_BACKEND, TARGET_PORT)
}

fn task_end(address: Ip4) -> (MacAddr, Ip4, u16) {
    (MacAddr::of_endpoint(address), address, 40_000)
}
