//! `docker ps`, `docker inspect`: the containers of this node, those of its tasks and others.

mod filter;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Path, State};
use control_manager::clock;
use control_model::object::HealthStatus;
use control_model::spec::{MountKind, PortConfig};
use control_model::{TaskId, Timestamp};
use dataplane_model::Mac;
use http::StatusCode;
use serde_json::{Value, to_value};

use super::own;

use self::filter::ContainerFilter;
use crate::context::Api;
use crate::convert::network::gateway6;
use crate::convert::words::Words;
use crate::dto::common::rfc3339;
use crate::dto::container as api_container;
use crate::dto::image::GraphDriver;
use crate::engine::{Container, Health, HealthProbe, ImageConfig, MountPoint};
use crate::error::ApiError;
use crate::query::Query;
use crate::reply::{Reply, ok};

const NANOS: i64 = 1_000_000_000;
/// Published ports answer on all IPv4 addresses of the node.
const ANY_ADDRESS: &str = "0.0.0.0";

pub async fn list(State(api): State<Api>, query: Query) -> Reply {
    refuse_sizes(&query)?;
    let limit = query.limit()?;
    let mut containers = api.local_engine()?.containers().await?;
    let filter = ContainerFilter::of(&api, &query, &containers).await?;
    // A number asked for, or one that has ended, shows ended containers too, as in Docker.
    let all = query.flag("all") || limit.is_some() || filter.wants_ended();
    containers.retain(|container| (all || container.is_up()) && filter.lets(&api, container));
    containers.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    containers.truncate(limit.unwrap_or(usize::MAX));
    let now = clock::now();
    ok(&containers.into_iter().map(|container| summary(&api, container, now)).collect::<Vec<_>>())
}

/// `docker ps --size`, `docker inspect --size`.
fn refuse_sizes(query: &Query) -> Result<(), ApiError> {
    if query.flag("size") { Err(ApiError::unsupported("the size of containers")) } else { Ok(()) }
}

fn state_word(container: &Container) -> &'static str {
    match (container.running, container.started) {
        _ if container.own.as_ref().is_some_and(|own| own.is_restarting) => "restarting",
        _ if container.own.as_ref().is_some_and(|own| own.is_removing) => "removing",
        (true, _) => "running",
        (false, Some(_)) => "exited",
        (false, None) => "created",
    }
}

pub fn summary(api: &Api, container: Container, now: Timestamp) -> api_container::Summary {
    api_container::Summary {
        names: vec![format!("/{}", container.name)],
        command: command_line(&container.command),
        created: container.created.0 / NANOS,
        ports: ports(&container),
        state: state_word(&container),
        status: status(&container, now),
        host_config: api_container::HostConfig { network_mode: network_mode(&container), log_config: None },
        network_settings: networks(api, &container),
        mounts: container.mounts.into_iter().map(mount_point).collect(),
        id: container.id,
        image: container.image,
        image_id: container.image_id,
        labels: container.labels,
    }
}

/// The program, and its arguments with quotes around those with spaces (moby `container/view.go`).
fn command_line(command: &[String]) -> String {
    let quoted = |(at, word): (usize, &String)| {
        if at > 0 && word.contains(' ') { format!("'{word}'") } else { word.clone() }
    };
    command.iter().enumerate().map(quoted).collect::<Vec<_>>().join(" ")
}

/// `80/tcp`.
fn port_key(port: &PortConfig) -> String {
    format!("{}/{}", port.target, port.protocol.word())
}

