//! Containers that no service made, and their lives: made, started, ended, started again by their rule, removed. Their users alone
//! remove them; what runs outlives the daemon, and is found again.

mod attachments;
mod executor;
mod life;
mod names;
mod place;
mod ports;
mod restart;
mod run;
mod sandboxes;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use control_model::TaskId;
use control_model::spec::PortConfig;
use control_model::standalone::{NetworkMode, RestartRule, StandaloneSpec, WaitFor};
use dataplane_model::{Sandbox, SandboxId, Table};
use tokio::sync::watch;

use crate::oci::{ContainerRecord, Oci, Stage, StandaloneError, StandaloneRecord};
use attachments::Attachments;
use life::{Life, Seen};
use sandboxes::{Sandboxes, published_port};

pub use attachments::Attacher;
pub use executor::NodeExecutor;
pub use life::Phase;
pub use sandboxes::Ground;

/// The owner of all of them. Cheap to clone.
#[derive(Clone)]
pub struct Standalone(Arc<Inner>);

struct Inner {
    oci: Oci,
    sandboxes: Sandboxes,
    attachments: Attachments,
    known: Mutex<Known>,
    /// There may be some that a node that enters a swarm is to start.
    has_due: AtomicBool,
    /// Nothing follows any more what ends.
    is_shut_down: watch::Sender<bool>,
}

#[derive(Default)]
struct Known {
    lives: BTreeMap<TaskId, Arc<Life>>,
    /// Also of those that are being made.
    names: BTreeMap<String, TaskId>,
}

impl Standalone {
    /// Those that are on the disk. What runs is wanted as it is; nothing else begins.
    pub fn new(oci: Oci) -> Self {
        let (mut known, sandboxes, attachments) =
            (Known::default(), Sandboxes::default(), Attachments::default());
        for record in oci.standalone_records() {
            let Some(own) = &record.standalone else { continue };
            let is_running = record.stage != Stage::Prepared && record.ended.is_none();
            match (own.sandbox.filter(|_| is_running), &own.spec.network) {
                (None, _) => {}
                (Some(place), NetworkMode::Swarm { .. }) => {
                    attachments.hold(place, record.task);
                    sandboxes.reserve(place, &record.ports);
                }
                (Some(sandbox), NetworkMode::Bridge | NetworkMode::None) => {
                    sandboxes.keep(sandbox, row(&record, own, &record.ports));
                }
            }
            let phase = if is_running { Phase::Running } else { Phase::Idle };
            let code = record.ended.map_or(0, |ended| ended.code);
            let life = Life::new(record.task, Seen { phase, n_ends: 0, code });
            known.lives.insert(record.task, Arc::new(life));
            known.names.insert(record.name, record.task);
        }
        Self(Arc::new(Inner {
            oci,
            sandboxes,
            attachments,
            known: Mutex::new(known),
            has_due: AtomicBool::new(true),
            is_shut_down: watch::Sender::new(false),
        }))
    }

    /// The daemon ends. What runs goes on; what ends is the next daemon's to follow.
    pub fn shut_down(&self) {
        self.0.is_shut_down.send_replace(true);
    }

    /// The sandboxes that the node's data plane is to have beside those of its tasks.
    pub fn sandboxes(&self) -> watch::Receiver<Table<SandboxId, Sandbox>> {
        self.0.sandboxes.watch()
    }

    /// Makes one; gives its container's id. Nothing runs yet.
    pub async fn create(&self, name: &str, spec: StandaloneSpec) -> Result<String, StandaloneError> {
        let id = TaskId::from_bits(rand::random());
        let name = self.take_name(name, id)?;
        if let Err(error) = self.0.oci.make_standalone(id, &name, spec).await {
            self.known().names.remove(&name);
            return Err(error);
        }
        self.known().lives.insert(id, Arc::new(Life::new(id, Seen::default())));
        Ok(id.container_id())
    }

    /// Gives it another name; gives the one that it had.
    pub fn rename(&self, id: &str, name: &str) -> Result<String, StandaloneError> {
        let life = self.life(id)?;
        let former = self.record(&life)?.name;
        if name.strip_prefix('/').unwrap_or(name) == former {
            let words = "Renaming a container with the same name as its current name";
            return Err(StandaloneError::Refused(words.to_owned()));
        }
        let name = self.take_name(name, life.id)?;
        if let Err(error) = self.0.oci.update_standalone(life.id, |record| record.name.clone_from(&name)) {
            self.known().names.remove(&name);
            return Err(error);
        }
        self.known().names.remove(&former);
        Ok(former)
    }

