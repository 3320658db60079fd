//! What one node thinks of the others, and what it tells them. Pure: what has happened and the time come in, what is to be sent
//! goes out.
//!
//! [`agents`] says whose agents live, [`paths`] whose data paths, [`ended`] which tasks have ended, [`news`] what is told on,
//! [`message`] how.

mod agents;
mod dice;
mod ended;
pub mod message;
mod news;
mod paths;
#[cfg(test)]
mod tests;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_model::gossip::{Contact, Opinion, Said};
use control_model::{NodeId, TaskId, Timestamp};

use agents::{Agents, Out};
pub use dice::Dice;
use ended::Records;
use message::{Body, Ended, Frame, Message, News};
use news::Queue;
use paths::Paths;
use view::{Member, View};

/// Pieces of news in one datagram.
pub const MAX_NEWS: usize = 12;
/// Between two rounds of questions.
const ROUND: Duration = Duration::from_millis(200);
/// Nodes that are asked in each round: so each node is asked ten times a second on average, however many there are.
const PER_ROUND: usize = 2;
/// Between two tellings of news, and how many nodes they go to: a thousand nodes hear it in a quarter of a second.
const TELL: Duration = Duration::from_millis(50);
const TELL_TO: usize = 4;
/// Between two exchanges of all that is known with some node.
const EXCHANGE: Duration = Duration::from_secs(10);
/// A gap between two ticks longer than this means that this process stood still, and nobody else.
const STALL: Duration = Duration::from_millis(400);
/// A node that knows no other has nothing to do.
const ALONE: Duration = Duration::from_hours(1);
/// Records in one frame of an exchange: far below its largest size.
const MAX_FRAME_RECORDS: usize = 8192;
/// So many must fall silent at once before a node doubts itself: of one alone it can't know whose fault it is.
const MIN_FOR_DOUBT: usize = 2;
/// A doubt that was heard already is a reason to look again after this.
const OLD_LOOK: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Send(NodeId, Message),
    /// Probe the node's data path.
    Look(NodeId, SocketAddr),
    /// Exchange all that is known, by TCP.
    Exchange(NodeId),
}

/// One node's gossip.
#[derive(Debug)]
pub struct Core {
    me: NodeId,
    contacts: Arc<BTreeMap<NodeId, Contact>>,
    agents: Agents,
    paths: Paths,
    records: Records,
    own_ended: BTreeSet<TaskId>,
    needed: BTreeSet<TaskId>,
    /// The highest number of a doubt of each node.
    doubts: BTreeMap<NodeId, u64>,
    news: Queue,
    dice: Dice,
    /// Whom to ask in this turn, last first.
    order: Vec<NodeId>,
    last_tick: Timestamp,
    next_round: Timestamp,
    next_telling: Timestamp,
    next_exchange: Timestamp,
    outputs: Vec<Output>,
}

impl Core {
    /// A node that knows nobody yet. `life` is higher than that of its last daemon, if possible: it is raised when others know
    /// better. `seed` makes its choices.
    pub fn new(me: NodeId, life: u64, seed: u64, now: Timestamp) -> Self {
        let mut records = Records::default();
        records.begin(me, life);
        Self {
            me,
            contacts: Arc::default(),
            agents: Agents::new(me),
            paths: Paths::default(),
            records,
            own_ended: BTreeSet::new(),
            needed: BTreeSet::new(),
            doubts: BTreeMap::new(),
            news: Queue::default(),
            dice: Dice::new(seed),
            order: Vec::new(),
            last_tick: now,
            next_round: now,
            next_telling: now,
            next_exchange: now,
            outputs: Vec::new(),
        }
    }

    /// What the agent says.
    pub fn said(&mut self, said: &Said, now: Timestamp) {
        if self.contacts != said.contacts {
            self.contacts = said.contacts.clone();
            let all: BTreeSet<NodeId> = self.contacts.keys().copied().collect();
            self.paths.set_members(&all);
            self.agents.set_members(&self.members());
            self.doubts.retain(|id, _| all.contains(id));
            self.order.clear();
        }
        self.needed.clone_from(&said.heeded);
        self.needed.extend(&said.ended);
        self.own_ended.clone_from(&said.ended);
        self.say_ended(now);
    }

