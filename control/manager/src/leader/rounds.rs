//! Rounds over the leader's loops: what happened in, writes out, one at a time. Pure.
//!
//! A refused write means that a loop's picture is old: it is made anew of the current state, and asked what it wants now.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use control_model::change::pack;
use control_model::{Change, Timestamp};
use control_store::{ApplyError, Event, State};

use crate::entries::in_entries;

/// How often one loop may be refused within one round: more is a loop that does not settle.
pub(super) const MAX_REBUILDS: u32 = 8;
/// After so many refusals in a row a loop is made anew once more: nothing else may ever happen that wakes it.
const UNSETTLED_RETRY: Duration = Duration::from_secs(1);

/// One of the leader's loops.
pub trait LeaderLoop: Send {
    /// Takes what has changed. `state` is at least as new as `events`.
    fn handle(&mut self, state: &State, events: &[Event], now: Timestamp) -> Vec<Change>;
    /// When [`LeaderLoop::tick`] wants to be called, if nothing happens before.
    fn next_deadline(&self) -> Option<Timestamp>;
    /// Does what is due by `now`.
    fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change>;
    /// The nodes' data planes have applied something newer.
    fn acknowledged(&mut self, _state: &State, _now: Timestamp) -> Vec<Change> {
        Vec::new()
    }
}

/// Makes a loop of the current state.
pub struct Factory {
    pub name: &'static str,
    pub make: Make,
}

/// Makes a loop of a state.
pub type Make = Box<dyn Fn(&State, Timestamp) -> Box<dyn LeaderLoop> + Send + Sync>;

/// What the loops are told.
#[derive(Debug, Clone)]
pub enum Happened {
    /// The term has begun.
    Began,
    /// Entries were applied.
    Events(Vec<Event>),
    /// Nodes have applied something newer.
    Acknowledged,
    /// A deadline has passed.
    Due,
}

/// The loops of one term, in the order in which they answer.
pub struct Loops {
    factories: Arc<[Factory]>,
    running: Vec<Running>,
    happened: Happened,
    /// Whose turn is next.
    next: usize,
    /// What the one before it still has to write.
    writes: VecDeque<Vec<Change>>,
    n_refused: u32,
}

/// One loop in its current life.
struct Running {
    machine: Box<dyn LeaderLoop>,
    /// The machine's last answer was given up; then it is to be made anew.
    retry_at: Option<Timestamp>,
}

impl Loops {
    /// Makes every loop of `state`, one after the other. Nobody is asked before [`Loops::tell`].
    pub fn new(factories: Arc<[Factory]>, state: &State, now: Timestamp) -> Self {
        let machines: Vec<_> = factories.iter().map(|factory| (factory.make)(state, now)).collect();
        Self::of(factories, machines)
    }

    /// Loops that the factories have made of one state, in their order.
    pub fn of(factories: Arc<[Factory]>, machines: Vec<Box<dyn LeaderLoop>>) -> Self {
        let running: Vec<_> =
            machines.into_iter().map(|machine| Running { machine, retry_at: None }).collect();
        let next = running.len();
        Self { factories, running, happened: Happened::Began, next, writes: VecDeque::new(), n_refused: 0 }
    }

    /// When to tell [`Happened::Due`], if nothing happens before.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.running.iter().filter_map(Running::next_deadline).min()
    }

    /// A new round begins. Only after the one before has nothing more to write.
    pub fn tell(&mut self, happened: Happened) {
        debug_assert!(self.writes.is_empty(), "the round before is over");
        self.happened = happened;
        self.next = 0;
    }

    /// What is to be written next, of at most [`MAX_OBJECTS`](crate::entries::MAX_OBJECTS); after it was applied, the next one. `None`: the round is
    /// over.
    pub fn next_write(&mut self, state: &State, now: Timestamp) -> Option<Vec<Change>> {
        while self.writes.is_empty() {
            let running = self.running.get_mut(self.next)?;
            let answer = running.answer(&self.factories[self.next], &self.happened, state, now);
            self.writes = packed_in_entries(answer, state);
            self.next += 1;
            self.n_refused = 0;
        }
        self.writes.pop_front()
    }

    /// The name of the loop that gave the last write.
    pub fn writer(&self) -> &'static str {
        self.next.checked_sub(1).map_or("", |last| self.factories[last].name)
    }

    /// The last write was refused by `state`, and changed nothing.
    pub fn refused(&mut self, error: &ApplyError, state: &State, now: Timestamp) {
        let name = self.writer();
        let Some(last) = self.next.checked_sub(1) else { return };
        tracing::debug!(name, %error, "leader loop made anew");
        let answer = self.running[last].make_anew(&self.factories[last], state, now);
        self.n_refused += 1;
        if self.n_refused < MAX_REBUILDS {
            self.writes = packed_in_entries(answer, state);
            return;
        }
        tracing::warn!(name, "leader loop does not settle; it is tried again later");
        self.give_up(now);
    }

    /// The last write is more than the log takes: its loop stands still, and no other one.
    pub fn too_large(&mut self, now: Timestamp) {
        tracing::error!(
            name = self.writer(),
            "leader loop asks for more than an entry takes; it is tried again later"
        );
        self.give_up(now);
    }

    fn give_up(&mut self, now: Timestamp) {
        if let Some(last) = self.next.checked_sub(1) {
            self.running[last].retry_at = Some(now.after(UNSETTLED_RETRY));
        }
        self.writes.clear();
    }
}

impl Running {
    /// A machine that was given up has no say in it.
    fn next_deadline(&self) -> Option<Timestamp> {
        self.retry_at.or_else(|| self.machine.next_deadline())
    }

    fn answer(
        &mut self,
        factory: &Factory,
        happened: &Happened,
        state: &State,
        now: Timestamp,
    ) -> Vec<Change> {
        let is_due = self.next_deadline().is_some_and(|at| at <= now);
        match happened {
            Happened::Due if !is_due => Vec::new(),
            // It will be made of the state as it is then.
            _ if self.retry_at.is_some_and(|at| now < at) => Vec::new(),
            _ if self.retry_at.is_some() => self.make_anew(factory, state, now),
            Happened::Began | Happened::Due => self.machine.tick(state, now),
            Happened::Events(events) => self.machine.handle(state, events, now),
            Happened::Acknowledged => self.machine.acknowledged(state, now),
        }
    }

    /// A new machine's first answer. `state` holds whatever the old one was to be told.
    fn make_anew(&mut self, factory: &Factory, state: &State, now: Timestamp) -> Vec<Change> {
        self.retry_at = None;
        self.machine = (factory.make)(state, now);
        self.machine.tick(state, now)
    }
}

/// The latest of the stamps that the loops measure spans from. A new leader's clock goes on from there: its predecessor's may
/// have been ahead, and no delay is to last longer for that.
pub fn last_stamp(state: &State) -> Timestamp {
    state.tasks().iter().map(|task| task.meta.created_at).max().unwrap_or_default()
}

/// `changes` of a machine that saw `state`, in few words, as many to an entry as it takes.
pub fn packed_in_entries(changes: Vec<Change>, state: &State) -> VecDeque<Vec<Change>> {
    in_entries(pack(changes, |id| state.tasks().get(&id).map(|task| &**task)))
}
