//! Replies that grow: one JSON object after another (`pkg/jsonmessage`).

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{StatusCode, header};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::dto::image::Message;

/// Where the lines of a growing reply are put. The reply ends when it is dropped.
pub type Lines = mpsc::UnboundedSender<Message>;

/// A reply that has all lines put into the returned sender, and ends with it.
pub fn stream() -> (Lines, Response) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let lines = UnboundedReceiverStream::new(receiver).map(|message| Ok::<_, Infallible>(line(&message)));
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (sender, (StatusCode::OK, headers, Body::from_stream(lines)).into_response())
}

fn line(message: &Message) -> Bytes {
    let mut line = serde_json::to_vec(message).expect("messages serialize without error");
    line.extend_from_slice(b"\r\n");
    line.into()
}
