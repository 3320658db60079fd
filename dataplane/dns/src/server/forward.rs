//! Names of the world outside: asked of all resolvers at once, from the node or from the sandbox whose own resolvers they
//! are. The fastest good answer wins and is kept for a short time; when none comes, an old one is better than nothing.

mod exchange;
mod limits;
mod lookups;
mod places;
mod resolv_conf;
mod upstreams;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane_model::inspect::DnsWay;
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};

use crate::answer::write_failure;
use crate::question::Question;
use crate::relay::{Age, Relayed};
use crate::response::Transport;

use self::exchange::exchange;
pub use self::limits::ClientLimits;
use self::lookups::{Answer, Key, Lookups, Step, Ticket, Waiter};
use self::resolv_conf::ResolvConf;
pub use self::upstreams::Upstreams;

/// With an old answer at hand a client waits no longer than this for a new one (RFC 8767 section 5).
const STALE_PATIENCE: Duration = Duration::from_millis(1800);

/// After the first resolver that can't tell, the others get this long: a look-up that begins at the root takes about as
/// long.
const UNDECIDED_PATIENCE: Duration = Duration::from_millis(1500);

/// Asks other resolvers. Shared by all sandboxes.
pub struct Forwarder {
    resolv_conf: ResolvConf,
    lookups: Arc<Lookups>,
}

/// One sandbox as the forwarder sees it.
#[derive(Default)]
pub struct ForwardClient {
    pub limits: ClientLimits,
    /// Look-ups that have sockets in the sandbox: they end with it.
    own_lookups: Mutex<JoinSet<()>>,
}

impl ForwardClient {
    /// Closes the sockets that are inside the sandbox.
    pub async fn close(&self) {
        let mut lookups = std::mem::take(&mut *self.lookups());
        lookups.shutdown().await;
    }

    fn lookups(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.own_lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forwarder {
    pub fn new(resolv_conf: PathBuf) -> Self {
        Self { resolv_conf: ResolvConf::new(resolv_conf), lookups: Lookups::new() }
    }

    /// Replaces `out` by the reply to `question`: from the cache, from a resolver, or a failure that tells the client to
    /// try again; says where it came from. `own` are the sandbox's own resolvers; the node's are asked without.
    pub async fn forward(
        &self,
        question: &Question,
        (client, own): (&ForwardClient, Option<&Arc<Upstreams>>),
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> DnsWay {
        let upstreams = own.cloned().unwrap_or_else(|| self.resolv_conf.upstreams());
        let key = Key::new(question, upstreams.id);
        let (answer, age, is_kept) = match self.lookups.begin(key, &client.limits, Instant::now()) {
            Step::Done(answer, age) => (Some(answer), age, true),
            Step::Failed => (None, Age::Stale, true),
            Step::Wait(waiter, stale) => wait(waiter, stale).await,
            Step::Ask(ticket, waiter, stale) => {
                let lookup = look_up(ticket, question.clone(), upstreams);
                match own {
                    None => drop(tokio::spawn(lookup)),
                    Some(_) => spawn_in(&mut client.lookups(), lookup),
                }
                wait(waiter, stale).await
            }
        };
        let Some(answer) = answer else {
            write_failure(question, transport, out);
            return DnsWay::Nobody;
        };
        answer.write(question, transport, age, out);
        let resolver = answer.resolver();
        match age {
            Age::Stale => DnsWay::Stale { resolver },
            Age::Fresh(age_s) if is_kept => DnsWay::Cache { resolver, age_s },
            Age::Fresh(_) => DnsWay::Resolver { resolver },
        }
    }
}

fn spawn_in(lookups: &mut JoinSet<()>, lookup: impl Future<Output = ()> + Send + 'static) {
    while lookups.try_join_next().is_some() {}
    lookups.spawn(lookup);
}

/// What the look-up comes to, or the old answer if that takes long or comes to nothing; the last tells an answer that
/// had been kept.
async fn wait(waiter: Waiter, stale: Answer) -> (Answer, Age, bool) {
    let Some(stale) = stale else { return (waiter.wait().await, Age::Fresh(0), false) };
    match timeout(STALE_PATIENCE, waiter.wait()).await {
        Ok(Some(answer)) if answer.decides() => (Some(answer), Age::Fresh(0), false),
        _ => (Some(stale), Age::Stale, true),
    }
}

async fn look_up(ticket: Ticket, question: Question, upstreams: Arc<Upstreams>) {
    let answer = ask_all(&question, &upstreams).await;
    ticket.finish(answer, Instant::now());
}

/// The first answer that decides the question, else the first of the others.
async fn ask_all(question: &Question, upstreams: &Upstreams) -> Option<Relayed> {
    let mut exchanges = JoinSet::new();
    for resolver in &upstreams.resolvers {
        exchanges.spawn(exchange(*resolver, upstreams.origin.clone(), question.clone()));
    }
    let mut undecided = None;
    let mut until = tokio::time::Instant::now() + exchange::EXCHANGE_TIMEOUT;
    while let Ok(Some(done)) = timeout_at(until, exchanges.join_next()).await {
        match done {
            Ok(Ok(answer)) if answer.decides() => return Some(answer),
            Ok(Ok(answer)) if undecided.is_none() => {
                until = until.min(tokio::time::Instant::now() + UNDECIDED_PATIENCE);
                undecided = Some(answer);
            }
            Ok(Ok(_)) => (),
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "a resolver did not answer");
            }
            Err(error) => tracing::warn!(%error, "a look-up ended unexpectedly"),
        }
    }
    undecided
}
