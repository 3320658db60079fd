//! Answers of other resolvers, kept for a short time, and the questions that are being asked: equal ones are asked once.
//! The searches that a container makes for one connection (A and AAAA, again for the next one) cost one look-up.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::question::Question;
use crate::relay::{Age, Lifetime, Relayed};
use crate::response::write_name;

use super::limits::ClientLimits;
use super::places::{Place, Taken};

/// Parts of the table, each with a lock of its own: threads seldom meet.
const N_SHARDS: usize = 16;

/// Answers that one part keeps: 4096 in all.
const MAX_KEPT_PER_SHARD: usize = 256;

/// Longest answer that is kept, bytes: 16 MiB in all.
const MAX_ANSWER_LEN: usize = 4096;

/// No answer is kept longer: a node's resolvers have a cache of their own, and this one can't be flushed.
const MAX_KEPT: Duration = Duration::from_secs(30);

/// That a name or a record doesn't exist is kept no longer.
const MAX_NEGATIVE_KEPT: Duration = Duration::from_secs(5);

/// That no resolver answered is kept this long, so that a client that asks again and again does not wait again and
/// again (RFC 9520 section 3.2: one second at least).
const FAILURE_KEPT: Duration = Duration::from_secs(1);

/// How long after its time an answer is still given when no better one can be had (RFC 8767 section 5: one to three
/// days).
const MAX_STALE: Duration = Duration::from_hours(24);

/// With an old answer at hand a resolver that failed is asked again after this (RFC 8767 section 5: 30 seconds).
const STALE_RETRY_PERIOD: Duration = Duration::from_secs(30);

/// What was asked, and of whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    upstreams: u64,
    /// As on the wire, in lower case.
    name: Box<[u8]>,
    record_type: u16,
    /// What of the client's flags may change the answer.
    recursion_desired: bool,
    checking_disabled: bool,
    dnssec_ok: bool,
}

impl Key {
    pub fn new(question: &Question, upstreams: u64) -> Self {
        let mut name = Vec::with_capacity(question.name.len() + 1);
        write_name(&mut name, &question.name);
        // Lengths of labels are below any letter.
        name.make_ascii_lowercase();
        Self {
            upstreams,
            name: name.into(),
            record_type: question.record_type.into(),
            recursion_desired: question.header.recursion_desired,
            checking_disabled: question.header.checking_disabled,
            dnssec_ok: question.edns.is_some_and(|edns| edns.dnssec_ok),
        }
    }
}

/// What a look-up came to; nothing if no resolver answered.
pub type Answer = Option<Arc<Relayed>>;

/// What is to be done for a question.
pub enum Step {
    /// Here is the answer.
    Done(Arc<Relayed>, Age),
    /// None can be had now.
    Failed,
    /// It is being asked; an old answer may be at hand.
    Wait(Waiter, Answer),
    /// The caller is to ask it, and then to wait as all others do.
    Ask(Ticket, Waiter, Answer),
}

/// Waits for a look-up that runs.
pub struct Waiter(watch::Receiver<Option<Answer>>);

impl Waiter {
    /// What it came to.
    pub async fn wait(mut self) -> Answer {
        // An error: the look-up was given up.
        self.0.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone().flatten())
    }
}

/// The right and duty to ask one question; one that is dropped gives it up.
pub struct Ticket {
    lookups: Arc<Lookups>,
    key: Key,
    waiters: watch::Sender<Option<Answer>>,
    _place: Place,
}

/// All questions of this node's sandboxes.
pub struct Lookups {
    shards: [Mutex<Shard>; N_SHARDS],
    running: Taken,
}

#[derive(Default)]
struct Shard {
    kept: BTreeMap<Key, Entry>,
    /// The oldest leaves first.
    by_age: VecDeque<Key>,
    running: BTreeMap<Key, watch::Receiver<Option<Answer>>>,
}

struct Entry {
    /// Nothing for a failure.
    answer: Answer,
    kept_at: Instant,
    until: Instant,
    stale_until: Instant,
    retry_at: Instant,
}

impl Lookups {
    pub fn new() -> Arc<Self> {
        let shards = std::array::from_fn(|_| Mutex::default());
        Arc::new(Self { shards, running: Taken::default() })
    }

