use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;

use control_model::change::{Entry, RequestId};
use control_model::object::Slot;
use control_model::spec::IpamConfig;
use control_model::{Change, Node, NodeId, Object, ServiceId, Task, TaskId, TaskState};
use control_rpc::encoded_len;
use control_store::{Event, LocalStore, ReadError, State};

use super::rounds::MAX_REBUILDS;
use super::*;
use crate::testing::{node_id, store, wait_for};

/// What the log refuses is larger (`control/consensus`, `MAX_ENTRY_BYTES`).
const FAR_BELOW_THE_LARGEST_ENTRY: usize = 1 << 20;

/// Replicas of a service with a spec of 100 kB.
fn large_tasks(n: u64) -> Vec<Task> {
    let mut first = Task::new(TaskId::from_bits(0), ServiceId::from_bits(1), Slot::Replica(0));
    first.spec.container.env = vec![format!("LARGE={}", "x".repeat(100_000))];
    let one = |i: u64| Task { id: TaskId::from_bits(i.into()), slot: Slot::Replica(i), ..first.clone() };
    (1..=n).map(one).collect()
}

fn n_objects(entry: &[Change]) -> usize {
    entry.iter().map(Change::n_objects).sum()
}

#[test]
fn entries_are_small_however_large_the_spec_of_many_tasks() {
    let mut state = State::default();
    let created = large_tasks(3000).into_iter().map(|task| Change::Create(Object::Task(Box::new(task))));
    let created = packed_in_entries(created.collect(), &state);
    assert_eq!(created.iter().map(|entry| n_objects(entry)).collect::<Vec<_>>(), [2000, 1000]);
    assert!(created.iter().all(|entry| encoded_len(entry) < FAR_BELOW_THE_LARGEST_ENTRY));
    for (index, changes) in (1..).zip(created) {
        let request = RequestId(index.into());
        state.apply(index, &Entry { request, at: Timestamp(0), changes }).expect("new tasks");
    }

    let assigned = state.tasks().iter().map(|task| Change::Update {
        object: Object::Task(Box::new(Task { node: Some(node_id(1)), ..Task::clone(task) })),
        expected: task.meta.version,
    });
    let assigned = packed_in_entries(assigned.collect(), &state);
    assert_eq!(assigned.iter().map(|entry| n_objects(entry)).collect::<Vec<_>>(), [2000, 1000]);
    assert!(assigned.iter().all(|entry| encoded_len(entry) < FAR_BELOW_THE_LARGEST_ENTRY));
}

#[test]
fn what_can_only_be_said_whole_is_cut_by_its_size() {
    let state = State::default();
    let updates = large_tasks(20).into_iter().map(|task| {
        let object = Object::Task(Box::new(task));
        Change::Update { object, expected: 1 }
    });
    let entries = packed_in_entries(updates.collect(), &state);
    assert!(entries.iter().all(|entry| encoded_len(entry) < FAR_BELOW_THE_LARGEST_ENTRY));
    assert_eq!(entries.iter().map(|entry| n_objects(entry)).sum::<usize>(), 20);
}

/// Renames node 1 to how many machines were made before this one, with the version that it saw when it was made.
struct Renamer {
    life: u32,
    seen: Arc<Node>,
    due: Option<Timestamp>,
}

impl LeaderLoop for Renamer {
    fn handle(&mut self, _: &State, _: &[Event], _: Timestamp) -> Vec<Change> {
        Vec::new()
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        self.due
    }

    fn tick(&mut self, _: &State, _: Timestamp) -> Vec<Change> {
        self.due = None;
        let mut node = (*self.seen).clone();
        node.spec.name = self.life.to_string();
        vec![Change::Update { object: Object::Node(Box::new(node)), expected: self.seen.meta.version }]
    }
}

/// The first machine is made of a picture that is already old.
fn factory(lives: &Arc<AtomicU32>) -> Factory {
    factory_after(1, lives)
}

/// The first `n_old` machines are made of a picture that is already old.
fn factory_after(n_old: u32, lives: &Arc<AtomicU32>) -> Factory {
    let lives = lives.clone();
    Factory {
        name: "renamer",
        make: Box::new(move |state, now| {
            let life = lives.fetch_add(1, Ordering::Relaxed);
            let mut seen = (**state.nodes().get(&node_id(1)).expect("made")).clone();
            seen.meta.version -= u64::from(life < n_old);
            Box::new(Renamer { life, seen: Arc::new(seen), due: Some(now) })
        }),
    }
}

