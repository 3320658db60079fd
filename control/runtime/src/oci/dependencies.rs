//! The files of a task's secrets and configs: in memory, from its preparation until its process has ended.

use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use control_model::dependency::DependencyFile;
use control_model::template::{Misfit, TemplateContext, TemplateError};
use control_model::validate_dependency::place_of;
use control_model::{Dependency, DependencyKind};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use oci_spec::runtime::Mount;

use super::error::PrepareError;
use super::mounts::bound;
use super::paths::TaskPaths;

/// What a file system needs beside its files' pages.
const ROOM_BYTES: usize = 64 << 10;
const PAGE_BYTES: usize = 4096;

/// What the files are made of.
pub(crate) struct Sources<'a> {
    pub context: TemplateContext<'a>,
    /// Of the process, as `KEY=value`.
    pub environment: &'a [String],
    pub dependencies: &'a [Arc<Dependency>],
}

/// Makes the files and gives their mounts.
pub(super) fn dependency_mounts(
    paths: &TaskPaths,
    sources: &Sources<'_>,
) -> Result<Vec<Mount>, PrepareError> {
    let files = dependency_files(&paths.dependencies(), sources)?;
    Ok(files.into_iter().map(|(at, place)| bound(&at, place, true)).collect())
}

/// Makes the files in a file system that is mounted at `dir`, and gives where each is and where it is to be seen.
pub(crate) fn dependency_files(
    dir: &Path,
    sources: &Sources<'_>,
) -> Result<Vec<(PathBuf, PathBuf)>, PrepareError> {
    let files = &sources.context.task.spec.container.dependencies;
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let contents = files.iter().map(|file| sources.content(file)).collect::<Result<Vec<_>, _>>()?;
    mount_memory(dir, &contents).map_err(PrepareError::io(dir))?;
    let mut made = Vec::with_capacity(files.len());
    for (number, (file, content)) in files.iter().zip(&contents).enumerate() {
        let at = dir.join(number.to_string());
        write(&at, file, content).map_err(PrepareError::io(&at))?;
        let place = place_of(file).ok_or_else(|| PrepareError::Target(file.target.clone()))?;
        made.push((at, place));
    }
    Ok(made)
}

impl Sources<'_> {
    fn content(&self, file: &DependencyFile) -> Result<Vec<u8>, PrepareError> {
        let found = self.found(file)?;
        let bytes = &found.spec.data.0;
        if !found.spec.is_template {
            return Ok(bytes.clone());
        }
        let text = std::str::from_utf8(bytes).map_err(|_| PrepareError::NoText(found.spec.name.clone()))?;
        let limit = found.kind.limit_bytes();
        let expanded =
            self.context.expand_with(text, limit, &|function, argument| self.call(function, argument));
        expanded.map(String::into_bytes).map_err(|Misfit { line, error }| PrepareError::Payload {
            kind: found.kind,
            name: found.spec.name.clone(),
            line,
            why: match error {
                TemplateError::Unclosed(_) => "begins with {{ what does not end".to_owned(),
                TemplateError::Unknown(_) => "has a placeholder that is not known".to_owned(),
                TemplateError::TooLong(limit) => format!("makes it longer than {limit} bytes"),
            },
        })
    }

    fn found(&self, file: &DependencyFile) -> Result<&Dependency, PrepareError> {
        let found = self.dependencies.iter().find(|one| one.id == file.id && one.kind == file.kind);
        found
            .map(|one| &**one)
            .ok_or_else(|| PrepareError::Dependency { kind: file.kind, name: file.name.clone() })
    }

    /// The functions of a template (swarmkit `template/context.go`): an environment variable, and the bytes of another of
    /// the task's secrets or configs, named by its target and not expanded.
    fn call(&self, function: &str, argument: &str) -> Option<String> {
        let kind = match function {
            "env" => {
                let mut all = self.environment.iter().filter_map(|entry| entry.split_once('='));
                return Some(
                    all.find(|(key, _)| *key == argument)
                        .map(|(_, value)| value.to_owned())
                        .unwrap_or_default(),
                );
            }
            "secret" => DependencyKind::Secret,
            "config" => DependencyKind::Config,
            _ => return None,
        };
        let files = &self.context.task.spec.container.dependencies;
        let file = files.iter().find(|file| file.kind == kind && file.target == argument)?;
        String::from_utf8(self.found(file).ok()?.spec.data.0.clone()).ok()
    }
}

/// A file system of its own in memory, which nobody but root looks into, for `contents` and nothing more.
fn mount_memory(dir: &Path, contents: &[Vec<u8>]) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let pages: usize = contents.iter().map(|content| content.len().div_ceil(PAGE_BYTES)).sum();
    let options = format!("mode=0700,size={}", pages * PAGE_BYTES + ROOM_BYTES);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mount = |options: &str| mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options));
    // Kernels before 6.4 may put its pages into swap space, if they have any.
    match mount(&format!("{options},noswap")) {
        Err(Errno::EINVAL) => Ok(mount(&options)?),
        mounted => Ok(mounted?),
    }
}

fn write(at: &Path, file: &DependencyFile, content: &[u8]) -> io::Result<()> {
    let mut written = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(at)?;
    written.write_all(content)?;
    fchown(&written, Some(file.uid), Some(file.gid))?;
    written.set_permissions(std::fs::Permissions::from_mode(file.mode & 0o777))
}
