//! Exchanges of all that two nodes know, by TCP.
//!
//! The caller says which key, who it is and a number that it has drawn; the server says a number of its own. Then frames:
//! what the caller knows; what the server knows, and what of it the caller lacks; what the server lacks. Frames are sealed with
//! keys made of both numbers, so that a recorded stream is worth nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control_model::NodeId;
use control_model::crowd::{Crowd, Source};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::{Shared, monotonic, sockets};
use crate::core::message::{Frame, MAX_FRAME_BYTES};
use crate::seal::StreamKeys;

/// Exchanges that this node has begun and that are under way.
pub(super) const MAX_CALLS: usize = 4;
/// Exchanges with others who have proven that they are members: each has two frames in memory.
const MAX_SERVED: usize = 16;
/// Streams of those who have yet to prove it, by a sealed frame. The oldest of who has most gives way to a newer one.
pub(super) const MAX_UNPROVEN: usize = 32;
/// All of an exchange.
const LIMIT: Duration = Duration::from_secs(5);
/// Until the caller has said who it is.
const FIRST_BYTES_LIMIT: Duration = Duration::from_secs(1);
/// First bytes of a stream: what it is, and which version.
const MAGIC: [u8; 4] = *b"mgx1";
/// Bytes that sealing adds to a frame.
const TAG_LEN: usize = 16;

/// Serves for ever.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(MAX_SERVED));
    let unproven = Arc::new(Mutex::new(Crowd::new(MAX_UNPROVEN, MAX_UNPROVEN)));
    let mut served = JoinSet::new();
    loop {
        while served.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, from)) => {
                let place = Place::take(&unproven, from.ip());
                let (shared, permits) = (shared.clone(), permits.clone());
                served.spawn(async move {
                    let result = in_time(answer(stream, &shared, place, &permits)).await;
                    note(&shared, &format!("from {from}"), result);
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

async fn answer(stream: TcpStream, shared: &Shared, mut place: Place, permits: &Semaphore) -> io::Result<()> {
    let (mut frames, theirs) = tokio::select! {
        proven = prove(stream, shared) => proven?,
        _ = &mut place.gives_way => return Err(refused("it gave way to others")),
    };
    drop(place);
    let _permit = permits.acquire().await.map_err(io::Error::other)?;
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

/// The caller's first frame, which only a member can have sealed.
async fn prove(mut stream: TcpStream, shared: &Shared) -> io::Result<(Frames, Frame)> {
    stream.set_nodelay(true)?;
    let introduction = tokio::time::timeout(FIRST_BYTES_LIMIT, introduction(&mut stream));
    let (magic, key, caller, caller_number) = introduction.await??;
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
    Ok((frames, theirs))
}

/// What the stream is, which key, who calls, and its number.
async fn introduction(stream: &mut TcpStream) -> io::Result<([u8; MAGIC.len()], u32, NodeId, u128)> {
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic).await?;
    let (key, caller) = (stream.read_u32().await?, NodeId::from_bits(stream.read_u128().await?));
    Ok((magic, key, caller, stream.read_u128().await?))
}

type Unproven = Arc<Mutex<Crowd<Source, oneshot::Sender<()>>>>;

/// The place of a stream that has proven nothing; dropping it makes room.
struct Place {
    of: Unproven,
    number: u64,
    /// Comes when it is to end.
    gives_way: oneshot::Receiver<()>,
}

impl Place {
    fn take(of: &Unproven, from: IpAddr) -> Self {
        let (end, gives_way) = oneshot::channel();
        // Dropping the other's end tells it.
        let (number, _) =
            of.lock().unwrap_or_else(PoisonError::into_inner).enter(from.into(), end, monotonic());
        Self { of: of.clone(), number, gives_way }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).leave(self.number);
    }
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use control_model::Timestamp;
    use control_model::gossip::{Contact, GossipKeys};
    use tokio::sync::Notify;

    use super::super::{Core, Counters, Envelopes, Said, State, life};
    use super::*;

    fn id(n: u128) -> NodeId {
        NodeId::from_bits(n)
    }

    /// Of node `me`, which knows node `other`.
    fn shared(me: u128, other: u128) -> Arc<Shared> {
        let data_path = ([127, 0, 0, 1], 1).into();
        let contacts = [(id(other), Contact { gossip: None, data_path })].into();
        let said = Arc::new(Said { contacts: Arc::new(contacts), ..Said::default() });
        let mut core = Core::new(id(me), life(), rand::random(), monotonic());
        core.said(&said, monotonic());
        let mut envelopes = Envelopes::new(id(me), Box::new(rand::random));
        envelopes.set_keys(GossipKeys::default().rotated(|| [7; 32], Timestamp(0)));
        let state = Mutex::new(State { core, envelopes, said });
        Arc::new(Shared { me: id(me), state, woken: Notify::new(), counters: Arc::<Counters>::default() })
    }

    #[tokio::test]
    async fn streams_that_say_nothing_hold_up_no_exchange() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let (server, caller) = (shared(1, 2), shared(2, 1));
        let serving = tokio::spawn(serve(listener, server.clone()));
        let mut silent = Vec::new();
        for _ in 0..3 * MAX_UNPROVEN {
            let mut stream = TcpStream::connect(addr).await.expect("it listens");
            // Half of them begin as a member does.
            if silent.len() % 2 == 0 {
                stream.write_all(&MAGIC).await.expect("sent");
            }
            silent.push(stream);
        }
        let began = Instant::now();
        call(caller.clone(), id(1), addr).await;
        assert_eq!(caller.counters.exchanged.load(Ordering::Relaxed), 1);
        assert!(began.elapsed() < FIRST_BYTES_LIMIT, "it waited for {:?}", began.elapsed());
        for stream in &mut silent {
            let end = tokio::time::timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await;
            assert!(end.is_ok(), "one is still open");
        }
        serving.abort();
    }
}
