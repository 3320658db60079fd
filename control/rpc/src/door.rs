//! Who may have how many connections. Those who have proven nothing give way to newer ones, so that nobody is kept out by
//! connections that say nothing; and so do a node's own, beyond what it can need.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control_model::crowd::{Crowd, Source};
use control_model::{NodeId, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Connections that have said nothing yet: each has a file.
pub(crate) const MAX_SILENT: usize = 256;
/// Handshakes under way: each costs some 20 KiB and a signature, and anyone may begin one.
pub(crate) const MAX_HANDSHAKES: usize = 128;
/// A handshake takes less, and is given so much time also where hundreds of nodes come at once from one place.
pub(crate) const SPARED_FOR: Duration = Duration::from_millis(500);
/// Connections of callers without a certificate, who need only the CA: each costs memory and a file, and anyone may
/// open one. A join takes one or two, for moments.
pub(crate) const MAX_ANONYMOUS: usize = 256;
/// Connections of one node. It has one or two to each manager, and for some seconds those that broke.
pub(crate) const MAX_OF_NODE: usize = 32;

/// The connections of one server.
#[derive(Debug)]
pub(crate) struct Door {
    silent: Counted<Source>,
    handshakes: Counted<Source>,
    anonymous: Counted<Source>,
    nodes: Counted<NodeId>,
}

impl Door {
    pub(crate) fn new() -> Self {
        let of_sources = |limit| Crowd::new(limit, limit);
        Self {
            silent: Counted::new(of_sources(MAX_SILENT)),
            handshakes: Counted::new(of_sources(MAX_HANDSHAKES).sparing(SPARED_FOR)),
            anonymous: Counted::new(of_sources(MAX_ANONYMOUS)),
            nodes: Counted::new(Crowd::new(usize::MAX, MAX_OF_NODE)),
        }
    }

    /// A connection that has said nothing yet; it ends with `cut`.
    pub(crate) fn silent(&self, from: Source, cut: &CancellationToken) -> Place<Source> {
        self.silent.enter(from, cut)
    }

    /// One whose handshake begins.
    pub(crate) fn handshake(&self, from: Source, cut: &CancellationToken) -> Place<Source> {
        self.handshakes.enter(from, cut)
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

/// Connections of a [`Crowd`]: the one that gives way is cut.
#[derive(Debug)]
pub struct Counted<K> {
    crowd: Arc<Mutex<Crowd<K, CancellationToken>>>,
    began: Instant,
}

impl<K: Copy + Ord> Counted<K> {
    /// Nobody is there yet.
    pub fn new(crowd: Crowd<K, CancellationToken>) -> Self {
        Self { crowd: Arc::new(Mutex::new(crowd)), began: Instant::now() }
    }

    /// One of `kind` comes; it ends with `cut`, or when it gives way.
    pub fn enter(&self, kind: K, cut: &CancellationToken) -> Place<K> {
        let cut = cut.child_token();
        let now = Timestamp(0).after(self.began.elapsed());
        let mut crowd = self.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, gives_way) = crowd.enter(kind, cut.clone(), now);
        drop(crowd);
        if let Some(other) = gives_way {
            other.cancel();
        }
        Place { of: self.crowd.clone(), number, cut }
    }
}

/// A connection's place; dropping it makes room.
#[derive(Debug)]
pub struct Place<K: Copy + Ord> {
    of: Arc<Mutex<Crowd<K, CancellationToken>>>,
    number: u64,
    /// Cancelled when the connection is to end.
    pub cut: CancellationToken,
}

impl<K: Copy + Ord> Drop for Place<K> {
    fn drop(&mut self) {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).leave(self.number);
    }
}
