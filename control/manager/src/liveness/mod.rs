//! Two kinds of life: agents heartbeat, data paths answer probes. Here is what follows from them.
//!
//! [`Liveness`] is pure: the leader feeds it with heartbeats and probes and writes what [`Liveness::tick`] returns.
//! [`table`] holds what sessions say, [`rounds`] says when whom to probe, [`prober`] sends the probes, [`watcher`] is
//! the leader's part at work, `leaders` who has judged before, [`reporter`] a follower's.

mod leaders;
pub mod prober;
pub mod reporter;
pub mod rounds;
pub mod table;
pub mod watcher;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use control_model::gossip::Opinion;
use control_model::object::{NodeState, NodeStatus};
use control_model::spec::ClusterSpec;
use control_model::{Change, Generation, Node, NodeId, Timestamp};
use control_store::State;

use table::Heard;

/// How often agents are told to beat, whatever the cluster's period: the silences below are measured by it, and find a dead
/// node long before a grace of three periods ends.
pub const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
const _: () = assert!(HEARTBEAT_PERIOD.as_nanos() <= ClusterSpec::MIN_HEARTBEAT_PERIOD.as_nanos());
/// Between two probes of one node.
pub const PROBE_PERIOD: Duration = Duration::from_millis(300);
/// Probes in a row without an answer that make a data path dead: 1.5 s.
pub const PROBE_MISSES: u32 = 5;
/// Heartbeat periods (of the cluster's spec) without a heartbeat after which a node shows as `Down`.
pub const GRACE_PERIODS: u32 = 3;
/// With the data path dead as well, so much silence of the agent is enough: two heartbeats and a half.
pub const SILENCE_BESIDE_DEAD_DATA_PATH: Duration = Duration::from_millis(2500);
/// Who has said nothing for so long has lost its tunnel's end to another one that has come there.
pub const SILENCE_OF_DISPLACED: Duration = SILENCE_BESIDE_DEAD_DATA_PATH;
/// When gossip has found both lives of a node to be at an end, so much silence confirms it: no heartbeat came when one was due.
pub const SILENCE_BESIDE_GOSSIP: Duration = Duration::from_millis(1100);
/// Probes in a row without an answer that are no accident, though they condemn nobody yet.
const FALLING_SILENT: u32 = 2;
/// So many must fall silent at once before the leader doubts its own data path. Of one alone it can't know whose fault
/// it is: in a cluster of two the other one is condemned.
const MIN_SILENT_FOR_DOUBT: usize = 2;
/// A doubt that ends sooner is nobody's business: without it nobody would have been condemned yet.
const DOUBT_SHOWS_AFTER: Duration = Duration::from_millis(900);
/// How long the data path of a node that has come is given to answer, from when its agent says that its data plane is set up: as
/// long as it takes for a data path to be found dead.
const PATH_GRACE: Duration = Duration::from_millis(1500);
/// How long a data plane is given to be set up, from when its agent is heard.
const SET_UP_GRACE: Duration = Duration::from_secs(10);
/// A gap between two ticks longer than this means that this process stood still, and nobody else.
const STALL: Duration = Duration::from_secs(1);

/// The leader's picture of who lives.
#[derive(Debug, Clone)]
pub struct Liveness {
    /// The judge's own node, which is not probed.
    me: NodeId,
    nodes: BTreeMap<NodeId, Life>,
    began: Timestamp,
    last_tick: Timestamp,
    doubt_since: Option<Timestamp>,
    /// Nodes of which neither agent nor data path answers, as this node's gossip finds.
    gone: BTreeSet<NodeId>,
}

