//! A dispatcher, an executor and a data plane that do what a test says, and remember what was asked of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use control_agent::{AgentOptions, NodeContext};
use control_ca::{NodeKey, RootCa};
use control_model::executor::{Executor, ExecutorError, Exit, Found, Provisions, SandboxPaths};
use control_model::gossip::GossipKeys;
use control_model::identity::PeerIdentity;
use control_model::object::{ContainerStatus, HealthStatus, NodeDescription, TaskStatus};
use control_model::spec::Role;
use control_model::{AssignmentUpdate, ClusterId, NodeId, Task, TaskId, Timestamp};
use control_rpc::{Channels, Identity, IdentityPem, decode, encode, pb};
use dataplane_model::{DataPlane, NodeView, Report, SandboxStatus};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Longest wait for anything in these tests.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const AGENT: NodeId = NodeId::from_bits(1);
const MANAGER: NodeId = NodeId::from_bits(2);

/// Waits until the value in the channel is as wanted.
pub async fn until<T: Clone>(receiver: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) -> T {
    let value = tokio::time::timeout(PATIENCE, receiver.wait_for(wanted)).await;
    value.expect("in time").expect("the sender lives").clone()
}

/// A cluster's root, and identities made by it.
pub struct Ca {
    root: RootCa,
}

impl Ca {
    pub fn new() -> Self {
        Self { root: RootCa::generate(wall_clock()).expect("a root") }
    }

    pub fn identity(&self, node_id: NodeId, role: Role) -> Arc<Identity> {
        let key = NodeKey::generate().expect("a key");
        let who = PeerIdentity { node_id, role, cluster_id: ClusterId::from_bits(5) };
        let certificate =
            self.root.issue(&key.csr_pem, who, wall_clock(), Duration::from_hours(24)).expect("issued");
        let pem = IdentityPem { certificate, key: key.key_pem, roots: self.root.cert_pem().to_owned() };
        Identity::new(&pem).expect("an identity")
    }
}

fn wall_clock() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Timestamp(i64::try_from(now.as_nanos()).expect("before 2262"))
}

/// The sending half of an assignments stream.
type Updates = mpsc::Sender<Result<pb::AssignmentPiece, Status>>;

/// What a manager was told.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    pub sessions: usize,
    pub hostname: String,
    pub addresses: Vec<IpAddr>,
    pub applied: u64,
    pub heartbeats: usize,
    pub statuses: BTreeMap<TaskId, TaskStatus>,
    /// Every status in the order of arrival.
    pub history: Vec<(TaskId, TaskStatus)>,
    /// Body or error, by question.
    pub answers: BTreeMap<u64, (Vec<u8>, String)>,
}

/// A manager with a dispatcher alone.
pub struct Manager {
    pub addr: SocketAddr,
    pub heard: watch::Receiver<Heard>,
    updates: Arc<Mutex<Option<Updates>>>,
    first: watch::Sender<AssignmentUpdate>,
    refuse_statuses: watch::Sender<bool>,
    period_ms: watch::Sender<u32>,
    listed: watch::Sender<Vec<SocketAddr>>,
    server: tokio::task::JoinHandle<()>,
}

