//! `docker cp`: files of a container, into it and out of it. One that has ended shows its own files, and none of its mounts'.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use oci_spec::runtime::Spec;

use super::{Container, Oci, Stage};
use crate::inside::{CopyError, Overwriting, Owner, PathStat, Root};
use crate::unmount::is_mount_point;

/// How an archive is put into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacking {
    pub overwriting: Overwriting,
    /// The files are the container's user's, where it has one, whatever the archive says.
    pub is_users: bool,
}

impl Oci {
    /// What is at `path` in the container with this id. Blocks, as everything here does.
    pub fn path_stat(&self, id: &str, path: &str) -> Result<PathStat, CopyError> {
        root(&*self.container_by_id(id).ok_or(CopyError::NotFound)?)?.0.stat(path)
    }

    /// Writes an archive of what is at `path`; gives back where it was written to.
    pub fn pack<W: Write>(&self, id: &str, path: &str, to: W) -> Result<W, CopyError> {
        root(&*self.container_by_id(id).ok_or(CopyError::NotFound)?)?.0.pack(path, to)
    }

    /// Puts an archive, compressed by gzip or not, into the directory at `path`.
    pub fn unpack(&self, id: &str, path: &str, how: Unpacking, from: impl Read) -> Result<(), CopyError> {
        let container = self.container_by_id(id).ok_or(CopyError::NotFound)?;
        let spec = Spec::load(container.paths.bundle().join("config.json")).map_err(io::Error::other)?;
        let (root, is_overlay) = root(&container)?;
        if is_overlay && spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
            return Err(CopyError::ReadOnly);
        }
        let user = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
        let owner = match user {
            Some((uid, gid)) if how.is_users && (uid, gid) != (0, 0) => Owner::These { uid, gid },
            _ => Owner::Archives,
        };
        root.unpack(path, owner, how.overwriting, from)
    }
}

/// What its first process sees; of one that has ended, what its image and it have made: is it that?
fn root(container: &Container) -> Result<(Root, bool), CopyError> {
    let record = container.record();
    if let (Stage::Started { pid, .. }, None) = (record.stage, record.ended)
        && let Some(root) = root_of_process(pid, &record.cgroup)
    {
        return Ok((root, false));
    }
    let rootfs = container.paths.rootfs();
    // After a reboot there is an empty directory.
    if is_mount_point(&rootfs)? { Ok((Root::open(&rootfs)?, true)) } else { Err(CopyError::NotMounted) }
}

/// `None` if the process is gone. Its number may be another's by now, even one of the host's: who belongs to the container's cgroup
/// is asked through the same open directory as the root, which stays that of one process.
fn root_of_process(pid: i32, cgroup: &str) -> Option<Root> {
    let process = File::open(Path::new("/proc").join(pid.to_string())).ok()?;
    let open = |name: &str| openat(&process, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    let cgroups = io::read_to_string(File::from(open("cgroup").ok()?)).ok()?;
    let is_its =
        |path: &str| path.strip_prefix(cgroup).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(is_its) {
        return None;
    }
    open("root").ok().map(Root::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a container whose record is older than its end, the number may be anybody's.
    #[test]
    fn another_processs_root_is_none_of_a_containers() {
        let own = i32::try_from(std::process::id()).expect("small");
        assert!(root_of_process(own, "/meshd/of-no-container").is_none());
        let cgroups = std::fs::read_to_string("/proc/self/cgroup").expect("readable");
        let cgroup = cgroups.lines().find_map(|line| line.splitn(3, ':').nth(2)).expect("one");
        assert!(root_of_process(own, cgroup.trim_end_matches('/')).is_some());
    }
}
