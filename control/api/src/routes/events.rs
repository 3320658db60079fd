//! `docker events`: a line of JSON each, those of the past first.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::IntoResponse as _;
use control_manager::clock;
use control_model::Timestamp;
use http::header::CONTENT_TYPE;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::context::Api;
use crate::dto::events::Message;
use crate::error::ApiError;
use crate::events::Filter;
use crate::query::{Filters, Query, unix_time};
use crate::reply::Reply;

/// Lines on their way to a client.
const MAX_PIECES: usize = 16;

/// What a client wants.
struct Wish {
    /// Without either, of the past it wants nothing.
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    filter: Filter,
}

pub async fn follow(State(api): State<Api>, query: Query) -> Reply {
    let wish = Wish::of(&query)?;
    let (past, coming) = api.events.subscribe();
    let past = past.into_iter().filter(|message| wish.wants_of_the_past(message)).collect();
    let (lines, stream) = mpsc::channel(MAX_PIECES);
    tokio::spawn(send(past, coming, wish, lines));
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(ReceiverStream::new(stream))).into_response())
}

impl Wish {
    fn of(query: &Query) -> Result<Self, ApiError> {
        let time = |key: &str| {
            unix_time(query.get(key))
                .map_err(|why| ApiError::invalid(format!("invalid value for '{key}': {why}")))
        };
        let (since, until) = (time("since")?, time("until")?);
        if since.zip(until).is_some_and(|(since, until)| until < since) {
            return Err(ApiError::invalid(format!(
                "`since` time ({}) cannot be after `until` time ({})",
                query.get("since"),
                query.get("until")
            )));
        }
        Ok(Self { since, until, filter: Filter::new(Filters::parse(query.get("filters"))?) })
    }

    fn wants_of_the_past(&self, message: &Message) -> bool {
        let is_asked = self.since.is_some() || self.until.is_some();
        let is_late = self.since.is_none_or(|since| message.time_nano >= since.0);
        let is_early = self.until.is_none_or(|until| message.time_nano <= until.0);
        is_asked && is_late && is_early && self.filter.lets(message)
    }
}

/// Sends what has been and what comes, until the client or its time is gone.
async fn send(
    past: Vec<Arc<Message>>,
    mut coming: broadcast::Receiver<Arc<Message>>,
    wish: Wish,
    lines: mpsc::Sender<Result<Bytes, Infallible>>,
) {
    for message in past {
        if lines.send(Ok(line(&message))).await.is_err() {
            return;
        }
    }
    let is_over = async {
        match wish.until {
            Some(until) => tokio::time::sleep(until.since(clock::now())).await,
            None => std::future::pending().await,
        }
    };
    let passing_on = async {
        loop {
            let message = match coming.recv().await {
                Ok(message) => message,
                Err(RecvError::Lagged(n_missed)) => {
                    tracing::debug!(n_missed, "a client reads events too slowly");
                    continue;
                }
                Err(RecvError::Closed) => return,
            };
            if wish.filter.lets(&message) && lines.send(Ok(line(&message))).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = is_over => {}
        () = passing_on => {}
        () = lines.closed() => {}
    }
}

fn line(message: &Message) -> Bytes {
    let mut line = serde_json::to_vec(message).expect("text and numbers");
    line.push(b'\n');
    line.into()
}
