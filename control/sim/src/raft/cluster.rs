//! One run: managers that crash and lose each other while clients write, and the check of what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control_consensus::{Batch, Member, Proposal, raft_config};
use control_model::change::{Change, Entry, Object, RequestId};
use control_model::spec::Role;
use control_model::{Node, NodeId, Timestamp};
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{Config as Settings, Raft, ReadPolicy, SnapshotPolicy};
use openraft_rt::AsyncRuntime;
use openraft_rt::watch::WatchReceiver as _;
use openraft_rt_sim::{SimInstant, SimRuntime};

use super::disk::Disk;
use super::laws::Witness;
use super::machine::Machine;
use super::types::sleep;
use super::wire::{Factory, Manager, Wire};
use crate::host::HostId;
use crate::net::Net;
use crate::random::Random;
use crate::world::Broken;

const PLAY: Duration = Duration::from_secs(20);
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(1800));
/// Longest time from the end of all faults until everyone has everything.
const HEALING: Duration = Duration::from_mins(1);
const N_CLIENTS: usize = 3;
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Small, so that snapshots are made and sent within a run.
const SNAPSHOT_EVERY: u64 = 60;
const KEEP_ENTRIES: u64 = 10;
/// Bits of the first id that marks a write.
const FIRST_MARK: u128 = 1 << 64;

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct RaftRun {
    pub seed: u64,
    /// Mutation: disks lose a synced entry in a crash.
    pub forgets: bool,
    pub is_traced: bool,
}

/// What a run that broke no law was like. The same for the same run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftOutcome {
    pub n_acknowledged: usize,
    pub n_reads: usize,
    pub last_index: u64,
    pub n_crashes: usize,
}

/// Marks whose write was acknowledged.
type Acknowledged = Arc<Mutex<BTreeSet<u128>>>;

struct Cluster {
    wire: Wire,
    random: Random,
    disks: BTreeMap<u64, Disk>,
    n_lives: u64,
    n_crashes: usize,
    is_traced: bool,
}

impl RaftRun {
    /// Runs, or says which law was broken first.
    pub fn run(self) -> Result<RaftOutcome, Broken> {
        let mut runtime = SimRuntime::with_seed(self.seed);
        runtime.block_on(self.play())
    }

    async fn play(self) -> Result<RaftOutcome, Broken> {
        let mut random = Random::new(self.seed);
        let net = Net::new(random.fork());
        let n_managers = [2, 3, 3, 4, 5][random.below(5)];
        let disks = (1..=n_managers).map(|id| (id, Disk::new(random.fork(), self.forgets))).collect();
        let wire = Wire::new(net, Witness::default());
        let is_traced = self.is_traced;
        let mut cluster = Cluster { wire, random, disks, n_lives: 0, n_crashes: 0, is_traced };
        cluster.begin().await;
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Acknowledged::default());
        let clients = (0..N_CLIENTS).map(|number| {
            let client = Client {
                wire: cluster.wire.clone(),
                random: cluster.random.fork(),
                next: FIRST_MARK * (number as u128 + 1),
                stop: stop.clone(),
                acknowledged: acknowledged.clone(),
            };
            SimRuntime::spawn(client.run())
        });
        let mut clients: Vec<_> = clients.collect();
        let reader = Reader {
            wire: cluster.wire.clone(),
            random: cluster.random.fork(),
            stop: stop.clone(),
            acknowledged: acknowledged.clone(),
        };
        clients.push(SimRuntime::spawn(reader.run()));
        let end = SimInstant::try_now().expect("inside") + PLAY;
        while SimInstant::try_now().expect("inside") < end {
            let pause = cluster.random.between(PAUSE.0, PAUSE.1);
            sleep(pause).await;
            cluster.act().await;
            cluster.check()?;
        }
        cluster.heal().await;
        sleep(Duration::from_secs(5)).await;
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            drop(client.await);
        }
        cluster.settle(&acknowledged).await
    }
}

impl Cluster {
    async fn begin(&mut self) {
        let ids: Vec<u64> = self.disks.keys().copied().collect();
        for id in &ids {
            self.start(*id).await;
        }
        let members: BTreeMap<u64, Member> = ids.iter().map(|id| (*id, member(*id))).collect();
        let first = self.wire.manager(1).expect("just begun");
        first.initialize(members).await.expect("an empty log");
    }

