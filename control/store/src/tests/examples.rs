//! The laws of the store, one by one.

use control_model::change::{Change, Object, ObjectRef, UpdateSeen};
use control_model::object::{Life, NodeState, NodeStatus, UpdateState, UpdateStatus};
use control_model::{NodeId, ServiceId, Task, TaskId, TaskState, Timestamp};
use futures::StreamExt;

use super::objects::{Place, cluster, entry, network, node, service, status, task};
use crate::{ApplyError, EventKind, LocalStore, REMEMBERED_FOR, ReplicatedStore as _, State};

const SERVICE: ServiceId = ServiceId::from_bits(1);
const TASK: TaskId = TaskId::from_bits(1);

/// Applies each change as an entry of its own, from index 1.
fn state(changes: Vec<Change>) -> State {
    let mut state = State::default();
    for (index, change) in (1..).zip(changes) {
        state.apply(index, &entry(index.into(), 10, vec![change])).unwrap();
    }
    state
}

fn running(state: TaskState) -> Object {
    task(1, Place { service: 1, slot: 1, node: Some(1), state, desired: TaskState::Running })
}

#[test]
fn a_stale_update_is_refused_whole() {
    let mut state = state(vec![
        Change::Create(service(1, "web", 1)),
        Change::Update { object: service(1, "web", 2), expected: 1 },
    ]);
    let changes =
        vec![Change::Create(node(7, "")), Change::Update { object: service(1, "web", 3), expected: 1 }];
    let before = state.to_snapshot();
    let refused = state.apply(3, &entry(3, 0, changes)).unwrap_err();
    assert_eq!(refused, ApplyError::Conflict(ObjectRef::Service(SERVICE)));
    assert_eq!(refused.to_string(), "update out of sequence");
    assert_eq!(state.nodes().len(), 0);
    assert_eq!(state.index(), 3);
    state.advance(2);
    assert_eq!(state.to_snapshot(), before);
}

#[test]
fn names_of_services_and_networks_are_unique_each_in_its_kind() {
    let mut state = state(vec![
        Change::Create(service(1, "web", 1)),
        Change::Create(network(1, "web", false)),
        Change::Create(service(2, "db", 1)),
    ]);
    let refused = |state: &mut State, change| state.apply(4, &entry(9, 0, vec![change])).unwrap_err();
    let conflict = ApplyError::NameConflict(ObjectRef::Service(ServiceId::from_bits(3)), "web".to_owned());
    assert_eq!(refused(&mut state, Change::Create(service(3, "web", 1))), conflict);
    let rename = Change::Update { object: service(2, "web", 1), expected: 3 };
    assert!(matches!(refused(&mut state, rename), ApplyError::NameConflict(..)));
    assert!(matches!(
        refused(&mut state, Change::Create(network(2, "web", false))),
        ApplyError::NameConflict(..)
    ));
    assert!(matches!(refused(&mut state, Change::Create(service(1, "other", 1))), ApplyError::Exists(_)));
    // A name is free again once its owner has another, or is gone.
    let rename = Change::Update { object: service(1, "web2", 1), expected: 1 };
    state.apply(5, &entry(5, 0, vec![rename, Change::Create(service(3, "web", 1))])).unwrap();
    assert_eq!(state.service_by_name("web").unwrap().id, ServiceId::from_bits(3));
    assert_eq!(state.service_by_name("web2").unwrap().id, SERVICE);
    let delete = Change::Delete(ObjectRef::Service(SERVICE));
    state.apply(6, &entry(6, 0, vec![delete.clone(), delete])).unwrap();
    assert!(state.service_by_name("web2").is_none());
}

#[test]
fn there_is_one_cluster() {
    let mut state = state(vec![Change::Create(cluster(1))]);
    let refused = state.apply(2, &entry(2, 0, vec![Change::Create(cluster(2))]));
    assert!(matches!(refused, Err(ApplyError::Exists(_))));
}

#[test]
fn a_status_moves_the_version_and_leaves_the_spec_version() {
    let ready = NodeStatus { state: NodeState::Ready, ..NodeStatus::default() };
    let id = NodeId::from_bits(1);
    let mut state = state(vec![
        Change::Create(node(1, "a")),
        Change::NodeStatus { id, status: ready.clone() },
        Change::NodeStatus { id, status: ready },
        Change::Update { object: node(1, "b"), expected: 2 },
    ]);
    let meta = state.nodes().get(&id).unwrap().meta;
    assert_eq!((meta.version, meta.spec_version), (4, 4));
    assert_eq!((meta.created_at, meta.updated_at), (Timestamp(10), Timestamp(10)));
    // Without a change of the spec, the user's version stays.
    let mut same = node(1, "b");
    if let Object::Node(node) = &mut same {
        node.description.hostname = "host".to_owned();
    }
    state.apply(5, &entry(5, 20, vec![Change::Update { object: same, expected: 4 }])).unwrap();
    let meta = state.nodes().get(&id).unwrap().meta;
    assert_eq!((meta.version, meta.spec_version, meta.updated_at), (5, 4, Timestamp(20)));
}

