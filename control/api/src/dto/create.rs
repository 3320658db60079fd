//! `POST /containers/create`, of `docker create` and `docker run`: `api/types/container`, `api/types/network`.

use std::collections::BTreeMap;

use control_model::spec::Labels;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::common::Rest;
use super::task::{HealthConfig, Mount, Ulimit};

/// A container as a client wants it. What says who is attached at first is the client's own business.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
#[expect(clippy::struct_excessive_bools, reason = "the shape is Docker's")]
pub struct CreateRequest {
    pub hostname: String,
    pub user: String,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    /// `80/tcp`, each with nothing.
    pub exposed_ports: BTreeMap<String, Value>,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub env: Vec<String>,
    pub cmd: Option<Words>,
    pub healthcheck: Option<HealthConfig>,
    pub image: String,
    /// Targets of volumes without a name, each with nothing.
    pub volumes: BTreeMap<String, Value>,
    pub working_dir: String,
    pub entrypoint: Option<Words>,
    pub labels: Labels,
    pub stop_signal: String,
    /// Seconds; below 0 is for ever.
    pub stop_timeout: Option<i64>,
    pub host_config: HostConfig,
    pub networking_config: NetworkingConfig,
    #[serde(flatten)]
    pub rest: Rest,
}

/// A command: its words, or one text that is one word.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Words {
    One(String),
    Several(Vec<String>),
}

impl Words {
    pub fn all(self) -> Vec<String> {
        match self {
            Self::One(word) => vec![word],
            Self::Several(words) => words,
        }
    }
}

/// What of it is the host's.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HostConfig {
    /// As `-v` has them.
    pub binds: Vec<String>,
    pub log_config: LogConfig,
    pub network_mode: String,
    pub port_bindings: BTreeMap<String, Vec<PortBinding>>,
    pub restart_policy: RestartPolicy,
    pub auto_remove: bool,
    pub volume_driver: String,
    /// Rows and columns.
    pub console_size: Option<[u16; 2]>,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub dns: Vec<String>,
    pub dns_options: Vec<String>,
    pub dns_search: Vec<String>,
    /// `name:address`.
    pub extra_hosts: Vec<String>,
    pub group_add: Vec<String>,
    pub readonly_rootfs: bool,
    pub publish_all_ports: bool,
    pub isolation: String,
    pub shm_size: i64,
    pub memory: i64,
    pub memory_reservation: i64,
    /// -1 says nothing.
    pub memory_swappiness: Option<i64>,
    pub nano_cpus: i64,
    pub pids_limit: Option<i64>,
    pub ulimits: Vec<Ulimit>,
    pub init: Option<bool>,
    pub mounts: Vec<Mount>,
    /// Options by target.
    pub tmpfs: BTreeMap<String, String>,
    pub sysctls: BTreeMap<String, String>,
    #[serde(flatten)]
    pub rest: Rest,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LogConfig {
    #[serde(rename = "Type")]
    pub driver: String,
    pub config: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PortBinding {
    pub host_ip: String,
    pub host_port: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RestartPolicy {
    pub name: String,
    pub maximum_retry_count: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NetworkingConfig {
    #[serde(rename = "EndpointsConfig")]
    pub endpoints: BTreeMap<String, EndpointSettings>,
}

/// A container's place in a network, as it is wanted.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct EndpointSettings {
    pub aliases: Vec<String>,
    #[serde(flatten)]
    pub rest: Rest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Created {
    pub id: String,
    pub warnings: Vec<String>,
}

/// `POST /containers/{id}/update`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UpdateRequest {
    pub restart_policy: RestartPolicy,
    #[serde(flatten)]
    pub rest: Rest,
}

/// The end that a client has waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Waited {
    pub status_code: i32,
}
