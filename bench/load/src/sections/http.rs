//! Requests to a published port: the client asks one node, the web server is on another.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, anyhow};
use tempfile::NamedTempFile;

use crate::compare::{Better, Comparison, Metric, Peer, Plan, compare};
use crate::mesh::{LazyMesh, Mesh, PublishedServer};
use crate::netns::{Namespace, Place};
use crate::process::Background;
use crate::tools::nginx::Nginx;
use crate::tools::wrk::{Connections, requests_per_second};

const KEPT: Metric = Metric { name: "HTTP, connections kept", unit: "requests/s", better: Better::Higher };
const SHORT: Metric = Metric { name: "HTTP, a connection each", unit: "requests/s", better: Better::Higher };

const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 3);

/// Where the web server listens.
const SERVER_PORT: u16 = 9080;
/// Where the gateway forwards from.
const DNAT_PORT: u16 = 9081;
const HAPROXY_PORT: u16 = 9082;

pub fn measure(plan: Plan, mesh: &LazyMesh) -> Vec<Comparison> {
    let peers = Peers::start();
    let haproxy = peers.as_ref().map_err(|error| anyhow!("{error:#}")).and_then(Haproxy::start);
    let ours = mesh.get().and_then(MeshHttp::start);
    let table = |metric, connections| {
        let ask = move |place: &Place, to: SocketAddr| {
            requests_per_second(place, &format!("http://{to}/"), connections, plan.seconds)
        };
        let peer = move |port_of: u16, to: Ipv4Addr| {
            move |peers: &Peers| ask(peers.client.place(), SocketAddr::from((to, port_of)))
        };
        let rows = vec![
            Peer::maybe("mesh", &ours, move |mesh| ask(&mesh.client, mesh.address)),
            Peer::maybe("direct", &peers, peer(SERVER_PORT, SERVER)),
            Peer::maybe("nftables DNAT", &peers, peer(DNAT_PORT, GATEWAY)),
            Peer::maybe("HAProxy", &haproxy, move |haproxy| {
                ask(&haproxy.client, (GATEWAY, HAPROXY_PORT).into())
            }),
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
        let service = mesh.publish(SERVER_PORT)?;
        let server = Nginx::start(&service.sandbox, (Ipv4Addr::UNSPECIFIED, SERVER_PORT).into())?;
        let client = Mesh::client();
        client.allow_short_connections()?;
        let address = SocketAddr::from((mesh.first_node().address, SERVER_PORT));
        Ok(Self { client, address, _server: server, _service: service })
    }
}

/// Client, gateway and server on a bridge; the gateway forwards by nftables.
struct Peers {
    _nginx: Nginx,
    client: Namespace,
    gateway: Namespace,
    _server: Namespace,
    _bridge: Namespace,
}

impl Peers {
    fn start() -> Result<Self> {
        let bridge = Namespace::new("br")?;
        bridge.add_bridge()?;
        let [client, gateway, server] =
            [("cl", CLIENT), ("gw", GATEWAY), ("sv", SERVER)].map(|(role, address)| {
                let namespace = Namespace::new(role)?;
                bridge.plug(&namespace, role, &format!("{address}/24"))?;
                namespace.place().allow_short_connections()?;
                anyhow::Ok(namespace)
            });
        let (client, gateway, server) = (client?, gateway?, server?);
        let nginx = Nginx::start(server.place(), (SERVER, SERVER_PORT).into())?;
        forward_by_nftables(gateway.place())?;
        Ok(Self { _nginx: nginx, client, gateway, _server: server, _bridge: bridge })
    }
}

/// As Docker's own rules do it: the destination is translated, and the source, so that the answer comes back this way.
fn forward_by_nftables(gateway: &Place) -> Result<()> {
    let rules = format!(
        "add table ip bench
         add chain ip bench prerouting {{ type nat hook prerouting priority dstnat; }}
         add chain ip bench postrouting {{ type nat hook postrouting priority srcnat; }}
         add rule ip bench prerouting tcp dport {DNAT_PORT} dnat to {SERVER}:{SERVER_PORT}
         add rule ip bench postrouting ip daddr {SERVER} masquerade"
    );
    let mut file = NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, rules.as_bytes())?;
    gateway.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
    gateway.run("nft", &["-f", &file.path().display().to_string()]).map(drop)
}

/// The proxy on the gateway, in TCP mode: it moves bytes between two connections and reads none of them.
struct Haproxy {
    _proxy: Background,
    _configuration: NamedTempFile,
    client: Place,
}

impl Haproxy {
    fn start(peers: &Peers) -> Result<Self> {
        let mut file = NamedTempFile::new()?;
        let configuration = format!(
            "global\n  maxconn 4000\ndefaults\n  mode tcp\n\
             \x20 timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
             listen web\n  bind {GATEWAY}:{HAPROXY_PORT}\n  server a {SERVER}:{SERVER_PORT}\n"
        );
        std::io::Write::write_all(&mut file, configuration.as_bytes())?;
        let mut command = peers.gateway.place().command("haproxy");
        command.arg("-db").arg("-f").arg(file.path());
        let mut proxy = Background::start(command)?;
        proxy.wait_for_port(peers.gateway.place(), (GATEWAY, HAPROXY_PORT).into())?;
        Ok(Self { _proxy: proxy, _configuration: file, client: peers.client.place().clone() })
    }
}
