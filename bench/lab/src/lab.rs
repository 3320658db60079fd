//! The lab's verbs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::daemon::Daemon;
use crate::net::{self, Way};
use crate::process::{Captured, try_run, wait_until};
use crate::state::{LabOptions, LabState, NodeRecord, Role, address6, bpffs_root, run_root, state_root};

/// Longest time for all nodes to be Ready after the last has joined.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// A lab that is up (or was, and can be taken down).
pub struct Lab {
    state: LabState,
}

/// One line of `lab status`.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    pub name: String,
    pub address: Ipv4Addr,
    /// Process id of its meshd, if it runs.
    pub pid: Option<i32>,
    pub socket: PathBuf,
}

impl Lab {
    /// Makes the lab, or completes it: namespaces, daemons, cluster. Doing it twice changes nothing.
    pub fn up(options: &LabOptions) -> Result<Self> {
        let state = if let Some(state) = LabState::load(&options.name)? {
            let count = |role| state.nodes.iter().filter(|n| n.role == role).count();
            ensure!(
                count(Role::Manager) == options.managers && count(Role::Worker) == options.workers,
                "lab {} is up with another shape; take it down first",
                options.name
            );
            state
        } else {
            LabState::new(options)?
        };
        state.save()?;
        let lab = Self { state };
        net::up(&lab.state)?;
        for node in &lab.state.nodes {
            lab.daemon(node).start()?;
        }
        lab.form_cluster()?;
        Ok(lab)
    }

    /// One more worker, joined to the running cluster. Returns its name.
    pub fn add_worker(&mut self) -> Result<String> {
        let node = self.state.add_worker()?;
        self.state.save()?;
        net::up(&self.state)?;
        self.daemon(&node).start()?;
        self.form_cluster()?;
        Ok(node.name)
    }

    /// The lab of this name.
    pub fn open(name: &str) -> Result<Self> {
        let state = LabState::load(name)?
            .with_context(|| format!("there is no lab {name}; `cargo xtask lab up` makes one"))?;
        Ok(Self { state })
    }

    /// Whether a lab of this name is up.
    pub fn exists(name: &str) -> Result<bool> {
        Ok(LabState::load(name)?.is_some())
    }

