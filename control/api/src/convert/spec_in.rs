//! A service's spec from JSON. Defaults are Docker's; refusals in the words of moby `daemon/cluster/convert`.

use std::net::IpAddr;
use std::time::Duration;

use control_model::NetworkId;
use control_model::log_driver::LogDriver;
use control_model::spec::{
    ContainerSpec, DnsConfig, EndpointMode, EndpointSpec, FailureAction, HealthConfig, Mount, MountKind,
    NetworkAttachmentSpec, Placement, Platform, PortConfig, Protocol, PublishMode, ResourceRequirements,
    Resources, RestartCondition, RestartPolicy, ServiceMode, ServiceSpec, TaskSpec, Ulimit, UpdateConfig,
    UpdateOrder,
};

use super::dependency::dependency_files;
use super::words::Words;
use super::{generic, refuse_unknown, span};
use crate::dto::{service as api, task as api_task};
use crate::error::ApiError;

/// Docker's least time of a health check, unless it is 0.
const SHORTEST_HEALTH_TIME: Duration = Duration::from_millis(1);

/// Finds the network that a target (id or name) names.
pub type FindNetwork<'a> = &'a dyn Fn(&str) -> Result<NetworkId, ApiError>;

/// The spec that `given` asks for.
pub fn service_spec(given: api::ServiceSpec, network: FindNetwork) -> Result<ServiceSpec, ApiError> {
    refuse_unknown(&given.rest, "Spec")?;
    let mut task = given.task_template;
    if task.networks.is_empty() {
        task.networks = given.networks;
    }
    Ok(ServiceSpec {
        name: given.name,
        labels: given.labels,
        task: task_spec(task, network)?.into(),
        mode: mode(given.mode)?,
        has_update: given.update_config.is_some(),
        has_rollback: given.rollback_config.is_some(),
        update: given.update_config.as_ref().map_or_else(|| Ok(UpdateConfig::default()), update_config)?,
        rollback: given
            .rollback_config
            .as_ref()
            .map_or_else(|| Ok(UpdateConfig::default()), update_config)?,
        endpoint: given.endpoint_spec.map_or_else(|| Ok(EndpointSpec::default()), endpoint_spec)?,
    })
}

fn mode(given: api::ServiceMode) -> Result<ServiceMode, ApiError> {
    // `{}` is how Go writes a mode without numbers: a key alone already asks for it.
    if let Some(other) = given.rest.keys().next() {
        return Err(ApiError::unsupported(format!("Spec.Mode.{other}")));
    }
    let global = given.global.map(|_| ServiceMode::Global);
    let global_job = given.global_job.map(|_| ServiceMode::GlobalJob);
    let job = given.replicated_job.map(|job| {
        let max_concurrent = job.max_concurrent.unwrap_or(1);
        let total_completions = job.total_completions.unwrap_or(max_concurrent);
        ServiceMode::ReplicatedJob { max_concurrent, total_completions }
    });
    let replicated = given.replicated.map(|r| ServiceMode::Replicated { replicas: r.replicas.unwrap_or(1) });
    let mut asked = [global, global_job, job, replicated].into_iter().flatten();
    match (asked.next(), asked.next()) {
        (_, Some(_)) => Err(ApiError::invalid("must specify only one service mode")),
        (asked, None) => Ok(asked.unwrap_or_default()),
    }
}

fn update_config(given: &api::UpdateConfig) -> Result<UpdateConfig, ApiError> {
    refuse_unknown(&given.rest, "Spec.UpdateConfig")?;
    let default = UpdateConfig::default();
    let failure_action = match given.failure_action.as_str() {
        "" => default.failure_action,
        text => FailureAction::of_word(text)
            .ok_or_else(|| ApiError::invalid(format!("unrecognized update failure action {text}")))?,
    };
    let order = match given.order.as_str() {
        "" => default.order,
        text => UpdateOrder::of_word(text)
            .ok_or_else(|| ApiError::invalid(format!("unrecognized update order {text}")))?,
    };
    let monitor = match given.monitor {
        0 => default.monitor,
        nanoseconds => span(nanoseconds, "update-monitor")?,
    };
    Ok(UpdateConfig {
        parallelism: given.parallelism,
        delay: span(given.delay, "update-delay")?,
        failure_action,
        monitor,
        max_failure_ratio: given.max_failure_ratio,
        order,
    })
}

