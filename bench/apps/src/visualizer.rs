//! Which tasks run on which node, from the Engine API of the node that this container is on.

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::http::header::HOST;
use axum::response::Response;
use axum::routing::get;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::html::{escaped, fill};
use crate::server::{self, page};

const PAGE: &str = include_str!("../pages/visualizer.html");
const SOCKET: &str = "/var/run/docker.sock";

pub async fn serve() -> Result<()> {
    server::serve(Router::new().route("/", get(show))).await
}

async fn show() -> Response {
    page(columns().await.map(|columns| fill(PAGE, &[]).replace("{{nodes}}", &columns)))
}

/// A column per node, a box in it per task.
async fn columns() -> Result<String> {
    let (nodes, services) = (list("/nodes").await?, list("/services").await?);
    let tasks = list("/tasks?filters=%7B%22desired-state%22%3A%5B%22running%22%5D%7D").await?;
    let name_of = |id: &Value| {
        let service = services.iter().find(|service| service["ID"] == *id);
        service.and_then(|service| service["Spec"]["Name"].as_str()).unwrap_or_default()
    };
    let mut columns: Vec<(&str, String)> = Vec::new();
    for node in &nodes {
        let name = node["Description"]["Hostname"].as_str().unwrap_or_default();
        let here = tasks.iter().filter(|task| task["NodeID"] == node["ID"]);
        let mut boxes: Vec<String> = here.map(|task| task_box(name_of(&task["ServiceID"]), task)).collect();
        boxes.sort_unstable();
        columns
            .push((name, column(name, node["Spec"]["Role"].as_str().unwrap_or_default(), &boxes.concat())));
    }
    columns.sort_unstable();
    Ok(columns.into_iter().map(|(_, column)| column).collect())
}

fn column(node: &str, role: &str, boxes: &str) -> String {
    let (node, role) = (escaped(node), escaped(role));
    format!("<section class=\"card\"><h2>{node}</h2><p>{role}</p>{boxes}</section>\n")
}

fn task_box(service: &str, task: &Value) -> String {
    let slot = task["Slot"].as_u64().map(|slot| format!(".{slot}")).unwrap_or_default();
    let state = task["Status"]["State"].as_str().unwrap_or_default();
    format!("<div class=\"task\">{}{slot} <small>{}</small></div>", escaped(service), escaped(state))
}

async fn list(path: &str) -> Result<Vec<Value>> {
    let stream = UnixStream::connect(SOCKET).await.with_context(|| format!("can't reach {SOCKET}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path).header(HOST, "docker").body(Body::empty())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "{path}: {status}: {}", String::from_utf8_lossy(&body));
    Ok(serde_json::from_slice(&body)?)
}
