//! `docker secret …` and `docker config …`.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use control_manager::control::DependencyFilter;
use control_model::DependencyKind;
use http::StatusCode;

use crate::body::Json;
use crate::context::Api;
use crate::convert::dependency::{dependency, dependency_spec};
use crate::dto::dependency as api_dependency;
use crate::query::Query;
use crate::reply::{self, Reply, done, json, ok};

/// The routes of one kind.
pub fn routes(kind: DependencyKind) -> Router<Api> {
    let at = format!("/{}s", kind.word());
    let show = move |State(api): State<Api>, Path(id): Path<String>| inspect(kind, api, id);
    let drop = move |State(api): State<Api>, Path(id): Path<String>| remove(kind, api, id);
    let relabel = move |State(api): State<Api>,
                        Path(id): Path<String>,
                        query: Query,
                        Json(given): Json<api_dependency::DependencySpec>| {
        update(kind, api, id, query, given)
    };
    Router::new()
        .route(&at, get(move |State(api): State<Api>, query: Query| list(kind, api, query)))
        .route(
            &format!("{at}/create"),
            post(move |State(api): State<Api>, Json(given): Json<api_dependency::DependencySpec>| {
                create(kind, api, given)
            }),
        )
        .route(&format!("{at}/{{id}}"), get(show).delete(drop))
        .route(&format!("{at}/{{id}}/update"), post(relabel))
}

async fn list(kind: DependencyKind, api: Api, query: Query) -> Reply {
    let control = api.control()?;
    let filters = query.filters(&["id", "label", "name", "names"])?;
    let filter = DependencyFilter {
        id_prefixes: filters.get("id").to_vec(),
        name_prefixes: filters.get("name").to_vec(),
        names: filters.get("names").to_vec(),
        labels: filters.labels("label"),
    };
    let found = control.list_dependencies(kind, &filter).await?;
    reply::list(found.into_iter().map(|one| dependency(&one)))
}

async fn inspect(kind: DependencyKind, api: Api, id: String) -> Reply {
    ok(&dependency(&*api.control()?.dependency(kind, &id).await?))
}

async fn create(kind: DependencyKind, api: Api, given: api_dependency::DependencySpec) -> Reply {
    let control = api.control()?;
    let id = control.create_dependency(kind, dependency_spec(kind, given)?).await?;
    json(StatusCode::CREATED, &api_dependency::CreateReply { id: id.to_string() })
}

async fn update(
    kind: DependencyKind,
    api: Api,
    id: String,
    query: Query,
    given: api_dependency::DependencySpec,
) -> Reply {
    let version = query.version(kind.word())?;
    let control = api.control()?;
    control.update_dependency(kind, &id, version, &dependency_spec(kind, given)?).await?;
    done()
}

async fn remove(kind: DependencyKind, api: Api, id: String) -> Reply {
    api.control()?.remove_dependency(kind, &id).await?;
    Ok(axum::response::IntoResponse::into_response(StatusCode::NO_CONTENT))
}
