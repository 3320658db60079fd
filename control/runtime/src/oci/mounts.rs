//! What is mounted into a container: the kernel's file systems, the files in `/etc`, the user's mounts.

use std::io;
use std::path::{Path, PathBuf};

use control_model::spec::{Mount as MountSpec, MountKind};
use control_model::template::TemplateContext;
use nix::fcntl::{Flock, FlockArg};
use oci_spec::image::Config;
use oci_spec::runtime::{Mount, MountBuilder};

use super::error::PrepareError;
use super::paths::{Layout, TaskPaths};
use super::rootfs::copy_out;
use crate::files::remove_tree;

const NO_SUID_DEV_EXEC: [&str; 3] = ["nosuid", "noexec", "nodev"];

/// Docker's mounts of every container, in order.
pub(super) fn kernel_mounts() -> Vec<Mount> {
    let shm = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    vec![
        mounted("proc", "proc", "/proc", &NO_SUID_DEV_EXEC),
        mounted("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mounted("devpts", "devpts", "/dev/pts", &pts),
        mounted("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
        mounted("cgroup", "cgroup", "/sys/fs/cgroup", &["ro", "nosuid", "noexec", "nodev"]),
        mounted("mqueue", "mqueue", "/dev/mqueue", &NO_SUID_DEV_EXEC),
        mounted("tmpfs", "shm", "/dev/shm", &shm),
    ]
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a task.
pub(super) fn etc_mounts(paths: &TaskPaths) -> Vec<Mount> {
    ["hosts", "hostname", "resolv.conf"]
        .map(|name| bound(&paths.etc(name), Path::new("/etc").join(name), false))
        .into()
}

/// Makes what the user's and the image's mounts need (volumes, with the image's content) and gives the mounts.
pub(super) fn user_mounts(
    layout: &Layout,
    paths: &TaskPaths,
    image: &Config,
    context: &TemplateContext<'_>,
) -> Result<Vec<Mount>, PrepareError> {
    let specs = &context.task.spec.container.mounts;
    let mut mounts = Vec::new();
    let mut n_anonymous = 0;
    let mut anonymous = || {
        n_anonymous += 1;
        paths.anonymous_volume(n_anonymous)
    };
    for spec in specs {
        let source = context.expand(&spec.source)?;
        mounts.push(match spec.kind {
            MountKind::Tmpfs => tmpfs(spec),
            MountKind::Bind => bind(spec, &source)?,
            MountKind::Volume if source.is_empty() => {
                volume(paths, &anonymous(), &spec.target, spec.read_only)?
            }
            MountKind::Volume => {
                let content = named_volume(layout, &source)?;
                fill_named(&paths.rootfs(), &content, &spec.target).map_err(PrepareError::io(&content))?;
                bound(&content, PathBuf::from(&spec.target), spec.read_only)
            }
        });
    }
    for target in image.volumes().iter().flatten() {
        if specs.iter().all(|spec| spec.target.trim_end_matches('/') != target.trim_end_matches('/')) {
            mounts.push(volume(paths, &anonymous(), target, false)?);
        }
    }
    Ok(mounts)
}

/// The mounts of one container: a user's mount takes the place of a default at the same target.
pub(super) fn merged(defaults: Vec<Mount>, user: Vec<Mount>) -> Vec<Mount> {
    let replaced = |mount: &Mount| user.iter().any(|own| own.destination() == mount.destination());
    let mut all: Vec<Mount> = defaults.into_iter().filter(|mount| !replaced(mount)).collect();
    all.extend(user);
    all
}

fn tmpfs(spec: &MountSpec) -> Mount {
    let mut options = vec!["noexec".to_owned(), "nosuid".to_owned(), "nodev".to_owned()];
    if spec.tmpfs_size_bytes > 0 {
        options.push(format!("size={}", spec.tmpfs_size_bytes));
    }
    let mode = if spec.tmpfs_mode == 0 { 0o1777 } else { spec.tmpfs_mode };
    options.push(format!("mode={mode:o}"));
    if spec.read_only {
        options.push("ro".to_owned());
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    mounted("tmpfs", "tmpfs", &spec.target, &options)
}

fn bind(spec: &MountSpec, source: &str) -> Result<Mount, PrepareError> {
    if !Path::new(source).exists() {
        return Err(PrepareError::BindSource(source.to_owned()));
    }
    Ok(bound(Path::new(source), PathBuf::from(&spec.target), spec.read_only))
}

fn volume(paths: &TaskPaths, content: &Path, target: &str, read_only: bool) -> Result<Mount, PrepareError> {
    let prepare = || -> io::Result<()> {
        std::fs::create_dir_all(content)?;
        if std::fs::read_dir(content)?.next().is_none() {
            copy_out(&paths.rootfs(), target, content)?;
        }
        Ok(())
    };
    prepare().map_err(|source| PrepareError::Io { path: content.to_owned(), source })?;
    Ok(bound(content, PathBuf::from(target), read_only))
}

/// Fills a volume that tasks share: one at a time, and whole or not at all after a crash.
fn fill_named(rootfs: &Path, content: &Path, target: &str) -> io::Result<()> {
    let dir = content.parent().expect("a volume's content is inside its directory");
    std::fs::create_dir_all(dir)?;
    let lock = std::fs::File::create(dir.join("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
    if content.is_dir() {
        // Another task may have the empty directory mounted: it can be filled, but not replaced.
        if std::fs::read_dir(content)?.next().is_none() {
            copy_out(rootfs, target, content)?;
        }
        return Ok(());
    }
    let partial = dir.join("_partial");
    remove_tree(&partial)?;
    std::fs::create_dir(&partial)?;
    copy_out(rootfs, target, &partial)?;
    nix::unistd::syncfs(&std::fs::File::open(&partial)?)?;
    std::fs::rename(&partial, content)
}

fn named_volume(layout: &Layout, name: &str) -> Result<PathBuf, PrepareError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let first_good = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    // Docker wants two characters at least.
    if first_good && name.len() > 1 && name.chars().all(good) {
        Ok(layout.volume(name))
    } else {
        Err(PrepareError::VolumeName(name.to_owned()))
    }
}

pub(super) fn bound(source: &Path, target: PathBuf, read_only: bool) -> Mount {
    let options = ["rbind", "rprivate", if read_only { "ro" } else { "rw" }].map(str::to_owned);
    MountBuilder::default()
        .typ("bind")
        .source(source)
        .destination(target)
        .options(options)
        .build()
        .expect("the destination is given")
}

fn mounted(kind: &str, source: &str, target: &str, options: &[&str]) -> Mount {
    MountBuilder::default()
        .typ(kind)
        .source(source)
        .destination(target)
        .options(options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
        .build()
        .expect("the destination is given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_was_cut_off_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (rootfs, content) = (dir.path().join("root"), dir.path().join("volume/_data"));
        std::fs::create_dir_all(rootfs.join("data")).expect("made");
        std::fs::write(rootfs.join("data/a"), "whole").expect("written");
        std::fs::create_dir_all(dir.path().join("volume/_partial")).expect("made");
        std::fs::write(dir.path().join("volume/_partial/torn"), "").expect("written");
        fill_named(&rootfs, &content, "/data").expect("filled");
        assert_eq!(std::fs::read_to_string(content.join("a")).expect("copied"), "whole");
        assert!(!content.join("torn").exists() && !dir.path().join("volume/_partial").exists());
        std::fs::write(content.join("a"), "own").expect("written");
        fill_named(&rootfs, &content, "/data").expect("nothing to do");
        assert_eq!(std::fs::read_to_string(content.join("a")).expect("kept"), "own");
    }
}
