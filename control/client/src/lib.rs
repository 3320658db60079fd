//! Engine API and inspection client over a unix socket: for `meshctl`, tests and benches. Thin: bodies are JSON values,
//! errors are the daemon's own words.
#![forbid(unsafe_code)]

mod error;
mod inspect;
mod path;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

pub use error::ClientError;
pub use path::with_query;

/// The version of the Engine API that is asked for: that of Docker 20.10, the oldest CLI that is supported.
const API_VERSION: &str = "v1.41";

/// Longest answer that is taken, bytes: a list of a hundred thousand tasks has this size.
const MAX_RESPONSE_LEN: usize = 256 << 20;

/// How long a request may take, unless said otherwise. Writes wait for a quorum; pulls of images take longer.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

const JSON: &str = "application/json";

/// A client of one daemon. Makes a connection for each request.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
    /// What is inspected, if it is not the daemon's own node.
    node: Option<String>,
}

impl Client {
    /// Of the daemon at this unix socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: DEFAULT_TIMEOUT, node: None }
    }

    /// The same with another limit for each request.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same, inspecting another node of the cluster: its name, id or tunnel end, which go into the path as they are. The
    /// daemon must be a manager's, and asks that node.
    #[must_use]
    pub fn on_node(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET /v…<path>`. The path begins with a slash and may have a query ([`with_query`]).
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        to_value(&self.send(Method::GET, &versioned(path), None).await?)
    }

    /// `POST /v…<path>` with a JSON body, or none. `Null` where the daemon answers nothing.
    pub async fn post(&self, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let body = body.map(|body| (JSON, Bytes::from(body.to_string())));
        to_value(&self.send(Method::POST, &versioned(path), body).await?)
    }

    /// `DELETE /v…<path>`.
    pub async fn delete(&self, path: &str) -> Result<Value, ClientError> {
        to_value(&self.send(Method::DELETE, &versioned(path), None).await?)
    }

    /// `POST /v…<path>` with any body, for images; the answer as it is (progress is one JSON value per line).
    pub async fn post_bytes(
        &self,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        self.send(Method::POST, &versioned(path), Some((content_type, body))).await
    }

    /// One request and its whole answer; an error for any status from 400 on.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Bytes, ClientError> {
        let request = request(method, path, body)?;
        let answered = async {
            let response = self.connect_and_send(request).await?;
            let status = response.status();
            let body = read_limited(response).await?;
            if status.is_client_error() || status.is_server_error() {
                return Err(refusal(status, &body));
            }
            Ok(body)
        };
        timeout(self.timeout, answered).await.map_err(|_| self.timed_out())?
    }

    async fn connect_and_send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, ClientError> {
        let failed = |source| ClientError::Connect { socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(failed)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the exchange; what fails in it fails the request too.
        tokio::spawn(connection);
        Ok(sender.send_request(request).await?)
    }

    fn timed_out(&self) -> ClientError {
        ClientError::TimedOut { socket: self.socket.clone(), after: self.timeout }
    }
}

fn versioned(path: &str) -> String {
    format!("/{API_VERSION}{path}")
}

fn request(
    method: Method,
    path: &str,
    body: Option<(&str, Bytes)>,
) -> Result<Request<Full<Bytes>>, ClientError> {
    let builder = Request::builder().method(method).uri(path).header(HOST, "docker");
    let request = match body {
        Some((content_type, body)) => builder.header(CONTENT_TYPE, content_type).body(Full::new(body)),
        None => builder.body(Full::default()),
    };
    request.map_err(|source| ClientError::Request { path: path.to_owned(), source })
}

async fn read_limited(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let mut incoming = response.into_body();
    let mut body = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if body.len() + data.len() > MAX_RESPONSE_LEN {
            return Err(ClientError::TooLong { limit: MAX_RESPONSE_LEN });
        }
        body.extend_from_slice(&data);
    }
    Ok(body.freeze())
}

/// Docker's errors are `{"message": "…"}`; anything else is shown as it is.
fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    let message = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|value| value.get("message")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    ClientError::Refused { status: status.as_u16(), message }
}

fn to_value(body: &[u8]) -> Result<Value, ClientError> {
    if body.trim_ascii().is_empty() {
        return Ok(Value::Null);
    }
    Ok(serde_json::from_slice(body)?)
}
