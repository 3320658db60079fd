//! What the two nodes are assigned, and the views that their agents make of it: the service that is asked, and others that
//! are only there.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use control_agent::{AssignmentSet, NodeContext, Phase, ViewMaker};
use control_model::assignment::{EndpointView, Peer, ServiceView};
use control_model::object::{Endpoint, NetworkAttachment, NetworkState, Slot};
use control_model::spec::{EndpointMode, IpamConfig, NetworkSpec, PortConfig, Protocol, PublishMode};
use control_model::{
    Assignment, AssignmentKey, AssignmentUpdate, Generation, Network, NetworkId, NodeId, ServiceId, Task,
    TaskId,
};
use dataplane_model::{FULL_WEIGHT, NodeView};
use ebpf_abi::RingKey;
use ipnetwork::{IpNetwork, Ipv4Network};

use super::NODES;

const INGRESS: NetworkId = NetworkId::from_bits(1);
const OVERLAY: NetworkId = NetworkId::from_bits(2);
const INGRESS_VNI: u32 = 4096;
const TUNNEL_PORT: u16 = 4789;

/// The published port of the service that is asked, and its target.
pub const PORT: u16 = 9080;
/// Its virtual address.
pub const VIP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 2);
const ASKED: ServiceId = ServiceId::from_bits(0);
/// Of endpoints that are only there.
const NO_SERVICE: ServiceId = ServiceId::from_bits(u128::MAX);

/// A node that is not there: the others' backends are its.
const ABSENT_NODE: usize = 2;
/// Published ports of the others count up from here.
const FIRST_OTHER_PORT: u16 = 10_000;
/// Addresses of the others' backends, likewise.
const FIRST_OTHER_BACKEND: Ipv4Addr = Ipv4Addr::new(10, 16, 0, 0);
/// Addresses of endpoints without a service, likewise.
const FIRST_IDLE_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);

/// How much there is besides what is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The one that is asked included.
    pub n_services: u16,
    /// Of each of the others.
    pub n_backends: u32,
}

impl Extent {
    pub const fn services(n_services: u16) -> Self {
        Self { n_services, n_backends: 1 }
    }
}

/// What a node's agent has: assignments, the node's own task, the view of them.
pub struct Assigned {
    extent: Extent,
    set: AssignmentSet,
    own: Task,
    maker: ViewMaker,
    view: NodeView,
}

impl Assigned {
    /// Of one of the nodes; `revision` is the first view's.
    pub fn new(index: usize, revision: u64, extent: Extent) -> Self {
        let mut set = AssignmentSet::default();
        let generation = Generation { epoch: 1, index: revision };
        set.apply(AssignmentUpdate::Complete { generation, set: assignments(extent) }).expect("the first");
        let context = NodeContext {
            node: node_id(index),
            hostname: node_id(index).to_string(),
            vtep: tunnel_end(index).into(),
            vxlan_port: TUNNEL_PORT,
        };
        let mut maker = ViewMaker::new(context);
        let own = task(index);
        let view = maker.next(&set, [(&own, Phase::Running)]).expect("the first");
        let view = NodeView { revision, ..view.clone() };
        Self { extent, set, own, maker, view }
    }

    pub fn view(&self) -> NodeView {
        self.view.clone()
    }

    /// The next view, made as the agent does it.
    pub fn take(&mut self, update: AssignmentUpdate) -> Result<NodeView> {
        self.set.apply(update)?;
        if let Some(view) = self.maker.next(&self.set, [(&self.own, Phase::Running)]) {
            self.view = NodeView { revision: self.view.revision + 1, ..view.clone() };
        }
        Ok(self.view())
    }

    /// The last service has one backend more, or it is taken away again.
    pub fn one_more(&self, is_there: bool) -> AssignmentUpdate {
        let last = self.extent.n_services - 1;
        let address = first_backend(last, self.extent) + self.extent.n_backends;
        self.increment(is_there, [other_endpoint(service_id(last), address)])
    }

    /// The only backend of the service that is asked goes, or is back.
    pub fn asked_backend(&self, is_there: bool) -> AssignmentUpdate {
        self.increment(is_there, [own_endpoint(1, ASKED)])
    }

    /// Endpoints of the absent node that no service has come, or go.
    pub fn idle_endpoints(&self, is_there: bool, n_endpoints: u32) -> AssignmentUpdate {
        let first = u32::from(FIRST_IDLE_ENDPOINT);
        let rows = (first..first + n_endpoints).map(|address| other_endpoint(NO_SERVICE, address));
        self.increment(is_there, rows)
    }

    fn increment(&self, is_there: bool, rows: impl IntoIterator<Item = Assignment>) -> AssignmentUpdate {
        let base = self.set.generation();
        let generation = Generation { index: base.index + 1, ..base };
        let rows: Vec<Assignment> = rows.into_iter().collect();
        let removals: Vec<AssignmentKey> = rows.iter().map(Assignment::key).filter(|_| !is_there).collect();
        let upserts = if is_there { rows } else { Vec::new() };
        AssignmentUpdate::Incremental { base, generation, upserts, removals }
    }
}

/// The sandbox of a node's own task.
pub fn sandbox_name(index: usize) -> String {
    task_id(index).to_string()
}

