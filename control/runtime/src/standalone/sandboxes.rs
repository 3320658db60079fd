//! Network namespaces for the runs of containers: the agent wants them of the data plane, beside those of its tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_model::TaskId;
use control_model::spec::{PortConfig, Protocol};
use dataplane_model::{
    DataPlane, NodeView, ProtocolNumber, PublishedPort, Sandbox, SandboxId, SandboxStatus, Table,
};
use tokio::sync::watch;

use super::attachments::Attacher;
use super::ports::{Taker, allocate};

/// A sandbox is made in a fraction of a second, unless there is no manager yet that says what else the node has.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a container can't be connected. `Display` is what its user sees.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    #[error(
        "The data plane of this node, which connects containers, does not run: the node is not part of a swarm (use \"docker swarm \
         init\" or \"docker swarm join\"), or waits for \"docker swarm unlock\"."
    )]
    NoSwarm,
    #[error("failed to set up container networking: {0}")]
    Failed(String),
}

/// What a node has while it is in a swarm.
#[derive(Clone)]
pub struct Ground {
    pub dataplane: Arc<dyn DataPlane>,
    /// What the data plane was given last.
    pub views: watch::Receiver<Option<Arc<NodeView>>>,
    pub attacher: Arc<dyn Attacher>,
}

/// A sandbox that is there.
pub(super) struct Taken {
    pub id: TaskId,
    pub netns: PathBuf,
    pub ports: Vec<PortConfig>,
}

/// What is wanted of the data plane.
#[derive(Default)]
pub(super) struct Sandboxes {
    wanted: watch::Sender<Table<SandboxId, Sandbox>>,
    ground: Mutex<Option<Ground>>,
    /// Held while numbers of ports are given.
    numbers: Mutex<Numbers>,
}

/// Whose ports are whose, beside what the view says.
#[derive(Debug, Default)]
struct Numbers {
    /// Sandboxes that were given back; the view may still have them.
    given_back: BTreeSet<SandboxId>,
    /// Of sandboxes that the swarm gives; the view may not have them yet.
    reserved: BTreeMap<TaskId, Vec<PublishedPort>>,
}

impl Sandboxes {
    /// One that is there already.
    pub fn keep(&self, id: TaskId, row: Sandbox) {
        self.wanted.send_modify(|wanted| drop(wanted.insert(SandboxId(id.to_string()), row)));
    }

    /// The same of one that the swarm has given.
    pub fn reserve(&self, id: TaskId, ports: &[PortConfig]) {
        let ports = ports.iter().map(published_port).collect();
        locked(&self.numbers).reserved.insert(id, ports);
    }

    pub fn watch(&self) -> watch::Receiver<Table<SandboxId, Sandbox>> {
        self.wanted.subscribe()
    }

    pub fn enter(&self, ground: Ground) {
        *locked(&self.ground) = Some(ground);
    }

    pub fn leave(&self) {
        *locked(&self.ground) = None;
    }

    pub fn ground(&self) -> Option<Ground> {
        locked(&self.ground).clone()
    }

    /// Makes one with a name that none had before, and with these ports.
    pub async fn take(&self, mut row: Sandbox, ports: &[PortConfig]) -> Result<Taken, SandboxError> {
        let ground = self.ground().ok_or(SandboxError::NoSwarm)?;
        let (id, ports) = self.number(&row.task_name, ports)?;
        row.host_ports = ports.iter().map(published_port).collect();
        self.keep(id, row);
        match made(&ground, &SandboxId(id.to_string())).await {
            Ok(netns) => Ok(Taken { id, netns, ports }),
            Err(reason) => {
                self.give_back(id);
                Err(SandboxError::Failed(reason))
            }
        }
    }

