//! The two streams to an agent: what it must know of the cluster, and its assignments.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use control_model::spec::Role;
use control_model::{Node, NodeId, ObjectRef};
use control_rpc::{assignment_pieces, encode, pb};
use control_store::{Event, EventBatch, EventKind, EventReceiver, ReplicatedStore, State};
use futures::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::removed;
use super::sessions::{Session, SessionGuard, Sessions};
use super::updates::{Updates, generation_of};

/// Writes that come within this time of each other go out as one message: a burst of task changes costs each agent
/// a few messages, and a single change stays far below what anyone would notice.
const GATHER: Duration = Duration::from_millis(10);
/// A replica that has not caught up by then serves what it has: agents refuse what is older than what they know.
const CATCH_UP: Duration = Duration::from_secs(2);

/// The first message at once; another one whenever managers, roles or the root change. Ends with the session, or when agents are
/// sent elsewhere; then the last one says where.
pub fn session_messages(
    store: Arc<dyn ReplicatedStore>,
    guard: SessionGuard,
) -> impl Stream<Item = Result<pb::SessionMessage, Status>> + Send {
    try_stream! {
        let (mut state, mut events) = store.subscribe();
        let mut elsewhere = guard.sessions().elsewhere();
        let mut last = None;
        loop {
            let message = session_message(&state, &guard)?;
            if last.as_ref() != Some(&message) {
                last = Some(message.clone());
                yield message;
            }
            let waited = tokio::select! {
                waited = wait_for_members(&mut events, &guard) => waited,
                Ok(_) = elsewhere.wait_for(Option::is_some) => Waited::Closed,
            };
            match waited {
                Waited::Changed(()) => state = store.state(),
                Waited::Lagged => (state, events) = store.subscribe(),
                Waited::Closed => break,
            }
        }
        let sent = *elsewhere.borrow();
        if let Some(message) = last_message(&guard, last, sent) {
            yield message;
        }
    }
}

/// As the one before, but for the manager that the agent is sent to. Not to one in the name of its own node: that one was made out of
/// this node, and would take both for one.
fn last_message(
    session: &Session,
    before: Option<pb::SessionMessage>,
    manager: Option<(NodeId, SocketAddr)>,
) -> Option<pb::SessionMessage> {
    let (node, addr) = manager.filter(|(node, _)| *node != session.node)?;
    let manager = pb::ManagerAddr { node_id: node.to_string(), addr: addr.to_string() };
    Some(pb::SessionMessage { managers: vec![manager], ..before? })
}

/// What ended a stream's wait.
enum Waited<T> {
    Changed(T),
    /// Events were missed: everything is to be made of the present state.
    Lagged,
    /// The session has ended.
    Closed,
}

/// Waits for the next batch.
async fn next_batch(events: &mut EventReceiver, closed: &CancellationToken) -> Waited<Arc<EventBatch>> {
    match closed.run_until_cancelled(events.next()).await {
        Some(Some(batch)) => Waited::Changed(batch),
        Some(None) => Waited::Lagged,
        None => Waited::Closed,
    }
}

/// Waits for a change of the cluster, of who the managers are, or of the session's node. Most changes of nodes are none of
/// these, and cost each session a look at two fields.
async fn wait_for_members(events: &mut EventReceiver, session: &Session) -> Waited<()> {
    loop {
        let batch = match next_batch(events, &session.closed).await {
            Waited::Changed(batch) => batch,
            Waited::Lagged => return Waited::Lagged,
            Waited::Closed => return Waited::Closed,
        };
        if batch.events.iter().any(|event| concerns(session, event)) {
            return Waited::Changed(());
        }
    }
}

/// Whether a session's message may be another after the event.
fn concerns(session: &Session, event: &Event) -> bool {
    let manager = |node: &Option<Arc<Node>>| node.as_ref().and_then(|node| node.manager);
    match &event.kind {
        EventKind::Cluster(..) => true,
        EventKind::Node(before, after) => {
            event.object == ObjectRef::Node(session.node) || manager(before) != manager(after)
        }
        EventKind::Service(..) | EventKind::Task(..) | EventKind::Network(..) | EventKind::Dependency(..) => {
            false
        }
    }
}

fn session_message(state: &State, session: &Session) -> Result<pb::SessionMessage, Status> {
    let node = state.nodes().get(&session.node).ok_or_else(|| removed(session.node))?;
    let cluster = state.cluster().ok_or_else(|| Status::unavailable("the cluster is not ready yet"))?;
    let managers = state.nodes().iter().filter_map(|n| {
        let addr = n.manager?.addr.to_string();
        Some(pb::ManagerAddr { node_id: n.id.to_string(), addr })
    });
    Ok(pb::SessionMessage {
        session_id: session.id.clone(),
        managers: managers.collect(),
        desired_role: role_word(role_to_hold(node)).to_owned(),
        root_pem: cluster.ca.root_cert.clone(),
        gossip_keys: encode(&cluster.gossip_keys)?,
        issuer: cluster.ca.issuer.map(|digest| digest.to_vec()).unwrap_or_default(),
        epoch: cluster.epoch,
    })
}

/// The role that the node's certificate should say: a manager that was demoted stays one until Raft has let it go.
pub fn role_to_hold(node: &Node) -> Role {
    if node.manager.is_some() { Role::Manager } else { node.spec.role }
}

/// The word of a role in messages.
pub fn role_word(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager",
        Role::Worker => "worker",
    }
}

/// The complete set, then increments; a complete set again when events were missed. Ends with the session, and when
/// another such stream is opened in it.
pub fn assignment_messages(
    store: Arc<dyn ReplicatedStore>,
    sessions: Arc<Sessions>,
    session: Arc<Session>,
) -> impl Stream<Item = Result<pb::AssignmentPiece, Status>> + Send {
    let closed = session.assignments.open(&session.closed);
    try_stream! {
        // Without a leader the replica's state is still better than none.
        let _ = tokio::time::timeout(CATCH_UP, store.linearize()).await;
        loop {
            let (state, mut events) = store.subscribe();
            let (mut updates, complete) = Updates::open(session.node, state);
            sessions.sent(&session, updates.generation());
            let pieces = assignment_pieces(&complete)?;
            drop(complete);
            for piece in pieces {
                yield piece;
            }
            let end = loop {
                let (state, happened) = match next_batches(&mut events, &closed).await {
                    Waited::Changed(batches) => batches,
                    end => break end,
                };
                let through = generation_of(&state);
                let Some(update) = updates.advance(state, &happened) else {
                    sessions.looked_through(&session, through);
                    continue;
                };
                sessions.sent(&session, updates.generation());
                for piece in assignment_pieces(&update)? {
                    yield piece;
                }
            };
            if matches!(end, Waited::Closed) {
                break;
            }
        }
    }
}

/// The next batches' events, with those that follow closely, and the state after them.
async fn next_batches(
    events: &mut EventReceiver,
    closed: &CancellationToken,
) -> Waited<(Arc<State>, Vec<Event>)> {
    let first = match next_batch(events, closed).await {
        Waited::Changed(batch) => batch,
        Waited::Lagged => return Waited::Lagged,
        Waited::Closed => return Waited::Closed,
    };
    let (mut state, mut happened) = (first.state.clone(), first.events.clone());
    tokio::time::sleep(GATHER).await;
    while let Ok(batch) = events.try_recv() {
        state = batch.state.clone();
        happened.extend_from_slice(&batch.events);
    }
    Waited::Changed((state, happened))
}
