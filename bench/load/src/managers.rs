//! Three managers, ours or a peer's: who leads, what ends and comes back, and small writes that each of them takes.

mod dockerd;
mod engine;
mod etcd;
mod mesh;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench_lab::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Runtime;

pub use dockerd::DockerManagers;
pub use engine::{Connection, Engine};
pub use etcd::Etcd;
pub use mesh::{LAB, MeshManagers};

/// How many there are of each kind.
pub const N_MANAGERS: usize = 3;

/// How long a process may take to end, or to come back as a member that is heard.
const RETURN_LIMIT: Duration = Duration::from_mins(2);

/// With `MESH_BENCH_ALONE` set the peers are left out: what is looked at then, with a profiler, is ours.
fn with_peers() -> Result<()> {
    ensure!(std::env::var_os("MESH_BENCH_ALONE").is_none(), "left out, as MESH_BENCH_ALONE says");
    Ok(())
}

/// Three members of a cluster that agrees on writes.
pub trait Managers {
    type Writer: Write;

    /// Where its connections live.
    fn runtime(&self) -> &Runtime;

    /// Who leads now.
    fn leader(&self) -> Result<usize>;

    /// Process id of a member.
    fn pid(&self, member: usize) -> Result<u32>;

    /// Starts a member that has ended, and returns when all members are heard again.
    fn revive(&self, member: usize) -> Result<()>;

    /// A connection to a member.
    async fn connect(&self, member: usize) -> Result<Self::Writer>;

    /// Removes what was written.
    fn forget(&self) -> Result<()>;
}

/// A cluster whose nodes can be lost; the managers are its first.
pub trait Nodes {
    /// Where connections to it live.
    fn runtime(&self) -> &Runtime;

    /// Of the node's API.
    fn socket(&self, node: usize) -> Result<PathBuf>;

    /// As the cluster knows it.
    fn address(&self, node: usize) -> String;

    /// The node loses its cable and its daemon.
    fn lose(&self, node: usize) -> Result<()>;

    /// It gets both back.
    fn give_back(&self, node: usize) -> Result<()>;

    /// Where its load balancers can be looked at, if they can.
    fn pins(&self, node: usize) -> Result<Option<PathBuf>>;
}

/// One connection to one member.
pub trait Write {
    /// A small object that was not there before; returns when it is accepted.
    fn write(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// Sends a signal to a member.
pub fn signal(managers: &impl Managers, member: usize, signal: Signal) -> Result<u32> {
    let pid = managers.pid(member)?;
    kill(Pid::from_raw(i32::try_from(pid)?), signal).context("can't send a signal")?;
    Ok(pid)
}

/// Whether a process is over, but perhaps for what its parent wants to know of it.
pub fn has_ended(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let n_threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('Z' | 'X')) && n_threads <= 1
}

/// Waits until a process is over.
fn wait_for_end(pid: u32) -> Result<()> {
    wait_until("a process to end", RETURN_LIMIT, || Ok(has_ended(pid).then_some(()))).map(drop)
}

/// A runtime for connections that are used while somebody waits for them.
fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Our daemon, as `cargo xtask bench` has built it.
pub fn meshd() -> Result<PathBuf> {
    let meshd =
        std::env::var_os("MESH_MESHD").context("MESH_MESHD does not name a meshd; use cargo xtask bench")?;
    Ok(PathBuf::from(meshd))
}
