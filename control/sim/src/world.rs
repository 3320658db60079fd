//! The whole cluster, and how one event after the other happens in it.

use std::collections::BTreeMap;
use std::time::Duration;

use control_model::Timestamp;

use crate::event::{Event, SessionNo};
use crate::host::{Host, HostId, Process, steady};
use crate::laws::Laws;
use crate::log::Log;
use crate::manager::Ends;
use crate::mutation::Mutation;
use crate::net::Net;
use crate::queue::Queue;
use crate::random::Random;
use crate::scale::Meter;
use crate::scenario::Scenario;

const A_MOMENT: Duration = Duration::from_millis(1);

/// A law that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub law: &'static str,
    pub what: String,
    /// Virtual time.
    pub at: Duration,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "broken at {:?}: {}: {}", self.at, self.law, self.what)
    }
}

/// A simulated cluster.
pub struct World {
    pub(crate) queue: Queue<Event>,
    pub(crate) random: Random,
    pub(crate) net: Net,
    pub(crate) hosts: Vec<Host>,
    pub(crate) log: Log,
    pub(crate) sessions: BTreeMap<SessionNo, Ends>,
    pub(crate) n_sessions: u64,
    pub(crate) laws: Laws,
    pub(crate) scenario: Scenario,
    pub(crate) mutation: Option<Mutation>,
    /// Users and faults have had their time.
    pub(crate) is_healed: bool,
    pub(crate) n_created: usize,
    broken: Option<Broken>,
    /// Prints what happens.
    is_traced: bool,
    n_events: u64,
    pub(crate) meter: Option<Meter>,
}

impl World {
    pub(crate) fn new(scenario: Scenario, seed: u64, mutation: Option<Mutation>, is_traced: bool) -> Self {
        let mut sizes = Random::new(seed);
        let n_managers = [1, 3, 3, 3, 5][sizes.below(5)];
        let n_hosts = n_managers + 1 + sizes.below(4);
        let world = Self::sized(scenario, seed, n_managers, n_hosts);
        Self { mutation, is_traced, ..world }
    }

