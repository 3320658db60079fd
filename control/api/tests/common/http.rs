//! Plain requests to a [`Daemon`], where the status matters or the CLI would not send them.

use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::Daemon;

impl Daemon {
    /// Status and body of the reply.
    pub async fn request(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        self.request_of(method, path, Some("application/json"), body).await
    }

    /// The same with another content type.
    pub async fn request_of(
        &self,
        method: &str,
        path: &str,
        content_type: Option<&str>,
        body: &[u8],
    ) -> (u16, String) {
        let stream = UnixStream::connect(&self.socket).await.expect("the socket answers");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("Host", "docker");
        if let Some(content_type) = content_type {
            request = request.header("Content-Type", content_type);
        }
        let body = Full::new(Bytes::copy_from_slice(body));
        let reply = sender.send_request(request.body(body).expect("a request")).await.expect("a reply");
        let status = reply.status().as_u16();
        let bytes = reply.into_body().collect().await.expect("a body").to_bytes();
        connection.abort();
        (status, String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }

    /// A header of the reply; empty if it has none.
    pub async fn header(&self, method: &str, path: &str, name: &str) -> String {
        let stream = UnixStream::connect(&self.socket).await.expect("the socket answers");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        let connection = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("Host", "docker");
        let request = request.body(Full::new(Bytes::new())).expect("a request");
        let reply = sender.send_request(request).await.expect("a reply");
        connection.abort();
        let value = reply.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
        value.unwrap_or_default()
    }

    /// Status and message of a reply that is an error.
    pub async fn error(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (status, text) = self.request(method, path, body.as_bytes()).await;
        let value: serde_json::Value = serde_json::from_str(&text).expect("an error in JSON");
        (status, value["message"].as_str().expect("a message").to_owned())
    }
}
