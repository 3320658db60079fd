//! Both ends over loopback, with certificates made here.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use control_model::spec::Role;
use control_model::{ClusterId, NodeId};
use futures::Stream;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair,
};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use crate::pb::ca_client::CaClient;
use crate::pb::ca_server::{Ca, CaServer};
use crate::pb::dispatcher_client::DispatcherClient;
use crate::pb::dispatcher_server::{Dispatcher, DispatcherServer};
use crate::*;

/// More than any step takes on a machine that stalls.
const PATIENCE: Duration = Duration::from_secs(20);

struct Root {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Root {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn pem_of(&self, peer: PeerIdentity, hours: i64) -> IdentityPem {
        let key = KeyPair::generate().unwrap();
        let names = vec![peer.unit().to_owned(), peer.node_id.to_string()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, peer.node_id.to_string());
        params.distinguished_name.push(DnType::OrganizationalUnitName, peer.unit());
        params.distinguished_name.push(DnType::OrganizationName, peer.cluster_id.to_string());
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::now_utc() - time::Duration::days(2);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::hours(hours);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        IdentityPem { certificate, key: key.serialize_pem(), roots: self.pem.clone() }
    }

    fn identity(&self, peer: PeerIdentity) -> Arc<Identity> {
        Identity::new(&self.pem_of(peer, 24)).unwrap()
    }
}

fn node(id: u128, role: Role) -> PeerIdentity {
    PeerIdentity { node_id: NodeId::from_bits(id), role, cluster_id: ClusterId::from_bits(1) }
}

/// Answers with who asked.
struct Service {
    root: String,
}

#[tonic::async_trait]
impl Ca for Service {
    async fn get_root_certificate(
        &self,
        _: Request<pb::Empty>,
    ) -> Result<Response<pb::RootCertificate>, Status> {
        Ok(Response::new(pb::RootCertificate { pem: self.root.clone() }))
    }

    async fn issue_node_certificate(
        &self,
        request: Request<pb::IssueRequest>,
    ) -> Result<Response<pb::IssueReply>, Status> {
        let peer = require_manager(&request)?;
        Ok(Response::new(pb::IssueReply { node_id: peer.node_id.to_string(), ..Default::default() }))
    }

