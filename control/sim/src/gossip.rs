//! Gossip under the daemons, where a run has it: the product's core over the model's datagrams. Envelopes are not in it;
//! `control-gossip` tries those by seeds of its own.

use std::sync::Arc;
use std::time::Duration;

use control_gossip::core::message::Message;
use control_gossip::core::{Core, Output};
use control_model::NodeId;
use control_model::gossip::{Opinion, Said};

use crate::event::Event;
use crate::host::{HostId, steady};
use crate::mutation::Mutation;
use crate::world::World;

/// An exchange takes so many ways: a connection, and three frames.
const WAYS_OF_EXCHANGE: u32 = 4;

/// One daemon's.
pub struct Gossip {
    core: Core,
    said: Said,
    opinion: Arc<Opinion>,
    due_at: Option<Duration>,
}

impl World {
    /// Of a daemon that begins on `id`. Its number of life is of the wall clock, as the product's is.
    pub(crate) fn new_gossip(&mut self, id: HostId) -> Gossip {
        let life = u64::try_from(self.wall(id).0 / 1_000_000).unwrap_or_default();
        let seed = u64::try_from(self.random.bits() >> 64).expect("64 bits");
        let core = Core::new(id.node(), life, seed, steady(self.now()));
        Gossip { core, said: Said::default(), opinion: Arc::default(), due_at: None }
    }

    /// What the gossip of the daemon on `host` thinks.
    pub(crate) fn opinion_of(&self, host: HostId) -> Arc<Opinion> {
        let gossip = self.host(host).daemon.as_ref().and_then(|daemon| daemon.gossip.as_ref());
        gossip.map(|gossip| gossip.opinion.clone()).unwrap_or_default()
    }

    /// The living daemon's.
    fn gossip_of(&mut self, host: HostId) -> Option<&mut Gossip> {
        self.hosts[host.0].daemon.as_mut()?.gossip.as_mut()
    }

    fn gossip_in(&mut self, host: HostId, life: u64) -> Option<&mut Gossip> {
        if self.host(host).life == life { self.gossip_of(host) } else { None }
    }

    /// After every input of the desk.
    pub(crate) fn tell_gossip(&mut self, id: HostId) {
        let now = steady(self.now());
        let Some(daemon) = &mut self.hosts[id.0].daemon else { return };
        let Some(gossip) = &mut daemon.gossip else { return };
        let Some(said) = daemon.desk.say().filter(|said| *said != gossip.said) else { return };
        gossip.core.said(&said, now);
        gossip.said = said;
        self.act_on_gossip(id);
    }

    pub(crate) fn happens_in_gossip(&mut self, event: Event) {
        match event {
            Event::GossipDue { host, life } => self.on_gossip_due(host, life),
            Event::Gossip { from, to, message } => self.on_gossip(from, to, &message),
            Event::Look { by, life, at } => self.on_look(by, life, at),
            Event::LookAnswered { by, life, at } => self.on_look_answered(by, life, at),
            Event::Exchange { from, life, with } => self.on_exchange(from, life, with),
            Event::Opinion { host, life } => self.on_opinion(host, life),
            _ => unreachable!("all other events are told apart before"),
        }
    }

    fn on_gossip_due(&mut self, host: HostId, life: u64) {
        let now = self.now();
        let Some(gossip) = self.gossip_in(host, life) else { return };
        gossip.due_at = gossip.due_at.filter(|at| *at > now);
        if gossip.core.next_deadline() <= steady(now) {
            gossip.core.tick(steady(now));
        }
        self.act_on_gossip(host);
    }

    fn on_gossip(&mut self, from: HostId, to: HostId, message: &Message) {
        let now = steady(self.now());
        let Some(gossip) = self.gossip_of(to) else { return };
        gossip.core.message(from.node(), message, now);
        self.act_on_gossip(to);
    }

    fn on_look(&mut self, by: HostId, life: u64, at: HostId) {
        let target = self.host(at);
        if target.is_powered && !target.path.is_dead && self.net.datagram(at, by) {
            let delay = self.net.delay();
            self.queue.after(delay, Event::LookAnswered { by, life, at });
        }
    }

    fn on_look_answered(&mut self, by: HostId, life: u64, at: HostId) {
        let has_path = !self.host(by).path.is_dead;
        let Some(gossip) = self.gossip_in(by, life).filter(|_| has_path) else { return };
        gossip.core.path_answered(at.node());
        self.act_on_gossip(by);
    }

