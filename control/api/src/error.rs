//! The one shape of an error reply: a status and `{"message": …}`.

use axum::response::{IntoResponse, Response};
use control_manager::control::ControlError;
use control_model::validate::SpecError;
use http::{StatusCode, header};

use crate::engine::EngineError;
use crate::node::{InspectError, SwarmError, UnlockError};

/// An error reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400: the request says something that can't be meant.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 501: Docker can do it, this daemon can't.
    pub fn unsupported(what: impl AsRef<str>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{} is not supported by this daemon", what.as_ref()))
    }

    /// 503: not in this node's present state.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "message": self.message }).to_string() + "\n";
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, error.message())
    }
}

impl From<SpecError> for ApiError {
    fn from(error: SpecError) -> Self {
        ControlError::Spec(error).into()
    }
}

impl From<SwarmError> for ApiError {
    fn from(error: SwarmError) -> Self {
        let status = match error {
            SwarmError::Address(_) | SwarmError::Token(_) | SwarmError::Backup(_) => StatusCode::BAD_REQUEST,
            SwarmError::AlreadyInSwarm
            | SwarmError::NotInSwarm
            | SwarmError::JoinTimeout
            | SwarmError::NothingToForce
            | SwarmError::Unreachable(_) => StatusCode::SERVICE_UNAVAILABLE,
            SwarmError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<UnlockError> for ApiError {
    fn from(error: UnlockError) -> Self {
        let status = match error {
            UnlockError::NotLocked => StatusCode::CONFLICT,
            UnlockError::WrongKey => StatusCode::UNAUTHORIZED,
            UnlockError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let status = match error {
            EngineError::NoSuchImage(_) | EngineError::NotFound(_) => StatusCode::NOT_FOUND,
            EngineError::Invalid(_) => StatusCode::BAD_REQUEST,
            EngineError::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            EngineError::Forbidden(_) => StatusCode::FORBIDDEN,
            EngineError::Conflict(_) => StatusCode::CONFLICT,
            EngineError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            EngineError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            EngineError::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<InspectError> for ApiError {
    fn from(error: InspectError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.0)
    }
}