#[test]
fn a_task_ends_once() {
    let mut state = state(vec![
        Change::Create(running(TaskState::Running)),
        Change::TaskStatus { id: TASK, status: status(TaskState::Shutdown, 5) },
    ]);
    let then = |state: &State| state.tasks().get(&TASK).unwrap().status.state;
    let mut tell = |index: u64, told| {
        let change = Change::TaskStatus { id: TASK, status: status(told, 6) };
        state.apply(index, &entry(index.into(), 10, vec![change])).unwrap();
        then(&state)
    };
    assert_eq!(tell(3, TaskState::Failed), TaskState::Shutdown, "what came late");
    assert_eq!(tell(4, TaskState::Orphaned), TaskState::Orphaned, "its node is gone");
    assert_eq!(tell(5, TaskState::Failed), TaskState::Orphaned);
}

#[test]
fn a_tasks_life_is_noted_by_both_clocks() {
    let mut state = state(vec![Change::Create(running(TaskState::Starting))]);
    let mut tell = |index: u64, at, told, node_at| {
        let change = Change::TaskStatus { id: TASK, status: status(told, node_at) };
        state.apply(index, &entry(index.into(), at, vec![change])).unwrap();
        state.tasks().get(&TASK).unwrap().life
    };
    let (ran, ran_at) = (Some(Timestamp(1)), Some(Timestamp(20)));
    assert_eq!(tell(2, 20, TaskState::Running, 1), Life { ran, ran_at, ended_at: None });
    assert_eq!(tell(3, 30, TaskState::Running, 11), Life { ran, ran_at, ended_at: None }, "told again");
    let ended = Life { ran, ran_at, ended_at: Some(Timestamp(40)) };
    assert_eq!(tell(4, 40, TaskState::Failed, 21), ended);
    assert_eq!(tell(5, 50, TaskState::Orphaned, 31), ended, "it ends once");
    let state = State::from_snapshot(&state.to_snapshot()).unwrap();
    assert_eq!(state.tasks().get(&TASK).unwrap().life, ended);
}

#[test]
fn when_a_task_of_an_older_log_ran_is_read_off_its_last_status() {
    // Made as what it was when nothing was noted yet.
    let state = state(vec![
        Change::Create(running(TaskState::Running)),
        Change::TaskStatus { id: TASK, status: status(TaskState::Failed, 5) },
    ]);
    let at = Some(Timestamp(10));
    let life = Life { ran: Some(Timestamp(0)), ran_at: at, ended_at: at };
    assert_eq!(state.tasks().get(&TASK).unwrap().life, life);
}

#[test]
fn a_tasks_states_only_grow() {
    let mut state = state(vec![
        Change::Create(running(TaskState::Running)),
        Change::TaskStatus { id: TASK, status: status(TaskState::Starting, 5) },
        Change::TaskDesired { id: TASK, state: TaskState::Ready },
    ]);
    let now = |state: &State| {
        let task = state.tasks().get(&TASK).unwrap();
        (task.status.state, task.desired_state, task.meta.version)
    };
    assert_eq!(now(&state), (TaskState::Running, TaskState::Running, 1));
    let back = Change::Update { object: running(TaskState::Starting), expected: 1 };
    assert!(matches!(state.apply(4, &entry(4, 0, vec![back])), Err(ApplyError::Conflict(_))));
    let elsewhere =
        Place { service: 1, slot: 1, node: Some(2), state: TaskState::Running, desired: TaskState::Running };
    let moved = Change::Update { object: task(1, elsewhere), expected: 1 };
    assert!(matches!(state.apply(5, &entry(5, 0, vec![moved])), Err(ApplyError::Conflict(_))));
    let changes = vec![
        Change::TaskDesired { id: TASK, state: TaskState::Shutdown },
        Change::TaskDrained { id: TASK },
        Change::TaskWeight { id: TASK, weight: 60 },
        Change::TaskWeight { id: TASK, weight: 40 },
        Change::TaskStatus { id: TASK, status: status(TaskState::Shutdown, 6) },
    ];
    assert_eq!(state.apply(6, &entry(6, 0, changes)).unwrap().len(), 4);
    assert_eq!(now(&state), (TaskState::Shutdown, TaskState::Shutdown, 6));
    let task = state.tasks().get(&TASK).unwrap();
    assert_eq!((task.drained, task.weight), (true, 60));
    let lighter = Task { weight: 40, ..Task::clone(task) };
    let lighter = Change::Update { object: Object::Task(Box::new(lighter)), expected: 6 };
    assert!(matches!(state.apply(7, &entry(7, 0, vec![lighter])), Err(ApplyError::Conflict(_))));
}

