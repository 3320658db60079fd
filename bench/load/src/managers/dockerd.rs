//! Debian's dockerd: a swarm of managers alone.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;

use super::{Engine, Managers, N_MANAGERS, Nodes, engine, runtime, signal, wait_for_end};
use crate::dockerd::{Dockerd, PacketFilter, Size, Swarm, address};

pub struct DockerManagers {
    swarm: Swarm,
    runtime: Runtime,
}

impl DockerManagers {
    pub fn start() -> Result<Self> {
        Self::start_with(0)
    }

    /// With workers too.
    pub fn start_with(n_workers: usize) -> Result<Self> {
        super::with_peers()?;
        let size = Size { n_managers: N_MANAGERS, n_nodes: N_MANAGERS + n_workers };
        Ok(Self { swarm: Swarm::start(size, PacketFilter::Untouched)?, runtime: runtime()? })
    }

    pub fn daemon(&self, member: usize) -> &Dockerd {
        self.swarm.daemon(member)
    }
}

impl Managers for DockerManagers {
    type Writer = Engine;

    fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn leader(&self) -> Result<usize> {
        let found =
            engine::find(|member| self.runtime.block_on(engine::leader(&self.daemon(member).socket())))?;
        let is_at = |member: &usize| found.starts_with(&format!("{}:", address(*member)));
        (0..N_MANAGERS).find(is_at).context("the leader is no daemon of the swarm")
    }

    fn pid(&self, member: usize) -> Result<u32> {
        self.daemon(member).pid().context("dockerd does not run")
    }

    fn revive(&self, member: usize) -> Result<()> {
        wait_for_end(self.pid(member)?)?;
        self.daemon(member).start_again()?;
        self.runtime.block_on(engine::wait_until_heard(&self.daemon(member).socket()))
    }

    async fn connect(&self, member: usize) -> Result<Engine> {
        Engine::connect(&self.daemon(member).socket()).await
    }

    fn forget(&self) -> Result<()> {
        self.runtime.block_on(engine::forget(&self.daemon(0).socket()))
    }
}

impl Nodes for DockerManagers {
    fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn socket(&self, node: usize) -> Result<PathBuf> {
        Ok(self.daemon(node).socket())
    }

    fn address(&self, node: usize) -> String {
        address(node).to_string()
    }

    fn lose(&self, node: usize) -> Result<()> {
        self.swarm.set_plug(node, false)?;
        signal(self, node, Signal::SIGKILL).map(drop)
    }

    fn give_back(&self, node: usize) -> Result<()> {
        wait_for_end(self.pid(node)?)?;
        self.swarm.set_plug(node, true)?;
        self.daemon(node).start_again()
    }

    fn pins(&self, _node: usize) -> Result<Option<PathBuf>> {
        Ok(None)
    }
}