/// Ports of a container that runs: published ones, then those that are only exposed.
fn ports(container: &Container) -> Vec<api_container::Port> {
    if !container.running {
        return Vec::new();
    }
    let published = container.host_ports.iter().map(|port| api_container::Port {
        ip: Some(ANY_ADDRESS),
        private: port.target,
        public: Some(port.published),
        protocol: port.protocol.word().to_owned(),
    });
    let is_published = |key: &&String| container.host_ports.iter().any(|port| port_key(port) == **key);
    let exposed = container.exposed_ports.iter().filter(|key| !is_published(key)).filter_map(|key| {
        let (number, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
        let private = number.parse().ok()?;
        Some(api_container::Port { ip: None, private, public: None, protocol: protocol.to_owned() })
    });
    published.chain(exposed).collect()
}

/// The same by port.
fn port_bindings(container: &Container) -> BTreeMap<String, Option<Vec<api_container::PortBinding>>> {
    let mut bindings = BTreeMap::new();
    for port in ports(container) {
        let key = format!("{}/{}", port.private, port.protocol);
        let bound: &mut Option<Vec<_>> = bindings.entry(key).or_default();
        if let (Some(host_ip), Some(public)) = (port.ip, port.public) {
            let binding = api_container::PortBinding { host_ip, host_port: public.to_string() };
            bound.get_or_insert_default().push(binding);
        }
    }
    bindings
}

/// Moby `daemon/container/state.go`.
fn status(container: &Container, now: Timestamp) -> String {
    match (container.running, container.started, container.finished) {
        (_, _, Some(finished)) if container.own.as_ref().is_some_and(|own| own.is_restarting) => {
            format!("Restarting ({}) {} ago", container.exit_code, human(now.since(finished)))
        }
        _ if container.own.as_ref().is_some_and(|own| own.is_removing) => "Removal In Progress".into(),
        (true, Some(started), _) => {
            let health = match container.health.as_ref().map(|health| health.status) {
                None => "",
                Some(HealthStatus::Starting) => " (health: starting)",
                Some(HealthStatus::Healthy) => " (healthy)",
                Some(HealthStatus::Unhealthy) => " (unhealthy)",
            };
            format!("Up {}{health}", human(now.since(started)))
        }
        (false, Some(_), Some(finished)) => {
            format!("Exited ({}) {} ago", container.exit_code, human(now.since(finished)))
        }
        (false, Some(_), None) => format!("Exited ({})", container.exit_code),
        _ => "Created".into(),
    }
}

/// A span as Docker says it (`go-units` `HumanDuration`).
fn human(span: Duration) -> String {
    const HOUR: u64 = 3600;
    let seconds = span.as_secs();
    let hours = (seconds + HOUR / 2) / HOUR;
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..HOUR => format!("{} minutes", seconds / 60),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 730 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / HOUR / 24 / 365),
    }
}

fn network_mode(container: &Container) -> String {
    container.own.as_ref().map_or("default", |own| own::network_mode(own)).to_owned()
}

/// Where it is; a task, as far as this node knows: a manager knows all.
fn networks(api: &Api, container: &Container) -> api_container::NetworkSettings {
    match &container.own {
        Some(own) => own::networks(api, container, own),
        None => networks_of_task(api, container.task),
    }
}

fn networks_of_task(api: &Api, task: TaskId) -> api_container::NetworkSettings {
    let state = api.node.store().map(|store| store.state());
    let found = state.as_ref().and_then(|state| state.tasks().get(&task));
    let (Some(state), Some(task)) = (&state, found) else { return api_container::NetworkSettings::default() };
    let endpoints = task.attachments.iter().filter_map(|attachment| {
        let network = state.networks().get(&attachment.network)?;
        let config = network.state.as_ref().and_then(|state| state.ipam.first());
        let mac = match attachment.address.ip() {
            IpAddr::V4(ip) => Mac::of_endpoint(ip).to_string(),
            IpAddr::V6(_) => String::new(),
        };
        let ipv6 = network.address6(attachment);
        let endpoint = api_container::NetworkEndpoint {
            network_id: network.id.to_string(),
            endpoint_id: task.id.to_string(),
            gateway: config.and_then(|c| c.gateway).map(|gateway| gateway.to_string()).unwrap_or_default(),
            ip_address: attachment.address.ip().to_string(),
            ip_prefix_len: attachment.address.prefix(),
            ipv6_gateway: gateway6(network).map(|gateway| gateway.to_string()).unwrap_or_default(),
            global_ipv6_address: ipv6.map(|address| address.ip().to_string()).unwrap_or_default(),
            global_ipv6_prefix_len: ipv6.map(|address| address.prefix()).unwrap_or_default(),
            mac_address: mac,
            aliases: (!attachment.aliases.is_empty()).then(|| attachment.aliases.clone()),
        };
        Some((network.spec.name.clone(), endpoint))
    });
    let networks = endpoints.collect::<BTreeMap<_, _>>();
    api_container::NetworkSettings { networks, ..api_container::NetworkSettings::default() }
}

pub async fn inspect(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    refuse_sizes(&query)?;
    let containers = api.local_engine()?.containers().await?;
    let container = find(&containers, &term)?;
    // What an image says that has gone is not known any more.
    let image = api.local_engine()?.image(&container.image_id).await.unwrap_or_default();
    ok(&inspected(&api, container.clone(), &image.config)?)
}