pub fn overlay_address(index: usize) -> Ipv4Addr {
    [Ipv4Addr::new(172, 30, 0, 5), Ipv4Addr::new(172, 30, 0, 6)][index]
}

fn ingress_address(index: usize) -> Ipv4Addr {
    [Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::new(10, 0, 0, 6)][index]
}

/// The ring of the last service.
pub fn last_ring(extent: Extent) -> RingKey {
    RingKey::new((extent.n_services - 1).into(), INGRESS_VNI)
}

fn tunnel_end(index: usize) -> Ipv4Addr {
    [NODES[0], NODES[1], Ipv4Addr::new(198, 18, 0, 13)][index]
}

fn node_id(index: usize) -> NodeId {
    NodeId::from_bits(index as u128 + 1)
}

fn service_id(number: u16) -> ServiceId {
    ServiceId::from_bits(number.into())
}

fn task_id(index: usize) -> TaskId {
    TaskId::from_bits(index as u128 + 1)
}

/// All that both nodes know. The service that is asked has its only task on the second node; the first node's own serves
/// nothing.
fn assignments(extent: Extent) -> Vec<Assignment> {
    let ingress = network(INGRESS, "ingress", INGRESS_VNI, "10.0.0.0/8");
    let overlay = network(OVERLAY, "app", INGRESS_VNI + 1, "172.30.0.0/24");
    let others = (1..extent.n_services).flat_map(|number| {
        let first = first_backend(number, extent);
        let backends = first..first + extent.n_backends;
        let port = FIRST_OTHER_PORT + number;
        [service(service_id(number), format!("other{number}"), (port, 80), None)]
            .into_iter()
            .chain(backends.map(move |address| other_endpoint(service_id(number), address)))
    });
    [ingress, overlay]
        .into_iter()
        .chain((0..=ABSENT_NODE).map(peer))
        .chain([service(ASKED, "asked".to_owned(), (PORT, PORT), Some(VIP))])
        .chain([own_endpoint(0, NO_SERVICE), own_endpoint(1, ASKED)])
        .chain(others)
        .collect()
}

fn network(id: NetworkId, name: &str, vni: u32, subnet: &str) -> Assignment {
    let subnet: Ipv4Network = subnet.parse().expect("a subnet");
    let mut spec = NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() };
    spec.ingress = id == INGRESS;
    let ipam = IpamConfig { subnet: subnet.into(), range: None, gateway: subnet.nth(1).map(IpAddr::V4) };
    let state = Some(NetworkState { vni, ipam: vec![ipam] });
    Assignment::Network(Box::new(Network { state, ..Network::new(id, spec) }))
}

fn peer(index: usize) -> Assignment {
    let address = tunnel_end(index).into();
    Assignment::Peer(Peer {
        id: node_id(index),
        hostname: node_id(index).to_string(),
        vtep: address,
        addresses: vec![address],
        addresses_since: 1,
        underlay_mtu_bytes: None,
        gossip: None,
        alive: true,
    })
}

fn service(
    id: ServiceId,
    name: String,
    (published, target): (u16, u16),
    vip: Option<Ipv4Addr>,
) -> Assignment {
    let port = PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target,
        published,
        mode: PublishMode::Ingress,
    };
    let vips = vip.map(|address| (OVERLAY, address)).into_iter().collect();
    Assignment::Service(ServiceView {
        id,
        name,
        endpoint: Endpoint { mode: EndpointMode::Vip, ports: vec![port], vips },
        dsr: false,
        aliases: Vec::new(),
    })
}

/// A node's own task.
fn task(index: usize) -> Task {
    let service = if index == 0 { NO_SERVICE } else { ASKED };
    let task = Task::new(task_id(index), service, Slot::Replica(1));
    Task { node: Some(node_id(index)), attachments: own_attachments(index), ..task }
}

fn own_attachments(index: usize) -> Vec<NetworkAttachment> {
    vec![attachment(INGRESS, ingress_address(index)), attachment(OVERLAY, overlay_address(index))]
}

fn own_endpoint(index: usize, service: ServiceId) -> Assignment {
    endpoint(task_id(index), service, index, own_attachments(index))
}

fn other_endpoint(service: ServiceId, address: u32) -> Assignment {
    let attachments = vec![attachment(INGRESS, address.into())];
    endpoint(TaskId::from_bits(address.into()), service, ABSENT_NODE, attachments)
}

fn endpoint(
    task: TaskId,
    service: ServiceId,
    node: usize,
    attachments: Vec<NetworkAttachment>,
) -> Assignment {
    let node = node_id(node);
    Assignment::Endpoint(EndpointView {
        task,
        service,
        name: format!("task.{task}"),
        node,
        attachments,
        ready: true,
        weight: FULL_WEIGHT,
    })
}

fn attachment(network: NetworkId, address: Ipv4Addr) -> NetworkAttachment {
    let address = IpNetwork::from(IpAddr::V4(address));
    NetworkAttachment { network, address, aliases: Vec::new() }
}

/// There is room for one more after each service's.
fn first_backend(number: u16, extent: Extent) -> u32 {
    u32::from(FIRST_OTHER_BACKEND) + u32::from(number) * (extent.n_backends + 1)
}
