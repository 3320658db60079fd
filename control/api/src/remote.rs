//! The API over TCP, for clients that prove by a certificate who they are: whoever is let in is as good as root. Nobody
//! else gets beyond the handshake.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use control_model::crowd::{Crowd, Source};
use control_rpc::{Counted, Place};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A client that takes longer for its handshake is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have said nothing yet. Beyond that the oldest of whoever has most gives way to a newer one.
const MAX_SILENT: usize = 128;
/// Handshakes under way, of those that have. It is the same with them,
const MAX_HANDSHAKES: usize = 64;
/// but for so long one is not cut for newer ones of the same address: many may begin at once.
const SPARED_FOR: Duration = Duration::from_millis(500);
/// Connections of clients that were let in, those with a stream that goes on (`logs -f`, `events`, `exec`) included.
const MAX_CONNECTIONS: usize = 256;
/// After an `accept` error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections on their way from the handshake to the server.
const MAX_WAITING: usize = 16;

/// Where a server's certificates are, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The roots that clients' certificates are to be signed by.
    pub ca: PathBuf,
    /// The server's certificate, intermediates behind it.
    pub cert: PathBuf,
    /// Its key, without a passphrase.
    pub key: PathBuf,
}

/// Why nothing can be served with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    #[error("can't read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("{0} has no certificate in PEM")]
    NoCertificate(PathBuf),
    #[error("{0} has no private key in PEM that is not encrypted")]
    NoKey(PathBuf),
    #[error("{0} is not valid PEM")]
    Pem(PathBuf, #[source] pem::Error),
    #[error("a certificate of {0} can't be a root of clients")]
    Root(PathBuf, #[source] rustls::Error),
    #[error("{0} and {1} are no certificate with its key")]
    Pair(PathBuf, PathBuf, #[source] rustls::Error),
    #[error("the roots of {0} can't verify clients")]
    Verifier(PathBuf, #[source] rustls::server::VerifierBuilderError),
}

impl TlsFiles {
    /// The configuration of a server that lets clients of these roots in, by TLS 1.2 or 1.3.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsFileError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(self.roots()?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| TlsFileError::Verifier(self.ca.clone(), error))?;
        let pair = |error| TlsFileError::Pair(self.cert.clone(), self.key.clone(), error);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(pair)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&self.cert)?, private_key(&self.key)?)
            .map_err(pair)?;
        // Streams take connections over, which HTTP/2 has not.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, TlsFileError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|error| TlsFileError::Root(self.ca.clone(), error))?;
        }
        Ok(roots)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let bytes = read(path)?;
    let all = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| TlsFileError::Pem(path.to_owned(), error))?;
    if all.is_empty() { Err(TlsFileError::NoCertificate(path.to_owned())) } else { Ok(all) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsFileError::NoKey(path.to_owned()),
        error => TlsFileError::Pem(path.to_owned(), error),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsFileError> {
    std::fs::read(path).map_err(|error| TlsFileError::Read(path.to_owned(), error))
}

/// Clients that have shown their certificates.
pub struct TlsListener {
    connections: mpsc::Receiver<(Connection, SocketAddr)>,
    address: SocketAddr,
    /// Ends accepting and the handshakes under way.
    _accepting: DropGuard,
}

impl TlsListener {
    /// Accepts on `listener` until it is dropped. Needs a tokio runtime.
    pub fn new(listener: TcpListener, config: Arc<ServerConfig>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (accepted, connections) = mpsc::channel(MAX_WAITING);
        let cut = CancellationToken::new();
        let hall =
            Hall { acceptor: config.into(), room: Arc::new(Semaphore::new(MAX_CONNECTIONS)), accepted };
        tokio::spawn(cut.clone().run_until_cancelled_owned(accept_all(listener, hall, cut.clone())));
        Ok(Self { connections, address, _accepting: cut.drop_guard() })
    }
}

impl Listener for TlsListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.connections.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// What a connection goes through.
#[derive(Clone)]
struct Hall {
    acceptor: TlsAcceptor,
    room: Arc<Semaphore>,
    accepted: mpsc::Sender<(Connection, SocketAddr)>,
}

async fn accept_all(listener: TcpListener, hall: Hall, cut: CancellationToken) {
    let door = Arc::new(Door::new());
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the API");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let silent = door.silent.enter(from.ip().into(), &cut);
        let (hall, door, cut) = (hall.clone(), door.clone(), cut.clone());
        tokio::spawn(async move {
            let proving = door.prove(stream, silent, &hall.acceptor, &cut);
            match timeout(HANDSHAKE_TIMEOUT, proving).await {
                Ok(Ok(stream)) => hall.let_in(stream, from).await,
                Ok(Err(error)) => tracing::debug!(%from, %error, "a client of the API was not let in"),
                Err(_) => tracing::debug!(%from, "a handshake with the API took too long"),
            }
        });
    }
}

/// Those who have not proven yet who they are.
struct Door {
    silent: Counted<Source>,
    handshakes: Counted<Source>,
}

impl Door {
    fn new() -> Self {
        Self {
            silent: Counted::new(Crowd::new(MAX_SILENT, MAX_SILENT)),
            handshakes: Counted::new(Crowd::new(MAX_HANDSHAKES, MAX_HANDSHAKES).sparing(SPARED_FOR)),
        }
    }

    /// The stream behind its handshake, as far as there is room for it until then.
    async fn prove(
        &self,
        stream: TcpStream,
        silent: Place<Source>,
        acceptor: &TlsAcceptor,
        cut: &CancellationToken,
    ) -> io::Result<TlsStream<TcpStream>> {
        let gave_way = || io::Error::other("it gave way to others");
        stream.set_nodelay(true)?;
        let mut first = [0];
        silent.cut.run_until_cancelled(stream.peek(&mut first)).await.ok_or_else(gave_way)??;
        let place = self.handshakes.enter(stream.peer_addr()?.ip().into(), cut);
        drop(silent);
        place.cut.run_until_cancelled(acceptor.accept(stream)).await.ok_or_else(gave_way)?
    }
}

impl Hall {
    async fn let_in(&self, stream: TlsStream<TcpStream>, from: SocketAddr) {
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            tracing::warn!(%from, "there are too many connections to the API: a new one is closed");
            return;
        };
        // The server may have stopped.
        let _ = self.accepted.send((Connection { stream, _place: place }, from)).await;
    }
}

/// A connection, and its place among those that there may be.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
