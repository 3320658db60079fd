//! Network namespaces of the peers' topologies: made with `ip`, gone when they are dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use bench_lab::run;
use nix::sched::{CloneFlags, setns};

/// What a namespace must allow for tens of thousands of connections: wide port range, ports used again at once.
const SHORT_CONNECTIONS: &str =
    "echo '1024 65535' > /proc/sys/net/ipv4/ip_local_port_range; echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse";

/// Where `br_netfilter` is loaded, bridges hand what they carry to the packet filter unless told otherwise.
const PLAIN_BRIDGE: &str =
    "for key in /proc/sys/net/bridge/bridge-nf-call-*; do if [ -e $key ]; then echo 0 > $key; fi; done";

/// A network namespace that somebody else owns, or a [`Namespace`]'s.
#[derive(Debug, Clone)]
pub struct Place {
    path: PathBuf,
}

impl Place {
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that runs there.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).arg(program);
        command
    }

    /// Runs a program there to its end; it must succeed. Its standard output.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program).args(args).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        ensure!(output.status.success(), "{program}: {}{}", text(&output.stdout), text(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `work` on a thread that is there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(&self.path)
                    .with_context(|| format!("no namespace {}", self.path.display()))?;
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Lets many short connections begin there.
    pub fn allow_short_connections(&self) -> Result<()> {
        self.run("sh", &["-c", SHORT_CONNECTIONS]).map(drop)
    }
}

/// A namespace with loopback; deleted when dropped, with all links that have an end in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    place: Place,
}

impl Namespace {
    /// `role` makes the name tell what it is for; more than one may have it.
    pub fn new(role: &str) -> Result<Self> {
        static N_MADE: AtomicU32 = AtomicU32::new(0);
        let number = N_MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench{}-{role}{number}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        let place = Place::at(format!("/run/netns/{name}"));
        let namespace = Self { name, place };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// As `ip` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip <words>` in here.
    pub fn ip(&self, words: &str) -> Result<()> {
        let args: Vec<&str> = ["-netns", &self.name].into_iter().chain(words.split_whitespace()).collect();
        run("ip", &args).map(drop)
    }

    /// Gives `other` an `eth0` with this address, whose other end is a port of this namespace's bridge `br0`.
    pub fn plug(&self, other: &Self, port: &str, address: &str) -> Result<()> {
        self.ip(&format!("link add {port} type veth peer name eth0 netns {}", other.name))?;
        self.ip(&format!("link set {port} master br0 up"))?;
        other.ip(&format!("addr add {address} dev eth0"))?;
        other.ip("link set eth0 up")
    }

    /// A bridge `br0`. As in a switch, no packet filter sees what passes.
    pub fn add_bridge(&self) -> Result<()> {
        self.ip("link add br0 type bridge forward_delay 0")?;
        self.place.run("sh", &["-c", PLAIN_BRIDGE])?;
        self.ip("link set br0 up")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run("ip", &["netns", "del", &self.name]) {
            eprintln!("bench-load: {error:#}");
        }
    }
}
