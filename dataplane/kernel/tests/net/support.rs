//! A node in a network namespace of its own, with an uplink `up0` (198.18.0.11/24) to a machine outside (198.18.0.100).

use std::fs::{self, File};
use std::future::Future;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dataplane_kernel::net::{Net, NetOptions};
use dataplane_model::kernel_state::{Device, Leg, LinkName, PacketFilter, Present, SandboxNet, Singleton};
use dataplane_model::{KernelState, Mac, SandboxId};
use nix::sched::{CloneFlags, setns, unshare};

/// The namespace of the calling thread, and the one outside.
pub struct Node {
    pub outside: File,
    pub dir: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    /// Moves the calling thread into a new namespace and gives it an uplink.
    pub fn enter() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("meshd-net-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        let outside = std::thread::spawn(fresh_namespace).join().unwrap();
        fresh_namespace();
        let node = Self {
            outside,
            dir,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        };
        let pid = std::process::id();
        let outside = std::os::fd::AsRawFd::as_raw_fd(&node.outside);
        ok("ip link set lo up");
        // A namespace by its open file: `netns` takes a path.
        ok(&format!("ip link add up0 type veth peer name eth0 netns /proc/{pid}/fd/{outside}"));
        ok("ip addr add 198.18.0.11/24 dev up0");
        ok("ip link set up0 up");
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        node.outside("ip addr add 198.18.0.100/24 dev eth0");
        node.outside("ip link set eth0 up");
        node.outside("ip link set lo up");
        while !ok("ip -br link show dev up0").contains(" UP ") {
            std::thread::yield_now();
        }
        node
    }

    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub fn net(&self) -> Net {
        let _entered = self.runtime.enter();
        Net::new(NetOptions { netns_dir: self.netns_dir(), uplinks: vec![] }).unwrap()
    }

    pub fn netns_dir(&self) -> PathBuf {
        self.dir.join("netns")
    }

    /// A command in the machine outside; it must succeed.
    pub fn outside(&self, command: &str) -> String {
        in_namespace(&self.outside, command)
    }

    /// Does a datagram from the machine outside get to `to`?
    pub fn outside_reaches(&self, to: &str) -> bool {
        reaches(&self.outside, to)
    }

    /// Does a datagram from a sandbox get to `to`?
    pub fn sandbox_reaches(&self, id: &SandboxId, to: &str) -> bool {
        reaches(&File::open(self.netns_dir().join(&id.0)).unwrap(), to)
    }

    /// A command in a sandbox; it must succeed.
    pub fn sandbox(&self, id: &SandboxId, command: &str) -> String {
        in_namespace(&File::open(self.netns_dir().join(&id.0)).unwrap(), command)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.netns_dir()).into_iter().flatten().flatten() {
            dataplane_kernel::net::namespace::Namespace::remove(&entry.path()).unwrap();
        }
        let _removed = fs::remove_dir_all(&self.dir);
    }
}

fn fresh_namespace() -> File {
    unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
    File::open("/proc/thread-self/ns/net").unwrap()
}

fn in_namespace(namespace: &File, command: &str) -> String {
    let (namespace, command) = (namespace.try_clone().unwrap(), command.to_owned());
    let entered = std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        ok(&command)
    });
    entered.join().unwrap()
}

