//! What is to be told on: each piece of news goes out with a few datagrams, the least told first.

use std::collections::BTreeMap;

use control_model::{NodeId, TaskId};

use super::MAX_NEWS;
use super::message::News;

/// Each piece is told so many times the binary logarithm of the number of members, as in SWIM (section 4.1).
const TELL_FACTOR: u32 = 3;
/// Pieces that wait. Beyond them the most told are dropped: exchanges bring what somebody has missed.
const MAX_WAITING: usize = 4096;

/// What a piece is about: a newer one takes the place of an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Agent(NodeId),
    Doubt(NodeId),
    Ended(TaskId),
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeMap<Subject, (u32, News)>,
}

impl Queue {
    pub fn push(&mut self, news: News) {
        let subject = match news {
            News::Agent(node, _) => Subject::Agent(node),
            News::Doubt(node, _) => Subject::Doubt(node),
            News::Ended(ended) => Subject::Ended(ended.task),
        };
        self.waiting.insert(subject, (0, news));
        if self.waiting.len() > MAX_WAITING {
            let most_told =
                self.waiting.iter().max_by_key(|(_, (told, _))| *told).map(|(subject, _)| *subject);
            most_told.map(|subject| self.waiting.remove(&subject));
        }
    }

    /// What goes with the next datagram, of a cluster of `n` members.
    pub fn take(&mut self, n: usize) -> Vec<News> {
        let limit = TELL_FACTOR * (usize::BITS - n.leading_zeros()).max(1);
        let mut order: Vec<(u32, Subject)> =
            self.waiting.iter().map(|(subject, (told, _))| (*told, *subject)).collect();
        order.sort_unstable();
        order.truncate(MAX_NEWS);
        let mut taken = Vec::new();
        for (_, subject) in order {
            let Some((told, news)) = self.waiting.get_mut(&subject) else { continue };
            taken.push(*news);
            *told += 1;
            if *told >= limit {
                self.waiting.remove(&subject);
            }
        }
        taken
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_is_told_equally_often_and_a_newer_one_takes_its_place() {
        let node = NodeId::from_bits;
        let mut queue = Queue::default();
        (1..=20).for_each(|id| queue.push(News::Doubt(node(id), 1)));
        queue.push(News::Doubt(node(1), 2));
        let mut told = BTreeMap::<u128, u32>::new();
        while !queue.is_empty() {
            for news in queue.take(7) {
                let News::Doubt(id, number) = news else { unreachable!("doubts alone") };
                assert_eq!(number, if id == node(1) { 2 } else { 1 });
                *told.entry(id.bits()).or_default() += 1;
            }
        }
        assert_eq!(told.into_values().collect::<Vec<_>>(), [9; 20]);
    }
}
