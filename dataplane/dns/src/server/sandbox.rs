//! One sandbox's sockets, and the tasks that answer on them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::answer::{Outcome, SandboxView, answer};
use crate::response::Transport;

use super::batch::{BATCH_LEN, Queries, Replies};
use super::forward::Forwarder;
use super::netns::{NetnsIdentity, Sockets};

/// TCP connections of one sandbox at a time; the next one waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;

/// How long a TCP connection may be silent (RFC 7766 section 6.2.3 asks for seconds).
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Forwarded UDP queries of one sandbox at a time; one more is told to try again.
const MAX_FORWARDED: usize = 512;

/// After an error of a socket that is none of the query's fault.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// A sandbox that is answered. Its view is swapped whole; readers never lock.
pub struct ServedSandbox {
    netns: NetnsIdentity,
    names: Arc<Names>,
    tasks: JoinSet<()>,
}

/// What the tasks of one sandbox share.
struct Names {
    view: ArcSwap<SandboxView>,
    rotation: AtomicU32,
    forwarder: Arc<Forwarder>,
}

impl ServedSandbox {
    /// Serves on `worker`'s thread.
    pub fn start(
        worker: &Handle,
        sockets: Sockets,
        view: SandboxView,
        forwarder: Arc<Forwarder>,
    ) -> io::Result<Self> {
        let _context = worker.enter();
        let udp = UdpSocket::from_std(sockets.udp)?;
        let tcp = TcpListener::from_std(sockets.tcp)?;
        let names = Names { view: ArcSwap::from_pointee(view), rotation: AtomicU32::new(0), forwarder };
        let names = Arc::new(names);
        let mut tasks = JoinSet::new();
        tasks.spawn_on(serve_udp(Arc::new(udp), names.clone()), worker);
        tasks.spawn_on(serve_tcp(tcp, names.clone()), worker);
        Ok(Self { netns: sockets.netns, names, tasks })
    }

    pub fn netns(&self) -> NetnsIdentity {
        self.netns
    }

    pub fn set_view(&self, view: SandboxView) {
        self.names.view.store(Arc::new(view));
    }

    /// Returns when the sockets are closed.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

impl Names {
    fn answer(&self, query: &[u8], transport: Transport, out: &mut Vec<u8>) -> Outcome {
        let rotation = self.rotation.fetch_add(1, Ordering::Relaxed);
        answer(query, &self.view.load(), transport, rotation, out)
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, names: Arc<Names>) {
    let mut queries = Queries::new();
    let mut replies = Replies::default();
    let mut forwarded = JoinSet::new();
    loop {
        if let Err(error) = receive(&socket, &mut queries).await {
            tracing::debug!(%error, "a sandbox's socket failed for a moment");
            sleep(ERROR_PAUSE).await;
        }
        answer_datagrams(&socket, &names, &queries, &mut replies, &mut forwarded);
        replies.send(&socket);
        while forwarded.try_join_next().is_some() {}
    }
}

/// Takes what waits, at least one datagram. Fewer than a batch is all there was: the socket is not asked a second time.
async fn receive(socket: &UdpSocket, queries: &mut Queries) -> io::Result<()> {
    loop {
        socket.readable().await?;
        let received = socket.try_io(Interest::READABLE, || match queries.receive(socket)? {
            BATCH_LEN => Ok(()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        });
        match received {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ if queries.is_empty() => {}
            _ => return Ok(()),
        }
    }
}

/// Leaves each answer in `replies`, or to a task of `forwarded`.
fn answer_datagrams(
    socket: &Arc<UdpSocket>,
    names: &Arc<Names>,
    queries: &Queries,
    replies: &mut Replies,
    forwarded: &mut JoinSet<()>,
) {
    for (query, client) in queries.iter() {
        let reply = replies.next_buffer();
        match names.answer(query, Transport::Udp, reply) {
            Outcome::Reply => replies.commit(client),
            Outcome::Silence => (),
            Outcome::Forward(question) if forwarded.len() >= MAX_FORWARDED => {
                crate::answer::write_failure(&question, Transport::Udp, reply);
                replies.commit(client);
            }
            Outcome::Forward(question) => {
                let (socket, names, query) = (socket.clone(), names.clone(), query.to_vec());
                forwarded.spawn(async move {
                    let view = names.view.load_full();
                    let reply =
                        names.forwarder.forward(&question, &query, &view.forwarding, Transport::Udp).await;
                    // A reply that the socket does not take is lost, as UDP is.
                    let _ = socket.send_to(&reply, SocketAddr::V4(client)).await;
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, names: Arc<Names>) {
    let mut connections = JoinSet::new();
    loop {
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        tokio::select! {
            Some(_) = connections.join_next() => (),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, names.clone()));
                }
                Err(_) => sleep(ERROR_PAUSE).await,
            },
        }
    }
}

/// Answers one query after the other until the client ends, fails or falls silent.
async fn serve_connection(mut stream: TcpStream, names: Arc<Names>) {
    let mut query = Vec::new();
    let mut reply = Vec::new();
    while let Ok(Ok(())) = timeout(TCP_IDLE_TIMEOUT, read_query(&mut stream, &mut query)).await {
        match names.answer(&query, Transport::Tcp, &mut reply) {
            Outcome::Reply => (),
            Outcome::Silence => return,
            Outcome::Forward(question) => {
                let view = names.view.load_full();
                reply = names.forwarder.forward(&question, &query, &view.forwarding, Transport::Tcp).await;
            }
        }
        if !matches!(timeout(TCP_IDLE_TIMEOUT, write_reply(&mut stream, &reply)).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn read_query(stream: &mut TcpStream, query: &mut Vec<u8>) -> io::Result<()> {
    let len = stream.read_u16().await?;
    query.resize(usize::from(len), 0);
    stream.read_exact(query).await?;
    Ok(())
}

/// One write for length and message, so that they travel in one segment.
async fn write_reply(stream: &mut TcpStream, reply: &[u8]) -> io::Result<()> {
    let len = u16::try_from(reply.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(reply.len() + 2);
    framed.extend_from_slice(&len.to_be_bytes());
    framed.extend_from_slice(reply);
    stream.write_all(&framed).await
}
