//! Tells systemd how the service is (`sd_notify(3)`), where systemd asks for it.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state` (`READY=1`, `STOPPING=1`) to `$NOTIFY_SOCKET`; does nothing without one.
pub fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(path.as_bytes(), state) {
        tracing::warn!(%error, "systemd not notified");
    }
}

fn send(path: &[u8], state: &str) -> std::io::Result<()> {
    let addr = match path {
        // An abstract name is written with an @ for its zero byte.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &addr)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reaches_a_socket_by_path_and_by_abstract_name() {
        let name = format!("meshd-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).expect("a short name");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        for (socket, to) in [
            (UnixDatagram::bind_addr(&abstract_name).expect("bound"), format!("@{name}")),
            (UnixDatagram::bind(&path).expect("bound"), path.to_string_lossy().into_owned()),
        ] {
            send(to.as_bytes(), "READY=1").expect("sent");
            let mut buffer = [0; 16];
            let len = socket.recv(&mut buffer).expect("received");
            assert_eq!(&buffer[..len], b"READY=1");
        }
    }
}
