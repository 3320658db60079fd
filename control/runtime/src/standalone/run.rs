//! One container's runs: from a start to the end, and what follows it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use control_model::TaskId;
use control_model::executor::{Executor as _, SandboxPaths};
use control_model::object::HealthStatus;
use control_model::spec::PortConfig;
use control_model::standalone::{AttachRequest, NetworkMode};
use dataplane_model::Mac;
use tokio::task::JoinSet;

use super::attachments::Given;
use super::life::{Life, Phase};
use super::place::place_in;
use super::restart::End;
use super::sandboxes::{Ground, SandboxError};
use super::{Standalone, ports, row};
use crate::oci::{
    ContainerRecord, ControlError, Ended, Place, Run, Stage, StandaloneError, StandaloneRecord, now,
};

/// Of one that could not begin: Docker's codes for what can't be run, what is not there, and all else.
const NOT_RUNNABLE: i32 = 126;
const NOT_FOUND: i32 = 127;
const NOT_STARTED: i32 = 128;
/// Of one whose end can't be read.
const CODE_UNKNOWN: i32 = 255;

/// Docker's short form of ids.
const SHORT_ID_LEN: usize = 12;

/// A run whose process has ended.
struct Over {
    ended: Ended,
    ran: Duration,
    sandbox: Option<TaskId>,
}

impl Standalone {
    /// Goes on with those that run. Needs a tokio runtime.
    pub fn resume(&self) {
        for life in self.lives() {
            if life.seen().phase == Phase::Running {
                tokio::spawn(self.clone().mind(life));
            } else if self.own(&life).is_ok_and(|own| own.spec.auto_remove && own.sandbox.is_some()) {
                let standalone = self.clone();
                tokio::spawn(async move {
                    let _turn = life.turn.lock().await;
                    standalone.remove_now(&life, true).await
                });
            }
        }
    }

    /// The node is in a swarm: containers can be started, and those are that their rule wants.
    pub fn enter(&self, ground: Ground) {
        let mut views = ground.views.clone();
        self.0.sandboxes.enter(ground);
        let standalone = self.clone();
        tokio::spawn(async move {
            // There are no sandboxes before that.
            if views.wait_for(Option::is_some).await.is_err() {
                return;
            }
            if !standalone.0.has_due.swap(false, Ordering::Relaxed) {
                return;
            }
            let mut starting = JoinSet::new();
            for life in standalone.lives() {
                let standalone = standalone.clone();
                starting.spawn(async move {
                    if standalone.is_due(&life)
                        && let Err(error) = standalone.start_life(&life).await
                    {
                        tracing::warn!(container = life.id.container_id(), %error, "not started again");
                    }
                });
            }
            starting.join_all().await;
        });
    }

    /// It was started once, does not run, and its rule wants it to.
    fn is_due(&self, life: &Life) -> bool {
        let Ok(record) = self.record(life) else { return false };
        life.seen().phase == Phase::Idle
            && record.ended.is_some()
            && self.end(life).is_some_and(End::is_followed_later)
    }

    /// The node leaves its swarm: all are stopped, and none is started.
    pub async fn leave(&self) {
        self.0.sandboxes.leave();
        self.0.has_due.store(true, Ordering::Relaxed);
        let mut stopping = JoinSet::new();
        for life in self.lives() {
            let standalone = self.clone();
            stopping.spawn(async move {
                if let Err(error) = standalone.end_life(&life, None, None).await {
                    tracing::warn!(container = life.id.container_id(), %error, "not stopped");
                }
            });
        }
        stopping.join_all().await;
    }

    /// The same, and nothing of them is left mounted.
    pub async fn lay_down(&self) {
        self.leave().await;
        for life in self.lives() {
            if let Err(error) = self.0.oci.lay_down_standalone(life.id) {
                tracing::warn!(container = life.id.container_id(), %error, "its files stay mounted");
            }
        }
    }

    /// Starts it; false if it runs already.
    pub async fn start(&self, id: &str) -> Result<bool, StandaloneError> {
        let life = self.life(id)?;
        self.start_life(&life).await
    }

    async fn start_life(&self, life: &Arc<Life>) -> Result<bool, StandaloneError> {
        let _turn = life.turn.lock().await;
        match life.seen().phase {
            Phase::Idle => {}
            Phase::Running | Phase::Restarting => return Ok(false),
            Phase::Removing | Phase::Gone => {
                let words = "container is marked for removal and cannot be started";
                return Err(StandaloneError::Conflict(words.to_owned()));
            }
        }
        self.change(life.id, |own| (own.n_restarts, own.is_stopped) = (0, false))?;
        *life.pauses() = super::restart::Pauses::default();
        match self.launch(life).await {
            Ok(()) => {
                life.enter(Phase::Running);
                tokio::spawn(self.clone().mind(life.clone()));
                Ok(true)
            }
            Err(error) => {
                life.end(code_of(&error), Phase::Idle);
                if self.own(life)?.spec.auto_remove {
                    self.remove_now(life, true).await?;
                }
                Err(error)
            }
        }
    }

