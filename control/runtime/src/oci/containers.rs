//! What `docker ps` and `docker inspect` show of this node's containers.

use std::path::PathBuf;

use control_model::{TaskId, Timestamp};

use super::health::Health;
use super::process::printed_command;
use super::record::{ContainerRecord, Ended, Stage};
use super::{Container, Oci};
use crate::image::ImageError;

/// One container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    pub record: ContainerRecord,
    /// Arguments as one text.
    pub command: String,
    /// `created`, `running` or `exited`: Docker's words.
    pub state: &'static str,
    /// `None` unless it was started.
    pub pid: Option<i32>,
    pub started_at: Option<Timestamp>,
    pub ended: Option<Ended>,
    /// `None` if it has no check.
    pub health: Option<Health>,
    /// conmon's `k8s-file` lines: `<time> stdout|stderr F|P <text>`.
    pub log: PathBuf,
}

impl Oci {
    /// All containers, by task. From memory: an end is shown once somebody has waited for it.
    pub fn list_containers(&self) -> Vec<ContainerInfo> {
        let containers: Vec<_> = self.containers().values().cloned().collect();
        containers.iter().map(|container| info(container)).collect()
    }

    /// The container whose id (or its start), or name, this is. Docker's order: full id, name, start of an id.
    pub fn find_container(&self, text: &str) -> Option<ContainerInfo> {
        let all = self.list_containers();
        let exact = all.iter().position(|one| one.record.container_id == text || one.record.name == text);
        let mut starting =
            all.iter().enumerate().filter(|(_, one)| one.record.container_id.starts_with(text));
        let only = match (starting.next(), starting.next()) {
            (Some((at, _)), None) if !text.is_empty() => Some(at),
            _ => None,
        };
        exact.or(only).map(|at| all[at].clone())
    }

    /// The container of a task.
    pub fn container_of_task(&self, task: TaskId) -> Option<ContainerInfo> {
        let container = self.container(task)?;
        Some(info(&container))
    }

    /// Takes a name from an image, and removes the image with its last name unless a container uses it. Gives the
    /// removed names and, where the image went, its id.
    pub async fn remove_image(&self, text: &str) -> Result<(Vec<String>, Option<String>), ImageError> {
        let user = |id: &str| {
            let all = self.list_containers();
            all.into_iter()
                .find(|one| one.record.image_id == id)
                .map(|one| one.record.container_id[..12].to_owned())
        };
        self.images().remove(text, &user).await
    }
}

fn info(container: &Container) -> ContainerInfo {
    let (record, log) = (container.record(), container.paths.log());
    let (state, pid, started_at) = match (record.stage, record.ended) {
        (Stage::Started { pid, at }, None) => ("running", Some(pid), Some(at)),
        (Stage::Started { pid, at }, Some(_)) => ("exited", Some(pid), Some(at)),
        (Stage::Prepared | Stage::Starting, _) => ("created", None, None),
    };
    ContainerInfo {
        command: printed_command(&record.command),
        state,
        pid,
        started_at,
        ended: record.ended,
        health: record.health.is_some().then(|| container.health()),
        log,
        record,
    }
}
