//! The whole agent against a dispatcher over mutual TLS.

mod common;

use std::sync::Arc;

use common::{AGENT, Ca, FakeDataPlane, FakeExecutor, Manager, WANTED_BYTES, container, options, until};
use control_agent::{Agent, AgentOptions};
use control_model::executor::Found;
use control_model::object::{NodeDescription, Slot, TaskStatus};
use control_model::spec::{NetworkSpec, PortConfig, Protocol, PublishMode, Role};
use control_model::{
    Assignment, AssignmentKey, AssignmentUpdate, Generation, Network, NetworkId, ServiceId, Task, TaskId,
    TaskState,
};
use dataplane_model::{NodeView, PublishedPort, Sandbox, SandboxId, Table};
use tokio::sync::watch;

const T1: TaskId = TaskId::from_bits(1);
const T2: TaskId = TaskId::from_bits(2);

fn task(id: TaskId, change: impl FnOnce(&mut Task)) -> Assignment {
    let mut task = Task {
        service_name: "s".into(),
        node: Some(AGENT),
        spec_version: 1,
        status: TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() },
        ..Task::new(id, ServiceId::from_bits(1), Slot::Replica(1))
    };
    change(&mut task);
    Assignment::Task(Box::new(task))
}

fn network(bits: u128) -> Assignment {
    Assignment::Network(Box::new(Network {
        id: NetworkId::from_bits(bits),
        meta: control_model::object::Meta::default(),
        spec: NetworkSpec::default(),
        state: None,
        pending_delete: false,
    }))
}

fn generation(index: u64) -> Generation {
    Generation { epoch: 0, index }
}

fn complete(index: u64, set: Vec<Assignment>) -> AssignmentUpdate {
    AssignmentUpdate::Complete { generation: generation(index), set }
}

fn change(base: u64, index: u64, upserts: Vec<Assignment>, removals: Vec<AssignmentKey>) -> AssignmentUpdate {
    AssignmentUpdate::Incremental { base: generation(base), generation: generation(index), upserts, removals }
}

