//! `docker logs`, `docker service logs`: what containers write, of this node, and through its managers of all.

mod relay;
mod wish;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::response::IntoResponse as _;
use control_model::{OutputBatch, OutputPiece, OutputPosition, ServiceId, TaskId};
use futures::StreamExt as _;
use http::header::CONTENT_TYPE;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use self::relay::Relay;
use self::wish::{Asked, Wish};
use super::containers::find;
use crate::context::Api;
use crate::engine::{Container, Engine};
use crate::error::ApiError;
use crate::frames::Format;
use crate::node::InspectError;
use crate::query::Query;
use crate::reply::Reply;
use crate::version::ApiVersion;

/// Pieces on their way to a client. One that does not read holds so many in memory, and its source waits.
const MAX_PIECES: usize = 4;
/// A follower looks so often for containers that are new on its node.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Nodes that are read at a time by who does not follow.
const MAX_NODES: usize = 32;
/// Since when clients are told which of the two kinds the streams are.
const WITH_KINDS: ApiVersion = ApiVersion(42);
const SERVICE_LABEL: &str = "com.docker.swarm.service.id";

type Pieces = mpsc::Sender<Result<Bytes, InspectError>>;

/// Whose output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Service(ServiceId),
    Task(TaskId),
}

pub async fn of_container(
    State(api): State<Api>,
    Path(term): Path<String>,
    version: Extension<ApiVersion>,
    query: Query,
) -> Reply {
    let engine = api.node.engine();
    let containers = engine.containers().await?;
    let container = find(&containers, &term)?.clone();
    let wish = Wish::of(&query, Asked::OfContainer, container.tty)?;
    let (pieces, stream) = mpsc::channel(MAX_PIECES);
    let format = wish.format;
    tokio::spawn(async move {
        // A container has no details of its own.
        let frames = |piece: OutputPiece| format.lines(&piece.lines, "");
        if let Err(error) = send_container(&engine, &container.id, wish, (&frames, &pieces)).await {
            say(&pieces, format, &error.0).await;
        }
    });
    reply(stream, format, *version)
}

pub async fn of_service(
    State(api): State<Api>,
    Path(term): Path<String>,
    version: Extension<ApiVersion>,
    query: Query,
) -> Reply {
    let wish = Wish::of(&query, Asked::OfSwarm, false)?;
    let service = api.control()?.service(&term).await?;
    relay(&api, Whose::Service(service.id), wish.with_tty(service.spec.task.container.tty), *version)
}

pub async fn of_task(
    State(api): State<Api>,
    Path(term): Path<String>,
    version: Extension<ApiVersion>,
    query: Query,
) -> Reply {
    let wish = Wish::of(&query, Asked::OfSwarm, false)?;
    let task = api.control()?.task(&term).await?;
    relay(&api, Whose::Task(task.id), wish.with_tty(task.spec.container.tty), *version)
}

/// What a manager asks this node for: a batch in each piece.
pub async fn of_this_node(State(api): State<Api>, query: Query) -> Reply {
    let whose = Whose::of(&query)?;
    let wish = Wish::of(&query, Asked::OfSwarm, false)?;
    let read = wish::positions(&query)?;
    let (pieces, stream) = mpsc::channel(MAX_PIECES);
    tokio::spawn(gather(api.node.engine(), whose, (wish, read), pieces));
    Ok(Body::from_stream(ReceiverStream::new(stream)).into_response())
}

#[expect(clippy::unnecessary_wraps, reason = "a handler's last word, as the others are")]
fn reply(stream: mpsc::Receiver<Result<Bytes, InspectError>>, format: Format, version: ApiVersion) -> Reply {
    let kind = stream_kind(format.tty, version);
    Ok(([(CONTENT_TYPE, kind)], Body::from_stream(ReceiverStream::new(stream))).into_response())
}

/// What clients are told that a stream is.
pub fn stream_kind(tty: bool, version: ApiVersion) -> &'static str {
    if tty || version < WITH_KINDS {
        "application/vnd.docker.raw-stream"
    } else {
        "application/vnd.docker.multiplexed-stream"
    }
}

