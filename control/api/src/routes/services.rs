//! `docker service …`.

use axum::extract::{Path, State};
use control_manager::control::{
    Control, ControlError, Kind, ServiceFilter, find_network, random_service_name,
};
use control_model::spec::ServiceSpec;
use http::{HeaderMap, StatusCode};

use super::images::credentials;
use crate::body::Json;
use crate::context::Api;
use crate::convert::service::service;
use crate::convert::spec_in::service_spec;
use crate::convert::spec_out::Defaults;
use crate::dto::service as api_service;
use crate::error::ApiError;
use crate::query::Query;
use crate::reply::{self, Reply, done, json, ok};
use crate::routes::networks::unless_predefined;

/// Docker's own networks of a node, which no service can join.
const LOCAL_NETWORKS: [&str; 2] = ["bridge", "docker_gwbridge"];

pub async fn list(State(api): State<Api>, query: Query) -> Reply {
    let control = api.control()?;
    let filters = query.filters(&["name", "id", "label", "mode", "runtime"])?;
    let with_status = query.bool("status")?;
    let filter = ServiceFilter {
        id_prefixes: filters.get("id").to_vec(),
        name_prefixes: filters.get("name").to_vec(),
        labels: filters.labels("label"),
        modes: filters.get("mode").to_vec(),
    };
    let mut services = control.list_services(&filter).await?;
    // All services run containers.
    let runtimes = filters.get("runtime");
    if !runtimes.is_empty() && !runtimes.iter().any(|runtime| runtime == "container") {
        services.clear();
    }
    let state = control.state();
    reply::list(
        services
            .into_iter()
            .map(move |(s, status)| service(&state, &s, Defaults::Omit, with_status.then_some(status))),
    )
}

pub async fn inspect(State(api): State<Api>, Path(id): Path<String>, query: Query) -> Reply {
    let control = api.control()?;
    let defaults = if query.bool("insertDefaults")? { Defaults::Insert } else { Defaults::Omit };
    let found = control.service(&id).await?;
    ok(&service(&control.state(), &found, defaults, None))
}

/// Said where the client sends credentials along: they are not kept.
fn warnings(headers: &HeaderMap) -> Option<Vec<String>> {
    const NOT_KEPT: &str =
        "registry credentials are not sent to the nodes: each pulls the image without them";
    credentials(headers).map(|_| vec![NOT_KEPT.to_owned()])
}

pub async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    Json(given): Json<api_service::ServiceSpec>,
) -> Reply {
    let control = api.control()?;
    let mut spec = spec_of(&control, given).await?;
    if spec.name.is_empty() {
        let state = control.state();
        spec.name = random_service_name(|name| state.service_by_name(name).is_some());
    }
    let id = control.create_service(spec).await?;
    json(StatusCode::CREATED, &api_service::CreateReply { id: id.to_string(), warnings: warnings(&headers) })
}

pub async fn update(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(given): Json<api_service::ServiceSpec>,
) -> Reply {
    let version = query.version("service")?;
    // Whose registry credentials to go on with: none are kept, so both are the same.
    if !matches!(query.get("registryAuthFrom"), "" | "spec" | "previous-spec") {
        return Err(ApiError::invalid(format!(
            "invalid registryAuthFrom '{}'",
            query.get("registryAuthFrom")
        )));
    }
    let control = api.control()?;
    match query.get("rollback") {
        "" | "none" => change(&control, &id, version, given).await?,
        "previous" => control.rollback_service(&id, version).await?,
        other => return Err(ApiError::invalid(format!("unrecognized rollback option {other}"))),
    }
    ok(&api_service::UpdateReply { warnings: warnings(&headers) })
}

async fn change(
    control: &Control,
    id: &str,
    version: u64,
    given: api_service::ServiceSpec,
) -> Result<(), ApiError> {
    let spec = spec_of(control, given).await?;
    Ok(control.update_service(id, version, spec).await?)
}

pub async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    api.control()?.remove_service(&id).await?;
    done()
}

/// Networks that it names are looked up as they are now; where it names none, no other manager is asked.
async fn spec_of(control: &Control, given: api_service::ServiceSpec) -> Result<ServiceSpec, ApiError> {
    let names_networks = !given.networks.is_empty() || !given.task_template.networks.is_empty();
    let state = if names_networks { control.read().await? } else { control.state() };
    service_spec(given, &|target| match find_network(&state, target) {
        Ok(network) => Ok(network.id),
        Err(ControlError::NotFound { kind: Kind::Network, .. }) if LOCAL_NETWORKS.contains(&target) => {
            Err(ApiError::new(
                StatusCode::FORBIDDEN,
                format!(
                    "The network {target} cannot be used with services. Only networks scoped to the swarm can be \
                     used, such as those created with the overlay driver."
                ),
            ))
        }
        Err(error) => Err(unless_predefined(target, error)),
    })
}
