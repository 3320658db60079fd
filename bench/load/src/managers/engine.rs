//! Managers that speak the Engine API, through connections that are kept.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench_lab::wait_until;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::{N_MANAGERS, RETURN_LIMIT, Write};

/// The version of the Engine API that is asked for; dockerd's of Debian has no newer one.
const API: &str = "/v1.41";

/// How long an answer may take while nothing is measured.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many connections remove what was made.
const N_REMOVERS: usize = 64;

/// What the configs are called that writes make; a number follows.
const PREFIX: &str = "bench-w";

/// A kept connection to a daemon's socket.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub async fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// One exchange; an error for any status from 400 on, in the daemon's words.
    pub async fn call(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let text = body.map_or_else(String::new, Value::to_string);
        let request = Request::builder()
            .method(method)
            .uri(format!("{API}{path}"))
            .header(HOST, "docker")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(text)))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status.as_u16() < 400, "{status}: {}", String::from_utf8_lossy(&body));
        if body.trim_ascii().is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&body)?) }
    }
}

/// Writes are configs of a few bytes: nothing follows from them.
pub struct Engine(Connection);

impl Engine {
    pub async fn connect(socket: &Path) -> Result<Self> {
        Ok(Self(Connection::open(socket).await?))
    }
}

impl Write for Engine {
    async fn write(&mut self) -> Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("{PREFIX}{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let config = json!({"Name": name, "Data": "dmFsdWU="});
        let made = self.0.call(Method::POST, "/configs/create", Some(&config)).await?;
        made["ID"].as_str().context("the config has no id").map(drop)
    }
}

/// Waits until all managers are heard, as the one at this socket says.
pub async fn wait_until_heard(socket: &Path) -> Result<()> {
    let start = std::time::Instant::now();
    loop {
        let looked = tokio::time::timeout(PATIENCE, states(socket)).await.context("no answer");
        match looked.and_then(|states| states) {
            Ok(states) if states.iter().filter(|state| *state == "reachable").count() == N_MANAGERS => {
                return Ok(());
            }
            other if start.elapsed() > RETURN_LIMIT => anyhow::bail!("managers are not heard: {other:?}"),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Whether each manager is reachable, in Docker's word.
async fn states(socket: &Path) -> Result<Vec<String>> {
    let nodes = Connection::open(socket).await?.call(Method::GET, "/nodes", None).await?;
    let nodes = nodes.as_array().context("no list of nodes")?;
    let state = |node: &Value| Some(node["ManagerStatus"]["Reachability"].as_str()?.to_owned());
    Ok(nodes.iter().filter(|node| node["Status"]["State"] == "ready").filter_map(state).collect())
}

/// Address of the manager that leads, with its port.
pub async fn leader(socket: &Path) -> Result<String> {
    let nodes = Connection::open(socket).await?.call(Method::GET, "/nodes", None).await?;
    let mut statuses = nodes.as_array().context("no list of nodes")?.iter().map(|n| &n["ManagerStatus"]);
    let leader = statuses.find(|status| status["Leader"] == true).context("nobody leads")?;
    Ok(leader["Addr"].as_str().context("the leader has no address")?.to_owned())
}

/// Removes the configs that writes have made.
pub async fn forget(socket: &Path) -> Result<()> {
    let configs = Connection::open(socket).await?.call(Method::GET, "/configs", None).await?;
    let configs = configs.as_array().context("no list of configs")?;
    let is_ours =
        |config: &&Value| config["Spec"]["Name"].as_str().is_some_and(|name| name.starts_with(PREFIX));
    let ids = configs.iter().filter(is_ours).filter_map(|config| Some(config["ID"].as_str()?.to_owned()));
    let ids: Vec<String> = ids.collect();
    let mut removals = JoinSet::new();
    for share in ids.chunks(ids.len().div_ceil(N_REMOVERS).max(1)) {
        removals.spawn(remove(socket.to_owned(), share.to_vec()));
    }
    while let Some(removed) = removals.join_next().await {
        removed??;
    }
    Ok(())
}

async fn remove(socket: PathBuf, ids: Vec<String>) -> Result<()> {
    let mut connection = Connection::open(&socket).await?;
    for id in ids {
        connection.call(Method::DELETE, &format!("/configs/{id}"), None).await?;
    }
    Ok(())
}

/// Asks the managers in turn until one knows who leads.
pub fn find<T>(mut ask: impl FnMut(usize) -> Result<T>) -> Result<T> {
    let mut turn = 0;
    let (found, _) = wait_until("somebody to lead", RETURN_LIMIT, || {
        turn += 1;
        ask(turn % N_MANAGERS).map(Some)
    })?;
    Ok(found)
}
