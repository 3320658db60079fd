//! The agents' sessions on this manager. A node's newest session is the valid one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use control_model::{Generation, NodeId, Timestamp};
use tokio_util::sync::CancellationToken;

use super::inspections::Inspections;
use crate::liveness::table::LivenessTable;

/// All sessions, and what their heartbeats say.
#[derive(Debug)]
pub struct Sessions {
    open: Mutex<BTreeMap<NodeId, Arc<Session>>>,
    table: Arc<LivenessTable>,
}

/// One agent's session.
#[derive(Debug)]
pub struct Session {
    pub id: String,
    pub node: NodeId,
    addr: Option<IpAddr>,
    /// Cancelled when a newer session takes its place.
    pub closed: CancellationToken,
    /// What managers ask of the node.
    pub inspections: Inspections,
    progress: Mutex<Progress>,
}

/// How far the node's data plane is known to be.
#[derive(Debug, Default)]
struct Progress {
    /// Generation of the last message on the assignments stream.
    sent: Generation,
    /// Up to here the state holds nothing for this node that was not sent.
    through: Generation,
    /// What the agent acknowledged.
    applied: Generation,
}

impl Progress {
    /// What was acknowledged, or more: a node that has applied all that was sent is as new as what was looked at.
    fn effective(&self) -> Generation {
        if self.sent != Generation::default() && self.applied >= self.sent {
            self.applied.max(self.through)
        } else {
            self.applied
        }
    }
}

impl Sessions {
    pub fn new(table: Arc<LivenessTable>) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), table })
    }

    /// Where heartbeats go.
    pub fn table(&self) -> &LivenessTable {
        &self.table
    }

    /// Opens a session, which ends the one that the node had before.
    pub fn open(self: &Arc<Self>, node: NodeId, addr: Option<IpAddr>, now: Timestamp) -> SessionGuard {
        let session = Arc::new(Session {
            id: format!("{:032x}", rand::random::<u128>()),
            node,
            addr,
            closed: CancellationToken::new(),
            inspections: Inspections::default(),
            progress: Mutex::default(),
        });
        let before = self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(node, session.clone());
        if let Some(before) = before {
            before.closed.cancel();
        }
        self.table.heard(node, addr, now);
        SessionGuard { sessions: self.clone(), session }
    }

    /// The node's valid session, if `id` names it.
    pub fn get(&self, node: NodeId, id: &str) -> Option<Arc<Session>> {
        self.of(node).filter(|session| session.id == id)
    }

    /// The node's valid session.
    pub fn of(&self, node: NodeId) -> Option<Arc<Session>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&node).filter(|s| !s.closed.is_cancelled()).cloned()
    }

    /// Ends every session.
    pub fn close_all(&self) {
        for session in self.open.lock().unwrap_or_else(PoisonError::into_inner).values() {
            session.closed.cancel();
        }
    }

    /// The agent is alive, and its data plane has applied `applied`.
    pub fn heartbeat(&self, session: &Session, applied: Generation, now: Timestamp) {
        self.table.heard(session.node, session.addr, now);
        self.advance(session, |progress| progress.applied = progress.applied.max(applied));
    }

    /// A message of generation `sent` goes out.
    pub fn sent(&self, session: &Session, sent: Generation) {
        self.advance(session, |progress| {
            progress.sent = sent;
            progress.through = progress.through.max(sent);
        });
    }

    /// Everything up to `through` was looked at and needs no message.
    pub fn looked_through(&self, session: &Session, through: Generation) {
        self.advance(session, |progress| progress.through = progress.through.max(through));
    }

    fn advance(&self, session: &Session, change: impl FnOnce(&mut Progress)) {
        let mut progress = session.progress.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut progress);
        let effective = progress.effective();
        drop(progress);
        self.table.acknowledged(session.node, effective);
    }
}

/// Keeps a session open; dropping it closes the session.
#[derive(Debug)]
pub struct SessionGuard {
    sessions: Arc<Sessions>,
    session: Arc<Session>,
}

impl std::ops::Deref for SessionGuard {
    type Target = Arc<Session>;
    fn deref(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.session.closed.cancel();
        let mut open = self.sessions.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.get(&self.session.node).is_some_and(|current| Arc::ptr_eq(current, &self.session)) {
            open.remove(&self.session.node);
        }
    }
}