#[test]
fn a_repeated_request_does_nothing() {
    let mut state = State::default();
    let create = entry(1, 0, vec![Change::Create(node(1, "a"))]);
    assert_eq!(state.apply(1, &create).unwrap().len(), 1);
    assert_eq!(state.apply(2, &create).unwrap().len(), 0);
    assert_eq!(state.index(), 2);
    let mut again = State::from_snapshot(&state.to_snapshot()).unwrap();
    assert_eq!(again.apply(3, &create).unwrap().len(), 0);
    // A refused request may be tried again.
    let refused = entry(9, 0, vec![Change::Update { object: node(2, ""), expected: 0 }]);
    assert!(matches!(state.apply(3, &refused), Err(ApplyError::NotFound(_))));
    assert!(matches!(state.apply(4, &refused), Err(ApplyError::NotFound(_))));
}

const SECOND: i64 = 1_000_000_000;

#[test]
fn the_memory_of_requests_is_bounded() {
    // A hundred in a second.
    const PERIOD: i64 = 10_000_000;
    let mut state = State::default();
    for index in 1..=5000_u32 {
        state.pass_time(Timestamp(i64::from(index) * PERIOD));
        state.apply(index.into(), &entry(index.into(), 0, vec![])).unwrap();
    }
    let snapshot = state.to_snapshot();
    assert!(snapshot.len() < 5000 * 40, "{}", snapshot.len());
    // The newest are remembered.
    let create = vec![Change::Create(node(1, "a"))];
    assert_eq!(state.apply(5001, &entry(4999, 0, create.clone())).unwrap().len(), 0);
    assert_eq!(state.apply(5002, &entry(1, 0, create)).unwrap().len(), 1);
}

#[test]
fn a_burst_is_remembered_as_long_as_it_may_be_repeated() {
    let mut state = State::default();
    let n = 10_000_u32;
    for index in 1..=n {
        state.apply(index.into(), &entry(index.into(), 0, vec![])).unwrap();
    }
    let mut state = State::from_snapshot(&state.to_snapshot()).unwrap();
    let create = vec![Change::Create(node(1, "a"))];
    let passes = |state: &mut State, spans: std::ops::RangeInclusive<i64>| {
        spans.for_each(|span| state.pass_time(Timestamp(span * SECOND)));
    };
    let last = i64::try_from(REMEMBERED_FOR.as_secs()).unwrap();
    passes(&mut state, 1..=last - 1);
    assert_eq!(state.apply(1, &entry(1, 0, create.clone())).unwrap().len(), 0);
    passes(&mut state, last..=last);
    for index in 1..=n {
        state.apply(index.into(), &entry(u128::from(n + index), 0, vec![])).unwrap();
    }
    assert_eq!(state.apply(2, &entry(1, 0, create)).unwrap().len(), 1, "it was forgotten");
}

#[test]
fn a_clock_that_jumps_makes_nobody_forget_and_nobody_remember_for_ever() {
    const HOURS: i64 = 3 * 3600 * SECOND;
    let mut state = State::default();
    state.pass_time(Timestamp(HOURS));
    let n = 10_000_u32;
    for index in 1..=n {
        state.apply(index.into(), &entry(index.into(), 0, vec![])).unwrap();
    }
    let create = vec![Change::Create(node(1, "a"))];
    // A leader whose clock is hours behind, then one that is hours ahead.
    for clock in [0, 2 * HOURS] {
        state.pass_time(Timestamp(clock));
        assert_eq!(state.apply(1, &entry(1, 0, create.clone())).unwrap().len(), 0, "remembered");
    }
    for second in 0..20 {
        state.pass_time(Timestamp(second * SECOND));
    }
    for index in 1..=n {
        state.apply(index.into(), &entry(u128::from(n + index), 0, vec![])).unwrap();
    }
    assert_eq!(state.apply(2, &entry(1, 0, create)).unwrap().len(), 1, "it was forgotten");
}

