use std::collections::BTreeMap;

use control_model::object::ManagerStatus;
use control_model::{Assignment, AssignmentKey, AssignmentUpdate, Change, ObjectRef, TaskState};
use control_rpc::{AssignmentPieces, MAX_MESSAGE_BYTES, decode_assignments};
use control_store::LocalStore;
use futures::StreamExt;
use tonic::Code;

use super::*;
use crate::leader::Leader;
use crate::loops;
use crate::testing::{LIMIT, description, leading, node_id, service, store, wait_for};

fn dispatcher(store: &Arc<LocalStore>, table: &Arc<LivenessTable>) -> Arc<Dispatcher> {
    Arc::new(Dispatcher::new(store.clone(), table.clone(), leading()))
}

async fn next<T>(stream: &mut BoxStream<T>) -> Option<Result<T, Status>> {
    tokio::time::timeout(LIMIT, stream.next()).await.expect("a message in time")
}

/// An agent that does what it is told: every task runs until it is drained, and then is stopped.
async fn obedient_agent(dispatcher: Arc<Dispatcher>, n: u8) {
    let me = node_id(n);
    let mut session = dispatcher.open_session(me, None, description(n)).await.expect("a session");
    let id = next(&mut session).await.expect("open").expect("a first message").session_id;
    let mut stream = dispatcher.open_assignments(me, &id).expect("assignments");
    let mut set = BTreeMap::new();
    while let Some(payload) = stream.next().await {
        let update = decode_assignments(&payload.expect("no error").body).expect("an update");
        let generation = take(&mut set, update);
        dispatcher.heartbeat(me, &id, generation).expect("a valid session");
        let statuses = set.values().filter_map(|row| match row {
            Assignment::Task(task) => Some((task.id, obey(task))),
            _ => None,
        });
        dispatcher.report(me, &id, statuses.collect()).await.expect("own tasks");
    }
}

fn obey(task: &control_model::Task) -> TaskStatus {
    let stop = task.desired_state >= TaskState::Shutdown && task.drained;
    let state = if stop { TaskState::Shutdown } else { TaskState::Running };
    TaskStatus { state, at: clock::now(), ..TaskStatus::default() }
}

fn take(set: &mut BTreeMap<AssignmentKey, Assignment>, update: AssignmentUpdate) -> Generation {
    let (generation, upserts, removals) = match update {
        AssignmentUpdate::Complete { generation, set: rows } => {
            set.clear();
            (generation, rows, Vec::new())
        }
        AssignmentUpdate::Incremental { generation, upserts, removals, .. } => {
            (generation, upserts, removals)
        }
    };
    set.extend(upserts.into_iter().map(|row| (row.key(), row)));
    set.retain(|key, _| !removals.contains(key));
    generation
}

/// The leader's loops over `store`.
fn lead(store: &Arc<LocalStore>, table: &Arc<LivenessTable>) -> tokio::task::JoinHandle<()> {
    let (leadership, loops) = (leading(), loops::all(table.clone()));
    tokio::spawn(Leader { store: store.clone(), leadership, table: table.clone(), loops }.run())
}

#[tokio::test]
async fn tasks_run_on_obedient_agents_and_leave_drained() {
    let store = store(2);
    let table = Arc::<LivenessTable>::default();
    let dispatcher = dispatcher(&store, &table);
    let leader = lead(&store, &table);
    let agents: Vec<_> = (1..=2).map(|n| tokio::spawn(obedient_agent(dispatcher.clone(), n))).collect();

    let created = Change::Create(control_model::Object::Service(Box::new(service(4))));
    store.commit(vec![created]).expect("a new service");
    let state = wait_for(&store, "four tasks run", |state| running(state) == 4).await;
    for n in 1..=2 {
        assert_eq!(state.tasks_of_node(node_id(n)).count(), 2, "spread evenly");
    }

    let service = state.service_by_name("web").expect("created");
    let smaller = control_model::Service { spec: service_spec(1), ..(**service).clone() };
    let object = control_model::Object::Service(Box::new(smaller));
    store.commit(vec![Change::Update { object, expected: service.meta.version }]).expect("current version");
    let state = wait_for(&store, "three tasks are stopped", |state| running(state) == 1).await;
    let mut stopped = state.tasks().iter().filter(|t| t.status.state == TaskState::Shutdown);
    assert!(stopped.all(|t| t.drained), "none was stopped before it was drained");

    leader.abort();
    for agent in agents {
        agent.abort();
    }
}

