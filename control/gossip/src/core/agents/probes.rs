//! Questions that are out: a node is asked itself, then by others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control_model::{NodeId, Timestamp};

use super::Out;
use crate::core::dice::Dice;
use crate::core::message::Body;

/// A node in this network answers sooner, also under load.
const PONG_WITHIN: Duration = Duration::from_millis(150);
/// So does one that is asked through others.
const HELP_WITHIN: Duration = Duration::from_millis(300);
/// Nodes that are asked to ask (SWIM, section 3.1).
const N_HELPERS: usize = 3;
/// Questions of others that are under way here. A node asks three others a question per missing answer.
const MAX_RELAYS: usize = 256;

/// All that are out.
#[derive(Debug, Default)]
pub(super) struct Probes {
    next_number: u64,
    of: BTreeMap<u64, Probe>,
    /// Asked for others, by the number of this node's ping.
    relays: BTreeMap<u64, Relay>,
}

#[derive(Debug)]
struct Probe {
    target: NodeId,
    due: Timestamp,
    /// Others who were asked to ask, and have said nothing yet; `None` while none were.
    helpers: Option<BTreeSet<NodeId>>,
}

#[derive(Debug)]
struct Relay {
    asker: NodeId,
    number: u64,
    due: Timestamp,
}

/// Who may be asked for help, and how patiently.
pub(super) struct Helping<'a> {
    pub present: &'a [NodeId],
    pub trouble: u32,
    pub dice: &'a mut Dice,
}

/// What a tick has found.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub unanswered: Vec<NodeId>,
    /// Helpers that have not even said that they got no answer: the own node may be the one that isn't heard.
    pub n_helpers_silent: u32,
}

impl Probes {
    /// The ping to send; `None` if one is out. That of a silent node is not followed up.
    pub fn ping(&mut self, target: NodeId, is_silent: bool, trouble: u32, now: Timestamp) -> Option<Body> {
        if self.of.values().any(|probe| probe.target == target) {
            return None;
        }
        let number = self.number();
        if !is_silent {
            let due = now.after(PONG_WITHIN * (1 + trouble));
            self.of.insert(number, Probe { target, due, helpers: None });
        }
        Some(Body::Ping(number))
    }

    /// The ping that answers another node's question.
    pub fn relay(&mut self, asker: NodeId, number: u64, now: Timestamp) -> Body {
        let own = self.number();
        if self.relays.len() < MAX_RELAYS {
            self.relays.insert(own, Relay { asker, number, due: now.after(PONG_WITHIN) });
        }
        Body::Ping(own)
    }

    /// True if it answers a question of this node's own.
    pub fn answered(&mut self, from: NodeId, number: u64, out: &mut Out) -> bool {
        if let Some(Relay { asker, number, .. }) = self.relays.remove(&number) {
            out.bodies.push((asker, Body::Lives(number)));
            return false;
        }
        let is_of = |probe: &Probe| {
            probe.target == from || probe.helpers.as_ref().is_some_and(|helpers| helpers.contains(&from))
        };
        if !self.of.get(&number).is_some_and(is_of) {
            return false;
        }
        self.of.remove(&number);
        true
    }

    /// A helper has no answer either.
    pub fn refused(&mut self, from: NodeId, number: u64) {
        if let Some(helpers) = self.of.get_mut(&number).and_then(|probe| probe.helpers.as_mut()) {
            helpers.remove(&from);
        }
    }

    /// Asks others where an answer is missing; tells of those that nobody has.
    pub fn tick(&mut self, now: Timestamp, helping: Helping<'_>, out: &mut Out) -> Due {
        let Helping { present, trouble, dice } = helping;
        let mut due = Due::default();
        for (_, relay) in self.relays.extract_if(.., |_, relay| relay.due <= now) {
            out.bodies.push((relay.asker, Body::Silent(relay.number)));
        }
        let numbers: Vec<u64> =
            self.of.iter().filter(|(_, probe)| probe.due <= now).map(|(number, _)| *number).collect();
        for number in numbers {
            let Some(probe) = self.of.get_mut(&number) else { continue };
            if let Some(helpers) = &probe.helpers {
                due.n_helpers_silent += u32::try_from(helpers.len()).unwrap_or_default();
                due.unanswered.push(probe.target);
                self.of.remove(&number);
                continue;
            }
            let others = present.iter().filter(|id| **id != probe.target).copied().collect();
            let helpers = dice.choose(others, N_HELPERS);
            out.bodies.extend(helpers.iter().map(|helper| (*helper, Body::Ask(number, probe.target))));
            probe.helpers = Some(helpers.into_iter().collect());
            probe.due = now.after(HELP_WITHIN * (1 + trouble));
        }
        due
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        let relays = self.relays.values().map(|relay| relay.due);
        self.of.values().map(|probe| probe.due).chain(relays).min()
    }

    /// Nothing that is out counts.
    pub fn forgive(&mut self) {
        self.of.clear();
        self.relays.clear();
    }

    pub fn retain(&mut self, members: &BTreeSet<NodeId>) {
        self.of.retain(|_, probe| members.contains(&probe.target));
        self.relays.retain(|_, relay| members.contains(&relay.asker));
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}