    /// A name for a sandbox of the container with this name, and numbers for its ports that nobody has.
    pub fn number(
        &self,
        name: &str,
        ports: &[PortConfig],
    ) -> Result<(TaskId, Vec<PortConfig>), SandboxError> {
        let ground = self.ground().ok_or(SandboxError::NoSwarm)?;
        let id = TaskId::from_bits(rand::random());
        let mut numbers = locked(&self.numbers);
        let view = ground.views.borrow().clone();
        let published = published(view.as_deref(), &self.wanted.borrow(), &mut numbers);
        let given = allocate(ports, |protocol, port| {
            if published.contains(&(number(protocol), port)) {
                return Some(Taker::Published);
            }
            is_bound(protocol, port).then_some(Taker::Process)
        });
        let ports = given.map_err(|taken| {
            let endpoint = id.container_id();
            SandboxError::Failed(format!(
                "driver failed programming external connectivity on endpoint {name} ({endpoint}): {taken}"
            ))
        })?;
        numbers.reserved.insert(id, ports.iter().map(published_port).collect());
        Ok((id, ports))
    }

    /// Of one that is there.
    pub fn netns(&self, id: TaskId) -> Option<PathBuf> {
        let reports = self.ground()?.dataplane.watch();
        match reports.borrow().sandboxes.get(&SandboxId(id.to_string())) {
            Some(SandboxStatus::Ready { netns }) => Some(netns.clone()),
            _ => None,
        }
    }

    /// Of one that is not there nothing is left to give.
    pub fn give_back(&self, id: TaskId) {
        let key = SandboxId(id.to_string());
        let mut numbers = locked(&self.numbers);
        self.wanted.send_if_modified(|wanted| wanted.remove(&key).is_some());
        numbers.reserved.remove(&id);
        numbers.given_back.insert(key);
    }
}

/// What services and containers publish on this node.
fn published(
    view: Option<&NodeView>,
    wanted: &Table<SandboxId, Sandbox>,
    Numbers { given_back, reserved }: &mut Numbers,
) -> BTreeSet<(ProtocolNumber, u16)> {
    let key = |port: &PublishedPort| (port.protocol, port.published);
    let own = wanted.values().flat_map(|row| &row.host_ports);
    let mut all: BTreeSet<_> = own.chain(reserved.values().flatten()).map(key).collect();
    let Some(view) = view else { return all };
    given_back.retain(|id| view.sandboxes.contains_key(id));
    let others = view.sandboxes.iter().filter(|(id, _)| !given_back.contains(*id));
    all.extend(others.flat_map(|(_, row)| &row.host_ports).map(key));
    all.extend(view.services.values().flat_map(|service| &service.ingress_ports).map(key));
    all
}

/// The sandbox's namespace, once the data plane has it.
async fn made(ground: &Ground, key: &SandboxId) -> Result<PathBuf, String> {
    let mut reports = ground.dataplane.watch();
    let made = async {
        let report = reports.wait_for(|report| report.sandboxes.contains_key(key)).await;
        report.ok()?.sandboxes.get(key).cloned()
    };
    match tokio::time::timeout(READY_TIMEOUT, made).await {
        Ok(Some(SandboxStatus::Ready { netns })) => Ok(netns),
        Ok(Some(SandboxStatus::Failed { reason })) => Err(reason),
        Ok(None) => Err("the data plane has ended".to_owned()),
        Err(_) => {
            let first = ground.dataplane.watch().borrow().errors.first().cloned();
            let why = first.unwrap_or_else(|| "no manager has said yet what else this node has".to_owned());
            Err(format!("there is no sandbox after {} s: {why}", READY_TIMEOUT.as_secs()))
        }
    }
}

/// A process of this node has the port.
fn is_bound(protocol: Protocol, port: u16) -> bool {
    let place = (Ipv4Addr::UNSPECIFIED, port);
    let tried = match protocol {
        Protocol::Tcp => TcpListener::bind(place).map(drop),
        Protocol::Udp => UdpSocket::bind(place).map(drop),
        Protocol::Sctp => Ok(()),
    };
    tried.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

pub(super) fn published_port(port: &PortConfig) -> PublishedPort {
    PublishedPort { protocol: number(port.protocol), published: port.published, target: port.target }
}

/// IANA protocol numbers.
fn number(protocol: Protocol) -> ProtocolNumber {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