fn endpoint_spec(given: api::EndpointSpec) -> Result<EndpointSpec, ApiError> {
    refuse_unknown(&given.rest, "Spec.EndpointSpec")?;
    let mode = match given.mode.as_str() {
        "" => EndpointMode::Vip,
        text => EndpointMode::of_word(text)
            .ok_or_else(|| ApiError::invalid(format!("invalid resolution mode: {text:?}")))?,
    };
    let ports = given.ports.into_iter().map(port).collect::<Result<_, _>>()?;
    Ok(EndpointSpec { mode, ports })
}

fn port(given: api::PortConfig) -> Result<PortConfig, ApiError> {
    refuse_unknown(&given.rest, "Spec.EndpointSpec.Ports")?;
    let number = |number: u32| {
        u16::try_from(number).map_err(|_| ApiError::invalid(format!("invalid port {number}: at most 65535")))
    };
    let protocol = match given.protocol.as_str() {
        "" => Protocol::Tcp,
        text => Protocol::of_word(text)
            .ok_or_else(|| ApiError::invalid(format!("invalid protocol {text:?}: tcp, udp or sctp")))?,
    };
    let mode = match given.publish_mode.as_str() {
        "" => PublishMode::Ingress,
        text => PublishMode::of_word(text)
            .ok_or_else(|| ApiError::invalid(format!("invalid publish mode {text:?}: ingress or host")))?,
    };
    let (target, published) = (number(given.target_port)?, number(given.published_port)?);
    if mode == PublishMode::Host && published == 0 {
        return Err(ApiError::unsupported("a port of mode host without a number (published=…)"));
    }
    Ok(PortConfig { name: given.name, protocol, target, published, mode })
}

fn task_spec(given: api_task::TaskSpec, network: FindNetwork) -> Result<TaskSpec, ApiError> {
    const PLACE: &str = "Spec.TaskTemplate";
    refuse_unknown(&given.rest, PLACE)?;
    match given.runtime.as_str() {
        "" | "container" => {}
        "plugin" | "attachment" => {
            return Err(ApiError::unsupported(format!("{PLACE}.Runtime {}", given.runtime)));
        }
        _ => return Err(ApiError::invalid("unsupported runtime")),
    }
    let container =
        given.container_spec.ok_or_else(|| ApiError::invalid("mismatched Runtime and *Spec fields"))?;
    Ok(TaskSpec {
        container: container_spec(container)?,
        resources: resource_requirements(given.resources.unwrap_or_default())?,
        restart: restart_policy(&given.restart_policy.unwrap_or_default())?,
        placement: placement(given.placement.unwrap_or_default())?,
        networks: given.networks.into_iter().map(|n| attachment(n, network)).collect::<Result<_, _>>()?,
        force_update: given.force_update,
        log_driver: given.log_driver.map(log_driver).transpose()?.flatten(),
    })
}

/// Without a name it is the node's, with these options.
fn log_driver(given: api_task::LogDriver) -> Result<Option<LogDriver>, ApiError> {
    refuse_unknown(&given.rest, "Spec.TaskTemplate.LogDriver")?;
    let is_given = !given.name.is_empty() || !given.options.is_empty();
    Ok(is_given.then_some(LogDriver { name: given.name, options: given.options }))
}

fn attachment(
    given: api_task::NetworkAttachmentConfig,
    network: FindNetwork,
) -> Result<NetworkAttachmentSpec, ApiError> {
    refuse_unknown(&given.rest, "Spec.TaskTemplate.Networks")?;
    Ok(NetworkAttachmentSpec { target: network(&given.target)?, aliases: given.aliases })
}

