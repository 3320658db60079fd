//! A node whose containers are the host's Docker Engine's: what is passed there, and what both have a part in.

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, FromRequest as _, Path, Request, State};
use axum::response::IntoResponse as _;
use axum::routing::{any, get, post};
use futures::StreamExt as _;
use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Map, Value, json};

use super::{events, networks, system};
use crate::body::{Json, MAX_JSON_BYTES};
use crate::context::Api;
use crate::error::ApiError;
use crate::passage::{Passage, with_body};
use crate::query::Query;
use crate::reply::{Reply, ok};
use crate::version::ApiVersion;

/// Paths that are the engine's alone, and what is below them.
const ENGINES: [&str; 12] = [
    "/auth",
    "/build",
    "/commit",
    "/containers",
    "/distribution",
    "/exec",
    "/grpc",
    "/images",
    "/plugins",
    "/session",
    "/system",
    "/volumes",
];

/// In place of the routes over a runtime of one's own.
pub fn routes() -> Router<Api> {
    let mut routes = Router::new()
        .route("/info", get(info))
        .route("/events", get(follow))
        .route("/containers/json", get(containers))
        .route("/images/json", get(list))
        .route("/system/df", get(list))
        .route("/networks", get(all_networks))
        .route("/networks/create", post(create_network))
        .route("/networks/prune", post(prune_networks))
        .route("/networks/{id}", get(inspect_network).delete(remove_network))
        .route("/networks/{id}/connect", post(pass))
        .route("/networks/{id}/disconnect", post(pass));
    for path in ENGINES {
        routes = routes.route(path, any(pass)).route(&format!("{path}/{{*rest}}"), any(pass));
    }
    routes
}

fn passage(api: &Api) -> Result<Passage, ApiError> {
    api.node.passage().ok_or_else(|| ApiError::not_found("page not found"))
}

async fn pass(State(api): State<Api>, request: Request) -> Reply {
    passage(&api)?.pass(request).await
}

async fn list(State(api): State<Api>, request: Request) -> Reply {
    passage(&api)?.list(request).await
}

/// As many as are asked for, without those that are hidden.
async fn containers(State(api): State<Api>, query: Query, mut request: Request) -> Reply {
    let passage = passage(&api)?;
    let Some(limit) = query.limit()? else { return passage.list(request).await };
    // A number shows those that have ended, too.
    let rest =
        request.uri().query().unwrap_or_default().split('&').filter(|part| !part.starts_with("limit="));
    let path = format!("/containers/json?all=1&{}", rest.collect::<Vec<_>>().join("&"));
    *request.uri_mut() = path.parse().map_err(|_| ApiError::not_found("page not found"))?;
    let mut all = passage.json(passage.list(request).await?).await?;
    if let Value::Array(all) = &mut all {
        all.truncate(limit);
    }
    ok(&all)
}

/// The engine's, with this node's place in its swarm.
async fn info(State(api): State<Api>, Extension(version): Extension<ApiVersion>, request: Request) -> Reply {
    let passage = passage(&api)?;
    let (n_hidden, n_running) = passage.hidden_containers(version).await?;
    let mut info = passage.json(passage.pass(request).await?).await?;
    let host = api.node.host();
    let Value::Object(fields) = &mut info else { return ok(&info) };
    fields.insert("Swarm".to_owned(), value(&system::swarm_info(&api))?);
    fields.insert("Name".to_owned(), Value::String(host.hostname));
    if let Some(Value::Array(drivers)) =
        fields.get_mut("Plugins").and_then(|plugins| plugins.get_mut("Network"))
        && !drivers.contains(&json!("overlay"))
    {
        drivers.push(json!("overlay"));
    }
    for (key, n) in [("Containers", n_hidden), ("ContainersRunning", n_running)] {
        if let Some(count) = fields.get_mut(key) {
            *count = count.as_u64().unwrap_or_default().saturating_sub(n).into();
        }
    }
    let warnings = fields.entry("Warnings").or_insert(Value::Null);
    let own = host.warnings.into_iter().map(Value::String);
    match warnings {
        Value::Array(all) => all.extend(own),
        other => *other = Value::Array(own.collect()),
    }
    ok(&info)
}

