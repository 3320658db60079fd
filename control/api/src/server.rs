//! The API on unix sockets, and over TCP for clients with certificates.

use std::future::{Future, IntoFuture as _};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use control_manager::unending;
use futures::FutureExt as _;
use futures::future::{BoxFuture, try_join_all};
use rustls::ServerConfig;
use tokio::net::{TcpListener, UnixListener};

use crate::context::Api;
use crate::events;
use crate::node::Node;
use crate::remote::TlsListener;
use crate::routes::router_of;

/// Owner and group may speak to the daemon; it is as much as being root.
const SOCKET_MODE: u32 = 0o660;
/// Members of this group may, where it exists: Docker's.
const SOCKET_GROUP: &str = "docker";

/// Where the API is served.
pub enum Host {
    /// A unix socket. A file that a dead daemon left there is replaced, and the own one taken away at the end.
    Socket(PathBuf),
    /// A port, for clients that this configuration lets in.
    Tls(TcpListener, Arc<ServerConfig>),
}

/// Why the API can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("serving the API ended")]
    Serve(#[source] io::Error),
}

/// Serves `node` on all `hosts` until `shutdown` completes; requests under way are finished first.
pub async fn serve(
    hosts: Vec<Host>,
    node: Arc<dyn Node>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let api = Api::new(node);
    let shutdown = shutdown.boxed().shared();
    let served = hosts.into_iter().map(|host| host.serve(router_of(api.clone()), shutdown.clone()));
    let served = served.collect::<Result<Vec<_>, _>>();
    let served = try_join_all(served?);
    tokio::select! {
        served = served => served.map(drop).map_err(ServeError::Serve),
        () = unending("events", || events::collect(api.clone())) => {
            Err(ServeError::Serve(io::Error::other("nobody tells events any more")))
        }
    }
}

/// Serving that ends with a shutdown.
type Served = BoxFuture<'static, io::Result<()>>;

impl Host {
    /// Listens from now on.
    fn serve(
        self,
        router: Router,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Served, ServeError> {
        Ok(match self {
            Self::Socket(path) => {
                let listener =
                    listen(&path).map_err(|source| ServeError::Listen { path: path.clone(), source })?;
                let file = SocketFile(path);
                let served = axum::serve(listener, router).with_graceful_shutdown(shutdown).into_future();
                served.inspect(move |_| drop(file)).boxed()
            }
            Self::Tls(listener, config) => {
                let listener = TlsListener::new(listener, config).map_err(ServeError::Serve)?;
                axum::serve(listener, router).with_graceful_shutdown(shutdown).into_future().boxed()
            }
        })
    }
}

/// Goes with its server.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another daemon may have replaced it meanwhile; a file that is gone is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon answers there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => std::fs::remove_file(path)?,
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    if let Some(group) = group_id(SOCKET_GROUP) {
        // Without the right to give files away, the socket stays with its owner's group.
        let _ = chown(path, None, Some(group));
    }
    Ok(listener)
}

/// The number of the group in `/etc/group`.
fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let entry = groups.lines().find(|line| line.split(':').next() == Some(name))?;
    entry.split(':').nth(2)?.parse().ok()
}