    fn note(&self, text: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:>9.3}  {}", now().as_secs_f64(), text());
        }
    }

    async fn start(&mut self, id: u64) {
        if self.wire.manager(id).is_some() {
            return;
        }
        self.n_lives += 1;
        let disk = self.disks[&id].open();
        let factory = Factory { from: id, life: self.n_lives, wire: self.wire.clone() };
        let machine = Machine::open(id, disk.clone(), self.wire.witness.clone());
        let started = Raft::new(id, Arc::new(settings()), factory, disk, machine).await;
        match started {
            Ok(manager) => {
                self.note(|| format!("manager {id} begins"));
                self.wire.lock().running.insert(id, (self.n_lives, manager));
            }
            Err(error) => {
                self.wire
                    .witness
                    .lock()
                    .fail("a manager finds its disk again", format!("manager {id}: {error}"));
            }
        }
    }

    fn crash(&mut self, id: u64) {
        let Some((_, manager)) = self.wire.lock().running.remove(&id) else { return };
        self.note(|| format!("manager {id} loses its power"));
        self.n_crashes += 1;
        self.disks[&id].crash();
        drop(SimRuntime::spawn(async move { drop(manager.shutdown().await) }));
    }

    fn any(&mut self) -> u64 {
        let ids: Vec<u64> = self.disks.keys().copied().collect();
        self.random.pick(&ids).copied().unwrap_or(1)
    }

    fn leader(&self) -> Option<u64> {
        let running: Vec<Manager> = self.wire.lock().running.values().map(|(_, m)| m.clone()).collect();
        running.iter().find_map(|manager| manager.metrics().borrow_watched().current_leader)
    }

    async fn act(&mut self) {
        let id = self.any();
        match self.random.below(15) {
            0 | 1 => {
                if let Some(leader) = self.leader() {
                    self.crash(leader);
                }
            }
            2 => self.crash(id),
            3..6 => self.start_any().await,
            6 => self.cut(id, true, true),
            7 => self.cut(id, true, false),
            8 => self.cut(id, false, true),
            9 | 10 => self.wire.lock().net.heal(),
            14 => self.split(id),
            11 => {
                let times = [1, 1, 20, 200][self.random.below(4)];
                self.disks[&id].set_slowness(times);
                self.note(|| format!("the disk of manager {id} is {times} times as slow"));
            }
            12 => {
                if let Some(manager) = self.wire.manager(id) {
                    drop(manager.trigger().snapshot().await);
                }
            }
            _ => {
                let leader = self.leader().and_then(|leader| self.wire.manager(leader));
                if let Some(leader) = leader {
                    drop(leader.trigger().transfer_leader(id).await);
                }
            }
        }
    }

    async fn start_any(&mut self) {
        let dead: Vec<u64> =
            self.disks.keys().copied().filter(|id| self.wire.manager(*id).is_none()).collect();
        if let Some(id) = self.random.pick(&dead).copied() {
            self.start(id).await;
        }
    }

    fn cut(&mut self, id: u64, out: bool, back: bool) {
        self.note(|| format!("ways of manager {id} are cut: out {out}, in {back}"));
        let mut inner = self.wire.lock();
        let place = |id: u64| HostId(usize::try_from(id).expect("few"));
        for other in self.disks.keys() {
            if out {
                inner.net.cut(place(id), place(*other));
            }
            if back {
                inner.net.cut(place(*other), place(id));
            }
        }
    }

    /// Two halves of which neither hears the other, of four managers two and two.
    fn split(&mut self, last: u64) {
        self.note(|| format!("managers up to {last} and those behind it are cut off from each other"));
        let mut inner = self.wire.lock();
        let place = |id: u64| HostId(usize::try_from(id).expect("few"));
        for (one, other) in
            self.disks.keys().flat_map(|one| self.disks.keys().map(move |other| (*one, *other)))
        {
            if (one <= last) != (other <= last) {
                inner.net.cut(place(one), place(other));
            }
        }
    }

    /// The first law that does not hold.
    fn check(&self) -> Result<(), Broken> {
        let running: Vec<(u64, Manager)> =
            self.wire.lock().running.iter().map(|(id, (_, manager))| (*id, manager.clone())).collect();
        for (id, manager) in running {
            let metrics = manager.metrics().borrow_watched().clone();
            if metrics.state.is_leader() {
                self.wire.witness.leads(metrics.current_term, id);
            }
        }
        let broken = self.wire.witness.lock().broken.clone();
        broken.map_or(Ok(()), |(law, what)| Err(Broken { law, what, at: now() }))
    }

    async fn heal(&mut self) {
        self.note(|| "everything is mended".to_owned());
        self.wire.lock().net.heal();
        let ids: Vec<u64> = self.disks.keys().copied().collect();
        for id in ids {
            self.disks[&id].set_slowness(1);
            self.start(id).await;
        }
    }

    /// Everyone has every acknowledged write, and the same state.
    async fn settle(&mut self, acknowledged: &Acknowledged) -> Result<RaftOutcome, Broken> {
        let begun = now();
        loop {
            sleep(Duration::from_millis(500)).await;
            self.check()?;
            let acknowledged = acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let why = self.unsettled(&acknowledged);
            let Some(why) = why else {
                let seen = self.wire.witness.lock();
                let last_index = seen.states.values().map(|(index, _)| *index).max();
                return Ok(RaftOutcome {
                    n_acknowledged: acknowledged.len(),
                    n_reads: seen.n_reads,
                    last_index: last_index.unwrap_or_default(),
                    n_crashes: self.n_crashes,
                });
            };
            if now().saturating_sub(begun) > HEALING {
                return Err(Broken { law: "what is acknowledged is never lost", what: why, at: now() });
            }
        }
    }

    fn unsettled(&self, acknowledged: &BTreeSet<u128>) -> Option<String> {
        let states = self.wire.witness.lock().states.clone();
        let first = states.values().next()?.0;
        for id in self.disks.keys() {
            let Some((index, state)) = states.get(id) else {
                return Some(format!("manager {id} has no state"));
            };
            if *index != first {
                return Some(format!("manager {id} is at {index}, another at {first}"));
            }
            let lost =
                acknowledged.iter().find(|mark| state.nodes().get(&NodeId::from_bits(**mark)).is_none());
            if let Some(mark) = lost {
                return Some(format!("manager {id} has not {mark:x}"));
            }
            let other = states.values().next().map(|(_, state)| state.clone())?;
            if let Some(event) = state.diff(&other).first() {
                return Some(format!("manager {id} has another state: {event:?}"));
            }
        }
        None
    }
}

