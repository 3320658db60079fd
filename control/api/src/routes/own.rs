//! What `docker inspect` shows of a container that no service made: what was asked for, with what came of it.

use std::collections::BTreeSet;

use control_manager::control::find_network;
use control_model::standalone::{NetworkMode, RestartRule};
use serde_json::{Map, Value, json};

use super::networks::{find_assigned, gateway_bridge};
use crate::context::Api;
use crate::dto::container::{NetworkEndpoint, NetworkSettings};
use crate::dto::create::RestartPolicy;
use crate::engine::{Container, ImageConfig};
use crate::standalone::Own;

/// Parts of what was asked for that are shown elsewhere.
const OTHER_PARTS: [&str; 2] = ["HostConfig", "NetworkingConfig"];

/// Docker's name of what it is connected to.
pub fn network_mode(own: &Own) -> &str {
    match &own.spec.network {
        NetworkMode::Bridge => "bridge",
        NetworkMode::None => "none",
        NetworkMode::Swarm { network, .. } => network,
    }
}

pub fn host_config(container: &Container, own: &Own) -> Value {
    let mut shown = asked(own).remove(OTHER_PARTS[0]).unwrap_or_else(|| json!({}));
    let maximum_retry_count = match own.spec.restart {
        RestartRule::OnFailure { max_attempts } => i64::from(max_attempts),
        RestartRule::No | RestartRule::Always | RestartRule::UnlessStopped => 0,
    };
    let name = own.spec.restart.word().to_owned();
    shown["NetworkMode"] = json!(network_mode(own));
    shown["RestartPolicy"] = json!(RestartPolicy { name, maximum_retry_count });
    shown["LogConfig"] = json!({ "Type": container.log.name, "Config": container.log.options });
    shown
}

/// With what the image says where nothing else was asked for (moby `daemon/commit.go`, `merge`).
pub fn config(container: &Container, own: &Own, image: &ImageConfig) -> Value {
    let mut shown = asked(own);
    for part in OTHER_PARTS {
        shown.remove(part);
    }
    let is_given = |key: &str| shown.get(key).is_some_and(|value| *value != "" && *value != json!([]));
    let (has_entrypoint, has_command) = (is_given("Entrypoint"), is_given("Cmd"));
    let (has_dir, has_user) = (is_given("WorkingDir"), is_given("User"));
    let mut put = |key: &str, value: Value| drop(shown.insert(key.to_owned(), value));
    put("Hostname", json!(container.hostname));
    put("Image", json!(container.image));
    put("Labels", json!(container.labels));
    put("Env", json!(environment(&own.spec.task.container.env, &image.env)));
    if !has_entrypoint {
        put("Entrypoint", json!((!image.entrypoint.is_empty()).then_some(&image.entrypoint)));
    }
    if !has_command {
        let command = (!has_entrypoint && !image.command.is_empty()).then_some(&image.command);
        put("Cmd", json!(command));
    }
    if !has_dir {
        put("WorkingDir", json!(image.working_dir));
    }
    if !has_user {
        put("User", json!(image.user));
    }
    let exposed = container.exposed_ports.iter().map(|port| (port.clone(), json!({})));
    put("ExposedPorts", Value::Object(exposed.collect()));
    Value::Object(shown)
}

fn asked(own: &Own) -> Map<String, Value> {
    match serde_json::from_str(&own.spec.shown) {
        Ok(Value::Object(shown)) => shown,
        _ => Map::new(),
    }
}

/// The user's, then those of the image that the user does not have.
fn environment(own: &[String], image: &[String]) -> Vec<String> {
    let key = |entry: &String| entry.split('=').next().unwrap_or_default().to_owned();
    let known: BTreeSet<String> = own.iter().map(key).collect();
    let further = image.iter().filter(|entry| !known.contains(&key(entry)));
    own.iter().chain(further).cloned().collect()
}

/// As far as this node knows it.
fn network_id(api: &Api, own: &Own) -> String {
    let NetworkMode::Swarm { network: term, .. } = &own.spec.network else {
        return gateway_bridge(api).map(|bridge| bridge.id).unwrap_or_default();
    };
    let of_managers = api.node.store().and_then(|store| Some(find_network(&store.state(), term).ok()?.id));
    let found = of_managers.or_else(|| Some(find_assigned(&api.node.assigned_networks(), term)?.id));
    found.map(|id| id.to_string()).unwrap_or_default()
}

fn aliases(own: &Own) -> Option<Vec<String>> {
    let NetworkMode::Swarm { aliases, .. } = &own.spec.network else { return None };
    (!aliases.is_empty()).then(|| aliases.clone())
}

/// Where it is; nowhere if it does not run.
pub fn networks(api: &Api, container: &Container, own: &Own) -> NetworkSettings {
    let mut endpoint = NetworkEndpoint::default();
    if let Some(place) = own.place.as_ref().filter(|_| container.running) {
        endpoint = NetworkEndpoint {
            network_id: network_id(api, own),
            endpoint_id: container.id.clone(),
            gateway: place.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
            ip_address: place.address.ip().to_string(),
            ip_prefix_len: place.address.prefix(),
            mac_address: place.mac.clone(),
            aliases: aliases(own),
            ..endpoint
        };
    }
    // The older fields are of the bridge alone.
    let own_place =
        if own.spec.network == NetworkMode::Bridge { endpoint.clone() } else { NetworkEndpoint::default() };
    NetworkSettings {
        ports: None,
        gateway: Some(own_place.gateway),
        ip_address: Some(own_place.ip_address),
        ip_prefix_len: Some(own_place.ip_prefix_len),
        mac_address: Some(own_place.mac_address),
        networks: [(network_mode(own).to_owned(), endpoint)].into(),
    }
}
