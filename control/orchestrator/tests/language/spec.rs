//! `key=value` words that change a service's spec.

use control_model::spec::{
    EndpointMode, FailureAction, Labels, Mount, MountKind, NetworkAttachmentSpec, Platform, PortConfig,
    Protocol, PublishMode, RestartCondition, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder,
};
use control_store::State;

use super::{duration, number};

pub fn edit(state: &State, spec: &mut ServiceSpec, words: &[&str]) {
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "replicas" => spec.mode = ServiceMode::Replicated { replicas: number(value) },
            "global" => spec.mode = ServiceMode::Global,
            "job" => spec.mode = job(value),
            "global-job" => spec.mode = ServiceMode::GlobalJob,
            "image" => spec.task.container.image = value.into(),
            "label" => drop(spec.labels.insert(value.into(), String::new())),
            "slow" => drop(spec.labels.insert(ServiceSpec::SLOW_START_LABEL.into(), value.into())),
            "rebalance" => drop(spec.labels.insert(ServiceSpec::REBALANCE_LABEL.into(), value.into())),
            "not-slow" => drop(spec.labels.remove(ServiceSpec::SLOW_START_LABEL)),
            "force" => spec.task.force_update += 1,
            "net" => {
                let target = state.network_by_name(value).expect("a network").id;
                spec.task.networks.push(NetworkAttachmentSpec { target, aliases: Vec::new() });
            }
            "publish" | "publish-host" => spec.endpoint.ports.push(port(value, key)),
            "mode" => spec.endpoint.mode = mode(value),
            _ if edit_task(spec, key, value) => {}
            _ => match key.strip_prefix("rollback-") {
                Some(key) => edit_config(&mut spec.rollback, key, value),
                None => edit_config(&mut spec.update, key, value),
            },
        }
    }
}

fn edit_task(spec: &mut ServiceSpec, key: &str, value: &str) -> bool {
    let task = &mut spec.task;
    match key {
        "constraint" => task.placement.constraints.push(value.into()),
        "pref" => task.placement.spread_preferences.push(value.into()),
        "max-per-node" => task.placement.max_replicas_per_node = number(value),
        "platform" => {
            let (os, architecture) = value.split_once('/').expect("os/architecture");
            task.placement.platforms.push(Platform { os: os.into(), architecture: architecture.into() });
        }
        "unconstrained" => task.placement.constraints.clear(),
        "env" => task.container.env.push(value.into()),
        "mount" => task.container.mounts.push(mount(value)),
        "limit-cpu" => task.resources.limits.nano_cpus = number::<i64>(value) * 1_000_000_000,
        "reserve-cpu" => task.resources.reservations.nano_cpus = number::<i64>(value) * 1_000_000_000,
        "reserve-mem" => task.resources.reservations.memory_bytes = number::<i64>(value) << 30,
        "restart" => {
            task.restart.condition = match value {
                "none" => RestartCondition::None,
                "on-failure" => RestartCondition::OnFailure,
                _ => RestartCondition::Any,
            }
        }
        "restart-delay" => task.restart.delay = duration(value),
        "attempts" => task.restart.max_attempts = number(value),
        "window" => task.restart.window = duration(value),
        _ => return false,
    }
    true
}

fn mount(target: &str) -> Mount {
    Mount {
        kind: MountKind::Volume,
        source: String::new(),
        target: target.into(),
        read_only: false,
        tmpfs_size_bytes: 0,
        tmpfs_mode: 0,
        volume_labels: Labels::new(),
        volume_options: std::collections::BTreeMap::new(),
        no_copy: false,
    }
}

fn edit_config(config: &mut UpdateConfig, key: &str, value: &str) {
    match key {
        "parallelism" => config.parallelism = number(value),
        "delay" => config.delay = duration(value),
        "monitor" => config.monitor = duration(value),
        "ratio" => config.max_failure_ratio = number(value),
        "order" if value == "start-first" => config.order = UpdateOrder::StartFirst,
        "failure" => {
            config.failure_action = match value {
                "rollback" => FailureAction::Rollback,
                "continue" => FailureAction::Continue,
                _ => FailureAction::Pause,
            }
        }
        _ => panic!("unknown word {key}={value}"),
    }
}

/// `TOTAL`, or `TOTAL/CONCURRENT`.
fn job(value: &str) -> ServiceMode {
    let (total, concurrent) = value.split_once('/').unwrap_or((value, value));
    ServiceMode::ReplicatedJob { max_concurrent: number(concurrent), total_completions: number(total) }
}

/// `PUBLISHED:TARGET`, or `TARGET` alone.
fn port(value: &str, key: &str) -> PortConfig {
    let (published, target) = value.split_once(':').unwrap_or(("0", value));
    PortConfig::new(
        Protocol::Tcp,
        number(target),
        number(published),
        if key == "publish-host" { PublishMode::Host } else { PublishMode::Ingress },
    )
}

fn mode(value: &str) -> EndpointMode {
    if value == "dnsrr" { EndpointMode::Dnsrr } else { EndpointMode::Vip }
}
