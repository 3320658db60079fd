//! The DNS process: sockets inside the sandboxes, fed through a unix socket.

mod batch;
mod feed;
mod forward;
mod netns;
mod redirect;
mod sandbox;
mod tcp;
mod udp;
mod workers;

use std::future::Future;
use std::path::PathBuf;
use std::{fs, io};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use self::feed::Feed;
use self::forward::Forwarder;
use self::netns::Opener;
use self::workers::Workers;

/// What the process is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// Where meshd finds it. `<socket>.lock` is held while it runs, and has its process id.
    pub socket: PathBuf,
    /// The node's resolvers; read again when the file changes.
    pub resolv_conf: PathBuf,
}

impl ServerOptions {
    /// With the node's usual `resolv.conf`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, resolv_conf: PathBuf::from("/etc/resolv.conf") }
    }
}

/// The process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("another DNS process serves {0}")]
    AlreadyRunning(PathBuf),
    #[error("can't lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("can't listen at {path}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("can't start the runtime")]
    Runtime(#[source] io::Error),
}

/// Runs the DNS process until SIGTERM, SIGINT or a `Shutdown` from meshd; what `meshd dns` does. Makes the process a
/// session of its own, so that it outlives the one that started it. Not to be called within a tokio runtime.
pub fn run_server(options: &ServerOptions) -> Result<(), ServerError> {
    // Fails for a process that leads a group already: then it was started by a shell, and stays with that.
    let _ = nix::unistd::setsid();
    raise_file_limit();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServerError::Runtime)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(ServerError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServerError::Runtime)?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = interrupt.recv() => (),
            }
        };
        serve(options, stop).await
    })
}

/// Three sockets per sandbox and three per look-up are more than the usual soft limit of 1024. With the old limit fewer
/// sandboxes can be served, and those that can't say so.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "can't raise the limit of open files");
    }
}

/// Serves until `stop` is done or meshd asks for the end.
pub async fn serve(options: &ServerOptions, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
    let lock = lock(options)?;
    let listener = listen(options)?;
    let workers = Workers::start().map_err(ServerError::Runtime)?;
    let opener = Opener::start().map_err(ServerError::Runtime)?;
    let feed = Feed::new(Forwarder::new(options.resolv_conf.clone()), workers, opener);
    tracing::info!(socket = %options.socket.display(), "serving names");
    let mut connections = JoinSet::new();
    tokio::select! {
        () = stop => (),
        () = feed.accept(&listener, &mut connections) => (),
    }
    feed.close().await;
    let _ = fs::remove_file(&options.socket);
    // Whoever asked for the end sees it last: then the next process can take the place.
    drop((listener, lock));
    drop(connections);
    Ok(())
}

/// Held until the process ends, however it ends.
fn lock(options: &ServerOptions) -> Result<Flock<fs::File>, ServerError> {
    let mut path = options.socket.clone().into_os_string();
    path.push(".lock");
    let path = PathBuf::from(path);
    let failed = |source| ServerError::Lock { path: path.clone(), source };
    let file = fs::File::options().create(true).append(true).open(&path).map_err(failed)?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => ServerError::AlreadyRunning(options.socket.clone()),
        errno => failed(errno.into()),
    })?;
    lock.set_len(0).map_err(failed)?;
    io::Write::write_all(&mut &*lock, std::process::id().to_string().as_bytes()).map_err(failed)?;
    Ok(lock)
}

/// Whoever holds the lock owns the path: what is left there is of a process that died.
fn listen(options: &ServerOptions) -> Result<UnixListener, ServerError> {
    let path = &options.socket;
    let _ = fs::remove_file(path);
    UnixListener::bind(path).map_err(|source| ServerError::Listen { path: path.clone(), source })
}
