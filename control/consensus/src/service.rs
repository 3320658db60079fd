//! The server side of the Raft RPC. Every call is for managers alone.

use std::sync::Arc;

use control_model::NodeId;
use control_model::spec::Role;
use control_rpc::pb::{self, Empty, Payload};
use control_rpc::{certificate_issued, decode, encode, require_manager};
use control_store::ReplicatedStore as _;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::Fatal;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use crate::consensus::Consensus;
use crate::ended;
use crate::error::MembershipError;
use crate::fence;
use crate::limits::{LEADER_MISSED_AFTER, MAX_ENTRY_BYTES, MAX_SNAPSHOT_BYTES};
use crate::network::{SnapshotHead, To};
use crate::types::{Member, Proposal, TypeConfig};
use crate::write::Attempt;

/// Metadata of a refused [`pb::raft_server::Raft::join`]: the leader's address.
pub(crate) const LEADER_ADDR: &str = "mesh-leader-addr";

/// What a manager says that does not lead.
pub(crate) const NOT_LEADER: &str = "this manager is not the leader";

/// Serves other managers.
pub(crate) struct RaftService {
    consensus: Arc<Consensus>,
}

impl RaftService {
    pub(crate) fn new(consensus: Arc<Consensus>) -> Self {
        Self { consensus }
    }

    /// The message, if it is from a manager, speaks for that one, and is for this Raft id.
    fn receive<T: DeserializeOwned + Voted>(&self, request: Request<Payload>) -> Result<T, Status> {
        let from = self.admit_message(&request)?;
        let message: T = self.unwrap(&request.into_inner().body)?;
        self.check_voter(from, message.vote())?;
        Ok(message)
    }

    /// Lets a member's Raft message in. The certificate alone is not enough: it outlives a demotion or removal by
    /// weeks. A replica that is behind may not know its leader, and must hear it to learn of it (Raft dissertation,
    /// section 4.1): it goes by the certificate, unless that was made before its node ceased to be a manager. One that this
    /// replica knows as a worker and never knew as a manager is a manager since then, as its certificate shows.
    fn admit_message<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let node = require_manager(request)?.node_id;
        let until = self.consensus.state().former_managers().until(node);
        let is_later = until.is_none_or(|until| certificate_issued(request) > until);
        let may_be_new = is_later && !self.consensus.follows_known_leader();
        self.admit(self.consensus.knows_manager(node) || may_be_new)?;
        Ok(node)
    }

    /// A member votes and leads under its own Raft id alone.
    fn check_voter(&self, from: NodeId, vote: &VoteOf<TypeConfig>) -> Result<(), Status> {
        match self.consensus.members().get(&vote.leader_id.voted_for) {
            Some(member) if member.node_id != from => {
                Err(Status::permission_denied(format!("this Raft id is that of node {}", member.node_id)))
            }
            _ => Ok(()),
        }
    }

    /// Lets in what a leader does for other managers. Who does not lead does nothing, and says so.
    fn admit_command<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let peer = require_manager(request)?;
        self.admit(self.consensus.knows_manager(peer.node_id) || self.consensus.check_leader().is_err())
    }

    fn unwrap<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Status> {
        let To { to, message } = decode(body)?;
        if to == self.consensus.raft_id() {
            Ok(message)
        } else {
            Err(self.refusal(Status::not_found("not this raft id")))
        }
    }

    fn admit(&self, is_member: bool) -> Result<(), Status> {
        if is_member {
            return Ok(());
        }
        Err(self.refusal(Status::permission_denied("this node is no manager of the cluster any more")))
    }

    /// What the old side of a forced new cluster learns from: see [`fence`].
    fn refusal(&self, status: Status) -> Status {
        fence::refusal(status, &self.consensus.state())
    }

    async fn receive_image(&self, mut pieces: Streaming<Payload>, len: u64) -> Result<Vec<u8>, Status> {
        let len = usize::try_from(len).ok().filter(|len| *len <= MAX_SNAPSHOT_BYTES);
        let len = len.ok_or_else(|| Status::resource_exhausted("snapshot is too large"))?;
        let mut image = Vec::new();
        while let Some(piece) = pieces.message().await? {
            if image.len() + piece.body.len() > len {
                return Err(Status::invalid_argument("snapshot is longer than it says"));
            }
            image.extend_from_slice(&piece.body);
        }
        if image.len() < len { Err(Status::data_loss("snapshot is cut off")) } else { Ok(image) }
    }
}

/// A message in the name of who wants to lead, or does.
trait Voted {
    fn vote(&self) -> &VoteOf<TypeConfig>;
}

impl Voted for AppendEntriesRequest<TypeConfig> {
    fn vote(&self) -> &VoteOf<TypeConfig> {
        &self.vote
    }
}

impl Voted for VoteRequest<TypeConfig> {
    fn vote(&self) -> &VoteOf<TypeConfig> {
        &self.vote
    }
}

impl Voted for TransferLeaderRequest<TypeConfig> {
    fn vote(&self) -> &VoteOf<TypeConfig> {
        self.from_leader()
    }
}

fn reply<T: Serialize, E: std::fmt::Display>(result: Result<T, E>) -> Result<Response<Payload>, Status> {
    let value = result.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(Response::new(Payload { body: encode(&value)? }))
}

