//! The other executor: tasks run in the host's Docker Engine, through its API.
//!
//! Each task has two containers there. The sandbox container holds a network namespace and does nothing; it is made when the task is
//! prepared, and its namespace is laid where the data plane looks for those that are given ([`DockerOptions::given_netns_dir`]). The
//! task's own container joins it, and starts when the data plane has filled it. All state is the engine's: containers are found by
//! their labels.

mod executor;
mod output;
mod pause;
mod sandbox;
mod spec;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum, LocalNodeState};
use bollard::query_parameters::ListContainersOptions;
use control_model::spec::PortConfig;
use control_model::{TaskId, Timestamp};

pub use spec::is_of_sandbox;

/// A task's own container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskContainer {
    pub id: String,
    /// `<service>.<slot>.<task id>`.
    pub name: String,
    pub task: TaskId,
    pub image: String,
    pub image_id: String,
    pub labels: BTreeMap<String, String>,
    pub created: Timestamp,
    pub is_running: bool,
}

/// A request that only asks is answered by then.
const TIMEOUT: Duration = Duration::from_mins(2);
/// The same of one that copies files, mounts what is far away, or waits for a log server.
const LONG_TIMEOUT: Duration = Duration::from_mins(30);
/// The API of Docker 20.10: 1.41.
const OLDEST_API_MINOR: u32 = 41;
/// What Docker's own swarm leaves behind, and the data plane makes for itself.
const GATEWAY_NETWORK: &str = "docker_gwbridge";

/// Where the engine is, and what it is to work with.
#[derive(Debug, Clone)]
pub struct DockerOptions {
    /// Its unix socket.
    pub socket: PathBuf,
    /// Files of tasks, their secrets and configs; in memory.
    pub run_dir: PathBuf,
    /// Network namespaces that the data plane takes instead of making its own, by task.
    pub given_netns_dir: PathBuf,
    /// For `{{.Node.Hostname}}`.
    pub node_hostname: String,
}

/// Why the engine can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("can't reach Docker Engine at {socket}")]
    Unreachable {
        socket: PathBuf,
        #[source]
        source: Error,
    },
    #[error(
        "Docker Engine at {socket} is part of a swarm of its own, which wants the same ports: run docker swarm leave there first"
    )]
    InSwarm { socket: PathBuf },
    #[error(
        "Docker Engine at {socket} speaks version 1.{minor} of its API: 1.{OLDEST_API_MINOR} is needed, that of 20.10"
    )]
    TooOld { socket: PathBuf, minor: u32 },
    #[error(
        "Docker Engine at {socket} has a network {GATEWAY_NETWORK}, which its own swarm has left: run docker -H unix://{socket} \
         network rm {GATEWAY_NETWORK} first"
    )]
    GatewayNetwork { socket: PathBuf },
    #[error("can't make the image of sandbox containers")]
    SandboxImage(#[source] Error),
}

/// The host's Docker Engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DockerEngine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Docker,
    options: DockerOptions,
    /// What was started here, and may not listen yet.
    opening: Mutex<BTreeMap<TaskId, Opened>>,
}

/// A process that was started.
#[derive(Debug, Clone)]
struct Opened {
    pid: i32,
    at: Timestamp,
    ports: Vec<PortConfig>,
}

impl DockerEngine {
    /// Asks the engine who it is, and gives it the image of sandbox containers.
    pub async fn connect(options: DockerOptions) -> Result<Self, ConnectError> {
        let socket = options.socket.clone();
        let unreachable = |source| ConnectError::Unreachable { socket: socket.clone(), source };
        let path = options.socket.display().to_string();
        let client = Docker::connect_with_unix(&path, TIMEOUT.as_secs(), bollard::API_DEFAULT_VERSION)
            .map_err(unreachable)?
            .with_request_modifier(url_safe_credentials)
            .negotiate_version()
            .await
            .map_err(unreachable)?;
        let info = client.info().await.map_err(unreachable)?;
        let state = info.swarm.and_then(|swarm| swarm.local_node_state);
        if !matches!(state, None | Some(LocalNodeState::EMPTY | LocalNodeState::INACTIVE)) {
            return Err(ConnectError::InSwarm { socket });
        }
        match client.inspect_network(GATEWAY_NETWORK, None).await {
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(unreachable(error)),
            Ok(_) => return Err(ConnectError::GatewayNetwork { socket }),
        }
        let this = Self(Arc::new(Inner { client, options, opening: Mutex::default() }));
        if this.api_minor() < OLDEST_API_MINOR {
            return Err(ConnectError::TooOld { socket, minor: this.api_minor() });
        }
        this.ensure_sandbox_image().await.map_err(ConnectError::SandboxImage)?;
        Ok(this)
    }