/// Those of the swarm and those of the engine, as they come.
async fn follow(State(api): State<Api>, query: Query, request: Request) -> Reply {
    let passage = passage(&api)?;
    let answer = passage.pass(request).await?;
    if !answer.status().is_success() {
        return Ok(answer);
    }
    let own = events::follow(State(api), query).await?;
    let own = own.into_body().into_data_stream().map(|piece| piece.map_err(std::io::Error::other));
    let both = futures::stream::select(own, passage.lines(answer));
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(both)).into_response())
}

async fn all_networks(State(api): State<Api>, query: Query, request: Request) -> Reply {
    let passage = passage(&api)?;
    let theirs = passage.json(passage.pass(request).await?).await?;
    // A filter that the swarm's networks don't have is the engine's alone.
    let mut all = match networks::list(State(api), query).await {
        Ok(own) => passage.json(own).await?,
        Err(_) => json!([]),
    };
    if let (Value::Array(all), Value::Array(theirs)) = (&mut all, theirs) {
        let known = |network: &Value| network.get("Name").and_then(Value::as_str).map(str::to_owned);
        let names: Vec<_> = all.iter().filter_map(known).collect();
        all.extend(
            theirs.into_iter().filter(|network| known(network).is_none_or(|name| !names.contains(&name))),
        );
    }
    ok(&all)
}

/// The swarm's; else the engine's.
async fn inspect_network(
    State(api): State<Api>,
    term: Path<String>,
    query: Query,
    request: Request,
) -> Reply {
    let scope = query.get("scope").to_owned();
    match networks::inspect(State(api.clone()), term, query).await {
        Err(error) if scope != "swarm" && is_unknown(&error) => passage(&api)?.pass(request).await,
        done => done,
    }
}

async fn remove_network(State(api): State<Api>, Path(term): Path<String>, request: Request) -> Reply {
    let known = networks::inspect(State(api.clone()), Path(term.clone()), Query::default()).await;
    match known {
        Err(error) if is_unknown(&error) => passage(&api)?.pass(request).await,
        _ => networks::remove(State(api), Path(term)).await,
    }
}

fn is_unknown(error: &ApiError) -> bool {
    [StatusCode::NOT_FOUND, StatusCode::NOT_IMPLEMENTED].contains(&error.status)
}

/// Overlays are the swarm's, all others the engine's.
async fn create_network(State(api): State<Api>, request: Request) -> Reply {
    let (parts, body) = request.into_parts();
    let body = http_body_util::Limited::new(body, MAX_JSON_BYTES).collect().await;
    let body = body
        .map_err(|error| ApiError::invalid(format!("error reading the request body: {error}")))?
        .to_bytes();
    let driver = serde_json::from_slice::<Map<String, Value>>(&body).ok();
    let driver = driver.and_then(|body| body.get("Driver").and_then(Value::as_str).map(str::to_owned));
    let mut again = with_body(Method::POST, parts.uri, parts.headers, body);
    *again.extensions_mut() = parts.extensions;
    if driver.as_deref() == Some("overlay") {
        return networks::create(State(api), Json::from_request(again, &()).await?).await;
    }
    passage(&api)?.pass(again).await
}

/// Unused ones of both.
async fn prune_networks(State(api): State<Api>, query: Query, request: Request) -> Reply {
    let passage = passage(&api)?;
    let is_for_both = query.filters(&["label", "label!"]).is_ok();
    let mut pruned = passage.json(passage.pass(request).await?).await?;
    if api.node.store().is_some() && is_for_both {
        let own = passage.json(super::disk::prune_networks(State(api), query).await?).await?;
        let own = own.get("NetworksDeleted").and_then(Value::as_array).cloned().unwrap_or_default();
        match pruned.get_mut("NetworksDeleted") {
            Some(Value::Array(all)) => all.extend(own),
            _ => pruned["NetworksDeleted"] = Value::Array(own),
        }
    }
    ok(&pruned)
}

fn value<T: serde::Serialize>(of: &T) -> Result<Value, ApiError> {
    serde_json::to_value(of)
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
