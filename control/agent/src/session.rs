//! The session with a manager: one at a time, to any manager that answers, for ever.

mod backoff;
mod fence;
mod heartbeats;
mod inspections;
mod managers;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control_model::gossip::GossipKeys;
use control_model::object::NodeDescription;
use control_model::spec::Role;
use control_model::{AssignmentUpdate, NodeId};
use control_rpc::pb::dispatcher_client::DispatcherClient;
use control_rpc::{AssignmentPieces, BodyError, Channels, MAX_MESSAGE_BYTES, decode, encode, pb};
use dataplane_model::Report;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::outbox::Outbox;
use crate::set::SetError;
use backoff::{Backoff, Flaps};
pub(crate) use fence::Fence;
use fence::FenceError;
pub use fence::KeepEpoch;
use heartbeats::heartbeats;
use inspections::{Asker, answer_questions};
pub use inspections::{Inspect, LongAnswer};
pub use managers::Managers;

/// How often the agent looks whether its node is still what it said: an address may have moved here, and answers to its
/// clients go where it was until the managers know.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// A manager that takes longer for an answer than this is as good as gone: a leader's election is below it.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A session that lasted this long was one; shorter ones make the next attempts slower, as refusals do.
const GOOD_SESSION: Duration = Duration::from_secs(2);

/// A manager of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Manager {
    pub node: NodeId,
    pub addr: SocketAddr,
}

/// What the session tells the node's daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionState {
    /// The manager that the session is with; `None` while there is no session.
    pub connected: Option<SocketAddr>,
    /// The role that the cluster wants this node to have.
    pub desired_role: Option<Role>,
    /// All managers, as last heard.
    pub managers: Vec<Manager>,
    /// The root certificates to trust, PEM; empty before the first session.
    pub root_pem: String,
    /// Digest of the public key that should have signed this node's certificate; empty if any will do.
    pub issuer: Vec<u8>,
    /// The cluster says that this node is no member (any more).
    pub removed: bool,
    /// Why there is no session; empty while there is one.
    pub error: String,
}

/// An update on its way to the worker, which answers whether it fits.
pub(crate) struct Delivery {
    pub update: AssignmentUpdate,
    pub answer: oneshot::Sender<Result<(), SetError>>,
}

/// The statuses to be sent, and a bell for new ones.
#[derive(Debug, Default)]
pub(crate) struct SharedOutbox {
    outbox: Mutex<Outbox>,
    pub changed: Notify,
}

impl SharedOutbox {
    pub fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the node's present description; asked at the start of every session, and often during one.
pub type DescriptionProvider = Arc<dyn Fn() -> NodeDescription + Send + Sync>;

/// Everything a session needs.
pub(crate) struct SessionClient {
    pub channels: Arc<Channels>,
    pub describe: DescriptionProvider,
    pub inspect: Arc<dyn Inspect>,
    /// The manager in this very daemon, tried first.
    pub local_manager: watch::Receiver<Option<SocketAddr>>,
    pub known_managers: Vec<SocketAddr>,
    pub fence: Fence,
    pub outbox: Arc<SharedOutbox>,
    pub deliveries: mpsc::Sender<Delivery>,
    pub reports: watch::Receiver<Report>,
    pub state: watch::Sender<SessionState>,
    pub keys: watch::Sender<GossipKeys>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("{0}")]
    Manager(#[from] Box<Status>),
    #[error("the manager closed the session")]
    Closed,
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error(transparent)]
    Set(#[from] SetError),
    #[error(transparent)]
    Fence(#[from] FenceError),
    #[error("the agent is stopping")]
    Stopping,
    #[error("the node is not what the session was opened with: its addresses changed")]
    Described,
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Manager(Box::new(status))
    }
}

type Client = DispatcherClient<Channel>;

/// The streams of an open session.
struct Opened {
    client: Client,
    id: String,
    /// What the node said of itself.
    description: NodeDescription,
    messages: Streaming<pb::SessionMessage>,
    assignments: Streaming<pb::AssignmentPiece>,
}

impl SessionClient {
    /// Keeps a session open until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut managers = Managers::new(self.known_managers.clone());
        let (mut backoff, mut flaps, mut hold) = (Backoff::default(), Flaps::default(), Duration::ZERO);
        loop {
            let local = *self.local_manager.borrow_and_update();
            if let Some(addr) = managers.next(local) {
                let began = Instant::now();
                let session = Box::pin(self.session(addr, &mut managers, hold));
                let ended = stop.run_until_cancelled(session).await;
                if began.elapsed() >= GOOD_SESSION {
                    backoff.reset();
                }
                let Some(Err(error)) = ended else { return };
                if matches!(error, SessionError::Described) {
                    hold = flaps.hold(began.elapsed());
                    tracing::info!(?hold, "this node's description changed");
                    continue;
                }
                tracing::info!(manager = %addr, %error, "no session");
                self.channels.drop_channel(addr);
                managers.failed(addr);
                self.note_end(&error);
            }
            let pause = backoff.pause();
            let new_local = self.local_manager.changed();
            let wait = async {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    Ok(()) = new_local => {}
                }
            };
            if stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
        }
    }

    fn note_end(&self, error: &SessionError) {
        let removed = matches!(error, SessionError::Manager(status) if status.code() == Code::NotFound);
        self.state.send_modify(|state| {
            state.connected = None;
            state.error = error.to_string();
            state.removed = removed;
        });
    }

    /// One session, from its opening to its end, which is always an error. It does not end within `hold` because the
    /// node has become another.
    async fn session(
        &mut self,
        addr: SocketAddr,
        managers: &mut Managers,
        hold: Duration,
    ) -> Result<std::convert::Infallible, SessionError> {
        let opened = self.open(addr, managers).await?;
        let Opened { client, id, description, mut messages, mut assignments } = opened;
        managers.succeeded(addr);
        self.outbox.lock().resend_all();
        let heartbeats = heartbeats(client.clone(), id.clone(), self.reports.clone());
        let asker = Asker { client: client.clone(), channels: &self.channels, addr, session_id: id.clone() };
        let questions = answer_questions(asker, &self.inspect);
        let statuses = send_statuses(client, id, &self.outbox);
        let deliveries = deliver(&mut assignments, &self.deliveries, &self.fence);
        let described = described_anew(&self.describe, &description, hold);
        let members = async {
            loop {
                let message = messages.message().await?.ok_or(SessionError::Closed)?;
                self.note_members(addr, &message, managers)?;
            }
        };
        tokio::select! {
            // The manager's last word comes before the end of anything else.
            biased;
            ended = members => ended,
            ended = heartbeats => ended,
            ended = statuses => ended,
            never = questions => match never {},
            ended = deliveries => ended,
            ended = described => ended,
        }
    }

    async fn open(&self, addr: SocketAddr, managers: &mut Managers) -> Result<Opened, SessionError> {
        let mut client = DispatcherClient::new(self.channels.get(addr))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let description = (self.describe)();
        let request = pb::SessionRequest { description: encode(&description)?, epoch: self.fence.epoch() };
        let opening = async {
            let mut messages = client.session(request).await?.into_inner();
            let first = messages.message().await?.ok_or(SessionError::Closed)?;
            // Before anything else of this manager is believed.
            self.fence.admit(first.epoch)?;
            let request = pb::AssignmentsRequest { session_id: first.session_id.clone() };
            let assignments = client.assignments(request).await?.into_inner();
            Ok::<_, SessionError>((first, messages, assignments))
        };
        let (first, messages, assignments) = in_time(opening).await?;
        self.note_members(addr, &first, managers)?;
        Ok(Opened { client, id: first.session_id, description, messages, assignments })
    }

    fn note_members(
        &self,
        addr: SocketAddr,
        message: &pb::SessionMessage,
        managers: &mut Managers,
    ) -> Result<(), FenceError> {
        self.fence.admit(message.epoch)?;
        let listed = message.managers.iter().filter_map(|manager| {
            Some(Manager { node: manager.node_id.parse().ok()?, addr: manager.addr.parse().ok()? })
        });
        self.note_keys(&message.gossip_keys);
        let listed: Vec<Manager> = listed.collect();
        managers.replace(listed.iter().map(|manager| manager.addr));
        let next = SessionState {
            connected: Some(addr),
            desired_role: role(&message.desired_role),
            managers: listed,
            root_pem: message.root_pem.clone(),
            issuer: message.issuer.clone(),
            removed: false,
            error: String::new(),
        };
        self.state.send_if_modified(|state| {
            let changed = *state != next;
            *state = next;
            changed
        });
        Ok(())
    }
}