fn name_of(state: &State, id: NodeId) -> &str {
    &state.nodes().get(&id).expect("made").spec.name
}

#[tokio::test]
async fn a_loop_with_an_old_picture_is_made_anew() {
    let (store, lives) = (store(1), Arc::default());
    let leader = Leader {
        store: store.clone(),
        leadership: crate::testing::leading(),
        table: Arc::default(),
        loops: vec![factory(&lives)],
    };
    let leader = tokio::spawn(leader.run());
    wait_for(&store, "the second machine has written", |state| name_of(state, node_id(1)) == "1").await;
    assert_eq!(lives.load(Ordering::Relaxed), 2);
    leader.abort();
}

#[tokio::test]
async fn a_loop_that_does_not_settle_is_tried_again_without_an_event() {
    let (store, lives) = (store(1), Arc::default());
    // The last machine of a round is given up before its answer is written. For the next round nothing happens.
    let n_old = MAX_REBUILDS + 1;
    let leader = Leader {
        store: store.clone(),
        leadership: crate::testing::leading(),
        table: Arc::default(),
        loops: vec![factory_after(n_old, &lives)],
    };
    let leader = tokio::spawn(leader.run());
    let expected = n_old.to_string();
    wait_for(&store, "the next round's machine has written", |state| name_of(state, node_id(1)) == expected)
        .await;
    leader.abort();
}

/// A store whose first write is given up by who waits for it, and is applied before the next one.
struct Late {
    store: Arc<LocalStore>,
    held: Mutex<Held>,
}

enum Held {
    Nothing,
    Write(Vec<Change>),
    Applied,
}

#[async_trait]
impl ReplicatedStore for Late {
    async fn propose(&self, changes: Vec<Change>) -> Result<u64, ProposeError> {
        let mut held = self.held.lock().expect("no panic");
        match std::mem::replace(&mut *held, Held::Applied) {
            Held::Nothing if changes.is_empty() => *held = Held::Nothing,
            Held::Nothing => {
                *held = Held::Write(changes);
                return Err(ProposeError::NoLeader("no answer in time".to_owned()));
            }
            Held::Write(first) => drop(self.store.commit(first)),
            Held::Applied => {}
        }
        Ok(self.store.commit(changes)?)
    }

    async fn linearize(&self) -> Result<(), ReadError> {
        Ok(())
    }

    fn state(&self) -> Arc<State> {
        self.store.state()
    }

    fn subscribe(&self) -> (Arc<State>, EventReceiver) {
        self.store.subscribe()
    }
}

/// Wants one task, whatever its id.
struct Maker;

impl LeaderLoop for Maker {
    fn handle(&mut self, state: &State, _: &[Event], now: Timestamp) -> Vec<Change> {
        self.tick(state, now)
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        None
    }

    fn tick(&mut self, state: &State, _: Timestamp) -> Vec<Change> {
        let task = Task::new(TaskId::from_bits(rand::random()), ServiceId::from_bits(1), Slot::Replica(1));
        let is_there = !state.tasks().is_empty();
        if is_there { Vec::new() } else { vec![Change::Create(Object::Task(Box::new(task)))] }
    }
}

#[tokio::test]
async fn what_a_write_decided_that_was_given_up_is_not_decided_again() {
    let store = store(1);
    let late = Arc::new(Late { store: store.clone(), held: Mutex::new(Held::Nothing) });
    let make: Make = Box::new(|_, _| Box::new(Maker));
    let leader = Leader {
        store: late,
        leadership: crate::testing::leading(),
        table: Arc::default(),
        loops: vec![Factory { name: "maker", make }],
    };
    let leader = tokio::spawn(leader.run());
    wait_for(&store, "the write is applied", |state| !state.tasks().is_empty()).await;
    // It is applied in one go with what was decided since.
    assert_eq!(store.state().tasks().len(), 1);
    leader.abort();
}

#[tokio::test]
async fn a_loop_that_asks_for_too_much_holds_up_no_other() {
    let store = store(1);
    let lives = Arc::default();
    let small = Arc::new(Small(store.clone()));
    let make: Make = Box::new(|_, _| Box::new(Maker));
    let leader = Leader {
        store: small,
        leadership: crate::testing::leading(),
        table: Arc::default(),
        loops: vec![Factory { name: "maker", make }, factory_after(0, &lives)],
    };
    let leader = tokio::spawn(leader.run());
    wait_for(&store, "the other loop has written", |state| name_of(state, node_id(1)) == "0").await;
    assert!(store.state().tasks().is_empty());
    leader.abort();
}

