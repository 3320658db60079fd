//! Makes everything a container needs before its process can start.

use std::path::{Path, PathBuf};

use control_model::Task;
use control_model::Timestamp;
use control_model::executor::Provisions;
use control_model::generic;
use control_model::log_driver::LogDriver;
use control_model::object::HealthStatus;
use control_model::spec::{DEFAULT_STOP_GRACE_PERIOD, Labels, Platform};
use control_model::template::{TemplateContext, TemplateError};

use super::cgroup::CgroupLayout;
use super::dependencies::{Sources, dependency_mounts};
use super::error::PrepareError;
use super::health::{HealthCheck, over_image};
use super::limits::resources;
use super::mounts::{PlannedMount, etc_mounts, kernel_mounts, merged, planned_mounts, user_mounts};
use super::net_files::{hosts, hosts_are_valid, resolv_conf};
use super::paths::TaskPaths;
use super::process::{SHORT_ID_LEN, arguments, environment, signal_number};
use super::record::{ContainerRecord, HealthRecord, Stage, StandaloneRecord};
use super::rootfs::{mount_overlay, read_inside};
use super::spec::{SpecInput, probe_process, runtime_spec};
use super::user;
use crate::files::write_atomically;
use crate::image::LocalImage;
use crate::volume::Volumes;

/// Init binaries that need nothing from the image, by preference.
const INIT_BINARIES: [&str; 3] =
    ["/usr/bin/tini-static", "/usr/bin/catatonit", "/usr/libexec/podman/catatonit"];
/// Where Docker puts it.
const INIT_TARGET: &str = "/sbin/docker-init";
/// Docker's.
const DEFAULT_STOP_SIGNAL: &str = "SIGTERM";

/// One preparation.
pub(super) struct Preparation<'a> {
    pub volumes: &'a Volumes,
    pub paths: &'a TaskPaths,
    pub task: &'a Task,
    /// Of a container that no service made: its name, and what is kept of it.
    pub standalone: Option<(&'a str, &'a StandaloneRecord)>,
    pub provisions: &'a Provisions,
    pub image: &'a LocalImage,
    pub node_hostname: &'a str,
    /// The node's own.
    pub log: &'a LogDriver,
    pub cgroup_parent: &'a str,
    pub cgroups: CgroupLayout,
    pub now: Timestamp,
}