#[derive(Debug, Clone, Default)]
struct Life {
    /// Start of the agent's silence: its last heartbeat, or when this leader began.
    silent_since: Timestamp,
    /// Since when the agent has been heard by this leader, without a long silence.
    heard_since: Option<Timestamp>,
    /// Since when this leader knows that the node's data plane has been set up in this life of it.
    set_up_since: Option<Timestamp>,
    /// What the node's data plane had applied in the life before.
    applied_before: Generation,
    addr: Option<IpAddr>,
    /// This leader probes it.
    probed: bool,
    /// The cluster's state says that its data path lives, as of the last tick. Who counts as dead is no witness.
    counts_as_alive: bool,
    /// When the first probe went out that has no answer yet.
    unanswered_since: Option<Timestamp>,
    /// When the last probe went out.
    asked_at: Timestamp,
    /// When the last probe went out that this leader has an answer to.
    answered: Option<Timestamp>,
    /// Probes in a row without an answer.
    misses: u32,
    /// Those of them that can't be the judge's fault ([`Liveness::may_be_own_fault`]).
    witnessed_misses: u32,
}

impl Liveness {
    /// A new leader's: it has heard nobody and gives everyone a whole grace.
    pub fn new(me: NodeId, now: Timestamp) -> Self {
        Self {
            me,
            nodes: BTreeMap::new(),
            began: now,
            last_tick: now,
            doubt_since: None,
            gone: BTreeSet::new(),
        }
    }

    /// What sessions say. What was heard before this leader began is no sign of life.
    pub fn hear(&mut self, agents: BTreeMap<NodeId, Heard>, now: Timestamp) {
        for (node, heard) in agents {
            if heard.at >= self.began && self.heartbeat(node, heard.addr, heard.at) {
                // It may have been rebooted, and nothing of what it had then is in its kernel.
                let life = self.life(node, now);
                (life.set_up_since, life.applied_before) = (None, heard.applied);
            }
            if heard.applied > self.life(node, now).applied_before {
                self.data_plane_set_up(node, now);
            }
        }
    }

    /// The node's agent was heard at `at`; true if it was heard before, and had been silent for long.
    fn heartbeat(&mut self, node: NodeId, addr: Option<IpAddr>, at: Timestamp) -> bool {
        let life = self.life(node, at);
        let has_come = at.since(life.silent_since) > SILENCE_BESIDE_DEAD_DATA_PATH;
        let is_back = has_come && life.heard_since.is_some();
        life.heard_since = life.heard_since.filter(|_| !has_come).or(Some(at));
        life.silent_since = life.silent_since.max(at);
        life.addr = addr.or(life.addr);
        is_back
    }

    /// The node's agent has said that its data plane holds what it was told to.
    fn data_plane_set_up(&mut self, node: NodeId, now: Timestamp) {
        self.life(node, now).set_up_since.get_or_insert(now);
    }

    /// What this node's gossip thinks from now on. It is believed where the leader's own heartbeats and probes agree.
    pub fn gossip(&mut self, opinion: &Opinion) {
        self.gone = opinion.silent_paths.intersection(&opinion.silent_agents).copied().collect();
    }

    /// A probe goes out to the node. One that is still out has missed. True if that was one too many.
    pub fn probe_sent(&mut self, node: NodeId, now: Timestamp) -> bool {
        let life = self.life(node, now);
        let asked_before = std::mem::replace(&mut life.asked_at, now);
        life.probed = true;
        if life.unanswered_since.is_none() {
            life.unanswered_since = Some(now);
            return false;
        }
        let is_witnessed = !self.may_be_own_fault(node, asked_before, now);
        let life = self.life(node, now);
        life.misses = life.misses.saturating_add(1);
        life.witnessed_misses = life.witnessed_misses.saturating_add(is_witnessed.into());
        life.misses == PROBE_MISSES || (is_witnessed && life.witnessed_misses == PROBE_MISSES)
    }

    /// The node's data path answered its last probe, or is known to work without being asked.
    pub fn probe_answered(&mut self, node: NodeId, now: Timestamp) {
        let life = self.life(node, now);
        life.unanswered_since = None;
        life.misses = 0;
        life.witnessed_misses = 0;
        life.answered = Some(life.asked_at);
    }

    /// Since when the leader takes it that its own data path is broken, and not those of the nodes that it does not
    /// hear.
    pub fn doubts_itself_since(&self) -> Option<Timestamp> {
        self.doubt_since.filter(|since| self.last_tick.since(*since) >= DOUBT_SHOWS_AFTER)
    }

