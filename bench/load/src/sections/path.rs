//! From a task on one node to a task on another.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::mesh::{LazyMesh, Mesh, TaskPair};
use crate::netns::{Namespace, Place};
use crate::pair::{self, Extent, Pair};
use crate::process::Background;
use crate::tools::{iperf, pingpong};

const STREAM: Metric = Metric { name: "TCP stream across nodes", unit: "Gbit/s", better: Better::Higher };
const EXCHANGE: Metric = Metric {
    name: "TCP request and response across nodes, one at a time",
    unit: "1/s",
    better: Better::Higher,
};

/// Tunnel ends of the two nodes.
const NODES: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 19, 1, 1), Ipv4Addr::new(198, 19, 1, 2)];
/// Addresses of the two tasks on the bridge with VXLAN.
const TASKS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
/// Tasks on VXLAN over a link of 1500 (RFC 7348 section 4.3).
const TASK_MTU: u32 = 1450;

const MESH: &str = "mesh";
const BY_DEVICE: &str = "mesh, tunnels by the kernel's device";
const BRIDGE: &str = "bridge and VXLAN";
const UNDERLAY: &str = "underlay";

const STREAM_GOALS: [Goal; 2] = [
    Goal { row: MESH, bound: Bound::AtLeast { share: 0.95, of: UNDERLAY } },
    Goal { row: MESH, bound: Bound::AtLeast { share: 1.0, of: BRIDGE } },
];
const EXCHANGE_GOALS: [Goal; 2] = [
    Goal { row: MESH, bound: Bound::AtLeast { share: 0.9, of: UNDERLAY } },
    Goal { row: MESH, bound: Bound::AtLeast { share: 1.0, of: BRIDGE } },
];

/// From task to task of a lab of real daemons.
pub fn measure(plan: Plan, mesh: &LazyMesh) -> Vec<Comparison> {
    compare_paths(plan, &mesh.get().and_then(MeshPath::start), |path| &path.route, None).into()
}

/// From task to task of two nodes by their data planes alone.
pub fn measure_pair(plan: Plan) -> Vec<Comparison> {
    let by_device: ByDevice<PairPath> = |path, sample| path.pair.by_tunnel_device(|| sample(&path.route));
    let [stream, exchange] = compare_paths(plan, &PairPath::start(), |path| &path.route, Some(by_device));
    vec![stream.aiming_at(&STREAM_GOALS), exchange.aiming_at(&EXCHANGE_GOALS)]
}

/// Takes a sample while the mesh leaves its tunnels to the kernel's device.
type ByDevice<T> = fn(&T, &dyn Fn(&Route) -> Result<f64>) -> Result<f64>;

fn compare_paths<T>(
    plan: Plan,
    ours: &Result<T>,
    route: fn(&T) -> &Route,
    by_device: Option<ByDevice<T>>,
) -> [Comparison; 2] {
    let plain = PlainPath::start();
    let table = |metric, sample: fn(&Route, Plan) -> Result<f64>| {
        let mut rows = vec![
            Peer::maybe(MESH, ours, move |path| sample(route(path), plan)),
            Peer::maybe(BRIDGE, &plain, move |path| sample(&path.overlay, plan)),
            Peer::maybe(UNDERLAY, &plain, move |path| sample(&path.underlay, plan)),
        ];
        if let Some(by_device) = by_device {
            rows.push(Peer::maybe(BY_DEVICE, ours, move |path| {
                by_device(path, &|route| sample(route, plan))
            }));
        }
        compare(metric, plan, rows)
    };
    [table(STREAM, Route::stream), table(EXCHANGE, Route::exchange)]
}

/// From one place to an address in another, where an iperf3 server listens.
struct Route {
    _server: Background,
    from: Place,
    to: Place,
    address: Ipv4Addr,
}

impl Route {
    fn new(from: &Place, to: &Place, address: Ipv4Addr) -> Result<Self> {
        let server = iperf::serve(to, address)?;
        Ok(Self { _server: server, from: from.clone(), to: to.clone(), address })
    }

    fn stream(&self, plan: Plan) -> Result<f64> {
        iperf::stream(&self.from, self.address, plan.seconds)
    }

    fn exchange(&self, plan: Plan) -> Result<f64> {
        pingpong::exchanges_per_second(&self.from, &self.to, self.address, plan.seconds)
    }
}

/// Two tasks of the mesh on different nodes.
struct MeshPath {
    route: Route,
    _tasks: TaskPair,
}

impl MeshPath {
    fn start(mesh: &Mesh) -> Result<Self> {
        let tasks = mesh.task_pair()?;
        let route = Route::new(&tasks.from, &tasks.to, tasks.address)?;
        Ok(Self { route, _tasks: tasks })
    }
}

/// The same without control plane.
struct PairPath {
    route: Route,
    pair: Pair,
}

impl PairPath {
    fn start() -> Result<Self> {
        let pair = Pair::start()?;
        pair.converge(1, Extent::services(1))?;
        let route = Route::new(&pair.task(0)?, &pair.task(1)?, pair::overlay_address(1))?;
        Ok(Self { route, pair })
    }
}

/// Two nodes on a bridge; on each a Linux bridge with a VXLAN device and a task, as Docker's overlay driver builds it.
struct PlainPath {
    overlay: Route,
    underlay: Route,
    _namespaces: [Namespace; 5],
}

impl PlainPath {
    fn start() -> Result<Self> {
        let underlay = Namespace::new("un")?;
        underlay.add_bridge()?;
        let nodes = [Namespace::new("n0")?, Namespace::new("n1")?];
        let tasks = [Namespace::new("t0")?, Namespace::new("t1")?];
        for (index, (node, task)) in nodes.iter().zip(&tasks).enumerate() {
            underlay.plug(node, &format!("p{index}"), &format!("{}/24", NODES[index]))?;
            add_overlay(node, NODES[index], NODES[1 - index])?;
            node.plug(task, "task", &format!("{}/24", TASKS[index]))?;
            node.ip(&format!("link set task mtu {TASK_MTU}"))?;
            task.ip(&format!("link set eth0 mtu {TASK_MTU}"))?;
        }
        let overlay_route = Route::new(tasks[0].place(), tasks[1].place(), TASKS[1])?;
        let underlay_route = Route::new(nodes[0].place(), nodes[1].place(), NODES[1])?;
        let [node0, node1] = nodes;
        let [task0, task1] = tasks;
        Ok(Self {
            overlay: overlay_route,
            underlay: underlay_route,
            _namespaces: [task0, task1, node0, node1, underlay],
        })
    }
}

/// A bridge and a VXLAN device that sends to the other node what it does not know.
fn add_overlay(node: &Namespace, local: Ipv4Addr, remote: Ipv4Addr) -> Result<()> {
    node.add_bridge()?;
    node.ip(&format!("link add vx0 type vxlan id 4097 dstport 4789 local {local} remote {remote} dev eth0"))?;
    node.ip(&format!("link set vx0 mtu {TASK_MTU} master br0 up"))
}
