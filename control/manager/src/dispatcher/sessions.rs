//! The agents' sessions on this manager. A node's newest session is the valid one.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use control_model::{Generation, NodeId, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::inspections::Inspections;
use crate::liveness::table::LivenessTable;

/// All sessions, and what their heartbeats say.
#[derive(Debug)]
pub struct Sessions {
    open: Mutex<BTreeMap<NodeId, Arc<Session>>>,
    table: Arc<LivenessTable>,
    /// Where agents are sent: to the manager of another cluster.
    elsewhere: watch::Sender<Option<(NodeId, SocketAddr)>>,
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
    /// The stream of assignments.
    pub assignments: Newest,
    progress: Mutex<Progress>,
}

/// Of a session's streams of one kind: the newest one ends that before.
#[derive(Debug, Default)]
pub struct Newest(Mutex<CancellationToken>);

impl Newest {
    /// What ends a stream that opens now; it ends with `closed`, too.
    pub fn open(&self, closed: &CancellationToken) -> CancellationToken {
        let mine = closed.child_token();
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), mine.clone()).cancel();
        mine
    }
}

/// How far the node's data plane is known to be.
#[derive(Debug, Default)]
struct Progress {
    /// Generation of the last message on the assignments stream.
    sent: Generation,
    /// Up to here the state holds nothing for this node that was not sent.
    through: Generation,
    /// What the agent says that it has applied, and not more than was sent, once something was: before that it speaks of what
    /// another manager sent it.
    applied: Generation,
}

impl Progress {
    fn claim(&mut self, applied: Generation) {
        let is_open = self.sent != Generation::default();
        let believed = if is_open { applied.min(self.sent) } else { applied };
        self.applied = self.applied.max(believed);
    }

    /// What is believed: nothing before something was sent; and who has applied all of that is as new as what was looked at.
    fn effective(&self) -> Generation {
        if self.sent == Generation::default() {
            Generation::default()
        } else if self.applied >= self.sent {
            self.through
        } else {
            self.applied
        }
    }
}

impl Sessions {
    pub fn new(table: Arc<LivenessTable>) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), table, elsewhere: watch::Sender::default() })
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
            assignments: Newest::default(),
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

    /// Ends every session, each with a last word: where the manager is that agents are to go to.
    pub fn send_elsewhere(&self, node: NodeId, addr: SocketAddr) {
        self.elsewhere.send_replace(Some((node, addr)));
    }

    /// Where agents are sent, once they are.
    pub fn elsewhere(&self) -> watch::Receiver<Option<(NodeId, SocketAddr)>> {
        self.elsewhere.subscribe()
    }

    /// The agent is alive, and its data plane has applied `applied`.
    pub fn heartbeat(&self, session: &Session, applied: Generation, now: Timestamp) {
        self.table.heard(session.node, session.addr, now);
        self.advance(session, |progress| progress.claim(applied));
    }

    /// A message of generation `sent` goes out.
    pub fn sent(&self, session: &Session, sent: Generation) {
        self.advance(session, |progress| {
            let is_first = progress.sent == Generation::default();
            progress.sent = sent;
            if is_first {
                progress.applied = progress.applied.min(sent);
            }
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

impl SessionGuard {
    /// Of all sessions.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Generation {
        Generation { epoch: 1, index }
    }

    #[test]
    fn nothing_is_believed_beyond_what_was_sent() {
        let table = Arc::<LivenessTable>::default();
        let sessions = Sessions::new(table.clone());
        let me = NodeId::from_bits(1);
        let guard = sessions.open(me, None, Timestamp(0));
        let acks = table.watch_acks();
        let claim = |index| sessions.heartbeat(&guard, at(index), Timestamp(1));
        let believed = || table.snapshot()[&me].applied;
        claim(9);
        assert_eq!(believed(), Generation::default(), "nothing was sent yet");
        // It has this set from another manager, and need not say so again.
        sessions.sent(&guard, at(7));
        assert_eq!((believed(), *acks.borrow()), (at(7), 1));
        for index in 10..100 {
            claim(index);
        }
        claim(u64::MAX);
        assert_eq!((believed(), *acks.borrow()), (at(7), 1), "claims alone wake nobody");
        sessions.looked_through(&guard, at(8));
        assert_eq!(believed(), at(8));
        sessions.sent(&guard, at(9));
        assert_eq!(believed(), at(8), "nor is it for what is sent later");
        // An honest one of a new session.
        let guard = sessions.open(me, None, Timestamp(2));
        sessions.sent(&guard, at(20));
        sessions.heartbeat(&guard, at(12), Timestamp(3));
        sessions.looked_through(&guard, at(25));
        assert_eq!(believed(), at(12));
        sessions.heartbeat(&guard, at(20), Timestamp(4));
        assert_eq!(believed(), at(25));
    }
}
