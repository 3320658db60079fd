//! Writes that come while others are under way: they wait, and go together.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use control_store::ProposeError;
use tokio::sync::oneshot;

use crate::limits::{MAX_ENTRY_BYTES, MAX_SENDERS};
use crate::types::Proposal;

/// Told what came of a write. Dropped, it has to be tried again.
pub(crate) type Done = oneshot::Sender<Result<u64, ProposeError>>;

/// A write, and who waits for what comes of it.
pub(crate) struct Waiting {
    pub(crate) proposal: Proposal,
    pub(crate) done: Done,
}

/// The writes that have not gone yet, and how many senders there are. A sender takes what waits and sees it through, until
/// nothing waits; one that is held up gives its turn away.
#[derive(Default)]
pub(crate) struct Gathering(Mutex<Line>);

#[derive(Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    n_senders: usize,
}

impl Gathering {
    /// Adds a write. Whoever is told `true` has to start a sender.
    #[must_use]
    pub(crate) fn add(&self, waiting: Waiting) -> bool {
        let mut line = self.lock();
        line.waiting.push_back(waiting);
        line.takes_sender()
    }

    /// What a sender sends next, as far as it fits in an entry. Nothing: the sender's turn is over.
    pub(crate) fn next(&self) -> Vec<Waiting> {
        let mut line = self.lock();
        let mut batch = Vec::new();
        let mut n_bytes = 0;
        while let Some(next) = line.waiting.pop_front() {
            if next.done.is_closed() {
                continue;
            }
            n_bytes += next.proposal.body().len();
            if n_bytes > MAX_ENTRY_BYTES && !batch.is_empty() {
                line.waiting.push_front(next);
                break;
            }
            batch.push(next);
        }
        if batch.is_empty() {
            line.n_senders -= 1;
        }
        batch
    }

    /// A sender is held up, and counts no more. Whoever is told `true` has to start another one.
    #[must_use]
    pub(crate) fn give_turn_away(&self) -> bool {
        let mut line = self.lock();
        line.n_senders -= 1;
        !line.waiting.is_empty() && line.takes_sender()
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn takes_sender(&mut self) -> bool {
        let is_taken = self.n_senders < MAX_SENDERS;
        self.n_senders += usize::from(is_taken);
        is_taken
    }
}

#[cfg(test)]
mod tests {
    use control_model::Timestamp;
    use control_model::change::{Entry, RequestId};

    use super::*;

    type Answer = oneshot::Receiver<Result<u64, ProposeError>>;

    fn write(number: u128, n_bytes: usize) -> (Waiting, Answer) {
        let entry = Entry { request: RequestId(number), at: Timestamp(0), changes: Vec::new() };
        let proposal = Proposal::padded(entry, n_bytes);
        let (done, answer) = oneshot::channel();
        (Waiting { proposal, done }, answer)
    }

    fn numbers(batch: &[Waiting]) -> Vec<u128> {
        batch.iter().map(|waiting| waiting.proposal.entry().request.0).collect()
    }

    #[test]
    fn what_waits_goes_together_in_order() {
        let gathering = Gathering::default();
        let mut answers = Vec::new();
        let mut n_started = 0;
        for number in 0..10 {
            let (waiting, answer) = write(number, 100);
            n_started += usize::from(gathering.add(waiting));
            answers.push(answer);
        }
        assert_eq!(n_started, MAX_SENDERS, "no more senders than that");
        assert_eq!(numbers(&gathering.next()), (0..10).collect::<Vec<_>>());
        for _ in 0..MAX_SENDERS {
            assert!(gathering.next().is_empty());
        }
        let (waiting, _answer) = write(10, 100);
        assert!(gathering.add(waiting), "the senders have ended");
    }

    #[test]
    fn an_entry_takes_no_more_than_its_size() {
        let gathering = Gathering::default();
        let half = MAX_ENTRY_BYTES / 2;
        let (waiting, _answers): (Vec<_>, Vec<_>) = (0..5).map(|number| write(number, half)).unzip();
        for waiting in waiting {
            let _ = gathering.add(waiting);
        }
        assert_eq!(numbers(&gathering.next()), [0, 1]);
        assert_eq!(numbers(&gathering.next()), [2, 3]);
        assert_eq!(numbers(&gathering.next()), [4]);
    }

    #[test]
    fn who_has_gone_writes_nothing() {
        let gathering = Gathering::default();
        let (first, given_up) = write(1, 100);
        let (second, _answer) = write(2, 100);
        let _ = gathering.add(first);
        let _ = gathering.add(second);
        drop(given_up);
        assert_eq!(numbers(&gathering.next()), [2]);
    }

    #[test]
    fn a_sender_that_is_held_up_holds_up_nobody() {
        let gathering = Gathering::default();
        let mut answers = Vec::new();
        let mut add = |number| {
            let (waiting, answer) = write(number, 100);
            answers.push(answer);
            gathering.add(waiting)
        };
        for number in 0..MAX_SENDERS {
            assert!(add(number as u128));
            assert_eq!(gathering.next().len(), 1);
        }
        assert!(!add(100), "all are at it");
        assert!(gathering.give_turn_away(), "another one takes what waits");
        assert_eq!(numbers(&gathering.next()), [100]);
        assert!(!gathering.give_turn_away(), "nothing waits");
        assert!(add(101));
    }
}