    /// All three frames at once, at the end of the time that they take.
    fn on_exchange(&mut self, from: HostId, life: u64, with: HostId) {
        let now = steady(self.now());
        if !self.net.is_both_ways(from, with) || self.gossip_of(with).is_none() {
            return;
        }
        let Some(first) = self.gossip_in(from, life).map(|gossip| gossip.core.frame()) else { return };
        let Some(other) = self.gossip_of(with) else { return };
        other.core.take_frame(&first, false, now);
        let second = other.core.answer(&first);
        let Some(own) = self.gossip_in(from, life) else { return };
        own.core.take_frame(&second, true, now);
        let third = own.core.answer(&second);
        let Some(other) = self.gossip_of(with) else { return };
        other.core.take_frame(&third, true, now);
        self.act_on_gossip(from);
        self.act_on_gossip(with);
    }

    fn on_opinion(&mut self, host: HostId, life: u64) {
        let Some(opinion) = self.gossip_in(host, life).map(|gossip| gossip.opinion.clone()) else { return };
        if self.mutation == Some(Mutation::DeafToGossip) {
            return;
        }
        self.note(|| format!("gossip of {host:?}: {}", words(&opinion)));
        if let Some(daemon) = &mut self.hosts[host.0].daemon {
            daemon.desk.hear(opinion.clone());
        }
        self.show_view(host);
        self.heard_by_leader(host, &opinion);
    }

    /// Does what the core wants, says what it thinks, and wakes it when something is due.
    fn act_on_gossip(&mut self, id: HostId) {
        let (now, life) = (self.now(), self.host(id).life);
        let Some(gossip) = self.gossip_of(id) else { return };
        let outputs = gossip.core.take_outputs();
        let due = Duration::from_nanos(u64::try_from(gossip.core.next_deadline().0).unwrap_or_default());
        let due =
            due.saturating_sub(Duration::from_nanos(u64::try_from(steady(Duration::ZERO).0).unwrap_or(0)));
        let is_sooner = gossip.due_at.is_none_or(|at| due < at);
        if is_sooner {
            gossip.due_at = Some(due.max(now));
        }
        let opinion = gossip.core.opinion();
        let is_new = *gossip.opinion != opinion;
        if is_new {
            gossip.opinion = Arc::new(opinion);
        }
        if is_sooner {
            self.queue.after(due.saturating_sub(now), Event::GossipDue { host: id, life });
        }
        if is_new {
            self.queue.after(Duration::ZERO, Event::Opinion { host: id, life });
        }
        for output in outputs {
            self.send_gossip(id, life, output);
        }
    }

    fn send_gossip(&mut self, id: HostId, life: u64, output: Output) {
        match output {
            Output::Send(to, message) => {
                let Some(to) = self.member(to).filter(|to| self.net.datagram(id, *to)) else { return };
                let (delay, message) = (self.net.delay(), Box::new(message));
                self.queue.after(delay, Event::Gossip { from: id, to, message });
            }
            Output::Look(at, _) => {
                let has_path = !self.host(id).path.is_dead;
                let Some(at) = self.member(at).filter(|at| has_path && self.net.datagram(id, *at)) else {
                    return;
                };
                let delay = self.net.delay();
                self.queue.after(delay, Event::Look { by: id, life, at });
            }
            Output::Exchange(with) => {
                let Some(with) = self.member(with) else { return };
                let delay = self.net.delay() * WAYS_OF_EXCHANGE;
                self.queue.after(delay, Event::Exchange { from: id, life, with });
            }
        }
    }

    fn member(&self, node: NodeId) -> Option<HostId> {
        HostId::of_node(node).filter(|host| host.0 < self.hosts.len())
    }
}

fn words(opinion: &Opinion) -> String {
    let names = |nodes: &std::collections::BTreeSet<NodeId>| {
        nodes.iter().filter_map(|node| HostId::of_node(*node)).map(|host| host.0).collect::<Vec<_>>()
    };
    let (paths, agents) = (names(&opinion.silent_paths), names(&opinion.silent_agents));
    format!("silent paths {paths:?}, silent agents {agents:?}, {} tasks ended", opinion.ended.len())
}
