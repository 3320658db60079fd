//! The messages of one assignments stream: a complete set, then increments that follow each other. Pure.

use std::sync::Arc;

use control_model::{AssignmentUpdate, Generation, NodeId};
use control_store::{Event, State};

use crate::assignments::NodeAssignments;

/// What has been sent on one stream.
#[derive(Debug)]
pub struct Updates {
    assignments: NodeAssignments,
    generation: Generation,
}

impl Updates {
    /// A new stream, and its first message.
    pub fn open(node: NodeId, state: Arc<State>) -> (Self, AssignmentUpdate) {
        let generation = generation_of(&state);
        let assignments = NodeAssignments::new(node, state);
        let complete = AssignmentUpdate::Complete { generation, set: assignments.complete() };
        (Self { assignments, generation }, complete)
    }

    /// Of the last message.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Goes on to `state`, which is the one before plus `events`; `None` if nothing of it is for this node.
    pub fn advance(&mut self, state: Arc<State>, events: &[Event]) -> Option<AssignmentUpdate> {
        let through = generation_of(&state);
        let increment = self.assignments.advance(state, events);
        if increment.is_empty() {
            return None;
        }
        let base = std::mem::replace(&mut self.generation, through);
        let (upserts, removals) = (increment.upserts, increment.removals);
        Some(AssignmentUpdate::Incremental { base, generation: through, upserts, removals })
    }
}

/// How new `state` is.
pub fn generation_of(state: &State) -> Generation {
    Generation { epoch: state.cluster().map_or(0, |c| c.epoch), index: state.index() }
}
