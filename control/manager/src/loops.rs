//! The leader's loops, in the order in which they answer the same events: what one writes, the next may need.

use control_allocator::Allocator;
use control_model::{Change, Timestamp};
use control_scheduler::Scheduler;
use control_store::{Event, State};

use crate::leader::{Factory, LeaderLoop};

/// Makes each loop.
pub fn all() -> Vec<Factory> {
    vec![
        Factory { name: "allocator", make: Box::new(|state, now| Box::new(Allocator::new(state, now))) },
        Factory { name: "scheduler", make: Box::new(|state, now| Box::new(Scheduler::new(state, now))) },
    ]
}

macro_rules! leader_loop {
    ($machine:ty) => {
        impl LeaderLoop for $machine {
            fn handle(&mut self, state: &State, events: &[Event], now: Timestamp) -> Vec<Change> {
                self.handle(state, events, now)
            }
            fn next_deadline(&self) -> Option<Timestamp> {
                self.next_deadline()
            }
            fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
                self.tick(state, now)
            }
        }
    };
}

leader_loop!(Allocator);
leader_loop!(Scheduler);
