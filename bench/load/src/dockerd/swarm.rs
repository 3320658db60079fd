//! Docker's own swarm: a daemon per node, each in a namespace, all on one bridge.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bench_lab::wait_until;

use super::{Dockerd, PacketFilter};
use crate::image::{COMMAND, IMAGE};
use crate::netns::{Namespace, Place};

/// How long nodes may take to join, and a task to run: in an emulated machine too.
const READY_LIMIT: Duration = Duration::from_mins(2);

/// How many nodes there are, and how many of them, the first, are managers.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub n_managers: usize,
    pub n_nodes: usize,
}

/// The daemons of a swarm that is ready.
pub struct Swarm {
    // Dropped in this order.
    daemons: Vec<Dockerd>,
    bridge: Namespace,
}

impl Swarm {
    pub fn start(size: Size, filter: PacketFilter) -> Result<Self> {
        let bridge = Namespace::new("swarm")?;
        bridge.add_bridge()?;
        let mut swarm = Self { daemons: Vec::new(), bridge };
        let mut tokens = Vec::new();
        for index in 0..size.n_nodes {
            let dockerd = swarm.add_daemon(index, filter)?;
            let own = address(index).to_string();
            if index == 0 {
                dockerd.docker(&["swarm", "init", "--advertise-addr", &own])?;
                for role in ["manager", "worker"] {
                    tokens.push(dockerd.docker(&["swarm", "join-token", "-q", role])?.trim().to_owned());
                }
            } else {
                let token = &tokens[usize::from(index >= size.n_managers)];
                let manager = format!("{}:2377", address(0));
                dockerd.docker(&["swarm", "join", "--advertise-addr", &own, "--token", token, &manager])?;
            }
        }
        wait_until("dockerd's nodes to be ready", READY_LIMIT, || {
            let states = swarm.manager().docker(&["node", "ls", "--format", "{{.Status}}"])?;
            let n_ready = states.lines().filter(|state| *state == "Ready").count();
            Ok((n_ready == size.n_nodes).then_some(()))
        })?;
        Ok(swarm)
    }

    fn add_daemon(&mut self, index: usize, filter: PacketFilter) -> Result<&Dockerd> {
        let role = format!("d{index}");
        let dockerd = Dockerd::start(&role, filter)?;
        self.bridge.plug(dockerd.namespace(), &role, &format!("{}/24", address(index)))?;
        dockerd.import_image()?;
        self.daemons.push(dockerd);
        self.daemons.last().context("one was pushed")
    }

    /// The first node.
    pub fn manager(&self) -> &Dockerd {
        &self.daemons[0]
    }

    /// One of the nodes.
    pub fn daemon(&self, node: usize) -> &Dockerd {
        &self.daemons[node]
    }

    /// Puts the node's plug into the bridge, or pulls it.
    pub fn set_plug(&self, node: usize, is_in: bool) -> Result<()> {
        self.bridge.ip(&format!("link set d{node} {}", if is_in { "up" } else { "down" }))
    }

    /// Gives `client` an address among the nodes.
    pub fn plug(&self, client: &Namespace) -> Result<()> {
        self.bridge.plug(client, "dcl", &format!("{CLIENT}/24"))
    }

    /// A service with its only task on this node, and this port published and forwarded to the same in the task. The
    /// namespace of the task, once it runs.
    pub fn publish(&self, node: usize, port: u16) -> Result<Place> {
        const NAME: &str = "bench-http";
        let daemon = &self.daemons[node];
        let id = daemon.docker(&["info", "--format", "{{.Swarm.NodeID}}"])?;
        let constraint = format!("node.id=={}", id.trim());
        let publish = format!("published={port},target={port}");
        let create = ["service", "create", "--detach", "--no-resolve-image", "--name", NAME];
        let options = ["--constraint", &constraint, "--publish", &publish, "--stop-signal", "SIGKILL", IMAGE];
        let args: Vec<&str> = create.iter().chain(&options).chain(COMMAND).copied().collect();
        self.manager().docker(&args)?;
        let label = format!("label=com.docker.swarm.service.name={NAME}");
        let (container, _) = wait_until::<String>("the task to run", READY_LIMIT, || {
            let running = daemon.docker(&["ps", "-q", "--filter", &label])?;
            if let Some(id) = running.lines().next() {
                return Ok(Some(id.to_owned()));
            }
            let format = "{{.CurrentState}} {{.Error}}";
            bail!("{}", self.manager().docker(&["service", "ps", "--no-trunc", "--format", format, NAME])?)
        })?;
        let pid = daemon.docker(&["inspect", "--format", "{{.State.Pid}}", &container])?;
        ensure!(pid.trim() != "0", "the task has ended");
        Ok(Place::at(format!("/proc/{}/ns/net", pid.trim())))
    }
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 19, 2, 200);
/// Nodes count up from the one behind this.
const BEFORE_NODES: Ipv4Addr = Ipv4Addr::new(198, 19, 2, 0);

/// Of a node.
pub fn address(index: usize) -> Ipv4Addr {
    let number = u32::try_from(index + 1).expect("few nodes");
    Ipv4Addr::from(u32::from(BEFORE_NODES) + number)
}
