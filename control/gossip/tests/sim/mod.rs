//! Many nodes in one thread, in virtual time: what they send is delayed, lost, cut off one way or both, and processes stand
//! still. All follows from a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control_gossip::core::message::Message;
use control_gossip::core::{Core, Dice, Output};
use control_gossip::seal::{Envelopes, Opened, Refusal};
use control_model::gossip::{Contact, GossipKeys, Opinion, Said};
use control_model::{NodeId, TaskId, Timestamp};

pub fn node(n: usize) -> NodeId {
    NodeId::from_bits(n as u128 + 1)
}

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// How many of 1,000 packets are lost, and who doesn't hear whom.
#[derive(Default)]
pub struct Net {
    pub lost_of_1000: usize,
    /// (from, to)
    pub cut: BTreeSet<(usize, usize)>,
}

pub struct SimNode {
    pub core: Core,
    pub envelopes: Envelopes,
    pub said: Said,
    /// The daemon runs; the data path lives by itself.
    pub daemon_up: bool,
    pub host_up: bool,
    pub stalled_until: Timestamp,
    next_tick: Option<Timestamp>,
}

enum Event {
    Datagram { to: usize, from: usize, bytes: Vec<u8> },
    Answer { to: usize, of: usize },
    Exchange { from: usize, to: usize },
    Tick(usize),
}

pub struct Sim {
    pub now: Timestamp,
    pub nodes: Vec<SimNode>,
    pub net: Net,
    pub dice: Dice,
    pub refused: BTreeMap<Refusal, u64>,
    /// Every datagram that was sent, if kept.
    pub recorded: Option<Vec<(usize, Vec<u8>)>>,
    pub n_datagrams: u64,
    sealed: bool,
    queue: BTreeMap<(Timestamp, u64), Event>,
    n_events: u64,
}

impl Sim {
    /// `n` nodes that know each other. What they send is sealed in small clusters only: it takes most of the time.
    pub fn new(n: usize, seed: u64, sealed: bool) -> Self {
        let mut sim = Self {
            now: Timestamp(0).after(ms(1000)),
            nodes: Vec::new(),
            net: Net::default(),
            dice: Dice::new(seed),
            refused: BTreeMap::new(),
            recorded: None,
            n_datagrams: 0,
            sealed,
            queue: BTreeMap::new(),
            n_events: 0,
        };
        for at in 0..n {
            let fresh = sim.fresh(at, 1);
            sim.nodes.push(fresh);
        }
        for at in 0..n {
            sim.introduce(at, n);
        }
        sim
    }

    fn fresh(&mut self, at: usize, life: u64) -> SimNode {
        let mut dice = Dice::new(self.dice.roll());
        let seed = self.dice.roll();
        SimNode {
            core: Core::new(node(at), life, seed, self.now),
            envelopes: Envelopes::new(node(at), Box::new(move || dice.roll())),
            said: Said::default(),
            daemon_up: true,
            host_up: true,
            stalled_until: Timestamp(0),
            next_tick: None,
        }
    }

    fn introduce(&mut self, at: usize, n: usize) {
        let byte = |number: usize| u8::try_from(number).expect("at most 60,000 nodes");
        let addr = |other: usize, port| ([10, 0, byte(other / 250), byte(other % 250)], port).into();
        let contacts = (0..n).filter(|other| *other != at).map(|other| {
            (node(other), Contact { gossip: Some(addr(other, 7946)), data_path: addr(other, 4789) })
        });
        let contacts = std::sync::Arc::new(contacts.collect());
        let keys = GossipKeys::default().rotated(|| [7; 32], Timestamp(0));
        self.nodes[at].envelopes.set_keys(keys);
        self.nodes[at].said.contacts = contacts;
        self.say(at);
    }

    /// The agent says what stands in `said`.
    pub fn say(&mut self, at: usize) {
        let (now, one) = (self.now, &mut self.nodes[at]);
        one.core.said(&one.said, now);
        one.envelopes.set_members(&one.core.members());
        self.act(at);
    }

    /// A daemon begins anew, and knows the tasks that have ended as its agent does.
    pub fn restart(&mut self, at: usize, life: u64) {
        let n = self.nodes.len();
        let said = std::mem::take(&mut self.nodes[at].said);
        self.nodes[at] = self.fresh(at, life);
        self.nodes[at].said = said;
        self.introduce(at, n);
    }

    pub fn end_task(&mut self, at: usize, task: u128) {
        self.nodes[at].said.ended.insert(TaskId::from_bits(task));
        self.say(at);
    }

    pub fn opinion(&self, at: usize) -> Opinion {
        self.nodes[at].core.opinion()
    }

