//! The tickets between this node and one other.

use std::collections::VecDeque;
use std::time::Duration;

use control_model::Timestamp;

use super::Refusal;

/// Messages that wait for a ticket: those of one round of probes, with room.
const MAX_KEPT: usize = 8;
/// Tickets that were given and not used yet: a sender has one question out, and may have begun anew meanwhile.
const MAX_OFFERS: usize = 4;
/// Between two questions to one node, and two complaints to it: an answer takes less.
const PAUSE: Duration = Duration::from_millis(100);

/// Both directions.
#[derive(Debug, Default)]
pub(super) struct Pair {
    /// What the other one has given this node: ticket, and the counter of the next message.
    out: Option<(u64, u64)>,
    asked: Option<(u64, Timestamp)>,
    kept: VecDeque<Vec<u8>>,
    /// What this node has given the other one.
    current: Option<(u64, Window)>,
    /// (question, ticket)
    offers: VecDeque<(u64, u64)>,
    complained_at: Option<Timestamp>,
}

impl Pair {
    /// Ticket and counter of the next message; `None` without a ticket.
    pub fn next_place(&mut self) -> Option<(u64, u64)> {
        let (ticket, counter) = self.out.as_mut()?;
        *counter += 1;
        Some((*ticket, *counter))
    }

    /// Keeps a message until there is a ticket; the oldest of too many is lost, as datagrams may be.
    pub fn keep(&mut self, message: Vec<u8>) {
        if self.kept.len() == MAX_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(message);
    }

    /// The number to ask for a ticket with, unless that was done just now.
    pub fn question(&mut self, now: Timestamp, random: &mut dyn FnMut() -> u64) -> Option<u64> {
        if self.asked.is_some_and(|(_, at)| now.since(at) < PAUSE && now >= at) {
            return None;
        }
        // An answer that is late is still one.
        let question = self.asked.map_or_else(random, |(question, _)| question);
        self.asked = Some((question, now));
        Some(question)
    }

    /// The ticket for who asks.
    pub fn offer(&mut self, question: u64, fresh: u64) -> u64 {
        if let Some((_, ticket)) = self.offers.iter().find(|(known, _)| *known == question) {
            return *ticket;
        }
        if self.offers.len() == MAX_OFFERS {
            self.offers.pop_front();
        }
        self.offers.push_back((question, fresh));
        fresh
    }

    /// Takes the ticket that answers this node's question; the messages that waited for it.
    pub fn take_ticket(&mut self, question: u64, ticket: u64) -> Option<VecDeque<Vec<u8>>> {
        self.asked.take_if(|(asked, _)| *asked == question)?;
        self.out = Some((ticket, 0));
        Some(std::mem::take(&mut self.kept))
    }

    /// The other one doesn't know the ticket any more. False if this node doesn't use it.
    pub fn lose_ticket(&mut self, ticket: u64) -> bool {
        self.out.take_if(|(used, _)| *used == ticket).is_some()
    }

    /// Is it a new message? False if the ticket is none of this node's.
    pub fn accept(&mut self, ticket: u64, counter: u64) -> Result<bool, Refusal> {
        if let Some((_, window)) = self.current.as_mut().filter(|(current, _)| *current == ticket) {
            return if window.take(counter) { Ok(true) } else { Err(Refusal::Replayed) };
        }
        let Some(offered) = self.offers.iter().position(|(_, offer)| *offer == ticket) else {
            return Ok(false);
        };
        // What was offered before has been given up by the sender.
        self.offers.drain(..=offered);
        let mut window = Window::default();
        window.take(counter);
        self.current = Some((ticket, window));
        Ok(true)
    }

    /// Not too often: each may answer a recorded datagram.
    pub fn may_complain(&mut self, now: Timestamp) -> bool {
        if self.complained_at.is_some_and(|at| now.since(at) < PAUSE && now >= at) {
            return false;
        }
        self.complained_at = Some(now);
        true
    }
}

/// Which counters were taken: all below the last 128, and the marked ones of these (RFC 4303 section 3.4.3).
#[derive(Debug, Default)]
struct Window {
    highest: u64,
    /// Bit n: `highest - n`.
    taken: u128,
}

impl Window {
    /// False if it was taken, or is too old to tell.
    fn take(&mut self, counter: u64) -> bool {
        if counter > self.highest {
            let ahead = counter - self.highest;
            self.taken = if ahead < 128 { self.taken << ahead } else { 0 } | 1;
            self.highest = counter;
            return true;
        }
        let behind = self.highest - counter;
        let bit = if behind < 128 { 1_u128 << behind } else { return false };
        let is_new = self.taken & bit == 0;
        self.taken |= bit;
        is_new && counter > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_is_taken_once_and_old_ones_not_at_all() {
        let mut window = Window::default();
        assert!(!window.take(0), "counters begin at 1");
        for counter in [1, 3, 2, 200, 73, 199] {
            assert!(window.take(counter), "{counter}");
            assert!(!window.take(counter), "{counter} again");
        }
        assert!(!window.take(72), "128 behind");
        assert!(!window.take(4));
        assert!(window.take(u64::MAX) && !window.take(200));
    }
}