fn is(heard: &common::Heard, task: TaskId, state: TaskState) -> bool {
    heard.statuses.get(&task).is_some_and(|status| status.state == state)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_lives_from_its_assignment_to_its_removal() {
    let ca = Ca::new();
    let rejected = task(T2, |task| task.spec.container.image = "missing".into());
    let mut manager = Manager::start(&ca, complete(10, vec![task(T1, |_| ()), rejected])).await;
    let (executor, dataplane) = (Arc::new(FakeExecutor::default()), FakeDataPlane::new());
    let agent = Agent::start(options(&ca, vec![manager.addr]), executor.clone(), dataplane.clone());
    let heard = until(&mut manager.heard, |heard| {
        is(heard, T1, TaskState::Running) && is(heard, T2, TaskState::Rejected) && heard.applied == 10
    })
    .await;
    assert_eq!(heard.hostname, "agent-host");
    assert_eq!(heard.statuses[&T2].error, "No such image: missing:latest");
    let state = until(&mut agent.state(), |state| state.connected.is_some()).await;
    assert_eq!((state.connected, state.desired_role), (Some(manager.addr), Some(Role::Manager)));
    assert_eq!((state.managers[0].addr, state.root_pem.as_str()), (manager.addr, "roots"));
    assert_eq!(*agent.gossip_keys().borrow(), common::keys());
    // Wanted to stop, drained with the next write: the signal comes after both.
    let stop = |drained| {
        task(T1, move |task| {
            task.desired_state = TaskState::Shutdown;
            task.drained = drained;
        })
    };
    manager.send(&change(10, 11, vec![stop(false)], vec![AssignmentKey::Task(T2)])).await;
    until(&mut manager.heard, |heard| heard.applied == 11).await;
    assert!(!executor.calls().borrow().contains(&"shutdown 1".to_owned()), "not drained yet");
    manager.send(&change(11, 12, vec![stop(true)], vec![])).await;
    let heard = until(&mut manager.heard, |heard| is(heard, T1, TaskState::Shutdown)).await;
    assert_eq!(heard.statuses[&T1].container.as_ref().expect("it had one").exit_code, 143);
    manager.send(&change(12, 13, vec![], vec![AssignmentKey::Task(T1)])).await;
    until(&mut executor.calls(), |calls| calls.contains(&"remove 1".to_owned())).await;
    let view = until(&mut dataplane.views(), |view| {
        view.as_ref().is_some_and(|view| view.sandboxes.is_empty() && view.generation.index == 13)
    })
    .await;
    assert!(view.is_some());
    agent.stop().await;
}

/// Containers that no service made: nobody assigns them, and nobody takes their sandboxes away.
#[tokio::test(flavor = "multi_thread")]
async fn local_sandboxes_are_in_every_view() {
    let ca = Ca::new();
    let mut manager = Manager::start(&ca, complete(10, vec![task(T1, |_| ())])).await;
    let (executor, dataplane) = (Arc::new(FakeExecutor::default()), FakeDataPlane::new());
    let [first, second] = ["first", "second"].map(|name| SandboxId(name.to_owned()));
    let local = watch::Sender::new(Table::unit(first.clone(), sandbox()));
    let options = AgentOptions { local_sandboxes: local.subscribe(), ..options(&ca, vec![manager.addr]) };
    let agent = Agent::start(options, executor.clone(), dataplane.clone());
    let mut views = dataplane.views();
    let view = until(&mut views, Option::is_some).await.expect("there is one");
    assert!(view.sandboxes.contains_key(&first), "it is in the first view");
    until(&mut manager.heard, |heard| is(heard, T1, TaskState::Running)).await;
    local.send_replace(Table::unit(second.clone(), sandbox()));
    let has = |id: &SandboxId, view: &Option<NodeView>| {
        view.as_ref().is_some_and(|view| view.sandboxes.contains_key(id))
    };
    until(&mut views, |view| has(&second, view) && !has(&first, view)).await;
    manager.send(&change(10, 11, vec![], vec![AssignmentKey::Task(T1)])).await;
    let view = until(&mut views, |view| view.as_ref().is_some_and(|view| view.sandboxes.len() == 1)).await;
    assert!(has(&second, &view), "the task's alone is gone");
    agent.stop().await;
}

/// Who has a port first keeps it: the task waits for it, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_gets_no_port_that_a_local_container_has() {
    let ca = Ca::new();
    let port = PortConfig::new(Protocol::Tcp, 80, 8080, PublishMode::Host);
    let clashes = task(T1, |task| task.ports = vec![port]);
    let published = PublishedPort { protocol: 6, published: 8080, target: 80 };
    let row = Sandbox { host_ports: vec![published], ..sandbox() };
    let local = watch::Sender::new(Table::unit(SandboxId("first".into()), row));
    let mut manager = Manager::start(&ca, complete(10, vec![clashes])).await;
    let dataplane = FakeDataPlane::new();
    let options = AgentOptions { local_sandboxes: local.subscribe(), ..options(&ca, vec![manager.addr]) };
    let agent = Agent::start(options, Arc::new(FakeExecutor::default()), dataplane.clone());
    let words = "Bind for 0.0.0.0:8080 failed: port is already allocated";
    until(&mut manager.heard, |heard| {
        heard.statuses.get(&T1).is_some_and(|status| status.error.ends_with(words))
    })
    .await;
    local.send_replace(Table::new());
    until(&mut manager.heard, |heard| is(heard, T1, TaskState::Running)).await;
    let view = dataplane.views().borrow().clone().expect("there is one");
    let ports = view.sandboxes.values().flat_map(|row| &row.host_ports).collect::<Vec<_>>();
    assert_eq!(ports, [&published]);
    agent.stop().await;
}