/// Sends to a port where nobody listens: a machine that is reached refuses by ICMP, else nothing comes.
fn reaches(namespace: &File, to: &str) -> bool {
    let (namespace, to) = (namespace.try_clone().unwrap(), to.to_owned());
    let entered = std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let any = if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = std::net::UdpSocket::bind(any).unwrap();
        socket.connect((to.as_str(), 9)).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
        socket.send(b"?").unwrap();
        socket.recv(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    entered.join().unwrap()
}

/// Standard output of a command in the calling thread's namespace; it must succeed.
pub fn ok(command: &str) -> String {
    let output = shell(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn shell(command: &str) -> Output {
    let words: Vec<&str> = command.split_whitespace().collect();
    Command::new(words[0]).args(&words[1..]).output().unwrap()
}

pub fn link(name: &str) -> LinkName {
    LinkName::new(name).unwrap()
}

pub fn id(name: &str) -> SandboxId {
    SandboxId(name.to_owned())
}

/// A leg behind the gateway bridge.
pub fn way_out(id: &SandboxId, last: u8) -> Leg {
    let address = std::net::Ipv4Addr::new(172, 18, 0, last);
    Leg {
        name: link("eth1"),
        host: LinkName::of_gateway_leg(id),
        bridge: Some(LinkName::gateway_bridge()),
        address: format!("{address}/16").parse().unwrap(),
        mac: Mac::of_endpoint(address),
        mtu_bytes: 1500,
        gateway: std::net::Ipv4Addr::new(172, 18, 0, 1),
        table: 101,
        default_route: true,
        ipv6: None,
    }
}

/// A leg in an overlay network.
pub fn overlay(id: &SandboxId, last: u8) -> Leg {
    let address = std::net::Ipv4Addr::new(10, 0, 0, last);
    Leg {
        name: link("eth0"),
        host: LinkName::of_attachment(id, dataplane_model::Vni::new(4096).unwrap()),
        bridge: None,
        address: format!("{address}/24").parse().unwrap(),
        mac: Mac::of_endpoint(address),
        mtu_bytes: 1450,
        gateway: std::net::Ipv4Addr::new(10, 0, 0, 1),
        table: 100,
        default_route: false,
        ipv6: None,
    }
}

/// Devices, forwarding and filter of a node with one sandbox.
pub fn wanted(id: &SandboxId) -> KernelState {
    let mut state = KernelState::default();
    let bridge =
        Device::Bridge { address: "172.18.0.1/16".parse().unwrap(), address6: None, mtu_bytes: 1500 };
    state.devices.insert(LinkName::gateway_bridge(), bridge);
    state.devices.insert(LinkName::vxlan(), Device::Vxlan { port: 4789, mtu_bytes: 1450, over_ipv6: false });
    state.forwarding.insert(LinkName::gateway_bridge(), Present);
    state.forwarding.insert(LinkName::vxlan(), Present);
    state.forwarding.insert(link("up0"), Present);
    let route = dataplane_model::kernel_state::NodeRoute {
        device: LinkName::vxlan(),
        source: std::net::Ipv4Addr::new(198, 18, 0, 11).into(),
    };
    state.routes.insert("10.0.0.0/24".parse().unwrap(), route);
    let filter = PacketFilter {
        bridge: LinkName::gateway_bridge(),
        subnet: "172.18.0.0/16".parse().unwrap(),
        subnet6: None,
        tunnel_port: 4789,
        node: Some(std::net::Ipv4Addr::new(198, 18, 0, 11)),
        guarded: [link("up0")].into(),
        guarded6: [link("up0")].into(),
        no_egress: [].into(),
        host_ports: [].into(),
        targets: Arc::new([(6, 80), (17, 53)].into()),
    };
    state.filter.insert(Singleton, filter);
    state.sandboxes.insert(id.clone(), SandboxNet { legs: vec![overlay(id, 5), way_out(id, 9)] });
    state
}

/// Converges once and returns the steps that it took.
pub async fn converge(net: &mut Net, wanted: &KernelState) -> Vec<String> {
    let held = observe(net).await;
    let steps = dataplane_plan::steps(&held, wanted);
    for op in &steps {
        let is_net = net.apply(op).await.unwrap_or_else(|error| panic!("{op}: {error:?}"));
        assert!(is_net, "{op}");
    }
    steps.iter().map(ToString::to_string).collect()
}

pub async fn observe(net: &mut Net) -> KernelState {
    net.machine(std::net::Ipv4Addr::new(198, 18, 0, 11).into(), None).await.unwrap();
    let mut state = KernelState::default();
    net.observe(&mut state).await.unwrap();
    state
}
