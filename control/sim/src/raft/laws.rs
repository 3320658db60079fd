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
    applied: BTreeMap<u64, (LogId, Option<RequestId>)>,
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
    pub fn applied(&self, id: u64, log_id: LogId, request: Option<RequestId>, state: Arc<State>) {
        let mut seen = self.lock();
        let index = log_id.index();
        let first = *seen.applied.entry(index).or_insert((log_id, request));
        if first != (log_id, request) {
            let what = format!("manager {id} applies {log_id:?}, and another has applied {first:?} there");
            seen.fail("all managers apply the same entries", what);
        }
        if let Some(request) = request {
            seen.places.entry(request).or_insert(index);
        }
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
    /// The first law that does not hold counts.
    pub fn fail(&mut self, law: &'static str, what: String) {
        self.broken.get_or_insert((law, what));
    }
}
