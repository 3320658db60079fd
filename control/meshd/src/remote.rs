//! The API's listeners: the sockets, and the addresses for clients with certificates.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use control_api::Host;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpListener;

use crate::config::Config;

/// A client that has been silent for so long is asked whether it is there: one that went without a word would keep its
/// place, and what it follows, for ever. Accepted connections have these of their listener (`tcp(7)`).
const IDLE_S: u32 = 60;
const PROBE_PERIOD_S: u32 = 10;
const MAX_PROBES: u32 = 6;

/// What is wrong with the certificates, if something is.
pub fn fault(config: &Config) -> Option<String> {
    let error = config.hosts.remote.as_ref()?.tls.load().err()?;
    Some(format!("--tlsverify: {:#}", anyhow::Error::from(error)))
}

/// Where the API is to be served; ports are taken from now on.
pub async fn hosts(config: &Config) -> Result<Vec<Host>> {
    let mut hosts: Vec<_> = config.hosts.sockets.iter().cloned().map(Host::Socket).collect();
    if let Some(remote) = &config.hosts.remote {
        let tls = remote.tls.load().context("--tlsverify")?;
        for address in &remote.addresses {
            let listener =
                listen(*address).await.with_context(|| format!("can't listen on tcp://{address}"))?;
            hosts.push(Host::Tls(listener, tls.clone()));
        }
    }
    Ok(hosts)
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    setsockopt(&listener, sockopt::KeepAlive, &true)?;
    setsockopt(&listener, sockopt::TcpKeepIdle, &IDLE_S)?;
    setsockopt(&listener, sockopt::TcpKeepInterval, &PROBE_PERIOD_S)?;
    setsockopt(&listener, sockopt::TcpKeepCount, &MAX_PROBES)?;
    Ok(listener)
}
