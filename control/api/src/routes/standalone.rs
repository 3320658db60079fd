//! `docker run` and its parts: containers that no service makes, and the streams and ends of all.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::IntoResponse as _;
use control_manager::clock;
use control_model::OutputQuery;
use control_model::spec::Platform;
use control_model::standalone::{ConsoleSize, NetworkMode, WaitFor};
use futures::StreamExt as _;
use futures::stream::once;
use http::{StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::containers::find;
use super::logs::stream_kind;
use super::networks::refuse_to_attach;
use super::streams::{Streams, switching, wants_upgrade};
use crate::body::Json;
use crate::context::Api;
use crate::convert::refuse_unknown;
use crate::convert::standalone::{restart_rule, standalone_spec};
use crate::dto::create::{CreateRequest, Created, UpdateRequest, Waited};
use crate::engine::{Container, EngineError};
use crate::error::ApiError;
use crate::events::of_container_action;
use crate::node::Membership;
use crate::query::Query;
use crate::reply::{Reply, done, json, ok};
use crate::version::ApiVersion;

/// What a node in no swarm says: nothing there would connect a container.
const NO_SWARM: &str = "This node is not part of a swarm, whose data plane connects containers. Use \"docker swarm init\" or \
                        \"docker swarm join\" first.";

pub async fn create(State(api): State<Api>, query: Query, Json(body): Json<Value>) -> Reply {
    let given = given(&body)?;
    let network = network(&api, &given).await?;
    if api.node.local().membership == Membership::Inactive {
        return Err(ApiError::unavailable(NO_SWARM));
    }
    if given.image.is_empty() {
        return Err(ApiError::invalid("no image specified"));
    }
    if let Some(platform) = query.given("platform").filter(|platform| !is_of_host(platform)) {
        return Err(ApiError::unsupported(format!("platform {platform}")));
    }
    let spec = standalone_spec(given, network, body.to_string())?;
    let (engine, name) = (api.local_engine()?, query.get("name").to_owned());
    let id = to_its_end(async move { engine.create(&name, spec).await }).await?;
    json(StatusCode::CREATED, &Created { id, warnings: Vec::new() })
}

fn given(body: &Value) -> Result<CreateRequest, ApiError> {
    if body.is_null() {
        return Err(ApiError::invalid("config cannot be empty in order to create a container"));
    }
    serde_json::from_value(body.clone()).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))
}

/// `linux`, or with this machine's architecture behind it, by either of its names.
fn is_of_host(platform: &str) -> bool {
    let (os, architecture) = platform.split_once('/').unwrap_or((platform, ""));
    let names = match Platform::HOST_ARCHITECTURE {
        "x86_64" => ["x86_64", "amd64"],
        _ => ["aarch64", "arm64"],
    };
    os == Platform::HOST_OS && (architecture.is_empty() || names.contains(&architecture))
}

/// What it is to be connected to.
async fn network(api: &Api, given: &CreateRequest) -> Result<NetworkMode, ApiError> {
    let mode = given.host_config.network_mode.as_str();
    let endpoints = &given.networking_config.endpoints;
    for term in endpoints.keys().map(String::as_str).chain([mode]).filter(|term| !is_predefined(term)) {
        if let Some(refusal) = refuse_to_attach(api, term).await {
            return Err(refusal);
        }
    }
    if let Some(other) = endpoints.keys().find(|term| *term != mode) {
        return Err(ApiError::unsupported(format!(
            "NetworkingConfig.EndpointsConfig.{other} beside {mode:?}"
        )));
    }
    for settings in endpoints.values() {
        refuse_unknown(&settings.rest, "NetworkingConfig.EndpointsConfig")?;
    }
    let aliases: Vec<String> = endpoints.values().flat_map(|settings| settings.aliases.clone()).collect();
    if !is_predefined(mode) {
        check_known(api, mode).await?;
        return Ok(NetworkMode::Swarm { network: mode.to_owned(), aliases });
    }
    if !aliases.is_empty() {
        let words = "network-scoped alias is supported only for containers in user defined networks";
        return Err(ApiError::invalid(words));
    }
    match mode {
        "" | "default" | "bridge" => Ok(NetworkMode::Bridge),
        "none" => Ok(NetworkMode::None),
        other => Err(ApiError::unsupported(format!("HostConfig.NetworkMode {other}"))),
    }
}

fn is_predefined(term: &str) -> bool {
    matches!(term, "" | "default" | "bridge" | "none" | "host") || term.starts_with("container:")
}

/// A manager knows all networks; what a worker does not know, its managers may, and they are asked with the start. Not "not found":
/// a client would look for an image then.
async fn check_known(api: &Api, term: &str) -> Result<(), ApiError> {
    let Ok(control) = api.control() else { return Ok(()) };
    control.network(term).await.map(drop).map_err(|error| ApiError::invalid(error.message()))
}

pub async fn start(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    if query.given("checkpoint").is_some() {
        return Err(ApiError::unsupported("a start from a checkpoint"));
    }
    let container = own(&api, &term).await?;
    let engine = api.local_engine()?;
    let is_new = to_its_end(async move { engine.start(&container.id).await }).await?;
    Ok(if is_new { StatusCode::NO_CONTENT } else { StatusCode::NOT_MODIFIED }.into_response())
}

