//! Sandbox containers, and their namespaces' way to the data plane.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bollard::errors::Error;
use bollard::query_parameters::{CreateContainerOptions, CreateImageOptions, RemoveContainerOptions};
use control_model::{Task, TaskId};
use futures::TryStreamExt as _;
use nix::mount::{MsFlags, mount};

use super::spec::{SANDBOX_LABEL, sandbox, sandbox_name};
use super::{DockerEngine, is_missing, pause};
use crate::unmount::unmount_all;

/// Its name changes with what is in it.
const IMAGE: (&str, &str) = ("mesh-sandbox", "1");

impl DockerEngine {
    pub(super) async fn ensure_sandbox_image(&self) -> Result<(), Error> {
        match self.client().inspect_image(&image()).await {
            Err(error) if is_missing(&error) => {}
            known => return known.map(drop),
        }
        let options = CreateImageOptions {
            from_src: Some("-".to_owned()),
            repo: Some(IMAGE.0.to_owned()),
            tag: Some(IMAGE.1.to_owned()),
            changes: vec![
                format!("ENTRYPOINT [\"/{}\"]", pause::PROGRAM),
                format!("LABEL {SANDBOX_LABEL}=image"),
            ],
            ..CreateImageOptions::default()
        };
        let root = bollard::body_full(pause::root()?.into());
        self.client().create_image(Some(options), Some(root), None).try_collect::<Vec<_>>().await.map(drop)
    }

    /// Makes a task's sandbox container and lays its namespace where the data plane finds it.
    pub(super) async fn make_sandbox(&self, task: &Task, hostname: &str) -> Result<(), Error> {
        let name = sandbox_name(task.id);
        let options =
            CreateContainerOptions { name: Some(name.clone()), ..CreateContainerOptions::default() };
        let body = sandbox(task, hostname, &image());
        match self.client().create_container(Some(options.clone()), body.clone()).await {
            // Somebody has pruned what no container used.
            Err(error) if is_missing(&error) => {
                self.ensure_sandbox_image().await?;
                self.client().create_container(Some(options), body).await?;
            }
            made => drop(made?),
        }
        self.patient_client().start_container(&name, None).await?;
        let found = self.client().inspect_container(&name, None).await?;
        let (id, state) = (found.id.unwrap_or_default(), found.state.unwrap_or_default());
        let pid = state
            .pid
            .filter(|pid| *pid > 0)
            .ok_or_else(|| io::Error::other("the sandbox container has ended"))?;
        let path = self.given_netns(task.id);
        tokio::task::spawn_blocking(move || give(pid, &id, &path)).await.map_err(io::Error::other)??;
        Ok(())
    }

    /// Removes it, last of all that there is of a task: it is found by it. One that is not there is success.
    pub(super) async fn remove_sandbox(&self, task: TaskId) -> Result<(), Error> {
        let path = self.given_netns(task);
        tokio::task::spawn_blocking(move || take_back(&path)).await.map_err(io::Error::other)??;
        self.remove_container(&sandbox_name(task)).await
    }

    /// Tasks of which something lies on this node, whether the engine knows them or not.
    pub(super) fn tasks_with_files(&self) -> BTreeSet<TaskId> {
        let dirs = [&self.0.options.run_dir, &self.0.options.given_netns_dir];
        let entries = dirs.into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// By name or id, with the volumes that have no name. One that is not there is success.
    pub(super) async fn remove_container(&self, name: &str) -> Result<(), Error> {
        let options = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        match self.patient_client().remove_container(name, Some(options)).await {
            Err(error) if is_missing(&error) => Ok(()),
            done => done,
        }
    }

    pub(super) fn given_netns(&self, task: TaskId) -> PathBuf {
        self.0.options.given_netns_dir.join(task.to_string())
    }
}

fn image() -> String {
    format!("{}:{}", IMAGE.0, IMAGE.1)
}

/// Mounts the network namespace of a container's process at `path`.
fn give(pid: i64, container: &str, path: &Path) -> io::Result<()> {
    // Of an engine in another machine, or in other namespaces, the number is somebody else's.
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    if !cgroup.contains(container) {
        return Err(io::Error::other("Docker Engine's processes are not this host's"));
    }
    take_back(path)?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    File::create(path)?;
    let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
    Ok(mount(Some(&namespace), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

fn take_back(path: &Path) -> io::Result<()> {
    unmount_all(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
