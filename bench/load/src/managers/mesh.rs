//! Ours: a lab of managers alone.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use bench_lab::{Lab, LabOptions, NodeRecord};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;

use super::{Engine, Managers, N_MANAGERS, Nodes, engine, meshd, runtime, signal, wait_for_end};
use crate::image::{IMAGE, ImageFile};

/// Name of the lab; beside others.
pub const LAB: &str = "benchctl";

/// A cluster of managers in namespaces. Taken down when dropped.
pub struct MeshManagers {
    lab: Lab,
    runtime: Runtime,
}

impl MeshManagers {
    pub fn start() -> Result<Self> {
        Self::start_with(N_MANAGERS, 0)
    }

    /// With workers too.
    pub fn start_with(managers: usize, workers: usize) -> Result<Self> {
        let name = LAB.to_owned();
        let meshd = meshd()?;
        let options = LabOptions {
            name,
            managers,
            workers,
            meshd,
            meshd_args: Vec::new(),
            is_ipv6_only: false,
            has_docker: false,
        };
        let lab = Lab::up(&options).inspect_err(|_| {
            if let Ok(half) = Lab::open(LAB) {
                take_down(&half);
            }
        })?;
        let runtime = runtime().inspect_err(|_| take_down(&lab))?;
        Ok(Self { lab, runtime })
    }

    /// Gives all nodes the image that does nothing.
    pub fn import_image(&self) -> Result<()> {
        let image = ImageFile::new()?;
        let path = image.path();
        let path = path.to_str().context("a path in UTF-8")?;
        self.lab
            .nodes()
            .iter()
            .try_for_each(|node| self.lab.docker(&node.name, &["import", path, IMAGE]).map(drop))
    }

    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    fn node(&self, member: usize) -> &NodeRecord {
        &self.lab.nodes()[member]
    }
}

impl Managers for MeshManagers {
    type Writer = Engine;

    fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn leader(&self) -> Result<usize> {
        let address = engine::find(|member| self.runtime.block_on(engine::leader(&self.socket(member)?)))?;
        let is_at = |node: &NodeRecord| address.starts_with(&format!("{}:", node.address));
        self.lab.nodes().iter().position(is_at).context("the leader is no node of the lab")
    }

    fn pid(&self, member: usize) -> Result<u32> {
        let pid = self.lab.pid(&self.node(member).name)?.context("meshd does not run")?;
        Ok(u32::try_from(pid)?)
    }

    fn revive(&self, member: usize) -> Result<()> {
        if let Ok(pid) = self.pid(member) {
            wait_for_end(pid)?;
        }
        self.lab.start(&self.node(member).name)?;
        self.runtime.block_on(engine::wait_until_heard(&self.socket(member)?))
    }

    async fn connect(&self, member: usize) -> Result<Engine> {
        Engine::connect(&self.socket(member)?).await
    }

    fn forget(&self) -> Result<()> {
        self.runtime.block_on(engine::forget(&self.socket(0)?))
    }
}

impl Nodes for MeshManagers {
    fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn socket(&self, node: usize) -> Result<PathBuf> {
        self.lab.socket(&self.node(node).name)
    }

    fn address(&self, node: usize) -> String {
        self.node(node).address.to_string()
    }

    fn lose(&self, node: usize) -> Result<()> {
        let name = &self.node(node).name;
        self.lab.isolate(name)?;
        signal(self, node, Signal::SIGKILL).map(drop)
    }

    fn give_back(&self, node: usize) -> Result<()> {
        let name = &self.node(node).name;
        if let Ok(pid) = self.pid(node) {
            wait_for_end(pid)?;
        }
        self.lab.heal(name)?;
        self.lab.start(name)
    }

    fn pins(&self, node: usize) -> Result<Option<PathBuf>> {
        self.lab.bpffs_dir(&self.node(node).name).map(Some)
    }
}

impl Drop for MeshManagers {
    fn drop(&mut self) {
        take_down(&self.lab);
    }
}

fn take_down(lab: &Lab) {
    if let Err(error) = lab.down() {
        eprintln!("bench-load: can't take the lab down: {error:#}");
    }
}
