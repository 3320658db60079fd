//! Serves RPC on a listener: TLS handshake, identity of the peer, then tonic.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use control_model::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::channels::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use crate::identity::Identity;
use crate::peer::{ConnectInfo, identity_of, issued_of};

/// A peer that takes longer for its handshake is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way: each costs a signature, and anyone may begin one. Further connections wait in the
/// listener's backlog.
const MAX_HANDSHAKES: usize = 64;
/// Connections of callers without a certificate, who need only the CA: each costs memory and a file, and anyone may
/// open one. A join takes one or two, for moments.
pub(crate) const MAX_ANONYMOUS: usize = 256;
/// Then they are cut, so that idle ones don't keep others out. Longer than a join with an election in between.
pub(crate) const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(30);
/// Streams on one connection: an agent has a handful, a manager one per replicated peer and forwarded write.
const MAX_STREAMS: u32 = 1024;
/// Calls under way at shutdown may take this long to end; then connections are cut. Sessions never end by themselves.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);
/// After an `accept` error such as too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// The server stopped by itself.
#[derive(Debug, thiserror::Error)]
#[error("RPC server failed")]
pub struct ServeError(#[from] tonic::transport::Error);

/// Serves `routes` on `listener` as `identity` until `shutdown` completes. Returns when all connections are closed.
///
/// A peer with a certificate of another cluster or an expired one fails in the handshake; one without a certificate
/// is let in, for the CA service: all other services begin with [`crate::require_node`] or
/// [`crate::require_manager`].
pub async fn serve(
    listener: TcpListener,
    identity: Arc<Identity>,
    routes: Routes,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let (sender, connections) = mpsc::channel(MAX_HANDSHAKES);
    let cut = CancellationToken::new();
    // Dropped with this future: a server that is dropped leaves no connection behind.
    let _guard = cut.clone().drop_guard();
    let accepting = accept_all(listener, identity, sender, cut.clone());
    let stopping = CancellationToken::new();
    let stop = {
        let (stopping, cut) = (stopping.clone(), cut.clone());
        async move {
            shutdown.await;
            stopping.cancel();
            tokio::time::sleep(SHUTDOWN_GRACE).await;
            cut.cancel();
        }
    };
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stopping.clone().cancelled_owned());
    let accepting = stopping.run_until_cancelled_owned(accepting);
    let background = async { tokio::join!(accepting, stop) };
    tokio::pin!(server, background);
    tokio::select! {
        result = &mut server => return Ok(result?),
        _ = &mut background => {}
    }
    Ok(server.await?)
}

async fn accept_all(
    listener: TcpListener,
    identity: Arc<Identity>,
    sender: mpsc::Sender<io::Result<Connection>>,
    cut: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let anonymous = Arc::new(Semaphore::new(MAX_ANONYMOUS));
    loop {
        let permit = handshakes.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an RPC connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let (identity, sender, cut) = (identity.clone(), sender.clone(), cut.clone());
        let anonymous = anonymous.clone();
        tokio::spawn(async move {
            let handshake =
                tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, &identity, &cut, anonymous));
            match cut.run_until_cancelled(handshake).await {
                Some(Ok(Ok(connection))) => drop(sender.send(Ok(connection)).await),
                Some(Ok(Err(error))) => tracing::debug!(%error, "RPC handshake refused"),
                Some(Err(_)) => tracing::debug!("RPC handshake timed out"),
                None => {}
            }
            drop(permit);
        });
    }
}

async fn handshake(
    stream: TcpStream,
    identity: &Identity,
    cut: &CancellationToken,
    anonymous: Arc<Semaphore>,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let remote = stream.peer_addr()?;
    let stream = TlsAcceptor::from(identity.server_config()).accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = certificate.map(identity_of).transpose().map_err(io::Error::other)?;
    let issued = certificate.map_or(Timestamp(0), issued_of);
    if peer.is_some_and(|peer| peer.cluster_id != identity.me().cluster_id) {
        return Err(io::Error::other("certificate of another cluster"));
    }
    let anonymous = match peer {
        Some(_) => None,
        None => Some(Anonymous::new(anonymous)?),
    };
    Ok(Connection {
        stream,
        info: ConnectInfo { remote, peer, issued },
        cut: Box::pin(cut.clone().cancelled_owned()),
        anonymous,
    })
}

/// A connection after its handshake, that can be cut from outside.
struct Connection {
    stream: TlsStream<TcpStream>,
    info: ConnectInfo,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    anonymous: Option<Anonymous>,
}

/// What bounds a connection without a certificate.
struct Anonymous {
    end: Pin<Box<Sleep>>,
    /// One of [`MAX_ANONYMOUS`].
    _permit: OwnedSemaphorePermit,
}

impl Anonymous {
    fn new(permits: Arc<Semaphore>) -> io::Result<Self> {
        let permit = permits
            .try_acquire_owned()
            .map_err(|_| io::Error::other("too many connections without a certificate"))?;
        Ok(Self { end: Box::pin(tokio::time::sleep(ANONYMOUS_LIFETIME)), _permit: permit })
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectInfo;

    fn connect_info(&self) -> ConnectInfo {
        self.info
    }
}

impl Connection {
    /// An error once the connection is cut or its time is over.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let over =
            self.anonymous.as_mut().is_some_and(|anonymous| anonymous.end.as_mut().poll(cx).is_ready());
        if over || self.cut.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
