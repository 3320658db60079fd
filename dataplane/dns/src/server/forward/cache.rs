//! Answers of other resolvers, kept for a short time: the searches that a container makes for one connection (A and
//! AAAA, again for the next one) cost one look-up.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

use crate::question::Question;
use crate::response::{MAX_UDP_LEN, Transport, max_response_len};

/// Answers that are kept.
const MAX_ENTRIES: usize = 4096;

/// Longest answer that is kept, bytes.
const MAX_ANSWER_LEN: usize = 4096;

/// No answer is kept longer: a node's resolvers have a cache of their own, and this one can't be flushed.
const MAX_KEPT: Duration = Duration::from_secs(30);

/// That a name or a record doesn't exist is kept no longer.
const MAX_NEGATIVE_KEPT: Duration = Duration::from_secs(5);

/// That no resolver answered is kept this long, so that a client that asks again and again does not wait again and
/// again (RFC 9520 section 3.2: one second at least).
const FAILURE_KEPT: Duration = Duration::from_secs(1);

/// What was asked, and of whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: Name,
    record_type: RecordType,
    class: DNSClass,
    recursion_desired: bool,
    dnssec_ok: bool,
    resolvers: Vec<SocketAddr>,
}

struct Entry {
    message: Message,
    kept_at: Instant,
    until: Instant,
}

/// A bounded cache; the oldest entry leaves first.
#[derive(Default)]
pub struct Cache(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    by_key: BTreeMap<Key, Entry>,
    by_age: VecDeque<Key>,
}

impl Cache {
    /// The kept answer as a reply to `question`, its times reduced by its age.
    pub fn get(
        &self,
        question: &Question,
        resolvers: &[SocketAddr],
        transport: Transport,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.by_key.get(&key(question, resolvers)).filter(|entry| now < entry.until)?;
        let message = refreshed(entry, question, now);
        drop(entries);
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= max_response_len(question, transport) {
            return Some(bytes);
        }
        message.truncate().to_vec().ok()
    }

    /// Keeps `reply` as long as its records may be kept, within bounds.
    pub fn put(&self, question: &Question, resolvers: &[SocketAddr], reply: &[u8], now: Instant) {
        if reply.len() > MAX_ANSWER_LEN {
            return;
        }
        let Ok(message) = Message::from_vec(reply) else { return };
        let Some(kept) = time_to_keep(&message) else { return };
        self.insert(key(question, resolvers), Entry { message, kept_at: now, until: now + kept });
    }

    /// Keeps for a moment that none of the resolvers answered.
    pub fn put_failure(&self, question: &Question, resolvers: &[SocketAddr], now: Instant) {
        let mut message = Message::new(question.header.id, MessageType::Response, OpCode::Query);
        message.metadata.response_code = ResponseCode::ServFail;
        message.metadata.recursion_desired = question.header.recursion_desired;
        message.metadata.recursion_available = true;
        self.insert(key(question, resolvers), Entry { message, kept_at: now, until: now + FAILURE_KEPT });
    }

    fn insert(&self, key: Key, entry: Entry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, entry);
    }
}

impl Entries {
    fn insert(&mut self, key: Key, entry: Entry) {
        if self.by_key.insert(key.clone(), entry).is_some() {
            return;
        }
        self.by_age.push_back(key);
        if self.by_age.len() > MAX_ENTRIES
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.by_key.remove(&oldest);
        }
    }
}

fn key(question: &Question, resolvers: &[SocketAddr]) -> Key {
    Key {
        name: question.name.to_lowercase(),
        record_type: question.record_type,
        class: question.class,
        recursion_desired: question.header.recursion_desired,
        dnssec_ok: question.edns.is_some_and(|edns| edns.dnssec_ok),
        resolvers: resolvers.to_vec(),
    }
}

/// The client's id, spelling and OPT with the kept records.
fn refreshed(entry: &Entry, question: &Question, now: Instant) -> Message {
    let mut message = entry.message.clone();
    let age_s = u32::try_from(now.duration_since(entry.kept_at).as_secs()).unwrap_or(u32::MAX);
    message.metadata.id = question.header.id;
    message.metadata.authoritative = false;
    let mut query = Query::query(question.name.clone(), question.record_type);
    query.set_query_class(question.class);
    message.queries = vec![query];
    for record in message.answers.iter_mut().chain(&mut message.authorities).chain(&mut message.additionals) {
        record.ttl = record.ttl.saturating_sub(age_s);
    }
    message.edns = question.edns.map(|client| {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_LEN).set_dnssec_ok(client.dnssec_ok);
        edns
    });
    message
}

/// How long an answer may be kept; `None` for one that is cut off, an error, or a denial without its SOA (RFC 2308
/// section 5).
fn time_to_keep(message: &Message) -> Option<Duration> {
    let code = message.metadata.response_code;
    if message.metadata.truncation || !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return None;
    }
    let kept = if code == ResponseCode::NXDomain || message.answers.is_empty() {
        negative_ttl(message)?.min(MAX_NEGATIVE_KEPT)
    } else {
        let shortest_s = message.answers.iter().map(|record| record.ttl).min()?;
        Duration::from_secs(u64::from(shortest_s)).min(MAX_KEPT)
    };
    (!kept.is_zero()).then_some(kept)
}

fn negative_ttl(message: &Message) -> Option<Duration> {
    message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(Duration::from_secs(u64::from(record.ttl.min(soa.minimum)))),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