impl From<MembershipError> for Status {
    fn from(error: MembershipError) -> Self {
        let text = error.to_string();
        match error {
            MembershipError::NotLeader(addr) => {
                let mut status = Self::failed_precondition(text);
                if let Some(addr) = addr.and_then(|addr| MetadataValue::try_from(addr.to_string()).ok()) {
                    status.metadata_mut().insert(LEADER_ADDR, addr);
                }
                status
            }
            MembershipError::NoLeader(_) | MembershipError::NotManager | MembershipError::Changing => {
                Self::unavailable(text)
            }
            MembershipError::UnknownMember => Self::not_found(text),
            MembershipError::WouldLoseQuorum => Self::aborted(text),
            MembershipError::Unreachable(..) => Self::invalid_argument(text),
            MembershipError::OtherNode(_) => Self::permission_denied(text),
            MembershipError::Failed(_) => Self::internal(text),
        }
    }
}

#[tonic::async_trait]
impl pb::raft_server::Raft for RaftService {
    async fn append_entries(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        reply(self.consensus.raft().append_entries(self.receive(request)?).await)
    }

    async fn vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        reply(self.consensus.raft().vote(self.receive(request)?).await)
    }

    async fn pre_vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        reply(self.consensus.raft().pre_vote(self.receive(request)?).await)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<Payload>>,
    ) -> Result<Response<Payload>, Status> {
        let from = self.admit_message(&request)?;
        let mut pieces = request.into_inner();
        let head = pieces.message().await?.ok_or_else(|| Status::invalid_argument("empty snapshot"))?;
        let SnapshotHead { vote, meta, image_len } = self.unwrap(&head.body)?;
        self.check_voter(from, &vote)?;
        let image = self.receive_image(pieces, image_len).await?;
        let snapshot = SnapshotOf::<TypeConfig, _> { meta, snapshot: Arc::new(image) };
        reply(self.consensus.raft().install_full_snapshot(vote, snapshot).await)
    }

    async fn transfer_leader(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let done: Result<_, Fatal<TypeConfig>> =
            self.consensus.raft().handle_transfer_leader(self.receive(request)?).await;
        reply(done)
    }

    async fn propose(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        self.admit_command(&request)?;
        let writes: Vec<Proposal> = decode(&request.into_inner().body)?;
        if writes.iter().map(|write| write.body().len()).sum::<usize>() > MAX_ENTRY_BYTES {
            return Err(Status::resource_exhausted("the entry is too large"));
        }
        match self.consensus.write_here(writes, None).await {
            Attempt::Done(outcomes) => Ok(Response::new(Payload { body: encode(&outcomes)? })),
            Attempt::NotLeader(_) => Err(Status::unavailable(NOT_LEADER)),
            Attempt::Stopped => Err(Status::unavailable("this manager is stopping")),
        }
    }

    async fn read_index(&self, request: Request<Empty>) -> Result<Response<pb::ReadIndexReply>, Status> {
        self.admit_command(&request)?;
        match self.consensus.read_index().await {
            Ok(index) => {
                let silent = self.consensus.silent_here().into_iter().collect();
                Ok(Response::new(pb::ReadIndexReply { index, silent }))
            }
            Err(_) => Err(Status::unavailable(NOT_LEADER)),
        }
    }

    async fn misses(&self, request: Request<Empty>) -> Result<Response<pb::MissesReply>, Status> {
        self.admit_message(&request)?;
        let is_heard = self.consensus.hears_leader_within(LEADER_MISSED_AFTER).await;
        let leader = !is_heard && ended::is_refused(self.consensus.raft(), self.consensus.raft_id()).await;
        Ok(Response::new(pb::MissesReply { leader }))
    }

    async fn join(
        &self,
        request: Request<pb::RaftJoinRequest>,
    ) -> Result<Response<pb::RaftJoinReply>, Status> {
        let peer = require_manager(&request)?;
        let request = request.into_inner();
        let member = Member {
            node_id: peer.node_id,
            addr: request.addr.parse().map_err(|_| Status::invalid_argument("malformed address"))?,
        };
        if request.node_id != peer.node_id.to_string() {
            return Err(Status::permission_denied("a node may join itself alone"));
        }
        self.consensus.check_leader()?;
        let state = self.consensus.state();
        if state.nodes().get(&peer.node_id).is_none_or(|node| node.spec.role != Role::Manager) {
            return Err(Status::permission_denied("this node is not wanted as a manager"));
        }
        self.consensus.add_voter(request.raft_id, member).await?;
        let members = self.consensus.members().into_iter().map(|(raft_id, member)| pb::RaftMember {
            raft_id,
            addr: member.addr.to_string(),
            node_id: member.node_id.to_string(),
        });
        Ok(Response::new(pb::RaftJoinReply { members: members.collect() }))
    }

    async fn remove(&self, request: Request<pb::RaftRemoveRequest>) -> Result<Response<Empty>, Status> {
        self.admit_command(&request)?;
        self.consensus.remove_here(request.into_inner().raft_id).await?;
        Ok(Response::new(Empty {}))
    }

    async fn forced(&self, request: Request<pb::ForcedRequest>) -> Result<Response<Empty>, Status> {
        let node = require_manager(&request)?.node_id;
        // Whoever was a manager could end the control plane otherwise, with a certificate that lives on.
        self.admit(self.consensus.knows_manager(node))?;
        let pb::ForcedRequest { epoch, addr } = request.into_inner();
        let addr = addr.parse().map_err(|_| Status::invalid_argument("malformed address"))?;
        let is_behind = self.consensus.fence().called(epoch, (node, addr));
        let known = || self.refusal(Status::failed_precondition("this manager knows that epoch"));
        if is_behind { Ok(Response::new(Empty {})) } else { Err(known()) }
    }
}
