//! What breaks, and what is mended before the end.

use std::time::Duration;

use crate::event::Event;
use crate::host::HostId;
use crate::scenario::Scenario;
use crate::world::World;

/// How long a daemon is away.
const AWAY: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(25));
/// How long a machine or all managers are, where gossip has to do without them.
const SHORTLY_AWAY: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(15));
/// A daemon that stands still, its machine alive.
const STALL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Half of it back, half of it ahead.
const LARGEST_JUMP_SECS: usize = 7200;
/// Datagrams lost all the time, of a hundred, each way.
pub const SOME_LOSS: usize = 5;

/// Kinds of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A daemon is killed, a machine loses its power, the leader in the middle of a write.
    Crash,
    /// Ways are cut, datagrams lost.
    Cut,
    /// A kernel or runtime refuses, a data path dies.
    Refusal,
    /// A wall clock jumps.
    Clock,
    /// A daemon stands still.
    Stall,
    /// One machine loses its power, while all else is well or managers are away.
    Loss,
}

impl World {
    /// Something breaks, or is mended.
    pub(crate) fn disturb(&mut self) {
        let id = HostId(self.random.below(self.hosts.len()));
        let fault = self.random.pick(self.scenario.faults()).copied();
        match fault {
            Some(Fault::Crash) => self.crash(id),
            Some(Fault::Cut) => self.partition(id),
            Some(Fault::Refusal) => self.refuse_work(id),
            Some(Fault::Clock) => self.turn_clock(id),
            Some(Fault::Stall) => self.stall(id),
            Some(Fault::Loss) => self.lose(id),
            None => {}
        }
    }

    fn crash(&mut self, id: HostId) {
        self.disturbed();
        let away = self.random.between(AWAY.0, AWAY.1);
        match self.random.below(4) {
            0 | 1 if self.host(id).daemon.is_some() => self.kill_daemon(id, away),
            2 if self.host(id).is_powered => self.crash_machine(id),
            3 => self.log.crash_at_write = true,
            _ => {}
        }
        // Machines that lost their power get it back, one now and then.
        let off: Vec<HostId> =
            self.hosts.iter().filter(|host| !host.is_powered).map(|host| host.id).collect();
        if let Some(back) = self.random.pick(&off).copied().filter(|back| *back != id) {
            if self.random.percent(20) {
                self.hosts[back.0].containers.clear();
                self.note(|| format!("{back:?} comes back without its containers"));
            }
            self.on_power(back);
        }
    }

    fn kill_daemon(&mut self, id: HostId, away: Duration) {
        self.crash_daemon(id);
        self.note(|| format!("the daemon of {id:?} is killed"));
        self.queue.after(away, Event::DaemonStarts(id));
    }

    /// A machine has its power again.
    pub(crate) fn on_power(&mut self, id: HostId) {
        self.disturbed();
        self.hosts[id.0].is_powered = true;
        self.queue.after(Duration::from_secs(1), Event::DaemonStarts(id));
    }

    /// One machine at a time; all managers' daemons are away meanwhile, sometimes.
    fn lose(&mut self, id: HostId) {
        if self.hosts.iter().any(|host| !host.is_powered) {
            return;
        }
        let away = self.random.between(SHORTLY_AWAY.0, SHORTLY_AWAY.1);
        if self.random.percent(20) {
            self.disturbed();
            let managers = self.managers().into_iter().filter(|host| self.host(*host).daemon.is_some());
            for host in managers.collect::<Vec<_>>() {
                self.kill_daemon(host, away);
            }
            return;
        }
        self.expect_out_of_rings(id);
        self.disturbed();
        self.crash_machine(id);
        self.queue.after(away, Event::Power(id));
    }

    fn stall(&mut self, id: HostId) {
        self.disturbed();
        let until = self.now() + self.random.between(STALL.0, STALL.1);
        let host = &mut self.hosts[id.0];
        host.stalled_until = host.stalled_until.max(until);
        self.note(|| format!("the daemon of {id:?} stands still until {until:?}"));
    }

    fn partition(&mut self, id: HostId) {
        self.disturbed();
        if self.scenario == Scenario::Gossip && !self.net.is_well() {
            // So that there are times in which all is well.
            return self.net.heal();
        }
        let others: Vec<HostId> = self.hosts.iter().map(|host| host.id).filter(|host| *host != id).collect();
        let other = self.random.pick(&others).copied();
        match self.random.below(6) {
            0 => others.iter().for_each(|other| {
                self.net.cut(id, *other);
                self.net.cut(*other, id);
            }),
            1 => others.iter().for_each(|other| self.net.cut(id, *other)),
            2 => others.iter().for_each(|other| self.net.cut(*other, id)),
            3 => self.net.loss_percent = self.random.below(40),
            4 => other.into_iter().for_each(|other| self.net.cut(id, other)),
            _ => self.net.heal(),
        }
        self.note(|| format!("ways of {id:?} are cut or mended"));
    }

    fn refuse_work(&mut self, id: HostId) {
        self.disturbed();
        let what = self.random.below(4);
        let host = &mut self.hosts[id.0];
        match what {
            0 => host.path.is_stuck = !host.path.is_stuck,
            1 => host.runtime_fails = !host.runtime_fails,
            2 => host.path.is_dead = !host.path.is_dead,
            _ => (host.path.is_stuck, host.runtime_fails, host.path.is_dead) = (false, false, false),
        }
        let (stuck, fails, dead) = (host.path.is_stuck, host.runtime_fails, host.path.is_dead);
        self.note(|| format!("{id:?}: kernel stuck {stuck}, runtime fails {fails}, data path dead {dead}"));
    }

    fn turn_clock(&mut self, id: HostId) {
        let seconds = i64::try_from(self.random.below(LARGEST_JUMP_SECS)).expect("hours") - 3600;
        self.hosts[id.0].clock_ahead = seconds * 1_000_000_000;
        self.laws.clocks_jumped = true;
        self.note(|| format!("the clock of {id:?} is {seconds} s ahead"));
    }
}
