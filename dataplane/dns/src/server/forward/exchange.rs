//! One question to one resolver.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};

use crate::question::Question;
use crate::relay::{Relayed, write_query};
use crate::response::MAX_UDP_LEN;

use super::upstreams::Origin;

/// How long a resolver may take altogether: less than the 5 s after which glibc and musl give up on us.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_millis(3500);

/// After it a UDP query is sent again.
const RESEND_PERIOD: Duration = Duration::from_secs(1);

/// A resolver did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("{resolver} can't be asked")]
    Io { resolver: SocketAddr, source: io::Error },
    #[error("{0} does not answer")]
    TimedOut(SocketAddr),
}

/// Asks `resolver`, each time under an id and from a port that nobody can guess (RFC 5452 section 9.2): by UDP, by TCP
/// where the answer was cut off, without EDNS where that is not understood.
pub async fn exchange(
    resolver: SocketAddr,
    origin: Origin,
    question: Question,
) -> Result<Relayed, ExchangeError> {
    let answered = timeout(EXCHANGE_TIMEOUT, ask(resolver, &origin, &question)).await;
    answered
        .map_err(|_| ExchangeError::TimedOut(resolver))?
        .map(|answer| answer.told_by(resolver))
        .map_err(|source| ExchangeError::Io { resolver, source })
}

async fn ask(resolver: SocketAddr, origin: &Origin, question: &Question) -> io::Result<Relayed> {
    let mut answer = ask_udp(resolver, origin, question, true).await?;
    let edns = !answer.rejects_edns();
    if !edns {
        answer = ask_udp(resolver, origin, question, false).await?;
    }
    if answer.is_truncated() {
        // A resolver that has no TCP: what was cut off is better than nothing, and says that it is cut off.
        return Ok(ask_tcp(resolver, origin, question, edns).await.unwrap_or(answer));
    }
    Ok(answer)
}

async fn ask_udp(
    resolver: SocketAddr,
    origin: &Origin,
    question: &Question,
    edns: bool,
) -> io::Result<Relayed> {
    let id = rand::random();
    let query = write_query(question, id, edns);
    let socket = origin.connect_udp(resolver).await?;
    loop {
        socket.send(&query).await?;
        let resend_at = Instant::now() + RESEND_PERIOD;
        if let Ok(answer) = timeout_at(resend_at, receive(&socket, question, id)).await {
            return answer;
        }
    }
}

/// The first datagram that answers the question.
async fn receive(socket: &UdpSocket, question: &Question, id: u16) -> io::Result<Relayed> {
    let mut buffer = vec![0; usize::from(MAX_UDP_LEN)];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if let Some(answer) = Relayed::read(&buffer[..len], question, id) {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(
    resolver: SocketAddr,
    origin: &Origin,
    question: &Question,
    edns: bool,
) -> io::Result<Relayed> {
    let id = rand::random();
    let query = write_query(question, id, edns);
    let mut stream = origin.tcp_socket(resolver).await?.connect(resolver).await?;
    let len = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes()[..], &query].concat()).await?;
    let len = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(len)];
    stream.read_exact(&mut bytes).await?;
    Relayed::read(&bytes, question, id).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
