//! Requests to a published port of ours and of Docker Swarm's mesh, where the kernel has IPVS, which that is made of. Two
//! nodes each; the client asks the one without the task.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use bench_lab::wait_until;

use super::gateway::{Gateways, Rules};
use super::mesh_http::{KEPT, SHORT, Served};
use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, Row, compare};
use crate::dockerd::{self, PacketFilter, Size, Swarm};
use crate::netns::{Namespace, Place};
use crate::pair;
use crate::tools::nginx::Nginx;
use crate::tools::wrk::{Connections, requests_per_second};

/// For the report.
pub const METHOD: &str = "\
`cargo xtask bench guest`: everything runs in the test guest, Debian 12 with its own kernel, which has IPVS. Where the\n\
processor is QEMU's (TCG), instructions are emulated: rates are low, user programs weigh more than on a machine, and only\n\
ratios say something. All rows have the same client (`wrk`, one thread, 32 connections) and the same server (nginx, one\n\
worker, in the task's namespace), each in a namespace on a bridge by veth, as are the nodes.\n\
\n\
- *mesh*: two nodes by their data planes alone, without daemons; the client asks the node without the task.\n\
- *Docker Swarm's mesh*: two `dockerd` of Debian, a manager and a worker, with all that they set up: iptables, the ingress\n\
  network's namespace with IPVS, VXLAN. The client asks the manager, the task is on the worker. The daemons idle beside all\n\
  rows.\n\
- *IPVS, NAT*: one gateway, `ipvsadm -m`, no connection tracking, answers come back by a route. The server is on the same\n\
  bridge: no tunnel.\n\
- *nftables DNAT*: one gateway, one rule, masquerade; no tunnel.\n\
- *directly*: no gateway.\n\
\n\
What the way adds is 1 s / rate, less that of the direct way in the same round: client and server have most of a request's\n\
time, and the same for all.";

const ADDED_KEPT: Metric =
    Metric { name: "What the way adds to a request, connections kept", unit: "µs", better: Better::Lower };
const ADDED_SHORT: Metric =
    Metric { name: "What the way adds to a request, a connection each", unit: "µs", better: Better::Lower };

const MESH: &str = "mesh";
const SWARM: &str = "Docker Swarm's mesh";
const DIRECTLY: &str = "directly";

const GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::AtLeast { share: 2.0, of: SWARM } }];
const ADDED_GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::AtMost { share: 0.5, of: SWARM } }];

/// The gateways, in this order.
const RULES: [Rules; 2] = [Rules::Ipvs, Rules::List(1)];

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let gateways = Gateways::start(&RULES);
    let ours = Served::start();
    let swarm = SwarmHttp::start();
    let table = |metric, connections| {
        let ask = move |place: &Place, to: SocketAddr| {
            requests_per_second(place, &format!("http://{to}/"), connections, plan.seconds)
        };
        let peer = move |to: SocketAddr| move |gateways: &Gateways| ask(gateways.client(), to);
        let rows = vec![
            Peer::maybe(MESH, &ours, move |served: &Served| {
                ask(served.pair.client(), (pair::NODES[0], pair::PORT).into())
            }),
            Peer::maybe(SWARM, &swarm, move |swarm: &SwarmHttp| {
                ask(swarm.client.place(), SwarmHttp::target())
            }),
            Peer::maybe("IPVS, NAT", &gateways, peer(Gateways::forwarded(0))),
            Peer::maybe("nftables DNAT", &gateways, peer(Gateways::forwarded(1))),
            Peer::maybe(DIRECTLY, &gateways, peer(Gateways::direct())),
        ];
        compare(metric, plan, rows).aiming_at(&GOALS)
    };
    let kept = table(KEPT, Connections::Kept);
    let short = table(SHORT, Connections::Short);
    let added = [added(&kept, ADDED_KEPT), added(&short, ADDED_SHORT)];
    [kept, short].into_iter().chain(added).collect()
}

/// Client and server take most of a request's time, and they are the same for all: this is each row's time for one, less that
/// of the direct way in the same round.
fn added(rates: &Comparison, metric: Metric) -> Comparison {
    let micros = |rate: &f64| 1e6 / rate;
    let direct = rates.rows.iter().find(|row| row.peer == DIRECTLY);
    let direct: Vec<f64> = direct.iter().flat_map(|row| &row.samples).map(micros).collect();
    let others = rates.rows.iter().filter(|row| row.peer != DIRECTLY);
    let rows = others.map(|row| {
        let samples = row.samples.iter().map(micros).zip(&direct).map(|(own, direct)| own - direct);
        Row::new(row.peer, samples.collect(), row.error.clone())
    });
    Comparison { metric, rows: rows.collect(), goals: ADDED_GOALS.to_vec() }
}

/// Docker's swarm of a manager and a worker; the worker's task serves, clients ask the manager.
struct SwarmHttp {
    _nginx: Nginx,
    client: Namespace,
    _swarm: Swarm,
}

impl SwarmHttp {
    fn start() -> Result<Self> {
        let swarm = Swarm::start(Size { n_managers: 1, n_nodes: 2 }, PacketFilter::Written)?;
        let client = Namespace::new("dcl")?;
        swarm.plug(&client)?;
        client.place().allow_short_connections()?;
        let task = swarm.publish(1, pair::PORT)?;
        task.allow_short_connections()?;
        let nginx = Nginx::start(&task, (Ipv4Addr::UNSPECIFIED, pair::PORT).into())?;
        wait_until("Docker's mesh to answer", ANSWER_LIMIT, || {
            let asked =
                client.place().inside(|| Ok(TcpStream::connect_timeout(&Self::target(), CONNECT_LIMIT)?));
            asked.map(|_| Some(()))
        })?;
        Ok(Self { _nginx: nginx, client, _swarm: swarm })
    }

    fn target() -> SocketAddr {
        (dockerd::address(0), pair::PORT).into()
    }
}

/// How long a published port may take to answer where the task runs already.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_beyond_the_direct_way_of_the_same_round() {
        let rates = Comparison {
            metric: KEPT,
            rows: vec![
                Row::new(MESH, vec![500.0, 400.0], None),
                Row::new(SWARM, vec![250.0], Some("broke".to_owned())),
                Row::new(DIRECTLY, vec![1000.0, 500.0], None),
            ],
            goals: Vec::new(),
        };
        let added = added(&rates, ADDED_KEPT);
        assert_eq!(added.rows.len(), 2, "the direct way adds nothing to itself");
        assert_eq!(added.rows[0].samples, [1000.0, 500.0]);
        assert_eq!((added.median_of(MESH), added.median_of(SWARM)), (Some(750.0), Some(3000.0)));
        assert_eq!(added.rows[1].error.as_deref(), Some("broke"));
    }
}
