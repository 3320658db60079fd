//! Exchanges of all that two nodes know, by TCP.
//!
//! The caller says which key, who it is and a number that it has drawn; the server says a number of its own. Then frames:
//! what the caller knows; what the server knows, and what of it the caller lacks; what the server lacks. Frames are sealed with
//! keys made of both numbers, so that a recorded stream is worth nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use control_model::NodeId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Shared, monotonic, sockets};
use crate::core::message::{Frame, MAX_FRAME_BYTES};
use crate::seal::StreamKeys;

/// Exchanges that this node has begun and that are under way.
pub(super) const MAX_CALLS: usize = 4;
/// Exchanges that others have begun: each has a frame in memory.
const MAX_SERVED: usize = 16;
/// All of an exchange.
const LIMIT: Duration = Duration::from_secs(5);
/// First bytes of a stream: what it is, and which version.
const MAGIC: [u8; 4] = *b"mgx1";
/// Bytes that sealing adds to a frame.
const TAG_LEN: usize = 16;

/// Serves for ever.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(MAX_SERVED));
    let mut served = JoinSet::new();
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        while served.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, from)) => {
                let shared = shared.clone();
                served.spawn(async move {
                    let result = in_time(answer(stream, &shared)).await;
                    note(&shared, &format!("from {from}"), result);
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "no exchange accepted");
                tokio::time::sleep(sockets::IDLE_PAUSE).await;
            }
        }
    }
}

/// Exchanges with `with`.
pub(super) async fn call(shared: Arc<Shared>, with: NodeId, addr: SocketAddr) {
    let result = in_time(ask(&shared, with, addr)).await;
    note(&shared, &format!("with {with}"), result);
}

fn note(shared: &Shared, whom: &str, result: io::Result<()>) {
    let counter = match result {
        Ok(()) => &shared.counters.exchanged,
        Err(error) => {
            tracing::debug!(whom, %error, "exchange failed");
            &shared.counters.exchanges_failed
        }
    };
    counter.fetch_add(1, Ordering::Relaxed);
    shared.woken.notify_one();
}

async fn in_time(work: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn ask(shared: &Shared, with: NodeId, addr: SocketAddr) -> io::Result<()> {
    let key = shared.lock().envelopes.keys().in_use().cloned().ok_or_else(|| refused("no key yet"))?;
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let number: u128 = rand::random();
    stream.write_all(&MAGIC).await?;
    stream.write_u32(key.id).await?;
    stream.write_u128(shared.me.bits()).await?;
    stream.write_u128(number).await?;
    let other_number = stream.read_u128().await?;
    let keys = StreamKeys::new(&key, (shared.me, number), (with, other_number), true);
    let mut frames = Frames { stream, keys };
    let mine = shared.lock().core.frame();
    frames.send(&mine).await?;
    let theirs = frames.receive().await?;
    let lacking = {
        let mut state = shared.lock();
        state.core.take_frame(&theirs, true, monotonic());
        state.core.answer(&theirs)
    };
    frames.send(&lacking).await?;
    frames.stream.shutdown().await
}

async fn answer(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic).await?;
    let (key, caller, caller_number) =
        (stream.read_u32().await?, NodeId::from_bits(stream.read_u128().await?), stream.read_u128().await?);
    let key = {
        let state = shared.lock();
        let is_member = state.said.contacts.contains_key(&caller);
        state.envelopes.keys().get(key).filter(|_| is_member && magic == MAGIC).cloned()
    };
    let key = key.ok_or_else(|| refused("no member, or another key"))?;
    let number: u128 = rand::random();
    stream.write_u128(number).await?;
    let keys = StreamKeys::new(&key, (caller, caller_number), (shared.me, number), false);
    let mut frames = Frames { stream, keys };
    let theirs = frames.receive().await?;
    let mine = {
        let mut state = shared.lock();
        state.core.take_frame(&theirs, false, monotonic());
        state.core.answer(&theirs)
    };
    frames.send(&mine).await?;
    let lacking = frames.receive().await?;
    shared.lock().core.take_frame(&lacking, true, monotonic());
    Ok(())
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned())
}

/// A stream of sealed frames.
struct Frames {
    stream: TcpStream,
    keys: StreamKeys,
}

impl Frames {
    async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let sealed = self.keys.seal(&frame.encode());
        let len = u32::try_from(sealed.len()).map_err(|_| refused("a frame is too long"))?;
        self.stream.write_u32(len).await?;
        self.stream.write_all(&sealed).await
    }

    async fn receive(&mut self) -> io::Result<Frame> {
        let len = usize::try_from(self.stream.read_u32().await?).unwrap_or(usize::MAX);
        if len > MAX_FRAME_BYTES + TAG_LEN {
            return Err(refused("a frame is too long"));
        }
        // Memory follows what has come, not what was announced.
        let mut sealed = Vec::new();
        let limit = u64::try_from(len).unwrap_or_default();
        (&mut self.stream).take(limit).read_to_end(&mut sealed).await?;
        let text = self.keys.open(&sealed).ok_or_else(|| refused("a frame is forged"))?;
        Frame::decode(&text).ok_or_else(|| refused("a frame is malformed"))
    }
}