fn service_spec(replicas: u64) -> control_model::spec::ServiceSpec {
    service(replicas).spec
}

fn running(state: &control_store::State) -> usize {
    state.tasks().iter().filter(|t| t.status.state == TaskState::Running).count()
}

#[tokio::test]
async fn the_newest_session_of_a_node_is_the_valid_one() {
    let (store, table) = (store(1), Arc::default());
    let dispatcher = dispatcher(&store, &table);
    let me = node_id(1);
    let mut first = dispatcher.open_session(me, None, description(1)).await.expect("a session");
    let first_id = next(&mut first).await.expect("open").expect("a message").session_id;
    let mut second = dispatcher.open_session(me, None, description(1)).await.expect("a session");
    let second_id = next(&mut second).await.expect("open").expect("a message").session_id;

    assert!(next(&mut first).await.is_none(), "the first one has ended");
    let stale = dispatcher.heartbeat(me, &first_id, Generation::default()).expect_err("not valid any more");
    assert_eq!(stale.code(), Code::FailedPrecondition);
    dispatcher.heartbeat(me, &second_id, Generation::default()).expect("valid");
    let foreign = dispatcher.heartbeat(node_id(2), &second_id, Generation::default());
    assert!(foreign.is_err(), "a session belongs to its node");
}

#[tokio::test]
async fn a_session_says_managers_and_the_wanted_role_and_ends_with_its_node() {
    let (store, table) = (store(2), Arc::default());
    let dispatcher = dispatcher(&store, &table);
    let mut session = dispatcher.open_session(node_id(1), None, description(1)).await.expect("a session");
    let message = next(&mut session).await.expect("open").expect("a message");
    assert_eq!((message.desired_role.as_str(), message.managers.len()), ("worker", 0));

    let addr = "198.18.0.1:2377".parse().expect("an address");
    let manager = Some(ManagerStatus { raft_id: 1, addr });
    store.commit(vec![Change::NodeManager { id: node_id(1), manager }]).expect("written");
    let message = next(&mut session).await.expect("open").expect("a message");
    assert_eq!((message.desired_role.as_str(), message.managers.len()), ("manager", 1));

    store.commit(vec![Change::Delete(ObjectRef::Node(node_id(1)))]).expect("deleted");
    let removed = next(&mut session).await.expect("a last word").expect_err("the node is gone");
    assert_eq!(removed.code(), Code::NotFound);
    let refused = dispatcher.open_session(node_id(1), None, description(1)).await.err().expect("refused");
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test]
async fn an_agent_reports_its_own_tasks_and_its_own_states_alone() {
    let (store, table) = (store(2), Arc::default());
    let dispatcher = dispatcher(&store, &table);
    let created = Change::Create(control_model::Object::Service(Box::new(service(1))));
    store.commit(vec![created]).expect("a new service");
    let leader = lead(&store, &table);
    let assigned = |state: &control_store::State| state.tasks().iter().any(|t| t.node.is_some());
    let state = wait_for(&store, "a task is assigned", assigned).await;
    leader.abort();
    let task = state.tasks().iter().next().expect("a task").clone();
    let owner = task.node.expect("assigned");
    let other = if owner == node_id(1) { 2 } else { 1 };

    let mut session =
        dispatcher.open_session(node_id(other), None, description(other)).await.expect("a session");
    let id = next(&mut session).await.expect("open").expect("a message").session_id;
    let status = |state| vec![(task.id, TaskStatus { state, ..TaskStatus::default() })];
    let error =
        dispatcher.report(node_id(other), &id, status(TaskState::Running)).await.expect_err("not its task");
    assert_eq!(error.code(), Code::PermissionDenied);
    let error =
        dispatcher.report(node_id(other), &id, status(TaskState::Orphaned)).await.expect_err("not its state");
    assert_eq!(error.code(), Code::InvalidArgument);
    let gone =
        vec![(TaskId::from_bits(99), TaskStatus { state: TaskState::Failed, ..TaskStatus::default() })];
    dispatcher.report(node_id(other), &id, gone).await.expect("a task that is gone needs no status");
    assert_eq!(store.state().tasks().get(&task.id).map(|t| t.status.state), Some(task.status.state));
}