/// The output of all nodes that have a part in it.
fn relay(api: &Api, whose: Whose, wish: Wish, version: ApiVersion) -> Reply {
    let store = api.control()?.store();
    let (pieces, stream) = mpsc::channel(MAX_PIECES);
    let format = wish.format;
    let (node, turns) = (api.node.clone(), Arc::new(Semaphore::new(MAX_NODES)));
    tokio::spawn(Relay { node, store, whose, wish, pieces, turns }.run());
    reply(stream, format, version)
}

impl Whose {
    fn of(query: &Query) -> Result<Self, ApiError> {
        let malformed = || ApiError::invalid("a service or a task is needed, by its id");
        match (query.get("service"), query.get("task")) {
            (service, "") => service.parse().map(Self::Service).map_err(|_| malformed()),
            ("", task) => task.parse().map(Self::Task).map_err(|_| malformed()),
            _ => Err(malformed()),
        }
    }

    fn is_of(self, container: &Container) -> bool {
        match self {
            Self::Task(task) => container.task == task,
            Self::Service(service) => {
                container.labels.get(SERVICE_LABEL).is_some_and(|id| *id == service.to_string())
            }
        }
    }
}

/// The output of this node's containers, also of those that come while it is followed.
/// What was `read` of some before is left out.
async fn gather(
    engine: Arc<dyn Engine>,
    whose: Whose,
    (wish, read): (Wish, BTreeMap<TaskId, OutputPosition>),
    pieces: Pieces,
) {
    let (mut known, mut sending) = (BTreeSet::new(), JoinSet::new());
    let mut now = wish.clone();
    loop {
        let containers = match engine.containers().await {
            Ok(containers) => containers,
            Err(error) => {
                // Who reads no more needs no reason.
                let _ = pieces.send(Err(InspectError(error.to_string()))).await;
                return;
            }
        };
        for container in containers.into_iter().filter(|container| whose.is_of(container)) {
            if known.insert(container.id.clone()) {
                now.query.after = read.get(&container.task).copied();
                sending.spawn(send_batches(engine.clone(), container, now.clone(), pieces.clone()));
            }
        }
        if !wish.query.follow || (matches!(whose, Whose::Task(_)) && !known.is_empty()) {
            break;
        }
        // Of a container that came later nothing is left out.
        now.query.tail = None;
        tokio::select! {
            () = pieces.closed() => return,
            () = tokio::time::sleep(LOOK_PERIOD) => {}
        }
        while sending.try_join_next().is_some() {}
    }
    while sending.join_next().await.is_some() {}
}

async fn send_batches(engine: Arc<dyn Engine>, container: Container, wish: Wish, pieces: Pieces) {
    let task = container.task;
    let write =
        |batch: &OutputBatch| rmp_serde::to_vec_named(batch).expect("model types serialize without error");
    let batch =
        |OutputPiece { lines, upto }| write(&OutputBatch { task, lines, upto: Some(upto), error: None });
    if let Err(error) = send_container(&engine, &container.id, wish, (&batch, &pieces)).await {
        // The others have more to say.
        let last = OutputBatch { task, lines: Vec::new(), upto: None, error: Some(error.0) };
        let _ = pieces.send(Ok(write(&last).into())).await;
    }
}

/// Sends what one container writes, as `write` has it.
async fn send_container(
    engine: &Arc<dyn Engine>,
    id: &str,
    wish: Wish,
    (write, pieces): (&(dyn Fn(OutputPiece) -> Vec<u8> + Sync), &Pieces),
) -> Result<(), InspectError> {
    let said = |error: crate::engine::EngineError| InspectError(error.to_string());
    let mut lines = engine.output(id, wish.query).await.map_err(said)?;
    loop {
        let next = tokio::select! {
            next = lines.next() => next,
            () = pieces.closed() => return Ok(()),
        };
        let Some(piece) = next else { return Ok(()) };
        let written = write(piece.map_err(said)?);
        if !written.is_empty() && pieces.send(Ok(written.into())).await.is_err() {
            return Ok(());
        }
    }
}

async fn say(pieces: &Pieces, format: Format, words: &str) {
    let mut piece = Vec::new();
    format.write_error(words, &mut piece);
    // Who reads no more needs no reason.
    let _ = pieces.send(Ok(piece.into())).await;
}
