//! The Docker Engine HTTP API over a [`Node`]: what it serves and what it refuses is in `docs/compat.md`.
#![forbid(unsafe_code)]

mod base64;
mod body;
mod context;
mod convert;
mod dto;
pub mod engine;
mod error;
mod events;
mod execs;
mod frames;
mod host;
mod names;
pub mod node;
pub mod passage;
mod query;
mod remote;
mod reply;
mod routes;
mod scrape;
mod server;
mod stale;
pub mod standalone;
mod syntax;
mod tls;
mod version;

pub use engine::Engine;
pub use node::Node;
pub use remote::{TlsFileError, TlsFiles};
pub use routes::{inspect, open, router};
pub use scrape::serve_metrics;
pub use server::{Host, ServeError, serve};
pub use stale::STALE;
pub use standalone::Standalone;
pub use version::{ApiVersion, MAX_API_VERSION, MIN_API_VERSION};
