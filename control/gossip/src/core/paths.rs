//! Which nodes' data paths answer this node. Each node judges for itself, by probes that the kernel of the other one answers:
//! what others say is only a reason to look.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control_model::{NodeId, Timestamp};

use super::view::PathView;

/// Between two probes of a path that doesn't answer; an answer takes less.
const PAUSE: Duration = Duration::from_millis(100);
/// Probes in a row without an answer that are worth telling: the others are to look too.
const DOUBT_AFTER: u32 = 2;
/// Probes in a row without an answer after which it gets no new flows. With five in a hundred packets lost each way, one probe
/// in ten has no answer, and five in a row one time in 100,000.
const SILENT_AFTER: u32 = 5;
/// It is asked further, less and less often: so many times at [`SLOWER`], then at [`SLOWEST`].
const N_SLOWER: u32 = 20;
const SLOWER: Duration = Duration::from_millis(500);
const SLOWEST: Duration = Duration::from_secs(2);

/// All paths.
#[derive(Debug, Default)]
pub struct Paths {
    of: BTreeMap<NodeId, Path>,
    silent: BTreeSet<NodeId>,
}

#[derive(Debug, Default)]
struct Path {
    /// It has answered this node. One that never has may be one that can't: nothing follows from its silence.
    has_answered: bool,
    /// Probes in a row without an answer.
    misses: u32,
    looked_at: Option<Timestamp>,
    /// When the probe that is out counts as missed; `None` while none is out.
    due: Option<Timestamp>,
}

/// What a tick has found.
#[derive(Debug, Default)]
pub struct Found {
    /// To be probed now.
    pub look: Vec<NodeId>,
    /// Worth telling.
    pub doubts: Vec<NodeId>,
}

impl Paths {
    /// The nodes from now on.
    pub fn set_members(&mut self, members: &BTreeSet<NodeId>) {
        self.of.retain(|id, _| members.contains(id));
        self.silent.retain(|id| members.contains(id));
        for id in members {
            self.of.entry(*id).or_default();
        }
    }

    /// Looks at the path unless that is being done. True if a probe is to go out.
    pub fn look(&mut self, node: NodeId, now: Timestamp) -> bool {
        let Some(path) = self.of.get_mut(&node).filter(|path| path.due.is_none()) else { return false };
        path.ask(now);
        true
    }

    /// A node that was silent is heard again by other ways: its path is looked at without waiting for the next time.
    pub fn look_again(&mut self, node: NodeId, now: Timestamp) -> bool {
        let is_silent = self.silent.contains(&node);
        let Some(path) = self.of.get_mut(&node).filter(|_| is_silent) else { return false };
        let may = path.looked_at.is_none_or(|at| now.since(at) >= PAUSE);
        if may {
            path.ask(now);
        }
        may
    }

    /// When the path was last probed.
    pub fn looked_at(&self, node: NodeId) -> Option<Timestamp> {
        self.of.get(&node)?.looked_at
    }

    /// The path has answered.
    pub fn answered(&mut self, node: NodeId) {
        if let Some(path) = self.of.get_mut(&node) {
            *path = Path { has_answered: true, looked_at: path.looked_at, ..Path::default() };
            self.silent.remove(&node);
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Timestamp) -> Found {
        let mut found = Found::default();
        for (id, path) in &mut self.of {
            if path.due.is_none_or(|due| due > now) {
                continue;
            }
            path.misses = path.misses.saturating_add(1);
            if path.misses == DOUBT_AFTER && path.has_answered {
                found.doubts.push(*id);
            }
            if path.misses >= SILENT_AFTER && path.has_answered {
                self.silent.insert(*id);
            }
            path.ask(now);
            found.look.push(*id);
        }
        found
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.of.values().filter_map(|path| path.due).min()
    }

    /// This node stood still: answers may wait to be read, and what was counted in that time counts for nothing.
    pub fn forgive(&mut self, now: Timestamp) {
        for (id, path) in &mut self.of {
            if path.due.is_some() {
                path.due = Some(now.after(PAUSE));
                if !self.silent.contains(id) {
                    path.misses = 0;
                }
            }
        }
    }

    /// What is thought of one.
    pub fn view(&self, node: NodeId, now: Timestamp) -> PathView {
        let Some(path) = self.of.get(&node) else { return PathView::default() };
        PathView {
            has_answered: path.has_answered,
            is_silent: self.silent.contains(&node),
            n_missed: path.misses,
            probed: path.looked_at.map(|at| now.since(at)),
        }
    }

    /// Those that don't answer.
    pub fn silent(&self) -> &BTreeSet<NodeId> {
        &self.silent
    }
}

impl Path {
    fn ask(&mut self, now: Timestamp) {
        self.looked_at = Some(now);
        let pause = match self.misses {
            0..=SILENT_AFTER => PAUSE,
            misses if misses < SILENT_AFTER + N_SLOWER => SLOWER,
            _ => SLOWEST,
        };
        self.due = Some(now.after(pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bits(7);

    fn at(ms: u64) -> Timestamp {
        Timestamp(0).after(Duration::from_millis(ms))
    }

    fn paths(has_answered: bool) -> Paths {
        let mut paths = Paths::default();
        paths.set_members(&[NODE].into());
        if has_answered {
            paths.answered(NODE);
        }
        paths
    }

    #[test]
    fn five_probes_in_a_row_make_a_path_silent_and_one_answer_makes_it_alive() {
        let mut paths = paths(true);
        assert!(paths.look(NODE, at(0)) && !paths.look(NODE, at(50)));
        for (ms, doubts, silent) in [(100, 0, 0), (200, 1, 0), (300, 0, 0), (400, 0, 0), (500, 0, 1)] {
            assert_eq!(paths.next_deadline(), Some(at(ms)));
            let found = paths.tick(at(ms));
            assert_eq!(
                (found.look.len(), found.doubts.len(), paths.silent().len()),
                (1, doubts, silent),
                "{ms}"
            );
        }
        paths.answered(NODE);
        assert_eq!((paths.silent().len(), paths.next_deadline()), (0, None));
    }

    #[test]
    fn a_path_that_never_answered_is_not_condemned() {
        let mut paths = paths(false);
        paths.look(NODE, at(0));
        (1..100).for_each(|n| drop(paths.tick(at(100 * n))));
        assert!(paths.silent().is_empty());
    }

    #[test]
    fn the_own_stall_counts_for_nothing() {
        let mut paths = paths(true);
        paths.look(NODE, at(0));
        (1..=4).for_each(|n| drop(paths.tick(at(100 * n))));
        paths.forgive(at(2500));
        assert!(paths.tick(at(2550)).look.is_empty());
        assert_eq!(paths.tick(at(2600)).look, [NODE]);
        assert!(paths.silent().is_empty(), "one miss since");
    }

    #[test]
    fn a_silent_path_is_asked_less_and_less_often_and_at_once_when_its_node_is_heard() {
        let mut paths = paths(true);
        paths.look(NODE, at(0));
        let n_looks = |paths: &mut Paths, from: u64, to: u64| {
            (from..to).step_by(10).map(|ms| paths.tick(at(ms)).look.len()).sum::<usize>()
        };
        assert_eq!(n_looks(&mut paths, 0, 600), 5);
        assert!(n_looks(&mut paths, 600, 60_000) < 55);
        assert!(paths.look_again(NODE, at(60_000)) || paths.look_again(NODE, at(60_100)));
    }
}
