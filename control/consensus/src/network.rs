//! Calls to other managers: openraft's network over the Raft RPC.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control_rpc::pb::Payload;
use control_rpc::pb::raft_client::RaftClient;
use control_rpc::{BodyError, Channels, MAX_MESSAGE_BYTES, decode, encode};
use openraft::OptionalSend;
use openraft::alias::{SnapshotMetaOf, SnapshotOf, VoteOf};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::fence::Fence;
use crate::limits::{APPEND_TIMEOUT, INSTALL_TIMEOUT, SLOWEST_LINK_BYTES_PER_S, SNAPSHOT_CHUNK_BYTES};
use crate::types::{Member, TypeConfig};

/// A message to one Raft id: another one that now lives at the address refuses it.
#[derive(Serialize, Deserialize)]
pub(crate) struct To<T> {
    pub(crate) to: u64,
    pub(crate) message: T,
}

/// First piece of a snapshot's stream; the image follows.
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) vote: VoteOf<TypeConfig>,
    pub(crate) meta: SnapshotMetaOf<TypeConfig>,
    pub(crate) image_len: u64,
}

/// The Raft service of the manager at `addr`.
pub(crate) fn raft_client(channels: &Channels, addr: SocketAddr) -> RaftClient<Channel> {
    RaftClient::new(channels.get(addr)).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Where members are, by Raft id, as last heard. A member may move while openraft goes on with the client that it has.
#[derive(Default)]
pub(crate) struct AddressBook(Mutex<BTreeMap<u64, SocketAddr>>);

impl AddressBook {
    pub(crate) fn note(&self, raft_id: u64, addr: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(raft_id, addr);
    }

    fn find(&self, raft_id: u64) -> Option<SocketAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&raft_id).copied()
    }
}

/// Makes openraft's clients.
pub(crate) struct Network {
    pub(crate) channels: Arc<Channels>,
    pub(crate) fence: Arc<Fence>,
    pub(crate) addresses: Arc<AddressBook>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, member: &Member) -> Peer {
        self.addresses.note(target, member.addr);
        let (channels, fence, addresses) =
            (self.channels.clone(), self.fence.clone(), self.addresses.clone());
        Peer { raft_id: target, first: member.addr, channels, fence, addresses }
    }
}

/// One other manager.
pub(crate) struct Peer {
    raft_id: u64,
    /// Where it was when this client was made.
    first: SocketAddr,
    channels: Arc<Channels>,
    fence: Arc<Fence>,
    addresses: Arc<AddressBook>,
}

/// Which of the calls with one request and one reply.
#[derive(Clone, Copy)]
enum Method {
    Append,
    Vote,
    PreVote,
    Transfer,
}

/// Why a call gave no reply.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("{0}")]
    Status(#[from] Status),
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("no answer in time")]
    Timeout,
}

impl From<CallError> for RPCError<TypeConfig> {
    fn from(error: CallError) -> Self {
        match &error {
            // It was there and did not answer in time, or in a way that another try may change.
            CallError::Timeout => Self::Network(NetworkError::new(&error)),
            CallError::Status(status) if status.code() == Code::DeadlineExceeded => {
                Self::Network(NetworkError::new(&error))
            }
            CallError::Status(_) | CallError::Body(_) => Self::Unreachable(Unreachable::new(&error)),
        }
    }
}

impl Peer {
    fn client(&self) -> RaftClient<Channel> {
        raft_client(&self.channels, self.addresses.find(self.raft_id).unwrap_or(self.first))
    }

    /// `timeout` is that of a short message.
    async fn call<M: Serialize, R: DeserializeOwned>(
        &self,
        method: Method,
        message: M,
        timeout: Duration,
    ) -> Result<R, CallError> {
        let request = Payload { body: encode(&To { to: self.raft_id, message })? };
        let timeout = timeout + time_on_the_way(request.body.len());
        let mut client = self.client();
        let call = async {
            match method {
                Method::Append => client.append_entries(request).await,
                Method::Vote => client.vote(request).await,
                Method::PreVote => client.pre_vote(request).await,
                Method::Transfer => client.transfer_leader(request).await,
            }
        };
        let reply = tokio::time::timeout(timeout, call).await.map_err(|_| CallError::Timeout)?;
        let reply = reply.inspect_err(|status| self.fence.heard(status))?;
        Ok(decode(&reply.into_inner().body)?)
    }

    async fn send_snapshot(
        &self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, Arc<Vec<u8>>>,
    ) -> Result<SnapshotResponse<TypeConfig>, CallError> {
        let image = snapshot.snapshot;
        let timeout = INSTALL_TIMEOUT + time_on_the_way(image.len());
        let head = SnapshotHead { vote, meta: snapshot.meta, image_len: image.len() as u64 };
        let head = Payload { body: encode(&To { to: self.raft_id, message: head })? };
        let pieces = (0..image.len()).step_by(SNAPSHOT_CHUNK_BYTES).map(move |from| {
            let upto = image.len().min(from + SNAPSHOT_CHUNK_BYTES);
            Payload { body: image[from..upto].to_vec() }
        });
        let stream = tokio_stream::iter(std::iter::once(head).chain(pieces));
        let mut client = self.client();
        let call = client.install_snapshot(Request::new(stream));
        let reply = tokio::time::timeout(timeout, call).await.map_err(|_| CallError::Timeout)??;
        Ok(decode(&reply.into_inner().body)?)
    }
}

/// What the slowest link takes for a message.
fn time_on_the_way(n_bytes: usize) -> Duration {
    let n_bytes = u32::try_from(n_bytes).unwrap_or(u32::MAX);
    Duration::from_secs(1) * n_bytes / SLOWEST_LINK_BYTES_PER_S
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = Arc<Vec<u8>>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.call(Method::Append, request, APPEND_TIMEOUT).await?)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.call(Method::Vote, request, option.hard_ttl()).await?)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.call(Method::PreVote, request, option.hard_ttl()).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, Arc<Vec<u8>>>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => {
                sent.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        Ok(self.call(Method::Transfer, request, option.hard_ttl()).await?)
    }
}
