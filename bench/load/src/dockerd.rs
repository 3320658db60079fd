//! Debian's dockerd in a namespace of its own: the peer, with nothing left of it when it is dropped.

mod swarm;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bench_lab::{run, try_run};
use tempfile::TempDir;

use crate::image::{COMMAND, IMAGE, ImageFile};
use crate::netns::Namespace;
use crate::process::Background;

pub use swarm::{Size, Swarm, address};

/// Whether a daemon may write rules into the packet filter of its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketFilter {
    /// The machine's packet filter and its modules stay as they are. Published ports and ways out don't work.
    Untouched,
    /// As Docker does where it is installed.
    Written,
}

/// A daemon, and the containers that it runs.
pub struct Dockerd {
    // Dropped in this order: the daemon ends before its namespace and its files go.
    server: RefCell<Option<Background>>,
    namespace: Namespace,
    directory: TempDir,
    filter: PacketFilter,
}

impl Dockerd {
    /// Starts one in a new namespace; `role` names it.
    pub fn start(role: &str, filter: PacketFilter) -> Result<Self> {
        let namespace = Namespace::new(role)?;
        let directory = tempfile::Builder::new().prefix("bench-dockerd-").tempdir()?;
        let this = Self { server: RefCell::default(), namespace, directory, filter };
        std::fs::write(this.at("daemon.json"), "{}")?;
        this.run_server(this.command())?;
        Ok(this)
    }

    /// Starts the daemon after it has ended, with what it had.
    pub fn start_again(&self) -> Result<()> {
        *self.server.borrow_mut() = None;
        self.run_server(self.command())
    }

    fn command(&self) -> Command {
        let at = |name| self.at(name);
        let mut command = self.namespace.place().command("dockerd");
        command
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["-H", &format!("unix://{}", at("docker.sock")), "--config-file", &at("daemon.json")])
            // vfs needs nothing of the kernel.
            .args(["--bridge=none", "--storage-driver=vfs", "--log-level=error"])
            .arg(format!("--iptables={}", self.filter == PacketFilter::Written))
            .arg(format!("--cgroup-parent=/{}", self.cgroup()));
        command
    }

    fn run_server(&self, command: Command) -> Result<()> {
        let mut server = Background::start(command)?;
        let socket = self.socket();
        let answered = server.wait_for("dockerd to answer", || Ok(answers(&socket)?.then_some(())));
        *self.server.borrow_mut() = Some(server);
        answered
    }

    /// Where the daemon has something of this name.
    fn at(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub fn pid(&self) -> Option<u32> {
        self.server.borrow().as_ref().map(Background::pid)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// The `docker` CLI against this daemon; it must succeed.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        let host = format!("unix://{}", self.socket().display());
        let args: Vec<&str> = ["-H", &host].into_iter().chain(args.iter().copied()).collect();
        run("docker", &args)
    }

    /// Gives the daemon the image that does nothing.
    pub fn import_image(&self) -> Result<()> {
        let image = ImageFile::new()?;
        self.docker(&["import", image.path().to_str().context("a path in UTF-8")?, IMAGE]).map(drop)
    }

    /// Runs a container of it in the background.
    pub fn run_container(&self, options: &[&str]) -> Result<()> {
        let args: Vec<&str> =
            ["run", "-d"].iter().chain(options).chain(&[IMAGE]).chain(COMMAND).copied().collect();
        self.docker(&args).map(drop)
    }

    fn cgroup(&self) -> String {
        let name = self.directory.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn remove_containers(&self) -> Result<()> {
        let ids = self.docker(&["ps", "-aq"])?;
        if ids.trim().is_empty() {
            return Ok(());
        }
        let args: Vec<&str> = ["rm", "-f"].into_iter().chain(ids.split_whitespace()).collect();
        self.docker(&args).map(drop)
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if self.server.borrow().is_some()
            && let Err(error) = self.remove_containers()
        {
            eprintln!("bench-load: {error:#}");
        }
        *self.server.borrow_mut() = None;
        if let Err(error) = unmount_below(self.directory.path()).and_then(|()| remove_cgroups(&self.cgroup()))
        {
            eprintln!("bench-load: {error:#}");
        }
    }
}

fn answers(socket: &Path) -> Result<bool> {
    Ok(try_run("docker", &["-H", &format!("unix://{}", socket.display()), "version"])?.success())
}

/// What dockerd leaves mounted: namespaces of networks, its own directories.
fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let below = |line: &&str| Path::new(line).starts_with(directory);
    let mut targets: Vec<&str> =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(below).collect();
    targets.sort_by_key(|target| std::cmp::Reverse(target.len()));
    for target in targets {
        run("umount", &[target])?;
    }
    Ok(())
}

/// The daemon's own group in every hierarchy, and what is left below it.
fn remove_cgroups(name: &str) -> Result<()> {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path());
    for group in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|hierarchy| hierarchy.join(name)) {
        if group.is_dir() {
            let removed =
                try_run("find", &[&group.display().to_string(), "-depth", "-type", "d", "-delete"])?;
            ensure!(removed.success(), "can't remove cgroup {}: {}", group.display(), removed.text().trim());
        }
    }
    Ok(())
}
