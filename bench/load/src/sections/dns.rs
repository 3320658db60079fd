//! Queries per second for the name of a service, asked by a client beside the server.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench_lab::wait_until;
use dataplane_dns::{DnsClient, Forwarding, NetworkZone, SandboxZone, ServerLaunch, TtlPolicy, Zones};
use dataplane_model::{NetworkKey, SandboxId};
use tempfile::{NamedTempFile, TempDir};

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::dockerd::{Dockerd, PacketFilter};
use crate::netns::{Namespace, Place};
use crate::process::Background;
use crate::tools::dnspace::PacedLoad;
use crate::tools::dnsperf::ask;

/// The name that is asked for, and its address.
const NAME: &str = "web";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

/// Where all three servers listen.
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

const METRIC: Metric =
    Metric { name: "DNS queries for a service's name", unit: "1/s", better: Better::Higher };

/// How long a server may take to serve.
const START_LIMIT: Duration = Duration::from_secs(20);

const MESH: &str = "mesh";
const UNBOUND: &str = "unbound, from its own data";
const DNSMASQ: &str = "dnsmasq";
const DOCKERD: &str = "dockerd";

const CPU: Metric =
    Metric { name: "DNS, processor time of the server", unit: "µs per query", better: Better::Lower };
const TAIL: Metric = Metric {
    name: "DNS, slowest of a hundred answers at half of the server's rate",
    unit: "µs",
    better: Better::Lower,
};

const RATE_GOALS: [Goal; 2] = [
    Goal { row: MESH, bound: Bound::AtLeast { share: 1.5, of: DOCKERD } },
    Goal { row: MESH, bound: Bound::AtLeast { share: 1.0, of: UNBOUND } },
];
const CPU_GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::AtMost { share: 1.0 / 3.0, of: DOCKERD } }];
const TAIL_GOALS: [Goal; 1] = [Goal { row: MESH, bound: Bound::Below(100.0) }];

/// The rate alone.
pub fn measure(plan: Plan) -> Vec<Comparison> {
    let servers = Servers::start();
    vec![servers.compare(METRIC, plan, &|server| server.rate(plan.seconds))]
}

/// Rate, processor time, and how long answers take when the server is half as busy as it can be.
pub fn measure_fully(plan: Plan) -> Vec<Comparison> {
    let servers = Servers::start();
    let rate = servers.compare(METRIC, plan, &|server| server.rate(plan.seconds)).aiming_at(&RATE_GOALS);
    let cpu = servers.compare(CPU, plan, &|server| server.cpu_per_query(plan.seconds)).aiming_at(&CPU_GOALS);
    let half = |server: &dyn Server| -> Result<f64> {
        let full = rate.median_of(server.name()).context("its rate was not measured")?;
        let load = PacedLoad {
            name: NAME,
            server: (SERVER, 53).into(),
            per_second: full / 2.0,
            seconds: plan.seconds,
        };
        Ok(load.slowest_of_a_hundred(server.place())?.as_secs_f64() * 1e6)
    };
    let tail = servers.compare(TAIL, plan, &half).aiming_at(&TAIL_GOALS);
    vec![rate, cpu, tail]
}

/// A name server that runs.
trait Server {
    fn name(&self) -> &'static str;
    /// Where its clients are.
    fn place(&self) -> &Place;
    fn pid(&self) -> Result<u32>;

    fn rate(&self, seconds: u32) -> Result<f64> {
        Ok(ask(self.place(), SERVER, NAME, seconds)?.per_second)
    }

    /// Microseconds.
    fn cpu_per_query(&self, seconds: u32) -> Result<f64> {
        let pid = self.pid()?;
        let before = cpu_time(pid)?;
        let answered = ask(self.place(), SERVER, NAME, seconds)?;
        let used = cpu_time(pid)?.saturating_sub(before);
        Ok(used.as_secs_f64() * 1e6 / answered.n_answers)
    }
}

/// All servers, or why one is not there.
struct Servers {
    ours: Result<MeshDns>,
    unbound: Result<Unbound>,
    dnsmasq: Result<Dnsmasq>,
    dockerd: Result<DockerdDns>,
}

impl Servers {
    fn start() -> Self {
        Self {
            ours: MeshDns::start(),
            unbound: Unbound::start(),
            dnsmasq: Dnsmasq::start(),
            dockerd: DockerdDns::start(),
        }
    }

    fn compare(&self, metric: Metric, plan: Plan, sample: &dyn Fn(&dyn Server) -> Result<f64>) -> Comparison {
        let rows = vec![
            Peer::maybe(MESH, &self.ours, |server| sample(server)),
            Peer::maybe(UNBOUND, &self.unbound, |server| sample(server)),
            Peer::maybe(DNSMASQ, &self.dnsmasq, |server| sample(server)),
            Peer::maybe(DOCKERD, &self.dockerd, |server| sample(server)),
        ];
        compare(metric, plan, rows)
    }
}

