//! Runs a further process in a container: `docker exec`. It is the runtime's child in the container's namespaces and cgroup, and
//! ends with the container.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use control_model::OutputStream;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{OpenptyResult, Winsize, openpty};
use oci_spec::runtime::{Process, Spec, User};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use super::Oci;
use super::conmon::runtime_message;
use super::rootfs::read_inside;
use super::user;

/// Read at a time.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces on their way to a client.
const MAX_PIECES: usize = 4;
/// Shell's and Docker's codes for what can't be run, and what is not there.
const NOT_RUNNABLE: i32 = 126;
const NOT_FOUND: i32 = 127;
const TERM: &str = "TERM=xterm";
/// Between looks for the process's id, when something was written before it is there.
const LOOK_PERIOD: Duration = Duration::from_millis(2);

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

/// What is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSpec {
    pub arguments: Vec<String>,
    /// Beside the container's, as `KEY=value`.
    pub env: Vec<String>,
    /// Of the image's; empty is the container's own.
    pub user: String,
    /// Empty is the container's own.
    pub working_dir: String,
    pub tty: bool,
    /// It reads what the client writes; else it has none.
    pub stdin: bool,
}

/// Why nothing runs. `Display` is Docker's sentence.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("{0}")]
    User(String),
    #[error("OCI runtime exec failed: {0}")]
    Io(#[from] io::Error),
}

/// A process that runs.
pub struct Exec {
    /// Dropped, the process reads the end.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Everything that it writes; ends with it, and with whoever else holds its streams.
    pub output: mpsc::Receiver<(OutputStream, Vec<u8>)>,
    pub console: Console,
    /// Gives its exit code once it has ended.
    pub ended: tokio::task::JoinHandle<i32>,
}

/// The size of its terminal; without one there is nothing to size.
#[derive(Debug, Clone, Default)]
pub struct Console(Option<Arc<OwnedFd>>);

impl Console {
    /// In characters.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let Some(terminal) = &self.0 else { return Ok(()) };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open for as long as it is borrowed, and the call reads a `Winsize`.
        unsafe { set_window_size(terminal.as_raw_fd(), &raw const size) }?;
        Ok(())
    }
}

impl Oci {
    /// Runs `spec` in the container with this id. Needs a tokio runtime.
    pub fn exec(&self, container_id: &str, spec: &ExecSpec) -> Result<Exec, ExecError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let not_running = || ExecError::NotRunning(container_id.to_owned());
        let info = self.list_containers().into_iter().find(|one| one.record.container_id == container_id);
        let info = info.filter(|one| one.state == "running").ok_or_else(not_running)?;
        let container = self.container(info.record.task).ok_or_else(not_running)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let at =
            |kind: &str| container.paths.run.join(format!("exec-{}-{number}.{kind}", std::process::id()));
        let files = Files { process: at("json"), pid: at("pid") };
        let config = Spec::load(container.paths.bundle().join("config.json")).map_err(io::Error::other)?;
        let process = process(&config, spec, &container.paths.rootfs())?;
        std::fs::write(&files.process, serde_json::to_vec(&process).map_err(io::Error::other)?)?;
        let mut command = Command::new(&self.0.runtime);
        command.arg("--root").arg(self.0.layout.runtime_root());
        command.arg("exec").arg("--process").arg(&files.process).arg("--pid-file").arg(&files.pid);
        command.arg(container_id);
        if spec.tty { on_terminal(command, spec, files) } else { on_pipes(command, spec, files) }
    }
}

/// What the runtime is told and says; gone when the process has ended.
struct Files {
    process: PathBuf,
    /// Written when the process has begun.
    pid: PathBuf,
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.process);
        let _ = std::fs::remove_file(&self.pid);
    }
}

