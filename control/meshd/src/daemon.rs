//! The daemon: everything together, from start to SIGTERM.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::checks;
use crate::config::Config;
use crate::host::{Containers, Host};
use crate::lock::StateLock;
use crate::node::MeshNode;
use crate::notify::notify;
use crate::remote;

/// API requests under way may take this long to end when the daemon stops; then they are cut.
const API_GRACE: Duration = Duration::from_secs(2);

/// Runs until SIGTERM or SIGINT. Tasks and data plane go on without it.
pub fn run(config: Config) -> Result<()> {
    refuse_if_missing(&config)?;
    let lock = StateLock::take(&config.state_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(config));
    // A blocking call that hangs must not hold up the end.
    runtime.shutdown_timeout(API_GRACE);
    drop(lock);
    result
}

/// An error of one line for each thing that is missing.
pub fn refuse_if_missing(config: &Config) -> Result<()> {
    let mut missing: Vec<_> = checks::check(config).iter().map(ToString::to_string).collect();
    missing.extend(remote::fault(config));
    if !missing.is_empty() {
        bail!("{}", missing.join("\n"));
    }
    Ok(())
}

async fn serve(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hosts = remote::hosts(&config).await?;
    let shown = config.hosts.to_string();
    let metrics = listen_for_metrics(&config).await?;
    let host = Arc::new(Host::open(config).await?);
    if let Containers::Own(oci, standalone) = &host.containers {
        oci.resume_output();
        standalone.resume();
    }
    let node = MeshNode::open(host);

    let stop = CancellationToken::new();
    let api_node = node.clone();
    let stopped = stop.clone().cancelled_owned();
    let mut api = tokio::spawn(async move { control_api::serve(hosts, api_node, stopped).await });
    let scrapes = metrics.map(|listener| {
        let served = control_api::serve_metrics(listener, node.clone(), stop.clone().cancelled_owned());
        tokio::spawn(served)
    });
    notify("READY=1");
    tracing::info!(hosts = %shown, "serving");

    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = &mut api => ended.context("the API failed").and_then(|served| served.context("the API ended")),
    };
    notify("STOPPING=1");
    tracing::info!("stopping");
    stop.cancel();
    if !api.is_finished() && tokio::time::timeout(API_GRACE, &mut api).await.is_err() {
        api.abort();
    }
    if let Some(scrapes) = scrapes {
        // A scrape is read only: nothing is lost by cutting it.
        scrapes.abort();
    }
    node.shut_down().await;
    result
}

async fn listen_for_metrics(config: &Config) -> Result<Option<TcpListener>> {
    let Some(address) = config.metrics_addr else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("can't listen for --metrics-addr {address}"))?;
    tracing::info!(%address, "serving metrics");
    Ok(Some(listener))
}
