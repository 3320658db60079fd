//! One node's `meshd`: started in its namespace, found again by its pid file, stopped by its id.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};

use crate::engine::Engine;
use crate::net::command_in;
use crate::process::{run, try_run, wait_until};
use crate::state::{LabState, NodeRecord, bpffs_root, run_root, state_root};

/// Longest time for a daemon to answer on its socket.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest time for a clean stop.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The daemon of a node.
pub(crate) struct Daemon<'a> {
    pub lab: &'a LabState,
    pub node: &'a NodeRecord,
}

impl Daemon<'_> {
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("docker.sock")
    }

    pub fn log_file(&self) -> PathBuf {
        self.state_dir().join("meshd.log")
    }

    pub fn bpffs_dir(&self) -> PathBuf {
        bpffs_root(&self.lab.name).join(&self.node.name)
    }

    /// Starts it unless it runs, and waits until it answers.
    pub fn start(&self) -> Result<()> {
        self.start_with(&[])
    }

    /// The same with further variables in its environment.
    pub fn start_with(&self, environment: &[(&str, &str)]) -> Result<()> {
        if self.pid().is_none() {
            fs::create_dir_all(self.state_dir())?;
            fs::create_dir_all(self.run_dir())?;
            if self.lab.has_docker {
                Engine(self).start()?;
            }
            self.spawn(environment)?;
        }
        wait_until(&format!("meshd of {} to answer", self.node.name), START_LIMIT, || self.answers())
            .with_context(|| format!("see {}", self.log_file().display()))?;
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Removes all that the daemon has in the kernel and on disk. It must not run.
    pub fn teardown(&self) -> Result<()> {
        if self.state_dir().exists() {
            let mut command = command_in(&self.node.name, &self.lab.meshd)?;
            let output = command.arg("teardown").args(self.dirs()).stdin(Stdio::null()).output()?;
            if !output.status.success() {
                bail!(
                    "meshd teardown of {}: {}",
                    self.node.name,
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
        }
        if self.lab.has_docker {
            Engine(self).stop()?;
        }
        unmount_below(&self.state_dir())?;
        for dir in [self.run_dir(), self.state_dir()] {
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("can't remove {}", dir.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Its process id, if it runs.
    pub fn pid(&self) -> Option<i32> {
        let pid: i32 = fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let run_dir = self.run_dir();
        let is_ours =
            command_line.split(|b| *b == 0).any(|arg| arg == run_dir.as_os_str().as_encoded_bytes());
        is_ours.then_some(pid)
    }

    fn spawn(&self, environment: &[(&str, &str)]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut command = command_in(&self.node.name, &self.lab.meshd)?;
        command
            .args(self.dirs())
            .args(["--hostname", &self.node.name])
            .args(&self.lab.meshd_args)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SAFETY: setsid is async-signal-safe; the daemon must outlive this process and its terminal.
        unsafe {
            command.pre_exec(|| setsid().map(drop).map_err(Into::into));
        }
        let mut child =
            command.spawn().with_context(|| format!("can't start {}", self.lab.meshd.display()))?;
        fs::write(self.pid_file(), child.id().to_string())?;
        // A child of ours stays a zombie until it is waited for; a lab command that lives on must see it end.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        kill(Pid::from_raw(pid), signal)?;
        wait_until(&format!("meshd of {} to end", self.node.name), STOP_LIMIT, || {
            Ok(has_ended(pid).then_some(()))
        })?;
        Ok(())
    }

    fn answers(&self) -> Result<Option<()>> {
        if self.pid().is_none() {
            let log = run("tail", &["-n", "5", &self.log_file().to_string_lossy()])?;
            bail!("meshd of {} ended: {log}", self.node.name);
        }
        let socket = format!("unix://{}", self.socket().display());
        Ok(try_run("docker", &["-H", &socket, "version"])?.success().then_some(()))
    }

    fn dirs(&self) -> Vec<String> {
        let path = |p: PathBuf| p.to_string_lossy().into_owned();
        let mut dirs = vec![
            "--state-dir".into(),
            path(self.state_dir()),
            "--run-dir".into(),
            path(self.run_dir()),
            "--bpffs-dir".into(),
            path(self.bpffs_dir()),
        ];
        if self.lab.has_docker {
            let socket = format!("unix://{}", Engine(self).socket().display());
            dirs.extend(["--runtime".into(), "docker".into(), "--docker-host".into(), socket]);
        } else {
            dirs.extend(["--cgroup-parent".into(), self.cgroup()]);
        }
        dirs
    }

    /// The node's own, from the root.
    pub fn cgroup(&self) -> String {
        format!("/meshd-{}/{}", self.lab.name, self.node.name)
    }

    pub fn run_dir(&self) -> PathBuf {
        run_root(&self.lab.name).join(&self.node.name)
    }

    pub fn state_dir(&self) -> PathBuf {
        state_root(&self.lab.name).join(&self.node.name)
    }

    fn pid_file(&self) -> PathBuf {
        self.run_dir().join("lab.pid")
    }
}

/// Takes away what a test mounted in the place of a disk, and did not live to take away.
pub(crate) fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(dir)) {
        run("umount", &[point])?;
    }
    Ok(())
}

/// Whether every thread of `pid` is past its end, so that its files are closed and its locks free. Its
/// command line is gone long before that.
pub(crate) fn has_ended(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    matches!(state, Some('Z' | 'X')) && threads <= 1
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_has_ended_when_its_files_are_closed() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        assert!(!has_ended(pid));
        child.kill().expect("killed");
        wait_until("the zombie", STOP_LIMIT, || Ok(has_ended(pid).then_some(()))).expect("it ends unwaited");
        child.wait().expect("waited for");
        assert!(has_ended(pid));
    }
}
