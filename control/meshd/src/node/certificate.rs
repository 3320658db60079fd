//! How a node comes by its certificate: with a join token at first, with its own certificate later.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use control_api::node::SwarmError;
use control_ca::{Certificate, CertificateError, JoinToken, NodeKey, prove_former};
use control_manager::ca_server::CaServer;
use control_manager::clock;
use control_model::PeerIdentity;
use control_model::authority::UnlockKey;
use control_model::spec::Availability;
use control_rpc::pb::ca_client::CaClient;
use control_rpc::{Channels, IdentityPem, JoinError, MAX_CA_MESSAGE_BYTES, join_channel, pb};
use control_store::ReplicatedStore;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A manager writes the new node before it answers; without a leader that does not end.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a renewal brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error("can't make a key")]
    Key(#[from] control_ca::RequestError),
    #[error("{0}")]
    Refused(Status),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// A node's first certificate, and what goes with it.
pub struct Joined {
    pub identity: PeerIdentity,
    pub pem: IdentityPem,
    /// UDP port of the cluster's tunnels.
    pub data_path_port: u16,
}

/// Asks the manager at `addr` for a first certificate.
pub async fn join(
    addr: SocketAddr,
    (token, availability): (&str, Availability),
    data_path: IpAddr,
) -> Result<Joined, SwarmError> {
    let request = pb::IssueRequest {
        availability: availability_word(availability).to_owned(),
        data_path_addr: data_path.to_string(),
        ..pb::IssueRequest::default()
    };
    enter(addr, token, None, request).await
}

/// Asks the manager at `addr` for another certificate in place of `former`, which ran out.
pub async fn come_back(addr: SocketAddr, token: &str, former: &IdentityPem) -> Result<Joined, SwarmError> {
    let request = pb::IssueRequest { former_pem: former.certificate.clone(), ..pb::IssueRequest::default() };
    enter(addr, token, Some(former), request).await
}

/// Asks with a token. The root is checked against it before it is sent.
async fn enter(
    addr: SocketAddr,
    token: &str,
    former: Option<&IdentityPem>,
    request: pb::IssueRequest,
) -> Result<Joined, SwarmError> {
    let parsed: JoinToken =
        token.parse().map_err(|e: control_ca::InvalidToken| SwarmError::Token(e.to_string()))?;
    let (_, channel) =
        join_channel(addr, |root| parsed.verify_root(root)).await.map_err(|error| match error {
            JoinError::Unreachable(status) => SwarmError::Unreachable(rpc_text(&status)),
            JoinError::WrongRoot(error) => SwarmError::Token(error.to_string()),
            JoinError::BadRoot(error) => SwarmError::Token(error.to_string()),
        })?;
    let key = NodeKey::generate().map_err(|error| SwarmError::Failed(error.to_string()))?;
    let proof = former.map(|former| prove_former(&former.key, &key.csr_pem)).transpose();
    let request = pb::IssueRequest {
        csr_pem: key.csr_pem.clone(),
        token: token.to_owned(),
        former_proof: proof.map_err(|error| SwarmError::Failed(error.to_string()))?.unwrap_or_default(),
        ..request
    };
    let reply = issue(channel, request).await.map_err(|status| match status.code() {
        Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => {
            SwarmError::Token(rpc_text(&status))
        }
        Code::FailedPrecondition => SwarmError::Address(rpc_text(&status)),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
            SwarmError::Unreachable(rpc_text(&status))
        }
        _ => SwarmError::Failed(rpc_text(&status)),
    })?;
    let failed = |text: String| SwarmError::Failed(text);
    let data_path_port =
        u16::try_from(reply.data_path_port).map_err(|_| failed("malformed reply of the manager".into()))?;
    let (identity, pem) = to_identity(reply, key).map_err(|error| failed(error.to_string()))?;
    Ok(Joined { identity, pem, data_path_port })
}

/// Asks the manager at `addr` for a new certificate, as the node that this one is.
pub async fn renew(channels: &Channels, addr: SocketAddr) -> Result<IdentityPem, RenewError> {
    let key = NodeKey::generate()?;
    let request = pb::IssueRequest { csr_pem: key.csr_pem.clone(), ..pb::IssueRequest::default() };
    let reply = issue(channels.get(addr), request).await.map_err(RenewError::Refused)?;
    Ok(to_identity(reply, key)?.1)
}

/// A new certificate from the replica of the manager in this daemon, whose own has run out.
pub fn renew_own(store: Arc<dyn ReplicatedStore>, me: PeerIdentity) -> Result<IdentityPem, RenewError> {
    let key = NodeKey::generate()?;
    let issued = CaServer::new(store).renew_own(&key.csr_pem, me).map_err(RenewError::Refused)?;
    Ok(IdentityPem { certificate: issued.certificate_pem, key: key.key_pem, roots: issued.root_pem })
}

/// Asks the manager at `addr` for the key that a new manager's disk is to be locked with, and the version of the cluster
/// that says so. No key without autolock.
pub async fn unlock_key(channels: &Channels, addr: SocketAddr) -> Result<(Option<UnlockKey>, u64), Status> {
    let mut client = CaClient::new(channels.get(addr)).max_decoding_message_size(MAX_CA_MESSAGE_BYTES);
    let reply = tokio::time::timeout(ISSUE_TIMEOUT, client.get_unlock_key(pb::Empty {}))
        .await
        .map_err(|_| Status::deadline_exceeded("context deadline exceeded"))??;
    let pb::UnlockKeyReply { key, version } = reply.into_inner();
    if key.is_empty() {
        return Ok((None, version));
    }
    let bits = key.try_into().map_err(|_| Status::internal("the unlock key has another length"))?;
    Ok((Some(UnlockKey(bits)), version))
}

async fn issue(channel: Channel, request: pb::IssueRequest) -> Result<pb::IssueReply, Status> {
    let mut client = CaClient::new(channel).max_decoding_message_size(MAX_CA_MESSAGE_BYTES);
    let call = client.issue_node_certificate(request);
    let reply = tokio::time::timeout(ISSUE_TIMEOUT, call)
        .await
        .map_err(|_| Status::deadline_exceeded("context deadline exceeded"))??;
    Ok(reply.into_inner())
}

/// Believes the certificate, not the words beside it.
fn to_identity(reply: pb::IssueReply, key: NodeKey) -> Result<(PeerIdentity, IdentityPem), CertificateError> {
    let certificate = Certificate::verify(&reply.certificate_pem, &reply.root_pem, clock::now())?;
    let pem = IdentityPem { certificate: reply.certificate_pem, key: key.key_pem, roots: reply.root_pem };
    Ok((certificate.identity, pem))
}

fn availability_word(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

/// A status in the words of Docker's CLI.
pub fn rpc_text(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}
