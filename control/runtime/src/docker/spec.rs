//! What Docker Engine is asked for to run a task: two containers. Pure.
//!
//! The sandbox has the network namespace, the host name and what belongs to both; the task's own container joins it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, ContainerSummary, HealthConfig, HostConfig, HostConfigLogConfig, Mount,
    MountTmpfsOptions, MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig, ResourcesUlimits,
};
use control_model::spec::{
    DEFAULT_STOP_GRACE_PERIOD, HealthConfig as HealthSpec, Mount as MountSpec, MountKind, Ulimit,
};
use control_model::template::TemplateContext;
use control_model::{Task, TaskId, generic};

use crate::oci::PrepareError;

/// Of a task's container: its task.
pub(super) const TASK_LABEL: &str = "mesh.task";
/// Of a sandbox container: its task.
pub(super) const SANDBOX_LABEL: &str = "mesh.sandbox";
/// What the data plane gives namespaces of its own making, unless the task says otherwise.
const NETWORK_SYSCTLS: [(&str, &str); 3] = [
    ("net.ipv4.ip_forward", "0"),
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];
/// Volumes that the engine makes itself.
const LOCAL_DRIVER: &str = "local";

/// Name of a task's sandbox container.
pub(super) fn sandbox_name(task: TaskId) -> String {
    format!("mesh-sandbox-{task}")
}

/// Whether the container has the name of the task that its label names.
pub(super) fn is_named_so(container: &ContainerSummary, label: &str) -> bool {
    let Some(task) = container.labels.as_ref().and_then(|labels| labels.get(label)) else { return false };
    let end = if label == SANDBOX_LABEL { format!("/mesh-sandbox-{task}") } else { format!(".{task}") };
    container.names.iter().flatten().any(|name| name.ends_with(&end))
}

/// Is what has this label a sandbox, or its image? Nobody is to see them.
pub fn is_of_sandbox(label: &str) -> bool {
    label == SANDBOX_LABEL
}