    /// When [`Liveness::tick`] is to be called although no probe is due: what else it decides may wait for that.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let silenced = self.nodes.values().filter(|life| life.misses >= PROBE_MISSES);
        let ends =
            silenced.map(|l| l.silent_since.after(SILENCE_BESIDE_DEAD_DATA_PATH + Duration::from_nanos(1)));
        ends.filter(|end| *end > self.last_tick).min()
    }

    /// What has to be written now.
    pub fn tick(&mut self, state: &State, now: Timestamp) -> Vec<Change> {
        self.forgive_own_stall(now);
        self.nodes.retain(|id, _| state.nodes().get(id).is_some());
        let Some(cluster) = state.cluster() else { return Vec::new() };
        // A cluster of an earlier version may have a shorter one.
        let period = cluster.spec.heartbeat_period.max(ClusterSpec::MIN_HEARTBEAT_PERIOD);
        let grace = period.saturating_mul(GRACE_PERIODS);
        for node in state.nodes().iter() {
            self.life(node.id, now).counts_as_alive = node.status.data_path_alive;
        }
        self.doubt_itself(now);
        let displaced = displaced(state);
        let mut changes = Vec::new();
        for node in state.nodes().iter() {
            let (is_gone, is_displaced) = (self.gone.contains(&node.id), displaced.contains(&node.id));
            let is_mine = node.id == self.me;
            let life = self.life(node.id, now);
            let may_be_ready = is_mine || life.is_path_judged(now) || node.status.state == NodeState::Ready;
            let status = life.judge(node, grace, (is_gone, is_displaced, may_be_ready), now);
            if status != node.status {
                changes.push(Change::NodeStatus { id: node.id, status });
            }
        }
        changes
    }

    /// May the judge have lost the probe that it sent to `node` at `since`? Yes if most data paths, that of `node` among
    /// them, have answered none that went out since then, though their agents are heard: what they have in common
    /// is the judge. So its own outage counts against a node only where others answered before the next probe of
    /// that node: an outage counts once at most, and not at all for those who were asked in the same burst.
    fn may_be_own_fault(&self, node: NodeId, since: Timestamp, now: Timestamp) -> bool {
        self.are_most(|id, life| {
            let is_silent = id == node || life.answered.is_none_or(|answered| answered < since);
            is_silent && life.is_agent_heard(now)
        })
    }

    /// Has most of what is probed fallen silent by the judge's fault? For its log, and for who shall lead.
    fn doubt_itself(&mut self, now: Timestamp) {
        if self.are_most(|_, life| life.misses >= FALLING_SILENT && life.is_agent_heard(now)) {
            self.doubt_since.get_or_insert(now);
        } else {
            self.doubt_since = None;
        }
    }

    /// Does it hold for most witnesses, two at least and more than half? Those that count as dead already are none.
    fn are_most(&self, is_so: impl Fn(NodeId, &Life) -> bool) -> bool {
        let witnesses = self.nodes.iter().filter(|(_, life)| life.probed && life.counts_as_alive);
        let (n_so, n) =
            witnesses.fold((0, 0), |(n_so, n), (id, life)| (n_so + usize::from(is_so(*id, life)), n + 1));
        n_so >= MIN_SILENT_FOR_DOUBT && 2 * n_so > n
    }

    fn life(&mut self, node: NodeId, now: Timestamp) -> &mut Life {
        self.nodes.entry(node).or_insert_with(|| Life { silent_since: now, ..Life::default() })
    }

    fn forgive_own_stall(&mut self, now: Timestamp) {
        let gap = now.since(self.last_tick);
        self.last_tick = now;
        if gap > STALL {
            for life in self.nodes.values_mut() {
                life.silent_since = life.silent_since.after(gap).min(now);
                life.unanswered_since = life.unanswered_since.map(|since| since.after(gap).min(now));
            }
        }
    }
}

impl Life {
    fn is_agent_heard(&self, now: Timestamp) -> bool {
        now.since(self.silent_since) <= SILENCE_BESIDE_DEAD_DATA_PATH
    }

