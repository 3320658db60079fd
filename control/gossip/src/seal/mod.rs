//! Envelopes: what one node sends to another is read by that one alone, once, and only while the sender is a member.
//!
//! A sender asks each receiver for a ticket, a number that the receiver drew, and seals what it sends to it with a key made of
//! a key of the ring, both ids and the ticket, under a counter. So a datagram that was recorded is refused: in the life of
//! the receiver by the window of counters of that ticket, after the sender or the receiver has begun anew by the ticket.
//! No clock is asked. Pure.
//!
//! Layout: kind (1), key number (4), sender (16), ticket and counter or a random nonce (16), then AES-256-GCM's text and
//! tag. Header and receiver are authenticated.

mod cipher;
mod pair;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use control_model::gossip::{GossipKey, GossipKeys};
use control_model::{NodeId, Timestamp};

use cipher::{HEADER_LEN, Header, Kind};
pub use cipher::{OVERHEAD, StreamKeys};
use pair::Pair;

/// 64 random bits: tickets and nonces are made of it.
pub type Random = Box<dyn FnMut() -> u64 + Send>;

/// Seals and opens datagrams of one node.
pub struct Envelopes {
    me: NodeId,
    keys: GossipKeys,
    pairs: BTreeMap<NodeId, Pair>,
    random: Random,
}

/// What has come of a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// A message of this member.
    Message(NodeId, Vec<u8>),
    /// It was about tickets: these datagrams go to the member.
    Replies(NodeId, Vec<Vec<u8>>),
    Refused(Refusal),
}

/// Why a datagram has changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// No datagram of gossip.
    Malformed,
    /// The sender is no member.
    Stranger,
    /// Sealed with a key that is not in the ring.
    UnknownKey,
    /// Not sealed by who knows the key, or not for this node, or changed on the way.
    Forged,
    /// It was taken already, or its ticket is not valid any more.
    Replayed,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Malformed, Self::Stranger, Self::UnknownKey, Self::Forged, Self::Replayed];

    /// The word in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Stranger => "stranger",
            Self::UnknownKey => "unknown_key",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
        }
    }
}

impl Envelopes {
    /// Of a node without members and keys: it sends nothing and takes nothing.
    pub fn new(me: NodeId, random: Random) -> Self {
        Self { me, keys: GossipKeys::default(), pairs: BTreeMap::new(), random }
    }

    /// The ring from now on.
    pub fn set_keys(&mut self, keys: GossipKeys) {
        self.keys = keys;
    }

    /// The ring.
    pub fn keys(&self) -> &GossipKeys {
        &self.keys
    }

    /// The other members from now on; who is none any more is forgotten.
    pub fn set_members(&mut self, members: &BTreeSet<NodeId>) {
        self.pairs.retain(|id, _| members.contains(id));
        for id in members.iter().filter(|id| **id != self.me) {
            self.pairs.entry(*id).or_default();
        }
    }

    /// The datagrams that bring `message` to `to`: itself, or the question for a ticket, after whose answer it goes out by
    /// itself. None for who is no member, and while there is no key.
    pub fn seal(&mut self, to: NodeId, message: Vec<u8>, now: Timestamp) -> Vec<Vec<u8>> {
        let Self { me, keys, pairs, random } = self;
        let (Some(key), Some(pair)) = (keys.in_use(), pairs.get_mut(&to)) else { return Vec::new() };
        if let Some((ticket, counter)) = pair.next_place() {
            return vec![cipher::seal(key, &Header::data(*me, key.id, ticket, counter), to, &message)];
        }
        pair.keep(message);
        let Some(question) = pair.question(now, &mut **random) else { return Vec::new() };
        vec![seal_at_random(key, Kind::Question, (*me, to), &question.to_be_bytes(), &mut **random)]
    }

    /// Opens what has come.
    pub fn open(&mut self, datagram: &[u8], now: Timestamp) -> Opened {
        self.try_open(datagram, now).unwrap_or_else(Opened::Refused)
    }

    fn try_open(&mut self, datagram: &[u8], now: Timestamp) -> Result<Opened, Refusal> {
        let header = Header::read(datagram).ok_or(Refusal::Malformed)?;
        let Self { me, keys, pairs, random } = self;
        let pair = pairs.get_mut(&header.sender).ok_or(Refusal::Stranger)?;
        let key = keys.get(header.key).ok_or(Refusal::UnknownKey)?;
        let text = cipher::open(key, &header, *me, &datagram[HEADER_LEN..]).ok_or(Refusal::Forged)?;
        let sender = header.sender;
        let key = keys.in_use().unwrap_or(key);
        let mut reply = |kind, text: &[u8]| {
            Opened::Replies(sender, vec![seal_at_random(key, kind, (*me, sender), text, &mut **random)])
        };
        match header.kind {
            Kind::Data => {
                let (ticket, counter) = header.place();
                if pair.accept(ticket, counter)? {
                    return Ok(Opened::Message(sender, text));
                }
                // Of a ticket that this node doesn't know (any more): the sender is to ask for another one.
                if pair.may_complain(now) {
                    Ok(reply(Kind::Unknown, &ticket.to_be_bytes()))
                } else {
                    Err(Refusal::Replayed)
                }
            }
            Kind::Question => {
                let question = number(&text)?;
                let ticket = pair.offer(question, random_u64(&mut **random));
                let answer = [question.to_be_bytes(), ticket.to_be_bytes()].concat();
                Ok(Opened::Replies(
                    sender,
                    vec![seal_at_random(key, Kind::Ticket, (*me, sender), &answer, &mut **random)],
                ))
            }
            Kind::Ticket => {
                let (question, ticket) = text.split_at_checked(8).ok_or(Refusal::Malformed)?;
                let kept = pair.take_ticket(number(question)?, number(ticket)?).ok_or(Refusal::Replayed)?;
                let datagrams =
                    kept.into_iter().flat_map(|message| self.seal(sender, message, now)).collect();
                Ok(Opened::Replies(sender, datagrams))
            }
            Kind::Unknown => {
                if !pair.lose_ticket(number(&text)?) {
                    return Err(Refusal::Replayed);
                }
                let question = pair.question(now, &mut **random).map(u64::to_be_bytes);
                let datagrams = question
                    .map(|text| seal_at_random(key, Kind::Question, (*me, sender), &text, &mut **random));
                Ok(Opened::Replies(sender, datagrams.into_iter().collect()))
            }
        }
    }
}

fn random_u64(random: &mut dyn FnMut() -> u64) -> u64 {
    random()
}

fn number(text: &[u8]) -> Result<u64, Refusal> {
    text.try_into().map(u64::from_be_bytes).map_err(|_| Refusal::Malformed)
}

fn seal_at_random(
    key: &GossipKey,
    kind: Kind,
    (from, to): (NodeId, NodeId),
    text: &[u8],
    random: &mut dyn FnMut() -> u64,
) -> Vec<u8> {
    let nonce = (u128::from(random()) << 64) | u128::from(random());
    cipher::seal(key, &Header { kind, key: key.id, sender: from, nonce }, to, text)
}
