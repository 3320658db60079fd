//! What a node has in every swarm state: settings and containers.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use control_agent::describe_host;
use control_model::object::NodeDescription;
use control_runtime::{Oci, OciOptions, Standalone};

use crate::addresses::KnownAddresses;
use crate::checks;
use crate::config::Config;

/// Shared by everything in the daemon.
pub struct Host {
    pub config: Config,
    /// Name and path of the OCI runtime.
    pub runtime: (String, PathBuf),
    pub executor: Oci,
    /// Those containers that no service made.
    pub standalone: Standalone,
    pub addresses: KnownAddresses,
}

impl Host {
    /// Opens the containers. None is touched: what runs goes on.
    pub fn open(config: Config) -> Result<Self> {
        let (runtime, path) =
            checks::find_runtime(config.runtime).ok_or_else(|| anyhow!("no OCI runtime in $PATH"))?;
        let options = OciOptions {
            state_dir: config.state_dir.join("containers"),
            run_dir: config.run_dir.join("tasks"),
            cgroup_parent: config.cgroup_parent.to_string_lossy().into_owned(),
            runtime: path.clone(),
            insecure_registries: config.insecure_registries.iter().cloned().collect(),
            node_hostname: config.hostname.clone(),
            log: config.log.clone(),
        };
        let executor = Oci::open(options).context("can't open the containers")?;
        let runtime = (runtime.binary().to_owned(), path);
        let standalone = Standalone::new(executor.clone());
        Ok(Self { config, runtime, executor, standalone, addresses: KnownAddresses::default() })
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
