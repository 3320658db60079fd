//! The tree of spread preferences over the nodes that may run a group, and how many tasks each branch gets.

use std::collections::BTreeMap;

use control_model::NodeId;
use control_model::constraint::spread_value;

use crate::node_info::NodeInfo;

/// Nodes that have the same values for the preferences so far.
#[derive(Debug)]
pub(crate) enum Branch {
    /// All preferences used: tasks are spread over these nodes.
    Leaf { nodes: Vec<NodeId>, n_tasks: usize },
    /// By the value of the next preference.
    Split { branches: Vec<Branch>, n_tasks: usize },
}

impl Branch {
    /// Cuts `nodes` by `preferences`, outermost first. `n_tasks` counts what a node has of the service already;
    /// also nodes that take no more tasks count for their branch.
    pub(crate) fn build(
        nodes: &[(&NodeInfo, bool)],
        preferences: &[String],
        n_tasks_on: &impl Fn(&NodeInfo) -> usize,
    ) -> Self {
        let n_tasks = nodes.iter().map(|(info, _)| n_tasks_on(info)).sum();
        let Some((preference, rest)) = preferences.split_first() else {
            let usable = nodes.iter().filter(|(_, usable)| *usable).map(|(info, _)| info.node.id);
            return Self::Leaf { nodes: usable.collect(), n_tasks };
        };
        let mut by_value: BTreeMap<&str, Vec<(&NodeInfo, bool)>> = BTreeMap::new();
        for (info, usable) in nodes {
            // swarmkit ignores a descriptor that it doesn't know; one group for all is the same.
            let value = spread_value(preference, &info.node).unwrap_or("");
            by_value.entry(value).or_default().push((info, *usable));
        }
        // A branch where no node may run the group would only divide the others' share.
        let branches = by_value
            .into_values()
            .filter(|nodes| nodes.iter().any(|(_, usable)| *usable))
            .map(|nodes| Self::build(&nodes, rest, n_tasks_on))
            .collect();
        Self::Split { branches, n_tasks }
    }

    fn n_tasks(&self) -> usize {
        match self {
            Self::Leaf { n_tasks, .. } | Self::Split { n_tasks, .. } => *n_tasks,
        }
    }

    fn add_tasks(&mut self, n: usize) {
        match self {
            Self::Leaf { n_tasks, .. } | Self::Split { n_tasks, .. } => *n_tasks += n,
        }
    }

    /// Places up to `n` tasks, keeping sibling branches even; `place` puts some on a leaf's nodes and returns how
    /// many found room. Returns how many were placed in all.
    pub(crate) fn fill(&mut self, n: usize, place: &mut impl FnMut(&[NodeId], usize) -> usize) -> usize {
        let placed = match self {
            Self::Leaf { nodes, .. } => place(nodes, n),
            Self::Split { branches, .. } => fill_branches(branches, n, place),
        };
        self.add_tasks(placed);
        placed
    }
}

/// One level: every branch is raised towards the same level; a full one leaves its share to the others.
fn fill_branches(
    branches: &mut [Branch],
    n: usize,
    place: &mut impl FnMut(&[NodeId], usize) -> usize,
) -> usize {
    let mut has_room = vec![true; branches.len()];
    let mut left = n;
    while left > 0 && has_room.contains(&true) {
        let open: Vec<usize> = (0..branches.len()).filter(|at| has_room[*at]).collect();
        let shares = shares(&open.iter().map(|at| branches[*at].n_tasks()).collect::<Vec<_>>(), left);
        for (at, share) in open.into_iter().zip(shares).filter(|(_, share)| *share > 0) {
            let placed = branches[at].fill(share, place);
            left -= placed;
            has_room[at] = placed == share;
        }
    }
    n - left
}

/// How `n` more are dealt out so that the totals become as even as they can.
fn shares(totals: &[usize], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..totals.len()).collect();
    order.sort_by_key(|at| totals[*at]);
    // The lowest `k` are raised to one level: the largest k whose highest member is not above that level.
    let mut sum = n;
    let mut k = 0;
    for (count, at) in order.iter().enumerate() {
        if totals[*at] * (count + 1) > sum + totals[*at] {
            break;
        }
        sum += totals[*at];
        k = count + 1;
    }
    let mut shares = vec![0; totals.len()];
    for (rank, at) in order.into_iter().take(k).enumerate() {
        let level = sum / k + usize::from(rank < sum % k);
        shares[at] = level.saturating_sub(totals[at]);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn shares_even_out() {
        assert_eq!(shares(&[0, 0], 4), [2, 2]);
        assert_eq!(shares(&[0, 0], 3), [2, 1]);
        assert_eq!(shares(&[5, 0], 3), [0, 3]);
        assert_eq!(shares(&[2, 0, 1], 3), [0, 2, 1]);
        assert_eq!(shares(&[1, 1, 7], 1), [1, 0, 0]);
        assert_eq!(shares(&[3], 2), [2]);
        assert!(shares(&[], 2).is_empty());
    }

    #[test]
    fn shares_always_add_up() {
        for a in 0..6usize {
            for b in 0..6 {
                for c in 0..6 {
                    for n in 0..9 {
                        let dealt = shares(&[a, b, c], n);
                        assert_eq!(dealt.iter().sum::<usize>(), n, "{a} {b} {c} + {n}: {dealt:?}");
                    }
                }
            }
        }
    }
}