/// The container that holds a task's network namespace. `image` waits until it is killed.
pub(super) fn sandbox(task: &Task, hostname: &str, image: &str) -> ContainerCreateBody {
    let defaults = NETWORK_SYSCTLS.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let own = task.spec.container.sysctls.iter().filter(|(key, _)| is_of_network(key));
    let own = own.map(|(key, value)| (key.clone(), value.clone()));
    ContainerCreateBody {
        image: Some(image.to_owned()),
        hostname: Some(hostname.to_owned()),
        labels: Some(HashMap::from([(SANDBOX_LABEL.to_owned(), task.id.to_string())])),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            sysctls: Some(defaults.into_iter().chain(own).collect()),
            // It does nothing, and needs nothing.
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            readonly_rootfs: Some(true),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// A file of the node's that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

/// A task's own container, which joins its sandbox and sees `files`.
pub(super) fn container(
    context: &TemplateContext<'_>,
    files: &[File],
) -> Result<ContainerCreateBody, PrepareError> {
    let task = context.task;
    let spec = &task.spec.container;
    let own = spec.env.iter().map(|entry| context.expand(entry));
    let mut env = own.collect::<Result<Vec<_>, _>>()?;
    env.extend(generic::environment(&task.generic));
    let list = |all: &[String]| (!all.is_empty()).then(|| all.to_vec());
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let grace = spec.stop_grace_period.unwrap_or(DEFAULT_STOP_GRACE_PERIOD);
    Ok(ContainerCreateBody {
        image: Some(spec.image.clone()),
        labels: Some(labels(task)),
        env: Some(env),
        entrypoint: list(&spec.command),
        cmd: list(&spec.args),
        user: text(&spec.user),
        working_dir: text(&spec.dir),
        tty: Some(spec.tty),
        open_stdin: Some(spec.open_stdin),
        stop_signal: text(&spec.stop_signal),
        stop_timeout: i64::try_from(grace.as_secs()).ok(),
        healthcheck: spec.health.as_ref().map(health),
        host_config: Some(host_config(context, files)?),
        ..ContainerCreateBody::default()
    })
}

fn host_config(context: &TemplateContext<'_>, files: &[File]) -> Result<HostConfig, PrepareError> {
    let task = context.task;
    let (spec, resources) = (&task.spec.container, &task.spec.resources);
    let some = |amount: i64| (amount > 0).then_some(amount);
    let mounts = spec.mounts.iter().map(|given| mount(context, given)).collect::<Result<Vec<_>, _>>()?;
    let own_sysctls = spec.sysctls.iter().filter(|(key, _)| !is_of_network(key));
    Ok(HostConfig {
        network_mode: Some(format!("container:{}", sandbox_name(task.id))),
        mounts: Some(mounts.into_iter().chain(files.iter().map(file_mount)).collect()),
        init: spec.init,
        readonly_rootfs: Some(spec.read_only),
        cap_add: Some(spec.cap_add.clone()),
        cap_drop: Some(spec.cap_drop.clone()),
        group_add: Some(spec.groups.clone()),
        sysctls: Some(own_sysctls.map(|(key, value)| (key.clone(), value.clone())).collect()),
        ulimits: Some(spec.ulimits.iter().map(ulimit).collect()),
        nano_cpus: some(resources.limits.nano_cpus),
        memory: some(resources.limits.memory_bytes),
        memory_reservation: some(resources.reservations.memory_bytes),
        pids_limit: some(resources.pids_limit),
        log_config: task.spec.log_driver.as_ref().map(|driver| HostConfigLogConfig {
            typ: Some(driver.name.clone()),
            config: Some(driver.options.clone().into_iter().collect()),
        }),
        ..HostConfig::default()
    })
}

/// Docker's swarm labels over the spec's.
fn labels(task: &Task) -> HashMap<String, String> {
    let own = [
        ("com.docker.swarm.node.id", task.node.map(|node| node.to_string()).unwrap_or_default()),
        ("com.docker.swarm.service.id", task.service.to_string()),
        ("com.docker.swarm.service.name", task.service_name.clone()),
        ("com.docker.swarm.task", String::new()),
        ("com.docker.swarm.task.id", task.id.to_string()),
        ("com.docker.swarm.task.name", task.name()),
        (TASK_LABEL, task.id.to_string()),
    ];
    let given = task.spec.container.labels.clone().into_iter();
    given.chain(own.map(|(key, value)| (key.to_owned(), value))).collect()
}

/// Is it a setting of the network namespace?
fn is_of_network(sysctl: &str) -> bool {
    sysctl.starts_with("net.")
}

fn mount(context: &TemplateContext<'_>, given: &MountSpec) -> Result<Mount, PrepareError> {
    let source = context.expand(&given.source)?;
    let (typ, tmpfs, volume) = match given.kind {
        MountKind::Bind => (MountType::BIND, None, None),
        MountKind::Tmpfs => (MountType::TMPFS, Some(tmpfs_options(given)), None),
        MountKind::Volume => (MountType::VOLUME, None, Some(volume_options(given))),
    };
    Ok(Mount {
        typ: Some(typ),
        source: (!source.is_empty()).then_some(source),
        target: Some(given.target.clone()),
        read_only: Some(given.read_only),
        tmpfs_options: tmpfs,
        volume_options: volume,
        ..Mount::default()
    })
}

fn tmpfs_options(given: &MountSpec) -> MountTmpfsOptions {
    MountTmpfsOptions {
        size_bytes: i64::try_from(given.tmpfs_size_bytes).ok().filter(|size| *size > 0),
        mode: Some(i64::from(given.tmpfs_mode)).filter(|mode| *mode > 0),
        ..MountTmpfsOptions::default()
    }
}

fn volume_options(given: &MountSpec) -> MountVolumeOptions {
    let driver = (!given.volume_options.is_empty()).then(|| MountVolumeOptionsDriverConfig {
        name: Some(LOCAL_DRIVER.to_owned()),
        options: Some(given.volume_options.clone().into_iter().collect()),
    });
    MountVolumeOptions {
        no_copy: Some(given.no_copy),
        labels: Some(given.volume_labels.clone().into_iter().collect()),
        driver_config: driver,
        ..MountVolumeOptions::default()
    }
}

fn file_mount(file: &File) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(file.source.display().to_string()),
        target: Some(file.target.display().to_string()),
        read_only: Some(file.read_only),
        ..Mount::default()
    }
}