    /// The other members that take part in gossip.
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.contacts.iter().filter(|(_, contact)| contact.gossip.is_some()).map(|(id, _)| *id).collect()
    }

    /// Takes a member's datagram.
    pub fn message(&mut self, from: NodeId, message: &Message, now: Timestamp) {
        if !self.contacts.contains_key(&from) {
            return;
        }
        // First: the answer tells on what it says.
        for news in &message.news {
            self.take_news(*news, now);
        }
        let mut out = Out::default();
        self.agents.take(from, message.body, now, &mut out);
        self.act(out, now);
        if self.paths.look_again(from, now) {
            self.output_look(from);
        }
    }

    /// A node's data path has answered a probe.
    pub fn path_answered(&mut self, node: NodeId) {
        self.paths.answered(node);
    }

    /// What this node tells in an exchange to one of whom it knows nothing yet.
    pub fn frame(&self) -> Frame {
        Frame { agents: self.agents.claims(), known: self.records.known(), ended: Vec::new() }
    }

    /// What this node tells to one that has said `theirs`: of too much, a first part.
    pub fn answer(&self, theirs: &Frame) -> Frame {
        let mut ended = self.records.beyond(&theirs.known);
        let mut known = self.records.known();
        if ended.len() > MAX_FRAME_RECORDS {
            ended.truncate(MAX_FRAME_RECORDS);
            // Whoever takes it is not to believe that it was all: records come by origin, as what is known does.
            let last = ended[MAX_FRAME_RECORDS - 1];
            known.retain(|known| known.origin <= last.origin);
            for known in known.iter_mut().filter(|known| known.origin == last.origin) {
                known.version = known.version.min(last.version);
            }
        }
        Frame { agents: self.agents.claims(), known, ended }
    }

    /// Takes what a member has told in an exchange. `is_whole` if it knew what this node lacks.
    pub fn take_frame(&mut self, frame: &Frame, is_whole: bool, now: Timestamp) {
        for (node, claim) in &frame.agents {
            self.take_news(News::Agent(*node, *claim), now);
        }
        for record in &frame.ended {
            self.take_news(News::Ended(*record), now);
        }
        for known in &frame.known {
            if known.origin == self.me {
                self.take_own_life(known.life, now);
            } else if is_whole && self.contacts.contains_key(&known.origin) {
                self.records.know(*known);
            }
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Timestamp) {
        let gap = now.since(self.last_tick);
        self.last_tick = now;
        if gap > STALL {
            self.agents.forgive(gap, now);
            self.paths.forgive(now);
        }
        let mut out = Out::default();
        self.agents.tick(now, &mut self.dice, &mut out);
        self.act(out, now);
        let found = self.paths.tick(now);
        for node in found.doubts {
            let number = self.doubts.get(&node).map_or(1, |known| known.saturating_add(1));
            self.take_news(News::Doubt(node, number), now);
        }
        for node in found.look {
            self.output_look(node);
        }
        if self.next_round <= now {
            self.next_round = now.after(ROUND);
            self.round(now);
        }
        if self.next_exchange <= now {
            self.next_exchange = now.after(EXCHANGE + EXCHANGE / 4 * self.dice.percent() / 100);
            let present = self.agents.present().collect();
            let with = self.dice.choose(present, 1);
            self.outputs.extend(with.into_iter().map(Output::Exchange));
            let (contacts, needed, me) = (&self.contacts, &self.needed, self.me);
            let is_member = |id| id == me || contacts.contains_key(&id);
            self.records.forget(is_member, |task| needed.contains(&task), now);
        }
        if self.next_telling <= now && !self.news.is_empty() {
            self.next_telling = now.after(TELL);
            self.tell();
        }
    }

    /// When [`Core::tick`] has something to do.
    pub fn next_deadline(&self) -> Timestamp {
        if self.contacts.is_empty() {
            return self.last_tick.after(ALONE);
        }
        let told = (!self.news.is_empty()).then_some(self.next_telling);
        let deadlines = [self.agents.next_deadline(), self.paths.next_deadline(), told];
        let next = deadlines.into_iter().flatten().chain([self.next_round, self.next_exchange]).min();
        next.unwrap_or(self.next_round)
    }

    /// What is to be done now.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// What this node thinks.
    pub fn opinion(&self) -> Opinion {
        Opinion {
            silent_paths: self.silent_paths(),
            silent_agents: self.agents.silent(),
            ended: self.records.tasks(self.me),
        }
    }

    /// What this node knows.
    pub fn view(&self, now: Timestamp) -> View {
        let silent = self.silent_paths();
        let members = self.contacts.iter().map(|(id, contact)| {
            let mut path = self.paths.view(*id, now);
            path.is_silent = silent.contains(id);
            Member { id: *id, contact: *contact, agent: self.agents.view(*id), path }
        });
        View {
            incarnation: self.agents.incarnation(),
            trouble: self.agents.trouble(),
            members: members.collect(),
            ended: self.records.tasks(self.me),
        }
    }

    /// The paths that don't answer. Where most fall silent whose agents are heard, what they have in common is this node: its
    /// probes may be lost and nothing else, and it goes on as it was.
    fn silent_paths(&self) -> BTreeSet<NodeId> {
        let silent = self.paths.silent();
        let n_heard = silent.iter().filter(|node| self.agents.is_trusted(**node)).count();
        if n_heard >= MIN_FOR_DOUBT && 2 * n_heard > self.contacts.len() {
            return silent.iter().filter(|node| !self.agents.is_trusted(**node)).copied().collect();
        }
        silent.clone()
    }

    /// Asks the next nodes of this turn: their agents and their data paths.
    fn round(&mut self, now: Timestamp) {
        let mut out = Out::default();
        for _ in 0..PER_ROUND.min(self.contacts.len()) {
            if self.order.is_empty() {
                self.order = self.contacts.keys().copied().collect();
                self.dice.shuffle(&mut self.order);
            }
            let Some(node) = self.order.pop() else { break };
            self.agents.ping(node, now, &mut out);
            if self.paths.look(node, now) {
                self.output_look(node);
            }
        }
        self.act(out, now);
    }

    fn tell(&mut self) {
        let present = self.agents.present().collect();
        let to = self.dice.choose(present, TELL_TO);
        for node in to {
            let news = self.news.take(self.contacts.len() + 1);
            if news.is_empty() {
                break;
            }
            self.outputs.push(Output::Send(node, Message { body: Body::News, news }));
        }
    }

    fn take_news(&mut self, news: News, now: Timestamp) {
        match news {
            News::Agent(node, claim) => {
                let mut out = Out::default();
                self.agents.claim(node, claim, now, &mut out);
                self.act(out, now);
            }
            News::Doubt(node, number) => self.take_doubt(node, number, now),
            News::Ended(record) if record.origin == self.me => self.take_own_record(record, now),
            News::Ended(record) => self.take_record(record, now),
        }
    }

    fn take_doubt(&mut self, node: NodeId, number: u64, now: Timestamp) {
        if !self.contacts.contains_key(&node) {
            return;
        }
        let is_new = self.doubts.get(&node).is_none_or(|known| number > *known);
        if is_new {
            self.doubts.insert(node, number);
            self.news.push(News::Doubt(node, number));
        }
        let is_old = |at: Timestamp| now.since(at) >= OLD_LOOK;
        if (is_new || self.paths.looked_at(node).is_none_or(is_old)) && self.paths.look(node, now) {
            self.output_look(node);
        }
    }

    fn take_record(&mut self, record: Ended, now: Timestamp) {
        if self.contacts.contains_key(&record.origin) && self.records.put(record, now) {
            self.news.push(News::Ended(record));
        }
    }

    /// One of this life that it has not said is somebody's lie: a new life takes it back everywhere.
    fn take_own_record(&mut self, record: Ended, now: Timestamp) {
        let is_of_now = record.life == self.records.life(self.me);
        if is_of_now && !self.records.has_said(record) {
            self.begin_life(record.life.saturating_add(1), now);
        } else {
            self.take_own_life(record.life, now);
        }
    }

    /// Others know this node by a later life than its present one, from before its daemon was started: a clock was set
    /// back.
    fn take_own_life(&mut self, life: u64, now: Timestamp) {
        if life > self.records.life(self.me) {
            self.begin_life(life.saturating_add(1), now);
        }
    }

    fn begin_life(&mut self, life: u64, now: Timestamp) {
        self.records.begin(self.me, life);
        let begun = Ended { origin: self.me, life, version: 0, task: TaskId::from_bits(self.me.bits()) };
        self.news.push(News::Ended(begun));
        self.say_ended(now);
    }

    fn say_ended(&mut self, now: Timestamp) {
        for task in &self.own_ended {
            if let Some(record) = self.records.say(self.me, *task, now) {
                self.news.push(News::Ended(record));
            }
        }
    }

    fn act(&mut self, out: Out, now: Timestamp) {
        for news in out.news {
            self.news.push(news);
        }
        for node in out.suspected {
            if self.paths.look(node, now) {
                self.output_look(node);
            }
        }
        // It may have missed much.
        self.outputs.extend(out.returned.into_iter().map(Output::Exchange));
        for (node, body) in out.bodies {
            let mut news = self.news.take(self.contacts.len() + 1);
            if let Some(accusation) = self.agents.accusation(node) {
                news.retain(|other| !matches!(other, News::Agent(of, _) if *of == node));
                news.truncate(MAX_NEWS - 1);
                news.insert(0, accusation);
            }
            self.outputs.push(Output::Send(node, Message { body, news }));
        }
    }

    fn output_look(&mut self, node: NodeId) {
        self.outputs.extend(self.contacts.get(&node).map(|contact| Output::Look(node, contact.data_path)));
    }
}