fn container_spec(given: api_task::ContainerSpec) -> Result<ContainerSpec, ApiError> {
    const PLACE: &str = "Spec.TaskTemplate.ContainerSpec";
    refuse_unknown(&given.rest, PLACE)?;
    if !matches!(given.isolation.as_str(), "" | "default") {
        return Err(ApiError::unsupported(format!("{PLACE}.Isolation {}", given.isolation)));
    }
    let grace = given.stop_grace_period.map(|nanoseconds| span(nanoseconds, "stop-grace-period"));
    Ok(ContainerSpec {
        image: given.image,
        labels: given.labels,
        command: given.command,
        args: given.args,
        hostname: given.hostname,
        env: given.env,
        dir: given.dir,
        user: given.user,
        groups: given.groups,
        tty: given.tty,
        open_stdin: given.open_stdin,
        read_only: given.read_only,
        init: given.init,
        mounts: given
            .mounts
            .into_iter()
            .map(|given| mount(given, &format!("{PLACE}.Mounts")))
            .collect::<Result<_, _>>()?,
        stop_signal: given.stop_signal,
        stop_grace_period: grace.transpose()?,
        hosts: given.hosts,
        dns: dns_config(given.dns_config.unwrap_or_default())?,
        sysctls: given.sysctls,
        cap_add: given.capability_add,
        cap_drop: given.capability_drop,
        ulimits: given.ulimits.into_iter().map(ulimit).collect(),
        health: given
            .healthcheck
            .map(|health| health_config(health, &format!("{PLACE}.Healthcheck")))
            .transpose()?,
        dependencies: dependency_files(given.secrets, given.configs)?,
        registry: None,
    })
}

pub(super) fn ulimit(given: api_task::Ulimit) -> Ulimit {
    Ulimit { name: given.name, soft: given.soft, hard: given.hard }
}

/// Bounds and words of moby `daemon/container.go`.
pub(super) fn health_config(given: api_task::HealthConfig, place: &str) -> Result<HealthConfig, ApiError> {
    refuse_unknown(&given.rest, place)?;
    let time = |nanoseconds: i64, name: &str| match u64::try_from(nanoseconds).map(Duration::from_nanos) {
        Ok(time) if time.is_zero() || time >= SHORTEST_HEALTH_TIME => Ok(time),
        _ => Err(ApiError::invalid(format!("{name} in Healthcheck cannot be less than 1ms"))),
    };
    Ok(HealthConfig {
        interval: time(given.interval, "Interval")?,
        timeout: time(given.timeout, "Timeout")?,
        start_period: time(given.start_period, "StartPeriod")?,
        start_interval: time(given.start_interval, "StartInterval")?,
        retries: u32::try_from(given.retries)
            .map_err(|_| ApiError::invalid("Retries in Healthcheck cannot be negative"))?,
        test: given.test,
    })
}

pub(super) fn dns_config(given: api_task::DnsConfig) -> Result<DnsConfig, ApiError> {
    let address = |text: &String| {
        text.parse::<IpAddr>().map_err(|_| ApiError::invalid(format!("invalid DNS server address: {text}")))
    };
    let nameservers = given.nameservers.iter().map(address).collect::<Result<_, _>>()?;
    Ok(DnsConfig { nameservers, search: given.search, options: given.options })
}

