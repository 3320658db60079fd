//! What can go wrong between a client and its daemon.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A request was not answered, or answered by a refusal.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon is there: nothing was asked.
    #[error("cannot connect to meshd at unix://{}. Is it running?", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("{path} is no path of a request")]
    Request { path: String, source: http::Error },
    /// The daemon's own words.
    #[error("{message}")]
    Refused { status: u16, message: String },
    #[error("meshd at unix://{} did not answer within {after:?}", socket.display())]
    TimedOut { socket: PathBuf, after: Duration },
    #[error("the connection to meshd broke")]
    Broken(#[from] hyper::Error),
    #[error("the answer is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("the answer is not what was asked for")]
    Decode(#[from] serde_json::Error),
}

impl ClientError {
    /// The daemon does not live, as opposed to: lives and refuses.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::TimedOut { .. } | Self::Broken(_))
    }

    /// HTTP status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}