    /// A node that has just come is ready when it is known whether its data path answers: until then it would seem to be one on
    /// which no task can be reached.
    fn is_path_judged(&self, now: Timestamp) -> bool {
        let answers = self.answered.is_some() && self.misses == 0;
        answers || self.heard_since.is_some_and(|heard| self.silence_is_an_answer(heard, now))
    }

    /// Would the data path of a node that is heard since `heard` have answered by `now`?
    fn silence_is_an_answer(&self, heard: Timestamp, now: Timestamp) -> bool {
        let set_up = self.set_up_since.map(|set_up| set_up.max(heard).after(PATH_GRACE));
        let latest = heard.after(SET_UP_GRACE);
        now >= set_up.map_or(latest, |set_up| set_up.min(latest))
    }

    /// What a leader whose own data path may be at fault still believes of a silent one: it lives while the agent is
    /// heard. Agent and data path that fell silent together are lost as ever. If the agent fell silent before or
    /// after (its daemon is restarted), both have the whole grace.
    fn may_live(&self, grace: Duration, now: Timestamp) -> bool {
        let Some(unanswered_since) = self.unanswered_since else { return true };
        let fell_together = self.silent_since <= unanswered_since.after(PROBE_PERIOD)
            && unanswered_since.since(self.silent_since) <= SILENCE_BESIDE_DEAD_DATA_PATH;
        if fell_together {
            self.is_agent_heard(now)
        } else {
            now.since(self.silent_since.max(unanswered_since)) <= grace
        }
    }

    /// `is_gone` as gossip has it, `is_displaced` as in [`displaced`]: while its agent is heard, nobody else's word says that
    /// its tunnel's end is theirs.
    fn judge(
        &self,
        node: &Node,
        grace: Duration,
        (is_gone, is_displaced, may_be_ready): (bool, bool, bool),
        now: Timestamp,
    ) -> NodeStatus {
        let silence = now.since(self.silent_since);
        let is_gone = is_gone && self.misses >= FALLING_SILENT && silence > SILENCE_BESIDE_GOSSIP;
        let is_displaced = is_displaced && silence > SILENCE_OF_DISPLACED;
        let is_spared = node.status.data_path_alive && self.may_live(grace, now);
        let dead_path = is_gone
            || is_displaced
            || self.witnessed_misses >= PROBE_MISSES
            || (self.misses >= PROBE_MISSES && !is_spared);
        let data_path_alive = !dead_path && (self.answered.is_some() || node.status.data_path_alive);
        let (state, message) = if silence > grace {
            (NodeState::Down, "heartbeat failure")
        } else if is_gone || (dead_path && silence > SILENCE_BESIDE_DEAD_DATA_PATH) {
            (NodeState::Down, "heartbeat failure and no answer from the data path")
        } else if self.heard_since.is_some() && may_be_ready {
            (NodeState::Ready, "")
        } else {
            (node.status.state, node.status.message.as_str())
        };
        // A node that stays down keeps the reason that it was given first.
        let message = if state == node.status.state { node.status.message.as_str() } else { message };
        NodeStatus {
            state,
            message: message.to_owned(),
            addr: self.addr.or(node.status.addr),
            data_path_alive,
        }
    }
}

/// Nodes at whose tunnel's end another one has come since: a machine that left and joined anew, or took the place of a lost
/// one. Who answers there is that one, once they are silent.
fn displaced(state: &State) -> BTreeSet<NodeId> {
    let mut owners: HashMap<IpAddr, &Node> = HashMap::new();
    let mut displaced = BTreeSet::new();
    for node in state.nodes().iter() {
        let Some(addr) = node.description.data_path_addr else { continue };
        let owner = owners.entry(addr).or_insert(node);
        if owner.id != node.id {
            let is_later = node.addresses_since > owner.addresses_since;
            displaced.insert(if is_later { owner.id } else { node.id });
            if is_later {
                *owner = node;
            }
        }
    }
    displaced
}

#[cfg(test)]
mod tests;