#[tokio::test]
async fn a_node_without_news_counts_as_having_applied_what_was_looked_through() {
    let (store, table) = (store(2), Arc::<LivenessTable>::default());
    let dispatcher = dispatcher(&store, &table);
    let me = node_id(1);
    let mut session = dispatcher.open_session(me, None, description(1)).await.expect("a session");
    let id = next(&mut session).await.expect("open").expect("a message").session_id;
    let mut stream = dispatcher.open_assignments(me, &id).expect("assignments");
    let payload = next(&mut stream).await.expect("open").expect("a complete set");
    let generation = take(&mut BTreeMap::new(), decode_assignments(&payload.body).expect("an update"));
    let mut acks = table.watch_acks();
    dispatcher.heartbeat(me, &id, generation).expect("valid");
    acks.changed().await.expect("the table lives");
    assert_eq!(table.snapshot()[&me].applied, generation);

    // A write that does not concern this node.
    let cluster = store.state().cluster().expect("made").clone();
    let mut changed = (*cluster).clone();
    changed.spec.task_history_limit = 1;
    let object = control_model::Object::Cluster(Box::new(changed));
    let index =
        store.commit(vec![Change::Update { object, expected: cluster.meta.version }]).expect("current");
    // The stream looks at it only while it is polled, as it is by the connection.
    let looking = tokio::spawn(async move { stream.next().await });
    tokio::time::timeout(LIMIT, acks.changed()).await.expect("in time").expect("the table lives");
    assert_eq!(table.snapshot()[&me].applied, Generation { index, ..generation });
    looking.abort();
}

#[tokio::test]
async fn a_node_that_has_seen_a_later_epoch_gets_no_session() {
    let (store, table) = (store(1), Arc::default());
    let dispatcher = dispatcher(&store, &table);
    dispatcher.check_epoch(0).expect("its own");
    let refused = dispatcher.check_epoch(1).expect_err("of the other side");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("of fencing epoch 0, the node has seen 1"), "{}", refused.message());
}

#[tokio::test]
async fn liveness_is_reported_by_managers_of_the_state_alone() {
    let (store, table) = (store(2), Arc::<LivenessTable>::default());
    let dispatcher = dispatcher(&store, &table);
    let code = |n| dispatcher.check_manager(node_id(n)).map_err(|status| status.code());
    assert_eq!(code(1), Err(Code::PermissionDenied), "a worker");
    assert_eq!(code(9), Err(Code::PermissionDenied), "removed");

    // Demoted, but in Raft still.
    let addr = "198.18.0.1:2377".parse().expect("an address");
    let manager = Some(ManagerStatus { raft_id: 1, addr });
    store.commit(vec![Change::NodeManager { id: node_id(1), manager }]).expect("written");
    assert_eq!(code(1), Ok(()));
    store.commit(vec![Change::NodeManager { id: node_id(1), manager: None }]).expect("written");
    assert_eq!(code(1), Err(Code::PermissionDenied));

    // Wanted, not in Raft yet.
    let node = store.state().nodes().get(&node_id(2)).expect("made").clone();
    let mut wanted = (*node).clone();
    wanted.spec.role = Role::Manager;
    let object = control_model::Object::Node(Box::new(wanted));
    store.commit(vec![Change::Update { object, expected: node.meta.version }]).expect("current version");
    assert_eq!(code(2), Ok(()));
}

