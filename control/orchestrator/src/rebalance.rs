//! Rebalancing of replicated services that want it (label `mesh.rebalance`): when a node comes, or has room again, tasks move
//! there from the fullest ones, few at a time. The new one begins first; the old one leaves, drained, when that runs.
//!
//! A move is a second task in the slot, bound to the node from the start. Whether it fits there is the scheduler's to say: one
//! that is refused, fails, or does not come up is taken back, and its node left alone for a while. Which moves go on follows
//! from the state; kept beside it is only what not to try again so soon.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control_model::constraint::spread_value;
use control_model::object::{Node, NodeState, Service, Slot, Task, UpdateState};
use control_model::spec::{Availability, ServiceMode};
use control_model::{NodeId, ServiceId, TaskState, Timestamp};

use crate::dirty::is_task_dirty;
use crate::node::node_of;
use crate::service::slots_of;
use crate::slot::is_refused;
use crate::work::{Step, Work};

/// After a change of the nodes nothing is moved for so long: what comes and goes shall do so first.
const SETTLE: Duration = Duration::from_secs(5);
/// A task that has not begun to run by then is taken back. Long enough for a large image.
const MOVE_TIMEOUT: Duration = Duration::from_mins(10);
/// So long is a node left alone where a move has failed.
const RETRY: Duration = Duration::from_mins(1);

/// The services that are to be rebalanced.
#[derive(Debug, Default)]
pub(crate) struct Rebalancing(BTreeMap<ServiceId, Balance>);

/// What not to try yet.
#[derive(Debug, Default)]
pub(crate) struct Balance {
    not_before: Timestamp,
    refused: BTreeMap<NodeId, Timestamp>,
}

impl Rebalancing {
    /// Takes in what a service wants now.
    pub(crate) fn note_service(&mut self, service: &Service) {
        if wants(service) {
            self.0.entry(service.id).or_default();
        } else {
            self.0.remove(&service.id);
        }
    }

    pub(crate) fn forget(&mut self, service: ServiceId) {
        self.0.remove(&service);
    }

    pub(crate) fn has(&self, service: ServiceId) -> bool {
        self.0.contains_key(&service)
    }

    /// Takes in that nodes have changed; returns what is to be looked at, and when.
    pub(crate) fn note_nodes(&mut self, now: Timestamp) -> impl Iterator<Item = (Timestamp, Work)> {
        let at = now.after(SETTLE);
        self.0.iter_mut().map(move |(id, balance)| {
            balance.not_before = at;
            (at, Work::Service(*id))
        })
    }

    pub(crate) fn of(&mut self, service: ServiceId) -> Option<&mut Balance> {
        self.0.get_mut(&service)
    }
}

/// Its replicas are to be spread anew when they have become uneven.
pub(crate) fn wants(service: &Service) -> bool {
    service.spec.rebalance().is_some() && matches!(service.spec.mode, ServiceMode::Replicated { .. })
}

/// A service's replicas where they are.
#[derive(Debug, Default)]
struct Picture {
    /// Those that run alone in their slot: they may be moved.
    movable: BTreeMap<NodeId, Vec<Slot>>,
    /// All that are, or come, on a node.
    counts: BTreeMap<NodeId, usize>,
    n_moving: u64,
    /// Something else goes on: nothing new is begun.
    is_restless: bool,
}

