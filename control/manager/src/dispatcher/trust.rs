//! How far a node is believed. Its certificate says who it is; what it says and how often is checked, and what is refused is
//! counted: a worker that lies or floods harms nobody, and is seen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use control_model::{NodeId, Timestamp};
use tonic::{Code, Status};

/// So many at once, and then one per `period`: the generic cell rate algorithm (ITU-T I.371).
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    period: Duration,
    burst: u32,
}

/// Statuses of tasks: more at once than a node has tasks with all their states.
pub const STATUSES: Rate = Rate { period: Duration::from_millis(1), burst: 50_000 };
/// Sessions, of which each may write a description: an agent that finds no leader tries again each second or less often.
pub const SESSIONS: Rate = Rate { period: Duration::from_millis(500), burst: 60 };
/// Certificates, of which each is a signature: a node renews one once in its life, at a rotation and when its role changes.
pub const RENEWALS: Rate = Rate { period: Duration::from_secs(10), burst: 30 };
/// Join tokens of this cluster that this replica does not know, by anybody: for each another manager is asked.
pub const GUESSES: Rate = Rate { period: Duration::from_millis(100), burst: 50 };

/// Heartbeats, of which each may wake the leader's loops: agents send no more than 50 a second, and mostly one.
pub const HEARTBEATS: Rate = Rate { period: Duration::from_millis(10), burst: 500 };

/// Places of containers that no service made, of which each is a write.
pub const ATTACHMENTS: Rate = Rate { period: Duration::from_millis(50), burst: 200 };

impl Rate {
    /// May there be `n` more `now`? `due` is when all that was let through would have come at an even pace.
    fn admits(self, due: &mut Timestamp, n: usize, now: Timestamp) -> bool {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        let next = (*due).max(now).after(self.period.saturating_mul(n));
        let is_within = next.since(now) <= self.period.saturating_mul(self.burst);
        if is_within {
            *due = next;
        }
        is_within
    }
}

/// Why a node was refused something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It spoke for what is not its own.
    Foreign,
    /// What it said has no meaning, or no bounds.
    Malformed,
    /// It spoke too often.
    Flood,
}

impl Lie {
    pub const ALL: [Self; 3] = [Self::Foreign, Self::Malformed, Self::Flood];

    /// Its word in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Malformed => "malformed",
            Self::Flood => "flood",
        }
    }

    /// Other errors are nobody's fault.
    fn of(status: &Status) -> Option<Self> {
        match status.code() {
            Code::PermissionDenied => Some(Self::Foreign),
            Code::InvalidArgument => Some(Self::Malformed),
            Code::ResourceExhausted => Some(Self::Flood),
            _ => None,
        }
    }
}

/// What each node has used of its rates, and how often this manager refused any.
#[derive(Debug, Default)]
pub struct Trust {
    used: Mutex<BTreeMap<NodeId, Used>>,
    guesses: Mutex<Timestamp>,
    n_refused: [AtomicU64; Lie::ALL.len()],
}

#[derive(Debug, Clone, Copy, Default)]
struct Used {
    statuses: Timestamp,
    sessions: Timestamp,
    heartbeats: Timestamp,
    assignments: Timestamp,
    renewals: Timestamp,
    attachments: Timestamp,
}

impl Trust {
    /// `node` reports so many statuses.
    pub fn statuses(&self, node: NodeId, n: usize, now: Timestamp) -> Result<(), Status> {
        let is_within = self.with(node, |used| STATUSES.admits(&mut used.statuses, n, now));
        is_within.then_some(()).ok_or_else(|| Status::resource_exhausted("too many statuses: report fewer"))
    }

    /// `node` asks for a session.
    pub fn session(&self, node: NodeId, now: Timestamp) -> Result<(), Status> {
        let is_within = self.with(node, |used| SESSIONS.admits(&mut used.sessions, 1, now));
        is_within.then_some(()).ok_or_else(|| Status::resource_exhausted("too many sessions: ask later"))
    }

    /// `node` asks for a place in a network, or gives one up.
    pub fn attachment(&self, node: NodeId, now: Timestamp) -> Result<(), Status> {
        let is_within = self.with(node, |used| ATTACHMENTS.admits(&mut used.attachments, 1, now));
        is_within.then_some(()).ok_or_else(|| Status::resource_exhausted("too many attachments: ask later"))
    }

