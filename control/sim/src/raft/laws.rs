//! What Raft promises, seen from outside of all managers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use control_model::change::RequestId;
use control_store::State;

use super::types::LogId;

/// Sees what every manager does. Clones are the same one.
#[derive(Clone, Default)]
pub struct Witness(Arc<Mutex<Seen>>);

#[derive(Default)]
pub struct Seen {
    /// Who led in each term.
    leaders: BTreeMap<u64, u64>,
    /// What was applied at each index, by whomever first.
    applied: BTreeMap<u64, (LogId, Vec<RequestId>)>,
    /// Where each request was applied first.
    places: BTreeMap<RequestId, u64>,
    /// Reads that were looked at.
    pub n_reads: usize,
    /// The state of each manager's machine, and how far it is.
    pub states: BTreeMap<u64, (u64, Arc<State>)>,
    pub broken: Option<(&'static str, String)>,
}

impl Witness {
    pub fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A manager acts as the leader of a term.
    pub fn leads(&self, term: u64, id: u64) {
        let mut seen = self.lock();
        let first = *seen.leaders.entry(term).or_insert(id);
        if first != id {
            seen.fail("a term has one leader", format!("{first} and {id} lead in term {term}"));
        }
    }

    /// A manager has applied an entry.
    pub fn applied(&self, id: u64, log_id: LogId, requests: Vec<RequestId>, state: Arc<State>) {
        let mut seen = self.lock();
        let index = log_id.index();
        for request in &requests {
            seen.places.entry(*request).or_insert(index);
        }
        let here = (log_id, requests);
        let first = seen.applied.entry(index).or_insert_with(|| here.clone()).clone();
        if first != here {
            let what = format!("manager {id} applies {here:?}, and another has applied {first:?} there");
            seen.fail("all managers apply the same entries", what);
        }
        seen.check_terms(index);
        seen.states.insert(id, (index, state));
    }

    /// A read sees the log up to `index`; these requests were acknowledged before it began.
    pub fn read(&self, id: u64, index: u64, acknowledged: &BTreeSet<u128>) {
        let mut seen = self.lock();
        seen.n_reads += 1;
        let place = |mark: &u128| seen.places.get(&RequestId(*mark)).copied();
        let unseen = acknowledged.iter().find(|mark| place(mark).is_none_or(|place| place > index));
        if let Some(mark) = unseen.copied() {
            let what =
                format!("manager {id} reads at {index}, and {mark:x} was written at {:?}", place(&mark));
            seen.fail("a read sees all that was acknowledged before it", what);
        }
    }

    /// A manager was given a snapshot.
    pub fn installed(&self, id: u64, last: Option<LogId>, state: Arc<State>) {
        let index = last.map_or(0, |last| last.index());
        self.lock().states.insert(id, (index, state));
    }
}

impl Seen {
    /// Terms in the log never go back.
    fn check_terms(&mut self, index: u64) {
        let near = index.saturating_sub(1)..=index + 1;
        let entries: Vec<LogId> = self.applied.range(near).map(|(_, (log_id, _))| *log_id).collect();
        let sinks = |pair: &&[LogId]| !pair.is_sorted_by_key(LogId::committed_leader_id);
        if let Some([before, after, ..]) = entries.windows(2).find(sinks) {
            let what = format!("{before} stands before {after}");
            self.fail("terms never go back", what);
        }
    }

    /// The first law that does not hold counts.
    pub fn fail(&mut self, law: &'static str, what: String) {
        self.broken.get_or_insert((law, what));
    }
}

#[cfg(test)]
mod tests {
    use openraft::alias::CommittedLeaderIdOf;

    use super::super::types::Config;
    use super::*;

    fn broken_by(see: impl FnOnce(&Witness)) -> Option<&'static str> {
        let witness = Witness::default();
        see(&witness);
        witness.lock().broken.as_ref().map(|(law, _)| *law)
    }

    #[test]
    fn a_second_leader_of_a_term_is_found() {
        let leaders = |leaders: [(u64, u64); 3]| {
            broken_by(|witness| leaders.iter().for_each(|(term, id)| witness.leads(*term, *id)))
        };
        assert_eq!(leaders([(1, 1), (2, 3), (2, 1)]), Some("a term has one leader"));
        assert_eq!(leaders([(1, 1), (2, 3), (2, 3)]), None);
    }

    #[test]
    fn an_entry_of_an_earlier_term_behind_one_of_a_later_is_found() {
        let entries = |terms: [u64; 2]| {
            broken_by(|witness| {
                for (index, term) in (1..).zip(terms) {
                    let id = LogId::new(CommittedLeaderIdOf::<Config>::new(term), index);
                    witness.applied(1, id, Vec::new(), Arc::default());
                }
            })
        };
        assert_eq!(entries([2, 1]), Some("terms never go back"));
        assert_eq!(entries([2, 2]), None);
    }
}
