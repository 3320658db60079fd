//! What every node that is up has acknowledged at least. Counted as it changes: nobody looks at all nodes for one word of one.

use std::collections::BTreeMap;

use control_model::{Generation, NodeId};

/// The acknowledgements, and how many nodes that are up stand at each generation.
#[derive(Debug, Default)]
pub(super) struct Floor {
    nodes: BTreeMap<NodeId, Standing>,
    n_up_at: BTreeMap<Generation, usize>,
}

/// One node. Of which nothing is known has acknowledged nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    is_up: bool,
    applied: Generation,
}

impl Floor {
    /// The node is up, or down.
    pub(super) fn set_up(&mut self, node: NodeId, is_up: bool) {
        self.change(node, |standing| standing.is_up = is_up);
    }

    /// The node works with this generation.
    pub(super) fn acknowledged(&mut self, node: NodeId, applied: Generation) {
        self.change(node, |standing| standing.applied = applied);
    }

    /// The node is gone.
    pub(super) fn remove(&mut self, node: NodeId) {
        self.change(node, |standing| standing.is_up = false);
        self.nodes.remove(&node);
    }

    /// The lowest of the nodes that are up; `None` if there is none.
    pub(super) fn lowest(&self) -> Option<Generation> {
        self.n_up_at.first_key_value().map(|(generation, _)| *generation)
    }

    /// The nodes that are up and have not acknowledged `written`. Looks at all.
    pub(super) fn behind(&self, written: Generation) -> Vec<NodeId> {
        let behind = self.nodes.iter().filter(|(_, node)| node.is_up && node.applied < written);
        behind.map(|(id, _)| *id).collect()
    }

    fn change(&mut self, node: NodeId, change: impl FnOnce(&mut Standing)) {
        let standing = self.nodes.entry(node).or_default();
        let before = *standing;
        change(standing);
        let after = *standing;
        if before.is_up {
            self.leave(before.applied);
        }
        if after.is_up {
            *self.n_up_at.entry(after.applied).or_default() += 1;
        }
    }

    fn leave(&mut self, generation: Generation) {
        if let Some(n_up) = self.n_up_at.get_mut(&generation) {
            *n_up -= 1;
            if *n_up == 0 {
                self.n_up_at.remove(&generation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator, the same in each run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        }
    }

    #[test]
    fn it_is_the_minimum_of_all_that_are_up() {
        for seed in 0..20 {
            let (mut random, mut floor) = (Random(seed), Floor::default());
            let mut plain: BTreeMap<NodeId, (bool, Generation)> = BTreeMap::new();
            for step in 0..500 {
                let node = NodeId::from_bits(random.below(8).into());
                let known = plain.entry(node).or_default();
                match random.below(8) {
                    0 => {
                        plain.remove(&node);
                        floor.remove(node);
                    }
                    1..4 => {
                        known.0 = random.below(3) > 0;
                        floor.set_up(node, known.0);
                    }
                    _ => {
                        known.1 = Generation { epoch: random.below(2), index: random.below(5) };
                        floor.acknowledged(node, known.1);
                    }
                }
                let up = || plain.iter().filter(|(_, (is_up, _))| *is_up);
                let lowest = up().map(|(_, (_, applied))| *applied).min();
                assert_eq!(floor.lowest(), lowest, "seed {seed}, step {step}");
                let written = Generation { epoch: random.below(2), index: random.below(6) };
                let behind: Vec<_> =
                    up().filter(|(_, (_, applied))| *applied < written).map(|(id, _)| *id).collect();
                assert_eq!(floor.behind(written), behind, "seed {seed}, step {step}");
            }
        }
    }
}
