//! What is kept on disk of each container, so that a daemon that starts finds what an earlier one made.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control_model::executor::Exit;
use control_model::log_driver::LogDriver;
use control_model::object::{HealthStatus, Slot};
use control_model::spec::{MountKind, PortConfig, PublishMode};
use control_model::standalone::StandaloneSpec;
use control_model::{ServiceId, Task, TaskId, Timestamp};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::health::HealthCheck;
use crate::files::write_atomically;

/// How far a container has come. Written before the step's effect can be seen, so that a crash leaves at most a
/// container that is a step behind its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Files are being made or are there; nothing runs.
    Prepared,
    /// The process is being started.
    Starting,
    /// The process was started with this process id.
    Started { pid: i32, at: Timestamp },
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub task: TaskId,
    /// 64 hex digits.
    pub container_id: String,
    /// `<service>.<slot>.<task id>`; of a container that no service made, its user's.
    pub name: String,
    /// As the spec has it.
    pub image: String,
    /// Digest of the image's config.
    pub image_id: String,
    pub command: Vec<String>,
    /// What its process has, the image's included. Records of a daemon that did not keep these three lack them.
    #[serde(default)]
    pub env: Vec<String>,
    /// As the spec or the image says it; empty is root.
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub working_dir: String,
    /// Placeholders replaced. Empty in the record of a daemon that did not keep it.
    #[serde(default)]
    pub hostname: String,
    #[serde(default)]
    pub tty: bool,
    /// Where its output goes.
    #[serde(default)]
    pub log: LogDriver,
    /// What its service publishes. A former daemon kept those of this node alone, by another name.
    #[serde(default, alias = "host_ports")]
    pub ports: Vec<PortConfig>,
    /// The user's, and those that the image wants.
    #[serde(default)]
    pub mounts: Vec<MountPoint>,
    /// `80/tcp`: what the image says that it listens on.
    #[serde(default)]
    pub exposed_ports: Vec<String>,
    /// The spec's, and Docker's swarm labels.
    pub labels: BTreeMap<String, String>,
    pub created_at: Timestamp,
    /// cgroup path from the root.
    pub cgroup: String,
    pub stop_signal: i32,
    pub stop_grace: Duration,
    pub stage: Stage,
    pub ended: Option<Ended>,
    #[serde(default)]
    pub health: Option<HealthRecord>,
    /// Of a container that no service made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standalone: Option<Box<StandaloneRecord>>,
}

/// What is kept of a container that no service made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandaloneRecord {
    pub spec: StandaloneSpec,
    /// Its volumes whose names were drawn: they go with it where its user says so.
    pub drawn_volumes: Vec<String>,
    /// That of its present run.
    pub sandbox: Option<TaskId>,
    /// Of its present run, behind the node's gateway.
    pub place: Option<Place>,
    /// Starts by its rule since its user started it.
    pub n_restarts: u32,
    /// Its user has stopped it.
    pub is_stopped: bool,
}

/// Where a container is in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub address: IpNetwork,
    pub gateway: Option<IpAddr>,
    /// Six numbers.
    pub mac: String,
}

impl StandaloneRecord {
    /// The container as the executor knows containers: a task that is in no store.
    pub fn task(&self, id: TaskId) -> Task {
        Task {
            spec: self.spec.task.clone().into(),
            ..Task::new(id, ServiceId::from_bits(0), Slot::Replica(0))
        }
    }
}

/// What is mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    pub kind: MountKind,
    /// A volume's; else empty.
    pub name: String,
    /// The volume goes with the container.
    pub is_anonymous: bool,
    /// On this node; empty of a tmpfs.
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
}

/// A container's check, and what it said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthRecord {
    pub check: HealthCheck,
    pub status: HealthStatus,
}

/// How and when a container's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// 128 + signal number where a signal ended it.
    pub code: i32,
    pub out_of_memory: bool,
    pub at: Timestamp,
}

impl Ended {
    pub(super) fn exit(self) -> Exit {
        Exit { code: self.code, out_of_memory: self.out_of_memory }
    }
}

impl ContainerRecord {
    /// Ports that this node alone answers on.
    pub fn host_ports(&self) -> impl Iterator<Item = &PortConfig> {
        self.ports.iter().filter(|port| port.mode == PublishMode::Host && port.published != 0)
    }

    pub(super) fn read(path: &Path) -> std::io::Result<Self> {
        serde_json::from_slice(&std::fs::read(path)?).map_err(std::io::Error::other)
    }

    pub(super) fn write(&self, path: &Path) -> std::io::Result<()> {
        write_atomically(path, &serde_json::to_vec_pretty(self).expect("all keys are text"))
    }
}
