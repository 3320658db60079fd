//! Containers that no service made, in memory. Their commands: `echo` and `cat` do what they always do, `fail` says so and ends
//! with 3, all others run until they are stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use control_api::engine::{
    Container, ContainerChange, EngineError, EngineEvent, EngineEventKind, LocalEngine as _,
};
use control_api::standalone::{Attachment, Own, Place, Standalone};
use control_model::log_driver::LogDriver;
use control_model::standalone::{ConsoleSize, NetworkMode, RestartRule, StandaloneSpec, WaitFor};
use control_model::{OutputStream, TaskId, Timestamp};
use futures::FutureExt as _;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::engine::FakeEngine;

/// When everything happens.
const NOW: Timestamp = Timestamp(1_700_000_000_000_000_000);

type Pieces = mpsc::Sender<(OutputStream, Vec<u8>)>;

/// What goes on with the containers.
#[derive(Default)]
pub struct Lives {
    by_id: BTreeMap<String, watch::Sender<Seen>>,
    /// Who waits for a start.
    attached: BTreeMap<String, Vec<(Pieces, Option<DuplexStream>)>>,
    /// Of terminals.
    pub sizes: Vec<ConsoleSize>,
    n_made: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    is_running: bool,
    is_gone: bool,
    n_ends: u64,
    code: i32,
}

impl FakeEngine {
    fn change<T>(&self, id: &str, change: impl FnOnce(&mut Container) -> T) -> Result<T, EngineError> {
        let mut containers = self.containers.lock().expect("no panic");
        let found = containers.iter_mut().find(|one| one.id == id);
        Ok(change(found.ok_or_else(|| EngineError::NotFound(format!("No such container: {id}")))?))
    }

    fn see(&self, id: &str, change: impl FnOnce(&mut Seen)) {
        let lives = self.lives.lock().expect("no panic");
        lives.by_id.get(id).expect("made").send_modify(change);
    }

    fn tell_change(&self, change: ContainerChange, container: &Container) {
        let kind = EngineEventKind::Container { change, container: Box::new(container.clone()) };
        // Nobody may listen.
        let _ = self.events.send(EngineEvent { at: NOW, kind });
    }

    /// The process has ended.
    pub fn end(&self, id: &str, code: i32) {
        let ended = self.change(id, |container| {
            (container.running, container.exit_code, container.finished) = (false, code, Some(NOW));
            container.clone()
        });
        let Ok(container) = ended else { return };
        let Some(own) = &container.own else { return };
        self.tell_change(ContainerChange::Ended, &container);
        if own.spec.auto_remove {
            self.containers.lock().expect("no panic").retain(|one| one.id != id);
        }
        self.see(id, |seen| {
            (seen.is_running, seen.code, seen.is_gone) = (false, code, own.spec.auto_remove);
            seen.n_ends += 1;
        });
    }

    async fn play(&self, container: Container, attached: Vec<(Pieces, Option<DuplexStream>)>) {
        let words: Vec<&str> = container.command.iter().map(String::as_str).collect();
        let (stream, text, code) = match words.as_slice() {
            ["echo", rest @ ..] => (OutputStream::Stdout, rest.join(" ") + "\n", 0),
            ["cat"] => (OutputStream::Stdout, String::new(), 0),
            ["fail"] => (OutputStream::Stderr, "it failed\n".to_owned(), 3),
            _ => return,
        };
        for (pieces, input) in attached {
            if let (["cat"], Some(mut input)) = (words.as_slice(), input) {
                let mut all = Vec::new();
                input.read_to_end(&mut all).await.expect("in memory");
                // Who has gone hears nothing.
                let _ = pieces.send((stream, all)).await;
            }
            let _ = pieces.send((stream, text.clone().into_bytes())).await;
        }
        self.end(&container.id, code);
    }
}