pub async fn restart(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    let grace = grace(&query)?;
    let signal = query.given("signal").map(str::to_owned);
    let container = own(&api, &term).await?;
    let (engine, id) = (api.local_engine()?, container.id.clone());
    to_its_end(async move { engine.restart(&id, signal.as_deref(), grace).await }).await?;
    tell(&api, &container, "restart", None);
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub async fn remove(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    if query.flag("link") {
        return Err(ApiError::unsupported("a link between containers"));
    }
    let container = own(&api, &term).await?;
    let (engine, force, volumes) = (api.local_engine()?, query.flag("force"), query.flag("v"));
    to_its_end(async move { engine.remove(&container.id, force, volumes).await }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub async fn rename(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    let name = query.get("name");
    if name.is_empty() {
        return Err(ApiError::invalid("Neither old nor new names may be empty"));
    }
    let mut container = own(&api, &term).await?;
    let former = api.local_engine()?.rename(&container.id, name).await?;
    container.name = name.trim_start_matches('/').to_owned();
    tell(&api, &container, "rename", Some(("oldName", format!("/{former}"))));
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub async fn update(
    State(api): State<Api>,
    Path(term): Path<String>,
    Json(given): Json<UpdateRequest>,
) -> Reply {
    refuse_unknown(&given.rest, "an update of HostConfig")?;
    let container = own(&api, &term).await?;
    if !given.restart_policy.name.is_empty() {
        let rule = restart_rule(&given.restart_policy)?;
        api.local_engine()?.set_rule(&container.id, rule).await?;
        tell(&api, &container, "update", None);
    }
    ok(&json!({ "Warnings": [] }))
}

/// The reply begins at once: a client starts the container once it knows that its end is waited for.
pub async fn wait(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    let what = match query.get("condition") {
        "" | "not-running" => WaitFor::NotRunning,
        "next-exit" => WaitFor::NextExit,
        "removed" => WaitFor::Removed,
        other => return Err(ApiError::invalid(format!("invalid condition: {other:?}"))),
    };
    let container = known(&api, &term).await?;
    let ended = api.local_engine()?.wait(&container.id, what).await?;
    let body = once(async move {
        let mut text = serde_json::to_vec(&Waited { status_code: ended.await })?;
        text.push(b'\n');
        Ok::<_, serde_json::Error>(text)
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response())
}

pub async fn resize(State(api): State<Api>, Path(term): Path<String>, query: Query) -> Reply {
    let number = |key: &str| {
        let text = query.get(key);
        let malformed = || ApiError::invalid(format!("strconv.Atoi: parsing {text:?}: invalid syntax"));
        text.parse::<u16>().map_err(|_| malformed())
    };
    let size = ConsoleSize { rows: number("h")?, columns: number("w")? };
    let container = known(&api, &term).await?;
    api.local_engine()?.resize(&container.id, size).await?;
    done()
}

pub async fn attach(
    State(api): State<Api>,
    Path(term): Path<String>,
    version: Extension<ApiVersion>,
    query: Query,
    mut request: Request,
) -> Reply {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().filter(|_| wants_upgrade(request.headers()));
    let container = known(&api, &term).await?;
    let engine = api.local_engine()?;
    let is_stream = query.flag("stream");
    let attached = engine.attach(&container.id, is_stream && query.flag("stdin")).await?;
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    let former = if query.flag("logs") {
        let lines =
            OutputQuery { stdout, stderr, since: None, until: None, after: None, tail: None, follow: false };
        let pieces = engine.output(&container.id, lines).await?;
        // What can't be read is left out.
        let lines = pieces.filter_map(|piece| std::future::ready(piece.ok()));
        lines
            .flat_map(|piece| futures::stream::iter(piece.lines))
            .map(|line| (line.stream, line.text))
            .boxed()
    } else {
        futures::stream::empty().boxed()
    };
    let output = if is_stream { former.chain(attached.output).boxed() } else { former };
    let streams = Streams { input: attached.input, output, tty: container.tty, stdout, stderr };
    tell(&api, &container, "attach", None);
    let kind = stream_kind(container.tty, *version);
    let Some(upgrade) = upgrade else {
        return Ok(([(header::CONTENT_TYPE, kind)], streams.alone(async {})).into_response());
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => streams.converse(Some(TokioIo::new(connection)), async {}).await,
            Err(error) => tracing::debug!(%error, "the connection of an attachment is gone"),
        }
    });
    switching(kind)
}

/// How long a stop may take; Docker's word for ever is what is below nothing.
pub fn grace(query: &Query) -> Result<Option<Duration>, ApiError> {
    let malformed = |text: &str| ApiError::invalid(format!("strconv.Atoi: parsing {text:?}: invalid syntax"));
    match query.get("t") {
        "" => Ok(None),
        text => {
            let seconds: i32 = text.parse().map_err(|_| malformed(text))?;
            Ok(Some(u64::try_from(seconds).map_or(Duration::MAX, Duration::from_secs)))
        }
    }
}

async fn known(api: &Api, term: &str) -> Result<Container, ApiError> {
    let containers = api.local_engine()?.containers().await?;
    find(&containers, term).cloned()
}

/// One that no service made: a task's container comes and goes as its service wants it.
async fn own(api: &Api, term: &str) -> Result<Container, ApiError> {
    let container = known(api, term).await?;
    if container.own.is_some() {
        return Ok(container);
    }
    let words = format!(
        "container {} belongs to a task of the swarm, which starts and removes it: use \"docker service\"",
        container.name
    );
    Err(ApiError::new(StatusCode::CONFLICT, words))
}

/// What has begun goes to its end, also if the client does not wait for it.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    let done = tokio::spawn(work).await;
    done.map_err(|error| EngineError::Failed(error.to_string()))?
}

fn tell(api: &Api, container: &Container, action: &str, attribute: Option<(&str, String)>) {
    api.events.tell(of_container_action(clock::now(), action, container, attribute));
}