#[tokio::test]
async fn a_set_larger_than_other_messages_is_sent() {
    let (store, table) = (store(1), Arc::<LivenessTable>::default());
    let dispatcher = dispatcher(&store, &table);
    let mut large = service(1);
    large.spec.task.container.env = vec!["x".repeat(MAX_MESSAGE_BYTES)];
    let created = Change::Create(control_model::Object::Service(Box::new(large)));
    store.commit(vec![created]).expect("a new service");
    let leader = lead(&store, &table);
    wait_for(&store, "a task is assigned", |state| state.tasks().iter().any(|t| t.node.is_some())).await;
    leader.abort();

    let me = node_id(1);
    let mut session = dispatcher.open_session(me, None, description(1)).await.expect("a session");
    let id = next(&mut session).await.expect("open").expect("a message").session_id;
    let mut stream = dispatcher.open_assignments(me, &id).expect("assignments");
    let (mut received, mut set) = (AssignmentPieces::default(), BTreeMap::new());
    let update = loop {
        let piece = next(&mut stream).await.expect("open").expect("a piece");
        assert!(piece.body.len() < MAX_MESSAGE_BYTES);
        if let Some(update) = received.take(&piece).expect("readable") {
            break update;
        }
    };
    take(&mut set, update);
    assert!(set.values().any(|row| matches!(row, Assignment::Task(_))));
}

#[tokio::test]
async fn an_agent_that_lags_gets_the_complete_set_again() {
    let (store, table) = (store(2), Arc::default());
    let dispatcher = dispatcher(&store, &table);
    let me = node_id(1);
    let mut session = dispatcher.open_session(me, None, description(1)).await.expect("a session");
    let id = next(&mut session).await.expect("open").expect("a first message").session_id;
    let mut stream = dispatcher.open_assignments(me, &id).expect("assignments");
    let mut updates = async || {
        let payload = next(&mut stream).await.expect("open").expect("no error");
        decode_assignments(&payload.body).expect("an update")
    };
    let mut set = BTreeMap::new();
    take(&mut set, updates().await);
    let rename = |n: usize| {
        let description = NodeDescription { hostname: format!("host{n}"), ..description(2) };
        store
            .commit(vec![Change::NodeDescription { id: node_id(2), description: Box::new(description) }])
            .expect("a known node")
    };
    // Nothing is read in between: more than what may wait.
    let last = (0..control_store::MAX_WAITING_BATCHES + 10).map(rename).max().expect("some");
    let generation = loop {
        let update = updates().await;
        let is_complete = matches!(update, AssignmentUpdate::Complete { .. });
        let generation = take(&mut set, update);
        if is_complete {
            break generation;
        }
        assert!(generation.index < last, "the end of a queue with a gap is not the present");
    };
    assert_eq!(generation.index, last);
    // And on from there.
    let renamed = rename(0);
    let update = updates().await;
    assert!(matches!(update, AssignmentUpdate::Incremental { base, .. } if base == generation));
    assert_eq!(take(&mut set, update).index, renamed);
    let peer = &set[&AssignmentKey::Peer(node_id(2))];
    assert!(matches!(peer, Assignment::Peer(peer) if peer.hostname == "host0"));
}

#[tokio::test]
async fn a_node_that_lies_or_floods_is_refused_and_counted_and_harms_nobody() {
    let store = store(2);
    let table = Arc::<LivenessTable>::default();
    let dispatcher = dispatcher(&store, &table);
    let leader = lead(&store, &table);
    let honest = tokio::spawn(obedient_agent(dispatcher.clone(), 1));
    store.commit(vec![Change::Create(control_model::Object::Service(Box::new(service(4))))]).expect("new");
    let liar = node_id(2);
    let mut session = dispatcher.open_session(liar, None, description(2)).await.expect("a session");
    let id = next(&mut session).await.expect("open").expect("a first message").session_id;
    let state = wait_for(&store, "tasks on both", |state| running(state) == 2).await;
    let others: Vec<_> = state.tasks().iter().filter(|task| task.node != Some(liar)).collect();
    let own = state.tasks().iter().find(|task| task.node == Some(liar)).expect("it has two");

    let failed = TaskStatus { state: TaskState::Failed, ..TaskStatus::default() };
    let lie = others.iter().map(|task| (task.id, failed.clone())).collect();
    let refused = dispatcher.trust().note(liar, dispatcher.report(liar, &id, lie).await);
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let orphaned = TaskStatus { state: TaskState::Orphaned, ..TaskStatus::default() };
    let refused = dispatcher.trust().note(liar, dispatcher.report(liar, &id, vec![(own.id, orphaned)]).await);
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);

    let endless = TaskStatus { state: TaskState::Running, message: "é".repeat(1 << 20), ..obey(own) };
    dispatcher.report(liar, &id, vec![(own.id, endless)]).await.expect("its own task");
    let kept = store.state().tasks().get(&own.id).expect("there").status.message.len();
    assert_eq!(kept, 4096);

    let hollow: Vec<_> = (0..10_000_u128).map(|n| (TaskId::from_bits(n << 64), failed.clone())).collect();
    let mut n_taken = 0;
    let flood = loop {
        match dispatcher.trust().note(liar, dispatcher.report(liar, &id, hollow.clone()).await) {
            Ok(()) => n_taken += 1,
            Err(status) => break status,
        }
        assert!(n_taken < 100, "nobody stops it");
    };
    assert_eq!(flood.code(), Code::ResourceExhausted);
    let large = NodeDescription { hostname: "h".repeat(1 << 20), ..description(2) };
    let refused = dispatcher.trust().note(liar, dispatcher.open_session(liar, None, large).await.map(drop));
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    let beat = || dispatcher.trust().note(liar, dispatcher.heartbeat(liar, &id, Generation::default()));
    let refused = (0..100_000).find_map(|_| beat().err()).expect("somebody stops it");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(dispatcher.trust().n_refused().map(|(_, n)| n), [1, 2, 2]);

    let state = store.state();
    assert!(
        others.iter().all(|task| state.tasks().get(&task.id).is_some_and(|now| now.status == task.status))
    );
    honest.abort();
    leader.abort();
}