impl Step<'_> {
    /// Takes the moves of a service further, and begins others as far as its label allows.
    pub(crate) fn rebalance(&mut self, service: &Service, balance: &mut Balance) {
        let (Some(limit), ServiceMode::Replicated { replicas }) =
            (service.spec.rebalance(), service.spec.mode)
        else {
            return;
        };
        let is_updated = service
            .update_status
            .as_ref()
            .is_none_or(|s| matches!(s.state, UpdateState::Completed | UpdateState::RollbackCompleted));
        if !is_updated {
            return;
        }
        let now = self.now;
        balance.refused.retain(|_, until| *until > now);
        let mut picture = self.picture(service, balance);
        if picture.is_restless {
            return;
        }
        if balance.not_before > now {
            return self.timers.add(balance.not_before, Work::Service(service.id));
        }
        while picture.n_moving < limit.of(replicas)
            && let Some((slot, to)) = self.next_move(service, &picture, balance)
        {
            self.create_on(service, slot, to);
            picture.take(slot, to);
        }
        for until in balance.refused.values() {
            self.timers.add(*until, Work::Service(service.id));
        }
    }

    /// The slot to move, and where to; `None` if the replicas are as even as they can be.
    fn next_move(
        &mut self,
        service: &Service,
        picture: &Picture,
        balance: &Balance,
    ) -> Option<(Slot, NodeId)> {
        let nodes = self.state.nodes();
        let is_open = |node: &&Arc<Node>| {
            node.spec.availability == Availability::Active
                && node.status.state == NodeState::Ready
                && node.status.data_path_alive
                && !balance.refused.contains_key(&node.id)
                && self.satisfies(service, node)
        };
        let count = |node: &NodeId| picture.counts.get(node).copied().unwrap_or(0);
        let open = nodes.iter().filter(is_open);
        let nodes: Vec<(&Node, usize)> = open.map(|node| (&**node, count(&node.id))).collect();
        let (from, to) = uneven(&nodes, &service.spec.task.placement.spread_preferences)?;
        // High slots first, as when a service is scaled down.
        Some((picture.movable.get(&from)?.iter().max().copied()?, to))
    }

    /// Looks at all slots, and ends the moves that have come to their end.
    fn picture(&mut self, service: &Service, balance: &mut Balance) -> Picture {
        let mut picture = Picture::default();
        for slot in slots_of(self.state, service.id).into_values() {
            let wanted: Vec<_> = slot.wanted().collect();
            for node in wanted.iter().filter_map(|task| task.node) {
                *picture.counts.entry(node).or_default() += 1;
            }
            match wanted.as_slice() {
                // Ended for good, or about to be made.
                [] => {}
                [task] => match task.node.filter(|_| self.is_at_rest(service, task)) {
                    Some(node) => picture.movable.entry(node).or_default().push(slot.slot),
                    None => picture.is_restless = true,
                },
                [old @ .., new] => {
                    picture.n_moving += 1;
                    for node in old.iter().filter_map(|task| task.node) {
                        picture.counts.entry(node).and_modify(|count| *count = count.saturating_sub(1));
                    }
                    self.go_on(service, (old, new), balance);
                }
            }
        }
        picture
    }

    fn is_at_rest(&self, service: &Service, task: &Task) -> bool {
        task.status.state == TaskState::Running
            && !task.status.is_unhealthy()
            && !is_task_dirty(service, task, node_of(self.state, task.node))
    }

    /// One slot's move: the old task leaves when the new one runs, which is taken back if it doesn't come to that.
    fn go_on(&mut self, service: &Service, (old, new): (&[&Arc<Task>], &Arc<Task>), balance: &mut Balance) {
        if self.is_at_rest(service, new) {
            return old.iter().for_each(|task| self.desire(task, TaskState::Shutdown));
        }
        let until = new.meta.created_at.after(MOVE_TIMEOUT);
        if is_refused(new) || new.status.state.is_terminal() || until <= self.now {
            self.desire(new, TaskState::Shutdown);
            balance.refused.extend(new.node.map(|node| (node, self.now.after(RETRY))));
        } else {
            self.timers.add(until, Work::Service(service.id));
        }
    }
}

impl Picture {
    /// A task of `slot` is begun on `to`.
    fn take(&mut self, slot: Slot, to: NodeId) {
        self.n_moving += 1;
        for (node, slots) in &mut self.movable {
            if slots.contains(&slot) {
                slots.retain(|other| *other != slot);
                self.counts.entry(*node).and_modify(|count| *count -= 1);
            }
        }
        *self.counts.entry(to).or_default() += 1;
    }
}

/// From where to where one task makes the nodes more even: outer preferences first, as the scheduler spreads.
fn uneven(nodes: &[(&Node, usize)], preferences: &[String]) -> Option<(NodeId, NodeId)> {
    let Some((preference, rest)) = preferences.split_first() else {
        let ((from, most), (to, least)) = (fullest(nodes)?, emptiest(nodes)?);
        return (most >= least + 2).then_some((from.id, to.id));
    };
    let mut branches: BTreeMap<&str, Vec<(&Node, usize)>> = BTreeMap::new();
    for (node, count) in nodes {
        branches.entry(spread_value(preference, node).unwrap_or("")).or_default().push((node, *count));
    }
    let total = |branch: &&Vec<(&Node, usize)>| branch.iter().map(|(_, count)| count).sum::<usize>();
    let (most, least) = (branches.values().max_by_key(total)?, branches.values().min_by_key(total)?);
    if total(&most) >= total(&least) + 2 {
        return Some((fullest(most)?.0.id, emptiest(least)?.0.id));
    }
    branches.values().find_map(|branch| uneven(branch, rest))
}

fn fullest<'a>(nodes: &[(&'a Node, usize)]) -> Option<(&'a Node, usize)> {
    nodes.iter().max_by_key(|(_, count)| *count).copied()
}

fn emptiest<'a>(nodes: &[(&'a Node, usize)]) -> Option<(&'a Node, usize)> {
    nodes.iter().min_by_key(|(_, count)| *count).copied()
}
