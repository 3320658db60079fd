//! The daemon's settings: flags, then the TOML file, then defaults. Flags win.

mod hosts;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use control_model::generic::{GenericError, GenericResources, parse_resources};
use control_model::gossip::GOSSIP_PORT;
use control_model::log_driver::{LogDriver, LogDriverError};
use dataplane_dns::TtlPolicy;
use dataplane_dns::zones::MAX_TTL_S;
use serde::Deserialize;

pub use self::hosts::{HostError, Hosts, Remote};
use self::hosts::{TlsOptions, one_or_more};

/// Docker's own.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// Read when no `--config` is given, if it is there.
const DEFAULT_CONFIG: &str = "/etc/meshd/meshd.toml";

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "meshd",
    version,
    about = "Node daemon of a swarm-mode cluster over an eBPF data plane.",
    long_about = "Node daemon of a swarm-mode cluster over an eBPF data plane.\n\n\
        Without a subcommand it runs the daemon: the Docker Engine API on a unix socket, this node's tasks, its data \
        plane, and, on a manager, the cluster's control plane. Every option may also stand in the TOML file under \
        its long name without the dashes in front (state-dir = \"/var/lib/meshd\"); a flag wins over the file.",
    after_help = "Use it with the docker CLI: docker -H unix:///run/meshd/docker.sock swarm init"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    #[command(flatten)]
    pub flags: Flags,
}

/// What else the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve names to the sandboxes of this node. Started and fed by the daemon, outlives it
    Dns,
    /// Say whether this machine has all that the daemon needs
    Check,
    /// Remove everything of this daemon from the kernel: containers, namespaces, programs, links. The daemon must not
    /// run. Its state directory stays; a node that is still part of a swarm takes up its tasks with the next start
    Teardown,
}

