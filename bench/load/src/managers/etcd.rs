//! Debian's etcd: three members in a namespace of their own, with their files on the disk that the managers' are on, and
//! written through as they are by default. Without TLS, which ours have.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench_lab::wait_until;
use http::uri::PathAndQuery;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};

use super::{Managers, N_MANAGERS, RETURN_LIMIT, Write, runtime, wait_for_end};
use crate::netns::Namespace;
use crate::process::Background;

/// Members listen here and on the ports behind, for clients and for each other.
const CLIENT_PORT: u16 = 23_790;
const PEER_PORT: u16 = 23_890;

const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// As long as the body of the request that makes a service.
const VALUE: [u8; 128] = [b'v'; 128];

pub struct Etcd {
    // Dropped in this order: members end before their namespace and files go.
    members: RefCell<Vec<Background>>,
    runtime: Runtime,
    namespace: Namespace,
    directory: TempDir,
}

impl Etcd {
    pub fn start() -> Result<Self> {
        super::with_peers()?;
        ensure!(Path::new("/usr/bin/etcd").exists(), "no etcd: install Debian's etcd-server");
        let this = Self {
            members: RefCell::default(),
            runtime: runtime()?,
            namespace: Namespace::new("etcd")?,
            // Not a file system in memory, where fsync is nothing: where daemons have their state.
            directory: tempfile::Builder::new().prefix("bench-etcd-").tempdir_in("/var/lib")?,
        };
        for member in 0..N_MANAGERS {
            let started = this.start_member(member)?;
            this.members.borrow_mut().push(started);
        }
        this.wait_until_heard()?;
        Ok(this)
    }

    fn start_member(&self, member: usize) -> Result<Background> {
        let url = |port, member| format!("http://{}", at(port, member));
        let peers: Vec<String> =
            (0..N_MANAGERS).map(|other| format!("m{other}={}", url(PEER_PORT, other))).collect();
        let (own, peer) = (url(CLIENT_PORT, member), url(PEER_PORT, member));
        let mut command = self.namespace.place().command("etcd");
        command
            .args(["--name", &format!("m{member}"), "--data-dir"])
            .arg(self.directory.path().join(format!("m{member}")))
            .args(["--listen-client-urls", &own, "--advertise-client-urls", &own])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &peers.join(","), "--log-level", "error"]);
        Background::start(command)
    }

    /// Every member knows the same leader.
    fn wait_until_heard(&self) -> Result<()> {
        wait_until("etcd's members to agree", RETURN_LIMIT, || {
            let leaders: Result<Vec<u64>> =
                (0..N_MANAGERS).map(|member| Ok(self.status(member)?.leader)).collect();
            let leaders = leaders?;
            Ok((leaders[0] != 0 && leaders.iter().all(|leader| *leader == leaders[0])).then_some(()))
        })
        .map(drop)
    }

    fn status(&self, member: usize) -> Result<Status> {
        self.runtime.block_on(async {
            let asked = async {
                let mut client = self.connect(member).await?.client;
                client.ready().await?;
                let path = PathAndQuery::from_static("/etcdserverpb.Maintenance/Status");
                let codec = tonic_prost::ProstCodec::<Nothing, Status>::default();
                Ok(client.unary(tonic::Request::new(Nothing {}), path, codec).await?.into_inner())
            };
            tokio::time::timeout(STATUS_LIMIT, asked).await.context("no answer")?
        })
    }

    /// A connection that is made in the members' namespace.
    async fn channel(&self, member: usize) -> Result<Channel> {
        let place = self.namespace.place().clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let place = place.clone();
            async move {
                let connected = place.inside(|| Ok(std::net::TcpStream::connect(at(CLIENT_PORT, member))?));
                let stream = connected.map_err(std::io::Error::other)?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                let stream = tokio::net::TcpStream::from_std(stream)?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        Ok(Endpoint::from_static("http://etcd").connect_with_connector(connector).await?)
    }
}

fn at(port: u16, member: usize) -> SocketAddr {
    let number = u16::try_from(member).expect("few members");
    SocketAddr::from((Ipv4Addr::LOCALHOST, port + number))
}

impl Managers for Etcd {
    type Writer = Puts;

    fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn leader(&self) -> Result<usize> {
        super::engine::find(|asked| {
            let leader = self.status(asked)?.leader;
            let leads = |member: &usize| {
                let id = self.status(*member).ok().and_then(|status| Some(status.header?.member_id));
                id == Some(leader)
            };
            (0..N_MANAGERS).find(leads).context("nobody leads")
        })
    }

    fn pid(&self, member: usize) -> Result<u32> {
        Ok(self.members.borrow().get(member).context("no such member")?.pid())
    }

    fn revive(&self, member: usize) -> Result<()> {
        wait_for_end(self.pid(member)?)?;
        self.members.borrow_mut()[member] = self.start_member(member)?;
        self.wait_until_heard()
    }

    async fn connect(&self, member: usize) -> Result<Puts> {
        Ok(Puts { client: Grpc::new(self.channel(member).await?) })
    }

    /// A key of etcd holds up nothing.
    fn forget(&self) -> Result<()> {
        Ok(())
    }
}

/// Writes are new keys.
pub struct Puts {
    client: Grpc<Channel>,
}

impl Write for Puts {
    async fn write(&mut self) -> Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let key = format!("bench-w{}", NUMBER.fetch_add(1, Ordering::Relaxed)).into_bytes();
        let put = Put { key, value: VALUE.to_vec() };
        self.client.ready().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let codec = tonic_prost::ProstCodec::<Put, Nothing>::default();
        self.client.unary(tonic::Request::new(put), path, codec).await?;
        Ok(())
    }
}

// Of etcd's `rpc.proto`, the fields that are used here.

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}
