//! The dispatcher: sessions of agents, their heartbeats, their assignments, and what they report of their tasks.
//!
//! Any manager serves any agent from its own replica.

mod attachments;
mod claims;
mod inspections;
mod sessions;
mod status;
mod stream;
mod trust;
mod updates;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use control_consensus::Leadership;
use control_model::object::{NodeDescription, TaskStatus};
use control_model::spec::Role;
use control_model::{Generation, NodeId, TaskId};
use control_rpc::pb::dispatcher_server::Dispatcher as Service;
use control_rpc::{decode, encode, pb, peer, require_manager, require_node};
use control_store::ReplicatedStore;
use futures::{Stream, StreamExt as _};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

pub use inspections::{AskError, LongAnswer};
pub(crate) use inspections::{of_message, up_to_its_end};
pub use sessions::{Session, SessionGuard, Sessions};
pub use status::{StatusWriter, checked_report};
pub(crate) use stream::{role_to_hold, role_word};
pub use trust::{Lie, Trust};
pub use updates::{Updates, generation_of};

use crate::clock;
use crate::liveness::HEARTBEAT_PERIOD;
use crate::liveness::reporter::take_report;
use crate::liveness::table::LivenessTable;

/// The service behind the RPC.
pub struct Dispatcher {
    store: Arc<dyn ReplicatedStore>,
    sessions: Arc<Sessions>,
    statuses: StatusWriter,
    trust: Arc<Trust>,
    leadership: watch::Receiver<Leadership>,
}

/// A node that takes questions names its session first, and at once.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Of a node, as it is written. Engine, plugins, resources and addresses take a few hundred bytes.
const MAX_DESCRIPTION_BYTES: usize = 64 << 10;

