//! `meshd teardown`: removes everything of a daemon that does not run from the kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, umount2};

use crate::checks;
use crate::config::{Config, Runtime};
use crate::data_plane::NodeDataPlane;
use crate::forwarding;
use crate::host::Host;
use crate::lock::StateLock;

/// Where cgroup hierarchies are mounted, each in a directory of its own (version 1) or this one itself (version 2).
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Removes containers, data plane, cgroups and what is in the run directory. All of it is tried; what is left is said.
pub fn run(config: &Config) -> Result<()> {
    let _lock = StateLock::take(&config.state_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut left = Vec::new();
    let mut note = |what: &str, result: Result<()>| {
        left.extend(result.err().map(|error| format!("{what}: {error:#}")));
    };
    // Without what a data plane needs there is none.
    drop(checks::check(config));
    note("containers", runtime.block_on(take_containers_down(config)));
    if config.runtime == Some(Runtime::Docker) {
        forwarding::close();
    }
    note("data plane", runtime.block_on(remove_data_plane(config)));
    note("cgroups", remove_cgroups(&config.cgroup_parent));
    note("pins", remove_dir(&config.bpffs_dir));
    for name in ["netns", "given-netns", "tasks", "docker"] {
        let dir = config.run_dir.join(name);
        note("run directory", unmount_below(&dir).and_then(|()| remove_dir(&dir)));
    }
    if left.is_empty() { Ok(()) } else { bail!("left behind:\n{}", left.join("\n")) }
}

/// Removes those of tasks, and stops the others: what they have on the disk is their users'.
async fn take_containers_down(config: &Config) -> Result<()> {
    let host = Host::open(config.clone()).await?;
    if let Some(standalone) = host.containers.standalone() {
        standalone.resume();
        standalone.lay_down().await;
    }
    remove_containers(&host).await
}

/// Removes all containers of the node's tasks, running or not.
pub async fn remove_containers(host: &Host) -> Result<()> {
    let executor = host.containers.executor();
    for found in executor.list_ours().await? {
        executor.terminate(found.task).await?;
        executor.remove(found.task).await?;
    }
    Ok(())
}

async fn remove_data_plane(config: &Config) -> Result<()> {
    NodeDataPlane::start(config)?.tear_down().await?;
    Ok(())
}

/// Removes the daemon's cgroup in every hierarchy, and the empty ones above it.
fn remove_cgroups(parent: &Path) -> Result<()> {
    let relative = parent.strip_prefix("/").unwrap_or(parent);
    let mut roots = vec![PathBuf::from(CGROUP_ROOT)];
    roots.extend(fs::read_dir(CGROUP_ROOT)?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
    for root in roots {
        let own = root.join(relative);
        if relative.as_os_str().is_empty() || !own.is_dir() {
            continue;
        }
        remove_cgroup(&own).with_context(|| format!("can't remove {}", own.display()))?;
        let above = own.ancestors().skip(1).take_while(|dir| *dir != root);
        // One that is not empty belongs to others as well.
        let _ = above.map(fs::remove_dir).take_while(Result::is_ok).count();
    }
    Ok(())
}

/// A cgroup's files go with it; only its children have to be removed before.
fn remove_cgroup(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// What an engine that is away has left mounted.
fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(dir)) {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("can't unmount {point}"))?;
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