    /// A run in a sandbox of its own. Of one that can't begin nothing is left.
    async fn launch(&self, life: &Life) -> Result<(), StandaloneError> {
        let launched = self.try_launch(life).await;
        if launched.is_err() {
            self.0.oci.give_up_start(life.id);
        }
        launched
    }

    async fn try_launch(&self, life: &Life) -> Result<(), StandaloneError> {
        let (record, own) = (self.record(life)?, self.own(life)?);
        let mut wanted = own.spec.ports.clone();
        if own.spec.publishes_all {
            wanted.extend(ports::unpublished(&record.exposed_ports, &wanted));
        }
        let run = match &own.spec.network {
            NetworkMode::Swarm { network, aliases } => {
                self.attached_run((&record, &own), (network, aliases), &wanted).await?
            }
            NetworkMode::Bridge | NetworkMode::None => {
                let taken = self.0.sandboxes.take(row(&record, &own, &[]), &wanted).await?;
                Run {
                    sandbox: taken.id,
                    place: self.place(&taken.netns, &own.spec.network).await,
                    paths: SandboxPaths { netns: taken.netns },
                    ports: taken.ports,
                }
            }
        };
        let sandbox = run.sandbox;
        let begun = self.0.oci.run_standalone(life.id, run).await;
        if begun.is_err() {
            self.give_back(sandbox);
        }
        begun
    }

    /// In a sandbox that the swarm gives, with a place in one of its networks.
    async fn attached_run(
        &self,
        (record, own): (&ContainerRecord, &StandaloneRecord),
        (network, aliases): (&str, &[String]),
        ports: &[PortConfig],
    ) -> Result<Run, StandaloneError> {
        let (id, ports) = self.0.sandboxes.number(&record.name, ports)?;
        self.0.attachments.hold(id, record.task);
        let short_id = record.container_id[..SHORT_ID_LEN].to_owned();
        let request = AttachRequest {
            id,
            name: record.name.clone(),
            hostname: record.hostname.clone(),
            aliases: aliases.iter().cloned().chain([short_id]).collect(),
            network: network.to_owned(),
            ports: ports.clone(),
            dns: own.spec.task.container.dns.clone(),
        };
        let attached = match self.0.sandboxes.ground() {
            Some(ground) => match ground.attacher.attach(request).await {
                Ok(()) => self.0.attachments.given(id).await,
                Err(error) => Err(error),
            },
            None => return Err(SandboxError::NoSwarm.into()),
        };
        match attached {
            Ok(given) => Ok(Run { sandbox: id, place: place_of(&given), paths: given.paths, ports }),
            Err(why) => {
                self.give_back(id);
                self.detach(id);
                Err(StandaloneError::Failed(format!("Could not attach to network {network}: {why}")))
            }
        }
    }

    /// The agent may never hear of a place that was asked for in vain.
    fn detach(&self, id: TaskId) {
        let Some(ground) = self.0.sandboxes.ground() else { return };
        tokio::spawn(async move {
            if let Err(error) = ground.attacher.detach(id).await {
                tracing::warn!(task = %id, error, "a place in a network is not given up");
            }
        });
    }

    async fn place(&self, netns: &std::path::Path, network: &NetworkMode) -> Option<Place> {
        if *network != NetworkMode::Bridge {
            return None;
        }
        let netns = netns.to_owned();
        let looked = tokio::task::spawn_blocking(move || place_in(&netns)).await;
        let place = looked.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        place.unwrap_or_else(|error| {
            tracing::warn!(%error, "a container's address is not known");
            None
        })
    }

