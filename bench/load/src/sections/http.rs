//! Requests to a published port: the client asks one node, the web server is on another.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, anyhow};

use super::gateway::{Gateways, Haproxy, Rules};
use crate::compare::{Better, Comparison, Metric, Peer, Plan, compare};
use crate::mesh::{LazyMesh, Mesh, PublishedServer};
use crate::netns::Place;
use crate::tools::nginx::Nginx;
use crate::tools::wrk::{Connections, requests_per_second};

const KEPT: Metric = Metric { name: "HTTP, connections kept", unit: "requests/s", better: Better::Higher };
const SHORT: Metric = Metric { name: "HTTP, a connection each", unit: "requests/s", better: Better::Higher };

/// Published, and where the task listens.
const PORT: u16 = 9080;

pub fn measure(plan: Plan, mesh: &LazyMesh) -> Vec<Comparison> {
    let gateways = Gateways::start(&[Rules::List(1)]);
    let haproxy = gateways.as_ref().map_err(|error| anyhow!("{error:#}")).and_then(Haproxy::start);
    let ours = mesh.get().and_then(MeshHttp::start);
    let table = |metric, connections| {
        let ask = move |place: &Place, to: SocketAddr| {
            requests_per_second(place, &format!("http://{to}/"), connections, plan.seconds)
        };
        let peer = move |to: SocketAddr| move |gateways: &Gateways| ask(gateways.client(), to);
        let rows = vec![
            Peer::maybe("mesh", &ours, move |mesh| ask(&mesh.client, mesh.address)),
            Peer::maybe("direct", &gateways, peer(Gateways::direct())),
            Peer::maybe("nftables DNAT", &gateways, peer(Gateways::forwarded(0))),
            Peer::maybe("HAProxy", &haproxy, move |haproxy| ask(&haproxy.client, Haproxy::address())),
        ];
        compare(metric, plan, rows)
    };
    vec![table(KEPT, Connections::Kept), table(SHORT, Connections::Short)]
}

/// A published port of the mesh, asked at a node that has no task of it.
struct MeshHttp {
    client: Place,
    address: SocketAddr,
    _server: Nginx,
    _service: PublishedServer,
}

impl MeshHttp {
    fn start(mesh: &Mesh) -> Result<Self> {
        let service = mesh.publish(PORT)?;
        let server = Nginx::start(&service.sandbox, (Ipv4Addr::UNSPECIFIED, PORT).into())?;
        let client = Mesh::client();
        client.allow_short_connections()?;
        let address = SocketAddr::from((mesh.first_node().address, PORT));
        Ok(Self { client, address, _server: server, _service: service })
    }
}