/// Writes one to three marks after the other, each time until they are acknowledged.
struct Client {
    wire: Wire,
    random: Random,
    next: u128,
    stop: Arc<AtomicBool>,
    acknowledged: Acknowledged,
}

impl Client {
    async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let first = self.next + 1;
            self.next += 1 + self.random.bits() % 3;
            let marks = first..=self.next;
            if self.write(Batch { at: Timestamp(0), writes: marks.clone().map(mark).collect() }).await {
                self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).extend(marks);
            }
            let pause = self.random.between(Duration::from_millis(5), Duration::from_millis(120));
            sleep(pause).await;
        }
    }

    /// Asks whoever may lead, until one has written them. The requests' ids make a repeated try harmless.
    async fn write(&mut self, batch: Batch) -> bool {
        let mut leader = None;
        while !self.stop.load(Ordering::Relaxed) {
            let ids: Vec<u64> = self.wire.lock().running.keys().copied().collect();
            let asked = leader.take().or_else(|| self.random.pick(&ids).copied());
            if let Some(manager) = asked.and_then(|id| self.wire.manager(id)) {
                let write = manager.client_write(batch.clone());
                match SimRuntime::timeout(WRITE_TIMEOUT, write).await {
                    Ok(Ok(written)) => {
                        // Applied twice, it would be refused as another object of the same id.
                        if let Some(error) = written.data.0.iter().find_map(|done| done.as_ref().err()) {
                            let what = format!("{batch}: {error}");
                            self.wire.witness.lock().fail("a retried write applies once", what);
                        }
                        return true;
                    }
                    Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                        leader = to.leader_id;
                    }
                    Ok(Err(_)) | Err(_) => {}
                }
            }
            sleep(RETRY_PAUSE).await;
        }
        false
    }
}

/// A write that leaves a mark: a node of this number.
fn mark(number: u128) -> Proposal {
    let node = Node::new(NodeId::from_bits(number), Role::Worker);
    let changes = vec![Change::Create(Object::Node(Box::new(node)))];
    Proposal::new(Entry { request: RequestId(number), at: Timestamp(0), changes }).expect("small")
}

/// Reads by lease, as the product does, wherever somebody thinks that it leads.
struct Reader {
    wire: Wire,
    random: Random,
    stop: Arc<AtomicBool>,
    acknowledged: Acknowledged,
}

impl Reader {
    async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let before = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let ids: Vec<u64> = self.wire.lock().running.keys().copied().collect();
            let id = self.random.pick(&ids).copied().unwrap_or_default();
            if let Some(manager) = self.wire.manager(id)
                && let Ok(Ok(read)) =
                    SimRuntime::timeout(WRITE_TIMEOUT, manager.get_read_linearizer(ReadPolicy::LeaseRead))
                        .await
            {
                self.wire.witness.read(id, read.read_log_id().index(), &before);
            }
            let pause = self.random.between(Duration::from_millis(1), Duration::from_millis(40));
            sleep(pause).await;
        }
    }
}

fn now() -> Duration {
    SimInstant::try_now().expect("inside the runtime").elapsed_since_start()
}

fn member(id: u64) -> Member {
    let ip = Ipv4Addr::new(198, 18, 0, u8::try_from(id).expect("few managers"));
    Member { node_id: NodeId::from_bits(id.into()), addr: SocketAddr::new(ip.into(), 2377) }
}

/// The product's, with snapshots after few entries.
fn settings() -> Settings {
    Settings {
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: KEEP_ENTRIES,
        ..raft_config()
    }
}