/// Processor time that a process has had, in user and kernel mode (proc(5), `stat`).
fn cpu_time(pid: u32) -> Result<Duration> {
    /// Of `USER_HZ`, which is 100 on every Linux that this runs on.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no command in stat")?;
    let ticks =
        |index: usize| fields.split_whitespace().nth(index).and_then(|field| field.parse::<u32>().ok());
    let (user, kernel) = ticks(11).zip(ticks(12)).context("no times in stat")?;
    Ok(TICK * (user + kernel))
}

/// Our DNS process with one sandbox.
struct MeshDns {
    namespace: Namespace,
    client: Option<DnsClient>,
    runtime: tokio::runtime::Runtime,
    directory: TempDir,
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
        let this = Self { namespace, client: Some(client), runtime, directory };
        ensure!(served.unwrap_or(false), "the DNS process does not serve");
        Ok(this)
    }
}

impl Server for MeshDns {
    fn name(&self) -> &'static str {
        MESH
    }

    fn place(&self) -> &Place {
        self.namespace.place()
    }

    /// The process outlives who starts it: it is found by the socket that it was given.
    fn pid(&self) -> Result<u32> {
        let socket = self.directory.path().join("dns.sock");
        let socket = socket.to_str().context("a path in UTF-8")?;
        let has_it = |pid: &u32| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|byte| *byte == 0).any(|argument| argument == socket.as_bytes())
        };
        let names = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.file_name());
        let mut pids = names.filter_map(|name| name.to_str()?.parse::<u32>().ok());
        pids.find(has_it).context("the DNS process is not there")
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

/// unbound with one name in its own data, and a thread per core.
struct Unbound {
    namespace: Namespace,
    server: Background,
    _configuration: NamedTempFile,
}

impl Unbound {
    fn start() -> Result<Self> {
        let namespace = Namespace::new("unbound")?;
        let mut file = NamedTempFile::new()?;
        let n_threads = std::thread::available_parallelism()?;
        let configuration = format!(
            "server:\n  interface: {SERVER}\n  num-threads: {n_threads}\n  so-reuseport: yes\n\
             \x20 do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  pidfile: \"\"\n  use-syslog: no\n\
             \x20 access-control: 127.0.0.0/8 allow\n  local-zone: \"{NAME}.\" static\n\
             \x20 local-data: \"{NAME}. 60 IN A {ADDRESS}\"\nremote-control:\n  control-enable: no\n"
        );
        std::io::Write::write_all(&mut file, configuration.as_bytes())?;
        let mut command = namespace.place().command("unbound");
        command.arg("-d").arg("-c").arg(file.path());
        let mut server = Background::start(command)?;
        server.wait_for_port(namespace.place(), (SERVER, 53).into())?;
        Ok(Self { namespace, server, _configuration: file })
    }
}

impl Server for Unbound {
    fn name(&self) -> &'static str {
        UNBOUND
    }

    fn place(&self) -> &Place {
        self.namespace.place()
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.server.pid())
    }
}

/// dnsmasq with one name.
struct Dnsmasq {
    namespace: Namespace,
    server: Background,
}

impl Server for Dnsmasq {
    fn name(&self) -> &'static str {
        DNSMASQ
    }

    fn place(&self) -> &Place {
        self.namespace.place()
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.server.pid())
    }
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
        Ok(Self { namespace, server })
    }
}

/// dockerd's embedded DNS in a container on a network of its own.
struct DockerdDns {
    container: Place,
    dockerd: Dockerd,
}

impl Server for DockerdDns {
    fn name(&self) -> &'static str {
        DOCKERD
    }

    fn place(&self) -> &Place {
        &self.container
    }

    fn pid(&self) -> Result<u32> {
        self.dockerd.pid().context("dockerd runs")
    }
}

impl DockerdDns {
    fn start() -> Result<Self> {
        let dockerd = Dockerd::start("dockerd", PacketFilter::Untouched)?;
        dockerd.import_image()?;
        dockerd.docker(&["network", "create", "app"])?;
        dockerd.run_container(&["--name", NAME, "--network", "app"])?;
        let pid = dockerd.docker(&["inspect", "--format", "{{.State.Pid}}", NAME])?;
        let container = Place::at(format!("/proc/{}/ns/net", pid.trim()));
        wait_until("dockerd's DNS to answer", START_LIMIT, || ask(&container, SERVER, NAME, 1).map(Some))
            .context("dockerd's DNS")?;
        Ok(Self { container, dockerd })
    }
}
