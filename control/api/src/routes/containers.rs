//! `docker ps`, `docker inspect`: the containers of this node's tasks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{Path, State};
use control_manager::control::labels_match;
use control_model::{TaskId, Timestamp};
use dataplane_model::Mac;

use crate::context::Api;
use crate::dto::common::rfc3339;
use crate::dto::container as api_container;
use crate::dto::image::GraphDriver;
use crate::engine::Container;
use crate::error::ApiError;
use crate::query::{Filters, Query};
use crate::reply::{Reply, ok};

const NANOS: i64 = 1_000_000_000;

pub async fn list(State(api): State<Api>, query: Query) -> Reply {
    let filters = query.filters(&["id", "name", "label", "status"])?;
    // A status asked for shows ended containers too, as in Docker.
    let all = query.flag("all") || !filters.get("status").is_empty();
    let mut containers = api.node.engine().containers().await?;
    containers.retain(|container| (all || container.running) && matches(&filters, container));
    containers.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    let now = now();
    ok(&containers.into_iter().map(|container| summary(&api, container, now)).collect::<Vec<_>>())
}

fn matches(filters: &Filters, container: &Container) -> bool {
    let any = |key: &str, test: &dyn Fn(&str) -> bool| {
        filters.get(key).is_empty() || filters.get(key).iter().any(|value| test(value))
    };
    any("id", &|id| container.id.starts_with(id))
        && any("name", &|name| container.name.contains(name.trim_start_matches('/')))
        && any("status", &|status| status == state_word(container))
        && labels_match(&container.labels, &filters.labels("label"))
}

fn state_word(container: &Container) -> &'static str {
    match (container.running, container.started) {
        (true, _) => "running",
        (false, Some(_)) => "exited",
        (false, None) => "created",
    }
}

fn summary(api: &Api, container: Container, now: Timestamp) -> api_container::Summary {
    api_container::Summary {
        names: vec![format!("/{}", container.name)],
        command: container.command.join(" "),
        created: container.created.0 / NANOS,
        ports: Vec::new(),
        state: state_word(&container),
        status: status(&container, now),
        host_config: api_container::HostConfig { network_mode: "default".into() },
        network_settings: networks(api, container.task),
        mounts: Vec::new(),
        id: container.id,
        image: container.image,
        image_id: container.image_id,
        labels: container.labels,
    }
}

/// Moby `daemon/container/state.go`.
fn status(container: &Container, now: Timestamp) -> String {
    match (container.running, container.started, container.finished) {
        (true, Some(started), _) => format!("Up {}", human(now.since(started))),
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

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or_default())
}

/// Where the task is, as far as this node knows: a manager knows all.
fn networks(api: &Api, task: TaskId) -> api_container::NetworkSettings {
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
        let endpoint = api_container::NetworkEndpoint {
            network_id: network.id.to_string(),
            endpoint_id: task.id.to_string(),
            gateway: config.and_then(|c| c.gateway).map(|gateway| gateway.to_string()).unwrap_or_default(),
            ip_address: attachment.address.ip().to_string(),
            ip_prefix_len: attachment.address.prefix(),
            mac_address: mac,
            aliases: (!attachment.aliases.is_empty()).then(|| attachment.aliases.clone()),
        };
        Some((network.spec.name.clone(), endpoint))
    });
    api_container::NetworkSettings { networks: endpoints.collect::<BTreeMap<_, _>>() }
}

pub async fn inspect(State(api): State<Api>, Path(term): Path<String>) -> Reply {
    let containers = api.node.engine().containers().await?;
    let container = find(&containers, &term)?;
    ok(&inspected(&api, container.clone()))
}

/// Whole id or name, else a unique beginning of an id.
fn find<'a>(containers: &'a [Container], term: &str) -> Result<&'a Container, ApiError> {
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

fn inspected(api: &Api, container: Container) -> api_container::Inspect {
    let mut command = container.command.iter().cloned();
    api_container::Inspect {
        created: rfc3339(Some(container.created)),
        path: command.next().unwrap_or_default(),
        args: command.collect(),
        state: api_container::State {
            status: state_word(&container),
            running: container.running,
            paused: false,
            restarting: false,
            oom_killed: container.out_of_memory,
            dead: false,
            pid: if container.running { container.pid } else { 0 },
            exit_code: container.exit_code,
            error: String::new(),
            started_at: rfc3339(container.started),
            finished_at: rfc3339(container.finished),
        },
        name: format!("/{}", container.name),
        restart_count: 0,
        driver: "overlayfs".into(),
        platform: "linux".into(),
        graph_driver: GraphDriver { data: None, name: "overlayfs".into() },
        host_config: api_container::HostConfig { network_mode: "default".into() },
        mounts: Vec::new(),
        config: api_container::Config {
            hostname: container.hostname,
            image: container.image,
            cmd: container.command,
            labels: container.labels,
        },
        network_settings: networks(api, container.task),
        image: container.image_id,
        id: container.id,
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
