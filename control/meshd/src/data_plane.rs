//! The data plane of a node that is part of a swarm.

use std::ffi::OsString;
use std::sync::Arc;

use dataplane_dns::ServerLaunch;
use dataplane_driver::{Driver, DriverOptions, StartError, TeardownError};
use dataplane_kernel::{LinuxKernel, LinuxOptions};
use dataplane_model::DataPlane as _;
use dataplane_model::kernel_state::LinkName;
use tokio::sync::watch;

use crate::config::{Config, IngressHook, TcAttach};

/// The driver, and whether the kernel holds what it wants.
#[derive(Clone)]
pub struct NodeDataPlane {
    pub driver: Arc<Driver>,
    /// The kernel has held a whole view since this daemon began.
    pub is_up: watch::Receiver<bool>,
}

/// Why there is no data plane, or why some of it is left.
#[derive(Debug, thiserror::Error)]
pub enum DataPlaneError {
    #[error("--uplink {0} is no name of an interface")]
    Uplink(String),
    #[error("can't tell which program this is")]
    Program(#[source] std::io::Error),
    #[error("can't start the data plane")]
    Start(#[from] StartError),
    #[error("the data plane is not gone whole")]
    Teardown(#[from] TeardownError),
}

impl NodeDataPlane {
    /// Starts the driver. It writes nothing before its first view.
    pub fn start(config: &Config) -> Result<Self, DataPlaneError> {
        let options = options(config)?;
        let kernel = LinuxOptions {
            netns_dir: options.netns_dir(),
            uplinks: options.uplinks.clone(),
            bpffs_dir: options.bpffs_dir.clone(),
            cgroup2_root: options.cgroup2_root.clone(),
        };
        let driver = Arc::new(Driver::start_with(&options, move || LinuxKernel::open(kernel))?);
        let is_up = watch_driver(&driver);
        Ok(Self { driver, is_up })
    }

    /// Removes everything of it from the kernel. The driver does nothing after it, whoever still holds it.
    pub async fn tear_down(self) -> Result<(), DataPlaneError> {
        Ok(self.driver.tear_down().await?)
    }
}

fn options(config: &Config) -> Result<DriverOptions, DataPlaneError> {
    let mut options = DriverOptions::new(config.run_dir.clone(), config.bpffs_dir.clone());
    if let Some(name) = &config.uplink {
        let link = LinkName::new(name).ok_or_else(|| DataPlaneError::Uplink(name.clone()))?;
        options.uplinks.push(link);
    }
    options.ingress_hook = match config.ingress_hook {
        IngressHook::Auto => dataplane_plan::IngressHook::Auto,
        IngressHook::Xdp => dataplane_plan::IngressHook::Xdp,
        IngressHook::Tc => dataplane_plan::IngressHook::Tc,
    };
    options.tc_attach = match config.tc_attach {
        TcAttach::Auto => dataplane_plan::TcAttach::Auto,
        TcAttach::Tcx => dataplane_plan::TcAttach::Tcx,
        TcAttach::Clsact => dataplane_plan::TcAttach::Clsact,
    };
    options.dns_ttl = config.dns_ttl;
    options.dns = Some(ServerLaunch {
        program: std::env::current_exe().map_err(DataPlaneError::Program)?,
        args: vec![OsString::from("dns"), "--run-dir".into(), config.run_dir.clone().into()],
        log: Some(config.state_dir.join("dns.log")),
    });
    Ok(options)
}

/// True from the first view that the kernel holds completely. Ends with the driver.
fn watch_driver(driver: &Driver) -> watch::Receiver<bool> {
    let mut reports = driver.watch();
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let came_up = reports.wait_for(|report| report.applied_revision > 0).await.is_ok();
        if came_up {
            sender.send_replace(true);
            // Kept for those who ask later; nobody left to ask is the end.
            sender.closed().await;
        }
    });
    receiver
}
