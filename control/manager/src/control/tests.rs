use std::collections::BTreeSet;

use control_model::object::{NodeDescription, NodeStatus, Slot, TaskStatus, UpdateState};
use control_model::spec::{
    ContainerSpec, DnsConfig, NetworkSpec, NodeSpec, PortConfig, Protocol, PublishMode, Role, ServiceMode,
    ServiceSpec, TaskSpec,
};
use control_model::standalone::AttachRequest;
use control_model::{Change, Node, NodeId, Object, ObjectRef, Task, TaskId, TaskState};
use control_store::{EventReceiver, LocalStore};

use super::*;
use crate::testing::{node_id, store};

fn control(n_nodes: u8) -> (Arc<LocalStore>, Control) {
    let store = store(n_nodes);
    (store.clone(), Control { clock: || Timestamp(7), ..Control::new(store) })
}

fn spec(name: &str) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        task: TaskSpec {
            container: ContainerSpec { image: "whoami".into(), ..ContainerSpec::default() },
            ..TaskSpec::default()
        }
        .into(),
        ..ServiceSpec::default()
    }
}

fn with_replicas(name: &str, replicas: u64) -> ServiceSpec {
    ServiceSpec { mode: ServiceMode::Replicated { replicas }, ..spec(name) }
}

fn role(role: Role) -> NodeSpec {
    NodeSpec { role, ..NodeSpec::default() }
}

fn version_of(store: &LocalStore, node: NodeId) -> u64 {
    store.state().nodes().get(&node).expect("a node").meta.spec_version
}

#[tokio::test]
async fn objects_are_found_by_id_name_and_beginning() {
    let (store, control) = control(2);
    let id = control.create_service(spec("web")).await.expect("a service");
    for input in [id.to_string(), "web".into(), id.to_string()[..6].to_owned()] {
        assert_eq!(control.service(&input).await.expect("found").id, id, "{input}");
    }
    assert_eq!(control.service("we").await.expect_err("no name").message(), "service we not found");
    assert_eq!(control.service("").await.expect_err("nothing").http_status(), 404);
    for id in [1, 2] {
        let named = NodeDescription { hostname: "twin".into(), ..NodeDescription::default() };
        let change = Change::NodeDescription { id: node_id(id), description: Box::new(named) };
        store.commit(vec![change]).expect("a description");
    }
    let twins = control.node("twin").await.expect_err("both are called so");
    assert_eq!(
        (twins.message().as_str(), twins.http_status()),
        ("node twin is ambiguous (2 matches found)", 400)
    );
    let ambiguous = control.node("0").await.expect_err("both ids begin so");
    assert_eq!(
        (ambiguous.message().as_str(), ambiguous.http_status()),
        ("node 0 is ambiguous (2 matches found)", 400)
    );
}

#[tokio::test]
async fn a_status_report_does_not_make_a_users_update_fail() {
    let (store, control) = control(1);
    let id = control.create_service(spec("web")).await.expect("a service");
    let version = control.service("web").await.expect("found").meta.spec_version;
    let status = Some(control_model::object::UpdateStatus {
        state: UpdateState::Completed,
        started_at: Timestamp(1),
        completed_at: None,
        message: String::new(),
    });
    store.commit(vec![Change::UpdateStatus { id, status, of: None }]).expect("a report");
    control
        .update_service("web", version, with_replicas("web", 3))
        .await
        .expect("the spec is still that one");
    let late = control.update_service("web", version, with_replicas("web", 4)).await;
    assert_eq!(late, Err(ControlError::OutOfSequence));
    let kept = control.service("web").await.expect("found");
    assert_eq!(kept.spec.mode, ServiceMode::Replicated { replicas: 3 });
    assert_eq!(
        kept.previous_spec.as_ref().map(|spec| spec.mode),
        Some(ServiceMode::Replicated { replicas: 1 })
    );
    assert_eq!(kept.update_status, None);
}

#[tokio::test]
async fn a_rollback_swaps_the_specs() {
    let (_, control) = control(1);
    let id = control.create_service(spec("web")).await.expect("a service");
    let version = async || control.service("web").await.expect("found").meta.spec_version;
    assert_eq!(control.rollback_service("web", version().await).await, Err(ControlError::NoPreviousSpec(id)));
    control.update_service("web", version().await, with_replicas("web", 5)).await.expect("an update");
    control.rollback_service("web", version().await).await.expect("a rollback");
    let back = control.service("web").await.expect("found");
    assert_eq!(back.spec.mode, ServiceMode::Replicated { replicas: 1 });
    let status = back.update_status.as_ref().expect("a status");
    assert_eq!((status.state, status.started_at), (UpdateState::RollbackStarted, Timestamp(7)));
}

