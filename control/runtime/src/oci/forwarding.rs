//! Output on its way to a log server. It is on the disk first: a container never waits for a server, one that is away gets
//! what was written meanwhile, as far as it is kept, and so does one whose node's daemon was away.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control_model::{OutputLine, OutputPosition, OutputQuery, OutputStream};
use oci_spec::runtime::Spec;
use tokio::sync::Notify;
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
/// A line that is longer is sent in pieces (Docker's `defaultBufSize`).
const MAX_LINE_LEN: usize = 16 << 10;

/// What goes on for one container.
#[derive(Debug, Default)]
pub(super) struct Forwarding {
    task: std::sync::Mutex<Option<JoinHandle<()>>>,
    /// Its container has ended, and is to be removed.
    ending: Arc<Notify>,
}

impl Forwarding {
    fn locked(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Its end: a moment for what is left of a container that has ended, none for another.
    pub async fn end(&self, has_ended: bool) {
        let Some(mut going_on) = self.locked().take() else { return };
        // A server that is not there is tried once more, and no longer.
        self.ending.notify_one();
        if has_ended && tokio::time::timeout(DRAIN_TIMEOUT, &mut going_on).await.is_ok() {
            return;
        }
        going_on.abort();
        let _ = going_on.await;
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
            sink: None,
            begun: BTreeMap::new(),
            ending: container.forwarding.ending.clone(),
        };
        *going_on = Some(tokio::spawn(forwarder.run()));
    }
}

struct Forwarder {
    oci: Oci,
    container_id: String,
    encoder: Encoder,
    upto: Sent,
    /// Reached with the first line.
    sink: Option<Sink>,
    /// Lines whose ends have not come, and when they grew last: conmon cuts them where the process's own writes end.
    begun: BTreeMap<OutputStream, (OutputLine, Instant)>,
    ending: Arc<Notify>,
}

impl Forwarder {
    async fn run(mut self) {
        let (mut pause, mut is_last) = (FIRST_PAUSE, false);
        while let Err(error) = self.send_all(&mut pause).await {
            tracing::warn!(container = self.container_id, %error, "its output does not reach its log server");
            (self.sink, self.begun) = (None, BTreeMap::new());
            self.upto.write();
            if is_last {
                return;
            }
            tokio::select! {
                () = self.ending.notified() => is_last = true,
                () = tokio::time::sleep(pause) => pause = LAST_PAUSE.min(pause * 2),
            }
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
        let Ok(mut pieces) = self.oci.output(&self.container_id, query) else { return Ok(()) };
        let (mut read, mut due) = (self.upto.position, None::<Instant>);
        loop {
            let piece = tokio::select! {
                // The end of a line that is there comes before the time that it has.
                biased;
                piece = pieces.recv() => Some(piece),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
            };
            if let Some(piece) = piece {
                let Some(piece) = piece else { break };
                let piece = piece?;
                for line in piece.lines {
                    self.take(line).await?;
                }
                *pause = FIRST_PAUSE;
                read = Some(piece.upto);
                due = due.or_else(|| Some(Instant::now() + RECORD_PERIOD));
            }
            let now = Instant::now();
            let is_due = due.is_some_and(|due| due <= now);
            if is_due {
                // The end of a line may not come for long.
                self.send_begun(now.checked_sub(RECORD_PERIOD)).await?;
            }
            // What has begun is on the disk alone.
            if self.begun.is_empty() {
                self.upto.position = read;
            }
            if is_due {
                self.upto.write();
                due = (!self.begun.is_empty()).then(|| now + RECORD_PERIOD);
            }
        }
        self.send_begun(Some(Instant::now())).await?;
        self.upto.position = read;
        Ok(())
    }

    /// Puts the parts of a line together.
    async fn take(&mut self, line: OutputLine) -> io::Result<()> {
        let stream = line.stream;
        let whole = match self.begun.remove(&stream) {
            Some((mut begun, _)) => {
                begun.text.extend_from_slice(&line.text);
                begun
            }
            None => line,
        };
        if whole.text.ends_with(b"\n") || whole.text.len() >= MAX_LINE_LEN {
            return self.send(&whole).await;
        }
        self.begun.insert(stream, (whole, Instant::now()));
        Ok(())
    }

    /// Sends the lines that nothing was added to since.
    async fn send_begun(&mut self, since: Option<Instant>) -> io::Result<()> {
        let is_old = |at: Instant| since.is_some_and(|since| at <= since);
        let old: Vec<OutputStream> =
            self.begun.iter().filter(|(_, (_, at))| is_old(*at)).map(|(stream, _)| *stream).collect();
        for stream in old {
            if let Some((line, _)) = self.begun.remove(&stream) {
                self.send(&line).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, line: &OutputLine) -> io::Result<()> {
        for message in self.encoder.messages(line) {
            if self.sink.is_none() {
                self.sink = Some(Sink::connect(&self.encoder.server()).await?);
            }
            let Some(sink) = &mut self.sink else { continue };
            sink.check()?;
            match sink.send(&message).await {
                // It never gets smaller.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    tracing::warn!(
                        container = self.container_id,
                        n_bytes = message.len(),
                        "too long for its log server"
                    );
                }
                other => other?,
            }
        }
        Ok(())
    }
}

/// How far the output was sent.
struct Sent {
    file: PathBuf,
    position: Option<OutputPosition>,
    on_disk: Option<OutputPosition>,
}

impl Sent {
    fn read(file: PathBuf) -> Self {
        let position = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { file, position, on_disk: position }
    }

    fn write(&mut self) {
        let Some(position) = self.position.filter(|_| self.position != self.on_disk) else { return };
        let text = serde_json::to_vec(&position).expect("two numbers");
        match write_atomically(&self.file, &text) {
            Ok(()) => self.on_disk = self.position,
            Err(error) => {
                tracing::warn!(file = %self.file.display(), %error, "how far a log was sent is not kept");
            }
        }
    }
}