    /// Sees a run to its end, and does what follows, until none follows by itself.
    async fn mind(self, life: Arc<Life>) {
        loop {
            let over = tokio::select! {
                over = self.over(&life) => over,
                () = self.shuts_down() => return,
            };
            let turn = life.turn.lock().await;
            let is_followed = self.end(&life).is_some_and(End::is_followed)
                && self.0.sandboxes.ground().is_some()
                && !life.is_kept();
            if !is_followed {
                self.finish(&life, &over).await;
                return;
            }
            life.enter(Phase::Restarting);
            drop(turn);
            let pause = life.pauses().next(over.ran);
            // Who stops it meanwhile says so by the phase.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = life.leaves(&[Phase::Restarting]) => {}
                () = self.shuts_down() => return,
            }
            let _turn = life.turn.lock().await;
            if life.seen().phase != Phase::Restarting {
                return;
            }
            if let Err(error) = self.run_again(&life, &over).await {
                tracing::warn!(container = life.id.container_id(), %error, "not started again");
                self.finish(&life, &over).await;
                return;
            }
            life.enter(Phase::Running);
        }
    }

    async fn shuts_down(&self) {
        // Its sender is this owner.
        let _ = self.0.is_shut_down.subscribe().wait_for(|is_shut_down| *is_shut_down).await;
    }

    /// In the same sandbox, and with the same ports.
    async fn run_again(&self, life: &Life, over: &Over) -> Result<(), StandaloneError> {
        self.change(life.id, |own| own.n_restarts += 1)?;
        let Some(sandbox) = over.sandbox else { return self.launch(life).await };
        let Some(netns) = self.0.sandboxes.netns(sandbox) else {
            self.give_back(sandbox);
            return self.launch(life).await;
        };
        let record = self.record(life)?;
        let place = record.standalone.and_then(|own| own.place);
        let run = Run { sandbox, paths: SandboxPaths { netns }, ports: record.ports, place };
        self.0.oci.run_standalone(life.id, run).await
    }

    /// The run's end, with its health until then.
    async fn over(&self, life: &Life) -> Over {
        let oci = &self.0.oci;
        let health = async {
            let mut known = HealthStatus::Starting;
            while let Ok(Some(status)) = oci.health(life.id, known).await {
                known = status;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = oci.wait(life.id) => {
                if let Err(error) = ended {
                    tracing::warn!(container = life.id.container_id(), %error, "its end is not known");
                }
            }
            () = health => {}
        }
        let unknown = Ended { code: CODE_UNKNOWN, out_of_memory: false, at: now() };
        // One that a killed daemon has not brought to its first step has an end too.
        let noted = oci.update_standalone(life.id, |record| record.ended = record.ended.or(Some(unknown)));
        let record = noted.ok().and_then(|()| self.record(life).ok());
        let sandbox = record.as_ref().and_then(|record| record.standalone.as_ref()?.sandbox);
        let ended = record.as_ref().and_then(|record| record.ended);
        let began = match record.as_ref().map(|record| record.stage) {
            Some(Stage::Started { at, .. }) => Some(at),
            _ => None,
        };
        let ran = ended.zip(began).map(|(ended, began)| ended.at.since(began)).unwrap_or_default();
        Over { ended: ended.unwrap_or(unknown), ran, sandbox }
    }

    /// No run follows by itself. The caller has its turn.
    async fn finish(&self, life: &Life, over: &Over) {
        if let Some(sandbox) = over.sandbox {
            self.give_back(sandbox);
        }
        let is_to_go = self.own(life).is_ok_and(|own| own.spec.auto_remove) && !life.is_kept();
        if !is_to_go {
            return life.end(over.ended.code, Phase::Idle);
        }
        life.end(over.ended.code, Phase::Removing);
        if let Err(error) = self.remove_now(life, true).await {
            tracing::warn!(container = life.id.container_id(), %error, "not removed");
            life.enter(Phase::Idle);
        }
    }

    /// Stops it by `signal`, or its own; by force after `grace`, or its own time. False if it did not run.
    pub async fn stop(
        &self,
        id: &str,
        signal: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<bool, StandaloneError> {
        let life = self.life(id)?;
        if life.seen().phase == Phase::Idle {
            return Ok(false);
        }
        self.change(life.id, |own| own.is_stopped = true)?;
        self.end_life(&life, signal, grace).await
    }

    async fn end_life(
        &self,
        life: &Life,
        signal: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<bool, StandaloneError> {
        if self.cancel_restart(life).await {
            return Ok(true);
        }
        let did_run = self.0.oci.stop(&life.id.container_id(), signal, grace).await?;
        life.leaves(&[Phase::Running, Phase::Restarting]).await;
        Ok(did_run)
    }

    /// One that is about to start again does not. False if it is about to do nothing of its own.
    async fn cancel_restart(&self, life: &Life) -> bool {
        let _turn = life.turn.lock().await;
        if life.seen().phase != Phase::Restarting {
            return false;
        }
        if let Some(sandbox) = self.own(life).ok().and_then(|own| own.sandbox) {
            self.give_back(sandbox);
        }
        life.end(life.seen().code, Phase::Idle);
        true
    }

    /// Sends a signal. By that which stops it, or ends it, its user says that it is to end.
    pub async fn kill(&self, id: &str, signal: &str) -> Result<(), StandaloneError> {
        let life = self.life(id)?;
        if life.seen().phase != Phase::Idle && self.0.oci.is_to_end_by(id, signal)? {
            self.change(life.id, |own| own.is_stopped = true)?;
            if self.cancel_restart(&life).await {
                return Ok(());
            }
        }
        Ok(self.0.oci.kill(id, signal).await?)
    }

    /// Stops it, if it runs, and starts it.
    pub async fn restart(
        &self,
        id: &str,
        signal: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<(), StandaloneError> {
        let life = self.life(id)?;
        life.is_kept.store(true, Ordering::Relaxed);
        let stopped = self.stop(id, signal, grace).await;
        life.is_kept.store(false, Ordering::Relaxed);
        stopped?;
        self.start_life(&life).await.map(drop)
    }

    /// Removes it; one that runs by force alone. With `volumes`, those whose names were drawn go too.
    pub async fn remove(&self, id: &str, force: bool, volumes: bool) -> Result<(), StandaloneError> {
        let life = self.life(id)?;
        loop {
            if force {
                self.end_by_force(&life).await?;
            }
            let _turn = life.turn.lock().await;
            let word = match life.seen().phase {
                Phase::Idle | Phase::Removing | Phase::Gone => return self.remove_now(&life, volumes).await,
                // It was started meanwhile.
                Phase::Running | Phase::Restarting if force => continue,
                Phase::Running => "running",
                Phase::Restarting => "restarting",
            };
            let name = self.record(&life)?.name;
            return Err(StandaloneError::Conflict(format!(
                "cannot remove container \"{name}\": container is {word}: stop the container before removing or force remove"
            )));
        }
    }

    async fn end_by_force(&self, life: &Life) -> Result<(), StandaloneError> {
        if !matches!(life.seen().phase, Phase::Running | Phase::Restarting) {
            return Ok(());
        }
        self.change(life.id, |own| own.is_stopped = true)?;
        if !self.cancel_restart(life).await {
            let killed = self.0.oci.terminate(life.id).await;
            killed.map_err(|error| StandaloneError::Failed(error.to_string()))?;
            life.leaves(&[Phase::Running, Phase::Restarting]).await;
        }
        Ok(())
    }

    /// The caller has its turn, and it does not run.
    async fn remove_now(&self, life: &Life, volumes: bool) -> Result<(), StandaloneError> {
        if life.seen().phase == Phase::Gone {
            return Ok(());
        }
        let (record, own) = (self.record(life)?, self.own(life)?);
        life.enter(Phase::Removing);
        if let Err(error) = self.0.oci.remove(life.id).await {
            life.enter(Phase::Idle);
            return Err(StandaloneError::Failed(error.to_string()));
        }
        if volumes {
            self.remove_volumes(own.drawn_volumes).await;
        }
        let mut known = self.known();
        known.lives.remove(&life.id);
        known.names.remove(&record.name);
        drop(known);
        life.enter(Phase::Gone);
        Ok(())
    }

    async fn remove_volumes(&self, names: Vec<String>) {
        let oci = self.0.oci.clone();
        let removing = tokio::task::spawn_blocking(move || {
            for name in names {
                // Another container may have it by its name, and a user may have removed it.
                if let Err(error) = oci.remove_volume(&name) {
                    tracing::debug!(name, %error, "a volume stays");
                }
            }
        });
        // A panic is in the log.
        let _ = removing.await;
    }

    /// As its rule sees it, once it has ended.
    fn end(&self, life: &Life) -> Option<End> {
        let record = self.record(life).ok()?;
        let own = record.standalone?;
        let code = record.ended.map_or(CODE_UNKNOWN, |ended| ended.code);
        Some(End { rule: own.spec.restart, code, is_stopped: own.is_stopped, n_restarts: own.n_restarts })
    }
}

/// Its first address in the swarm's network.
fn place_of(given: &Given) -> Option<Place> {
    let address = given.attachments.first()?.address;
    let mac = match address.ip() {
        IpAddr::V4(ip) => Mac::of_endpoint(ip).to_string(),
        IpAddr::V6(_) => String::new(),
    };
    Some(Place { address, gateway: None, mac })
}

fn code_of(error: &StandaloneError) -> i32 {
    let text = error.to_string();
    if text.contains("permission denied") {
        NOT_RUNNABLE
    } else if matches!(error, StandaloneError::Refused(_)) {
        NOT_FOUND
    } else {
        NOT_STARTED
    }
}

impl From<SandboxError> for StandaloneError {
    fn from(error: SandboxError) -> Self {
        let text = error.to_string();
        match error {
            SandboxError::NoSwarm => Self::NoSwarm(text),
            SandboxError::Failed(_) => Self::Failed(text),
        }
    }
}

impl From<ControlError> for StandaloneError {
    fn from(error: ControlError) -> Self {
        let text = error.to_string();
        match error {
            ControlError::Unknown(id) => Self::NoContainer(id),
            ControlError::NotRunning(_) => Self::Conflict(text),
            ControlError::Signal(_) | ControlError::Ps(_) => Self::Refused(text),
            ControlError::Failed(_) => Self::Failed(text),
        }
    }
}
