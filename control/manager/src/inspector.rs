//! Asks nodes what `meshctl` wants to know of them, through whichever manager has their session.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_model::{Generation, NodeId};
use control_rpc::pb::dispatcher_client::DispatcherClient;
use control_rpc::{BodyError, Channels, MAX_MESSAGE_BYTES, digest, pb};
use control_store::{ReplicatedStore, State};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tonic::{Code, Status};

use crate::assignments::NodeAssignments;
use crate::dispatcher::{AskError, LongAnswer, Sessions, of_message, up_to_its_end};

/// What another manager gets on top of the node's time.
const RELAY_TIME: Duration = Duration::from_secs(2);

/// A manager's way to every node.
#[derive(Clone)]
pub struct Inspector {
    pub(crate) store: Arc<dyn ReplicatedStore>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) channels: Arc<Channels>,
    pub(crate) me: NodeId,
}

impl Inspector {
    /// What `node` answers to `question`, a path and query of the inspection API, within `limit`. The answer is the node's
    /// own word, JSON of any content.
    pub async fn ask(&self, node: NodeId, question: &str, limit: Duration) -> Result<Vec<u8>, AskError> {
        if let Some(session) = self.sessions.of(node) {
            return session.inspections.ask(question, limit).await;
        }
        self.through_others(|addr| self.ask_through(addr, node, question, limit)).await
    }

    /// What `node` answers at length, piece by piece; its own word. Dropped, it ends on the node, too.
    pub async fn open(&self, node: NodeId, question: &str) -> Result<LongAnswer, AskError> {
        if let Some(session) = self.sessions.of(node) {
            return session.inspections.ask_long(question);
        }
        self.through_others(|addr| self.open_through(addr, node, question)).await
    }

    /// The first answer that another manager has.
    async fn through_others<T, F>(&self, ask: impl Fn(SocketAddr) -> F) -> Result<T, AskError>
    where
        F: Future<Output = Result<T, AskError>>,
    {
        let others = other_managers(&self.store.state(), self.me);
        let mut asked: FuturesUnordered<_> = others.into_iter().map(ask).collect();
        let mut failure = AskError::NoSession;
        while let Some(outcome) = asked.next().await {
            match outcome {
                Ok(answer) => return Ok(answer),
                Err(error) => failure = more_telling(failure, error),
            }
        }
        Err(failure)
    }

    async fn open_through(
        &self,
        manager: SocketAddr,
        node: NodeId,
        question: &str,
    ) -> Result<LongAnswer, AskError> {
        let channel = self.channels.for_long_answers(manager);
        let mut client = DispatcherClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let request = request(node, question, Duration::ZERO);
        let reply = tokio::time::timeout(RELAY_TIME, client.inspect_stream(request)).await;
        let reply = reply.map_err(|_| AskError::Manager(format!("{manager} does not answer")))?;
        let pieces = reply.map_err(|status| refusal(manager, &status))?.into_inner();
        let piece = move |piece: Result<pb::AnswerPiece, Status>| match piece {
            Ok(piece) => of_message(piece),
            Err(status) => Err(AskError::Manager(format!("{manager}: {}", status.message()))),
        };
        Ok(up_to_its_end(pieces.map(piece)))
    }

    async fn ask_through(
        &self,
        manager: SocketAddr,
        node: NodeId,
        question: &str,
        limit: Duration,
    ) -> Result<Vec<u8>, AskError> {
        let mut client =
            DispatcherClient::new(self.channels.get(manager)).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let request = request(node, question, limit);
        let reply = tokio::time::timeout(limit + RELAY_TIME, client.inspect(request)).await;
        let reply = reply.map_err(|_| AskError::Manager(format!("{manager} does not answer")))?;
        reply.map(|reply| reply.into_inner().body).map_err(|status| refusal(manager, &status))
    }

    /// What this manager's replica wants of `node`: how new it is, and the fingerprint of its assignments.
    pub fn wish(&self, node: NodeId) -> Result<(Generation, String), BodyError> {
        let state = self.store.state();
        let generation =
            Generation { epoch: state.cluster().map_or(0, |cluster| cluster.epoch), index: state.index() };
        Ok((generation, digest(NodeAssignments::new(node, state).complete())?))
    }
}

fn request(node: NodeId, question: &str, limit: Duration) -> pb::InspectRequest {
    pb::InspectRequest {
        node_id: node.to_string(),
        question: question.to_owned(),
        limit_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
    }
}

/// What the manager that was asked says why there is no answer.
fn refusal(manager: SocketAddr, status: &Status) -> AskError {
    match status.code() {
        Code::NotFound => AskError::NoSession,
        Code::Aborted => AskError::Refused(status.message().to_owned()),
        _ => AskError::Manager(format!("{manager}: {}", status.message())),
    }
}

/// A manager that has no session, or is not reached, says less than the node itself.
fn more_telling(known: AskError, new: AskError) -> AskError {
    match new {
        AskError::NoSession => known,
        AskError::Manager(_) if known != AskError::NoSession => known,
        new => new,
    }
}

fn other_managers(state: &State, me: NodeId) -> Vec<SocketAddr> {
    let others = state.nodes().iter().filter(|node| node.id != me);
    others.filter_map(|node| node.manager.map(|manager| manager.addr)).collect()
}
