//! What all HTTP servers share: where they listen, how they end, how they say that something is wrong.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::variable;

/// Longest time for the server of this container to answer.
const HEALTH_LIMIT: Duration = Duration::from_secs(3);

/// Serves until SIGTERM, and then what it has begun.
pub async fn serve(pages: Router) -> Result<()> {
    let listener = listen(port()?).await?;
    println!("serving on {}", listener.local_addr()?);
    let end = terminated()?;
    let pages = pages.route("/healthz", get(async || "well\n"));
    let service = pages.into_make_service_with_connect_info::<SocketAddr>();
    Ok(axum::serve(listener, service).with_graceful_shutdown(end).await?)
}

/// All addresses, of both families where the kernel has both.
pub async fn listen(port: u16) -> Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.context("can't listen"),
    }
}

/// Resolves when the process is told to end: as a container's first process it would not, if it did not ask.
pub fn terminated() -> Result<impl Future<Output = ()>> {
    let mut signals = signal(SignalKind::terminate())?;
    Ok(async move {
        signals.recv().await;
    })
}

/// Asks the server of this container whether it is well.
pub async fn check_health() -> Result<()> {
    let mut answer = String::new();
    let ask = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port()?)).await?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(())
    };
    timeout(HEALTH_LIMIT, ask).await.context("no answer")??;
    ensure!(answer.contains(" 200 "), "it answers {}", answer.lines().next().unwrap_or_default());
    Ok(())
}

/// A page, or what is wrong and where the page would have come from.
pub fn page(made: Result<String>) -> Response {
    match made {
        Ok(text) => Html(text).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")).into_response(),
    }
}

/// The name that the container's host has.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn port() -> Result<u16> {
    variable("PORT", "80").parse().context("PORT is no port")
}
