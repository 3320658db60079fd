//! `docker cp`: files of a container, into it and out of it. One that has ended shows its own files, and none of its mounts'.

use std::io::{Read, Write};
use std::path::PathBuf;

use oci_spec::runtime::Spec;

use super::Oci;
use crate::inside::{CopyError, Overwriting, Owner, PathStat, Root};

impl Oci {
    /// What is at `path` in the container with this id. Blocks, as everything here does.
    pub fn path_stat(&self, id: &str, path: &str) -> Result<PathStat, CopyError> {
        self.root(id)?.stat(path)
    }

    /// Writes an archive of what is at `path`; gives back where it was written to.
    pub fn pack<W: Write>(&self, id: &str, path: &str, to: W) -> Result<W, CopyError> {
        self.root(id)?.pack(path, to)
    }

    /// Puts an archive into the directory at `path`; as the container's user, or as it says itself.
    pub fn unpack(
        &self,
        id: &str,
        path: &str,
        (overwriting, is_users): (Overwriting, bool),
        from: impl Read,
    ) -> Result<(), CopyError> {
        let owner = if is_users { self.user_of(id)? } else { Owner::Archives };
        self.root(id)?.unpack(path, owner, overwriting, from)
    }

    /// What its processes see; of one that has ended, what its image and it have made.
    fn root(&self, id: &str) -> Result<Root, CopyError> {
        let info = self.list_containers().into_iter().find(|one| one.record.container_id == id);
        let info = info.ok_or(CopyError::NotFound)?;
        let root = match info.pid.filter(|_| info.state == "running") {
            Some(pid) => PathBuf::from(format!("/proc/{pid}/root")),
            None => self.container(info.record.task).ok_or(CopyError::NotFound)?.paths.rootfs(),
        };
        Ok(Root::open(&root)?)
    }

    fn user_of(&self, id: &str) -> Result<Owner, CopyError> {
        let container = self.containers().values().find(|one| one.paths.container_id == id).cloned();
        let container = container.ok_or(CopyError::NotFound)?;
        let spec = Spec::load(container.paths.bundle().join("config.json")).map_err(std::io::Error::other)?;
        let user = spec.process().as_ref().map(|process| process.user().clone()).unwrap_or_default();
        Ok(Owner::These { uid: user.uid(), gid: user.gid() })
    }
}
