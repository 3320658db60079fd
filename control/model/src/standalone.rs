//! Containers that no service made: what a user asks of one node.

use serde::{Deserialize, Serialize};

use crate::id::{NetworkId, NodeId, TaskId};
use crate::object::{NO_SERVICE, Slot, Task};
use crate::spec::{ContainerSpec, DnsConfig, NetworkAttachmentSpec, PortConfig, PublishMode, TaskSpec};

/// A container as its user wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandaloneSpec {
    pub task: TaskSpec,
    /// Of this node alone. One that is published as 0 gets another free number with each start.
    pub ports: Vec<PortConfig>,
    /// All ports that are exposed are published so.
    pub publishes_all: bool,
    /// `80/tcp`: exposed besides the image's.
    pub exposed_ports: Vec<String>,
    pub network: NetworkMode,
    pub restart: RestartRule,
    /// It goes when it has ended, with its volumes that have no name.
    pub auto_remove: bool,
    /// Its standard input ends with the first client's.
    pub stdin_once: bool,
    /// Of its terminal at first.
    pub console: Option<ConsoleSize>,
    /// Directories of the node that are made for its mounts where there are none.
    pub made_dirs: Vec<String>,
    /// What was asked for, JSON: `docker inspect` shows it again.
    pub shown: String,
}

/// What a container is connected to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// The node's way out; its published ports.
    #[default]
    Bridge,
    /// Nothing.
    None,
    /// A network of the swarm, by its name or id, with further names there; and the node's way out.
    Swarm { network: String, aliases: Vec<String> },
}

/// What a node asks of the managers for a run of a container: a place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Of the task that holds the place; the node draws it.
    pub id: TaskId,
    /// The container's name, host name and further names.
    pub name: String,
    pub hostname: String,
    pub aliases: Vec<String>,
    /// Name or id.
    pub network: String,
    /// Of the node alone.
    pub ports: Vec<PortConfig>,
    pub dns: DnsConfig,
}

impl AttachRequest {
    /// The task that holds the place on `node`, in the network that was found.
    pub fn task(self, node: NodeId, network: NetworkId) -> Task {
        let container = ContainerSpec { hostname: self.hostname, dns: self.dns, ..ContainerSpec::default() };
        let networks = vec![NetworkAttachmentSpec { target: network, aliases: self.aliases }];
        Task {
            service_name: self.name,
            // Whatever a node says: the routing mesh is the services'.
            ports: self
                .ports
                .into_iter()
                .map(|port| PortConfig { mode: PublishMode::Host, ..port })
                .collect(),
            spec: TaskSpec { container, networks, ..TaskSpec::default() }.into(),
            ..Task::new(self.id, NO_SERVICE, Slot::Node(node))
        }
    }
}

/// What becomes of a container that has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartRule {
    #[default]
    No,
    /// Started again if it has failed; 0 is without limit.
    OnFailure {
        max_attempts: u32,
    },
    Always,
    /// Always, but for one that was stopped when the daemon starts.
    UnlessStopped,
}

impl RestartRule {
    /// Docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure { .. } => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }
}

/// In characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSize {
    pub rows: u16,
    pub columns: u16,
}

/// Until when a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// Not at all if it does not run.
    NotRunning,
    /// The end of this run, or of the next one.
    NextExit,
    Removed,
}