/// A store to which any task is too large.
struct Small(Arc<LocalStore>);

#[async_trait]
impl ReplicatedStore for Small {
    async fn propose(&self, changes: Vec<Change>) -> Result<u64, ProposeError> {
        if changes.iter().any(|change| !matches!(change, Change::Update { .. })) {
            return Err(ProposeError::TooLarge);
        }
        Ok(self.0.commit(changes)?)
    }

    async fn linearize(&self) -> Result<(), ReadError> {
        Ok(())
    }

    fn state(&self) -> Arc<State> {
        self.0.state()
    }

    fn subscribe(&self) -> (Arc<State>, EventReceiver) {
        self.0.subscribe()
    }
}

#[tokio::test]
async fn loops_that_missed_events_are_made_anew() {
    let (store, lives) = (store(1), Arc::default());
    let leader = Leader {
        store: store.clone(),
        leadership: crate::testing::leading(),
        table: Arc::default(),
        loops: vec![factory_after(0, &lives)],
    };
    let leader = tokio::spawn(leader.run());
    wait_for(&store, "the first machine has written", |state| name_of(state, node_id(1)) == "0").await;
    // Nobody else runs in between: more than what may wait.
    for _ in 0..=control_store::MAX_WAITING_BATCHES {
        store.commit(Vec::new()).expect("an entry without a change");
    }
    wait_for(&store, "a second machine has written", |state| name_of(state, node_id(1)) == "1").await;
    leader.abort();
}

#[tokio::test]
async fn each_term_begins_with_new_loops_and_the_end_of_consensus_ends_all() {
    let (store, lives) = (store(1), Arc::new(AtomicU32::new(1)));
    let (sender, leadership) = watch::channel(Leadership::default());
    let leader =
        Leader { store: store.clone(), leadership, table: Arc::default(), loops: vec![factory(&lives)] };
    let leader = tokio::spawn(leader.run());
    tokio::task::yield_now().await;
    assert_eq!(name_of(&store.state(), node_id(1)), "", "a follower writes nothing");

    for term in 1..=2_u32 {
        sender.send_replace(Leadership { leader: Some(1), term: term.into(), is_me: true });
        let expected = term.to_string();
        wait_for(&store, "this term's machine has written", |state| name_of(state, node_id(1)) == expected)
            .await;
        sender.send_replace(Leadership { leader: Some(2), term: term.into(), is_me: false });
        tokio::task::yield_now().await;
    }
    drop(sender);
    tokio::time::timeout(crate::testing::LIMIT, leader).await.expect("in time").expect("no panic");
}

/// All loops over services that are made faster than one after the other, each published, of tasks that fit on no node.
#[tokio::test]
async fn tasks_that_fit_nowhere_are_told_so_however_many_they_are() {
    const N_SERVICES: u16 = 200;
    const N_TASKS: usize = 10;
    let store = store(1);
    widen_ingress(&store);
    let table = Arc::<LivenessTable>::default();
    let (leadership, loops) = (crate::testing::leading(), crate::loops::all(table.clone()));
    let leader = tokio::spawn(Leader { store: store.clone(), leadership, table, loops }.run());
    for number in 0..N_SERVICES {
        let mut service = crate::testing::service(N_TASKS as u64);
        service.id = ServiceId::from_bits(1 + u128::from(number));
        service.spec.name = format!("s{number}");
        service.spec.endpoint.ports[0].published = 10_000 + number;
        service.spec.task.placement.constraints = vec!["node.hostname==none".into()];
        store.commit(vec![Change::Create(Object::Service(Box::new(service)))]).expect("new");
        tokio::task::yield_now().await;
    }
    let n_tasks = usize::from(N_SERVICES) * N_TASKS;
    let waits = |task: &Arc<Task>| task.status.state == TaskState::Pending && !task.status.error.is_empty();
    wait_for(&store, "all tasks wait for a node", |state| {
        state.tasks().len() == n_tasks && state.tasks().iter().all(waits)
    })
    .await;
    leader.abort();
}

/// The routing mesh's network has an address for each of some 65,000 tasks.
fn widen_ingress(store: &LocalStore) {
    let mut ingress = (**store.state().ingress_network().expect("made")).clone();
    let subnet = "10.0.0.0/16".parse().expect("a subnet");
    ingress.spec.ipam = vec![IpamConfig { subnet, range: None, gateway: None }];
    let expected = ingress.meta.version;
    store
        .commit(vec![Change::Update { object: Object::Network(Box::new(ingress)), expected }])
        .expect("the present version");
}