#[async_trait]
impl Standalone for FakeEngine {
    async fn create(&self, name: &str, spec: StandaloneSpec) -> Result<String, EngineError> {
        let container = &spec.task.container;
        let image = self.image(&container.image).await?;
        let number = {
            let mut lives = self.lives.lock().expect("no panic");
            lives.n_made += 1;
            lives.n_made
        };
        let name = if name.is_empty() { format!("drawn_{number}") } else { name.to_owned() };
        let task = TaskId::from_bits(u128::from(number) << 64);
        let made = Container {
            id: task.container_id(),
            name: name.clone(),
            task,
            own: None,
            image: container.image.clone(),
            image_id: image.id,
            command: container.command.iter().chain(&container.args).cloned().collect(),
            env: Vec::new(),
            user: String::new(),
            working_dir: String::new(),
            hostname: task.container_id()[..12].to_owned(),
            tty: container.tty,
            log: LogDriver::default(),
            host_ports: spec.ports.clone(),
            exposed_ports: spec.exposed_ports.clone(),
            mounts: Vec::new(),
            labels: container.labels.clone(),
            created: NOW,
            started: None,
            finished: None,
            running: false,
            pid: 0,
            exit_code: 0,
            out_of_memory: false,
            health: None,
        };
        let made = Container { own: Some(Box::new(Own { spec, ..Own::default() })), ..made };
        let mut containers = self.containers.lock().expect("no panic");
        if let Some(holder) = containers.iter().find(|one| one.name == name) {
            return Err(EngineError::Conflict(format!("/{name} is already in use by {}", holder.id)));
        }
        self.lives.lock().expect("no panic").by_id.insert(made.id.clone(), watch::Sender::default());
        self.tell_change(ContainerChange::Created, &made);
        containers.push(made.clone());
        Ok(made.id)
    }

    async fn start(&self, id: &str) -> Result<bool, EngineError> {
        let container = self.change(id, |container| {
            if container.running {
                return None;
            }
            (container.running, container.started, container.pid) = (true, Some(NOW), 77);
            if let Some(own) = container.own.as_mut().filter(|own| own.spec.network == NetworkMode::Bridge) {
                own.place = Some(Place {
                    address: "172.18.0.2/16".parse().expect("an address"),
                    gateway: Some([172, 18, 0, 1].into()),
                    mac: "02:42:ac:12:00:02".into(),
                });
            }
            Some(container.clone())
        })?;
        let Some(container) = container else { return Ok(false) };
        if container.command.first().is_some_and(|word| word == "missing") {
            self.change(id, |container| (container.running, container.started) = (false, None))?;
            let words = "failed to create task for container: exec: \"missing\": executable file not found in $PATH: unknown";
            return Err(EngineError::Invalid(words.into()));
        }
        self.tell_change(ContainerChange::Started, &container);
        self.see(id, |seen| seen.is_running = true);
        let attached = self.lives.lock().expect("no panic").attached.remove(id).unwrap_or_default();
        self.play(container, attached).await;
        Ok(true)
    }

    async fn restart(
        &self,
        id: &str,
        signal: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<(), EngineError> {
        self.stop(id, signal, grace).await?;
        self.start(id).await.map(drop)
    }

    async fn remove(&self, id: &str, force: bool, _: bool) -> Result<(), EngineError> {
        let is_running = self.change(id, |container| container.running)?;
        if is_running && !force {
            return Err(EngineError::Conflict("cannot remove container: container is running".into()));
        }
        self.containers.lock().expect("no panic").retain(|one| one.id != id);
        self.see(id, |seen| seen.is_gone = true);
        Ok(())
    }

    async fn rename(&self, id: &str, name: &str) -> Result<String, EngineError> {
        self.change(id, |container| std::mem::replace(&mut container.name, name.to_owned()))
    }

    async fn set_rule(&self, id: &str, rule: RestartRule) -> Result<(), EngineError> {
        self.change(id, |container| container.own.as_mut().expect("it has none else").spec.restart = rule)
    }

    async fn wait(&self, id: &str, what: WaitFor) -> Result<BoxFuture<'static, i32>, EngineError> {
        let mut seen = {
            let lives = self.lives.lock().expect("no panic");
            lives.by_id.get(id).expect("no task's is waited for").subscribe()
        };
        let n_ends = seen.borrow().n_ends;
        let is_over = move |seen: &Seen| match what {
            _ if seen.is_gone => true,
            WaitFor::NotRunning => !seen.is_running,
            WaitFor::NextExit => seen.n_ends > n_ends,
            WaitFor::Removed => false,
        };
        Ok(async move { seen.wait_for(is_over).await.expect("its sender lives").code }.boxed())
    }

    async fn attach(&self, id: &str, with_input: bool) -> Result<Attachment, EngineError> {
        let (pieces, output) = mpsc::channel(4);
        let (near, far) = tokio::io::duplex(1024);
        let (input, far) = if with_input { (Some(Box::new(near) as _), Some(far)) } else { (None, None) };
        let mut lives = self.lives.lock().expect("no panic");
        lives.attached.entry(id.to_owned()).or_default().push((pieces, far));
        Ok(Attachment { input, output: ReceiverStream::new(output).boxed() })
    }

    async fn resize(&self, id: &str, size: ConsoleSize) -> Result<(), EngineError> {
        if !self.change(id, |container| container.running)? {
            return Err(EngineError::Conflict(format!("container {id} is not running")));
        }
        self.lives.lock().expect("no panic").sizes.push(size);
        Ok(())
    }
}
