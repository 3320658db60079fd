//! What goes over the wire: MessagePack by position. A message that this version doesn't know is dropped whole.

use control_model::{NodeId, TaskId};
use serde::{Deserialize, Serialize};

use super::MAX_NEWS;

/// Largest datagram before it is sealed, bytes: [`MAX_NEWS`] of the longest news and a head fit in, and all of it into an
/// Ethernet frame.
pub const MAX_MESSAGE_BYTES: usize = 1360;
/// Largest frame of an exchange before it is sealed, bytes: 8,192 records, and what is thought of 5,000 nodes.
pub const MAX_FRAME_BYTES: usize = 2 << 20;

/// One datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub body: Body,
    pub news: Vec<News>,
}

/// What a datagram asks or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// "Do you live?"
    Ping(u64),
    Pong(u64),
    /// "Does this node live? I have no answer from it."
    Ask(u64, NodeId),
    /// It answers. With the number of the question.
    Lives(u64),
    /// It doesn't answer here either; the one who was asked lives.
    Silent(u64),
    /// News alone.
    News,
}

/// What is told on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// Of a node's agent.
    Agent(NodeId, Claim),
    /// A data path doesn't answer somebody: look for yourself. Numbers rise.
    Doubt(NodeId, u64),
    Ended(Ended),
}

/// What is claimed of an agent, in this life of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Raised by the agent alone, to refute.
    pub incarnation: u64,
    pub state: Claimed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Claimed {
    Alive,
    /// By this node.
    Suspect(NodeId),
    Silent,
}

/// A task that has ended, said by its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub origin: NodeId,
    /// Rises when the origin's daemon begins anew.
    pub life: u64,
    /// Rises with each of the origin's records, from 1. 0: no task, the origin has begun this life.
    pub version: u64,
    pub task: TaskId,
}

/// How much of an origin's records is known: all up to `version` of `life`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub origin: NodeId,
    pub life: u64,
    pub version: u64,
}

/// A frame of an exchange: what its sender knows, and what of it the receiver doesn't.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    pub agents: Vec<(NodeId, Claim)>,
    pub known: Vec<Known>,
    pub ended: Vec<Ended>,
}

impl Message {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        debug_assert!(self.news.len() <= MAX_NEWS);
        rmp_serde::to_vec(self).expect("plain values can be encoded")
    }

    /// `None` for bytes that are none. Never panics.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let message: Self =
            (bytes.len() <= MAX_MESSAGE_BYTES).then(|| rmp_serde::from_slice(bytes).ok())??;
        (message.news.len() <= MAX_NEWS).then_some(message)
    }
}

impl Frame {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).expect("plain values can be encoded")
    }

    /// `None` for bytes that are none. Never panics.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= MAX_FRAME_BYTES).then(|| rmp_serde::from_slice(bytes).ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_message_fits_into_a_datagram() {
        let node = NodeId::from_bits(u128::MAX);
        let task = TaskId::from_bits(u128::MAX);
        let ended = Ended { origin: node, life: u64::MAX, version: u64::MAX, task };
        let suspect = Claim { incarnation: u64::MAX, state: Claimed::Suspect(node) };
        for news in [News::Ended(ended), News::Agent(node, suspect), News::Doubt(node, u64::MAX)] {
            let message = Message { body: Body::Ask(u64::MAX, node), news: vec![news; MAX_NEWS] };
            let bytes = message.encode();
            assert!(bytes.len() <= MAX_MESSAGE_BYTES, "{} bytes", bytes.len());
            assert_eq!(Message::decode(&bytes), Some(message));
        }
    }

    #[test]
    fn too_much_news_is_no_message() {
        let news = vec![News::Doubt(NodeId::from_bits(1), 1); MAX_NEWS + 1];
        let bytes = rmp_serde::to_vec(&Message { body: Body::News, news }).expect("encoded");
        assert_eq!(Message::decode(&bytes), None);
    }
}
