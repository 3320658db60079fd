//! Who may have how many connections. Those who have proven nothing give way to newer ones, so that nobody is kept out by
//! connections that say nothing; and so do a node's own, beyond what it can need.

use std::sync::{Arc, Mutex, PoisonError};

use control_model::NodeId;
use control_model::crowd::{Crowd, Source};
use tokio_util::sync::CancellationToken;

/// Connections whose handshake is not done: each has a file, and some 20 KiB when it has begun.
pub(crate) const MAX_UNPROVEN: usize = 256;
/// Connections of callers without a certificate, who need only the CA: each costs memory and a file, and anyone may
/// open one. A join takes one or two, for moments.
pub(crate) const MAX_ANONYMOUS: usize = 256;
/// Connections of one node. It has one or two to each manager, and for some seconds those that broke.
pub(crate) const MAX_OF_NODE: usize = 32;

/// The connections of one server.
#[derive(Debug)]
pub(crate) struct Door {
    unproven: Counted<Source>,
    anonymous: Counted<Source>,
    nodes: Counted<NodeId>,
}

impl Door {
    pub(crate) fn new() -> Self {
        let counted = |limit| Counted(Arc::new(Mutex::new(Crowd::new(limit, limit))));
        let nodes = Counted(Arc::new(Mutex::new(Crowd::new(usize::MAX, MAX_OF_NODE))));
        Self { unproven: counted(MAX_UNPROVEN), anonymous: counted(MAX_ANONYMOUS), nodes }
    }

    /// A connection that has yet to prove anything; it ends with `cut`.
    pub(crate) fn unproven(&self, from: Source, cut: &CancellationToken) -> Place<Source> {
        self.unproven.enter(from, cut)
    }

    /// One of a caller without a certificate.
    pub(crate) fn anonymous(&self, from: Source, cut: &CancellationToken) -> Place<Source> {
        self.anonymous.enter(from, cut)
    }

    /// One of a node.
    pub(crate) fn node(&self, node: NodeId, cut: &CancellationToken) -> Place<NodeId> {
        self.nodes.enter(node, cut)
    }
}

#[derive(Debug)]
struct Counted<K>(Arc<Mutex<Crowd<K, CancellationToken>>>);

impl<K: Copy + Ord> Counted<K> {
    fn enter(&self, kind: K, cut: &CancellationToken) -> Place<K> {
        let cut = cut.child_token();
        let (number, gives_way) =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).enter(kind, cut.clone());
        if let Some(other) = gives_way {
            other.cancel();
        }
        Place { of: self.0.clone(), number, cut }
    }
}

/// A connection's place; dropping it makes room.
#[derive(Debug)]
pub(crate) struct Place<K: Copy + Ord> {
    of: Arc<Mutex<Crowd<K, CancellationToken>>>,
    number: u64,
    /// Cancelled when the connection is to end.
    pub(crate) cut: CancellationToken,
}

impl<K: Copy + Ord> Drop for Place<K> {
    fn drop(&mut self) {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).leave(self.number);
    }
}
