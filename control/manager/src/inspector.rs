//! Asks nodes what `meshctl` wants to know of them, through whichever manager has their session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_model::{Generation, NodeId};
use control_rpc::pb::dispatcher_client::DispatcherClient;
use control_rpc::{BodyError, Channels, MAX_MESSAGE_BYTES, digest, pb};
use control_store::{ReplicatedStore, State};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tonic::Code;

use crate::assignments::NodeAssignments;
use crate::dispatcher::{AskError, Sessions};

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
        let others = other_managers(&self.store.state(), self.me);
        let mut asked: FuturesUnordered<_> =
            others.into_iter().map(|addr| self.ask_through(addr, node, question, limit)).collect();
        let mut failure = AskError::NoSession;
        while let Some(outcome) = asked.next().await {
            match outcome {
                Ok(answer) => return Ok(answer),
                // A manager that has no session, or is not reached, says less than the node itself.
                Err(AskError::NoSession) => {}
                Err(AskError::Manager(_)) if failure != AskError::NoSession => {}
                Err(error) => failure = error,
            }
        }
        Err(failure)
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
        let request = pb::InspectRequest {
            node_id: node.to_string(),
            question: question.to_owned(),
            limit_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
        };
        let reply = tokio::time::timeout(limit + RELAY_TIME, client.inspect(request)).await;
        match reply.map_err(|_| AskError::Manager(format!("{manager} does not answer")))? {
            Ok(reply) => Ok(reply.into_inner().body),
            Err(status) if status.code() == Code::NotFound => Err(AskError::NoSession),
            Err(status) if status.code() == Code::Aborted => {
                Err(AskError::Refused(status.message().to_owned()))
            }
            Err(status) => Err(AskError::Manager(format!("{manager}: {}", status.message()))),
        }
    }

    /// What this manager's replica wants of `node`: how new it is, and the fingerprint of its assignments.
    pub fn wish(&self, node: NodeId) -> Result<(Generation, String), BodyError> {
        let state = self.store.state();
        let generation =
            Generation { epoch: state.cluster().map_or(0, |cluster| cluster.epoch), index: state.index() };
        Ok((generation, digest(NodeAssignments::new(node, state).complete())?))
    }
}

fn other_managers(state: &State, me: NodeId) -> Vec<SocketAddr> {
    let others = state.nodes().iter().filter(|node| node.id != me);
    others.filter_map(|node| node.manager.map(|manager| manager.addr)).collect()
}
