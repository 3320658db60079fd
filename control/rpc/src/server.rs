//! Serves RPC on a listener: TLS handshake, identity of the peer, then tonic.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use control_model::crowd::Source;
use control_model::spec::Role;
use control_model::{NodeId, Timestamp};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::channels::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use crate::door::{Door, Place};
use crate::identity::Identity;
use crate::peer::{ConnectInfo, identity_of, issued_of};

/// A peer that takes longer for its handshake is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// And one that says nothing for so long. Clients speak first, and wait no longer than this for all of it.
pub(crate) const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections after their handshake that have yet to be taken over by the HTTP/2 server.
const MAX_WAITING: usize = 64;
/// Connections without a certificate are cut then. Longer than a join with an election in between.
pub(crate) const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(30);
/// Streams on one connection of a manager: one per replicated peer and forwarded write.
pub(crate) const MAX_STREAMS: u32 = 1024;
/// On one of others. An agent has a handful, and on the connection for long answers as many as there may be of those; who asks
/// for more waits for its own.
pub(crate) const MAX_STREAMS_OF_OTHERS: u32 = 128;
const _: () = assert!(crate::MAX_LONG_ANSWERS < MAX_STREAMS_OF_OTHERS as usize, "each has a stream");
/// What may be on its way in one stream. A connection has room for as much of each, so that one that is not read holds up
/// no other (RFC 9113, section 5.2).
pub(crate) const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// Of a connection with so many streams.
pub(crate) const fn connection_window_bytes(max_streams: u32) -> u32 {
    max_streams * STREAM_WINDOW_BYTES
}

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
    let (managers, from_managers) = mpsc::channel(MAX_WAITING);
    let (others, from_others) = mpsc::channel(MAX_WAITING);
    let cut = CancellationToken::new();
    // Dropped with this future: a server that is dropped leaves no connection behind.
    let _guard = cut.clone().drop_guard();
    let accepting = accept_all(listener, identity, Hall { managers, others }, cut.clone());
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
    let serving = |connections, max_streams| {
        Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(max_streams)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(connection_window_bytes(max_streams))
            .add_routes(routes.clone())
            .serve_with_incoming_shutdown(
                ReceiverStream::new(connections),
                stopping.clone().cancelled_owned(),
            )
    };
    let to_managers = serving(from_managers, MAX_STREAMS);
    let to_others = serving(from_others, MAX_STREAMS_OF_OTHERS);
    let mut server = Box::pin(async { tokio::try_join!(to_managers, to_others).map(drop) });
    let accepting = stopping.run_until_cancelled_owned(accepting);
    let background = Box::pin(async { tokio::join!(accepting, stop) });
    tokio::select! {
        result = &mut server => return Ok(result?),
        _ = background => {}
    }
    Ok(server.await?)
}

async fn accept_all(listener: TcpListener, identity: Arc<Identity>, hall: Hall, cut: CancellationToken) {
    let door = Arc::new(Door::new());
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an RPC connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let silent = door.silent(remote.ip().into(), &cut);
        let (identity, hall, door, cut) = (identity.clone(), hall.clone(), door.clone(), cut.clone());
        tokio::spawn(async move {
            let proving = prove((stream, remote), silent, &identity, &door, &cut);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, proving).await {
                Ok(Ok(connection)) => hall.let_in(connection).await,
                Ok(Err(error)) => tracing::debug!(%remote, %error, "RPC handshake refused"),
                Err(_) => tracing::debug!(%remote, "RPC handshake timed out"),
            }
        });
    }
}

/// Where connections go that are through.
#[derive(Clone)]
struct Hall {
    managers: mpsc::Sender<io::Result<Connection>>,
    others: mpsc::Sender<io::Result<Connection>>,
}

impl Hall {
    async fn let_in(&self, connection: Connection) {
        let is_manager = connection.info.peer.is_some_and(|peer| peer.role == Role::Manager);
        let server = if is_manager { &self.managers } else { &self.others };
        // It may have stopped.
        let _ = server.send(Ok(connection)).await;
    }
}

/// The connection, once it has shown who it is, as far as there is room for it until then.
async fn prove(
    (stream, remote): (TcpStream, SocketAddr),
    silent: Place<Source>,
    identity: &Identity,
    door: &Door,
    cut: &CancellationToken,
) -> io::Result<Connection> {
    let gave_way = || io::Error::other("it gave way to others");
    stream.set_nodelay(true)?;
    let mut first = [0];
    let spoken = tokio::time::timeout(FIRST_BYTES_TIMEOUT, stream.peek(&mut first));
    silent.cut.run_until_cancelled(spoken).await.ok_or_else(gave_way)???;
    drop(silent);
    let place = door.handshake(remote.ip().into(), cut);
    let shaken = place.cut.run_until_cancelled(handshake((stream, remote), identity, door, cut)).await;
    shaken.ok_or_else(gave_way)?
}

async fn handshake(
    (stream, remote): (TcpStream, SocketAddr),
    identity: &Identity,
    door: &Door,
    cut: &CancellationToken,
) -> io::Result<Connection> {
    let stream = TlsAcceptor::from(identity.server_config()).accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = certificate.map(identity_of).transpose().map_err(io::Error::other)?;
    let issued = certificate.map_or(Timestamp(0), issued_of);
    if peer.is_some_and(|peer| peer.cluster_id != identity.me().cluster_id) {
        return Err(io::Error::other("certificate of another cluster"));
    }
    let place = match peer {
        Some(peer) => Held::Node(door.node(peer.node_id, cut)),
        None => Held::Anonymous(
            door.anonymous(remote.ip().into(), cut),
            Box::pin(tokio::time::sleep(ANONYMOUS_LIFETIME)),
        ),
    };
    let cut = Box::pin(place.cut().clone().cancelled_owned());
    Ok(Connection { stream, info: ConnectInfo { remote, peer, issued }, cut, place })
}

/// A connection after its handshake, that can be cut from outside.
struct Connection {
    stream: TlsStream<TcpStream>,
    info: ConnectInfo,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    place: Held,
}

/// What bounds a connection.
enum Held {
    Node(Place<NodeId>),
    /// Without a certificate: until then.
    Anonymous(Place<Source>, Pin<Box<Sleep>>),
}

impl Held {
    fn cut(&self) -> &CancellationToken {
        match self {
            Self::Node(place) => &place.cut,
            Self::Anonymous(place, _) => &place.cut,
        }
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
        let over = match &mut self.place {
            Held::Node(_) => false,
            Held::Anonymous(_, end) => end.as_mut().poll(cx).is_ready(),
        };
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