/// The container's own process with other words.
fn process(config: &Spec, spec: &ExecSpec, rootfs: &Path) -> Result<Process, ExecError> {
    let mut process =
        config.process().clone().ok_or_else(|| io::Error::other("a container without a process"))?;
    let mut env = process.env().clone().unwrap_or_default();
    let names = |entry: &str| entry.split_once('=').map_or(entry, |(name, _)| name).to_owned();
    for entry in spec.tty.then_some(TERM).into_iter().chain(spec.env.iter().map(String::as_str)) {
        env.retain(|known| names(known) != names(entry));
        // A name alone takes the container's away (moby `daemon/container/env.go`).
        if entry.contains('=') {
            env.push(entry.to_owned());
        }
    }
    process.set_args(Some(spec.arguments.clone())).set_terminal(Some(spec.tty)).set_env(Some(env));
    if !spec.working_dir.is_empty() {
        process.set_cwd(PathBuf::from(&spec.working_dir));
    }
    if !spec.user.is_empty() {
        let read = |path: &str| read_inside(rootfs, path);
        let found = user::resolve(&spec.user, &[], &read("etc/passwd")?, &read("etc/group")?);
        let found = found.map_err(|error| ExecError::User(error.to_string()))?;
        let mut user = User::default();
        user.set_uid(found.uid).set_gid(found.gid).set_additional_gids(Some(found.additional_gids));
        process.set_user(user);
    }
    Ok(process)
}