type Reply<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Dispatcher {
    /// Serves from `store`; what agents say goes into `table`.
    /// Needs a tokio runtime.
    pub fn new(
        store: Arc<dyn ReplicatedStore>,
        table: Arc<LivenessTable>,
        leadership: watch::Receiver<Leadership>,
    ) -> Self {
        let statuses = StatusWriter::start(store.clone());
        Self { store, sessions: Sessions::new(table), statuses, trust: Arc::default(), leadership }
    }

    /// What nodes were refused.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// The open sessions.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Opens `node`'s session and returns the stream of what it must know.
    pub async fn open_session(
        &self,
        node: NodeId,
        addr: Option<IpAddr>,
        description: NodeDescription,
    ) -> Result<BoxStream<pb::SessionMessage>, Status> {
        if self.leadership.borrow().leader.is_none() {
            return Err(Status::unavailable("this manager knows no leader"));
        }
        self.trust.session(node, clock::monotonic())?;
        self.register(node, addr, description).await?;
        let state = self.store.state();
        self.trust.retain(state.nodes().len(), |id| state.nodes().get(&id).is_some());
        let guard = self.sessions.open(node, addr, clock::monotonic());
        Ok(Box::pin(stream::session_messages(self.store.clone(), guard)))
    }

    /// The stream of `node`'s assignments, in its session.
    pub fn open_assignments(
        &self,
        node: NodeId,
        session_id: &str,
    ) -> Result<BoxStream<pb::AssignmentPiece>, Status> {
        let session = self.session(node, session_id)?;
        self.trust.assignments(node, clock::monotonic())?;
        Ok(Box::pin(stream::assignment_messages(self.store.clone(), self.sessions.clone(), session)))
    }

    /// `node` is alive, and its data plane has applied `applied`, of what it was sent.
    pub fn heartbeat(&self, node: NodeId, session_id: &str, applied: Generation) -> Result<(), Status> {
        let (session, now) = (self.session(node, session_id)?, clock::monotonic());
        self.trust.heartbeat(node, now)?;
        self.sessions.heartbeat(&session, applied, now);
        Ok(())
    }

    /// Writes what `node` says of its tasks; returns when it is applied.
    pub async fn report(
        &self,
        node: NodeId,
        session_id: &str,
        statuses: Vec<(TaskId, TaskStatus)>,
    ) -> Result<(), Status> {
        self.session(node, session_id)?;
        self.trust.statuses(node, statuses.len(), clock::monotonic())?;
        self.statuses.report(node, statuses).await
    }

    /// Writes the description if it says something new. Refused: a node that was removed, and one that claims what is
    /// another's. `source` is where the session comes from.
    async fn register(
        &self,
        node: NodeId,
        source: Option<IpAddr>,
        description: NodeDescription,
    ) -> Result<(), Status> {
        if self.store.state().nodes().get(&node).is_none() {
            // A replica that is behind must not turn away a node that just joined.
            self.store.linearize().await.map_err(|error| Status::unavailable(error.to_string()))?;
        }
        let state = self.store.state();
        let known = state.nodes().get(&node).ok_or_else(|| removed(node))?;
        if encode(&description).map_or(usize::MAX, |body| body.len()) > MAX_DESCRIPTION_BYTES {
            return Err(Status::invalid_argument("a description of more than 64 KiB"));
        }
        claims::check(&state, node, source, &description)
            .map_err(|foreign| Status::permission_denied(foreign.to_string()))?;
        let changes = claims::changes(&state, known, source, description);
        if !changes.is_empty() {
            self.store.propose(changes).await.map_err(|error| Status::unavailable(error.to_string()))?;
        }
        Ok(())
    }

    /// A node that has seen a later epoch than this replica's obeys the other side of a forced new cluster. It is not
    /// believed further than that: only managers may tell managers that they are fenced off.
    fn check_epoch(&self, seen: u64) -> Result<(), Status> {
        let own = self.store.generation().epoch;
        if seen <= own {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this manager's state is of fencing epoch {own}, the node has seen {seen}: a new cluster was forced without this \
             manager, or this replica is behind"
        )))
    }

    /// A certificate outlives its node's demotion or removal; the state does not.
    fn check_manager(&self, node: NodeId) -> Result<(), Status> {
        match self.store.state().nodes().get(&node) {
            Some(known) if role_to_hold(known) == Role::Manager => Ok(()),
            _ => Err(Status::permission_denied("this node is no manager of the cluster any more")),
        }
    }

    /// The session of the node that another manager asks for.
    fn session_of(&self, node: &str) -> Result<Arc<Session>, Status> {
        let node = node.parse().map_err(|_| Status::invalid_argument("malformed node id"))?;
        self.sessions.of(node).ok_or_else(|| Status::not_found("no session"))
    }

    fn session(&self, node: NodeId, id: &str) -> Result<Arc<Session>, Status> {
        self.sessions
            .get(node, id)
            .ok_or_else(|| Status::failed_precondition("the session is not valid any more"))
    }
}

/// What a node is told that is no member any more.
pub(crate) fn removed(node: NodeId) -> Status {
    Status::not_found(format!("node {node} is not a member of this cluster; it may have been removed"))
}

#[tonic::async_trait]
impl Service for Dispatcher {
    type SessionStream = BoxStream<pb::SessionMessage>;
    type AssignmentsStream = BoxStream<pb::AssignmentPiece>;
    type InspectionsStream = BoxStream<pb::InspectionQuestion>;
    type InspectStreamStream = BoxStream<pb::AnswerPiece>;

    async fn session(&self, request: Request<pb::SessionRequest>) -> Reply<Self::SessionStream> {
        let node = require_node(&request)?.node_id;
        let addr = peer(&request).map(|info| info.remote.ip().to_canonical());
        let open = async {
            let description = decode(&request.get_ref().description)?;
            self.check_epoch(request.get_ref().epoch)?;
            Ok(Response::new(self.open_session(node, addr, description).await?))
        };
        self.trust.note(node, open.await)
    }

    async fn heartbeat(&self, request: Request<pb::HeartbeatRequest>) -> Reply<pb::HeartbeatReply> {
        let node = require_node(&request)?.node_id;
        let request = request.into_inner();
        let applied = request.applied.unwrap_or_default();
        let applied = Generation { epoch: applied.epoch, index: applied.index };
        self.trust.note(node, Dispatcher::heartbeat(self, node, &request.session_id, applied))?;
        let period_ms = u32::try_from(HEARTBEAT_PERIOD.as_millis()).unwrap_or(u32::MAX);
        Ok(Response::new(pb::HeartbeatReply { period_ms }))
    }

