//! Starts containers through `conmon`, which keeps their output and their exit code and outlives the daemon.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::log_files::N_FILES;
use super::paths::TaskPaths;
use super::process_fd::ProcessFd;

/// A runtime that has not made a container after this long never will.
const CREATE_TIMEOUT: Duration = Duration::from_mins(2);

/// The longest that any other call of the runtime may take: it does a few system calls, and no loaded disk takes this
/// long. One that hangs would keep its task from ever being stopped or removed.
const RUNTIME_CALL_TIMEOUT: Duration = Duration::from_mins(2);

/// Why there is no container. `Display` is what Docker's `docker service ps` shows.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("conmon: {0}")]
    Conmon(#[from] io::Error),
    #[error("OCI runtime create failed: {0}")]
    Runtime(String),
    #[error("OCI runtime: {verb:?} has not ended after {} s", .limit.as_secs_f32())]
    RuntimeHangs { verb: String, limit: Duration },
}

/// What to start and how.
pub(super) struct Launch<'a> {
    pub runtime: &'a Path,
    pub runtime_root: &'a Path,
    pub paths: &'a TaskPaths,
    pub name: &'a str,
    /// Of its output; `None` keeps nothing.
    pub kept_bytes: Option<u64>,
    pub tty: bool,
    pub stdin: bool,
    /// Its input ends with its first client's.
    pub ends_input: bool,
}

/// What conmon says through its pipe: a process id, or a negative number and the runtime's words.
#[derive(serde::Deserialize)]
struct SyncMessage {
    #[serde(alias = "pid")]
    data: i32,
    #[serde(default)]
    message: String,
}

impl Launch<'_> {
    /// Makes the container (its process waits for [`start`]); gives the process id.
    pub async fn create(&self) -> Result<i32, LaunchError> {
        let (reader, writer) = io::pipe()?;
        let mut child = self.command(&writer.into()).spawn()?;
        let mut reader = BufReader::new(tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into())?);
        let mut line = String::new();
        let read = async {
            let output = child.wait().await?;
            // The first conmon process ends at once; the one that it leaves behind speaks.
            if !output.success() {
                return Err(io::Error::other(format!("it ended with {output}")));
            }
            reader.read_line(&mut line).await
        };
        tokio::time::timeout(CREATE_TIMEOUT, read)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        match serde_json::from_str::<SyncMessage>(&line) {
            Ok(SyncMessage { data, .. }) if data > 0 => Ok(data),
            Ok(SyncMessage { message, .. }) => Err(LaunchError::Runtime(runtime_message(&message))),
            Err(_) => Err(io::Error::other(format!("it said {line:?} for a process id")).into()),
        }
    }

    fn command(&self, sync_pipe: &OwnedFd) -> Command {
        let paths = self.paths;
        let mut command = Command::new("conmon");
        // Of a container that ran out of memory it leaves a file where it stands.
        command.current_dir(paths.bundle());
        command
            .args(["--api-version", "1", "--full-attach"])
            .args(["--cid", &paths.container_id, "--cuuid", &paths.container_id, "--name", self.name])
            .arg("--runtime")
            .arg(self.runtime)
            .arg(format!("--runtime-arg=--root={}", self.runtime_root.display()))
            .arg("--bundle")
            .arg(paths.bundle())
            .arg("--container-pidfile")
            .arg(paths.container_pid())
            .arg("--conmon-pidfile")
            .arg(paths.conmon_pid())
            .arg("--exit-dir")
            .arg(paths.exit_dir())
            .args(["--log-level", "error"]);
        match self.kept_bytes {
            Some(n_bytes) => command
                .arg(format!("--log-path=k8s-file:{}", paths.log().display()))
                .args(["--log-size-max", &(n_bytes / N_FILES).to_string()]),
            None => command.arg("--log-path=none:"),
        };
        if self.tty {
            command.arg("--terminal");
        }
        if self.stdin {
            command.arg("--stdin");
        }
        if !self.ends_input {
            command.arg("--leave-stdin-open");
        }
        let fd = sync_pipe.as_raw_fd();
        command.env("_OCI_SYNCPIPE", fd.to_string()).env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: the closure runs between fork and exec and makes one async-signal-safe call, on a descriptor that
        // the caller keeps open until after the spawn. It clears close-on-exec in the child alone.
        unsafe {
            command.pre_exec(move || {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command
    }
}

/// Runs `runtime verb… container`; the runtime's words are the error.
pub(super) async fn run_runtime(
    runtime: &Path,
    runtime_root: &Path,
    arguments: &[&str],
) -> Result<String, LaunchError> {
    run_limited(runtime, runtime_root, arguments, RUNTIME_CALL_TIMEOUT).await
}

async fn run_limited(
    runtime: &Path,
    runtime_root: &Path,
    arguments: &[&str],
    limit: Duration,
) -> Result<String, LaunchError> {
    let mut command = Command::new(runtime);
    command.arg("--root").arg(runtime_root).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output()).await;
    let hangs = |_| LaunchError::RuntimeHangs {
        verb: arguments.first().copied().unwrap_or_default().to_owned(),
        limit,
    };
    let output = output.map_err(hangs)??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(LaunchError::Runtime(runtime_message(&String::from_utf8_lossy(&output.stderr))))
}

/// The running conmon of a task; `None` if there is none any more.
pub(super) fn conmon_of(paths: &TaskPaths) -> Option<ProcessFd> {
    let pid = std::fs::read_to_string(paths.conmon_pid()).ok()?.trim().parse().ok()?;
    ProcessFd::open_if(pid, |command_line| command_line.contains(&paths.container_id))
}

/// The exit code that conmon wrote, once it has.
pub(super) fn exit_code_of(paths: &TaskPaths) -> Option<i32> {
    std::fs::read_to_string(paths.exit_code()).ok()?.trim().parse().ok()
}

/// The runtime's last complaint, without its log decoration, in the words that Docker passes on.
pub(super) fn runtime_message(text: &str) -> String {
    let line =
        text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("the runtime said nothing").trim();
    let line = match line.split_once("msg=\"") {
        Some((_, message)) => message.trim_end_matches('"').replace("\\\"", "\"").replace("\\\\", "\\"),
        None => line.to_owned(),
    };
    line.trim_start_matches("runc: ").to_owned() + ": unknown"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_runtime_that_hangs_is_given_up() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let runtime = dir.path().join("runtime");
        std::fs::write(&runtime, "#!/bin/sh\nexec sleep 600\n").expect("written");
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o755)).expect("executable");
        let limit = Duration::from_millis(100);
        let error = run_limited(&runtime, dir.path(), &["start", "x"], limit).await.expect_err("it hangs");
        assert_eq!(error.to_string(), "OCI runtime: \"start\" has not ended after 0.1 s");
    }

    #[test]
    fn the_runtimes_words_lose_their_decoration() {
        let text = "time=\"x\" level=error msg=\"runc create failed: exec: \\\"/x\\\": not found\"\n";
        assert_eq!(runtime_message(text), "runc create failed: exec: \"/x\": not found: unknown");
        assert_eq!(runtime_message(""), "the runtime said nothing: unknown");
    }
}
