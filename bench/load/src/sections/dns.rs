//! Queries per second for the name of a service, asked by a client beside the server.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench_lab::wait_until;
use dataplane_dns::{DnsClient, Forwarding, NetworkZone, SandboxZone, ServerLaunch, TtlPolicy, Zones};
use dataplane_model::{NetworkKey, SandboxId};
use tempfile::TempDir;

use crate::compare::{Better, Comparison, Metric, Peer, Plan, compare};
use crate::dockerd::Dockerd;
use crate::netns::{Namespace, Place};
use crate::process::Background;
use crate::tools::dnsperf::queries_per_second;

/// The name that is asked for, and its address.
const NAME: &str = "web";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

/// Where all three servers listen.
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

const METRIC: Metric =
    Metric { name: "DNS queries for a service's name", unit: "1/s", better: Better::Higher };

/// How long a server may take to serve.
const START_LIMIT: Duration = Duration::from_secs(20);

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let ours = MeshDns::start();
    let dnsmasq = Dnsmasq::start();
    let dockerd = DockerdDns::start();
    let ask = move |place: &Place| queries_per_second(place, SERVER, NAME, plan.seconds);
    let peers = vec![
        Peer::maybe("mesh", &ours, |peer| ask(peer.namespace.place())),
        Peer::maybe("dnsmasq", &dnsmasq, |peer| ask(peer.namespace.place())),
        Peer::maybe("dockerd", &dockerd, |peer| ask(&peer.container)),
    ];
    vec![compare(METRIC, plan, peers)]
}

/// Our DNS process with one sandbox.
struct MeshDns {
    namespace: Namespace,
    client: Option<DnsClient>,
    runtime: tokio::runtime::Runtime,
    _directory: TempDir,
}

impl MeshDns {
    fn start() -> Result<Self> {
        let namespace = Namespace::new("dns")?;
        let directory = tempfile::tempdir()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let socket = directory.path().join("dns.sock");
        let args = vec!["dns-process".into(), socket.clone().into()];
        let launch = ServerLaunch { program: std::env::current_exe()?, args, log: None };
        let client = runtime.block_on(async { DnsClient::start(socket, Some(launch)) });
        client.set_zones(zones(namespace.place().path().to_owned()));
        let mut status = client.status();
        let served = async {
            let served = status.wait_for(|now| now.connected && !now.served.is_empty());
            tokio::time::timeout(START_LIMIT, served).await.map(|served| served.is_ok())
        };
        let served = runtime.block_on(served);
        let this = Self { namespace, client: Some(client), runtime, _directory: directory };
        ensure!(served.unwrap_or(false), "the DNS process does not serve");
        Ok(this)
    }
}

impl Drop for MeshDns {
    fn drop(&mut self) {
        let stopped = self.client.take().map(|client| self.runtime.block_on(client.stop_server()));
        if let Some(Err(error)) = stopped {
            eprintln!("bench-load: the DNS process does not end: {error}");
        }
    }
}

fn zones(netns: PathBuf) -> Zones {
    let key = NetworkKey(1);
    let zone = NetworkZone {
        name: "app".to_owned(),
        subnets: vec!["10.0.1.0/24".parse().expect("a subnet")],
        names: [(NAME.to_owned(), vec![ADDRESS.into()])].into(),
        reverse: [(ADDRESS.into(), NAME.to_owned())].into(),
        ..NetworkZone::default()
    };
    let sandbox = SandboxZone {
        netns,
        networks: vec![key],
        forwarding: Forwarding::Forbidden,
        keeps_short_names: false,
    };
    Zones {
        revision: 1,
        ttl: TtlPolicy::default(),
        networks: [(key, zone)].into(),
        sandboxes: [(SandboxId("bench".to_owned()), sandbox)].into(),
    }
}

/// dnsmasq with one name.
struct Dnsmasq {
    namespace: Namespace,
    _server: Background,
}

impl Dnsmasq {
    fn start() -> Result<Self> {
        let namespace = Namespace::new("dnsmasq")?;
        let mut command = namespace.place().command("dnsmasq");
        command
            .args([
                "--conf-file=/dev/null",
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--bind-interfaces",
            ])
            .args(["--port=53", "--pid-file=", "--user=root"])
            .arg(format!("--listen-address={SERVER}"))
            .arg(format!("--host-record={NAME},{ADDRESS}"));
        let mut server = Background::start(command)?;
        server.wait_for_port(namespace.place(), (SERVER, 53).into())?;
        Ok(Self { namespace, _server: server })
    }
}

/// dockerd's embedded DNS in a container on a network of its own.
struct DockerdDns {
    container: Place,
    _dockerd: Dockerd,
}

impl DockerdDns {
    fn start() -> Result<Self> {
        let dockerd = Dockerd::start("dockerd")?;
        dockerd.import_image()?;
        dockerd.docker(&["network", "create", "app"])?;
        dockerd.run_container(&["--name", NAME, "--network", "app"])?;
        let pid = dockerd.docker(&["inspect", "--format", "{{.State.Pid}}", NAME])?;
        let container = Place::at(format!("/proc/{}/ns/net", pid.trim()));
        wait_until("dockerd's DNS to answer", START_LIMIT, || {
            queries_per_second(&container, SERVER, NAME, 1).map(Some)
        })
        .context("dockerd's DNS")?;
        Ok(Self { container, _dockerd: dockerd })
    }
}
