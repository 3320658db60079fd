//! What a node has in every swarm state: settings and containers.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use control_agent::describe_host;
use control_model::executor::Executor;
use control_model::object::NodeDescription;
use control_runtime::{DockerEngine, DockerOptions, NodeExecutor, Oci, OciOptions, Standalone};
use dataplane_driver::DriverOptions;

use crate::addresses::KnownAddresses;
use crate::checks;
use crate::config::{Config, Runtime};
use crate::forwarding;

/// Shared by everything in the daemon.
pub struct Host {
    pub config: Config,
    /// Name and path of the OCI runtime.
    pub runtime: (String, PathBuf),
    pub containers: Containers,
    pub addresses: KnownAddresses,
}

/// Who runs the containers.
#[derive(Clone)]
pub enum Containers {
    /// This daemon: those of tasks, and those that no service made.
    Own(Oci, Standalone),
    /// The host's Docker Engine.
    OfDocker(DockerEngine),
}

impl Containers {
    pub fn executor(&self) -> Arc<dyn Executor> {
        match self {
            Self::Own(oci, standalone) => {
                Arc::new(NodeExecutor { oci: oci.clone(), standalone: standalone.clone() })
            }
            Self::OfDocker(docker) => Arc::new(docker.clone()),
        }
    }

    /// Those that no service made, where they are this daemon's.
    pub fn standalone(&self) -> Option<&Standalone> {
        match self {
            Self::Own(_, standalone) => Some(standalone),
            Self::OfDocker(_) => None,
        }
    }
}

impl Host {
    /// Opens the containers. None is touched: what runs goes on.
    pub async fn open(config: Config) -> Result<Self> {
        let (runtime, containers) = if config.runtime == Some(Runtime::Docker) {
            let path = config.docker_socket.clone();
            tokio::task::spawn_blocking(forwarding::open).await?;
            ((Runtime::Docker, path), Containers::OfDocker(connect(&config).await?))
        } else {
            let runtime =
                checks::find_runtime(config.runtime).ok_or_else(|| anyhow!("no OCI runtime in $PATH"))?;
            let oci = open(&config, &runtime.1)?;
            let standalone = Standalone::new(oci.clone());
            (runtime, Containers::Own(oci, standalone))
        };
        let runtime = (runtime.0.name().to_owned(), runtime.1);
        Ok(Self { config, runtime, containers, addresses: KnownAddresses::default() })
    }
    /// What this node says about itself.
    pub fn description(&self, data_path_addr: IpAddr) -> NodeDescription {
        let mut addresses: Vec<_> = self.addresses.read().all().collect();
        addresses.sort();
        addresses.dedup();
        let hostname = self.config.hostname.clone();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        NodeDescription {
            engine_labels: self.config.labels.iter().cloned().collect(),
            generic: self.config.generic_resources.clone(),
            underlay_mtu_bytes: dataplane_kernel::net::mtu_of_address(data_path_addr),
            ..describe_host(hostname, data_path_addr, addresses, version)
        }
    }
}

fn open(config: &Config, runtime: &Path) -> Result<Oci> {
    let oci = Oci::open(OciOptions {
        state_dir: config.state_dir.join("containers"),
        run_dir: config.run_dir.join("tasks"),
        cgroup_parent: config.cgroup_parent.to_string_lossy().into_owned(),
        runtime: runtime.to_owned(),
        insecure_registries: config.insecure_registries.iter().cloned().collect(),
        node_hostname: config.hostname.clone(),
        log: config.log.clone(),
    });
    oci.context("can't open the containers")
}

async fn connect(config: &Config) -> Result<DockerEngine> {
    let netns_dir = DriverOptions::new(config.run_dir.clone(), config.bpffs_dir.clone()).netns_dir();
    let docker = DockerEngine::connect(DockerOptions {
        socket: config.docker_socket.clone(),
        run_dir: config.run_dir.join("docker"),
        given_netns_dir: dataplane_kernel::net::given_netns_dir(&netns_dir),
        node_hostname: config.hostname.clone(),
    });
    Ok(docker.await?)
}