/// The options as given; those that were not are `None`.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Flags {
    /// File with these options, as TOML [default: /etc/meshd/meshd.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Where the daemon keeps what must survive a reboot: identity, Raft log, images [default: /var/lib/meshd]
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Where the daemon keeps what must survive its restart only: sockets, network namespaces [default: /run/meshd]
    #[arg(long, global = true, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Directory on a BPF file system for pinned programs and maps [default: /sys/fs/bpf/meshd]
    #[arg(long, global = true, value_name = "DIR")]
    pub bpffs_dir: Option<PathBuf>,

    /// Parent cgroup of all containers, absolute within the hierarchy [default: /meshd]
    #[arg(long, global = true, value_name = "CGROUP")]
    pub cgroup_parent: Option<PathBuf>,

    /// Where the API is served: `unix:///path`, or `tcp://IP[:PORT]` with `--tlsverify` (port 2376 if none is given); may be
    /// given several times [default: the socket docker.sock in the run directory]
    #[arg(short = 'H', long, global = true, value_name = "HOST")]
    #[serde(deserialize_with = "one_or_more")]
    pub host: Vec<String>,

    /// Serve the API over TCP to clients with a certificate that the CA has signed, and to nobody else
    #[arg(long, global = true)]
    pub tlsverify: bool,

    /// PEM of the CA whose clients are let in over TCP. It, and the next two, are read when the daemon starts
    #[arg(long, global = true, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,

    /// PEM of this server's certificate for them
    #[arg(long, global = true, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,

    /// PEM of its key
    #[arg(long, global = true, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,

    /// This node's name in the cluster [default: the host name]
    #[arg(long, global = true, value_name = "NAME")]
    pub hostname: Option<String>,

    /// Where managers listen if `docker swarm init|join` says nothing else than its default, ADDRESS|INTERFACE[:PORT]
    /// [default: 0.0.0.0:2377]
    #[arg(long, global = true, value_name = "ADDR")]
    pub listen_addr: Option<String>,

    /// What this node advertises if `docker swarm init|join` does not say, ADDRESS|INTERFACE[:PORT]
    /// [default: the node's one address]
    #[arg(long, global = true, value_name = "ADDR")]
    pub advertise_addr: Option<String>,

    /// Address or interface of the tunnels to other nodes [default: the advertised address]
    #[arg(long, global = true, value_name = "ADDR")]
    pub data_path_addr: Option<String>,

    /// Port of this node's gossip with the other nodes, TCP and UDP [default: 7946]
    #[arg(long, global = true, value_name = "PORT")]
    pub gossip_port: Option<u16>,

    /// Interface to the other nodes, on which published ports answer [default: the one that has the tunnels' address]
    #[arg(long, global = true, value_name = "INTERFACE")]
    pub uplink: Vec<String>,

    /// Where the ingress program hangs: XDP, tc, or what suits each interface [default: auto]
    #[arg(long, global = true, value_enum)]
    pub ingress_hook: Option<IngressHook>,

    /// How tc programs are attached: TCX (kernel 6.6 and later), clsact filters, or what the kernel has [default: auto]
    #[arg(long, global = true, value_enum)]
    pub tc_attach: Option<TcAttach>,

    /// How long a container may keep what the service DNS says of the node's own names, in seconds, 0 to 600 [default: 5]
    #[arg(long, global = true, value_name = "SECONDS")]
    pub dns_ttl: Option<u32>,

    /// Also serve /metrics for Prometheus at this address, IP:PORT, by plain HTTP to everyone who reaches it
    /// [default: on the API's socket only]
    #[arg(long, global = true, value_name = "ADDR")]
    pub metrics_addr: Option<String>,

    /// Registry, HOST[:PORT], that may be spoken to by plain HTTP; may be given several times
    #[arg(long, global = true, value_name = "REGISTRY")]
    pub insecure_registry: Vec<String>,

    /// Where the output of containers goes whose service does not say: json-file, local, syslog, gelf, journald or none
    /// [default: json-file]
    #[arg(long, global = true, value_name = "DRIVER")]
    pub log_driver: Option<String>,

    /// Option of the log driver, KEY=VALUE, as `docker service create --log-opt` has it; may be given several times
    #[arg(long, global = true, value_name = "OPTION")]
    pub log_opt: Vec<String>,

    /// Who runs containers: an OCI runtime, or `docker`, the host's Docker Engine [default: runc, else crun]
    #[arg(long, global = true, value_enum)]
    pub runtime: Option<Runtime>,

    /// Socket of the host's Docker Engine, as `unix:///path`, with `--runtime docker` [default: /var/run/docker.sock]
    #[arg(long, global = true, value_name = "SOCKET")]
    pub docker_host: Option<String>,

    /// Engine label of this node, KEY=VALUE; may be given several times
    #[arg(long, global = true, value_name = "LABEL")]
    pub label: Vec<String>,

    /// What this node has for tasks that ask for it (`--generic-resource`), KIND=COUNT, or KIND=NAME for each named one; may be
    /// given several times
    #[arg(long, global = true, value_name = "RESOURCE")]
    pub node_generic_resource: Vec<String>,

    /// What is logged to stderr: error, warn, info, debug, trace, or a filter such as `info,control_agent=debug`
    /// [default: info]
    #[arg(long, global = true, value_name = "FILTER")]
    pub log_level: Option<String>,
}

/// `--ingress-hook`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IngressHook {
    #[default]
    Auto,
    Xdp,
    Tc,
}

/// `--tc-attach`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcAttach {
    #[default]
    Auto,
    Tcx,
    Clsact,
}

/// `--runtime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    Runc,
    Crun,
    Docker,
}

impl Runtime {
    /// Its name, and that of its binary if it is an OCI runtime.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Docker => "docker",
        }
    }
}