    /// What to do for `key`. A look-up is started only within the limits of the client and of all.
    pub fn begin(self: &Arc<Self>, key: Key, limits: &ClientLimits, now: Instant) -> Step {
        let mut shard = self.shard(&key);
        let entry = shard.kept.get(&key);
        if let Some(entry) = entry.filter(|entry| now < entry.until) {
            return entry.answer.clone().map_or(Step::Failed, |answer| Step::Done(answer, entry.age(now)));
        }
        let stale = entry.filter(|entry| now < entry.stale_until);
        let may_ask = stale.is_none_or(|entry| now >= entry.retry_at);
        let stale = stale.and_then(|entry| entry.answer.clone());
        if let Some(running) = shard.running.get(&key) {
            return Step::Wait(Waiter(running.clone()), stale);
        }
        let place = may_ask.then(|| Place::take(&self.running, &limits.running)).flatten();
        let Some(place) = place.filter(|_| limits.take_lookup(now)) else {
            return stale.map_or(Step::Failed, |answer| Step::Done(answer, Age::Stale));
        };
        let (waiters, running) = watch::channel(None);
        shard.running.insert(key.clone(), running.clone());
        drop(shard);
        Step::Ask(Ticket { lookups: self.clone(), key, waiters, _place: place }, Waiter(running), stale)
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % (N_SHARDS as u64)).expect("a small number");
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Keeps what the look-up came to, as long as it may be kept, and tells all that wait.
    pub fn finish(self, answer: Option<Relayed>, now: Instant) {
        let answer = answer.map(Arc::new);
        self.lookups.shard(&self.key).keep(&self.key, answer.clone(), now);
        self.waiters.send_replace(Some(answer));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.lookups.shard(&self.key).running.remove(&self.key);
    }
}

impl Entry {
    fn new(answer: Answer, now: Instant, kept: Duration, stale: Duration) -> Self {
        let until = now + kept;
        Self { answer, kept_at: now, until, stale_until: until + stale, retry_at: now }
    }

    fn age(&self, now: Instant) -> Age {
        Age::Fresh(u32::try_from(now.duration_since(self.kept_at).as_secs()).unwrap_or(u32::MAX))
    }
}

impl Shard {
    fn keep(&mut self, key: &Key, answer: Answer, now: Instant) {
        let Some(decided) = answer.as_ref().filter(|answer| answer.decides()) else {
            return self.keep_failure(key, answer, now);
        };
        match time_to_keep(decided) {
            Some(kept) => self.insert(key, Entry::new(answer, now, kept, MAX_STALE)),
            None => self.remove(key),
        }
    }

    /// An old answer stays, and is good for a while without another attempt.
    fn keep_failure(&mut self, key: &Key, answer: Answer, now: Instant) {
        match self.kept.get_mut(key).filter(|entry| now < entry.stale_until) {
            Some(entry) => entry.retry_at = now + STALE_RETRY_PERIOD,
            None => self.insert(key, Entry::new(answer, now, FAILURE_KEPT, Duration::ZERO)),
        }
    }

    fn insert(&mut self, key: &Key, entry: Entry) {
        if self.kept.insert(key.clone(), entry).is_some() {
            return;
        }
        self.by_age.push_back(key.clone());
        if self.by_age.len() > MAX_KEPT_PER_SHARD
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.kept.remove(&oldest);
        }
    }

    /// What is not to be kept: its place in the queue goes too, or the queue would outgrow the table.
    fn remove(&mut self, key: &Key) {
        if self.kept.remove(key).is_some() {
            self.by_age.retain(|other| other != key);
        }
    }
}

/// Within bounds; `None` for what must not be kept.
fn time_to_keep(answer: &Relayed) -> Option<Duration> {
    let seconds = |s: u32| Duration::from_secs(s.into());
    let kept = match answer.time_to_keep_s()? {
        Lifetime::Found(s) => seconds(s).min(MAX_KEPT),
        Lifetime::Denied(s) => seconds(s).min(MAX_NEGATIVE_KEPT),
    };
    (!kept.is_zero() && answer.len_bytes() <= MAX_ANSWER_LEN).then_some(kept)
}

#[cfg(test)]
mod tests;