    /// Takes everything down and leaves nothing behind.
    pub fn down(&self) -> Result<()> {
        for node in &self.state.nodes {
            self.daemon(node).stop()?;
        }
        for node in &self.state.nodes {
            self.daemon(node).teardown()?;
        }
        net::down(&self.state)?;
        for dir in [bpffs_root(&self.state.name), run_root(&self.state.name), state_root(&self.state.name)] {
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("can't remove {}", dir.display()));
                }
                _ => {}
            }
        }
        self.remove_cgroups()
    }

    pub fn nodes(&self) -> &[NodeRecord] {
        &self.state.nodes
    }

    pub fn client_address(&self) -> Ipv4Addr {
        self.state.client_address()
    }

    pub fn client_address6(&self) -> Ipv6Addr {
        address6(self.state.client_address())
    }

    /// The node of this (short or long) name.
    pub fn node(&self, name: &str) -> Result<&NodeRecord> {
        self.state.node(name)
    }

    pub fn socket(&self, node: &str) -> Result<PathBuf> {
        Ok(self.daemon(self.state.node(node)?).socket())
    }

    pub fn bpffs_dir(&self, node: &str) -> Result<PathBuf> {
        Ok(self.daemon(self.state.node(node)?).bpffs_dir())
    }

    pub fn log_file(&self, node: &str) -> Result<PathBuf> {
        Ok(self.daemon(self.state.node(node)?).log_file())
    }

    pub fn pid(&self, node: &str) -> Result<Option<i32>> {
        Ok(self.daemon(self.state.node(node)?).pid())
    }

    /// Starts the node's daemon and waits until it answers.
    pub fn start(&self, node: &str) -> Result<()> {
        self.daemon(self.state.node(node)?).start()
    }

    /// SIGTERM to the node's daemon; returns when it has ended.
    pub fn stop(&self, node: &str) -> Result<()> {
        self.daemon(self.state.node(node)?).stop()
    }

    /// SIGKILL to the node's daemon; its tasks live on.
    pub fn kill(&self, node: &str) -> Result<()> {
        self.daemon(self.state.node(node)?).kill()
    }

    /// Pulls the node's network plug.
    pub fn isolate(&self, node: &str) -> Result<()> {
        net::set_plug(&self.state, &self.state.node(node)?.name, false)
    }

    /// Puts the plug back.
    pub fn heal(&self, node: &str) -> Result<()> {
        net::set_plug(&self.state, &self.state.node(node)?.name, true)
    }

    /// Cuts the node's cable in one direction; [`Lab::heal_way`] mends it.
    pub fn cut_way(&self, node: &str, way: Way) -> Result<()> {
        net::cut_way(&self.state, &self.state.node(node)?.name, way)
    }

    /// Mends what [`Lab::cut_way`] cut.
    pub fn heal_way(&self, node: &str) -> Result<()> {
        net::heal_way(&self.state, &self.state.node(node)?.name)
    }

    /// Starts the node's daemon with further variables in its environment, until it ends.
    pub fn start_with(&self, node: &str, environment: &[(&str, &str)]) -> Result<()> {
        self.daemon(self.state.node(node)?).start_with(environment)
    }

    /// Where the node's daemon keeps its membership and, as a manager, Raft's data.
    pub fn swarm_dir(&self, node: &str) -> Result<PathBuf> {
        Ok(self.daemon(self.state.node(node)?).state_dir().join("swarm"))
    }

    pub(crate) fn client_namespace(&self) -> String {
        self.state.client_namespace()
    }

    /// Runs `work` on a thread that is in a node's network namespace, or in the client's (`client`).
    pub fn inside<T: Send>(&self, node: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = if node == "client" {
            self.state.client_namespace()
        } else {
            self.state.node(node)?.name.clone()
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || net::enter(&namespace).map(|()| work()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a program in a node's network namespace, or in the client's (`client`).
    pub fn exec(&self, node: &str, program: &str, args: &[&str]) -> Result<Captured> {
        Ok(self.command(node, program)?.args(args).stdin(Stdio::null()).output()?.into())
    }

    /// A command to be run in a node's network namespace, or in the client's (`client`).
    pub fn command(&self, node: &str, program: &str) -> Result<std::process::Command> {
        let namespace = if node == "client" {
            self.state.client_namespace()
        } else {
            self.state.node(node)?.name.clone()
        };
        net::command_in(&namespace, program)
    }

    /// Runs the `docker` CLI against a node, whatever comes of it.
    pub fn try_docker(&self, node: &str, args: &[&str]) -> Result<Captured> {
        let socket = format!("unix://{}", self.socket(node)?.display());
        let all: Vec<&str> = ["-H", &socket].iter().chain(args).copied().collect();
        try_run("docker", &all)
    }

    /// Runs the `docker` CLI against a node; it must succeed. Returns its standard output without the last newline.
    pub fn docker(&self, node: &str, args: &[&str]) -> Result<String> {
        let captured = self.try_docker(node, args)?;
        if !captured.success() {
            bail!("docker {} on {node} failed: {}", args.join(" "), captured.text().trim());
        }
        Ok(captured.stdout.trim_end().to_owned())
    }

    /// One row per node.
    pub fn status(&self) -> Vec<NodeStatus> {
        let row = |node: &NodeRecord| {
            let daemon = self.daemon(node);
            NodeStatus {
                name: node.name.clone(),
                address: node.address,
                pid: daemon.pid(),
                socket: daemon.socket(),
            }
        };
        self.state.nodes.iter().map(row).collect()
    }

    /// Name of the manager that leads now, asked of `via`.
    pub fn leader(&self, via: &str) -> Result<Option<String>> {
        let listing = self.docker(via, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
        Ok(listing.lines().find_map(|line| line.strip_suffix(" Leader")).map(str::to_owned))
    }

    fn daemon<'a>(&'a self, node: &'a NodeRecord) -> Daemon<'a> {
        Daemon { lab: &self.state, node }
    }

    fn form_cluster(&self) -> Result<()> {
        let first = &self.state.nodes[0];
        if !self.in_swarm(first)? {
            let address = self.node_address(first).to_string();
            self.docker(&first.name, &["swarm", "init", "--advertise-addr", &address])?;
        }
        for node in &self.state.nodes[1..] {
            if self.in_swarm(node)? {
                continue;
            }
            let role = if node.role == Role::Manager { "manager" } else { "worker" };
            let token = self.docker(&first.name, &["swarm", "join-token", "-q", role])?;
            let address = self.node_address(node).to_string();
            let to = SocketAddr::new(self.node_address(first), 2377).to_string();
            self.docker(
                &node.name,
                &["swarm", "join", "--advertise-addr", &address, "--token", &token, &to],
            )?;
        }
        wait_until("all nodes to be Ready", READY_LIMIT, || {
            let listing = self.docker(&first.name, &["node", "ls", "--format", "{{.Status}}"])?;
            let ready = listing.lines().filter(|line| *line == "Ready").count();
            Ok((ready == self.state.nodes.len()).then_some(()))
        })?;
        Ok(())
    }

    /// Where other nodes reach it.
    pub fn node_address(&self, node: &NodeRecord) -> IpAddr {
        if self.state.is_ipv6_only { node.address6().into() } else { node.address.into() }
    }

    fn in_swarm(&self, node: &NodeRecord) -> Result<bool> {
        Ok(self.docker(&node.name, &["info", "--format", "{{.Swarm.LocalNodeState}}"])? == "active")
    }

    /// The lab's own directory in each cgroup hierarchy; the nodes' are gone by now.
    fn remove_cgroups(&self) -> Result<()> {
        let group = format!("meshd-{}", self.state.name);
        for hierarchy in
            std::fs::read_dir("/sys/fs/cgroup")?.flatten().map(|e| e.path()).chain(["/sys/fs/cgroup".into()])
        {
            remove_empty_tree(&hierarchy.join(&group))?;
        }
        Ok(())
    }
}

/// Removes a directory of directories, deepest first: cgroups can't be unlinked otherwise.
fn remove_empty_tree(dir: &std::path::Path) -> Result<()> {
    if !dir.is_dir() || dir.is_symlink() {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(dir).with_context(|| format!("can't remove cgroup {}", dir.display()))
}