    /// `node` says that it lives.
    pub fn heartbeat(&self, node: NodeId, now: Timestamp) -> Result<(), Status> {
        let is_within = self.with(node, |used| HEARTBEATS.admits(&mut used.heartbeats, 1, now));
        is_within.then_some(()).ok_or_else(|| Status::resource_exhausted("too many heartbeats: beat slower"))
    }

    /// `node` asks for its assignments, which begin with all of them: once in a session.
    pub fn assignments(&self, node: NodeId, now: Timestamp) -> Result<(), Status> {
        let is_within = self.with(node, |used| SESSIONS.admits(&mut used.assignments, 1, now));
        is_within.then_some(()).ok_or_else(|| Status::resource_exhausted("too many assignments: ask later"))
    }

    /// `node` asks for another certificate.
    pub fn renewal(&self, node: NodeId, now: Timestamp) -> Result<(), Status> {
        let is_within = self.with(node, |used| RENEWALS.admits(&mut used.renewals, 1, now));
        is_within.then_some(()).ok_or_else(|| Status::resource_exhausted("too many certificates: ask later"))
    }

    /// Somebody has a join token that may be one by now, or a guess.
    pub fn guess(&self, now: Timestamp) -> Result<(), Status> {
        let is_within =
            GUESSES.admits(&mut self.guesses.lock().unwrap_or_else(PoisonError::into_inner), 1, now);
        is_within
            .then_some(())
            .ok_or_else(|| Status::resource_exhausted("too many unknown join tokens: try again"))
    }

    /// Forgets nodes that are gone. Looks only when more are remembered than the `n_nodes` that there are.
    pub fn retain(&self, n_nodes: usize, keep: impl Fn(NodeId) -> bool) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() > n_nodes {
            used.retain(|node, _| keep(*node));
        }
    }

    /// Counts what `node` was refused, if it was.
    pub fn note<T>(&self, node: NodeId, reply: Result<T, Status>) -> Result<T, Status> {
        if let Err(status) = &reply
            && let Some(lie) = Lie::of(status)
        {
            self.n_refused[lie as usize].fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%node, reason = lie.word(), error = status.message(), "a node was refused");
        }
        reply
    }

    /// How often nodes were refused, by reason.
    pub fn n_refused(&self) -> [(Lie, u64); Lie::ALL.len()] {
        Lie::ALL.map(|lie| (lie, self.n_refused[lie as usize].load(Ordering::Relaxed)))
    }

    fn with<T>(&self, node: NodeId, look: impl FnOnce(&mut Used) -> T) -> T {
        look(self.used.lock().unwrap_or_else(PoisonError::into_inner).entry(node).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_the_even_pace() {
        let rate = Rate { period: Duration::from_millis(10), burst: 3 };
        let at = |ms| Timestamp(0).after(Duration::from_millis(ms));
        let mut due = Timestamp(0);
        let mut admits = |n, ms| rate.admits(&mut due, n, at(ms));
        assert!(admits(1, 1000) && admits(2, 1000));
        assert!(!admits(1, 1000) && !admits(1, 1009));
        assert!(admits(1, 1010) && !admits(1, 1010));
        assert!(!admits(4, 9000), "more than a burst never comes through");
        assert!(admits(3, 9000), "what was not used is not saved up");
        assert!(!admits(usize::MAX, 9000));
    }

    #[test]
    fn nodes_have_rates_of_their_own_and_refusals_are_counted() {
        let trust = Trust::default();
        let (one, other, now) = (NodeId::from_bits(1), NodeId::from_bits(2), Timestamp(1_000_000_000));
        for _ in 0..60 {
            trust.session(one, now).unwrap();
        }
        assert_eq!(trust.session(one, now).unwrap_err().code(), Code::ResourceExhausted);
        trust.session(other, now).unwrap();
        trust.statuses(one, 50_000, now).unwrap();
        trust.note(one, trust.statuses(one, 1, now)).unwrap_err();
        trust.note::<()>(other, Err(Status::permission_denied("not its own"))).unwrap_err();
        trust.note::<()>(other, Err(Status::unavailable("no leader"))).unwrap_err();
        trust.note(other, Ok(())).unwrap();
        assert_eq!(trust.n_refused().map(|(_, n)| n), [1, 0, 1]);
        trust.retain(1, |node| node == other);
        trust.session(one, now).unwrap();
    }
}