fn ulimit(given: &Ulimit) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(given.name.clone()), soft: Some(given.soft), hard: Some(given.hard) }
}

fn health(given: &HealthSpec) -> HealthConfig {
    let nanos = |span: Duration| i64::try_from(span.as_nanos()).ok();
    HealthConfig {
        test: (!given.test.is_empty()).then(|| given.test.clone()),
        interval: nanos(given.interval),
        timeout: nanos(given.timeout),
        retries: Some(i64::from(given.retries)),
        start_period: nanos(given.start_period),
        start_interval: nanos(given.start_interval),
    }
}

#[cfg(test)]
mod tests {
    use control_model::ServiceId;
    use control_model::object::Slot;

    use super::*;

    fn task() -> Task {
        let mut task = Task::new(TaskId::from_bits(1), ServiceId::from_bits(2), Slot::Replica(1));
        let spec = &mut task.spec.container;
        spec.image = "web:1".into();
        spec.env = vec!["WHERE={{.Node.Hostname}}".into()];
        spec.sysctls =
            [("net.core.somaxconn", "1000"), ("net.ipv4.ip_forward", "1"), ("kernel.shm_rmid_forced", "1")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
        spec.mounts = vec![MountSpec::volume("/data")];
        task.spec.resources.limits.memory_bytes = 64 << 20;
        task
    }

    #[test]
    fn the_network_is_the_sandboxs_and_the_rest_the_containers() {
        let task = task();
        let sandbox = sandbox(&task, "host", "pause:1").host_config.unwrap();
        assert_eq!(sandbox.network_mode.as_deref(), Some("none"));
        let sysctls = sandbox.sysctls.unwrap();
        assert_eq!(sysctls["net.core.somaxconn"], "1000");
        assert_eq!(sysctls["net.ipv4.ip_forward"], "1", "the task's own goes over ours");
        assert!(!sysctls.contains_key("kernel.shm_rmid_forced"));
        let context = TemplateContext {
            task: &task,
            node_hostname: "node-1",
            node_os: "linux",
            node_architecture: "x86_64",
        };
        let hosts = File { source: "/run/hosts".into(), target: "/etc/hosts".into(), read_only: false };
        let made = container(&context, &[hosts]).unwrap();
        assert_eq!(made.env.unwrap(), ["WHERE=node-1"]);
        assert_eq!((made.entrypoint, made.cmd, made.hostname), (None, None, None), "the image's own");
        let host = made.host_config.unwrap();
        assert_eq!(host.network_mode, Some(format!("container:mesh-sandbox-{}", task.id)));
        assert_eq!(host.sysctls.unwrap().into_keys().collect::<Vec<_>>(), ["kernel.shm_rmid_forced"]);
        assert_eq!((host.memory, host.nano_cpus), (Some(64 << 20), None));
        let targets: Vec<String> =
            host.mounts.unwrap().into_iter().filter_map(|mount| mount.target).collect();
        assert_eq!(targets, ["/data", "/etc/hosts"]);
    }

    #[test]
    fn a_container_of_an_image_that_was_made_of_a_tasks_is_not_the_tasks() {
        let named = |name: &str, label: &str| ContainerSummary {
            names: Some(vec![name.to_owned()]),
            labels: Some(HashMap::from([(label.to_owned(), "t1".to_owned())])),
            ..ContainerSummary::default()
        };
        assert!(is_named_so(&named("/web.1.t1", TASK_LABEL), TASK_LABEL));
        assert!(!is_named_so(&named("/happy_turing", TASK_LABEL), TASK_LABEL));
        assert!(is_named_so(&named("/mesh-sandbox-t1", SANDBOX_LABEL), SANDBOX_LABEL));
        assert!(!is_named_so(&named("/mesh-sandbox-t2", SANDBOX_LABEL), SANDBOX_LABEL));
    }
}