#[tokio::test]
async fn what_is_being_removed_is_not_shown() {
    let (store, control) = control(1);
    control.create_service(spec("web")).await.expect("a service");
    control
        .create_network(NetworkSpec { name: "app".into(), ..NetworkSpec::default() })
        .await
        .expect("a network");
    control.remove_service("web").await.expect("removed");
    control.remove_network("app").await.expect("removed");
    assert_eq!(control.list_services(&ServiceFilter::default()).await.expect("a list").len(), 0);
    assert!(control.list_networks().await.expect("a list").iter().all(|network| network.spec.ingress));
    assert_eq!(control.remove_service("web").await.expect_err("gone").http_status(), 404);
    let state = store.state();
    assert!(state.service_by_name("web").expect("still leaving").pending_delete);
}

#[tokio::test]
async fn a_demotion_keeps_a_quorum() {
    let (store, control) = control(3);
    let everyone = BTreeSet::new();
    for n in 1..=3 {
        let id = node_id(n);
        control
            .update_node(&id.to_string(), version_of(&store, id), role(Role::Manager), &everyone)
            .await
            .expect("promoted");
    }
    let demote = async |n: u8, unreachable: &BTreeSet<NodeId>| {
        let id = node_id(n);
        control.update_node(&id.to_string(), version_of(&store, id), role(Role::Worker), unreachable).await
    };
    assert_eq!(demote(1, &[node_id(2)].into()).await, Err(ControlError::Quorum));
    demote(1, &everyone).await.expect("two are left");
    demote(2, &everyone).await.expect("one is left");
    assert_eq!(demote(3, &everyone).await, Err(ControlError::LastManager));
}

#[tokio::test]
async fn removing_a_node_orphans_its_tasks() {
    let (store, control) = control(1);
    let id = node_id(1);
    let service = control.create_service(spec("web")).await.expect("a service");
    let task = TaskId::from_bits(9);
    let running = Task {
        service_name: "web".into(),
        node: Some(id),
        spec: spec("web").task,
        status: TaskStatus { state: TaskState::Running, ..TaskStatus::default() },
        ..Task::new(task, service, Slot::Replica(1))
    };
    store.commit(vec![Change::Create(Object::Task(Box::new(running)))]).expect("a task");
    assert_eq!(control.remove_node("node1", false).await, Err(ControlError::NotDown(id)));
    store.commit(vec![Change::NodeStatus { id, status: NodeStatus::default() }]).expect("silent");
    control.remove_node("node1", false).await.expect("removed");
    let state = store.state();
    assert!(state.nodes().get(&id).is_none());
    assert_eq!(state.tasks().get(&task).expect("kept").status.state, TaskState::Orphaned);
}

#[tokio::test]
async fn a_create_waits_for_the_name_to_be_free() {
    let (store, control) = control(1);
    let old = control.create_service(spec("web")).await.expect("a service");
    control.remove_service("web").await.expect("removed");
    let (waiting, control) = (control.clone(), control);
    let create = tokio::spawn(async move { waiting.create_service(spec("web")).await });
    tokio::task::yield_now().await;
    assert!(!create.is_finished());
    store.commit(vec![Change::Delete(ObjectRef::Service(old))]).expect("gone");
    let new = create.await.expect("no panic").expect("the name is free");
    assert_eq!(control.service("web").await.expect("found").id, new);
}

/// As fast as a script is: `docker network rm ingress` and the next one under another name.
#[tokio::test]
async fn a_new_ingress_network_waits_for_the_old_one_to_go() {
    let (store, control) = control(1);
    let old = store.state().ingress_network().expect("made").id;
    control.remove_network("ingress").await.expect("unused");
    let spec = NetworkSpec { name: "mesh".into(), ingress: true, ..NetworkSpec::default() };
    let create = control.create_network(spec);
    tokio::pin!(create);
    assert!(futures::poll!(&mut create).is_pending(), "the old one is there still");
    let mut published = self::spec("web");
    published.endpoint.ports = vec![PortConfig::new(Protocol::Tcp, 80, 8080, PublishMode::Ingress)];
    let refused = control.create_service(published).await;
    assert!(matches!(refused, Err(ControlError::NoIngress)), "{refused:?}");
    store.commit(vec![Change::Delete(ObjectRef::Network(old))]).expect("there");
    let new = create.await.expect("the old one is gone");
    assert_eq!(store.state().ingress_network().map(|network| network.id), Some(new));
}

