//! Queries by TCP (RFC 7766): several on one connection, answered as soon as their answers are there.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::answer::Outcome;
use crate::response::Transport;

use super::sandbox::Names;

/// Connections of one sandbox at a time; the next one waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;

/// How long a connection may be silent, or a query or a reply be on its way (RFC 7766 section 6.2.3 asks for seconds).
/// More than a forwarded query may take: nobody waits for an answer on a connection that is closed for it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Queries of one connection that wait for other resolvers at a time; the next one is read when one is answered.
const MAX_PIPELINED: usize = 32;

/// After an error of a socket that is none of the client's fault.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

pub async fn serve(listener: TcpListener, names: Arc<Names>) {
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

/// Answers until the client ends, fails or falls silent; what it asked before it ended is answered.
async fn serve_connection(stream: TcpStream, names: Arc<Names>) {
    let (reader, writer) = stream.into_split();
    let (replies, queue) = mpsc::channel(MAX_PIPELINED);
    let mut writing = std::pin::pin!(write_replies(writer, queue));
    tokio::select! {
        () = &mut writing => return,
        () = read_queries(reader, replies, names) => (),
    }
    writing.await;
}

async fn read_queries(mut reader: OwnedReadHalf, replies: mpsc::Sender<Vec<u8>>, names: Arc<Names>) {
    let mut query = Vec::new();
    let mut waiting = JoinSet::new();
    while let Ok(Ok(())) = timeout(IDLE_TIMEOUT, read_query(&mut reader, &mut query)).await {
        let mut reply = Vec::new();
        match names.answer(&query, Transport::Tcp, &mut reply) {
            Outcome::Silence => break,
            Outcome::Reply => {
                if replies.send(reply).await.is_err() {
                    return;
                }
            }
            Outcome::Forward(question) => {
                if waiting.len() >= MAX_PIPELINED {
                    waiting.join_next().await;
                }
                let (names, replies) = (names.clone(), replies.clone());
                waiting.spawn(async move {
                    names.forward(&question, Transport::Tcp, &mut reply).await;
                    // The connection may have ended.
                    let _ = replies.send(reply).await;
                });
            }
        }
        while waiting.try_join_next().is_some() {}
    }
    while waiting.join_next().await.is_some() {}
}

async fn read_query(reader: &mut OwnedReadHalf, query: &mut Vec<u8>) -> io::Result<()> {
    let len = reader.read_u16().await?;
    query.resize(usize::from(len), 0);
    reader.read_exact(query).await?;
    Ok(())
}

/// Ends when there are no more, or one can't be sent in time.
async fn write_replies(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(reply) = queue.recv().await {
        if !matches!(timeout(IDLE_TIMEOUT, write_reply(&mut writer, &reply)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// One write for length and message, so that they travel in one segment.
async fn write_reply(writer: &mut OwnedWriteHalf, reply: &[u8]) -> io::Result<()> {
    let len = u16::try_from(reply.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(reply.len() + 2);
    framed.extend_from_slice(&len.to_be_bytes());
    framed.extend_from_slice(reply);
    writer.write_all(&framed).await
}
