//! Programs in the background: found by their ids, ended when dropped.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bench_lab::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;

use crate::netns::Place;

/// How long a server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long a server may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A server in the background.
#[derive(Debug)]
pub struct Background {
    name: String,
    child: Child,
    /// What it writes to its standard error.
    complaints: NamedTempFile,
}

impl Background {
    /// Starts `command`; what it complains of is shown if it ends too early.
    pub fn start(mut command: Command) -> Result<Self> {
        let name = command.get_args().nth(1).unwrap_or_default().to_string_lossy().into_owned();
        let complaints = NamedTempFile::new()?;
        // A group of its own: Ctrl-C ends the load, and servers are ended in order.
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(complaints.reopen()?)
            .spawn()
            .with_context(|| format!("can't start {name}"))?;
        Ok(Self { name, child, complaints })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it listens at `address` in `place`; fails early if it ends.
    pub fn wait_for_port(&mut self, place: &Place, address: SocketAddr) -> Result<()> {
        self.wait_for(&format!("{address} to listen"), || {
            let connected = place.inside(|| Ok(std::net::TcpStream::connect(address).is_ok()))?;
            Ok(connected.then_some(()))
        })
    }

    /// Waits until `fact` holds; fails early if it ends.
    pub fn wait_for(&mut self, what: &str, mut fact: impl FnMut() -> Result<Option<()>>) -> Result<()> {
        let mut ended = None;
        let child = &mut self.child;
        wait_until(what, START_LIMIT, || {
            ended = child.try_wait()?;
            if ended.is_some() { Ok(Some(())) } else { fact() }
        })?;
        if let Some(status) = ended {
            let complaints = std::fs::read_to_string(self.complaints.path())?;
            bail!("{} ended with {status}: {}", self.name, complaints.trim());
        }
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let child = &mut self.child;
        let ended = wait_until("it to end", STOP_LIMIT, || Ok(child.try_wait()?));
        if ended.is_err() {
            eprintln!("bench-load: {} does not end; killed", self.name);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
