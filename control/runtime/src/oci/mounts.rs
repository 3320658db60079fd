//! What is mounted into a container: the kernel's file systems, the files in `/etc`, the user's mounts.

use std::path::{Path, PathBuf};

use control_model::spec::{Mount as MountSpec, MountKind};
use control_model::template::TemplateError;
use control_model::{Task, TaskId};
use oci_spec::image::Config;
use oci_spec::runtime::{Mount, MountBuilder, Spec};

use super::error::PrepareError;
use super::paths::TaskPaths;
use super::record::MountPoint;
use super::rootfs::copy_out;
use crate::volume::{VolumeSpec, Volumes, anonymous_name};

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

/// A mount that is to be made.
pub(super) struct PlannedMount {
    pub point: MountPoint,
    spec: MountSpec,
}

/// The user's mounts, and a volume for each that the image wants besides. Nothing is made.
pub(super) fn planned_mounts(
    (volumes, paths): (&Volumes, &TaskPaths),
    image: &Config,
    task: &Task,
    expand: &dyn Fn(&str) -> Result<String, TemplateError>,
) -> Result<Vec<PlannedMount>, PrepareError> {
    let mut specs = task.spec.container.mounts.clone();
    for target in image.volumes().iter().flatten() {
        if specs.iter().all(|spec| spec.target.trim_end_matches('/') != target.trim_end_matches('/')) {
            specs.push(MountSpec::volume(target));
        }
    }
    let mut n_anonymous = 0;
    let mut planned = Vec::with_capacity(specs.len());
    for spec in specs {
        let given = expand(&spec.source)?;
        let is_anonymous = spec.kind == MountKind::Volume && given.is_empty();
        n_anonymous += usize::from(is_anonymous);
        let (name, source) = match spec.kind {
            MountKind::Tmpfs => (String::new(), PathBuf::new()),
            MountKind::Bind => (String::new(), PathBuf::from(given)),
            MountKind::Volume if is_anonymous => {
                (anonymous_name(task.id, n_anonymous), paths.anonymous_volume(n_anonymous))
            }
            MountKind::Volume => {
                let content = volumes.content_of(&given)?;
                (given, content)
            }
        };
        let point = MountPoint {
            kind: spec.kind,
            name,
            is_anonymous,
            source,
            target: spec.target.clone(),
            read_only: spec.read_only,
        };
        planned.push(PlannedMount { point, spec });
    }
    Ok(planned)
}

/// Makes what they need (volumes, with the image's content) and gives the mounts.
pub(super) fn user_mounts(
    volumes: &Volumes,
    paths: &TaskPaths,
    planned: &[PlannedMount],
    task: TaskId,
) -> Result<Vec<Mount>, PrepareError> {
    let mut mounts = Vec::with_capacity(planned.len());
    for PlannedMount { point, spec } in planned {
        let copy = |content: &Path| {
            if spec.no_copy { Ok(false) } else { copy_out(&paths.rootfs(), &spec.target, content) }
        };
        match spec.kind {
            MountKind::Tmpfs => {
                mounts.push(tmpfs(spec));
                continue;
            }
            MountKind::Bind if !point.source.exists() => {
                return Err(PrepareError::BindSource(point.source.display().to_string()));
            }
            MountKind::Bind => {}
            MountKind::Volume if point.is_anonymous => {
                let made =
                    std::fs::create_dir_all(&point.source).and_then(|()| copy(&point.source)).map(drop);
                made.map_err(PrepareError::io(&point.source))?;
            }
            MountKind::Volume => {
                let wanted =
                    VolumeSpec { labels: spec.volume_labels.clone(), options: spec.volume_options.clone() };
                volumes.hold(&point.name, &wanted, task)?;
                volumes.fill(&point.name, task, copy)?;
            }
        }
        mounts.push(bound(&point.source, PathBuf::from(&spec.target), spec.read_only));
    }
    Ok(mounts)
}

/// Names of the volumes, of those in `volumes`, that the runtime was told to mount into a container.
pub(super) fn volumes_of_bundle(paths: &TaskPaths, volumes: &Path) -> Vec<String> {
    let Ok(spec) = Spec::load(paths.bundle().join("config.json")) else { return Vec::new() };
    let sources = spec.mounts().iter().flatten().filter_map(|mount| mount.source().as_deref());
    let below = sources.filter_map(|source| source.strip_prefix(volumes).ok()?.iter().next()?.to_str());
    below.map(str::to_owned).collect()
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