/// The settings in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub bpffs_dir: PathBuf,
    /// Absolute within the cgroup hierarchy.
    pub cgroup_parent: PathBuf,
    /// Where the API is served.
    pub hosts: Hosts,
    pub hostname: String,
    pub listen_addr: String,
    /// Empty chooses.
    pub advertise_addr: String,
    /// Empty is the advertised address.
    pub data_path_addr: String,
    /// TCP and UDP.
    pub gossip_port: u16,
    pub uplink: Option<String>,
    pub ingress_hook: IngressHook,
    pub tc_attach: TcAttach,
    pub dns_ttl: TtlPolicy,
    /// Where `/metrics` is served besides the API's socket.
    pub metrics_addr: Option<SocketAddr>,
    pub insecure_registries: Vec<String>,
    /// Of containers whose service does not say.
    pub log: LogDriver,
    pub runtime: Option<Runtime>,
    /// Of the host's Docker Engine.
    pub docker_socket: PathBuf,
    pub labels: Vec<(String, String)>,
    pub generic_resources: GenericResources,
    pub log_level: String,
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("can't read {0}")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("{0} is no valid configuration")]
    Parse(PathBuf, #[source] toml::de::Error),
    #[error("{option} must be an absolute path, not {value}")]
    Relative { option: &'static str, value: PathBuf },
    #[error("{0} is for the embedded runtime; with --runtime docker it is the engine's to say")]
    Engines(&'static str),
    #[error("--docker-host {0}: only a unix socket is supported, unix:///path")]
    DockerHost(String),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(
        "--uplink may be given once, not {0} times: answers leave by the interface that has the tunnels' address"
    )]
    Uplinks(usize),
    #[error("--label {0}: expected KEY=VALUE")]
    Label(String),
    #[error("--log-opt {0}: expected KEY=VALUE")]
    LogOption(String),
    #[error("--log-driver: {0}")]
    LogDriver(#[from] LogDriverError),
    #[error("--node-generic-resource: {0}")]
    GenericResource(#[from] GenericError),
    #[error("--dns-ttl {0}: at most {MAX_TTL_S} seconds")]
    DnsTtl(u32),
    #[error("--metrics-addr {0}: expected IP:PORT")]
    MetricsAddr(String),
    #[error("the host name can't be read; give --hostname")]
    Hostname(#[source] nix::Error),
    #[error("--hostname must not be empty")]
    NoHostname,
}

impl Config {
    /// The settings of `flags` over those of the file.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => read_file(path)?,
            None if Path::new(DEFAULT_CONFIG).exists() => read_file(Path::new(DEFAULT_CONFIG))?,
            None => Flags::default(),
        };
        Self::merge(flags.clone(), file)
    }

    fn merge(flags: Flags, file: Flags) -> Result<Self, ConfigError> {
        let dir = |option, flag: Option<PathBuf>, file: Option<PathBuf>, default: &str| {
            let value = flag.or(file).unwrap_or_else(|| default.into());
            if value.is_absolute() { Ok(value) } else { Err(ConfigError::Relative { option, value }) }
        };
        let list = |flag: Vec<String>, file: Vec<String>| if flag.is_empty() { file } else { flag };
        let run_dir = dir("--run-dir", flags.run_dir, file.run_dir, "/run/meshd")?;
        let hostname = match flags.hostname.or(file.hostname) {
            Some(name) if name.is_empty() => return Err(ConfigError::NoHostname),
            Some(name) => name,
            None => system_hostname()?,
        };
        let tls = TlsOptions {
            verify: flags.tlsverify || file.tlsverify,
            ca: flags.tlscacert.or(file.tlscacert),
            cert: flags.tlscert.or(file.tlscert),
            key: flags.tlskey.or(file.tlskey),
        };
        let runtime = flags.runtime.or(file.runtime);
        if runtime == Some(Runtime::Docker) {
            let engines = [
                ("--log-driver", flags.log_driver.is_some() || file.log_driver.is_some()),
                ("--log-opt", !flags.log_opt.is_empty() || !file.log_opt.is_empty()),
                (
                    "--insecure-registry",
                    !flags.insecure_registry.is_empty() || !file.insecure_registry.is_empty(),
                ),
                ("--cgroup-parent", flags.cgroup_parent.is_some() || file.cgroup_parent.is_some()),
            ];
            if let Some((option, _)) = engines.into_iter().find(|(_, is_given)| *is_given) {
                return Err(ConfigError::Engines(option));
            }
        }
        Ok(Self {
            state_dir: dir("--state-dir", flags.state_dir, file.state_dir, "/var/lib/meshd")?,
            bpffs_dir: dir("--bpffs-dir", flags.bpffs_dir, file.bpffs_dir, "/sys/fs/bpf/meshd")?,
            cgroup_parent: dir("--cgroup-parent", flags.cgroup_parent, file.cgroup_parent, "/meshd")?,
            hosts: Hosts::of(&list(flags.host, file.host), tls, &run_dir)?,
            docker_socket: docker_socket(flags.docker_host.or(file.docker_host))?,
            hostname,
            listen_addr: flags.listen_addr.or(file.listen_addr).unwrap_or_default(),
            advertise_addr: flags.advertise_addr.or(file.advertise_addr).unwrap_or_default(),
            data_path_addr: flags.data_path_addr.or(file.data_path_addr).unwrap_or_default(),
            gossip_port: flags.gossip_port.or(file.gossip_port).unwrap_or(GOSSIP_PORT),
            uplink: at_most_one(list(flags.uplink, file.uplink))?,
            ingress_hook: flags.ingress_hook.or(file.ingress_hook).unwrap_or_default(),
            tc_attach: flags.tc_attach.or(file.tc_attach).unwrap_or_default(),
            dns_ttl: ttl_policy(flags.dns_ttl.or(file.dns_ttl))?,
            metrics_addr: flags.metrics_addr.or(file.metrics_addr).map(parse_metrics_addr).transpose()?,
            insecure_registries: list(flags.insecure_registry, file.insecure_registry),
            log: log_driver(flags.log_driver.or(file.log_driver), list(flags.log_opt, file.log_opt))?,
            runtime,
            labels: parse_labels(list(flags.label, file.label))?,
            generic_resources: parse_resources(&list(
                flags.node_generic_resource,
                file.node_generic_resource,
            ))?,
            log_level: flags.log_level.or(file.log_level).unwrap_or_else(|| "info".into()),
            run_dir,
        })
    }

    /// Identity, node file and Raft data of the swarm that this node is in.
    pub fn swarm_dir(&self) -> PathBuf {
        self.state_dir.join("swarm")
    }
}

fn read_file(path: &Path) -> Result<Flags, ConfigError> {
    let text = fs::read_to_string(path).map_err(|error| ConfigError::Read(path.to_owned(), error))?;
    toml::from_str(&text).map_err(|error| ConfigError::Parse(path.to_owned(), error))
}

fn docker_socket(given: Option<String>) -> Result<PathBuf, ConfigError> {
    let Some(given) = given else { return Ok(DOCKER_SOCKET.into()) };
    match given.strip_prefix("unix://").map(PathBuf::from) {
        Some(path) if path.is_absolute() => Ok(path),
        _ => Err(ConfigError::DockerHost(given)),
    }
}

/// Clients that came by another interface would get no answers.
fn at_most_one(mut uplinks: Vec<String>) -> Result<Option<String>, ConfigError> {
    if uplinks.len() > 1 { Err(ConfigError::Uplinks(uplinks.len())) } else { Ok(uplinks.pop()) }
}

fn ttl_policy(seconds: Option<u32>) -> Result<TtlPolicy, ConfigError> {
    match seconds {
        None => Ok(TtlPolicy::default()),
        Some(seconds) if seconds > MAX_TTL_S => Err(ConfigError::DnsTtl(seconds)),
        Some(seconds) => Ok(TtlPolicy::new(seconds)),
    }
}

fn parse_metrics_addr(text: String) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| ConfigError::MetricsAddr(text))
}

