//! A node's own Docker Engine, for daemons that leave containers to it: Debian's dockerd in the node's namespace.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};

use crate::daemon::{Daemon, has_ended, unmount_below};
use crate::net::command_in;
use crate::process::{run, try_run, wait_until};

/// Longest time for it to answer, and to end with all its containers.
const LIMIT: Duration = Duration::from_mins(1);

/// The engine of a node.
pub(crate) struct Engine<'a>(pub &'a Daemon<'a>);

impl Engine<'_> {
    pub fn socket(&self) -> PathBuf {
        self.0.run_dir().join("engine.sock")
    }

    /// Starts it unless it runs, and waits until it answers.
    pub fn start(&self) -> Result<()> {
        if self.pid().is_none() {
            self.spawn()?;
        }
        let socket = format!("unix://{}", self.socket().display());
        wait_until(&format!("dockerd of {} to answer", self.0.node.name), LIMIT, || {
            if self.pid().is_none() {
                bail!("it ended: {}", run("tail", &["-n", "5", &self.log_file().to_string_lossy()])?);
            }
            Ok(try_run("docker", &["-H", &socket, "version"])?.success().then_some(()))
        })?;
        Ok(())
    }

    /// Ends it, and takes away what it leaves mounted.
    pub fn stop(&self) -> Result<()> {
        if let Some(pid) = self.pid() {
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
            wait_until(&format!("dockerd of {} to end", self.0.node.name), LIMIT, || {
                Ok(has_ended(pid).then_some(()))
            })?;
        }
        unmount_below(&self.0.run_dir())?;
        unmount_below(&self.0.state_dir())
    }

    fn spawn(&self) -> Result<()> {
        let (state, run) = (self.0.state_dir().join("engine"), self.0.run_dir().join("engine"));
        for dir in [&state, &run] {
            fs::create_dir_all(dir)?;
        }
        let config = state.join("daemon.json");
        fs::write(&config, "{}")?;
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut command = command_in(&self.0.node.name, "dockerd")?;
        command
            .arg("--config-file")
            .arg(config)
            .arg("--data-root")
            .arg(state.join("data"))
            .arg("--exec-root")
            .arg(&run)
            .arg("--pidfile")
            .arg(run.join("engine.pid"))
            .arg(format!("--host=unix://{}", self.socket().display()))
            // vfs needs nothing of the kernel; the machine's packet filter stays as it is.
            .args(["--bridge=none", "--iptables=false", "--storage-driver=vfs", "--log-level=error"])
            // Registries of the labs speak plain HTTP.
            .arg("--insecure-registry=198.18.0.0/15")
            .arg(format!("--cgroup-parent={}/engine", self.0.cgroup()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SAFETY: setsid is async-signal-safe; the engine must outlive this process and its terminal.
        unsafe {
            command.pre_exec(|| setsid().map(drop).map_err(Into::into));
        }
        let mut child = command.spawn().context("can't start dockerd")?;
        fs::write(self.pid_file(), child.id().to_string())?;
        // A child of ours stays a zombie until it is waited for.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Its process id, if it runs.
    fn pid(&self) -> Option<i32> {
        let pid: i32 = fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        command_line.contains(&*self.socket().to_string_lossy()).then_some(pid)
    }

    fn pid_file(&self) -> PathBuf {
        self.0.run_dir().join("engine-lab.pid")
    }

    fn log_file(&self) -> PathBuf {
        self.0.state_dir().join("dockerd.log")
    }
}
