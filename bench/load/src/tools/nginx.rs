//! The web server behind every path: nginx, one worker, a short answer from memory.

use std::net::SocketAddr;

use anyhow::Result;
use tempfile::TempDir;

use crate::netns::Place;
use crate::process::Background;

/// A running server.
#[derive(Debug)]
pub struct Nginx {
    _server: Background,
    _directory: TempDir,
}

impl Nginx {
    /// Listens at `address` in `place`.
    pub fn start(place: &Place, address: SocketAddr) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("bench-nginx-").tempdir()?;
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, configuration(&directory.path().display().to_string(), address))?;
        let mut command = place.command("nginx");
        command.arg("-c").arg(&file).arg("-p").arg(directory.path()).args(["-e", "stderr"]);
        let mut server = Background::start(command)?;
        server.wait_for_port(place, address)?;
        Ok(Self { _server: server, _directory: directory })
    }
}

/// Requests of one connection are not limited: closing it is the client's choice.
fn configuration(directory: &str, address: SocketAddr) -> String {
    format!(
        "daemon off; worker_processes 1; pid {directory}/pid; error_log stderr crit;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 1000000000;\n\
           client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
           fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;\n\
           server {{ listen {address} backlog=4096; location / {{ return 200 \"ok\\n\"; }} }} }}\n"
    )
}