    /// So many machines, the first of them managers.
    pub(crate) fn sized(scenario: Scenario, seed: u64, n_managers: usize, n_hosts: usize) -> Self {
        let mut random = Random::new(seed);
        let net = Net::new(random.fork());
        let hosts = (0..n_hosts).map(|n| Host::new(HostId(n), n < n_managers)).collect();
        Self {
            queue: Queue::default(),
            random,
            net,
            hosts,
            log: Log::default(),
            sessions: BTreeMap::new(),
            n_sessions: 0,
            laws: Laws::default(),
            scenario,
            mutation: None,
            is_healed: false,
            n_created: 0,
            broken: None,
            is_traced: false,
            n_events: 0,
            meter: None,
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.queue.now()
    }

    pub(crate) fn host(&self, id: HostId) -> &Host {
        &self.hosts[id.0]
    }

    /// The wall clock of a machine.
    pub(crate) fn wall(&self, id: HostId) -> Timestamp {
        self.host(id).wall(self.now())
    }

    /// The clock of a machine's daemon, which follows that of the machine and never jumps; without a daemon, the machine's.
    pub(crate) fn even(&mut self, id: HostId) -> Timestamp {
        let (now, wall) = (steady(self.now()), self.wall(id));
        if self.mutation == Some(Mutation::JumpingClocks) {
            return wall;
        }
        self.hosts[id.0].daemon.as_mut().map_or(wall, |daemon| daemon.clock.read(wall, now))
    }

    /// Machines that are managers, whether or not they work.
    pub(crate) fn managers(&self) -> Vec<HostId> {
        self.hosts.iter().filter(|host| host.replica.is_some()).map(|host| host.id).collect()
    }

    /// How long a message between two machines takes; within one it takes no time.
    pub(crate) fn delay(&mut self, from: HostId, to: HostId) -> Duration {
        if from == to { Duration::from_micros(10) } else { self.net.delay() }
    }

    /// A law does not hold. The first one counts.
    pub(crate) fn fail(&mut self, law: &'static str, what: String) {
        let at = self.now();
        self.broken.get_or_insert(Broken { law, what, at });
    }

    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:>9.3}  {}", self.now().as_secs_f64(), text());
        }
    }

    /// How many events there were; the same for the same seed.
    pub(crate) fn n_events(&self) -> u64 {
        self.n_events
    }

    /// Lets time pass, or stops at the first law that does not hold.
    pub(crate) fn run(&mut self, span: Duration) -> Result<(), Broken> {
        let end = self.now() + span;
        while let Some(event) = self.queue.next_before(end) {
            self.n_events += 1;
            match self.waits(&event) {
                Some(span) => self.queue.after(span, event),
                None => self.metered(event),
            }
            if let Some(broken) = &self.broken {
                return Err(broken.clone());
            }
        }
        Ok(())
    }

    /// How long an event waits for a daemon that stands still.
    fn waits(&self, event: &Event) -> Option<Duration> {
        let host = event.waits_for(&self.sessions, &self.log.writes)?;
        let until = self.host(host).stalled_until;
        // What has come is read before the clock is looked at.
        let until = if matches!(event, Event::GossipDue { .. }) { until + A_MOMENT } else { until };
        until.checked_sub(self.now()).filter(|span| !span.is_zero() && self.does_stall(host))
    }

    fn does_stall(&self, host: HostId) -> bool {
        self.host(host).stalled_until > self.now()
    }

    /// The daemon, if there is one, does not stand still.
    pub(crate) fn does_run(&self, host: HostId) -> bool {
        !self.does_stall(host)
    }

    /// What the leader's daemon does is measured, where somebody wants to know.
    fn metered(&mut self, event: Event) {
        let leader = self.log.leader.map(|leader| leader.host);
        let is_leaders = event.waits_for(&self.sessions, &self.log.writes) == leader;
        let begun = self.meter.as_ref().filter(|_| is_leaders && leader.is_some()).map(Meter::read);
        self.happens(event);
        self.measured(begun);
    }

    /// The leader's daemon has done something since then.
    pub(crate) fn measured(&mut self, begun: Option<Duration>) {
        if let (Some(meter), Some(begun)) = (&mut self.meter, begun) {
            meter.leader_did(meter.read().saturating_sub(begun));
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Raft => self.on_raft(),
            Event::Write(ticket) => self.on_write(ticket),
            Event::Append { ticket, leader, term } => self.on_append(ticket, leader, term),
            Event::Commit => self.on_commit(),
            Event::Replicate(host) => self.on_replicate(host),
            Event::Loops { host, term } => self.on_loops(host, term),
            Event::Probe { host, term } => self.on_probe(host, term),
            Event::ProbeArrives { leader, term, at } => self.on_probe_arrives(leader, term, at),
            Event::ProbeAnswered { leader, term, by } => self.on_probe_answered(leader, term, by),
            Event::Judge { host, term } => self.on_judge(host, term),
            Event::Report { host, life } => self.on_report(host, life),
            Event::ReportArrives { leader, report } => self.on_report_arrives(leader, &report),
            Event::OpenArrives(no) => self.on_open_arrives(no),
            Event::StreamBegins { no, n_tries } => self.on_stream_begins(no, n_tries),
            Event::StreamFlush(no) => self.on_stream_flush(no),
            Event::StreamSend(no) => self.on_stream_retry(no),
            Event::BeatArrives(no, applied) => self.on_beat_arrives(no, applied),
            Event::StatusesArrive(no, batch) => self.on_statuses_arrive(no, batch),
            Event::SessionGone(no) => self.on_session_gone(no),
            Event::DaemonStarts(host) => self.on_daemon_starts(host),
            Event::Power(host) => self.on_power(host),
            Event::OutOfRings { host, since } => self.judge_out_of_rings(host, since),
            Event::Act => self.on_act(),
            event => self.happens_on_node(event),
        }
    }

    fn happens_on_node(&mut self, event: Event) {
        match event {
            Event::Dial { host, life } => self.on_dial(host, life),
            Event::OpenAnswered(no, managers) => self.on_open_answered(no, managers),
            Event::Update(no, update) => self.on_update(no, update),
            Event::Beat(no) => self.on_beat(no),
            Event::BeatDue(no, n_beats) => self.on_beat_due(no, n_beats),
            Event::BeatAnswered(no, is_valid) => self.on_beat_answered(no, is_valid),
            Event::BeatLate(no, n_beats) => self.on_beat_late(no, n_beats),
            Event::Statuses(no) => self.on_statuses(no),
            Event::StatusesAnswered(no, batch, is_written) => {
                self.on_statuses_answered(no, &batch, is_written);
            }
            Event::SessionEnds(no) => self.on_session_ends(no),
            Event::Desk { host, life } => self.on_desk(host, life),
            Event::Called { host, life, input } => self.on_called(host, life, *input),
            Event::Started { host, life, task } => self.on_started(host, life, task),
            Event::Exits { host, task, pid, code } => self.on_exits(host, task, pid, code),
            Event::Pass { host, life } => self.on_pass(host, life),
            event => self.happens_in_gossip(event),
        }
    }

    /// `kill -9` of the daemon: containers and the kernel's state stay.
    pub(crate) fn crash_daemon(&mut self, id: HostId) {
        let host = &mut self.hosts[id.0];
        host.daemon = None;
        host.stalled_until = Duration::ZERO;
        host.life += 1;
    }

    /// The machine loses its power: what is on its disk is all that stays.
    pub(crate) fn crash_machine(&mut self, id: HostId) {
        self.crash_daemon(id);
        let host = &mut self.hosts[id.0];
        host.is_powered = false;
        host.path = crate::host::DataPath::default();
        for container in host.containers.values_mut() {
            if container.runs() {
                let exit = control_model::executor::Exit { code: 137, out_of_memory: false };
                container.process = Process::Ended(exit);
            }
        }
        self.note(|| format!("{id:?} loses power"));
    }
}
