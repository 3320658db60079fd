//! Records: which tasks have ended, said by their nodes. A task that has ended never runs again (the task law), so a record is
//! not taken back, unless its origin has never said it: then it begins a new life, which replaces all records of the one
//! before. A record is forgotten where nobody needs it any more.
//!
//! Each origin numbers its records. A node knows all up to a number, and some beyond it that came by datagrams; an exchange
//! brings what is between, and so nothing is lost for good.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use control_model::{NodeId, TaskId, Timestamp};

use super::message::{Ended, Known};

/// A record that is of no use to this node is kept so long for others, which may be cut off.
const KEEP: Duration = Duration::from_mins(30);
/// Records of one origin. A node that loses more tasks in [`KEEP`] has its oldest ones forgotten; they end at the managers
/// all the same.
const MAX_RECORDS: usize = 4096;

/// The records of all origins.
#[derive(Debug, Default)]
pub struct Records {
    origins: BTreeMap<NodeId, Origin>,
    /// Tasks of other nodes; empty when a record has come or gone.
    tasks: OnceLock<Arc<BTreeSet<TaskId>>>,
}

#[derive(Debug, Default)]
struct Origin {
    life: u64,
    /// All records up to here are known, or forgotten.
    through: u64,
    rows: BTreeMap<u64, Row>,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    task: TaskId,
    since: Timestamp,
}

impl Records {
    /// The own node has begun a life; what it said in an earlier one is replaced.
    pub fn begin(&mut self, me: NodeId, life: u64) {
        self.origins.insert(me, Origin { life, ..Origin::default() });
    }

    /// The life in which this origin speaks, as far as is known.
    pub fn life(&self, origin: NodeId) -> u64 {
        self.origins.get(&origin).map_or(0, |origin| origin.life)
    }

    /// The record of an own task that has ended, if it is new.
    pub fn say(&mut self, me: NodeId, task: TaskId, now: Timestamp) -> Option<Ended> {
        let own = self.origins.entry(me).or_default();
        if own.rows.values().any(|row| row.task == task) {
            return None;
        }
        let version = own.rows.keys().next_back().map_or(own.through, |last| (*last).max(own.through)) + 1;
        let record = Ended { origin: me, life: own.life, version, task };
        own.put(record, now);
        Some(record)
    }

    /// Takes a record of another node; true if it is new. One without a version is its word that it has begun a life.
    pub fn put(&mut self, record: Ended, now: Timestamp) -> bool {
        let origin = self.origins.entry(record.origin).or_default();
        if record.life < origin.life {
            return false;
        }
        let has_begun = record.life > origin.life;
        if has_begun {
            *origin = Origin { life: record.life, ..Origin::default() };
            self.tasks.take();
        }
        if record.version == 0 {
            return has_begun;
        }
        let is_new = origin.put(record, now);
        if is_new {
            self.tasks.take();
        }
        is_new
    }

    /// Whether this node has said the record, in this life. One that was forgotten since counts as said.
    pub fn has_said(&self, record: Ended) -> bool {
        self.origins.get(&record.origin).is_some_and(|own| match own.rows.get(&record.version) {
            Some(row) => row.task == record.task,
            None => record.version <= own.through,
        })
    }

    /// The sender of an exchange knows this much; what of it was missing has been [`Records::put`].
    pub fn know(&mut self, known: Known) {
        let origin = self.origins.entry(known.origin).or_default();
        if known.life > origin.life {
            *origin = Origin { life: known.life, ..Origin::default() };
            self.tasks.take();
        }
        if known.life == origin.life {
            origin.through = origin.through.max(known.version);
        }
    }

    /// How much is known of each origin.
    pub fn known(&self) -> Vec<Known> {
        let known = self.origins.iter();
        known.map(|(id, origin)| Known { origin: *id, life: origin.life, version: origin.through }).collect()
    }

    /// What somebody lacks who knows `known`.
    pub fn beyond(&self, known: &[Known]) -> Vec<Ended> {
        let known: BTreeMap<NodeId, Known> = known.iter().map(|known| (known.origin, *known)).collect();
        let lacking = self.origins.iter().flat_map(|(id, origin)| {
            let from = known.get(id).map_or(Some(0), |known| match known.life.cmp(&origin.life) {
                std::cmp::Ordering::Less => Some(0),
                std::cmp::Ordering::Equal => Some(known.version),
                std::cmp::Ordering::Greater => None,
            });
            let rows = from.into_iter().flat_map(|from| origin.rows.range(from.saturating_add(1)..));
            rows.map(|(version, row)| Ended {
                origin: *id,
                life: origin.life,
                version: *version,
                task: row.task,
            })
        });
        lacking.collect()
    }

    /// All tasks of other nodes that have ended.
    pub fn tasks(&self, me: NodeId) -> Arc<BTreeSet<TaskId>> {
        let collect = || {
            let others = self.origins.iter().filter(|(id, _)| **id != me);
            others.flat_map(|(_, origin)| origin.rows.values().map(|row| row.task)).collect()
        };
        self.tasks.get_or_init(|| Arc::new(collect())).clone()
    }