impl Preparation<'_> {
    /// What is kept of the container. Refuses what can be refused before anything is made.
    pub fn record(&self) -> Result<ContainerRecord, PrepareError> {
        let container = &self.task.spec.container;
        if !hosts_are_valid(&container.hosts) {
            return Err(PrepareError::ExtraHost(container.hosts.clone()));
        }
        let image_signal = self.image.config.stop_signal().clone().unwrap_or_default();
        let signal = [container.stop_signal.as_str(), image_signal.as_str(), DEFAULT_STOP_SIGNAL];
        let signal = signal.into_iter().find(|name| !name.is_empty()).unwrap_or(DEFAULT_STOP_SIGNAL);
        let hostname = self.hostname()?;
        Ok(ContainerRecord {
            task: self.task.id,
            container_id: self.paths.container_id.clone(),
            name: self.standalone.map_or_else(|| self.task.name(), |(name, _)| name.to_owned()),
            image: container.image.clone(),
            image_id: self.image.record.id.clone(),
            command: arguments(container, &self.image.config).ok_or(PrepareError::NoCommand)?,
            env: self.environment(&hostname)?,
            user: self.user_name(),
            working_dir: self.working_dir(),
            hostname,
            tty: container.tty,
            log: self.log_driver()?,
            ports: self.task.ports.clone(),
            mounts: self.planned_mounts()?.into_iter().map(|planned| planned.point).collect(),
            exposed_ports: self.exposed_ports(),
            labels: self.labels(),
            created_at: self.now,
            cgroup: format!("{}/{}", self.cgroup_parent, self.paths.container_id),
            stop_signal: signal_number(signal).ok_or_else(|| PrepareError::Signal(signal.to_owned()))?,
            stop_grace: container.stop_grace_period.unwrap_or(DEFAULT_STOP_GRACE_PERIOD),
            stage: Stage::Prepared,
            ended: None,
            health: HealthCheck::of(&over_image(container.health.as_ref(), self.image.health.as_ref()))
                .map(|check| HealthRecord { check, status: HealthStatus::Starting }),
            standalone: self.standalone.map(|(_, record)| Box::new(record.clone())),
        })
    }

    fn log_driver(&self) -> Result<LogDriver, PrepareError> {
        let wanted = &self.task.spec.log_driver;
        let driver = wanted.as_ref().map_or_else(|| self.log.clone(), |driver| driver.over(self.log));
        driver.logging()?;
        Ok(driver)
    }

    /// The image's, and its user's.
    fn exposed_ports(&self) -> Vec<String> {
        let mut ports = self.image.config.exposed_ports().clone().unwrap_or_default();
        let own = self.standalone.into_iter().flat_map(|(_, record)| &record.spec.exposed_ports);
        ports.extend(own.cloned());
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Docker's swarm labels, where there is a service, over the spec's, over the image's.
    fn labels(&self) -> Labels {
        let task = self.task;
        let mut labels = self.image.record.labels.clone();
        labels.extend(task.spec.container.labels.clone());
        if self.standalone.is_some() {
            return labels;
        }
        let own = [
            ("node.id", task.node.map(|node| node.to_string()).unwrap_or_default()),
            ("service.id", task.service.to_string()),
            ("service.name", task.service_name.clone()),
            ("task", String::new()),
            ("task.id", task.id.to_string()),
            ("task.name", task.name()),
        ];
        labels.extend(own.map(|(key, value)| (format!("com.docker.swarm.{key}"), value)));
        labels
    }

    /// Makes the directories, mounts the overlay and writes the bundle. Whatever is made is under the task's
    /// directories, so that removing the task removes a half-made one too.
    pub fn make(&self, record: &ContainerRecord) -> Result<(), PrepareError> {
        for dir in self.paths.directories() {
            std::fs::create_dir_all(&dir).map_err(PrepareError::io(dir))?;
        }
        let at = self.paths.record();
        record.write(&at).map_err(PrepareError::io(at))?;
        mount_overlay(self.paths, &self.image.rootfs).map_err(PrepareError::io(self.paths.rootfs()))?;
        self.write_etc(&record.hostname)?;
        let config = self.spec(record)?;
        if let Some(health) = &record.health {
            let process = probe_process(&config, health.check.arguments.clone());
            write_json(self.paths.probe_process(), &process)?;
        }
        write_json(self.paths.bundle().join("config.json"), &config)
    }

    fn context(&self) -> TemplateContext<'_> {
        TemplateContext {
            task: self.task,
            node_hostname: self.node_hostname,
            node_os: Platform::HOST_OS,
            node_architecture: Platform::HOST_ARCHITECTURE,
        }
    }

    /// Placeholders replaced: those of services alone are any.
    fn expand(&self, text: &str) -> Result<String, TemplateError> {
        if self.standalone.is_some() { Ok(text.to_owned()) } else { self.context().expand(text) }
    }

    /// Placeholders replaced; Docker's default is the short id.
    fn hostname(&self) -> Result<String, PrepareError> {
        match self.task.spec.container.hostname.as_str() {
            "" => Ok(self.paths.container_id[..SHORT_ID_LEN].to_owned()),
            wanted => Ok(self.expand(wanted)?),
        }
    }

    /// Placeholders replaced.
    fn environment(&self, hostname: &str) -> Result<Vec<String>, PrepareError> {
        let container = &self.task.spec.container;
        let own = container.env.iter().map(|entry| self.expand(entry));
        let mut own = own.collect::<Result<Vec<_>, _>>()?;
        own.extend(generic::environment(&self.task.generic));
        let image = self.image.config.env().as_deref().unwrap_or_default();
        Ok(environment(image, &own, hostname, container.tty))
    }

    fn write_etc(&self, hostname: &str) -> Result<(), PrepareError> {
        let host_resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let files = [
            ("hosts", hosts(self.task, &self.provisions.addresses6, hostname)),
            ("hostname", format!("{hostname}\n")),
            ("resolv.conf", resolv_conf(&self.task.spec.container.dns, &host_resolv_conf)),
        ];
        for (name, text) in files {
            let at = self.paths.etc(name);
            std::fs::write(&at, text).map_err(PrepareError::io(at))?;
        }
        Ok(())
    }

    fn spec(&self, record: &ContainerRecord) -> Result<oci_spec::runtime::Spec, PrepareError> {
        let container = &self.task.spec.container;
        let rootfs = self.paths.rootfs();
        let mut defaults = kernel_mounts();
        defaults.extend(etc_mounts(self.paths));
        let mut mounts =
            merged(defaults, user_mounts(self.volumes, self.paths, &self.planned_mounts()?, self.task.id)?);
        let sources = Sources {
            context: self.context(),
            environment: &record.env,
            dependencies: &self.provisions.dependencies,
        };
        mounts.extend(dependency_mounts(self.paths, &sources)?);
        let mut arguments = record.command.clone();
        if container.init == Some(true) {
            mounts.push(init_mount()?);
            arguments.splice(0..0, [INIT_TARGET.to_owned(), "--".to_owned()]);
        }
        runtime_spec(SpecInput {
            container,
            rootfs: &rootfs,
            arguments,
            environment: record.env.clone(),
            working_dir: record.working_dir.clone(),
            hostname: record.hostname.clone(),
            user: self.user(&record.user, &rootfs)?,
            mounts,
            resources: resources(&self.task.spec, self.cgroups.accounts_swap())?,
            cgroup: &record.cgroup,
            own_cgroup_namespace: self.cgroups == CgroupLayout::Unified,
        })
    }

    fn planned_mounts(&self) -> Result<Vec<PlannedMount>, PrepareError> {
        planned_mounts((self.volumes, self.paths), &self.image.config, self.task, &|text| self.expand(text))
    }

    fn working_dir(&self) -> String {
        let image_dir = self.image.config.working_dir().clone().unwrap_or_default();
        let dirs = [self.task.spec.container.dir.clone(), image_dir];
        let dir = dirs.into_iter().find(|dir| !dir.is_empty()).unwrap_or_default();
        if dir.starts_with('/') { dir } else { format!("/{dir}") }
    }

    fn user_name(&self) -> String {
        let wanted = self.task.spec.container.user.clone();
        if wanted.is_empty() { self.image.config.user().clone().unwrap_or_default() } else { wanted }
    }

    fn user(&self, name: &str, rootfs: &Path) -> Result<user::ProcessUser, PrepareError> {
        let read = |file: &str| read_inside(rootfs, file).map_err(PrepareError::io(rootfs.join(file)));
        let groups = &self.task.spec.container.groups;
        Ok(user::resolve(name, groups, &read("etc/passwd")?, &read("etc/group")?)?)
    }
}

fn write_json(at: PathBuf, value: &impl serde::Serialize) -> Result<(), PrepareError> {
    let bytes = serde_json::to_vec(value).expect("it has text keys only");
    write_atomically(&at, &bytes).map_err(PrepareError::io(at))
}

fn init_mount() -> Result<oci_spec::runtime::Mount, PrepareError> {
    let binary =
        INIT_BINARIES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or(PrepareError::NoInit)?;
    Ok(super::mounts::bound(&binary, PathBuf::from(INIT_TARGET), true))
}
