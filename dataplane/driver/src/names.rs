//! What the DNS process is told, and when a sandbox has names.

use std::path::PathBuf;
use std::time::Duration;

use dataplane_dns::{DnsClient, DnsStatus, TtlPolicy, ZoneMaker};
use dataplane_model::{KernelState, NodeView, SandboxId};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::options::DriverOptions;

/// The DNS process gets this long to close the sockets of sandboxes that leave. An open socket keeps an empty namespace
/// alive and nothing else: the links are removed one by one.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The names of the node's sandboxes, or none at all.
pub(crate) enum Names {
    Off,
    Served {
        client: DnsClient,
        status: watch::Receiver<DnsStatus>,
        netns_dir: PathBuf,
        ttl: TtlPolicy,
        maker: Box<ZoneMaker>,
    },
}

impl Names {
    /// Starts or finds the DNS process. Needs a tokio runtime.
    pub(crate) fn start(options: &DriverOptions) -> Self {
        let Some(launch) = &options.dns else { return Self::Off };
        let client = DnsClient::start(options.dns_socket(), Some(launch.clone()));
        let status = client.status();
        let (netns_dir, ttl, maker) = (options.netns_dir(), options.dns_ttl, Box::default());
        Self::Served { client, status, netns_dir, ttl, maker }
    }

    /// Serves the names of `view` in those of its sandboxes that `held` has. Where no name has changed the process is told again
    /// only if `held` may have: it looks then whether a sandbox is still the same namespace.
    pub(crate) fn serve(&mut self, view: &NodeView, held: &KernelState, has_other_sandboxes: bool) {
        if let Self::Served { client, netns_dir, ttl, maker, .. } = self
            && (maker.take(view) || has_other_sandboxes)
        {
            let mut zones = maker.zones(netns_dir, *ttl);
            zones.sandboxes.retain(|id, _| held.sandboxes.contains_key(id));
            client.set_zones(zones);
        }
    }

    /// Returns when none of `leaving` is served any more, or soon after.
    pub(crate) async fn wait_until_closed(&mut self, leaving: &[SandboxId]) {
        let Self::Served { status, .. } = self else { return };
        let closed = status
            .wait_for(|status| !status.connected || !leaving.iter().any(|id| status.served.contains(id)));
        if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::warn!("the DNS process still holds sockets of sandboxes that leave");
        }
    }

    /// Returns when something changed.
    pub(crate) async fn changed(&mut self) {
        if let Self::Served { status, .. } = self
            && status.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }

    pub(crate) fn status(&self) -> Option<DnsStatus> {
        match self {
            Self::Off => None,
            Self::Served { status, .. } => Some(status.borrow().clone()),
        }
    }

    /// Ends the DNS process: for a node that leaves.
    pub(crate) async fn stop(self) {
        if let Self::Served { client, .. } = self
            && let Err(error) = client.stop_server().await
        {
            tracing::debug!(%error, "the DNS process did not answer when told to end");
        }
    }
}