    /// Forgets what is old, but for tasks that are `needed`, and all of nodes that are no members.
    pub fn forget(
        &mut self,
        is_member: impl Fn(NodeId) -> bool,
        needed: impl Fn(TaskId) -> bool,
        now: Timestamp,
    ) {
        let n_origins = self.origins.len();
        self.origins.retain(|id, _| is_member(*id));
        let mut has_changed = self.origins.len() != n_origins;
        for origin in self.origins.values_mut() {
            let n_rows = origin.rows.len();
            origin.rows.retain(|_, row| needed(row.task) || now.since(row.since) < KEEP);
            has_changed |= origin.rows.len() != n_rows;
        }
        if has_changed {
            self.tasks.take();
        }
    }
}

impl Origin {
    fn put(&mut self, record: Ended, now: Timestamp) -> bool {
        // One up to here that isn't there was forgotten.
        if record.version <= self.through || self.rows.contains_key(&record.version) {
            return false;
        }
        self.rows.insert(record.version, Row { task: record.task, since: now });
        while self.rows.contains_key(&(self.through + 1)) {
            self.through += 1;
        }
        if self.rows.len() > MAX_RECORDS {
            self.rows.pop_first();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId::from_bits(1);
    const NOW: Timestamp = Timestamp(0);

    fn task(id: u128) -> TaskId {
        TaskId::from_bits(id)
    }

    /// Sends what `to` lacks of `from`, as an exchange does.
    fn exchange(from: &Records, to: &mut Records) -> usize {
        let records = from.beyond(&to.known());
        let n = records.into_iter().filter(|record| to.put(*record, NOW)).count();
        from.known().into_iter().for_each(|known| to.know(known));
        n
    }

    #[test]
    fn an_exchange_brings_what_datagrams_have_lost() {
        let (mut origin, mut other) = (Records::default(), Records::default());
        origin.begin(ME, 5);
        let said: Vec<Ended> = (1..=6).filter_map(|id| origin.say(ME, task(id), NOW)).collect();
        assert_eq!(origin.say(ME, task(3), NOW), None, "it was said");
        for lost_but in [5, 1] {
            assert!(other.put(said[lost_but - 1], NOW));
        }
        assert_eq!(other.known()[0].version, 1, "the first alone is known without a gap");
        assert_eq!(exchange(&origin, &mut other), 4);
        assert_eq!((other.tasks(NodeId::from_bits(2)).len(), exchange(&origin, &mut other)), (6, 0));
    }

    #[test]
    fn a_new_life_replaces_what_was_said_in_an_older_one_and_not_the_other_way() {
        let (mut old, mut new, mut other) = (Records::default(), Records::default(), Records::default());
        old.begin(ME, 1);
        new.begin(ME, 2);
        let (of_old, of_new) = (old.say(ME, task(1), NOW).unwrap(), new.say(ME, task(2), NOW).unwrap());
        assert!(other.put(of_old, NOW) && other.put(of_new, NOW) && !other.put(of_old, NOW));
        assert_eq!(exchange(&old, &mut other), 0);
        assert_eq!(*other.tasks(NodeId::from_bits(2)), [task(2)].into());
    }

    #[test]
    fn a_record_that_its_origin_has_not_said_is_known_as_such() {
        let mut origin = Records::default();
        origin.begin(ME, 1);
        let said = origin.say(ME, task(1), NOW).unwrap();
        let beyond = Ended { version: 9, ..said };
        let other = Ended { task: task(2), ..said };
        assert_eq!([said, beyond, other].map(|record| origin.has_said(record)), [true, false, false]);
        origin.forget(|_| true, |_| false, NOW.after(KEEP));
        assert!(origin.has_said(said), "it was forgotten");
    }

    #[test]
    fn what_nobody_needs_is_forgotten_and_does_not_come_back() {
        let (mut origin, mut other) = (Records::default(), Records::default());
        origin.begin(ME, 1);
        for id in 1..=3 {
            origin.say(ME, task(id), NOW);
        }
        exchange(&origin, &mut other);
        let later = NOW.after(KEEP);
        other.forget(|_| true, |needed| needed == task(2), later);
        assert_eq!(exchange(&origin, &mut other), 0);
        assert_eq!(*other.tasks(NodeId::from_bits(2)), [task(2)].into());
        other.forget(|_| false, |_| true, later);
        assert_eq!(other.known(), []);
    }

    #[test]
    fn one_origin_has_a_bounded_number_of_records() {
        let mut records = Records::default();
        for version in 1..=5000 {
            records.put(Ended { origin: ME, life: 1, version, task: task(version.into()) }, NOW);
        }
        assert_eq!(records.tasks(NodeId::from_bits(2)).len(), MAX_RECORDS);
    }
}