fn sandbox() -> Sandbox {
    Sandbox {
        task_name: "web".into(),
        hostname: "web".into(),
        attachments: Vec::new(),
        egress: true,
        host_ports: Vec::new(),
        dns_servers: Vec::new(),
        dns_options: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_larger_than_other_messages_is_taken() {
    let ca = Ca::new();
    let large = task(T2, |task| {
        task.spec.container.image = "missing".into();
        task.spec.container.env = vec!["x".repeat(control_rpc::MAX_MESSAGE_BYTES)];
    });
    let mut manager = Manager::start(&ca, complete(10, vec![large])).await;
    let (executor, dataplane) = (Arc::new(FakeExecutor::default()), FakeDataPlane::new());
    let agent = Agent::start(options(&ca, vec![manager.addr]), executor, dataplane);
    until(&mut manager.heard, |heard| is(heard, T2, TaskState::Rejected) && heard.applied == 10).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_adopts_what_runs() {
    let ca = Ca::new();
    let running = |id| task(id, |task| task.status.state = TaskState::Running);
    let mut manager = Manager::start(&ca, complete(5, vec![running(T1)])).await;
    let (executor, dataplane) = (Arc::new(FakeExecutor::default()), FakeDataPlane::new());
    let found = |task| Found { task, status: container(task), exit: None };
    *executor.found.lock().expect("not poisoned") = vec![found(T1), found(T2)];
    let agent = Agent::start(options(&ca, vec![manager.addr]), executor.clone(), dataplane.clone());
    // T2 is in no set: it goes, after the set has come.
    until(&mut executor.calls(), |calls| calls.contains(&"remove 2".to_owned())).await;
    executor.exit(T1, 9);
    let heard = until(&mut manager.heard, |heard| is(heard, T1, TaskState::Failed)).await;
    assert_eq!(heard.statuses[&T1].error, "task: non-zero exit (9)");
    let calls = executor.calls().borrow().clone();
    assert!(!calls.iter().any(|call| call.ends_with(" 1")), "no new start: {calls:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_survive_refusals_and_go_to_the_next_manager() {
    let ca = Ca::new();
    let set = || complete(5, vec![task(T1, |_| ())]);
    let mut managers = [Manager::start(&ca, set()).await, Manager::start(&ca, set()).await];
    let addrs: Vec<_> = managers.iter().map(|manager| manager.addr).collect();
    for manager in &managers {
        manager.list(addrs.clone());
        manager.refuse_statuses(true);
    }
    let executor = Arc::new(FakeExecutor::default());
    let agent = Agent::start(options(&ca, addrs.clone()), executor.clone(), FakeDataPlane::new());
    until(&mut executor.calls(), |calls| calls.contains(&"start 1".to_owned())).await;
    // One manager takes statuses again; the agent finds it, whichever it was with.
    managers[0].refuse_statuses(false);
    until(&mut managers[0].heard, |heard| is(heard, T1, TaskState::Running)).await;
    // That one dies: everything is said again to the other.
    managers[1].refuse_statuses(false);
    managers[0].kill();
    until(&mut managers[1].heard, |heard| is(heard, T1, TaskState::Running)).await;
    // A session that ends and a new one with the same manager: again.
    let n_before = managers[1].heard.borrow().history.len();
    managers[1].close_session();
    until(&mut managers[1].heard, |heard| heard.history.len() > n_before).await;
    assert_eq!(executor.calls().borrow().iter().filter(|call| *call == "start 1").count(), 1);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_comes_is_told_at_once() {
    let ca = Ca::new();
    let mut manager = Manager::start(&ca, complete(5, vec![])).await;
    let addresses = Arc::new(std::sync::Mutex::new(vec![std::net::IpAddr::from([198, 18, 0, 1])]));
    let shown = addresses.clone();
    let describe = move || NodeDescription {
        addresses: shown.lock().expect("not poisoned").clone(),
        ..NodeDescription::default()
    };
    let options = AgentOptions { describe: Arc::new(describe), ..options(&ca, vec![manager.addr]) };
    let agent = Agent::start(options, Arc::new(FakeExecutor::default()), FakeDataPlane::new());
    until(&mut manager.heard, |heard| heard.sessions == 1).await;
    let both = [[198, 18, 0, 1], [198, 18, 0, 200]].map(std::net::IpAddr::from).to_vec();
    addresses.lock().expect("not poisoned").clone_from(&both);
    until(&mut manager.heard, |heard| heard.sessions == 2 && heard.addresses == both).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_is_refused() {
    let ca = Ca::new();
    let mut manager = Manager::start(&ca, complete(50, vec![task(T1, |_| ())])).await;
    let (executor, dataplane) = (Arc::new(FakeExecutor::default()), FakeDataPlane::new());
    let agent = Agent::start(options(&ca, vec![manager.addr]), executor.clone(), dataplane.clone());
    until(&mut manager.heard, |heard| is(heard, T1, TaskState::Running) && heard.applied == 50).await;
    // A manager that is behind offers a set without the task.
    manager.set_first(complete(49, vec![]));
    manager.close_session();
    let mut state = agent.state();
    let refused = until(&mut state, |state| state.error.contains("older")).await;
    assert_eq!(refused.connected, None);
    assert_eq!(dataplane.views().borrow().as_ref().expect("a view").generation.index, 50);
    assert!(!executor.calls().borrow().contains(&"shutdown 1".to_owned()));
    manager.set_first(complete(51, vec![]));
    until(&mut executor.calls(), |calls| calls.contains(&"remove 1".to_owned())).await;
    agent.stop().await;
}

/// Two sides of a cluster: the new one was forced out of the old one, which still runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_of_the_old_side_is_not_obeyed_again() {
    let of_epoch =
        |epoch, index, set| AssignmentUpdate::Complete { generation: Generation { epoch, index }, set };
    let ca = Ca::new();
    let mut old = Manager::start(&ca, of_epoch(1, 500, vec![])).await;
    let mut new = Manager::start(&ca, of_epoch(2, 50, vec![task(T1, |_| ())])).await;
    let kept = Arc::new(std::sync::Mutex::new(1));
    let disk = kept.clone();
    let options = |managers, epoch| {
        let disk = disk.clone();
        let keep_epoch = Arc::new(move |epoch| {
            *disk.lock().expect("not poisoned") = epoch;
            Ok(())
        });
        AgentOptions { epoch, keep_epoch, ..options(&ca, managers) }
    };
    let (executor, dataplane) = (Arc::new(FakeExecutor::default()), FakeDataPlane::new());
    let agent = Agent::start(options(vec![new.addr], 1), executor.clone(), dataplane.clone());
    until(&mut new.heard, |heard| is(heard, T1, TaskState::Running)).await;
    assert_eq!(*kept.lock().expect("not poisoned"), 2, "before the first order is obeyed");
    agent.stop().await;

    // After a restart it finds the old side alone; the task stays.
    let epoch = *kept.lock().expect("not poisoned");
    let agent = Agent::start(options(vec![old.addr], epoch), executor.clone(), dataplane.clone());
    let refused = until(&mut agent.state(), |state| state.error.contains("fencing epoch 1")).await;
    assert_eq!((refused.connected, refused.managers, refused.desired_role), (None, vec![], None));
    until(&mut old.heard, |heard| heard.sessions >= 2).await;
    assert!(!executor.calls().borrow().contains(&"shutdown 1".to_owned()));
    agent.stop().await;

    // The new side on the address of the old one.
    old.set_first(of_epoch(2, 51, vec![]));
    let agent = Agent::start(options(vec![old.addr], epoch), executor.clone(), dataplane.clone());
    until(&mut agent.state(), |state| state.connected == Some(old.addr)).await;
    until(&mut old.heard, |heard| heard.applied == 51).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_removes_everything() {
    let ca = Ca::new();
    let mut manager = Manager::start(&ca, complete(5, vec![task(T1, |_| ())])).await;
    let (executor, dataplane) = (Arc::new(FakeExecutor::default()), FakeDataPlane::new());
    let agent = Agent::start(options(&ca, vec![manager.addr]), executor.clone(), dataplane.clone());
    until(&mut manager.heard, |heard| is(heard, T1, TaskState::Running)).await;
    *executor.found.lock().expect("not poisoned") =
        vec![Found { task: T1, status: container(T1), exit: None }];
    agent.leave().await.expect("left");
    assert!(executor.calls().borrow().ends_with(&["terminate 1".to_owned(), "remove 1".to_owned()]));
    assert!(dataplane.views().borrow().as_ref().expect("a view").sandboxes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn assigned_networks_are_shown_as_they_come_and_go() {
    let ca = Ca::new();
    let mut manager = Manager::start(&ca, complete(5, vec![network(1), network(2)])).await;
    let agent = Agent::start(
        options(&ca, vec![manager.addr]),
        Arc::new(FakeExecutor::default()),
        FakeDataPlane::new(),
    );
    let mut networks = agent.networks();
    let ids = |networks: &[Network]| networks.iter().map(|network| network.id.bits()).collect::<Vec<_>>();
    until(&mut networks, |now| ids(now) == [1, 2]).await;
    until(&mut manager.heard, |heard| heard.applied == 5).await;
    let gone = AssignmentKey::Network(NetworkId::from_bits(1));
    manager.send(&change(5, 6, vec![network(3)], vec![gone])).await;
    until(&mut networks, |now| ids(now) == [2, 3]).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managers_questions_are_answered() {
    let ca = Ca::new();
    let manager = Manager::start(&ca, complete(1, vec![])).await;
    let agent = Agent::start(
        options(&ca, vec![manager.addr]),
        Arc::new(FakeExecutor::default()),
        FakeDataPlane::new(),
    );
    let heard = until(&mut manager.heard.clone(), |heard| heard.answers.len() == 4).await;
    assert_eq!(heard.answers[&1], (b"lb".to_vec(), String::new()));
    assert_eq!(heard.answers[&2], (Vec::new(), "no /nodes".to_owned()));
    assert_eq!(heard.answers[&3], (b"logs".repeat(WANTED_BYTES / 4), String::new()), "as much as is wanted");
    assert_eq!(heard.answers[&4], (Vec::new(), "no /nodes".to_owned()));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holdings_are_what_the_managers_assigned() {
    let ca = Ca::new();
    let rows = || vec![network(7), network(8)];
    let manager = Manager::start(&ca, complete(1, rows())).await;
    let agent = Agent::start(
        options(&ca, vec![manager.addr]),
        Arc::new(FakeExecutor::default()),
        FakeDataPlane::new(),
    );
    until(&mut agent.views(), Option::is_some).await;
    let wish = control_rpc::digest(rows()).expect("they can be encoded");
    assert_eq!(agent.holdings().read().await, Some((generation(1), wish.clone())));
    manager.send(&change(1, 2, vec![], vec![AssignmentKey::Network(NetworkId::from_bits(8))])).await;
    until(&mut agent.networks(), |networks| networks.len() == 1).await;
    let (held_at, held) = agent.holdings().read().await.expect("it has some");
    assert_eq!(held_at, generation(2));
    assert_ne!(held, wish);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_says_how_often_its_agents_beat() {
    let ca = Ca::new();
    let mut manager = Manager::start(&ca, complete(10, vec![])).await;
    manager.set_period_ms(100);
    let agent = Agent::start(
        options(&ca, vec![manager.addr]),
        Arc::new(FakeExecutor::default()),
        FakeDataPlane::new(),
    );
    until(&mut manager.heard, |heard| heard.heartbeats > 0).await;
    let began = std::time::Instant::now();
    until(&mut manager.heard, |heard| heard.heartbeats > 20).await;
    // By the second they would take 20 s.
    assert!(began.elapsed() < std::time::Duration::from_secs(15), "{:?}", began.elapsed());
    agent.stop().await;
}
