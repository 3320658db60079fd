//! Replies that succeed.

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;

use crate::error::ApiError;

/// What a handler returns.
pub type Reply = Result<Response, ApiError>;

/// `value` as JSON, ended by a line feed as Go ends it.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Reply {
    let mut body = serde_json::to_vec(value)
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    body.push(b'\n');
    Ok((status, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// 200 and `value`.
pub fn ok<T: Serialize>(value: &T) -> Reply {
    json(StatusCode::OK, value)
}

/// 200 without a body.
#[expect(clippy::unnecessary_wraps, reason = "a handler's last word, as the others are")]
pub fn done() -> Reply {
    Ok(StatusCode::OK.into_response())
}
