//! A driver over a kernel in memory, and views for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use dataplane_driver::{Driver, DriverOptions};
use dataplane_kernel::{FakeKernel, Machine};
use dataplane_model::kernel_state::LinkName;
use dataplane_model::{
    Attachment, Backend, DataPlane as _, Generation, Network, NetworkKey, NodeView, PublishedPort,
    RemoteEndpoint, Report, Sandbox, SandboxId, SandboxStatus, Service, ServiceKey, Table, Vni,
};
use dataplane_plan::{Forwarding6, Uplink};

pub const OWN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 11);
pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn machine() -> Machine {
    let uplink = Uplink {
        index: 2,
        mtu_bytes: 1500,
        addresses: vec![OWN],
        addresses6: vec![],
        kind: Some("veth".into()),
        driver: None,
        has_native_xdp: false,
    };
    Machine {
        uplinks: BTreeMap::from([(LinkName::new("up0").unwrap(), uplink)]),
        connected: ["198.18.0.0/24".parse().unwrap()].into(),
        host_forwards: false,
        forwarding6: Forwarding6::Off,
        has_way_out6: false,
        has_tcx: true,
        has_ipv6: true,
        has_socket_reset: true,
    }
}

pub fn id(n: u8) -> SandboxId {
    SandboxId(format!("task{n}"))
}

pub fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

/// The first `n_here` tasks of a service run here, one more on another node.
pub fn view(revision: u64, n_here: u8) -> NodeView {
    let ingress = NetworkKey(1);
    let network = Network {
        name: "ingress".into(),
        vni: Vni::new(4096).unwrap(),
        subnet: "10.0.0.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        subnet6: None,
        internal: false,
        mtu_bytes: None,
    };
    let sandbox = |n: u8| Sandbox {
        task_name: format!("web.{n}"),
        hostname: "web".into(),
        attachments: vec![Attachment { network: ingress, address: address(n), aliases: vec![] }],
        egress: true,
        host_ports: vec![],
        dns_servers: vec![],
        dns_options: vec![],
    };
    let here = 10..10 + n_here;
    let other = Ipv4Addr::new(198, 18, 0, 12);
    let backend =
        |vtep| Backend { task_name: "web".into(), vtep, ready: true, weight: dataplane_model::FULL_WEIGHT };
    let mut backends: BTreeMap<_, _> =
        here.clone().map(|n| ((ingress, address(n)), backend(OWN.into()))).collect();
    backends.insert((ingress, address(200)), backend(other.into()));
    let service = Service {
        name: "web".into(),
        vips: BTreeMap::new(),
        aliases: BTreeMap::new(),
        ingress_ports: vec![PublishedPort { protocol: 6, published: 8080, target: 80 }],
        dsr: false,
        ports: vec![],
        backends,
    };
    let remote = RemoteEndpoint { vtep: other.into(), task_name: "web.200".into(), aliases: vec![] };
    NodeView {
        revision,
        generation: Generation { epoch: 1, index: revision },
        vtep: OWN.into(),
        vxlan_port: 4789,
        ingress: Some(ingress),
        networks: Table::from_iter([(ingress, network)]),
        sandboxes: here.map(|n| (id(n), sandbox(n))).collect(),
        remote_endpoints: Table::from_iter([((ingress, address(200)), remote)]),
        services: Table::from_iter([(ServiceKey(1), service)]),
        peers: Table::new(),
    }
}

pub fn start(kernel: &FakeKernel) -> Driver {
    start_with(kernel, |_| {})
}

/// `choose` may change the driver's options before it starts.
pub fn start_with(kernel: &FakeKernel, choose: impl FnOnce(&mut DriverOptions)) -> Driver {
    let mut options = DriverOptions::new(PathBuf::from("/nowhere"), PathBuf::from("/nowhere"));
    choose(&mut options);
    let kernel = kernel.clone();
    Driver::start_with(&options, move || Ok(kernel)).unwrap()
}

pub async fn until(driver: &Driver, what: &str, is_so: impl Fn(&Report) -> bool) -> Report {
    let mut reports = driver.watch();
    let waited = tokio::time::timeout(PATIENCE, reports.wait_for(|report| is_so(report))).await;
    match waited {
        Ok(report) => report.unwrap().clone(),
        Err(elapsed) => panic!("{what}: {elapsed}: {:#?}", driver.watch().borrow()),
    }
}

pub fn is_ready(report: &Report, n: u8) -> bool {
    matches!(report.sandboxes.get(&id(n)), Some(SandboxStatus::Ready { .. }))
}