#[tokio::test]
async fn a_promotion_waits_for_the_demotion_before_it() {
    let (store, control) = control(2);
    let id = node_id(1);
    let with_certificate = |role| {
        let old = (**store.state().nodes().get(&id).expect("a node")).clone();
        let expected = old.meta.version;
        let object = Object::Node(Box::new(Node { certificate_role: role, ..old }));
        store.commit(vec![Change::Update { object, expected }]).expect("its certificate");
    };
    control
        .update_node("node1", version_of(&store, id), role(Role::Worker), &BTreeSet::new())
        .await
        .expect("a worker");
    with_certificate(Role::Manager);
    let version = version_of(&store, id);
    let waiting = control.clone();
    let promotion = tokio::spawn(async move {
        waiting.update_node("node1", version, role(Role::Manager), &BTreeSet::new()).await
    });
    tokio::task::yield_now().await;
    assert!(!promotion.is_finished());
    with_certificate(Role::Worker);
    promotion.await.expect("no panic").expect("promoted");
    assert_eq!(store.state().nodes().get(&id).expect("a node").spec.role, Role::Manager);
}

#[tokio::test]
async fn tasks_are_listed_by_what_they_belong_to() {
    let (store, control) = control(1);
    let id = control.create_service(spec("web")).await.expect("a service");
    let of = |services: &[&str], nodes: &[&str]| TaskFilter {
        services: services.iter().map(|&name| name.to_owned()).collect(),
        nodes: nodes.iter().map(|&name| name.to_owned()).collect(),
        ..TaskFilter::default()
    };
    assert_eq!(control.list_tasks(&of(&["web"], &["node1"])).await, Ok(Vec::new()));
    assert_eq!(
        control.list_tasks(&of(&["none"], &[])).await.expect_err("no service").message(),
        "service none not found"
    );
    assert_eq!(
        control.list_tasks(&of(&[], &["none"])).await.expect_err("no node").message(),
        "node none not found"
    );
    let task = Task::new(TaskId::from_bits(1), id, Slot::Replica(1));
    let task = Task { node: Some(node_id(1)), ..task };
    store.commit(vec![Change::Create(Object::Task(Box::new(task)))]).expect("a task");
    // By name and by id.
    let (service, node) = (id.to_string(), node_id(1).to_string());
    for filter in [of(&["web", &service], &[]), of(&[], &["node1", &node])] {
        assert_eq!(control.list_tasks(&filter).await.expect("found").len(), 1, "once");
    }
}

#[tokio::test]
async fn rotated_tokens_differ_and_keep_the_digest() {
    let (_, control) = control(1);
    let cluster = control.cluster().await.expect("a cluster");
    let rotation = Rotation { worker_token: true, ..Rotation::default() };
    control.update_cluster(cluster.meta.spec_version, cluster.spec.clone(), rotation).await.expect("rotated");
    let new = control.cluster().await.expect("a cluster");
    assert_ne!(new.ca.worker_token, cluster.ca.worker_token);
    assert_eq!(new.ca.manager_token, cluster.ca.manager_token);
}

#[tokio::test]
async fn the_unlock_key_comes_and_goes_with_autolock_and_is_rotated_on_request() {
    let (_, control) = control(1);
    let update = async |autolock, unlock_key| {
        let old = control.cluster().await.expect("a cluster");
        let spec = control_model::spec::ClusterSpec { autolock, ..old.spec.clone() };
        let rotation = Rotation { unlock_key, ..Rotation::default() };
        control.update_cluster(old.meta.spec_version, spec, rotation).await.expect("updated");
        control.cluster().await.expect("a cluster").ca.unlock_key
    };
    assert_eq!(update(false, true).await, None, "without autolock there is nothing to be rotated");
    let first = update(true, false).await.expect("a key");
    assert_eq!(update(true, false).await, Some(first), "other updates keep the key");
    let second = update(true, true).await.expect("a key");
    assert_ne!(second, first);
    assert_eq!(update(false, false).await, None);
    assert_ne!(update(true, false).await, Some(second), "a key that was given up is not used again");
}

