//! Requests that are the host's Docker Engine's: sent on as they are, both ways, with what is hidden taken out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use futures::{Stream, TryStreamExt};
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncWriteExt as _, copy, split};
use tokio::net::UnixStream;

use crate::error::ApiError;
use crate::version::ApiVersion;

/// Of a list that is read whole, to take out what is hidden.
const MAX_LIST_BYTES: usize = 64 << 20;

/// The way to the host's Docker Engine. Cheap to clone.
#[derive(Clone)]
pub struct Passage(Arc<Inner>);

struct Inner {
    socket: PathBuf,
    newest: ApiVersion,
    is_hidden: fn(&str) -> bool,
}

impl Passage {
    /// To the engine at `socket`, which speaks the API up to `newest`. Its containers and images with a label that `is_hidden` are
    /// not shown.
    pub fn new(socket: &Path, newest: ApiVersion, is_hidden: fn(&str) -> bool) -> Self {
        Self(Arc::new(Inner { socket: socket.to_owned(), newest, is_hidden }))
    }

    /// The newest version that the engine speaks.
    pub fn newest(&self) -> ApiVersion {
        self.0.newest
    }

    /// The engine's answer, streams and terminals included. The request's path has no version any more.
    pub async fn pass(&self, mut request: Request) -> Result<Response, ApiError> {
        let asked = request.extensions().get::<ApiVersion>().copied().unwrap_or(self.0.newest);
        *request.uri_mut() = self.uri(asked, request.uri())?;
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("docker"));
        let client = request.extensions_mut().remove::<OnUpgrade>();
        let stream = UnixStream::connect(&self.0.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.unreachable(&error))?;
        // It ends with either side.
        tokio::spawn(connection.with_upgrades());
        let mut response = sender.send_request(request).await.map_err(|error| self.unreachable(&error))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(client) = client
        {
            tokio::spawn(join(client, hyper::upgrade::on(&mut response)));
        }
        Ok(response.map(Body::new))
    }

    /// The same of a question that is asked beside a client's.
    pub async fn get(&self, path: &str, version: ApiVersion) -> Result<Response, ApiError> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = path.parse::<Uri>().map_err(|_| ApiError::not_found("page not found"))?;
        request.extensions_mut().insert(version);
        self.pass(request).await
    }

    /// An answer in JSON, whole; that of an engine which refuses is the error.
    pub async fn json(&self, response: Response) -> Result<Value, ApiError> {
        let (parts, body) = response.into_parts();
        let bytes = Limited::new(body, MAX_LIST_BYTES).collect().await;
        let bytes = bytes.map_err(|error| self.unreachable(&error))?.to_bytes();
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| self.unreachable(&error))?;
        if parts.status.is_success() {
            return Ok(value);
        }
        let message = value.get("message").and_then(Value::as_str).unwrap_or_default();
        Err(ApiError::new(parts.status, message.to_owned()))
    }

    /// The engine's list, or lists in an object, without what is hidden.
    pub async fn list(&self, request: Request) -> Result<Response, ApiError> {
        let response = self.pass(request).await?;
        if !response.status().is_success() {
            return Ok(response);
        }
        let (status, kind) = (response.status(), response.headers().get(header::CONTENT_TYPE).cloned());
        let mut value = self.json(response).await?;
        match &mut value {
            Value::Array(items) => self.hide(items),
            Value::Object(lists) => {
                for list in lists.values_mut() {
                    if let Value::Array(items) = list {
                        self.hide(items);
                    }
                }
            }
            _ => {}
        }
        let kind = kind.unwrap_or(HeaderValue::from_static("application/json"));
        Ok((status, [(header::CONTENT_TYPE, kind)], value.to_string()).into_response())
    }

    /// How many of its containers are hidden, and how many of these run.
    pub async fn hidden_containers(&self, version: ApiVersion) -> Result<(u64, u64), ApiError> {
        let all = self.json(self.get("/containers/json?all=1", version).await?).await?;
        let all = all.as_array().map(Vec::as_slice).unwrap_or_default();
        let hidden =
            all.iter().filter(|item| item.get("Labels").is_some_and(|labels| self.has_hidden(labels)));
        let (mut n_hidden, mut n_running) = (0, 0);
        for item in hidden {
            n_hidden += 1;
            n_running += u64::from(item.get("State").is_some_and(|state| state == "running"));
        }
        Ok((n_hidden, n_running))
    }

    /// The engine's lines of JSON without those about what is hidden.
    pub fn lines(
        &self,
        response: Response,
    ) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + use<> {
        let this = self.clone();
        let pieces = response.into_body().into_data_stream();
        let pieces = TryStreamExt::map_err(pieces, std::io::Error::other);
        let reader = tokio_util::io::StreamReader::new(pieces);
        let lines = tokio_util::codec::FramedRead::new(
            reader,
            tokio_util::codec::LinesCodec::new_with_max_length(MAX_LIST_BYTES),
        );
        let lines = TryStreamExt::map_err(lines, std::io::Error::other);
        lines.try_filter_map(move |mut line: String| {
            line.push('\n');
            let value: Option<Value> = serde_json::from_str(&line).ok();
            let labels = value.as_ref().and_then(|value| value.pointer("/Actor/Attributes"));
            let is_hidden = labels.is_some_and(|labels| this.has_hidden(labels));
            std::future::ready(Ok((!is_hidden).then(|| Bytes::from(line))))
        })
    }

    fn hide(&self, items: &mut Vec<Value>) {
        items.retain(|item| !item.get("Labels").is_some_and(|labels| self.has_hidden(labels)));
    }

    fn has_hidden(&self, labels: &Value) -> bool {
        labels.as_object().is_some_and(|labels| labels.keys().any(|label| (self.0.is_hidden)(label)))
    }

    fn uri(&self, asked: ApiVersion, uri: &Uri) -> Result<Uri, ApiError> {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let version = asked.min(self.0.newest);
        format!("/v{version}{path}").parse().map_err(|_| ApiError::not_found("page not found"))
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> ApiError {
        ApiError::unavailable(format!(
            "Docker Engine at {} does not answer: {error}",
            self.0.socket.display()
        ))
    }
}

/// Lets a client and the engine speak until the engine has no more to say; a client that has not may listen on.
async fn join(client: OnUpgrade, engine: OnUpgrade) {
    let (Ok(client), Ok(engine)) = (client.await, engine.await) else { return };
    let (mut from_client, mut to_client) = split(TokioIo::new(client));
    let (mut from_engine, mut to_engine) = split(TokioIo::new(engine));
    let asks = async {
        // Either may go first: the other way says so.
        let _ = copy(&mut from_client, &mut to_engine).await;
        let _ = to_engine.shutdown().await;
        std::future::pending::<()>().await;
    };
    let answers = async {
        let _ = copy(&mut from_engine, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::select! {
        () = answers => {}
        () = asks => {}
    }
}

/// A request like the given one, with another body.
pub fn with_body(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Request {
    let mut request = Request::new(Body::from(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}
