//! A service's spec as JSON. The model has all defaults filled in; what Docker leaves out without `insertDefaults`
//! is left out where the model knows that the user gave nothing.

use control_model::spec::{
    ContainerSpec, DEFAULT_STOP_GRACE_PERIOD, EndpointSpec, HealthConfig, Labels, Mount, MountKind,
    NetworkAttachmentSpec, Placement, PortConfig, ResourceRequirements, RestartPolicy, ServiceMode,
    ServiceSpec, TaskSpec, UpdateConfig,
};

use super::dependency::{config_references, secret_references};
use super::words::Words;
use super::{generic, nanoseconds};
use crate::dto::common::Rest;
use crate::dto::{service as api, task as api_task};

/// Whether to print what the user left to its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defaults {
    Insert,
    Omit,
}

/// The spec as the API shows it.
pub fn service_spec(spec: &ServiceSpec, defaults: Defaults) -> api::ServiceSpec {
    let given = |given: bool, config: &UpdateConfig| {
        (given || defaults == Defaults::Insert).then(|| update_config(config))
    };
    api::ServiceSpec {
        name: spec.name.clone(),
        labels: spec.labels.clone(),
        task_template: task_spec(&spec.task, defaults),
        mode: mode(spec.mode),
        update_config: given(spec.has_update, &spec.update),
        rollback_config: given(spec.has_rollback, &spec.rollback),
        networks: Vec::new(),
        endpoint_spec: Some(endpoint_spec(&spec.endpoint)),
        rest: Rest::new(),
    }
}

/// A task's spec as the API shows it.
pub fn task_spec(spec: &TaskSpec, defaults: Defaults) -> api_task::TaskSpec {
    api_task::TaskSpec {
        container_spec: Some(container_spec(&spec.container, defaults)),
        resources: Some(resource_requirements(&spec.resources)),
        restart_policy: restart_policy(&spec.restart, defaults),
        placement: Some(placement(&spec.placement)),
        networks: spec.networks.iter().map(attachment).collect(),
        log_driver: spec.log_driver.as_ref().map(|driver| api_task::LogDriver {
            name: driver.name.clone(),
            options: driver.options.clone(),
            rest: Rest::new(),
        }),
        force_update: spec.force_update,
        runtime: "container".into(),
        rest: Rest::new(),
    }
}

fn mode(mode: ServiceMode) -> api::ServiceMode {
    let mut shown = api::ServiceMode::default();
    match mode {
        ServiceMode::Replicated { replicas } => {
            shown.replicated = Some(api::ReplicatedService { replicas: Some(replicas) });
        }
        ServiceMode::Global => shown.global = Some(api::GlobalService {}),
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
            let (max_concurrent, total_completions) = (Some(max_concurrent), Some(total_completions));
            shown.replicated_job = Some(api::ReplicatedJob { max_concurrent, total_completions });
        }
        ServiceMode::GlobalJob => shown.global_job = Some(api::GlobalService {}),
    }
    shown
}

fn attachment(spec: &NetworkAttachmentSpec) -> api_task::NetworkAttachmentConfig {
    api_task::NetworkAttachmentConfig {
        target: spec.target.to_string(),
        aliases: spec.aliases.clone(),
        rest: Rest::new(),
    }
}

fn update_config(config: &UpdateConfig) -> api::UpdateConfig {
    api::UpdateConfig {
        parallelism: config.parallelism,
        delay: nanoseconds(config.delay),
        failure_action: config.failure_action.word().into(),
        monitor: nanoseconds(config.monitor),
        max_failure_ratio: config.max_failure_ratio,
        order: config.order.word().into(),
        rest: Rest::new(),
    }
}

/// How a service is to be reached.
pub fn endpoint_spec(spec: &EndpointSpec) -> api::EndpointSpec {
    api::EndpointSpec {
        mode: spec.mode.word().into(),
        ports: spec.ports.iter().map(port).collect(),
        rest: Rest::new(),
    }
}

/// A published port.
pub fn port(port: &PortConfig) -> api::PortConfig {
    api::PortConfig {
        name: port.name.clone(),
        protocol: port.protocol.word().into(),
        target_port: port.target.into(),
        published_port: port.published.into(),
        publish_mode: port.mode.word().into(),
        rest: Rest::new(),
    }
}

