//! A process's streams on a connection that becomes them, as `docker exec`, `attach` and `run` have it.

use axum::body::{Body, Bytes};
use axum::response::IntoResponse as _;
use control_model::OutputStream;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWrite, AsyncWriteExt as _, copy, split};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::frames::frame;
use crate::reply::Reply;

/// A client's connection once it is one.
pub type Connection = TokioIo<hyper::upgrade::Upgraded>;

/// A process's streams, and which of them its client wants.
pub struct Streams {
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub output: BoxStream<'static, (OutputStream, Vec<u8>)>,
    pub tty: bool,
    pub stdout: bool,
    pub stderr: bool,
}

impl Streams {
    fn wants(&self) -> impl Fn(OutputStream) -> bool + use<> {
        let (stdout, stderr) = (self.stdout, self.stderr);
        move |stream| match stream {
            OutputStream::Stdout => stdout,
            OutputStream::Stderr => stderr,
        }
    }

    /// Lets the process and its client, if it has one, speak with each other until the process says no more. What it says to a
    /// client that has gone is heard by nobody. `over` is done before the client hears of the end: that is when it asks.
    pub async fn converse(self, connection: Option<Connection>, over: impl Future<Output = ()>) {
        let wants = self.wants();
        let Self { input, mut output, tty, .. } = self;
        let (mut reader, mut writer) = match connection.map(split) {
            Some((reader, writer)) => (Some(reader), Some(writer)),
            None => (None, None),
        };
        let speaks = async {
            if let (Some(reader), Some(mut input)) = (&mut reader, input) {
                // Either end may go first.
                let _ = copy(reader, &mut input).await;
                let _ = input.shutdown().await;
            }
            std::future::pending::<()>().await;
        };
        let listens = async {
            while let Some((stream, bytes)) = output.next().await {
                let Some(client) = writer.as_mut().filter(|_| wants(stream)) else { continue };
                let mut piece = Vec::new();
                frame(stream, &bytes, tty, &mut piece);
                if client.write_all(&piece).await.is_err() {
                    writer = None;
                }
            }
            over.await;
            if let Some(client) = &mut writer {
                let _ = client.shutdown().await;
            }
        };
        tokio::select! {
            () = listens => {}
            () = speaks => {}
        }
    }

    /// The output as a plain reply, for clients that can't do better.
    pub fn alone(self, over: impl Future<Output = ()> + Send + 'static) -> Body {
        let (pieces, stream) = mpsc::channel::<Result<Bytes, std::convert::Infallible>>(1);
        tokio::spawn(async move {
            let wants = self.wants();
            let Self { mut output, tty, .. } = self;
            while let Some((stream, bytes)) = output.next().await {
                if wants(stream) {
                    let mut piece = Vec::new();
                    frame(stream, &bytes, tty, &mut piece);
                    // Who has gone misses it; the process runs on.
                    let _ = pieces.send(Ok(piece.into())).await;
                }
            }
            over.await;
        });
        Body::from_stream(ReceiverStream::new(stream))
    }
}

/// The client can do better than a plain reply.
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|to| to == HeaderValue::from_static("tcp"))
}

/// From here on the connection is what comes of it.
#[expect(clippy::unnecessary_wraps, reason = "a handler's last word, as the others are")]
pub fn switching(kind: &'static str) -> Reply {
    let headers = [(header::CONTENT_TYPE, kind), (header::CONNECTION, "Upgrade"), (header::UPGRADE, "tcp")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response())
}
