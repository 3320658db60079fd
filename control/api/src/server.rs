//! The API on a unix socket.

use std::future::Future;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use control_manager::unending;
use tokio::net::UnixListener;

use crate::context::Api;
use crate::events;
use crate::node::Node;
use crate::routes::router_of;

/// Owner and group may speak to the daemon; it is as much as being root.
const SOCKET_MODE: u32 = 0o660;
/// Members of this group may, where it exists: Docker's.
const SOCKET_GROUP: &str = "docker";

/// Why the API can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("serving the API ended")]
    Serve(#[source] io::Error),
}

/// Serves `node` on the unix socket `path` until `shutdown` completes; requests under way are finished first.
/// A socket file that a dead daemon left is replaced, and the own one taken away at the end.
pub async fn serve(
    path: &Path,
    node: Arc<dyn Node>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let listener = listen(path).map_err(|source| ServeError::Listen { path: path.to_owned(), source })?;
    let api = Api::new(node);
    let served = axum::serve(listener, router_of(api.clone())).with_graceful_shutdown(shutdown);
    let served = tokio::select! {
        served = served => served,
        () = unending("events", || events::collect(api.clone())) => Err(io::Error::other("nobody tells events any more")),
    };
    // Another daemon may have replaced it meanwhile; a file that is gone is as good.
    let _ = std::fs::remove_file(path);
    served.map_err(ServeError::Serve)
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
