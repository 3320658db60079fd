//! Requests to a published port of two nodes that know 1, 100 and 10,000 services, beside gateways with as many rules.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, anyhow};
use dataplane_plan::IngressHook;

use super::gateway::{Gateways, Haproxy, Rules};
use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::netns::Place;
use crate::pair::{self, Extent, Pair};
use crate::tools::nginx::Nginx;
use crate::tools::wrk::{Connections, requests_per_second};

pub(super) const KEPT: Metric =
    Metric { name: "HTTP, connections kept", unit: "requests/s", better: Better::Higher };
pub(super) const SHORT: Metric =
    Metric { name: "HTTP, a connection each", unit: "requests/s", better: Better::Higher };

const MESH_1: &str = "mesh, 1 service";
const MESH_100: &str = "mesh, 100 services";
const MESH_10000: &str = "mesh, 10,000 services";
const BY_DEVICE: &str = "mesh, 1 service, tunnels by the kernel's device";
/// By itself the mesh chooses tc on links of this kind: this row says why.
const BY_XDP: &str = "mesh, 1 service, XDP in the driver";
const DNAT_1: &str = "nftables DNAT, 1 rule";
const DNAT_100: &str = "nftables DNAT, 100 rules";
const HAPROXY: &str = "HAProxy";

const GOALS: [Goal; 4] = [
    Goal { row: MESH_1, bound: Bound::AtLeast { share: 1.0, of: DNAT_1 } },
    Goal { row: MESH_100, bound: Bound::AtLeast { share: 1.0, of: DNAT_100 } },
    // Flat: what the samples spread by is allowed.
    Goal { row: MESH_10000, bound: Bound::AtLeast { share: 0.95, of: MESH_1 } },
    Goal { row: MESH_1, bound: Bound::AtLeast { share: 2.0, of: HAPROXY } },
];

/// The gateways, in this order.
const RULES: [Rules; 3] = [Rules::List(1), Rules::List(100), Rules::Map(10_000)];

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let gateways = Gateways::start(&RULES);
    let haproxy = gateways.as_ref().map_err(|error| anyhow!("{error:#}")).and_then(Haproxy::start);
    let [ours, by_xdp] = [IngressHook::Auto, IngressHook::Xdp].map(Served::start_by);
    let table = |metric, connections| {
        let ask = move |place: &Place, to: SocketAddr| {
            requests_per_second(place, &format!("http://{to}/"), connections, plan.seconds)
        };
        let mesh = move |n_services: u16| {
            move |served: &Served| {
                served.extend(n_services)?;
                ask(served.pair.client(), (pair::NODES[0], pair::PORT).into())
            }
        };
        let peer = move |to: SocketAddr| move |gateways: &Gateways| ask(gateways.client(), to);
        let rows = vec![
            Peer::maybe(MESH_1, &ours, mesh(1)),
            Peer::maybe(DNAT_1, &gateways, peer(Gateways::forwarded(0))),
            Peer::maybe(HAPROXY, &haproxy, move |haproxy| ask(&haproxy.client, Haproxy::address())),
            Peer::maybe("directly", &gateways, peer(Gateways::direct())),
            Peer::maybe(MESH_100, &ours, mesh(100)),
            Peer::maybe(DNAT_100, &gateways, peer(Gateways::forwarded(1))),
            Peer::maybe(MESH_10000, &ours, mesh(10_000)),
            Peer::maybe(BY_DEVICE, &ours, move |served: &Served| {
                served.extend(1)?;
                served.pair.by_tunnel_device(|| mesh(1)(served))
            }),
            Peer::maybe(BY_XDP, &by_xdp, mesh(1)),
            Peer::maybe("nftables DNAT, a map of 10,000", &gateways, peer(Gateways::forwarded(2))),
        ];
        compare(metric, plan, rows).aiming_at(&GOALS)
    };
    vec![table(KEPT, Connections::Kept), table(SHORT, Connections::Short)]
}

/// Two nodes; the task on the second serves.
pub(super) struct Served {
    _nginx: Nginx,
    pub pair: Pair,
    revision: Cell<u64>,
    n_services: Cell<u16>,
}

impl Served {
    pub fn start() -> Result<Self> {
        Self::start_by(IngressHook::Auto)
    }

    fn start_by(hook: IngressHook) -> Result<Self> {
        let pair = Pair::start_by(hook)?;
        pair.converge(1, Extent::services(1))?;
        let nginx = Nginx::start(&pair.task(1)?, (Ipv4Addr::UNSPECIFIED, pair::PORT).into())?;
        Ok(Self { _nginx: nginx, pair, revision: Cell::new(1), n_services: Cell::new(1) })
    }

    /// Makes the nodes know this many services.
    fn extend(&self, n_services: u16) -> Result<()> {
        if self.n_services.get() == n_services {
            return Ok(());
        }
        self.revision.set(self.revision.get() + 1);
        self.pair.converge(self.revision.get(), Extent::services(n_services))?;
        self.n_services.set(n_services);
        Ok(())
    }
}