    /// Nodes whose host and daemon live.
    pub fn live(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|at| self.nodes[*at].daemon_up && self.nodes[*at].host_up)
    }

    /// Runs for `span`, and looks every 10 ms.
    pub fn run(&mut self, span: Duration, mut look: impl FnMut(&Self)) {
        let end = self.now.after(span);
        while self.now < end {
            self.advance(self.now.after(ms(10)).min(end));
            look(self);
        }
    }

    /// Runs until it holds; after how long, `None` if not within `limit`.
    pub fn until(&mut self, limit: Duration, holds: impl Fn(&Self) -> bool) -> Option<Duration> {
        let (begin, end) = (self.now, self.now.after(limit));
        while !holds(self) {
            if self.now >= end {
                return None;
            }
            self.advance(self.now.after(ms(10)));
        }
        Some(self.now.since(begin))
    }

    /// A datagram that somebody has recorded comes once more.
    pub fn replay(&mut self, to: usize, bytes: Vec<u8>) {
        self.push(self.now, Event::Datagram { to, from: usize::MAX, bytes });
    }

    fn advance(&mut self, to: Timestamp) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= to) {
            let ((at, _), event) = entry.remove_entry();
            self.now = self.now.max(at);
            self.happen(event);
        }
        self.now = to;
    }

    fn push(&mut self, at: Timestamp, event: Event) {
        self.n_events += 1;
        self.queue.insert((at, self.n_events), event);
    }

    fn latency(&mut self) -> Duration {
        Duration::from_micros(200 + self.dice.roll() % 2000)
    }

    fn passes(&mut self, from: usize, to: usize) -> bool {
        !self.net.cut.contains(&(from, to)) && self.dice.below(1000) >= self.net.lost_of_1000
    }

    fn happen(&mut self, event: Event) {
        let to = match event {
            Event::Datagram { to, .. }
            | Event::Answer { to, .. }
            | Event::Exchange { to, .. }
            | Event::Tick(to) => to,
        };
        let one = &mut self.nodes[to];
        if !one.daemon_up || !one.host_up {
            return;
        }
        if one.stalled_until > self.now {
            // It waits in the socket; what has come is read before the clock is looked at.
            let late = if matches!(event, Event::Tick(_)) { ms(1) } else { ms(0) };
            let at = one.stalled_until.after(late);
            if let Event::Tick(_) = event {
                one.next_tick = Some(at);
            }
            return self.push(at, event);
        }
        match event {
            Event::Datagram { to, from, bytes } => self.receive(to, from, &bytes),
            Event::Answer { to, of } => self.nodes[to].core.path_answered(node(of)),
            Event::Exchange { from, to } => self.exchange(from, to),
            Event::Tick(at) => {
                let now = self.now;
                if self.nodes[at].next_tick.is_some_and(|due| due > now) {
                    return;
                }
                self.nodes[at].next_tick = None;
                self.nodes[at].core.tick(now);
            }
        }
        self.act(to);
    }

    fn receive(&mut self, to: usize, from: usize, bytes: &[u8]) {
        let now = self.now;
        if !self.sealed {
            let message = Message::decode(bytes).expect("a message");
            return self.nodes[to].core.message(node(from), &message, now);
        }
        match self.nodes[to].envelopes.open(bytes, now) {
            Opened::Message(from, text) => {
                let message = Message::decode(&text).expect("a message");
                self.nodes[to].core.message(from, &message, now);
            }
            Opened::Replies(whom, datagrams) => {
                let whom = whom.bits() as usize - 1;
                for bytes in datagrams {
                    self.send(to, whom, bytes);
                }
            }
            Opened::Refused(why) => *self.refused.entry(why).or_default() += 1,
        }
    }

    fn send(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        self.n_datagrams += 1;
        self.recorded.iter_mut().for_each(|recorded| recorded.push((to, bytes.clone())));
        if self.passes(from, to) {
            let at = self.now.after(self.latency());
            self.push(at, Event::Datagram { to, from, bytes });
        }
    }

    /// TCP: loss delays it, a cut in either direction ends it.
    fn exchange(&mut self, from: usize, to: usize) {
        let (now, other) = (self.now, &self.nodes[from]);
        let cut = self.net.cut.contains(&(from, to)) || self.net.cut.contains(&(to, from));
        if cut || !other.daemon_up || !other.host_up {
            return;
        }
        let first = self.nodes[from].core.frame();
        self.nodes[to].core.take_frame(&first, false, now);
        let second = self.nodes[to].core.answer(&first);
        self.nodes[from].core.take_frame(&second, true, now);
        let third = self.nodes[from].core.answer(&second);
        self.nodes[to].core.take_frame(&third, true, now);
        self.act(from);
    }

    /// Does what the node's core wants, and wakes it when something is due.
    fn act(&mut self, at: usize) {
        let now = self.now;
        for output in self.nodes[at].core.take_outputs() {
            match output {
                Output::Send(to, message) if self.sealed => {
                    for bytes in self.nodes[at].envelopes.seal(to, message.encode(), now) {
                        self.send(at, to.bits() as usize - 1, bytes);
                    }
                }
                Output::Send(to, message) => self.send(at, to.bits() as usize - 1, message.encode()),
                Output::Look(of, _) => {
                    let of = of.bits() as usize - 1;
                    if self.nodes[of].host_up && self.passes(at, of) && self.passes(of, at) {
                        let when = now.after(self.latency() + self.latency());
                        self.push(when, Event::Answer { to: at, of });
                    }
                }
                Output::Exchange(with) => {
                    let when = now.after(self.latency() * 4);
                    self.push(when, Event::Exchange { from: at, to: with.bits() as usize - 1 });
                }
            }
        }
        let due = self.nodes[at].core.next_deadline().max(now);
        let one = &mut self.nodes[at];
        if one.next_tick.is_none_or(|next| due < next) {
            one.next_tick = Some(due);
            self.push(due, Event::Tick(at));
        }
    }
}
