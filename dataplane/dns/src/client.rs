//! meshd's end: finds the DNS process or starts it, feeds it, and starts it again when it dies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use dataplane_model::SandboxId;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::launch::ServerLaunch;
use crate::protocol::{Ack, Command, FrameError, PROTOCOL_VERSION, read_frame, write_frame};
use crate::zones::Zones;

/// Between two attempts to reach the process: it takes some ten milliseconds to start.
const RECONNECT_PERIOD: Duration = Duration::from_millis(50);

/// Time that a process which was started has until the next is tried.
const START_TIMEOUT: Duration = Duration::from_secs(3);

/// After it a sandbox whose sockets could not be opened is tried again.
const RETRY_PERIOD: Duration = Duration::from_millis(500);

/// How long the process may take for one set of zones.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// What the DNS process does at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsStatus {
    pub connected: bool,
    /// Of the zones that it serves.
    pub revision: u64,
    pub served: BTreeSet<SandboxId>,
    pub failed: BTreeMap<SandboxId, String>,
    /// Why it is not connected.
    pub error: Option<String>,
}

/// A supervised connection to the DNS process. Dropping it leaves the process running.
#[derive(Debug)]
pub struct DnsClient {
    zones: watch::Sender<Option<Zones>>,
    status: watch::Receiver<DnsStatus>,
    socket: PathBuf,
    task: JoinHandle<()>,
}

impl DnsClient {
    /// Connects to the process at `socket`, in the background; starts it with `launch` if none answers. Needs a tokio
    /// runtime.
    pub fn start(socket: PathBuf, launch: Option<ServerLaunch>) -> Self {
        let (zones, wanted) = watch::channel(None);
        let (reports, status) = watch::channel(DnsStatus::default());
        let supervisor = Supervisor { socket: socket.clone(), launch, wanted, reports, child: None };
        Self { zones, status, socket, task: tokio::spawn(supervisor.run()) }
    }

    /// Wants `zones` to be served from now on; returns at once.
    pub fn set_zones(&self, zones: Zones) {
        self.zones.send_replace(Some(zones));
    }

    /// What is served, and a way to wait for the next change.
    pub fn status(&self) -> watch::Receiver<DnsStatus> {
        self.status.clone()
    }

    /// Ends the process: for a node that leaves for good.
    pub async fn stop_server(self) -> Result<(), FrameError> {
        self.task.abort();
        shutdown_server(&self.socket).await
    }
}

impl Drop for DnsClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks the process at `socket` to end, and waits until it has let go of its socket.
pub async fn shutdown_server(socket: &Path) -> Result<(), FrameError> {
    let mut stream = UnixStream::connect(socket).await?;
    write_frame(&mut stream, &Command::Shutdown).await?;
    while read_frame::<Ack>(&mut stream).await?.is_some() {}
    Ok(())
}

/// The task behind a [`DnsClient`].
struct Supervisor {
    socket: PathBuf,
    launch: Option<ServerLaunch>,
    wanted: watch::Receiver<Option<Zones>>,
    reports: watch::Sender<DnsStatus>,
    /// The process, if this supervisor started it; kept to be waited for.
    child: Option<Child>,
}

impl Supervisor {
    async fn run(mut self) {
        loop {
            let error = match self.connect().await {
                Ok(stream) => match self.feed(stream).await {
                    Ok(()) => return,
                    Err(error) => error.to_string(),
                },
                Err(error) => error,
            };
            tracing::debug!(%error, "no connection to the DNS process");
            self.reports.send_modify(|status| {
                status.connected = false;
                status.error = Some(error);
            });
            sleep(RECONNECT_PERIOD).await;
        }
    }

    /// A connection to a process that speaks this version. Starts the process if there is none.
    async fn connect(&mut self) -> Result<UnixStream, String> {
        if let Ok(stream) = UnixStream::connect(&self.socket).await {
            return Ok(stream);
        }
        let Some(launch) = &self.launch else {
            return Err(format!("no DNS process answers at {}", self.socket.display()));
        };
        if !self.child.as_mut().is_some_and(is_running) {
            let program = launch.program.display();
            self.child = Some(launch.start().map_err(|error| format!("can't start {program}: {error}"))?);
        }
        timeout(START_TIMEOUT, self.wait_for_socket())
            .await
            .unwrap_or_else(|_| Err(format!("the DNS process does not answer at {}", self.socket.display())))
    }

    async fn wait_for_socket(&mut self) -> Result<UnixStream, String> {
        loop {
            if let Ok(stream) = UnixStream::connect(&self.socket).await {
                return Ok(stream);
            }
            if !self.child.as_mut().is_some_and(is_running) {
                return Err("the DNS process ended as soon as it was started; its log says why".to_owned());
            }
            sleep(RECONNECT_PERIOD).await;
        }
    }

    /// Sends zones whenever they change. Ends without an error when the client is gone.
    async fn feed(&mut self, mut stream: UnixStream) -> Result<(), FrameError> {
        let hello = next_ack(&mut stream).await?;
        if hello.protocol != PROTOCOL_VERSION {
            tracing::info!(version = hello.protocol, "replacing a DNS process of another version");
            return self.replace(&mut stream).await;
        }
        self.report(hello);
        self.wanted.mark_changed();
        loop {
            if self.wait_for_work(&mut stream).await?.is_none() {
                return Ok(());
            }
            let Some(zones) = self.wanted.borrow_and_update().clone() else { continue };
            write_frame(&mut stream, &Command::SetZones(zones)).await?;
            let ack = next_ack(&mut stream).await?;
            self.report(ack);
        }
    }

    /// Returns when there are zones to send: new ones, or the same ones again for sandboxes that failed. `None` when the
    /// client is gone; an error when the process is.
    async fn wait_for_work(&mut self, stream: &mut UnixStream) -> Result<Option<()>, FrameError> {
        let failed = !self.reports.borrow().failed.is_empty();
        let mut probe = [0];
        tokio::select! {
            changed = self.wanted.changed() => Ok(changed.ok()),
            () = sleep(RETRY_PERIOD), if failed => Ok(Some(())),
            closed = peek_end(stream, &mut probe) => Err(closed.into()),
        }
    }

    async fn replace(&mut self, stream: &mut UnixStream) -> Result<(), FrameError> {
        write_frame(stream, &Command::Shutdown).await?;
        while read_frame::<Ack>(stream).await?.is_some() {}
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into())
    }

    fn report(&self, ack: Ack) {
        let Ack { revision, served, failed, .. } = ack;
        self.reports.send_replace(DnsStatus { connected: true, revision, served, failed, error: None });
    }
}

async fn next_ack(stream: &mut UnixStream) -> Result<Ack, FrameError> {
    let timed_out = || std::io::Error::from(std::io::ErrorKind::TimedOut);
    let ack = timeout(ACK_TIMEOUT, read_frame::<Ack>(stream)).await.map_err(|_| timed_out())??;
    ack.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
}

/// Returns when the process closes the connection: it says nothing without being asked.
async fn peek_end(stream: &UnixStream, probe: &mut [u8]) -> std::io::Error {
    loop {
        if let Err(error) = stream.readable().await {
            return error;
        }
        match stream.try_read(probe) {
            Ok(0) => return std::io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => return std::io::ErrorKind::InvalidData.into(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return error,
        }
    }
}

fn is_running(child: &mut Child) -> bool {
    matches!(child.try_wait(), Ok(None))
}