pub(super) fn mount(given: api_task::Mount, place: &str) -> Result<Mount, ApiError> {
    let mut rest = given.rest;
    // What a private, recursive bind mount does anyway.
    if let Some(bind) = rest.get_mut("BindOptions").and_then(|options| options.as_object_mut())
        && bind.get("Propagation").is_some_and(|p| p == "rprivate")
    {
        bind.remove("Propagation");
    }
    refuse_unknown(&rest, place)?;
    let kind = match given.kind.as_str() {
        "" => return Err(ApiError::invalid("invalid MountType: \"\"")),
        "npipe" | "cluster" | "image" => {
            return Err(ApiError::unsupported(format!("{place} of type {}", given.kind)));
        }
        text => MountKind::of_word(text)
            .ok_or_else(|| ApiError::invalid(format!("invalid MountType: {text:?}")))?,
    };
    if kind != MountKind::Volume && given.volume_options.is_some() {
        let kind = given.kind;
        let text =
            format!("invalid mount config for type {kind:?}: field VolumeOptions must not be specified");
        return Err(ApiError::invalid(text));
    }
    let volume = given.volume_options.unwrap_or_default();
    refuse_unknown(&volume.rest, &format!("{place}.VolumeOptions"))?;
    let driver = volume.driver_config.unwrap_or_default();
    refuse_unknown(&driver.rest, &format!("{place}.VolumeOptions.DriverConfig"))?;
    if !["", "local"].contains(&driver.name.as_str()) {
        return Err(ApiError::unsupported(format!("volume driver {}", driver.name)));
    }
    let tmpfs = given.tmpfs_options.unwrap_or_default();
    refuse_unknown(&tmpfs.rest, &format!("{place}.TmpfsOptions"))?;
    let tmpfs_size_bytes =
        u64::try_from(tmpfs.size_bytes).map_err(|_| ApiError::invalid("tmpfs size must not be negative"))?;
    Ok(Mount {
        kind,
        source: given.source,
        target: given.target,
        read_only: given.read_only,
        tmpfs_size_bytes,
        tmpfs_mode: tmpfs.mode,
        volume_labels: volume.labels.unwrap_or_default(),
        volume_options: driver.options.unwrap_or_default(),
        no_copy: volume.no_copy,
    })
}

fn resource_requirements(given: api_task::ResourceRequirements) -> Result<ResourceRequirements, ApiError> {
    const PLACE: &str = "Spec.TaskTemplate.Resources";
    refuse_unknown(&given.rest, PLACE)?;
    let (limits, reservations) = (given.limits.unwrap_or_default(), given.reservations.unwrap_or_default());
    refuse_unknown(&limits.rest, &format!("{PLACE}.Limits"))?;
    refuse_unknown(&reservations.rest, &format!("{PLACE}.Reservations"))?;
    if !limits.generic_resources.is_empty() {
        return Err(ApiError::unsupported(format!("{PLACE}.Limits.GenericResources")));
    }
    if reservations.pids != 0 {
        return Err(ApiError::unsupported(format!("{PLACE}.Reservations.Pids")));
    }
    let amounts =
        |r: &api_task::Resources| Resources { nano_cpus: r.nano_cpus, memory_bytes: r.memory_bytes };
    Ok(ResourceRequirements {
        limits: amounts(&limits),
        reservations: amounts(&reservations),
        generic: generic::requests(reservations.generic_resources)?,
        // Docker takes -1 for "no limit" too.
        pids_limit: limits.pids.max(0),
    })
}

fn restart_policy(given: &api_task::RestartPolicy) -> Result<RestartPolicy, ApiError> {
    refuse_unknown(&given.rest, "Spec.TaskTemplate.RestartPolicy")?;
    let default = RestartPolicy::default();
    let condition = match given.condition.as_str() {
        "" => default.condition,
        text => RestartCondition::of_word(text)
            .ok_or_else(|| ApiError::invalid(format!("invalid RestartCondition: {text:?}")))?,
    };
    let delay = given.delay.map(|nanoseconds| span(nanoseconds, "restart-delay")).transpose()?;
    let window = given.window.map(|nanoseconds| span(nanoseconds, "restart-window")).transpose()?;
    Ok(RestartPolicy {
        condition,
        delay: delay.unwrap_or(default.delay),
        max_attempts: given.max_attempts.unwrap_or(default.max_attempts),
        window: window.unwrap_or(default.window),
    })
}

fn placement(given: api_task::Placement) -> Result<Placement, ApiError> {
    refuse_unknown(&given.rest, "Spec.TaskTemplate.Placement")?;
    let spread = given.preferences.into_iter().filter_map(|preference| preference.spread);
    let platforms = given.platforms.into_iter().map(|p| Platform { os: p.os, architecture: p.architecture });
    Ok(Placement {
        constraints: given.constraints,
        spread_preferences: spread.map(|spread| spread.spread_descriptor).collect(),
        max_replicas_per_node: given.max_replicas,
        platforms: platforms.collect(),
    })
}