#[tokio::test]
async fn a_worker_that_says_it_is_another_is_refused_and_counted_until_the_other_is_silent() {
    let (store, table) = (store(2), Arc::<LivenessTable>::default());
    let dispatcher = dispatcher(&store, &table);
    let (victim, liar) = (node_id(1), node_id(2));
    let from = |n| Some(IpAddr::from([198, 18, 0, n]));
    let _heard = dispatcher.open_session(victim, from(1), description(1)).await.expect("a session");
    let before = store.state();
    let lie = NodeDescription { hostname: "node2".into(), ..description(1) };
    let open = async || dispatcher.open_session(liar, from(2), lie.clone()).await.map(drop);
    let refused = dispatcher.trust().note(liar, open().await).expect_err("not its address");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let owner = format!("address 198.18.0.1 is that of node {victim} (node1), which is heard");
    assert!(refused.message().starts_with(&owner), "{}", refused.message());
    assert_eq!(dispatcher.trust().n_refused()[0], (Lie::Foreign, 1));
    assert_eq!(store.state().nodes().get(&liar), before.nodes().get(&liar), "nothing was written");

    let status = control_model::object::NodeStatus {
        state: control_model::object::NodeState::Down,
        ..Default::default()
    };
    store.commit(vec![Change::NodeStatus { id: victim, status }]).expect("a known node");
    open().await.expect("nobody else has it");
    assert_eq!(store.state().nodes().get(&liar).expect("there").description, lie);
}

#[tokio::test]
async fn a_session_has_one_stream_of_assignments_the_newest() {
    let (store, table) = (store(2), Arc::default());
    let dispatcher = dispatcher(&store, &table);
    let me = node_id(1);
    let mut session = dispatcher.open_session(me, None, description(1)).await.expect("a session");
    let id = next(&mut session).await.expect("open").expect("a first message").session_id;
    let mut first = dispatcher.open_assignments(me, &id).expect("assignments");
    next(&mut first).await.expect("open").expect("a complete set");
    let mut second = dispatcher.open_assignments(me, &id).expect("assignments");
    assert!(next(&mut first).await.is_none(), "it ended");
    next(&mut second).await.expect("open").expect("a complete set");
    let renamed = NodeDescription { hostname: "renamed".into(), ..description(2) };
    store
        .commit(vec![Change::NodeDescription { id: node_id(2), description: Box::new(renamed) }])
        .expect("a known node");
    next(&mut second).await.expect("open").expect("an increment");

    let mut refused = 0;
    for _ in 0..200 {
        refused += usize::from(dispatcher.open_assignments(me, &id).is_err());
    }
    assert!((100..150).contains(&refused), "each begins with all of them: {refused}");
}
