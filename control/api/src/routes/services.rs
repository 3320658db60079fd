//! `docker service …`.

use axum::extract::{Path, State};
use control_manager::control::{
    Control, ControlError, Kind, ServiceFilter, find_network, random_service_name,
};
use control_model::Service;
use control_model::spec::{ContainerSpec, RegistryCredentials, ServiceSpec, TaskSpec};
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

pub async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    Json(given): Json<api_service::ServiceSpec>,
) -> Reply {
    let control = api.control()?;
    let mut spec = with_registry(spec_of(&control, given).await?, credentials(&headers));
    if spec.name.is_empty() {
        let state = control.state();
        spec.name = random_service_name(|name| state.service_by_name(name).is_some());
    }
    let id = control.create_service(spec).await?;
    json(StatusCode::CREATED, &api_service::CreateReply { id: id.to_string(), warnings: None })
}

pub async fn update(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(given): Json<api_service::ServiceSpec>,
) -> Reply {
    let version = query.version("service")?;
    let from = match query.get("registryAuthFrom") {
        "" | "spec" => AuthFrom::Spec,
        "previous-spec" => AuthFrom::PreviousSpec,
        other => return Err(ApiError::invalid(format!("invalid registryAuthFrom '{other}'"))),
    };
    let control = api.control()?;
    match query.get("rollback") {
        "" | "none" => {
            let spec = spec_of(&control, given).await?;
            let credentials = match credentials(&headers) {
                Some(given) => Some(given),
                None => from.credentials(&*control.service(&id).await?)?,
            };
            control.update_service(&id, version, with_registry(spec, credentials)).await?;
        }
        "previous" => control.rollback_service(&id, version).await?,
        other => return Err(ApiError::invalid(format!("unrecognized rollback option {other}"))),
    }
    ok(&api_service::UpdateReply { warnings: None })
}

/// Whose registry credentials a service goes on with when its client sends none.
enum AuthFrom {
    Spec,
    PreviousSpec,
}

impl AuthFrom {
    fn credentials(self, service: &Service) -> Result<Option<RegistryCredentials>, ApiError> {
        let spec = match self {
            Self::Spec => &service.spec,
            Self::PreviousSpec => service
                .previous_spec
                .as_ref()
                .ok_or_else(|| ApiError::invalid("service does not have a previous spec"))?,
        };
        Ok(spec.task.container.registry.clone())
    }
}

fn with_registry(spec: ServiceSpec, registry: Option<RegistryCredentials>) -> ServiceSpec {
    let container = ContainerSpec { registry, ..spec.task.container.clone() };
    let task = TaskSpec { container, ..(*spec.task).clone() };
    ServiceSpec { task: task.into(), ..spec }
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
