//! Gossip at work: one task that feeds the core, sends what it returns and publishes what it thinks, and one that serves
//! exchanges.

mod exchange;
mod probes;
mod sockets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use control_model::gossip::{GossipKeys, Opinion, Said};
use control_model::{NodeId, Timestamp};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::core::message::Message;
use crate::core::view::View;
use crate::core::{Core, Output};
use crate::seal::{Envelopes, Opened, Refusal};
use probes::Probes;
pub use sockets::Sockets;

/// What gossip is made of.
pub struct Options {
    pub me: NodeId,
    pub sockets: Sockets,
    pub said: watch::Receiver<Arc<Said>>,
    pub keys: watch::Receiver<GossipKeys>,
}

/// Running gossip. Dropping it ends it.
pub struct Gossip {
    inspector: Inspector,
    tasks: JoinSet<()>,
}

/// What has been counted since the daemon began.
#[derive(Debug, Default)]
pub struct Counters {
    pub sent: AtomicU64,
    pub received: AtomicU64,
    pub exchanged: AtomicU64,
    pub exchanges_failed: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
}

impl Counters {
    /// Datagrams that have changed nothing, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (Refusal, u64)> {
        Refusal::ALL.into_iter().zip(&self.refused).map(|(why, n)| (why, n.load(Ordering::Relaxed)))
    }

    fn refuse(&self, refusal: Refusal) {
        let at = Refusal::ALL.iter().position(|why| *why == refusal).unwrap_or_default();
        self.refused[at].fetch_add(1, Ordering::Relaxed);
    }
}

/// What the tasks share.
struct Shared {
    me: NodeId,
    state: Mutex<State>,
    /// An exchange has brought something.
    woken: Notify,
    counters: Arc<Counters>,
}

