//! Queries by UDP: what our own names answer is answered in turn, what has to be asked elsewhere gets a task of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::answer::{Outcome, write_failure};
use crate::question::Question;
use crate::response::Transport;

use super::batch::{BATCH_LEN, Queries, Replies};
use super::sandbox::Names;

/// Forwarded queries of one sandbox at a time, those that are about to be refused included.
const MAX_FORWARDED: usize = 1024;

/// After an error of a socket that is none of the query's fault.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

pub async fn serve(socket: Arc<UdpSocket>, names: Arc<Names>) {
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
        // Whoever asks without pause gets no more than a batch before the other sandboxes of this thread have their turn.
        if queries.len() == BATCH_LEN {
            tokio::task::yield_now().await;
        }
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
                write_failure(&question, Transport::Udp, reply);
                replies.commit(client);
            }
            Outcome::Forward(question) => {
                forwarded.spawn(forward(socket.clone(), names.clone(), question, client.into()));
            }
        }
    }
}

async fn forward(socket: Arc<UdpSocket>, names: Arc<Names>, question: Question, client: SocketAddr) {
    let mut reply = Vec::new();
    names.forward(&question, Transport::Udp, &mut reply).await;
    // A reply that the socket does not take is lost, as UDP is.
    let _ = socket.send_to(&reply, client).await;
}