impl Manager {
    /// `first` is the complete set that every session begins with.
    pub async fn start(ca: &Ca, first: AssignmentUpdate) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let (heard_sender, heard) = watch::channel(Heard::default());
        let (first, first_receiver) = watch::channel(first);
        let (refuse_statuses, refuse_receiver) = watch::channel(false);
        let (period_ms, period_receiver) = watch::channel(1000);
        let (listed, listed_receiver) = watch::channel(vec![addr]);
        let updates = Arc::default();
        let dispatcher = Dispatcher {
            listed: listed_receiver,
            heard: heard_sender,
            first: first_receiver,
            refuse_statuses: refuse_receiver,
            period_ms: period_receiver,
            updates: Arc::clone(&updates),
        };
        let routes = tonic::service::Routes::new(pb::dispatcher_server::DispatcherServer::new(dispatcher));
        let identity = ca.identity(MANAGER, Role::Manager);
        let server = tokio::spawn(async move {
            control_rpc::serve(listener, identity, routes, std::future::pending()).await.expect("serves");
        });
        Self { addr, heard, updates, first, refuse_statuses, period_ms, listed, server }
    }

    pub async fn send(&self, update: &AssignmentUpdate) {
        let sender = self.updates.lock().expect("not poisoned").clone().expect("a stream is open");
        for piece in control_rpc::assignment_pieces(update).expect("it fits") {
            sender.send(Ok(piece)).await.expect("it is read");
        }
    }

    /// What the next session begins with.
    pub fn set_first(&self, update: AssignmentUpdate) {
        self.first.send_replace(update);
    }

    /// The managers that sessions from now on are told of.
    pub fn list(&self, managers: Vec<SocketAddr>) {
        self.listed.send_replace(managers);
    }

    pub fn refuse_statuses(&self, refuse: bool) {
        self.refuse_statuses.send_replace(refuse);
    }

    /// How often agents shall beat from now on.
    pub fn set_period_ms(&self, period_ms: u32) {
        self.period_ms.send_replace(period_ms);
    }

    /// Ends the assignments stream, as a manager does that is superseded.
    pub fn close_session(&self) {
        self.updates.lock().expect("not poisoned").take();
    }

    /// The manager's process dies.
    pub fn kill(&self) {
        self.server.abort();
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Of a long answer.
pub const WANTED_BYTES: usize = 100;

/// What managers find in the agent's node: answers to questions that begin as those of the inspection API do, and of the long
/// ones there is no end.
struct Inspected;

#[async_trait::async_trait]
impl control_agent::Inspect for Inspected {
    async fn answer(&self, question: String) -> Result<Vec<u8>, String> {
        match question.strip_prefix("/mesh/") {
            Some(known) => Ok(known.as_bytes().to_vec()),
            None => Err(format!("no {question}")),
        }
    }

    async fn long_answer(&self, question: String) -> Result<control_agent::LongAnswer, String> {
        let piece = self.answer(question).await?;
        Ok(Box::pin(tokio_stream::StreamExt::map(tokio_stream::iter(0..), move |_: u64| Ok(piece.clone()))))
    }
}

struct Dispatcher {
    listed: watch::Receiver<Vec<SocketAddr>>,
    heard: watch::Sender<Heard>,
    first: watch::Receiver<AssignmentUpdate>,
    refuse_statuses: watch::Receiver<bool>,
    period_ms: watch::Receiver<u32>,
    updates: Arc<Mutex<Option<Updates>>>,
}

fn listed(addr: &SocketAddr) -> pb::ManagerAddr {
    pb::ManagerAddr { node_id: MANAGER.to_string(), addr: addr.to_string() }
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl pb::dispatcher_server::Dispatcher for Dispatcher {
    type SessionStream = BoxStream<pb::SessionMessage>;
    type AssignmentsStream = BoxStream<pb::AssignmentPiece>;
    type InspectionsStream = BoxStream<pb::InspectionQuestion>;
    type InspectStreamStream = BoxStream<pb::AnswerPiece>;

    /// Asks all its questions at once and notes the answers.
    async fn inspections(
        &self,
        request: Request<Streaming<pb::InspectionAnswer>>,
    ) -> Result<Response<Self::InspectionsStream>, Status> {
        let mut answers = request.into_inner();
        let hello = answers.message().await?.unwrap_or_default();
        assert!(hello.session_id.starts_with("session-"), "{hello:?}");
        let heard = self.heard.clone();
        tokio::spawn(async move {
            while let Ok(Some(answer)) = answers.message().await {
                heard.send_modify(|heard| {
                    heard.answers.insert(answer.id, (answer.body, answer.error));
                });
            }
        });
        let question =
            |id, question: &str, long| Ok(pb::InspectionQuestion { id, question: question.to_owned(), long });
        let questions = tokio_stream::iter([
            question(1, "/mesh/lb", false),
            question(2, "/nodes", false),
            question(3, "/mesh/logs", true),
            question(4, "/nodes", true),
        ]);
        Ok(Response::new(Box::pin(tokio_stream::StreamExt::chain(questions, tokio_stream::pending()))))
    }

    async fn inspect(&self, _: Request<pb::InspectRequest>) -> Result<Response<pb::InspectReply>, Status> {
        Err(Status::unimplemented("agents don't"))
    }

    async fn attach(&self, _: Request<pb::AttachMessage>) -> Result<Response<pb::Empty>, Status> {
        Err(Status::unimplemented("agents don't"))
    }

    async fn detach(&self, _: Request<pb::DetachMessage>) -> Result<Response<pb::Empty>, Status> {
        Err(Status::unimplemented("agents don't"))
    }

    async fn inspect_stream(
        &self,
        _: Request<pb::InspectRequest>,
    ) -> Result<Response<Self::InspectStreamStream>, Status> {
        Err(Status::unimplemented("agents don't"))
    }

    /// Notes the first pieces of a long answer, and wants no more.
    async fn stream_answer(
        &self,
        request: Request<Streaming<pb::AnswerPiece>>,
    ) -> Result<Response<pb::Empty>, Status> {
        let mut pieces = request.into_inner();
        let first = pieces.message().await?.unwrap_or_default();
        assert!(first.session_id.starts_with("session-"), "{first:?}");
        let mut body = Vec::new();
        while body.len() < WANTED_BYTES
            && let Some(piece) = pieces.message().await?
        {
            body.extend(piece.body);
        }
        self.heard.send_modify(|heard| {
            heard.answers.insert(first.id, (body, String::new()));
        });
        Ok(Response::new(pb::Empty {}))
    }

    async fn session(
        &self,
        request: Request<pb::SessionRequest>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        assert_eq!(control_rpc::require_node(&request)?.node_id, AGENT);
        let description: NodeDescription = decode(&request.get_ref().description)?;
        self.heard.send_modify(|heard| {
            heard.sessions += 1;
            heard.hostname = description.hostname;
            heard.addresses = description.addresses;
        });
        let message = pb::SessionMessage {
            session_id: format!("session-{}", self.heard.borrow().sessions),
            managers: self.listed.borrow().iter().map(listed).collect(),
            desired_role: "manager".into(),
            root_pem: "roots".into(),
            gossip_keys: encode(&keys()).expect("plain values"),
            issuer: Vec::new(),
            epoch: self.first.borrow().generation().epoch,
        };
        // Open for as long as the client wants it.
        let stream = tokio_stream::StreamExt::chain(tokio_stream::once(Ok(message)), tokio_stream::pending());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatReply>, Status> {
        self.heard.send_modify(|heard| {
            heard.heartbeats += 1;
            heard.applied = request.get_ref().applied.unwrap_or_default().index;
        });
        Ok(Response::new(pb::HeartbeatReply { period_ms: *self.period_ms.borrow() }))
    }

    async fn assignments(
        &self,
        _: Request<pb::AssignmentsRequest>,
    ) -> Result<Response<Self::AssignmentsStream>, Status> {
        // A whole large set waits in it.
        let (sender, receiver) = mpsc::channel(4096);
        let pieces = control_rpc::assignment_pieces(&self.first.borrow())?;
        for piece in pieces {
            sender.send(Ok(piece)).await.expect("the receiver is here");
        }
        *self.updates.lock().expect("not poisoned") = Some(sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn update_task_status(
        &self,
        request: Request<pb::TaskStatusRequest>,
    ) -> Result<Response<pb::Empty>, Status> {
        if *self.refuse_statuses.borrow() {
            return Err(Status::unavailable("no leader"));
        }
        let statuses: Vec<(TaskId, TaskStatus)> = decode(&request.get_ref().body)?;
        self.heard.send_modify(|heard| {
            heard.history.extend(statuses.iter().cloned());
            heard.statuses.extend(statuses);
        });
        Ok(Response::new(pb::Empty {}))
    }

    async fn report_liveness(&self, _: Request<pb::LivenessReport>) -> Result<Response<pb::Empty>, Status> {
        Err(Status::unimplemented("agents don't"))
    }
}

/// An executor whose containers run until they are told to end.
#[derive(Default)]
pub struct FakeExecutor {
    pub found: Mutex<Vec<Found>>,
    calls: watch::Sender<Vec<String>>,
    exits: watch::Sender<BTreeMap<TaskId, i32>>,
}

impl FakeExecutor {
    pub fn calls(&self) -> watch::Receiver<Vec<String>> {
        self.calls.subscribe()
    }

    pub fn exit(&self, task: TaskId, code: i32) {
        self.exits.send_modify(|exits| {
            exits.insert(task, code);
        });
    }

    fn note(&self, call: &str, task: TaskId) {
        self.calls.send_modify(|calls| calls.push(format!("{call} {}", task.bits())));
    }
}

pub fn container(task: TaskId) -> ContainerStatus {
    ContainerStatus { container_id: task.container_id(), pid: 7, exit_code: 0, health: None }
}

#[async_trait]
impl Executor for FakeExecutor {
    async fn prepare(&self, task: &Task, _: &Provisions) -> Result<(), ExecutorError> {
        self.note("prepare", task.id);
        if task.spec.container.image == "missing" {
            return Err(ExecutorError::Rejected("No such image: missing:latest".into()));
        }
        Ok(())
    }

    async fn start(&self, task: &Task, sandbox: &SandboxPaths) -> Result<ContainerStatus, ExecutorError> {
        assert_eq!(sandbox.netns, PathBuf::from(format!("/netns/{}", task.id)));
        self.note("start", task.id);
        Ok(container(task.id))
    }

    async fn wait(&self, task: TaskId) -> Result<Exit, ExecutorError> {
        let mut exits = self.exits.subscribe();
        let ended = exits.wait_for(|exits| exits.contains_key(&task)).await.expect("the executor lives");
        Ok(Exit { code: ended[&task], out_of_memory: false })
    }

    async fn health(&self, task: TaskId, _: HealthStatus) -> Result<Option<HealthStatus>, ExecutorError> {
        Err(ExecutorError::Unknown(task))
    }

    async fn shutdown(&self, task: &Task) -> Result<(), ExecutorError> {
        self.note("shutdown", task.id);
        self.exit(task.id, 143);
        Ok(())
    }

    async fn terminate(&self, task: TaskId) -> Result<(), ExecutorError> {
        self.note("terminate", task);
        Ok(())
    }

    async fn remove(&self, task: TaskId) -> Result<(), ExecutorError> {
        self.note("remove", task);
        Ok(())
    }

    async fn list_ours(&self) -> Result<Vec<Found>, ExecutorError> {
        Ok(self.found.lock().expect("not poisoned").clone())
    }
}

/// A data plane that applies every view at once.
pub struct FakeDataPlane {
    views: watch::Sender<Option<NodeView>>,
    reports: watch::Sender<Report>,
}

impl FakeDataPlane {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { views: watch::Sender::new(None), reports: watch::Sender::new(Report::default()) })
    }

    pub fn views(&self) -> watch::Receiver<Option<NodeView>> {
        self.views.subscribe()
    }
}

impl DataPlane for FakeDataPlane {
    fn set_view(&self, view: NodeView) {
        let ready = |id: &dataplane_model::SandboxId| SandboxStatus::Ready {
            netns: format!("/netns/{}", id.0).into(),
        };
        let report = Report {
            wanted_revision: view.revision,
            wanted: view.generation,
            applied_revision: view.revision,
            applied: view.generation,
            sandboxes: view.sandboxes.keys().map(|id| (id.clone(), ready(id))).collect(),
            errors: vec![],
        };
        let newest = self.views.borrow().as_ref().map_or(0, |view| view.revision);
        assert!(view.revision > newest, "revisions only grow");
        self.views.send_replace(Some(view));
        self.reports.send_replace(report);
    }

    fn watch(&self) -> watch::Receiver<Report> {
        self.reports.subscribe()
    }
}

/// The ring that managers hand out.
pub fn keys() -> GossipKeys {
    GossipKeys::default().rotated(|| [7; 32], Timestamp(1))
}

/// Options of an agent that knows these managers.
pub fn options(ca: &Ca, known_managers: Vec<SocketAddr>) -> AgentOptions {
    let describe = || NodeDescription { hostname: "agent-host".into(), ..NodeDescription::default() };
    AgentOptions {
        context: NodeContext {
            node: AGENT,
            hostname: "agent-host".into(),
            vtep: Ipv4Addr::LOCALHOST.into(),
            vxlan_port: 4789,
        },
        channels: Channels::new(ca.identity(AGENT, Role::Worker)),
        describe: Arc::new(describe),
        inspect: Arc::new(Inspected),
        known_managers,
        local_manager: watch::channel(None).1,
        local_sandboxes: watch::channel(dataplane_model::Table::new()).1,
        opinion: watch::channel(Arc::default()).1,
        epoch: 0,
        keep_epoch: Arc::new(|_| Ok(())),
    }
}