struct State {
    core: Core,
    envelopes: Envelopes,
    said: Arc<Said>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gossip {
    /// Starts it; what it thinks goes to `opinion`. Needs a tokio runtime.
    pub fn start(options: Options, opinion: watch::Sender<Arc<Opinion>>) -> io::Result<Self> {
        let Options { me, sockets, said, keys } = options;
        let counters = Arc::<Counters>::default();
        let state = State {
            core: Core::new(me, life(), rand::random(), monotonic()),
            envelopes: Envelopes::new(me, Box::new(rand::random)),
            said: Arc::default(),
        };
        let shared = Arc::new(Shared {
            me,
            state: Mutex::new(state),
            woken: Notify::new(),
            counters: counters.clone(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(exchange::serve(sockets.tcp, shared.clone()));
        let inspector = Inspector(shared.clone());
        let work = Work { shared, udp: sockets.udp, probes: Probes::new()?, said, keys, opinion };
        tasks.spawn(work.run());
        Ok(Self { inspector, tasks })
    }

    pub fn inspector(&self) -> &Inspector {
        &self.inspector
    }

    /// Ends it; then its port is free.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Looks into running gossip, and what is left of it when it has ended.
#[derive(Clone)]
pub struct Inspector(Arc<Shared>);

impl Inspector {
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub fn view(&self) -> View {
        self.0.lock().core.view(monotonic())
    }

    /// Numbers of the keys that are accepted, oldest first, and of the one that is used.
    pub fn keys(&self) -> (Vec<u32>, Option<u32>) {
        let state = self.0.lock();
        let keys = state.envelopes.keys();
        (keys.keys.iter().map(|key| key.id).collect(), keys.in_use().map(|key| key.id))
    }
}

/// The main task.
struct Work {
    shared: Arc<Shared>,
    udp: tokio::net::UdpSocket,
    probes: Probes,
    said: watch::Receiver<Arc<Said>>,
    keys: watch::Receiver<GossipKeys>,
    opinion: watch::Sender<Arc<Opinion>>,
}

impl Work {
    /// Never returns; ends with its agent.
    async fn run(mut self) {
        self.take_said();
        self.take_keys();
        let mut exchanges = JoinSet::new();
        loop {
            let deadline = self.shared.lock().core.next_deadline();
            // What has come is read before anything counts as missing.
            tokio::select! {
                biased;
                changed = self.said.changed() => match changed {
                    Ok(()) => self.take_said(),
                    Err(_) => return,
                },
                Ok(()) = self.keys.changed() => self.take_keys(),
                // As many as were asked, at most: a flood of datagrams does not keep them from being read.
                nodes = self.probes.answers() => {
                    let mut state = self.shared.lock();
                    for node in nodes {
                        state.core.path_answered(node);
                    }
                }
                ready = self.udp.readable() => self.receive(ready).await,
                () = self.shared.woken.notified() => {}
                Some(_) = exchanges.join_next() => {}
                () = tokio::time::sleep(deadline.since(monotonic())) => {}
            }
            let now = monotonic();
            {
                let mut state = self.shared.lock();
                if state.core.next_deadline() <= now {
                    state.core.tick(now);
                }
            }
            self.act(&mut exchanges, now);
        }
    }

    fn take_said(&mut self) {
        let said = self.said.borrow_and_update().clone();
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        state.core.said(&said, monotonic());
        state.envelopes.set_members(&state.core.members());
        state.said = said;
    }

    fn take_keys(&mut self) {
        let keys = self.keys.borrow_and_update().clone();
        self.shared.lock().envelopes.set_keys(keys);
    }

    /// Takes what has come, up to a bound: then other things have their turn.
    async fn receive(&self, ready: io::Result<()>) {
        if let Err(error) = ready {
            tracing::warn!(%error, "gossip's socket has failed");
            return tokio::time::sleep(sockets::IDLE_PAUSE).await;
        }
        let mut buffer = [0; sockets::MAX_DATAGRAM];
        for _ in 0..sockets::MAX_BATCH {
            match self.udp.try_recv_from(&mut buffer) {
                Ok((len, _)) => self.take_datagram(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The answer of a host that has no gossip (any more).
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => {
                    tracing::debug!(%error, "no datagram");
                    return tokio::time::sleep(sockets::IDLE_PAUSE).await;
                }
            }
        }
    }

    fn take_datagram(&self, datagram: &[u8]) {
        let counters = &self.shared.counters;
        let now = monotonic();
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        match state.envelopes.open(datagram, now) {
            Opened::Message(from, text) => match Message::decode(&text) {
                Some(message) => {
                    counters.received.fetch_add(1, Ordering::Relaxed);
                    state.core.message(from, &message, now);
                }
                None => counters.refuse(Refusal::Malformed),
            },
            Opened::Replies(to, datagrams) => {
                for datagram in datagrams {
                    self.send(&state.said, to, &datagram);
                }
            }
            Opened::Refused(refusal) => counters.refuse(refusal),
        }
    }

    /// A datagram that can't be sent is one that is lost.
    fn send(&self, said: &Said, to: NodeId, datagram: &[u8]) {
        let Some(addr) = said.contacts.get(&to).and_then(|contact| contact.gossip) else { return };
        self.shared.counters.sent.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.udp.try_send_to(datagram, sockets::for_socket(&self.udp, addr)) {
            tracing::debug!(node = %to, %addr, %error, "gossip not sent");
        }
    }

    /// Does what the core wants, and says what it thinks.
    fn act(&mut self, exchanges: &mut JoinSet<()>, now: Timestamp) {
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        for output in state.core.take_outputs() {
            match output {
                Output::Send(to, message) => {
                    for datagram in state.envelopes.seal(to, message.encode(), now) {
                        self.send(&state.said, to, &datagram);
                    }
                }
                Output::Look(node, addr) => self.probes.send(node, addr, now),
                Output::Exchange(with) => {
                    let contact = state.said.contacts.get(&with).and_then(|contact| contact.gossip);
                    if let Some(addr) = contact.filter(|_| exchanges.len() < exchange::MAX_CALLS) {
                        exchanges.spawn(exchange::call(self.shared.clone(), with, addr));
                    }
                }
            }
        }
        let thought = state.core.opinion();
        drop(guard);
        self.opinion.send_if_modified(|known| {
            let is_new = **known != thought;
            if is_new {
                log_difference(known, &thought);
                *known = Arc::new(thought);
            }
            is_new
        });
    }
}

fn log_difference(before: &Opinion, after: &Opinion) {
    let names = |of: &std::collections::BTreeSet<NodeId>, but: &std::collections::BTreeSet<NodeId>| {
        of.difference(but).map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let messages = BTreeMap::from([
        (
            "data paths do not answer: their backends get no new flows",
            names(&after.silent_paths, &before.silent_paths),
        ),
        ("data paths answer again", names(&before.silent_paths, &after.silent_paths)),
        ("agents are silent", names(&after.silent_agents, &before.silent_agents)),
        ("agents are heard again", names(&before.silent_agents, &after.silent_agents)),
    ]);
    for (what, nodes) in messages.into_iter().filter(|(_, nodes)| !nodes.is_empty()) {
        tracing::info!(nodes, "{what}");
    }
}

/// A number that rises from one start of the daemon to the next, if the clock does: else others say so.
fn life() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or_default()
}

/// A clock that never jumps, for spans between two readings.
fn monotonic() -> Timestamp {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    /// So that a time before the start is no negative number.
    const OFFSET: Duration = Duration::from_hours(1);
    Timestamp(0).after(START.elapsed() + OFFSET)
}
