//! Whose agents live: SWIM (Das, Gupta, Motivala: SWIM, 2002) with the additions of Lifeguard (Dadgar, Phillips, Currey:
//! Lifeguard, 2017): a node that is in trouble itself waits longer, a suspicion lasts the shorter the more nodes share it, and
//! who is suspected hears it with the next datagram.

mod probes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control_model::{NodeId, Timestamp};

use super::dice::Dice;
use super::message::{Body, Claim, Claimed, News};
use super::view::{AgentState, AgentView};
use probes::{Helping, Probes};

/// How long a suspicion lasts at least, when enough nodes share it: time enough for the word to get to the suspect and back
/// a few times.
const SUSPICION_MIN: Duration = Duration::from_millis(800);
/// What a suspicion that nobody shares lasts beyond that …
const SUSPICION_MORE: Duration = Duration::from_millis(2400);
/// … and what is left of it, in percent, when one, two and three others share it (Lifeguard, section IV-B).
const LEFT: [u32; 4] = [100, 50, 21, 0];
/// Worst health of the own node, as a factor of its patience.
const MAX_TROUBLE: u32 = 8;

/// The agents of the other members, and what this one says of itself.
#[derive(Debug)]
pub struct Agents {
    me: NodeId,
    incarnation: u64,
    /// 0 when all is well here (Lifeguard, section IV-A).
    trouble: u32,
    of: BTreeMap<NodeId, Agent>,
    probes: Probes,
}

#[derive(Debug, Default)]
struct Agent {
    incarnation: u64,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Alive,
    Suspect {
        since: Timestamp,
        by: BTreeSet<NodeId>,
    },
    Silent,
}

/// What is to be sent and told.
#[derive(Debug, Default)]
pub struct Out {
    pub bodies: Vec<(NodeId, Body)>,
    pub news: Vec<News>,
    /// Agents that are suspected from now on.
    pub suspected: Vec<NodeId>,
    /// Agents that live again.
    pub returned: Vec<NodeId>,
}

impl Agents {
    pub fn new(me: NodeId) -> Self {
        Self { me, incarnation: 0, trouble: 0, of: BTreeMap::new(), probes: Probes::default() }
    }

    /// The members that take part in gossip from now on.
    pub fn set_members(&mut self, members: &BTreeSet<NodeId>) {
        self.of.retain(|id, _| members.contains(id));
        for id in members {
            self.of.entry(*id).or_default();
        }
        self.probes.retain(members);
    }

    /// Those that are not silent.
    pub fn present(&self) -> impl Iterator<Item = NodeId> {
        self.of.iter().filter(|(_, agent)| !matches!(agent.state, State::Silent)).map(|(id, _)| *id)
    }

    /// Nothing is held against it.
    pub fn is_trusted(&self, node: NodeId) -> bool {
        self.of.get(&node).is_some_and(|agent| matches!(agent.state, State::Alive))
    }

    pub fn silent(&self) -> BTreeSet<NodeId> {
        self.of.iter().filter(|(_, agent)| matches!(agent.state, State::Silent)).map(|(id, _)| *id).collect()
    }

    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub fn trouble(&self) -> u32 {
        self.trouble
    }

    /// What is thought of one; `None` of a node that takes no part.
    pub fn view(&self, node: NodeId) -> Option<AgentView> {
        let agent = self.of.get(&node)?;
        let state = match &agent.state {
            State::Alive => AgentState::Alive,
            State::Suspect { by, .. } => AgentState::Suspect(by.clone()),
            State::Silent => AgentState::Silent,
        };
        Some(AgentView { incarnation: agent.incarnation, state })
    }

    /// What is thought of all, this node's own claim among it.
    pub fn claims(&self) -> Vec<(NodeId, Claim)> {
        let own = (self.me, self.own_claim());
        self.of.iter().map(|(id, agent)| (*id, agent.claim(self.me))).chain([own]).collect()
    }

    /// What the node itself has to hear, so that it can refute it.
    pub fn accusation(&self, node: NodeId) -> Option<News> {
        let agent = self.of.get(&node).filter(|agent| !matches!(agent.state, State::Alive))?;
        Some(News::Agent(node, agent.claim(self.me)))
    }

    /// Asks `node` whether it lives, unless that is being done. Who is silent is asked too: its answer comes with its word
    /// that it lives.
    pub fn ping(&mut self, node: NodeId, now: Timestamp, out: &mut Out) {
        let Some(agent) = self.of.get(&node) else { return };
        let is_silent = matches!(agent.state, State::Silent);
        out.bodies.extend(self.probes.ping(node, is_silent, self.trouble, now).map(|body| (node, body)));
    }

    /// Takes a datagram's body.
    pub fn take(&mut self, from: NodeId, body: Body, now: Timestamp, out: &mut Out) {
        match body {
            Body::Ping(number) => out.bodies.push((from, Body::Pong(number))),
            Body::Pong(number) | Body::Lives(number) => {
                if self.probes.answered(from, number, out) {
                    self.trouble = self.trouble.saturating_sub(1);
                }
            }
            Body::Ask(number, target) => {
                if self.of.contains_key(&target) {
                    out.bodies.push((target, self.probes.relay(from, number, now)));
                }
            }
            Body::Silent(number) => self.probes.refused(from, number),
            Body::News => {}
        }
    }