    /// The socket that it is asked by.
    pub fn socket(&self) -> &std::path::Path {
        &self.0.options.socket
    }

    /// The newest version of its API that is spoken with it: the minor number, of 1.
    pub fn api_minor(&self) -> u32 {
        u32::try_from(self.client().client_version().minor_version).unwrap_or(u32::MAX)
    }

    /// The containers of tasks, those that have ended too.
    pub async fn containers(&self) -> io::Result<Vec<TaskContainer>> {
        let found = self.labelled(spec::TASK_LABEL, None).await;
        let found = found.map_err(|error| io::Error::other(words(&error)))?;
        Ok(found.into_iter().filter_map(task_container).collect())
    }

    fn client(&self) -> &Docker {
        &self.0.client
    }

    /// For requests that take long.
    fn patient_client(&self) -> Docker {
        self.client().clone().with_timeout(LONG_TIMEOUT)
    }

    /// Containers with a label, and this value if one is given. Whoever makes an image of one gives its label away: the name says
    /// whether it is ours.
    async fn labelled(&self, label: &str, value: Option<TaskId>) -> Result<Vec<ContainerSummary>, Error> {
        let wanted = value.map_or_else(|| label.to_owned(), |value| format!("{label}={value}"));
        let filters = HashMap::from([("label".to_owned(), vec![wanted])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let mut found = self.client().list_containers(Some(options)).await?;
        found.retain(|container| spec::is_named_so(container, label));
        Ok(found)
    }

    /// The id of a task's own container.
    async fn container_of(&self, task: TaskId) -> Result<Option<String>, Error> {
        let found = self.labelled(spec::TASK_LABEL, Some(task)).await?;
        Ok(found.into_iter().find_map(|container| container.id))
    }
}

fn task_container(found: ContainerSummary) -> Option<TaskContainer> {
    let labels: BTreeMap<String, String> = found.labels.unwrap_or_default().into_iter().collect();
    let name = found.names.unwrap_or_default().into_iter().next().unwrap_or_default();
    Some(TaskContainer {
        id: found.id?,
        name: name.trim_start_matches('/').to_owned(),
        task: labels.get(spec::TASK_LABEL)?.parse().ok()?,
        image: found.image.unwrap_or_default(),
        image_id: found.image_id.unwrap_or_default(),
        labels,
        created: Timestamp(found.created.unwrap_or_default().saturating_mul(1_000_000_000)),
        is_running: found.state == Some(ContainerSummaryStateEnum::RUNNING),
    })
}

/// The engine reads base64 of the alphabet for addresses (RFC 4648, section 5), and the client writes the other.
fn url_safe_credentials(mut request: bollard::BollardRequest) -> bollard::BollardRequest {
    if let Some(given) = request.headers_mut().get_mut("x-registry-auth") {
        let safe: Vec<u8> = given
            .as_bytes()
            .iter()
            .map(|byte| match byte {
                b'+' => b'-',
                b'/' => b'_',
                other => *other,
            })
            .collect();
        if let Ok(safe) = http::HeaderValue::from_bytes(&safe) {
            *given = safe;
        }
    }
    request
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}

/// The engine's own words, without what the client puts around them.
fn words(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        Error::DockerStreamError { error } => error.clone(),
        other => format!("Docker Engine: {other}"),
    }
}
