//! Output on its way to a log server. It is on the disk first: a container never waits for a server, one that is away gets
//! what was written meanwhile, as far as it is kept, and so does one whose node's daemon was away.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control_model::{OutputPosition, OutputQuery};
use oci_spec::runtime::Spec;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::log_files::LogFiles;
use super::process::printed_command;
use super::{Container, Oci};
use crate::files::write_atomically;
use crate::logs::{Encoder, Origin, Sink};

/// Between two attempts to reach a server: more and more, up to this.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Between two looks for a file that conmon has left behind.
const KEEP_PERIOD: Duration = Duration::from_secs(1);
/// How far it has come is put on the disk so often: a daemon that is killed sends what was sent since once more.
const RECORD_PERIOD: Duration = Duration::from_secs(1);
/// A container that has ended is removed with lines that no server has taken in this time (Docker's `loggerCloseTimeout`).
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What goes on for one container.
#[derive(Debug, Default)]
pub(super) struct Forwarding(std::sync::Mutex<Option<JoinHandle<()>>>);

impl Forwarding {
    fn locked(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Its end: a moment for what is left of a container that has ended, none for another.
    pub async fn end(&self, has_ended: bool) {
        let Some(mut going_on) = self.locked().take() else { return };
        if has_ended && tokio::time::timeout(DRAIN_TIMEOUT, &mut going_on).await.is_ok() {
            return;
        }
        going_on.abort();
    }
}

impl Oci {
    /// Takes up what a daemon does for the output of its containers: what has a log server is sent there, and what conmon leaves
    /// behind is kept, until this executor is dropped. Needs a tokio runtime.
    pub fn resume_output(&self) {
        let containers: Vec<Arc<Container>> = self.containers().values().cloned().collect();
        for container in containers {
            self.forward_output(&container);
        }
        let executor = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(KEEP_PERIOD).await;
                let Some(inner) = executor.upgrade() else { return };
                let _ = tokio::task::spawn_blocking(move || Oci(inner).keep_logs()).await;
            }
        });
    }

    fn keep_logs(&self) {
        let running = self.list_containers().into_iter().filter(|one| one.state == "running");
        for one in running {
            if let Err(error) = LogFiles::new(&one.log).keep() {
                tracing::warn!(container = one.record.container_id, %error, "its former output is not kept");
            }
        }
    }

    /// Sends the lines of a container that has a log server there, until it has ended and all are sent.
    pub(super) fn forward_output(&self, container: &Arc<Container>) {
        let record = container.record();
        let Ok(logging) = record.log.logging() else { return };
        let mut going_on = container.forwarding.locked();
        if logging.destination.is_none() || going_on.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let env = Spec::load(container.paths.bundle().join("config.json")).ok();
        let env = env.and_then(|spec| spec.process().as_ref()?.env().clone()).unwrap_or_default();
        let origin = Origin {
            command: printed_command(&record.command),
            container_id: record.container_id.clone(),
            name: record.name,
            image: record.image,
            image_id: record.image_id,
            created_at: record.created_at,
            hostname: self.0.node_hostname.clone(),
            pid: std::process::id(),
            labels: record.labels,
            env,
        };
        let Some(encoder) = Encoder::new(&logging, origin) else { return };
        let sent = container.paths.dir.join("sent.json");
        let forwarder = Forwarder {
            oci: self.clone(),
            container_id: record.container_id,
            encoder,
            upto: Sent::read(sent),
        };
        *going_on = Some(tokio::spawn(forwarder.run()));
    }
}

struct Forwarder {
    oci: Oci,
    container_id: String,
    encoder: Encoder,
    upto: Sent,
}

impl Forwarder {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.send_all(&mut pause).await {
            tracing::warn!(container = self.container_id, %error, "its log server takes nothing");
            tokio::time::sleep(pause).await;
            pause = LAST_PAUSE.min(pause * 2);
        }
        self.upto.write();
    }

    /// From where it stands to the end; an error where the server is not there.
    async fn send_all(&mut self, pause: &mut Duration) -> io::Result<()> {
        let query = OutputQuery {
            stdout: true,
            stderr: true,
            since: None,
            until: None,
            after: self.upto.position,
            tail: None,
            follow: true,
        };
        let mut sink = Sink::connect(&self.encoder.server()).await?;
        let Ok(mut pieces) = self.oci.output(&self.container_id, query) else { return Ok(()) };
        while let Some(piece) = pieces.recv().await {
            let piece = piece?;
            sink.check()?;
            for line in &piece.lines {
                for message in self.encoder.messages(line) {
                    sink.send(&message).await?;
                }
            }
            *pause = FIRST_PAUSE;
            self.upto.note(piece.upto);
        }
        Ok(())
    }
}

/// How far the output was sent.
struct Sent {
    file: PathBuf,
    position: Option<OutputPosition>,
    written: Instant,
}

impl Sent {
    fn read(file: PathBuf) -> Self {
        let position = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { file, position, written: Instant::now() }
    }

    fn note(&mut self, upto: OutputPosition) {
        self.position = Some(upto);
        if self.written.elapsed() >= RECORD_PERIOD {
            self.write();
        }
    }

    fn write(&mut self) {
        self.written = Instant::now();
        let Some(position) = self.position else { return };
        let text = serde_json::to_vec(&position).expect("two numbers");
        if let Err(error) = write_atomically(&self.file, &text) {
            tracing::warn!(file = %self.file.display(), %error, "how far a log was sent is not kept");
        }
    }
}
