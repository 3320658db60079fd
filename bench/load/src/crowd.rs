//! Many nodes without anything behind them: each joins with the token, holds a session, beats once a second, and says of every
//! task that it is given that it runs. To the managers they are nodes like others, but for their data paths, which answer no probe.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_ca::{JoinToken, NodeKey};
use control_model::object::{NodeDescription, TaskStatus};
use control_model::spec::{Platform, Resources};
use control_model::{Assignment, AssignmentUpdate, Task, TaskId, TaskState, Timestamp};
use control_rpc::pb::ca_client::CaClient;
use control_rpc::pb::dispatcher_client::DispatcherClient;
use control_rpc::{
    AssignmentPieces, Channels, Identity, IdentityPem, MAX_MESSAGE_BYTES, encode, join_channel, pb,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
/// How long a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// After a session has ended.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Nodes that join at the same time.
const N_JOINING: usize = 8;
/// Statuses in one message, as agents send them.
const BATCH: usize = 200;

/// What nodes need to become members.
#[derive(Debug, Clone)]
pub struct Invitation {
    pub token: String,
    pub managers: Vec<SocketAddr>,
}

/// Joins so many nodes and keeps their sessions, until this is dropped. `joined` is told when all are members.
pub async fn run(invitation: Invitation, n_nodes: u32, joined: std::sync::mpsc::Sender<Result<()>>) {
    let mut sessions = JoinSet::new();
    let told = join_all(&invitation, n_nodes, &mut sessions).await;
    if joined.send(told).is_ok() {
        while sessions.join_next().await.is_some() {}
    }
}

async fn join_all(invitation: &Invitation, n_nodes: u32, sessions: &mut JoinSet<()>) -> Result<()> {
    let mut joining = JoinSet::new();
    for number in 0..n_nodes {
        if joining.len() >= N_JOINING {
            sessions.spawn(next(&mut joining).await?.live());
        }
        joining.spawn(Member::join(invitation.clone(), number));
    }
    while !joining.is_empty() {
        sessions.spawn(next(&mut joining).await?.live());
    }
    Ok(())
}

async fn next(joining: &mut JoinSet<Result<Member>>) -> Result<Member> {
    joining.join_next().await.context("nobody joins")??
}

/// A node that has its certificate.
struct Member {
    channel: Channel,
    description: NodeDescription,
}

impl Member {
    async fn join(invitation: Invitation, number: u32) -> Result<Self> {
        let at = usize::try_from(number)? % invitation.managers.len();
        let manager = invitation.managers[at];
        let address = address(number);
        let token: JoinToken = invitation.token.parse()?;
        let (_, channel) = join_channel(manager, |root| token.verify_root(root)).await?;
        let key = NodeKey::generate()?;
        let request = pb::IssueRequest {
            csr_pem: key.csr_pem.clone(),
            token: invitation.token,
            availability: "active".to_owned(),
            data_path_addr: address.to_string(),
            ..pb::IssueRequest::default()
        };
        let issued = timeout(CALL_LIMIT, CaClient::new(channel).issue_node_certificate(request)).await??;
        let reply = issued.into_inner();
        ensure!(!reply.certificate_pem.is_empty(), "no certificate");
        let pem = IdentityPem { certificate: reply.certificate_pem, key: key.key_pem, roots: reply.root_pem };
        let channel = Channels::new(Identity::new(&pem)?).get(manager);
        Ok(Self { channel, description: describe(number, address) })
    }

    /// One session after the other.
    async fn live(self) {
        loop {
            if let Err(error) = self.session().await {
                eprintln!("   {}: {error:#}", self.description.hostname);
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn session(&self) -> Result<()> {
        let mut client =
            DispatcherClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let request = pb::SessionRequest { description: encode(&self.description)?, epoch: 0 };
        let mut messages = timeout(CALL_LIMIT, client.session(request)).await??.into_inner();
        let first = messages.message().await?.context("no session")?;
        let request = pb::AssignmentsRequest { session_id: first.session_id.clone() };
        let mut assignments = timeout(CALL_LIMIT, client.assignments(request)).await??.into_inner();
        let beats = beat(client.clone(), first.session_id.clone());
        let works = async {
            let mut received = AssignmentPieces::default();
            loop {
                let piece = assignments.message().await?.context("the assignments ended")?;
                let Some(update) = received.take(&piece)? else { continue };
                let running = own_tasks(update);
                for batch in running.chunks(BATCH) {
                    let (session_id, body) = (first.session_id.clone(), encode(&batch)?);
                    let request = pb::TaskStatusRequest { session_id, body };
                    timeout(CALL_LIMIT, client.update_task_status(request)).await??;
                }
            }
        };
        // Other messages are read, so that they don't pile up.
        let listens = async {
            while messages.message().await?.is_some() {}
            anyhow::bail!("the session ended")
        };
        tokio::select! {
            ended = beats => ended,
            ended = works => ended,
            ended = listens => ended,
        }
    }
}

async fn beat(mut client: DispatcherClient<Channel>, session_id: String) -> Result<()> {
    loop {
        let request =
            pb::HeartbeatRequest { session_id: session_id.clone(), applied: Some(pb::Generation::default()) };
        timeout(CALL_LIMIT, client.heartbeat(request)).await??;
        sleep(HEARTBEAT_PERIOD).await;
    }
}

/// What is to be said of the tasks in an update that are new.
fn own_tasks(update: AssignmentUpdate) -> Vec<(TaskId, TaskStatus)> {
    let rows = match update {
        AssignmentUpdate::Complete { set, .. } => set,
        AssignmentUpdate::Incremental { upserts, .. } => upserts,
    };
    let tasks = rows.into_iter().filter_map(|row| match row {
        Assignment::Task(task) => Some(task),
        _ => None,
    });
    tasks.filter_map(|task| Some((task.id, next_status(&task)?))).collect()
}

/// It runs, or has ended as asked; `None` if that is said already.
fn next_status(task: &Task) -> Option<TaskStatus> {
    let state =
        if task.desired_state > TaskState::Running { TaskState::Shutdown } else { TaskState::Running };
    let status = TaskStatus {
        state,
        at: Timestamp(task.status.at.0 + 1),
        message: "started".into(),
        ..TaskStatus::default()
    };
    (task.status.state < state).then_some(status)
}

fn describe(number: u32, address: IpAddr) -> NodeDescription {
    NodeDescription {
        hostname: format!("sim-{number}"),
        platform: Platform { architecture: "x86_64".into(), os: "linux".into() },
        resources: Resources { nano_cpus: 64_000_000_000, memory_bytes: 1 << 38 },
        data_path_addr: Some(address),
        addresses: vec![address],
        ..NodeDescription::default()
    }
}

/// Nobody has it.
fn address(number: u32) -> IpAddr {
    const BEFORE_FIRST: u32 = u32::from_be_bytes([10, 201, 0, 1]);
    Ipv4Addr::from(BEFORE_FIRST + number).into()
}