/// A replica that hears no leader.
struct Leaderless(Arc<LocalStore>);

#[async_trait::async_trait]
impl ReplicatedStore for Leaderless {
    async fn propose(&self, _: Vec<Change>) -> Result<u64, ProposeError> {
        Err(ProposeError::NoLeader("The swarm does not have a leader. Missing: m2".into()))
    }

    async fn linearize(&self) -> Result<(), ReadError> {
        Err(ReadError::NoLeader("The swarm does not have a leader. Missing: m2".into()))
    }

    fn state(&self) -> Arc<State> {
        self.0.state()
    }

    fn subscribe(&self) -> (Arc<State>, EventReceiver) {
        self.0.subscribe()
    }
}

#[tokio::test]
async fn without_a_leader_reads_are_marked_and_writes_are_refused() {
    let (store, control) = control(2);
    control.create_service(spec("web")).await.expect("a service");
    let stale = Arc::new(AtomicBool::new(false));
    let leaderless = Control::with_mark(Arc::new(Leaderless(store)), stale.clone());
    assert!(!stale.load(Ordering::Relaxed));
    assert_eq!(leaderless.list_nodes(&NodeFilter::default()).await.expect("as it is").len(), 2);
    assert!(stale.swap(false, Ordering::Relaxed));
    let service = leaderless.service("web").await.expect("as it is");
    assert!(stale.load(Ordering::Relaxed));
    let refused = leaderless.update_service("web", service.meta.spec_version, with_replicas("web", 2)).await;
    let refused = refused.expect_err("nobody takes it");
    assert_eq!(
        (refused.message().as_str(), refused.http_status()),
        ("rpc error: code = Unknown desc = The swarm does not have a leader. Missing: m2", 500)
    );
    // A replica that has nothing yet has nothing to show.
    let empty = Arc::new(LocalStore::new(crate::clock::now));
    let empty = Control::new(Arc::new(Leaderless(empty)));
    assert!(matches!(empty.list_networks().await, Err(ControlError::NoLeader(_))));
}

#[test]
fn made_up_names_are_names() {
    let free = random_service_name(|_| false);
    assert_eq!(control_model::validate::validate_name(&free), Ok(()));
    let taken = random_service_name(|name| !name.ends_with(|c: char| c.is_ascii_digit()));
    assert!(taken.ends_with(|c: char| c.is_ascii_digit()), "{taken}");
}

#[tokio::test]
async fn nodes_get_places_in_attachable_networks() {
    let (store, control) = control(2);
    let (node, other) = (node_id(1), node_id(2));
    let request = |id: u128, network: &str| AttachRequest {
        id: TaskId::from_bits(id),
        name: "web".into(),
        hostname: "web".into(),
        aliases: Vec::new(),
        network: network.into(),
        ports: Vec::new(),
        dns: DnsConfig::default(),
    };
    for (name, attachable) in [("open", true), ("closed", false)] {
        let spec = NetworkSpec { name: name.into(), attachable, ..NetworkSpec::default() };
        control.create_network(spec).await.expect("a network");
    }
    control.attach(node, &request(7, "open")).await.expect("a place");
    control.attach(node, &request(7, "open")).await.expect("the same");
    let refused = control.attach(node, &request(8, "closed")).await.expect_err("not attachable");
    assert_eq!(
        refused.message(),
        "rpc error: code = PermissionDenied desc = network closed not manually attachable"
    );
    let missing = control.attach(node, &request(8, "none")).await.expect_err("no network");
    assert_eq!((missing.http_status(), missing.message().as_str()), (404, "network none not found"));

    let id = TaskId::from_bits(7);
    let desired = || store.state().tasks().get(&id).map(|task| task.desired_state);
    assert_eq!(desired(), Some(TaskState::Running));
    assert!(
        control.list_tasks(&TaskFilter::default()).await.expect("a list").is_empty(),
        "it is no task of users"
    );
    control.detach(other, id).await.expect("nothing of its own");
    assert_eq!(desired(), Some(TaskState::Running));
    control.detach(node, id).await.expect("given up");
    control.detach(node, id).await.expect("given up already");
    assert_eq!(desired(), Some(TaskState::Remove));
}
