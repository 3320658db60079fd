//! From a task on one node to a task on another.

use std::net::Ipv4Addr;

use anyhow::Result;
use dataplane_plan::IngressHook;

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
/// By itself the mesh chooses tc on links of this kind: this row says why.
const BY_XDP: &str = "mesh, XDP in the driver";
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
    let path = mesh.get().and_then(MeshPath::start);
    compare_ways(plan, &[Way::of(MESH, &path, |path, sample| sample(&path.route))]).into()
}

/// From task to task of two nodes by their data planes alone.
pub fn measure_pair(plan: Plan) -> Vec<Comparison> {
    let [ours, by_xdp] = [IngressHook::Auto, IngressHook::Xdp].map(PairPath::start);
    let ways = [
        Way::of(MESH, &ours, |path, sample| sample(&path.route)),
        Way::of(BY_DEVICE, &ours, |path, sample| path.pair.by_tunnel_device(|| sample(&path.route))),
        Way::of(BY_XDP, &by_xdp, |path, sample| sample(&path.route)),
    ];
    let [stream, exchange] = compare_ways(plan, &ways);
    vec![stream.aiming_at(&STREAM_GOALS), exchange.aiming_at(&EXCHANGE_GOALS)]
}

/// A way that the mesh goes.
struct Way<'a> {
    name: &'static str,
    sample: Box<dyn Fn(Sample<'_>) -> Result<f64> + 'a>,
}

/// What is measured of a route.
type Sample<'a> = &'a dyn Fn(&Route) -> Result<f64>;

impl<'a> Way<'a> {
    fn of<T>(name: &'static str, path: &'a Result<T>, sample: fn(&T, Sample<'_>) -> Result<f64>) -> Self {
        let sample = move |of: Sample<'_>| match path {
            Ok(path) => sample(path, of),
            Err(error) => anyhow::bail!("{error:#}"),
        };
        Self { name, sample: Box::new(sample) }
    }
}

/// The first way, the peers, and the other ways.
fn compare_ways(plan: Plan, ways: &[Way<'_>]) -> [Comparison; 2] {
    let plain = PlainPath::start();
    let table = |metric, sample: fn(&Route, Plan) -> Result<f64>| {
        let mut rows: Vec<Peer<'_>> = ways
            .iter()
            .map(|way| Peer::new(way.name, move || (way.sample)(&|route: &Route| sample(route, plan))))
            .collect();
        let peers = [
            Peer::maybe(BRIDGE, &plain, move |path| sample(&path.overlay, plan)),
            Peer::maybe(UNDERLAY, &plain, move |path| sample(&path.underlay, plan)),
        ];
        rows.splice(1..1, peers);
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
    fn start(hook: IngressHook) -> Result<Self> {
        let pair = Pair::start_by(hook)?;
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
