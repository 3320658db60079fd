//! What the API needs of containers that no service made, and of the streams of all. Implemented as [`crate::engine`] is.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use control_model::OutputStream;
use control_model::standalone::{ConsoleSize, RestartRule, StandaloneSpec, WaitFor};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use ipnetwork::IpNetwork;
use tokio::io::AsyncWrite;

use crate::engine::EngineError;

/// Containers by their ids.
#[async_trait]
pub trait Standalone: Send + Sync + 'static {
    /// Makes one of an image that is here, with a name that is drawn if it is empty; gives its id.
    async fn create(&self, name: &str, spec: StandaloneSpec) -> Result<String, EngineError>;
    /// False if it runs already.
    async fn start(&self, id: &str) -> Result<bool, EngineError>;
    /// Stops it as [`crate::Engine::stop`] does, if it runs, and starts it.
    async fn restart(
        &self,
        id: &str,
        signal: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<(), EngineError>;
    /// By force also one that runs; with `volumes`, those without a user's name go too.
    async fn remove(&self, id: &str, force: bool, volumes: bool) -> Result<(), EngineError>;
    /// Gives the name that it had.
    async fn rename(&self, id: &str, name: &str) -> Result<String, EngineError>;
    async fn set_rule(&self, id: &str, rule: RestartRule) -> Result<(), EngineError>;
    /// The code of the end that is waited for, of any container.
    async fn wait(&self, id: &str, what: WaitFor) -> Result<BoxFuture<'static, i32>, EngineError>;
    /// The streams of any container's own process; of one that does not run, from its next start on.
    async fn attach(&self, id: &str, with_input: bool) -> Result<Attachment, EngineError>;
    /// Sizes the terminal of any container.
    async fn resize(&self, id: &str, size: ConsoleSize) -> Result<(), EngineError>;
}

/// The streams of a container's own process.
pub struct Attachment {
    /// Dropped, it may read the end.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Until the process ends.
    pub output: BoxStream<'static, (OutputStream, Vec<u8>)>,
}

/// What a container has that no service made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    pub spec: StandaloneSpec,
    pub n_restarts: u32,
    /// It has ended, and is about to be started again.
    pub is_restarting: bool,
    pub is_removing: bool,
    /// While it runs, if it has a way out.
    pub place: Option<Place>,
}

/// Where a container is behind its node's gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub address: IpNetwork,
    pub gateway: Option<IpAddr>,
    pub mac: String,
}
