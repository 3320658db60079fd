//! One look at all sockets after a start: a driver that was killed between an endpoint's removal and the reset of its
//! sockets has left them silent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use dataplane_kernel::Sockets;
use dataplane_model::{KernelState, SandboxId};
use tokio::task::JoinHandle;

/// Who the sockets of a sandbox, or of the node (`None`), are connected to.
pub(crate) type Peers = BTreeMap<Option<SandboxId>, BTreeSet<Ipv4Addr>>;

/// How far the look has come.
#[derive(Default)]
pub(crate) enum Sweep {
    #[default]
    NotBegun,
    UnderWay(JoinHandle<Peers>),
    Done,
}

impl Sweep {
    /// Begins, unless it has, in the sandboxes of `held` and the node: away from the driver's thread, whose network namespace
    /// it takes over. Needs a tokio runtime.
    pub(crate) fn begin_once(&mut self, sockets: &impl Sockets, held: &KernelState) {
        if let Self::NotBegun = self {
            let places: Vec<Option<SandboxId>> =
                held.sandboxes.keys().cloned().map(Some).chain([None]).collect();
            let sockets = sockets.clone();
            *self = Self::UnderWay(tokio::task::spawn_blocking(move || look(&sockets, places)));
        }
    }

    /// Returns once, when all was looked at. May be dropped before.
    pub(crate) async fn peers(&mut self) -> Peers {
        let Self::UnderWay(task) = self else { return std::future::pending().await };
        let peers = task.await;
        *self = Self::Done;
        peers.unwrap_or_else(|error| {
            tracing::warn!(%error, "the look at the sockets ended early");
            Peers::new()
        })
    }
}

fn look(sockets: &impl Sockets, places: Vec<Option<SandboxId>>) -> Peers {
    let look = |place: Option<SandboxId>| match sockets.peers(place.as_ref()) {
        Ok(peers) => Some((place, peers)),
        Err(error) => {
            tracing::warn!(%error, sandbox = ?place, "its sockets can't be looked at");
            None
        }
    };
    places.into_iter().filter_map(look).collect()
}
