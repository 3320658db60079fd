//! Channels to managers, made when first used.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control_model::identity::MANAGER_UNIT;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::identity::Identity;
use crate::peer::identity_of;
use crate::server::{MAX_STREAMS, STREAM_WINDOW_BYTES, connection_window_bytes};

/// TCP and TLS handshake together. Managers are a few milliseconds away; a lost SYN is sent again after 1 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An idle connection is probed this often, so that one to a vanished host is noticed and made anew …
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// … when a probe has no answer for this long. Both together are below any RPC's own deadline but Raft's.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// A cluster has a handful of managers; addresses of past ones are forgotten beyond this many.
const MAX_CHANNELS: usize = 64;

/// A pool of channels by address, each verified to lead to a manager of this node's own cluster.
///
/// A channel connects at its first call and connects anew by itself when its connection broke: the call that meets
/// the broken connection fails, the next one tries again.
#[derive(Debug)]
pub struct Channels {
    identity: Arc<Identity>,
    pool: Mutex<BTreeMap<(SocketAddr, Purpose), Pooled>>,
}

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Calls,
    LongAnswers,
}

#[derive(Debug)]
struct Pooled {
    version: u64,
    channel: Channel,
}

impl Channels {
    /// An empty pool that speaks as `identity`.
    pub fn new(identity: Arc<Identity>) -> Arc<Self> {
        Arc::new(Self { identity, pool: Mutex::default() })
    }

    /// The identity that calls are made with.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The channel to the manager at `addr`. Must be called inside a tokio runtime.
    pub fn get(&self, addr: SocketAddr) -> Channel {
        self.channel(addr, Purpose::Calls)
    }

    /// The same for answers that go on for long and may not be read for long: calls have a connection without such. Each of
    /// them may wait for its reader and hold up no other ([`STREAM_WINDOW_BYTES`]).
    pub fn for_long_answers(&self, addr: SocketAddr) -> Channel {
        self.channel(addr, Purpose::LongAnswers)
    }

    fn channel(&self, addr: SocketAddr, purpose: Purpose) -> Channel {
        let version = self.identity.version();
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pooled) = pool.get(&(addr, purpose))
            && pooled.version == version
        {
            return pooled.channel.clone();
        }
        if pool.len() >= MAX_CHANNELS {
            pool.clear();
        }
        let channel = self.connect(addr, purpose);
        pool.insert((addr, purpose), Pooled { version, channel: channel.clone() });
        channel
    }

    /// Forgets the channel to `addr`: the next [`Channels::get`] makes a new one. Calls under way go on.
    pub fn drop_channel(&self, addr: SocketAddr) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.retain(|(pooled, _), _| *pooled != addr);
    }

    fn connect(&self, addr: SocketAddr, purpose: Purpose) -> Channel {
        let identity = self.identity.clone();
        let endpoint = match purpose {
            Purpose::Calls => endpoint(),
            Purpose::LongAnswers => endpoint()
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(connection_window_bytes(MAX_STREAMS)),
        };
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let identity = identity.clone();
            async move {
                let stream = connect_tls(addr, identity.client_config()).await?;
                let server = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let server = server.and_then(|certificate| identity_of(certificate).ok());
                if server.is_none_or(|server| server.cluster_id != identity.me().cluster_id) {
                    return Err(io::Error::other("the server is not a manager of this cluster"));
                }
                Ok(TokioIo::new(stream))
            }
        }))
    }
}

/// How every channel behaves. The name is for logs alone: TLS verifies, the connector knows the address.
pub(crate) fn endpoint() -> Endpoint {
    Endpoint::from_static("http://swarm-manager")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

/// Connects to a server that must prove by its chain to be `swarm-manager`.
pub(crate) async fn connect_tls(
    addr: SocketAddr,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let connect = async {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(MANAGER_UNIT).expect("the unit is a DNS name");
        TlsConnector::from(config).connect(name, stream).await
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connect)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connection timed out"))?
}