    async fn assignments(&self, request: Request<pb::AssignmentsRequest>) -> Reply<Self::AssignmentsStream> {
        let node = require_node(&request)?.node_id;
        let opened = self.open_assignments(node, &request.get_ref().session_id);
        Ok(Response::new(self.trust.note(node, opened)?))
    }

    async fn update_task_status(&self, request: Request<pb::TaskStatusRequest>) -> Reply<pb::Empty> {
        let node = require_node(&request)?.node_id;
        let report = async {
            let statuses: Vec<(TaskId, TaskStatus)> = decode(&request.get_ref().body)?;
            self.report(node, &request.get_ref().session_id, statuses).await?;
            Ok(Response::new(pb::Empty {}))
        };
        self.trust.note(node, report.await)
    }

    async fn attach(&self, request: Request<pb::AttachMessage>) -> Reply<pb::Empty> {
        let node = require_node(&request)?.node_id;
        self.take_attach(node, request.get_ref()).await?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn detach(&self, request: Request<pb::DetachMessage>) -> Reply<pb::Empty> {
        let node = require_node(&request)?.node_id;
        self.take_detach(node, request.get_ref()).await?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn inspections(
        &self,
        request: Request<Streaming<pb::InspectionAnswer>>,
    ) -> Reply<Self::InspectionsStream> {
        let node = require_node(&request)?.node_id;
        let mut answers = request.into_inner();
        let first = tokio::time::timeout(FIRST_ANSWER_WITHIN, answers.message());
        let late = |_| Status::deadline_exceeded("no session was named");
        let first = first.await.map_err(late)??.unwrap_or_default();
        let session = self.session(node, &first.session_id)?;
        Ok(Response::new(Box::pin(inspections::questions(session, answers))))
    }

    async fn inspect(&self, request: Request<pb::InspectRequest>) -> Reply<pb::InspectReply> {
        self.check_manager(require_manager(&request)?.node_id)?;
        let pb::InspectRequest { node_id, question, limit_ms } = request.into_inner();
        let session = self.session_of(&node_id)?;
        let limit = Duration::from_millis(limit_ms.into());
        match session.inspections.ask(&question, limit).await {
            Ok(body) => Ok(Response::new(pb::InspectReply { body })),
            Err(error) => Err(Status::aborted(error.to_string())),
        }
    }

    async fn stream_answer(&self, request: Request<Streaming<pb::AnswerPiece>>) -> Reply<pb::Empty> {
        let node = require_node(&request)?.node_id;
        let mut answer = request.into_inner();
        let first = tokio::time::timeout(FIRST_ANSWER_WITHIN, answer.message());
        let late = |_| Status::deadline_exceeded("no session was named");
        let first = first.await.map_err(late)??.unwrap_or_default();
        let session = self.session(node, &first.session_id)?;
        session.inspections.take_long(first.id, answer, &session.closed).await;
        Ok(Response::new(pb::Empty {}))
    }

    async fn inspect_stream(&self, request: Request<pb::InspectRequest>) -> Reply<Self::InspectStreamStream> {
        self.check_manager(require_manager(&request)?.node_id)?;
        let pb::InspectRequest { node_id, question, .. } = request.into_inner();
        let session = self.session_of(&node_id)?;
        let answer = session.inspections.ask_long(&question);
        let answer = answer.map_err(|error| Status::aborted(error.to_string()))?;
        let pieces = answer.map(|piece| match piece {
            Ok(body) => pb::AnswerPiece { body, ..pb::AnswerPiece::default() },
            Err(error) => pb::AnswerPiece { error: error.to_string(), ..pb::AnswerPiece::default() },
        });
        let last = pb::AnswerPiece { last: true, ..pb::AnswerPiece::default() };
        let pieces = pieces.chain(futures::stream::once(std::future::ready(last)));
        Ok(Response::new(Box::pin(pieces.map(Ok))))
    }

    async fn report_liveness(&self, request: Request<pb::LivenessReport>) -> Reply<pb::Empty> {
        self.check_manager(require_manager(&request)?.node_id)?;
        take_report(self.sessions.table(), request.get_ref(), clock::monotonic())?;
        Ok(Response::new(pb::Empty {}))
    }
}

#[cfg(test)]
mod tests;