fn container_spec(spec: &ContainerSpec, defaults: Defaults) -> api_task::ContainerSpec {
    let default_grace = (defaults == Defaults::Insert).then_some(DEFAULT_STOP_GRACE_PERIOD);
    api_task::ContainerSpec {
        image: spec.image.clone(),
        labels: spec.labels.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        hostname: spec.hostname.clone(),
        env: spec.env.clone(),
        dir: spec.dir.clone(),
        user: spec.user.clone(),
        groups: spec.groups.clone(),
        init: spec.init,
        stop_signal: spec.stop_signal.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        mounts: spec.mounts.iter().map(mount).collect(),
        stop_grace_period: spec.stop_grace_period.or(default_grace).map(nanoseconds),
        hosts: spec.hosts.clone(),
        dns_config: Some(api_task::DnsConfig {
            nameservers: spec.dns.nameservers.iter().map(ToString::to_string).collect(),
            search: spec.dns.search.clone(),
            options: spec.dns.options.clone(),
        }),
        secrets: secret_references(&spec.dependencies),
        configs: config_references(&spec.dependencies),
        isolation: String::new(),
        sysctls: spec.sysctls.clone(),
        capability_add: spec.cap_add.clone(),
        capability_drop: spec.cap_drop.clone(),
        ulimits: (spec.ulimits.iter())
            .map(|u| api_task::Ulimit { name: u.name.clone(), hard: u.hard, soft: u.soft })
            .collect(),
        healthcheck: spec.health.as_ref().map(health_config),
        rest: Rest::new(),
    }
}

/// A health check, times in nanoseconds.
pub fn health_config(health: &HealthConfig) -> api_task::HealthConfig {
    api_task::HealthConfig {
        test: health.test.clone(),
        interval: nanoseconds(health.interval),
        timeout: nanoseconds(health.timeout),
        start_period: nanoseconds(health.start_period),
        start_interval: nanoseconds(health.start_interval),
        retries: health.retries.into(),
        rest: Rest::new(),
    }
}

fn mount(mount: &Mount) -> api_task::Mount {
    let size_bytes = i64::try_from(mount.tmpfs_size_bytes).unwrap_or(i64::MAX);
    let has_options = mount.kind == MountKind::Tmpfs && (size_bytes != 0 || mount.tmpfs_mode != 0);
    api_task::Mount {
        kind: mount.kind.word().into(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        read_only: mount.read_only,
        volume_options: volume_options(mount),
        tmpfs_options: has_options.then(|| api_task::TmpfsOptions {
            size_bytes,
            mode: mount.tmpfs_mode,
            rest: Rest::new(),
        }),
        rest: Rest::new(),
    }
}

fn volume_options(mount: &Mount) -> Option<api_task::VolumeOptions> {
    let some = |map: &Labels| (!map.is_empty()).then(|| map.clone());
    let driver_config = some(&mount.volume_options).map(|options| api_task::VolumeDriver {
        name: "local".into(),
        options: Some(options),
        rest: Rest::new(),
    });
    let labels = some(&mount.volume_labels);
    let is_given = labels.is_some() || driver_config.is_some() || mount.no_copy;
    is_given.then(|| api_task::VolumeOptions {
        labels,
        no_copy: mount.no_copy,
        driver_config,
        rest: Rest::new(),
    })
}

fn resource_requirements(requirements: &ResourceRequirements) -> api_task::ResourceRequirements {
    let (limits, reservations) = (requirements.limits, requirements.reservations);
    api_task::ResourceRequirements {
        limits: Some(api_task::Resources {
            nano_cpus: limits.nano_cpus,
            memory_bytes: limits.memory_bytes,
            pids: requirements.pids_limit,
            ..api_task::Resources::default()
        }),
        reservations: Some(api_task::Resources {
            nano_cpus: reservations.nano_cpus,
            memory_bytes: reservations.memory_bytes,
            generic_resources: generic::shown_requests(&requirements.generic),
            ..api_task::Resources::default()
        }),
        rest: Rest::new(),
    }
}

/// A policy that is the default may be the user's or not: it is left out where defaults are.
fn restart_policy(policy: &RestartPolicy, defaults: Defaults) -> Option<api_task::RestartPolicy> {
    if defaults == Defaults::Omit && *policy == RestartPolicy::default() {
        return None;
    }
    Some(api_task::RestartPolicy {
        condition: policy.condition.word().into(),
        delay: Some(nanoseconds(policy.delay)),
        max_attempts: Some(policy.max_attempts),
        window: (!policy.window.is_zero()).then(|| nanoseconds(policy.window)),
        rest: Rest::new(),
    })
}

fn placement(placement: &Placement) -> api_task::Placement {
    let spread = |descriptor: &String| api_task::PlacementPreference {
        spread: Some(api_task::SpreadOver { spread_descriptor: descriptor.clone() }),
    };
    api_task::Placement {
        constraints: placement.constraints.clone(),
        preferences: placement.spread_preferences.iter().map(spread).collect(),
        max_replicas: placement.max_replicas_per_node,
        platforms: (placement.platforms.iter())
            .map(|p| api_task::Platform { architecture: p.architecture.clone(), os: p.os.clone() })
            .collect(),
        rest: Rest::new(),
    }
}