fn log_driver(name: Option<String>, options: Vec<String>) -> Result<LogDriver, ConfigError> {
    let option = |text: String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(ConfigError::LogOption(text)),
    };
    let options = options.into_iter().map(option).collect::<Result<_, _>>()?;
    let driver = LogDriver { name: name.unwrap_or_else(|| LogDriver::default().name), options };
    driver.logging()?;
    Ok(driver)
}

fn parse_labels(labels: Vec<String>) -> Result<Vec<(String, String)>, ConfigError> {
    let parse = |label: String| match label.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(ConfigError::Label(label)),
    };
    labels.into_iter().map(parse).collect()
}

fn system_hostname() -> Result<String, ConfigError> {
    let name = nix::unistd::gethostname().map_err(ConfigError::Hostname)?;
    Ok(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Flags {
        Cli::try_parse_from([&["meshd"], args].concat()).expect("valid flags").flags
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = Config::merge(flags(&["--hostname", "n1"]), Flags::default()).expect("valid");
        assert_eq!(config.state_dir, Path::new("/var/lib/meshd"));
        let hosts = Hosts { sockets: vec!["/run/meshd/docker.sock".into()], remote: None };
        assert_eq!(config.hosts, hosts);
        assert_eq!(config.bpffs_dir, Path::new("/sys/fs/bpf/meshd"));
        assert_eq!(config.cgroup_parent, Path::new("/meshd"));
        assert_eq!((config.ingress_hook, config.tc_attach), (IngressHook::Auto, TcAttach::Auto));
        assert_eq!(config.dns_ttl, TtlPolicy::new(5));
        assert_eq!((config.metrics_addr, config.gossip_port), (None, 7946));
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = "run-dir = '/run/a'\nhostname = 'file'\nuplink = ['eth0']\ningress-hook = 'tc'\nlabel = ['a=b=c']\n\
                    dns-ttl = 60";
        let file: Flags = toml::from_str(file).expect("valid file");
        let config =
            Config::merge(flags(&["--hostname", "flag", "--ingress-hook", "xdp"]), file).expect("valid");
        assert_eq!(config.hostname, "flag");
        assert_eq!(config.ingress_hook, IngressHook::Xdp);
        assert_eq!(config.hosts.sockets, [Path::new("/run/a/docker.sock")]);
        assert_eq!(config.uplink.as_deref(), Some("eth0"));
        assert_eq!(config.dns_ttl, TtlPolicy::new(60));
        assert_eq!(config.labels, [("a".to_owned(), "b=c".to_owned())]);
    }

    #[test]
    fn a_node_has_a_log_driver_with_options() {
        let log = |args: &[&str]| Config::merge(flags(args), Flags::default()).map(|config| config.log);
        assert_eq!(log(&[]).expect("valid"), LogDriver::default());
        let given = ["--log-driver", "gelf", "--log-opt", "gelf-address=udp://logs:12201"];
        let given = log(&given).expect("valid");
        assert_eq!(
            (given.name.as_str(), given.options["gelf-address"].as_str()),
            ("gelf", "udp://logs:12201")
        );
        let wrong = log(&["--log-driver", "splunk"]).expect_err("refused").to_string();
        assert_eq!(wrong, "--log-driver: logger: no log driver named 'splunk' is registered");
        assert!(log(&["--log-opt", "tag"]).is_err());
    }

    #[test]
    fn the_api_is_served_where_flags_or_the_file_say() {
        let tls =
            "tlsverify = true\ntlscacert = '/c/ca.pem'\ntlscert = '/c/cert.pem'\ntlskey = '/c/key.pem'\n";
        let hosts = |args: &[&str], host: &str| {
            let file: Flags = toml::from_str(&format!("{tls}{host}")).expect("valid file");
            Config::merge(flags(args), file).expect("valid").hosts
        };
        let one = hosts(&[], "host = 'unix:///a'");
        assert_eq!((one.sockets, one.remote), (vec!["/a".into()], None));
        let two = hosts(&[], "host = ['unix:///a', 'tcp://0.0.0.0']");
        let remote = two.remote.expect("an address");
        assert_eq!(remote.addresses, ["0.0.0.0:2376".parse().expect("valid")]);
        let flag = hosts(&["-H", "tcp://198.18.0.1", "--tlskey", "/other.pem"], "host = 'unix:///a'");
        let remote = flag.remote.expect("an address");
        assert_eq!((flag.sockets.len(), remote.tls.key.as_path()), (0, Path::new("/other.pem")));
    }

    #[test]
    fn wrong_settings_are_named() {
        let error =
            |args: &[&str]| Config::merge(flags(args), Flags::default()).expect_err("refused").to_string();
        assert_eq!(error(&["--state-dir", "x"]), "--state-dir must be an absolute path, not x");
        assert!(
            error(&["-H", "tcp://0.0.0.0:2375"])
                .starts_with("--host tcp://0.0.0.0:2375: only with --tlsverify")
        );
        assert_eq!(
            error(&["--runtime", "docker", "--log-driver", "local"]),
            "--log-driver is for the embedded runtime; with --runtime docker it is the engine's to say"
        );
        assert!(error(&["--docker-host", "/run/x"]).starts_with("--docker-host /run/x: only a unix socket"));
        assert_eq!(error(&["--dns-ttl", "601"]), "--dns-ttl 601: at most 600 seconds");
        assert_eq!(
            error(&["--metrics-addr", "localhost:9100"]),
            "--metrics-addr localhost:9100: expected IP:PORT"
        );
        assert_eq!(
            error(&["--uplink", "a", "--uplink", "b"]),
            "--uplink may be given once, not 2 times: answers leave by the interface that has the tunnels' address"
        );
        assert_eq!(error(&["--label", "x"]), "--label x: expected KEY=VALUE");
        assert_eq!(
            error(&["--node-generic-resource", "gpu"]),
            "--node-generic-resource: could not parse GenericResource: incorrect term gpu, missing '=' or malformed expression"
        );
        assert!(toml::from_str::<Flags>("statedir = '/x'").is_err(), "unknown keys are refused");
    }

    #[test]
    fn options_may_follow_a_subcommand() {
        let cli = Cli::try_parse_from(["meshd", "teardown", "--run-dir", "/x"]).expect("valid");
        assert!(matches!(cli.command, Some(Command::Teardown)));
        assert_eq!(cli.flags.run_dir.as_deref(), Some(Path::new("/x")));
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
