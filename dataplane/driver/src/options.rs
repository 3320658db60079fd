//! What a driver is started with.

use std::path::PathBuf;

use dataplane_dns::{ServerLaunch, TtlPolicy};
use dataplane_model::kernel_state::LinkName;
use dataplane_plan::{IngressHook, TcAttach};
use ipnetwork::Ipv4Network;

/// Paths, interfaces and choices of one node's data plane.
#[derive(Debug, Clone)]
pub struct DriverOptions {
    /// For `netns/<task>` and `dns.sock`.
    pub run_dir: PathBuf,
    /// Directory on a bpffs for this node's pins.
    pub bpffs_dir: PathBuf,
    /// Root of the cgroup v2 hierarchy; `None` finds it.
    pub cgroup2_root: Option<PathBuf>,
    /// Interfaces to other machines; empty for the one that holds the tunnel end's address.
    pub uplinks: Vec<LinkName>,
    pub ingress_hook: IngressHook,
    pub tc_attach: TcAttach,
    /// Subnet behind `docker_gwbridge`, if no node has an address in it and no network lies there; else the next one.
    pub gateway_subnet: Ipv4Network,
    /// How the DNS process is started where none answers at `<run_dir>/dns.sock`. Without it sandboxes get no names and
    /// are ready without them: for tests.
    pub dns: Option<ServerLaunch>,
    /// How long clients may keep what it says of the node's own names.
    pub dns_ttl: TtlPolicy,
}

impl DriverOptions {
    /// Docker's own choice for `docker_gwbridge`.
    pub const GATEWAY_SUBNET: &str = "172.18.0.0/16";

    /// Defaults for everything but the paths.
    pub fn new(run_dir: PathBuf, bpffs_dir: PathBuf) -> Self {
        Self {
            run_dir,
            bpffs_dir,
            cgroup2_root: None,
            uplinks: Vec::new(),
            ingress_hook: IngressHook::Auto,
            tc_attach: TcAttach::Auto,
            gateway_subnet: Self::GATEWAY_SUBNET.parse().expect("a valid subnet"),
            dns: None,
            dns_ttl: TtlPolicy::default(),
        }
    }

    /// Directory of the sandboxes' namespaces.
    pub fn netns_dir(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    /// Socket of the DNS process.
    pub fn dns_socket(&self) -> PathBuf {
        self.run_dir.join("dns.sock")
    }
}