/// Whole id or name, else a unique beginning of an id.
pub fn find<'a>(containers: &'a [Container], term: &str) -> Result<&'a Container, ApiError> {
    let name = term.trim_start_matches('/');
    if let Some(exact) = containers.iter().find(|c| c.id == term || c.name == name) {
        return Ok(exact);
    }
    let matches: Vec<_> = containers.iter().filter(|c| !term.is_empty() && c.id.starts_with(term)).collect();
    match matches.as_slice() {
        [found] => Ok(found),
        [] => Err(ApiError::not_found(format!("No such container: {term}"))),
        _ => Err(ApiError::invalid(format!("multiple IDs found with provided prefix: {term}"))),
    }
}

fn inspected(
    api: &Api,
    container: Container,
    image: &ImageConfig,
) -> Result<api_container::Inspect, ApiError> {
    let (host_config, config) = match &container.own {
        Some(own) => (own::host_config(&container, own), own::config(&container, own, image)),
        None => configs_of_task(&container)?,
    };
    let mut command = container.command.iter().cloned();
    let network_settings = api_container::NetworkSettings {
        ports: Some(port_bindings(&container)),
        ..networks(api, &container)
    };
    let own = container.own.as_ref();
    Ok(api_container::Inspect {
        created: rfc3339(Some(container.created)),
        path: command.next().unwrap_or_default(),
        args: command.collect(),
        state: api_container::State {
            status: state_word(&container),
            running: container.is_up(),
            paused: false,
            restarting: own.is_some_and(|own| own.is_restarting),
            oom_killed: container.out_of_memory,
            dead: false,
            pid: if container.running { container.pid } else { 0 },
            exit_code: container.exit_code,
            error: String::new(),
            started_at: rfc3339(container.started),
            finished_at: rfc3339(container.finished),
            health: container.health.map(health),
        },
        name: format!("/{}", container.name),
        restart_count: own.map_or(0, |own| own.n_restarts),
        driver: "overlayfs".into(),
        platform: "linux".into(),
        graph_driver: GraphDriver { data: None, name: "overlayfs".into() },
        host_config,
        mounts: container.mounts.into_iter().map(mount_point).collect(),
        config,
        network_settings,
        image: container.image_id,
        id: container.id,
    })
}

fn configs_of_task(container: &Container) -> Result<(Value, Value), ApiError> {
    let host_config = api_container::HostConfig {
        network_mode: network_mode(container),
        log_config: Some(api_container::LogConfig {
            driver: container.log.name.clone(),
            config: container.log.options.clone(),
        }),
    };
    let config = api_container::Config {
        hostname: container.hostname.clone(),
        user: container.user.clone(),
        tty: container.tty,
        env: container.env.clone(),
        cmd: container.command.clone(),
        image: container.image.clone(),
        working_dir: container.working_dir.clone(),
        labels: container.labels.clone(),
    };
    let failed =
        |error: serde_json::Error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    Ok((to_value(host_config).map_err(failed)?, to_value(config).map_err(failed)?))
}

/// Moby `daemon/container/container_unix.go`: the mode is what `-v` would have had behind the second colon.
fn mount_point(mount: MountPoint) -> api_container::MountPoint {
    let is_volume = mount.kind == MountKind::Volume;
    api_container::MountPoint {
        kind: mount.kind.word(),
        name: mount.name,
        source: mount.source,
        destination: mount.target,
        driver: if is_volume { "local" } else { "" },
        mode: if is_volume { "z" } else { "" },
        rw: !mount.read_only,
        propagation: if mount.kind == MountKind::Bind { "rprivate" } else { "" },
    }
}

fn health(health: Health) -> api_container::Health {
    let probe = |probe: HealthProbe| api_container::HealthProbe {
        start: rfc3339(Some(probe.start)),
        end: rfc3339(Some(probe.end)),
        exit_code: probe.exit_code,
        output: probe.output,
    };
    api_container::Health {
        status: health.status.word(),
        failing_streak: health.failing_streak,
        log: health.log.into_iter().map(probe).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_as_docker_says_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (48 * 3600, "2 days"),
            (15 * 24 * 3600, "2 weeks"),
            (70 * 24 * 3600, "2 months"),
            (800 * 24 * 3600, "2 years"),
        ] {
            assert_eq!(human(Duration::from_secs(seconds)), text);
        }
    }
}