    /// Takes a claim; what is new of it is told on.
    pub fn claim(&mut self, node: NodeId, claim: Claim, now: Timestamp, out: &mut Out) {
        if node == self.me {
            return self.refute(claim, out);
        }
        let Some(agent) = self.of.get_mut(&node) else { return };
        let was_silent = matches!(agent.state, State::Silent);
        if !agent.take(claim, now) {
            return;
        }
        out.news.push(News::Agent(node, claim));
        match agent.state {
            State::Alive if was_silent => out.returned.push(node),
            State::Suspect { .. } => out.suspected.push(node),
            State::Alive | State::Silent => {}
        }
    }

    fn refute(&mut self, claim: Claim, out: &mut Out) {
        let is_false = claim.state != Claimed::Alive && claim.incarnation >= self.incarnation;
        if is_false {
            self.worsen(1);
        }
        if is_false || claim.incarnation > self.incarnation {
            self.incarnation = claim.incarnation.saturating_add(1);
            out.news.push(News::Agent(self.me, self.own_claim()));
        }
    }

    fn own_claim(&self) -> Claim {
        Claim { incarnation: self.incarnation, state: Claimed::Alive }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Timestamp, dice: &mut Dice, out: &mut Out) {
        let present: Vec<NodeId> = self.present().collect();
        let helping = Helping { present: &present, trouble: self.trouble, dice };
        let due = self.probes.tick(now, helping, out);
        self.worsen(due.n_helpers_silent);
        for node in due.unanswered {
            self.worsen(1);
            let incarnation = self.of.get(&node).map_or(0, |agent| agent.incarnation);
            self.claim(node, Claim { incarnation, state: Claimed::Suspect(self.me) }, now, out);
        }
        let n_others = self.of.len();
        let ended = |agent: &Agent| agent.suspicion_end(n_others).is_some_and(|end| end <= now);
        for (node, agent) in self.of.iter_mut().filter(|(_, agent)| ended(agent)) {
            agent.state = State::Silent;
            out.news.push(News::Agent(*node, agent.claim(self.me)));
        }
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        let n_others = self.of.len();
        let suspicions = self.of.values().filter_map(|agent| agent.suspicion_end(n_others));
        suspicions.chain(self.probes.next_deadline()).min()
    }

    /// This node stood still for `gap`: nobody was heard in that time, and nobody could refute.
    pub fn forgive(&mut self, gap: Duration, now: Timestamp) {
        self.worsen(1);
        self.probes.forgive();
        for agent in self.of.values_mut() {
            if let State::Suspect { since, .. } = &mut agent.state {
                *since = since.after(gap).min(now);
            }
        }
    }

    fn worsen(&mut self, by: u32) {
        self.trouble = (self.trouble + by).min(MAX_TROUBLE);
    }
}

impl Agent {
    fn claim(&self, me: NodeId) -> Claim {
        let state = match &self.state {
            State::Alive => Claimed::Alive,
            State::Suspect { by, .. } => Claimed::Suspect(by.first().copied().unwrap_or(me)),
            State::Silent => Claimed::Silent,
        };
        Claim { incarnation: self.incarnation, state }
    }

    /// True if the claim is new. A later incarnation's claim counts for more; of one incarnation, the worse (SWIM, section
    /// 4.2).
    fn take(&mut self, claim: Claim, now: Timestamp) -> bool {
        let is_later = claim.incarnation > self.incarnation;
        let is_older = claim.incarnation < self.incarnation;
        let state = match (claim.state, &mut self.state) {
            _ if is_older => return false,
            (Claimed::Suspect(by), State::Suspect { by: known, .. }) if !is_later => {
                return known.len() < LEFT.len() && known.insert(by);
            }
            (Claimed::Suspect(_) | Claimed::Silent, State::Silent) | (Claimed::Alive, _) if !is_later => {
                return false;
            }
            (Claimed::Alive, _) => State::Alive,
            (Claimed::Suspect(by), _) => State::Suspect { since: now, by: [by].into() },
            (Claimed::Silent, _) => State::Silent,
        };
        (self.incarnation, self.state) = (claim.incarnation, state);
        true
    }

    /// When the suspicion becomes certainty, of a node with `n_others` other members besides.
    fn suspicion_end(&self, n_others: usize) -> Option<Timestamp> {
        let State::Suspect { since, by } = &self.state else { return None };
        // Where there are fewer than three who could share it, fewer are enough.
        let n_could_share = n_others.saturating_sub(1).min(LEFT.len() - 1);
        let shared = by.len().saturating_sub(1) + (LEFT.len() - 1 - n_could_share);
        let left = LEFT.get(shared).copied().unwrap_or(0);
        Some(since.after(SUSPICION_MIN + SUSPICION_MORE * left / 100))
    }
}

#[cfg(test)]
mod tests;
