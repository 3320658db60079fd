//! A registry in the client's namespace: plain HTTP, on a port of the client's address.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result};
use bench_lab::wait_until;
use tempfile::TempDir;

use crate::support::{Bench, SETTLE};

const PORT: u16 = 5000;

/// One that runs until it is dropped.
pub struct Registry {
    process: Child,
    dir: TempDir,
    address: SocketAddr,
}

impl Registry {
    /// Returns when it listens.
    pub fn start(bench: &Bench) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = SocketAddr::from((bench.lab.client_address(), PORT));
        let config = dir.path().join("config.yml");
        let data = dir.path().join("data");
        let storage = format!("storage:\n  filesystem:\n    rootdirectory: {}\n", data.display());
        std::fs::write(&config, format!("version: 0.1\n{storage}http:\n  addr: {address}\n"))?;
        let mut command = bench.lab.command("client", "docker-registry")?;
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self { process: command.spawn().context("docker-registry")?, dir, address };
        wait_until("the registry to listen", SETTLE, || {
            Ok(bench.lab.inside("client", || TcpStream::connect(address))?.ok())
        })?;
        Ok(registry)
    }

    /// What stands before the names of its images.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// For what is made on the way to it.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Whatever it does now, it is to end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