    /// What becomes of it from its next end on.
    pub fn set_rule(&self, id: &str, rule: RestartRule) -> Result<(), StandaloneError> {
        let life = self.life(id)?;
        if rule != RestartRule::No && self.own(&life)?.spec.auto_remove {
            let words = "Restart policy cannot be updated because AutoRemove is enabled for the container";
            return Err(StandaloneError::Refused(words.to_owned()));
        }
        self.change(life.id, |own| own.spec.restart = rule)
    }

    /// The exit code of the end that is waited for.
    pub fn wait(
        &self,
        id: &str,
        what: WaitFor,
    ) -> Result<impl Future<Output = i32> + Send + use<>, StandaloneError> {
        let life = self.life(id)?;
        let mut seen = life.watch();
        let n_ends = seen.borrow().n_ends;
        let is_over = move |seen: &Seen| match (what, seen.phase) {
            (_, Phase::Gone) => true,
            (WaitFor::NotRunning, phase) => !matches!(phase, Phase::Running | Phase::Restarting),
            (WaitFor::NextExit, _) => seen.n_ends > n_ends,
            (WaitFor::Removed, _) => false,
        };
        Ok(async move {
            // Of one that is gone the last word stays.
            let code = seen.wait_for(is_over).await.map(|seen| seen.code);
            code.unwrap_or_else(|_| seen.borrow().code)
        })
    }

    /// `None` of a container that a service made.
    pub fn phase(&self, id: TaskId) -> Option<Phase> {
        self.known().lives.get(&id).map(|life| life.seen().phase)
    }

    /// Takes the name, or draws one.
    fn take_name(&self, text: &str, id: TaskId) -> Result<String, StandaloneError> {
        let tasks = self.0.oci.list_containers();
        let mut known = self.known();
        let holder = |name: &str| {
            let own = known.names.get(name).map(|id| id.container_id());
            own.or_else(|| {
                tasks.iter().find(|one| one.record.name == name).map(|one| one.record.container_id.clone())
            })
        };
        let name = if text.is_empty() {
            names::drawn(rand::random(), |name| holder(name).is_some())
        } else {
            names::given(text).map_err(StandaloneError::Refused)?.to_owned()
        };
        if let Some(holder) = holder(&name) {
            return Err(StandaloneError::Conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". You have to remove (or \
                 rename) that container to be able to reuse that name."
            )));
        }
        known.names.insert(name.clone(), id);
        Ok(name)
    }

    /// A run needs its sandbox no more, nor its place in the swarm's networks.
    fn give_back(&self, sandbox: TaskId) {
        self.0.attachments.let_go(sandbox);
        self.0.sandboxes.give_back(sandbox);
    }

    fn life(&self, id: &str) -> Result<Arc<Life>, StandaloneError> {
        let life = TaskId::of_container(id).and_then(|id| self.known().lives.get(&id).cloned());
        life.ok_or_else(|| StandaloneError::NoContainer(id.to_owned()))
    }

    fn lives(&self) -> Vec<Arc<Life>> {
        self.known().lives.values().cloned().collect()
    }

    fn record(&self, life: &Life) -> Result<ContainerRecord, StandaloneError> {
        let record = self.0.oci.standalone_record(life.id);
        record.ok_or_else(|| StandaloneError::NoContainer(life.id.container_id()))
    }

    fn own(&self, life: &Life) -> Result<StandaloneRecord, StandaloneError> {
        Ok(self.record(life)?.standalone.map(|own| *own).unwrap_or_default())
    }

    fn change(&self, id: TaskId, change: impl FnOnce(&mut StandaloneRecord)) -> Result<(), StandaloneError> {
        self.0.oci.update_standalone(id, |record| {
            if let Some(own) = &mut record.standalone {
                change(own);
            }
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sandbox of a run with these ports.
fn row(record: &ContainerRecord, own: &StandaloneRecord, ports: &[PortConfig]) -> Sandbox {
    let container = &own.spec.task.container;
    Sandbox {
        task_name: record.name.clone(),
        hostname: record.hostname.clone(),
        attachments: Vec::new(),
        egress: own.spec.network != NetworkMode::None,
        host_ports: ports.iter().map(published_port).collect(),
        dns_servers: container.dns.nameservers.clone(),
        dns_options: container.dns.options.clone(),
    }
}