#[test]
fn an_update_status_is_kept_of_the_update_that_it_is_about() {
    let told = |state, seconds| {
        let message = String::new();
        Some(UpdateStatus { state, started_at: Timestamp(seconds), completed_at: None, message })
    };
    let asked = |update_status, expected| {
        let Object::Service(mut object) = service(1, "web", 2) else { unreachable!() };
        object.update_status = update_status;
        Change::Update { object: Object::Service(object), expected }
    };
    let (updating, paused) = (told(UpdateState::Updating, 1), told(UpdateState::Paused, 1));
    let seen = UpdateSeen { spec_version: 2, status: updating.clone() };
    let pause = Change::UpdateStatus { id: SERVICE, status: paused.clone(), of: Some(seen) };
    let after = |between: Vec<Change>| {
        let mut changes = vec![Change::Create(service(1, "web", 1)), asked(updating.clone(), 1)];
        changes.extend(between);
        changes.push(pause.clone());
        state(changes).services().get(&SERVICE).unwrap().update_status.clone()
    };
    assert_eq!(after(vec![]), paused);
    assert_eq!(after(vec![asked(None, 2)]), None, "the user has asked for the same again");
    let rollback = told(UpdateState::RollbackStarted, 2);
    assert_eq!(after(vec![asked(rollback.clone(), 2)]), rollback);
    let other = Change::Update { object: service(1, "web", 3), expected: 2 };
    assert_eq!(after(vec![other]), None, "another spec");
    // It is no error: what else the entry holds is done.
    let mut state = state(vec![Change::Create(service(1, "web", 1))]);
    state.apply(2, &entry(2, 0, vec![pause.clone(), Change::Create(node(1, "a"))])).unwrap();
    assert_eq!((state.nodes().len(), state.index()), (1, 2));
    // As older logs have it.
    let older = Change::UpdateStatus { id: SERVICE, status: paused.clone(), of: None };
    state.apply(3, &entry(3, 0, vec![older])).unwrap();
    assert_eq!(state.services().get(&SERVICE).unwrap().update_status, paused);
}

#[test]
fn what_is_absent_is_not_edited() {
    let mut state = State::default();
    let changes = vec![
        Change::NodeStatus { id: NodeId::from_bits(1), status: NodeStatus::default() },
        Change::TaskDrained { id: TASK },
        Change::TaskStatus { id: TASK, status: status(TaskState::Running, 0) },
        Change::UpdateStatus { id: SERVICE, status: None, of: None },
        Change::Delete(ObjectRef::Task(TASK)),
    ];
    assert_eq!(state.apply(1, &entry(1, 0, changes)).unwrap().len(), 0);
}

#[test]
fn broken_snapshots_are_errors() {
    let good = state(vec![Change::Create(service(1, "web", 1))]).to_snapshot();
    assert!(State::from_snapshot(&[]).is_err());
    assert!(State::from_snapshot(&good[..good.len() / 2]).is_err());
    assert!(State::from_snapshot(&[0xff; 64]).is_err());
}

#[test]
fn a_watcher_gets_every_batch_after_its_state() {
    let store = LocalStore::new(|| Timestamp(1));
    store.commit(vec![Change::Create(node(1, "a"))]).unwrap();
    let (state, mut batches) = store.subscribe();
    assert_eq!(state.nodes().len(), 1);
    store.commit(vec![Change::Create(node(2, "b"))]).unwrap();
    store.commit(vec![Change::Create(node(2, "b"))]).unwrap_err();
    store.commit(vec![Change::Delete(ObjectRef::Node(NodeId::from_bits(1)))]).unwrap();
    drop(store);
    let seen: Vec<_> = futures::executor::block_on_stream(&mut batches).collect();
    assert_eq!(seen.iter().map(|batch| batch.index).collect::<Vec<_>>(), [2, 3]);
    assert!(matches!(&seen[0].events[0].kind, EventKind::Node(None, Some(node)) if node.spec.name == "b"));
    assert!(matches!(&seen[1].events[0].kind, EventKind::Node(Some(_), None)));
    assert!(futures::executor::block_on(batches.next()).is_none());
}

/// A snapshot of a version that did not remember managers.
#[derive(serde::Serialize)]
struct Earlier {
    index: u64,
    objects: Vec<Object>,
    requests: Vec<(control_model::RequestId, u64)>,
}

#[test]
fn who_was_a_manager_is_in_snapshots_and_those_of_earlier_versions_are_read() {
    let manager = |id| {
        let node = control_model::Node::new(NodeId::from_bits(id), control_model::spec::Role::Manager);
        Change::Create(Object::Node(Box::new(node)))
    };
    let gone = Change::Delete(ObjectRef::Node(NodeId::from_bits(1)));
    let state = state(vec![manager(1), manager(2), gone]);
    let again = State::from_snapshot(&state.to_snapshot()).unwrap();
    let until = |state: &State, id| state.former_managers().until(NodeId::from_bits(id)).map(|at| at.0);
    for state in [&state, &again] {
        assert_eq!((until(state, 1), until(state, 2)), (Some(10), None));
    }

    let earlier = Earlier { index: 7, objects: vec![service(1, "web", 1)], requests: Vec::new() };
    let read = State::from_snapshot(&rmp_serde::to_vec_named(&earlier).unwrap()).unwrap();
    assert_eq!((read.index(), read.services().len(), until(&read, 1)), (7, 1, None));
}