impl SessionClient {
    /// A manager of an earlier version has none to give.
    fn note_keys(&self, body: &[u8]) {
        if body.is_empty() {
            return;
        }
        match decode::<GossipKeys>(body) {
            Ok(keys) => {
                self.keys.send_if_modified(|known| {
                    let is_new = *known != keys;
                    *known = keys;
                    is_new
                });
            }
            Err(error) => tracing::warn!(%error, "the manager's keys of gossip can't be read"),
        }
    }
}

fn role(word: &str) -> Option<Role> {
    match word {
        "manager" => Some(Role::Manager),
        "worker" => Some(Role::Worker),
        _ => None,
    }
}

/// Ends when the node is not what it said any more, after `hold`: the next session says it anew.
async fn described_anew(
    describe: &DescriptionProvider,
    said: &NodeDescription,
    hold: Duration,
) -> Result<std::convert::Infallible, SessionError> {
    tokio::time::sleep(hold).await;
    while describe() == *said {
        tokio::time::sleep(LOOK_PERIOD).await;
    }
    Err(SessionError::Described)
}

/// Sends statuses as they come; what was not acknowledged stays in the outbox for the next session.
async fn send_statuses(
    mut client: Client,
    session_id: String,
    shared: &SharedOutbox,
) -> Result<std::convert::Infallible, SessionError> {
    loop {
        let changed = shared.changed.notified();
        let batch = shared.lock().batch();
        if batch.is_empty() {
            changed.await;
            continue;
        }
        let request = pb::TaskStatusRequest { session_id: session_id.clone(), body: encode(&batch)? };
        in_time(async { Ok(client.update_task_status(request).await?) }).await?;
        shared.lock().acknowledge(&batch);
    }
}

/// Hands updates to the worker, one after the other.
async fn deliver(
    assignments: &mut Streaming<pb::AssignmentPiece>,
    deliveries: &mpsc::Sender<Delivery>,
    fence: &Fence,
) -> Result<std::convert::Infallible, SessionError> {
    let mut received = AssignmentPieces::default();
    loop {
        let piece = assignments.message().await?.ok_or(SessionError::Closed)?;
        let Some(update) = received.take(&piece)? else { continue };
        let (answer, taken) = oneshot::channel();
        fence.admit(update.generation().epoch)?;
        let delivery = Delivery { update, answer };
        deliveries.send(delivery).await.map_err(|_| SessionError::Stopping)?;
        taken.await.map_err(|_| SessionError::Stopping)??;
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, SessionError>>) -> Result<T, SessionError> {
    let late = |_| Status::deadline_exceeded("the manager does not answer");
    tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(late)?
}