    async fn get_unlock_key(&self, _: Request<pb::Empty>) -> Result<Response<pb::UnlockKeyReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Dispatcher for Service {
    type SessionStream = Sent<pb::SessionMessage>;
    type AssignmentsStream = Sent<pb::AssignmentPiece>;
    type InspectionsStream = Sent<pb::InspectionQuestion>;
    type InspectStreamStream = Sent<pb::AnswerPiece>;

    /// Reads nothing of answer 0 but its first piece, and all of others.
    async fn stream_answer(
        &self,
        request: Request<tonic::Streaming<pb::AnswerPiece>>,
    ) -> Result<Response<pb::Empty>, Status> {
        let mut pieces = request.into_inner();
        if pieces.message().await?.unwrap_or_default().id == 0 {
            std::future::pending::<()>().await;
        }
        while pieces.message().await?.is_some() {}
        Ok(Response::new(pb::Empty {}))
    }

    async fn attach(&self, _: Request<pb::AttachMessage>) -> Result<Response<pb::Empty>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn detach(&self, _: Request<pb::DetachMessage>) -> Result<Response<pb::Empty>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn inspect_stream(
        &self,
        _: Request<pb::InspectRequest>,
    ) -> Result<Response<Self::InspectStreamStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn inspections(
        &self,
        _: Request<tonic::Streaming<pb::InspectionAnswer>>,
    ) -> Result<Response<Self::InspectionsStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn inspect(&self, _: Request<pb::InspectRequest>) -> Result<Response<pb::InspectReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    /// One message, then nothing for ever.
    async fn session(
        &self,
        request: Request<pb::SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let session_id = require_node(&request)?.node_id.to_string();
        let first = pb::SessionMessage { session_id, ..Default::default() };
        let stream = futures::stream::iter([Ok(first)]);
        Ok(Response::new(Box::pin(futures::StreamExt::chain(stream, futures::stream::pending()))))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatReply>, Status> {
        let peer = require_node(&request)?;
        Ok(Response::new(pb::HeartbeatReply { period_ms: u32::try_from(peer.node_id.bits()).unwrap() }))
    }

    async fn assignments(
        &self,
        _: Request<pb::AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn update_task_status(
        &self,
        _: Request<pb::TaskStatusRequest>,
    ) -> Result<Response<pb::Empty>, Status> {
        Ok(Response::new(pb::Empty {}))
    }

    async fn report_liveness(&self, _: Request<pb::LivenessReport>) -> Result<Response<pb::Empty>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

struct Running {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

async fn start(root: &Root, identity: Arc<Identity>) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let service = || Service { root: root.pem.clone() };
    let ca = CaServer::new(service()).max_decoding_message_size(MAX_CA_MESSAGE_BYTES);
    let dispatcher = DispatcherServer::new(service()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let routes = Routes::new(ca).add_service(dispatcher);
    let serving = serve(listener, identity, routes, async move { drop(stopped.await) });
    let task = tokio::spawn(async move { serving.await.unwrap() });
    Running { addr, stop, task }
}

async fn heartbeat(identity: Arc<Identity>, addr: SocketAddr) -> Result<u32, Status> {
    let mut client = DispatcherClient::new(Channels::new(identity).get(addr));
    Ok(client.heartbeat(pb::HeartbeatRequest::default()).await?.into_inner().period_ms)
}

async fn issue(identity: Arc<Identity>, addr: SocketAddr) -> Result<String, Status> {
    let mut client = CaClient::new(Channels::new(identity).get(addr));
    Ok(client.issue_node_certificate(pb::IssueRequest::default()).await?.into_inner().node_id)
}

#[tokio::test]
async fn a_server_knows_who_calls() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    let manager = root.identity(node(2, Role::Manager));
    assert_eq!(heartbeat(root.identity(node(7, Role::Worker)), server.addr).await.unwrap(), 7);
    assert_eq!(issue(manager, server.addr).await.unwrap(), NodeId::from_bits(2).to_string());
    let refused = issue(root.identity(node(7, Role::Worker)), server.addr).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn foreign_expired_and_other_clusters_nodes_are_refused_at_the_door() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    let foreign = Root::new();
    let mut pem = foreign.pem_of(node(7, Role::Manager), 24);
    pem.roots.clone_from(&root.pem);
    let expired = root.pem_of(node(7, Role::Manager), -1);
    let other = PeerIdentity { cluster_id: ClusterId::from_bits(2), ..node(7, Role::Manager) };
    for pem in [pem, expired, root.pem_of(other, 24)] {
        assert!(heartbeat(Identity::new(&pem).unwrap(), server.addr).await.is_err());
    }
    assert_eq!(heartbeat(root.identity(node(7, Role::Worker)), server.addr).await.unwrap(), 7);
}

#[tokio::test]
async fn a_client_trusts_managers_of_its_own_cluster_alone() {
    let root = Root::new();
    let client = || root.identity(node(7, Role::Worker));
    let worker = start(&root, root.identity(node(1, Role::Worker))).await;
    assert!(heartbeat(client(), worker.addr).await.is_err());
    let foreign = Root::new();
    let manager = start(&foreign, foreign.identity(node(1, Role::Manager))).await;
    assert!(heartbeat(client(), manager.addr).await.is_err());
    let expired = start(&root, Identity::new(&root.pem_of(node(1, Role::Manager), -1)).unwrap()).await;
    assert!(heartbeat(client(), expired.addr).await.is_err());
}

#[tokio::test]
async fn a_caller_without_certificate_reaches_the_ca_alone() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    let channel = anonymous_channel(server.addr, &root.pem).unwrap();
    let reply = CaClient::new(channel.clone()).get_root_certificate(pb::Empty {}).await.unwrap();
    assert_eq!(reply.into_inner().pem, root.pem);
    let mut client = DispatcherClient::new(channel);
    let refused = client.heartbeat(pb::HeartbeatRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn joining_trusts_the_right_root_alone() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    let right = |pem: &str| if pem == root.pem { Ok(()) } else { Err(IdentityError::NoCertificate) };
    let (pem, channel) = join_channel(server.addr, right).await.unwrap();
    assert_eq!(pem, root.pem);
    CaClient::new(channel).get_root_certificate(pb::Empty {}).await.unwrap();
    let wrong = join_channel(server.addr, |_| Err(IdentityError::NoCertificate)).await;
    assert!(matches!(wrong, Err(JoinError::WrongRoot(_))));

    // A man in the middle who shows the right root without holding its key.
    let impostor = Root::new();
    let server = start(&root, impostor.identity(node(1, Role::Manager))).await;
    let (_, channel) = join_channel(server.addr, right).await.unwrap();
    assert!(CaClient::new(channel).get_root_certificate(pb::Empty {}).await.is_err());
    // Nobody there.
    let addr = server.addr;
    drop(server.stop);
    server.task.await.unwrap();
    assert!(matches!(join_channel(addr, right).await, Err(JoinError::Unreachable(_))));
}

#[tokio::test]
async fn identities_and_roots_are_replaced_while_serving() {
    let (old, new) = (Root::new(), Root::new());
    let (server_id, client_id) = (node(1, Role::Manager), node(7, Role::Worker));
    let (server_identity, client_identity) = (old.identity(server_id), old.identity(client_id));
    let server = start(&old, server_identity.clone()).await;
    let channels = Channels::new(client_identity.clone());
    let ask = async || {
        let mut client = DispatcherClient::new(channels.get(server.addr));
        client.heartbeat(pb::HeartbeatRequest::default()).await
    };
    ask().await.unwrap();
    // Trust both, then be issued by the new root, then trust it alone: as a rotation does.
    let both = format!("{}{}", old.pem, new.pem);
    for identity in [(&server_identity, server_id), (&client_identity, client_id)] {
        identity.0.replace(&IdentityPem { roots: both.clone(), ..old.pem_of(identity.1, 24) }).unwrap();
        ask().await.unwrap();
    }
    for identity in [(&server_identity, server_id), (&client_identity, client_id)] {
        identity.0.replace(&IdentityPem { roots: both.clone(), ..new.pem_of(identity.1, 24) }).unwrap();
        ask().await.unwrap();
    }
    server_identity.replace(&new.pem_of(server_id, 24)).unwrap();
    ask().await.unwrap();
    assert!(heartbeat(old.identity(client_id), server.addr).await.is_err());
}

#[tokio::test]
async fn a_channel_connects_anew_when_the_server_returns() {
    let root = Root::new();
    let identity = root.identity(node(1, Role::Manager));
    let server = start(&root, identity.clone()).await;
    let channels = Channels::new(root.identity(node(7, Role::Worker)));
    let mut client = DispatcherClient::new(channels.get(server.addr));
    client.heartbeat(pb::HeartbeatRequest::default()).await.unwrap();
    drop(server.stop);
    server.task.await.unwrap();
    client.heartbeat(pb::HeartbeatRequest::default()).await.unwrap_err();
    let listener = TcpListener::bind(server.addr).await.unwrap();
    let routes = Routes::new(DispatcherServer::new(Service { root: root.pem.clone() }));
    let task = tokio::spawn(serve(listener, identity, routes, std::future::pending()));
    let again = async {
        while client.heartbeat(pb::HeartbeatRequest::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    task.abort();
}

#[tokio::test]
async fn stopping_cuts_streams_that_never_end() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    let channels = Channels::new(root.identity(node(7, Role::Worker)));
    let mut client = DispatcherClient::new(channels.get(server.addr));
    let mut stream = client.session(pb::SessionRequest::default()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    drop(server.stop);
    tokio::time::timeout(PATIENCE, server.task).await.unwrap().unwrap();
    let end = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap();
    assert!(!matches!(end, Ok(Some(_))));
}

#[tokio::test]
async fn silent_and_babbling_connections_harm_nobody() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    // One that says nothing, and one that speaks no TLS.
    let silent = TcpStream::connect(server.addr).await.unwrap();
    let mut babbler = TcpStream::connect(server.addr).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut babbler, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(heartbeat(root.identity(node(7, Role::Worker)), server.addr).await.unwrap(), 7);
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, babbler.read_to_end(&mut answer)).await.unwrap();
    assert!(closed.is_err() || answer.len() < 16, "{answer:?}");
    drop(silent);
}

/// A TLS connection without a certificate, once the server has kept or closed it: whether it was kept.
async fn anonymous_is_kept(server: SocketAddr, root: &Root) -> (bool, impl AsyncRead + Unpin + use<>) {
    let roots = identity::read_roots(&root.pem).unwrap();
    let builder = identity::client_builder().unwrap().with_root_certificates(roots);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut stream = channels::connect_tls(server, Arc::new(config)).await.unwrap();
    // The server's SETTINGS come without our preface, or nothing at all.
    let read = tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap();
    (read.is_ok(), stream)
}

#[tokio::test]
async fn callers_without_a_certificate_can_not_take_all_connections() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    let mut held = Vec::new();
    for n in 0..door::MAX_ANONYMOUS {
        let (kept, stream) = anonymous_is_kept(server.addr, &root).await;
        assert!(kept, "connection {n}");
        held.push(stream);
    }
    assert_eq!(heartbeat(root.identity(node(7, Role::Worker)), server.addr).await.unwrap(), 7);
    let (kept, _newest) = anonymous_is_kept(server.addr, &root).await;
    assert!(kept, "who joins now is let in");
    let oldest = tokio::time::timeout(PATIENCE, held[0].read_to_end(&mut Vec::new())).await;
    assert!(oldest.is_ok(), "the oldest gave way");
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    let mut silent = Vec::new();
    for _ in 0..door::MAX_SILENT + 10 {
        silent.push(TcpStream::connect(server.addr).await.unwrap());
    }
    let began = std::time::Instant::now();
    assert_eq!(heartbeat(root.identity(node(7, Role::Worker)), server.addr).await.unwrap(), 7);
    assert!(began.elapsed() < server::FIRST_BYTES_TIMEOUT, "it waited for {:?}", began.elapsed());
    // Such that begin a handshake and say no more.
    for stream in silent.iter_mut().rev().take(door::MAX_HANDSHAKES) {
        drop(tokio::io::AsyncWriteExt::write_all(stream, &[22, 3, 1]).await);
    }
    tokio::time::sleep(door::SPARED_FOR).await;
    assert_eq!(heartbeat(root.identity(node(7, Role::Worker)), server.addr).await.unwrap(), 7);
    for (at, stream) in silent.iter_mut().enumerate() {
        let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "connection {at} is still open");
    }
}

#[tokio::test]
async fn a_nodes_oldest_connections_and_its_own_streams_alone_pay_for_too_many() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    let open = async |identity: Arc<Identity>| {
        let channel = Channels::new(identity).get(server.addr);
        let mut client = DispatcherClient::new(channel);
        let stream = client.session(pb::SessionRequest::default()).await.unwrap().into_inner();
        (client, stream)
    };
    let (greedy, other) = (root.identity(node(7, Role::Worker)), root.identity(node(8, Role::Worker)));
    let (_client, mut kept) = open(other.clone()).await;
    kept.message().await.unwrap().unwrap();
    let mut held = Vec::new();
    for _ in 0..=door::MAX_OF_NODE {
        held.push(open(greedy.clone()).await);
    }
    let oldest = &mut held[0].1;
    let ended = async { while let Ok(Some(_)) = oldest.message().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the oldest gave way");
    let (client, newest) = held.last_mut().unwrap();
    newest.message().await.unwrap().unwrap();
    assert_eq!(heartbeat(other, server.addr).await.unwrap(), 8);

    let mut streams = Vec::new();
    for _ in 1..server::MAX_STREAMS_OF_OTHERS {
        let opened = client.session(pb::SessionRequest::default());
        streams.push(tokio::time::timeout(PATIENCE, opened).await.unwrap().unwrap().into_inner());
    }
    let waits = client.heartbeat(pb::HeartbeatRequest::default());
    let waits = tokio::time::timeout(Duration::from_millis(300), waits);
    waits.await.expect_err("one too many waits");
    streams.pop();
    let again = client.heartbeat(pb::HeartbeatRequest::default());
    tokio::time::timeout(PATIENCE, again).await.unwrap().unwrap();
    let next = tokio::time::timeout(Duration::from_millis(100), kept.message()).await;
    assert!(next.is_err(), "the other node's stream goes on: {next:?}");
}

/// As many as there may be of what nobody reads, and beside them one that is read.
#[tokio::test]
async fn long_answers_that_are_not_read_hold_up_no_other() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    let channels = Channels::new(root.identity(node(7, Role::Worker)));
    let answer = |id: u64| {
        let piece = pb::AnswerPiece { id, body: vec![0; 64 << 10], ..Default::default() };
        let pieces = futures::stream::iter(std::iter::repeat_n(piece, 64));
        let mut client = DispatcherClient::new(channels.for_long_answers(server.addr));
        async move { client.stream_answer(pieces).await.map(drop) }
    };
    let stuck: Vec<_> = (1..MAX_LONG_ANSWERS).map(|_| tokio::spawn(answer(0))).collect();
    for _ in 0..3 {
        tokio::time::timeout(PATIENCE, answer(1)).await.expect("it is read").unwrap();
    }
    assert!(stuck.iter().all(|one| !one.is_finished()));
    stuck.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_connection_without_a_certificate_ends_by_itself() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    let (kept, mut stream) = anonymous_is_kept(server.addr, &root).await;
    assert!(kept);
    tokio::time::pause();
    tokio::time::advance(server::ANONYMOUS_LIFETIME).await;
    tokio::time::resume();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
    assert!(end.is_ok(), "still open");
}

#[tokio::test]
async fn messages_above_the_limit_are_refused() {
    let root = Root::new();
    let server = start(&root, root.identity(node(1, Role::Manager))).await;
    let channels = Channels::new(root.identity(node(2, Role::Manager)));
    let large = |bytes| pb::TaskStatusRequest { body: vec![0; bytes], ..Default::default() };
    let mut client = DispatcherClient::new(channels.get(server.addr));
    client.update_task_status(large(MAX_BODY_BYTES)).await.unwrap();
    let refused = client.update_task_status(large(MAX_MESSAGE_BYTES + 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    let csr_pem = "x".repeat(MAX_CA_MESSAGE_BYTES);
    let request = pb::IssueRequest { csr_pem, ..Default::default() };
    let refused = CaClient::new(channels.get(server.addr)).issue_node_certificate(request).await;
    assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
}

#[test]
fn pems_that_are_none_are_errors() {
    let root = Root::new();
    let good = root.pem_of(node(1, Role::Manager), 24);
    let other = root.pem_of(node(2, Role::Manager), 24);
    for pem in [
        IdentityPem { certificate: String::new(), ..good.clone() },
        IdentityPem {
            certificate: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".into(),
            ..good.clone()
        },
        IdentityPem { certificate: root.pem.clone(), ..good.clone() },
        IdentityPem { key: String::new(), ..good.clone() },
        IdentityPem { key: other.key, ..good.clone() },
        IdentityPem { roots: String::new(), ..good.clone() },
        IdentityPem { roots: good.key.clone(), ..good.clone() },
    ] {
        assert!(Identity::new(&pem).is_err(), "{}", pem.certificate);
    }
    assert!(!format!("{good:?}").contains("PRIVATE"));
}