fn on_pipes(mut command: Command, spec: &ExecSpec, files: Files) -> Result<Exec, ExecError> {
    command.stdin(if spec.stdin { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let input = child.stdin.take().map(|input| Box::new(input) as Box<dyn AsyncWrite + Send + Unpin>);
    let gone = || io::Error::other("a stream of the process is missing");
    let (stdout, stderr) = (child.stdout.take().ok_or_else(gone)?, child.stderr.take().ok_or_else(gone)?);
    let (pieces, output) = mpsc::channel(MAX_PIECES);
    let ended = tokio::spawn(async move {
        let (begin, end) = Begin::watch(child, files);
        let out = begin.clone().pass_on(stdout, OutputStream::Stdout, &pieces);
        let err = begin.clone().pass_on(stderr, OutputStream::Stderr, &pieces);
        let (code, failed_out, failed_err) = tokio::join!(end, out, err);
        finish(code, failed_out + &failed_err, begin.has_begun(), &pieces).await
    });
    Ok(Exec { input, output, console: Console::default(), ended })
}

/// The runtime has our terminal, and makes the process's of it.
fn on_terminal(mut command: Command, spec: &ExecSpec, files: Files) -> Result<Exec, ExecError> {
    let OpenptyResult { master, slave } = openpty(None, None).map_err(io::Error::from)?;
    command.stdin(Stdio::from(slave.try_clone()?));
    command.stdout(Stdio::from(slave.try_clone()?)).stderr(Stdio::from(slave));
    // SAFETY: the closure runs between fork and exec and makes two async-signal-safe calls: the terminal, which is the standard
    // input by now, becomes that of a new session, so that its sizes are told to the runtime.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    // Its ends are the child's alone.
    drop(command);
    set_nonblocking(&master)?;
    let reader = pipe::Receiver::from_file_unchecked(File::from(master.try_clone()?))?;
    let input = if spec.stdin {
        let writer = pipe::Sender::from_file_unchecked(File::from(master.try_clone()?))?;
        Some(Box::new(writer) as Box<dyn AsyncWrite + Send + Unpin>)
    } else {
        None
    };
    let (pieces, output) = mpsc::channel(MAX_PIECES);
    let ended = tokio::spawn(async move {
        let (begin, end) = Begin::watch(child, files);
        let out = begin.clone().pass_on(reader, OutputStream::Stdout, &pieces);
        let (code, failed) = tokio::join!(end, out);
        finish(code, failed, begin.has_begun(), &pieces).await
    });
    Ok(Exec { input, output, console: Console(Some(Arc::new(master))), ended })
}

fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Whether the process has begun: what comes before is the runtime's word, and says why it does not.
#[derive(Clone)]
struct Begin {
    files: Arc<Files>,
    ended: watch::Receiver<bool>,
}

impl Begin {
    /// Watches the runtime; the other one gives its code.
    fn watch(mut child: Child, files: Files) -> (Self, impl Future<Output = i32>) {
        let (over, ended) = watch::channel(false);
        let end = async move {
            let status = child.wait().await;
            over.send_replace(true);
            status.ok().and_then(|status| status.code()).unwrap_or(NOT_RUNNABLE)
        };
        (Self { files: Arc::new(files), ended }, end)
    }

    fn has_begun(&self) -> bool {
        self.files.pid.exists()
    }

    /// True once it has; false if it never does. The runtime writes the process's id just behind its first step.
    async fn or_not(&mut self) -> bool {
        while !self.has_begun() && !*self.ended.borrow() {
            let _ = tokio::time::timeout(LOOK_PERIOD, self.ended.changed()).await;
        }
        self.has_begun()
    }

    /// Passes on what comes, and gives what came of a process that never began. What nobody takes any more is read all the same:
    /// the process is not to stop for it.
    async fn pass_on(
        mut self,
        mut stream: impl AsyncRead + Unpin,
        kind: OutputStream,
        pieces: &mpsc::Sender<(OutputStream, Vec<u8>)>,
    ) -> String {
        let mut piece = vec![0; PIECE_BYTES];
        let mut failure = Vec::new();
        // A terminal whose last user is gone ends with an error.
        while let Ok(n_bytes @ 1..) = stream.read(&mut piece).await {
            if self.or_not().await {
                let _ = pieces.send((kind, piece[..n_bytes].to_vec())).await;
            } else if failure.len() < PIECE_BYTES {
                failure.extend_from_slice(&piece[..n_bytes]);
            }
        }
        String::from_utf8_lossy(&failure).into_owned()
    }
}

/// The process's code. Of one that could not begin Docker's, and its words as output.
async fn finish(
    code: i32,
    failure: String,
    has_begun: bool,
    pieces: &mpsc::Sender<(OutputStream, Vec<u8>)>,
) -> i32 {
    if has_begun {
        return code;
    }
    let words = format!("OCI runtime exec failed: {}\r\n", runtime_message(&failure));
    let _ = pieces.send((OutputStream::Stdout, words.into_bytes())).await;
    let is_missing = ["executable file not found", "no such file or directory"];
    if is_missing.iter().any(|sign| failure.contains(sign)) { NOT_FOUND } else { NOT_RUNNABLE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Spec {
        let mut process = Process::default();
        process
            .set_env(Some(vec!["PATH=/bin".into(), "A=old".into(), "C=gone".into()]))
            .set_cwd(PathBuf::from("/srv"));
        let mut config = Spec::default();
        config.set_process(Some(process));
        config
    }

    #[test]
    fn a_process_has_the_containers_environment_and_its_own_over_it() {
        let spec = ExecSpec {
            arguments: vec!["sh".into()],
            env: vec!["A=new".into(), "B=c".into(), "C".into()],
            working_dir: "/tmp".into(),
            tty: true,
            ..ExecSpec::default()
        };
        let made = process(&config(), &spec, Path::new("/")).unwrap();
        let env = made.env().clone().unwrap();
        assert_eq!(env, ["PATH=/bin", "TERM=xterm", "A=new", "B=c"]);
        assert_eq!((made.cwd().as_path(), made.terminal()), (Path::new("/tmp"), Some(true)));
        let plain = ExecSpec { arguments: vec!["ls".into()], ..ExecSpec::default() };
        let made = process(&config(), &plain, Path::new("/")).unwrap();
        assert_eq!((made.cwd().as_path(), made.terminal()), (Path::new("/srv"), Some(false)));
    }

    #[test]
    fn a_user_is_looked_up_in_the_image() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "web:x:33:34::/:/bin/false\n").unwrap();
        let spec = |user: &str| ExecSpec { user: user.into(), ..ExecSpec::default() };
        let made = process(&config(), &spec("web"), root.path()).unwrap();
        assert_eq!((made.user().uid(), made.user().gid()), (33, 34));
        let unknown = process(&config(), &spec("nobody"), root.path()).unwrap_err();
        assert_eq!(unknown.to_string(), "unable to find user nobody: no matching entries in passwd file");
    }
}
