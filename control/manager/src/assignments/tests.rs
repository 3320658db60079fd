//! Folding increments over random changes gives the set that a fresh start would give.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use control_model::dependency::{DependencyFile, DependencyKind, DependencySpec, Payload};
use control_model::object::{
    ContainerStatus, Endpoint, HealthStatus, Life, Meta, Network, NetworkState, NodeDescription, NodeState,
    NodeStatus, Slot, TaskStatus,
};
use control_model::slow_start::{FIRST_WEIGHT, FULL_WEIGHT};
use control_model::spec::{
    ContainerSpec, NetworkAttachmentSpec, NetworkSpec, PortConfig, Protocol, Role, ServiceMode, ServiceSpec,
    TaskSpec,
};
use control_model::{Change, DependencyId, Entry, Object, ObjectRef, RequestId, Timestamp};
use proptest::prelude::*;

use super::*;

const N_NODES: u8 = 3;
const N_NETWORKS: u8 = 3;
const N_SERVICES: u8 = 3;
const N_TASKS: u8 = 6;
/// The node whose set is looked at.
const ME: u8 = 1;
/// The network that is the routing mesh's.
const INGRESS: u8 = 1;

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Node { id: u8, vtep: bool, alive: bool },
    Network { id: u8, allocated: bool },
    Service { id: u8, network: u8, published: bool, allocated: bool },
    Task { id: u8, service: u8, node: u8, networks: Vec<u8> },
    Secret { id: u8, labelled: bool },
    Status { task: u8, state: TaskState },
    Desired { task: u8, state: TaskState },
    Weight { task: u8, weight: u8 },
    Delete(ObjectRef),
}

fn step() -> impl Strategy<Value = Step> {
    let state = || prop::sample::select(TaskState::ALL.to_vec());
    prop_oneof![
        (1..=N_NODES, any::<bool>(), any::<bool>()).prop_map(|(id, vtep, alive)| Step::Node {
            id,
            vtep,
            alive
        }),
        (1..=N_NETWORKS, any::<bool>()).prop_map(|(id, allocated)| Step::Network { id, allocated }),
        (1..=N_SERVICES, 1..=N_NETWORKS, any::<bool>(), any::<bool>()).prop_map(
            |(id, network, published, allocated)| Step::Service { id, network, published, allocated }
        ),
        (1..=N_TASKS, 1..=N_SERVICES, 0..=N_NODES, prop::collection::vec(1..=N_NETWORKS, 0..3))
            .prop_map(|(id, service, node, networks)| Step::Task { id, service, node, networks }),
        (1..=N_SERVICES, any::<bool>()).prop_map(|(id, labelled)| Step::Secret { id, labelled }),
        (1..=N_SERVICES).prop_map(|id| Step::Delete(ObjectRef::Dependency(secret_id(id)))),
        (1..=N_TASKS, state()).prop_map(|(task, state)| Step::Status { task, state }),
        (1..=N_TASKS, state()).prop_map(|(task, state)| Step::Desired { task, state }),
        (1..=N_TASKS, 0..=FULL_WEIGHT).prop_map(|(task, weight)| Step::Weight { task, weight }),
        (1..=N_NODES).prop_map(|id| Step::Delete(ObjectRef::Node(node_id(id)))),
        (1..=N_NETWORKS).prop_map(|id| Step::Delete(ObjectRef::Network(network_id(id)))),
        (1..=N_SERVICES).prop_map(|id| Step::Delete(ObjectRef::Service(service_id(id)))),
        (1..=N_TASKS).prop_map(|id| Step::Delete(ObjectRef::Task(task_id(id)))),
    ]
}

#[test]
fn a_nodes_addresses_are_known_also_when_its_data_path_is_dead_and_since_when() {
    let [vtep, further] =
        [[198, 18, 0, 1], [198, 18, 0, 200]].map(|octets| IpAddr::from(Ipv4Addr::from(octets)));
    let (mut state, id) = (State::default(), node_id(1));
    let mut peer = |changes: Vec<Change>| {
        apply(&mut state, changes);
        let row = set(ME, &state).remove(&AssignmentKey::Peer(id));
        let Some(Assignment::Peer(peer)) = row else { panic!("no peer: {row:?}") };
        assert_eq!(peer.underlay_mtu_bytes, Some(9000));
        (peer.addresses, peer.addresses_since, peer.alive)
    };
    let status = |alive| NodeStatus { data_path_alive: alive, ..NodeStatus::default() };
    let described = |hostname: &str, addresses: &[IpAddr]| {
        let description = NodeDescription {
            hostname: hostname.to_owned(),
            data_path_addr: Some(Ipv4Addr::new(198, 18, 0, 1).into()),
            addresses: addresses.to_vec(),
            underlay_mtu_bytes: Some(9000),
            ..NodeDescription::default()
        };
        Change::NodeDescription { id, description: Box::new(description) }
    };
    let created = vec![Change::Create(Object::Node(Box::new(node(id)))), described("a", &[vtep])];
    assert_eq!(peer(created), (vec![vtep], 1, false));
    assert_eq!(peer(vec![Change::NodeStatus { id, status: status(true) }]), (vec![vtep], 1, true));
    assert_eq!(peer(vec![described("a", &[vtep, further])]), (vec![vtep, further], 3, true));
    assert_eq!(peer(vec![described("b", &[vtep, further])]), (vec![vtep, further], 3, true), "only its name");
    let dead = vec![Change::NodeStatus { id, status: status(false) }];
    assert_eq!(peer(dead), (vec![vtep, further], 3, false));
}

/// The secret of the tasks of the service with the same number.
fn secret(id: u8, labelled: bool) -> Dependency {
    let labels = labelled.then(|| ("a".to_owned(), "b".to_owned())).into_iter().collect();
    let (name, data) = (format!("secret{id}"), Payload(vec![id]));
    let spec = DependencySpec { name, labels, data, is_template: false };
    Dependency::new(secret_id(id), DependencyKind::Secret, spec)
}

fn secret_id(id: u8) -> DependencyId {
    DependencyId::from_bits(id.into())
}

fn node_id(id: u8) -> NodeId {
    NodeId::from_bits(id.into())
}

fn network_id(id: u8) -> NetworkId {
    NetworkId::from_bits(id.into())
}

fn service_id(id: u8) -> ServiceId {
    ServiceId::from_bits(id.into())
}

fn task_id(id: u8) -> TaskId {
    TaskId::from_bits(id.into())
}

/// The changes of a step: what exists is replaced, as its owner would.
fn changes(state: &State, step: &Step) -> Vec<Change> {
    match step {
        Step::Node { id, vtep, alive } => {
            let nodes = state.nodes();
            // Without a tunnel's end and without life it counts as lost.
            let state = if *vtep || *alive { NodeState::Ready } else { NodeState::Down };
            let status = NodeStatus { state, data_path_alive: *alive, ..NodeStatus::default() };
            let data_path_addr = vtep.then(|| IpAddr::from([198, 18, 0, *id]));
            let description = NodeDescription {
                hostname: format!("node{id}"),
                data_path_addr,
                addresses: data_path_addr.into_iter().collect(),
                ..NodeDescription::default()
            };
            let id = node_id(*id);
            let mut changes = vec![
                Change::NodeStatus { id, status },
                Change::NodeDescription { id, description: Box::new(description) },
            ];
            if nodes.get(&id).is_none() {
                changes.insert(0, Change::Create(Object::Node(Box::new(node(id)))));
            }
            changes
        }
        Step::Network { id, allocated } => {
            vec![put(state, Object::Network(Box::new(network(*id, *allocated))))]
        }
        Step::Service { id, network, published, allocated } => {
            vec![put(state, Object::Service(Box::new(service(*id, *network, *published, *allocated))))]
        }
        // One that is new has an id that no task has.
        Step::Secret { id, .. }
            if state.dependencies().get(&secret_id(*id)).is_none()
                && state.tasks().iter().any(|task| task.service == service_id(*id)) =>
        {
            Vec::new()
        }
        Step::Secret { id, labelled } => {
            vec![put(state, Object::Dependency(Box::new(secret(*id, *labelled))))]
        }
        Step::Task { id, service, node, networks } => put_task(state, task(*id, *service, *node, networks)),
        Step::Status { task, state } => {
            let status = TaskStatus { state: *state, ..TaskStatus::default() };
            vec![Change::TaskStatus { id: task_id(*task), status }]
        }
        Step::Desired { task, state } => vec![Change::TaskDesired { id: task_id(*task), state: *state }],
        Step::Weight { task, weight } => vec![Change::TaskWeight { id: task_id(*task), weight: *weight }],
        Step::Delete(name) => vec![Change::Delete(*name)],
    }
}

/// A task never changes its service or node, nor goes back: another one takes its place.
fn put_task(state: &State, new: Task) -> Vec<Change> {
    let id = new.id;
    let old = state.tasks().get(&id);
    match old.filter(|old| old.service == new.service && (old.node.is_none() || old.node == new.node)) {
        Some(old) => {
            let status = old.status.clone();
            let new = Task {
                status,
                desired_state: old.desired_state,
                drained: old.drained,
                weight: old.weight,
                ..new
            };
            vec![put(state, Object::Task(Box::new(new)))]
        }
        None => vec![Change::Delete(ObjectRef::Task(id)), Change::Create(Object::Task(Box::new(new)))],
    }
}

fn put(state: &State, object: Object) -> Change {
    let version = match &object {
        Object::Network(o) => state.networks().get(&o.id).map(|o| o.meta.version),
        Object::Service(o) => state.services().get(&o.id).map(|o| o.meta.version),
        Object::Task(o) => state.tasks().get(&o.id).map(|o| o.meta.version),
        Object::Dependency(o) => state.dependencies().get(&o.id).map(|o| o.meta.version),
        Object::Cluster(_) | Object::Node(_) => None,
    };
    match version {
        Some(expected) => Change::Update { object, expected },
        None => Change::Create(object),
    }
}

fn node(id: NodeId) -> Node {
    Node::new(id, Role::Worker)
}

fn network(id: u8, allocated: bool) -> Network {
    Network {
        state: allocated.then(|| NetworkState { vni: 4096 + u32::from(id), ipam: Vec::new() }),
        ..Network::new(
            network_id(id),
            NetworkSpec { name: format!("net{id}"), ingress: id == INGRESS, ..NetworkSpec::default() },
        )
    }
}

fn service(id: u8, network: u8, published: bool, allocated: bool) -> Service {
    let ports = if published {
        vec![PortConfig::new(Protocol::Tcp, 80, 8000 + u16::from(id), PublishMode::Ingress)]
    } else {
        Vec::new()
    };
    let target = NetworkAttachmentSpec { target: network_id(network), aliases: vec![format!("alias{id}")] };
    Service {
        endpoint: allocated.then(|| Endpoint { ports, ..Endpoint::default() }),
        ..Service::new(
            service_id(id),
            ServiceSpec {
                name: format!("service{id}"),
                task: TaskSpec { networks: vec![target], ..TaskSpec::default() }.into(),
                mode: ServiceMode::Global,
                ..ServiceSpec::default()
            },
        )
    }
}

fn task(id: u8, service: u8, node: u8, networks: &[u8]) -> Task {
    let attachments = networks.iter().map(|n| NetworkAttachment {
        network: network_id(*n),
        address: format!("10.{n}.0.{id}/24").parse().expect("an address"),
        aliases: Vec::new(),
    });
    let file = DependencyFile {
        kind: DependencyKind::Secret,
        id: secret_id(service),
        name: format!("secret{service}"),
        target: "key".into(),
        uid: 0,
        gid: 0,
        mode: 0o444,
    };
    let container = ContainerSpec { dependencies: vec![file], ..ContainerSpec::default() };
    Task {
        spec: TaskSpec { container, ..TaskSpec::default() }.into(),
        service_name: format!("service{service}"),
        node: (node > 0).then(|| node_id(node)),
        attachments: attachments.collect(),
        status: TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() },
        ..Task::new(task_id(id), service_id(service), Slot::Replica(id.into()))
    }
}

fn apply(state: &mut State, changes: Vec<Change>) -> Vec<Event> {
    let index = state.index() + 1;
    let entry = Entry { request: RequestId(index.into()), at: Timestamp(0), changes };
    state.apply(index, &entry).expect("the step fits the state")
}

/// All rows of a node in `state`, by key.
fn set(node: u8, state: &State) -> BTreeMap<AssignmentKey, Assignment> {
    let complete = NodeAssignments::new(node_id(node), Arc::new(state.clone())).complete();
    complete.into_iter().map(|row| (row.key(), row)).collect()
}

/// What an agent does with increments.
fn fold(set: &mut BTreeMap<AssignmentKey, Assignment>, increment: Increment) {
    for key in increment.removals {
        assert!(set.remove(&key).is_some(), "removal of {key:?}, which was never sent");
    }
    set.extend(increment.upserts.into_iter().map(|row| (row.key(), row)));
}

/// Statuses are the agent's own words and are not echoed.
fn without_echo(mut set: BTreeMap<AssignmentKey, Assignment>) -> BTreeMap<AssignmentKey, Assignment> {
    for row in set.values_mut() {
        if let Assignment::Task(task) = row {
            task.meta = Meta::default();
            task.status = TaskStatus::default();
            task.life = Life::default();
        }
        // Nor is what is said of a secret beside its files.
        if let Assignment::Dependency(one) = row {
            one.meta = Meta::default();
            one.spec.labels.clear();
        }
    }
    set
}

proptest! {
    #[test]
    fn increments_add_up_to_a_fresh_set(steps in prop::collection::vec((step(), any::<bool>()), 1..60)) {
        let mut state = State::default();
        let mut sender = NodeAssignments::new(node_id(ME), Arc::default());
        let mut received = BTreeMap::new();
        let mut events = Vec::new();
        for (step, send) in steps {
            let changes = changes(&state, &step);
            events.extend(apply(&mut state, changes));
            if send {
                fold(&mut received, sender.advance(Arc::new(state.clone()), &events));
                events.clear();
                prop_assert_eq!(without_echo(received.clone()), without_echo(set(ME, &state)));
            }
        }
    }
}

/// A network that a node is in already becomes the routing mesh's: what was shown because the node is in it is shown no more.
#[test]
fn a_joined_network_that_becomes_the_meshs_shows_no_services() {
    let mut state = State::default();
    let mut sender = NodeAssignments::new(node_id(ME), Arc::default());
    let mut received = BTreeMap::new();
    for step in [
        Step::Service { id: 1, network: INGRESS, published: false, allocated: true },
        Step::Task { id: 1, service: 1, node: ME, networks: vec![INGRESS] },
        Step::Network { id: INGRESS, allocated: false },
    ] {
        let changes = changes(&state, &step);
        let events = apply(&mut state, changes);
        fold(&mut received, sender.advance(Arc::new(state.clone()), &events));
        assert_eq!(without_echo(received.clone()), without_echo(set(ME, &state)));
    }
}

/// Task 1 of service 1, on node 2, in the ingress network alone.
fn one_task() -> State {
    let mut state = State::default();
    for step in [
        Step::Node { id: 2, vtep: true, alive: true },
        Step::Network { id: INGRESS, allocated: true },
        Step::Task { id: 1, service: 1, node: 2, networks: vec![INGRESS] },
    ] {
        let changes = changes(&state, &step);
        apply(&mut state, changes);
    }
    state
}

#[test]
fn a_secret_is_on_the_nodes_that_run_its_tasks_and_as_long_as_they_do() {
    let mut state = one_task();
    for id in [1, 2] {
        let change = put(&state, Object::Dependency(Box::new(secret(id, false))));
        apply(&mut state, vec![change]);
    }
    let secrets = |state: &State, node: u8| {
        let keys = set(node, state).into_keys();
        keys.filter(|key| matches!(key, AssignmentKey::Dependency(_))).collect::<Vec<_>>()
    };
    assert_eq!(secrets(&state, 2), [AssignmentKey::Dependency(secret_id(1))]);
    assert_eq!(secrets(&state, ME), []);
    let status = TaskStatus { state: TaskState::Complete, ..TaskStatus::default() };
    apply(&mut state, vec![Change::TaskStatus { id: task_id(1), status }]);
    assert_eq!(secrets(&state, 2), [], "its task is over");
}

/// A task that had no node gets this one: with it come its secrets, whatever its state was before.
#[test]
fn a_task_that_comes_to_the_node_brings_its_secrets() {
    let mut state = State::default();
    let mut sender = NodeAssignments::new(node_id(ME), Arc::default());
    let mut received = BTreeMap::new();
    for step in [
        Step::Secret { id: 3, labelled: false },
        Step::Task { id: 1, service: 3, node: 0, networks: Vec::new() },
        Step::Task { id: 1, service: 3, node: ME, networks: Vec::new() },
    ] {
        let changes = changes(&state, &step);
        let events = apply(&mut state, changes);
        fold(&mut received, sender.advance(Arc::new(state.clone()), &events));
        assert_eq!(without_echo(received.clone()), without_echo(set(ME, &state)));
    }
}

#[test]
fn what_its_health_check_has_given_up_is_not_ready() {
    let mut state = one_task();
    for (health, at, expected) in [(HealthStatus::Healthy, 1, true), (HealthStatus::Unhealthy, 2, false)] {
        let container = Some(ContainerStatus { health: Some(health), ..ContainerStatus::default() });
        let at = Timestamp(at);
        let status = TaskStatus { state: TaskState::Running, at, container, ..TaskStatus::default() };
        apply(&mut state, vec![Change::TaskStatus { id: task_id(1), status }]);
        let ready = set(ME, &state)
            .values()
            .any(|row| matches!(row, Assignment::Endpoint(endpoint) if endpoint.ready));
        assert_eq!(ready, expected, "{health:?}");
    }
}

#[test]
fn a_backend_is_ready_while_it_runs_is_wanted_and_its_data_path_lives_and_goes_with_its_node() {
    let mut state = State::default();
    let mut ready = Vec::new();
    for step in [
        Step::Node { id: 2, vtep: true, alive: true },
        Step::Network { id: INGRESS, allocated: true },
        Step::Task { id: 1, service: 1, node: 2, networks: vec![INGRESS] },
        Step::Status { task: 1, state: TaskState::Running },
        Step::Node { id: 2, vtep: true, alive: false },
        Step::Node { id: 2, vtep: true, alive: true },
        Step::Node { id: 2, vtep: false, alive: false },
        Step::Node { id: 2, vtep: true, alive: true },
        Step::Desired { task: 1, state: TaskState::Shutdown },
        Step::Status { task: 1, state: TaskState::Shutdown },
    ] {
        let changes = changes(&state, &step);
        apply(&mut state, changes);
        ready.push(set(ME, &state).values().find_map(|row| match row {
            Assignment::Endpoint(endpoint) => Some(endpoint.ready),
            _ => None,
        }));
    }
    let expected =
        [None, None, Some(false), Some(true), Some(false), Some(true), None, Some(true), Some(false), None];
    assert_eq!(ready, expected);
}

#[test]
fn a_node_is_told_of_foreign_networks_only_while_a_task_of_its_own_is_in_them() {
    let mut state = State::default();
    let mut keys = |step: Step| {
        let changes = changes(&state, &step);
        apply(&mut state, changes);
        set(ME, &state).keys().map(|key| format!("{key:?}").replace('0', "")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(keys(Step::Network { id: 2, allocated: true }), "");
    assert_eq!(keys(Step::Service { id: 1, network: 2, published: false, allocated: true }), "");
    assert_eq!(keys(Step::Task { id: 1, service: 1, node: 2, networks: vec![2] }), "");
    assert_eq!(
        keys(Step::Task { id: 2, service: 1, node: ME, networks: vec![2] }),
        "Task(2) Network(2) Service(1) Endpoint(1) Endpoint(2)"
    );
    assert_eq!(keys(Step::Status { task: 2, state: TaskState::Failed }), "");
}

/// Rows that each node has to evaluate after an event, over all nodes of a cluster where node n has the only task in
/// network n, one of service n.
fn evaluations(step: &Step) -> Vec<usize> {
    let mut state = State::default();
    let mut prepare = vec![Step::Network { id: INGRESS, allocated: true }];
    for id in FIRST..=LAST {
        prepare.push(Step::Node { id, vtep: true, alive: true });
        prepare.push(Step::Network { id, allocated: true });
        prepare.push(Step::Service { id, network: id, published: false, allocated: true });
        prepare.push(Step::Task { id, service: id, node: id, networks: vec![id] });
    }
    for step in &prepare {
        let changes = changes(&state, step);
        apply(&mut state, changes);
    }
    let before = Arc::new(state.clone());
    let sets: Vec<_> = (FIRST..=LAST).map(|id| NodeAssignments::new(node_id(id), before.clone())).collect();
    let changes = changes(&state, step);
    let events = apply(&mut state, changes);
    let dirty = sets.iter().map(|set| set.dirty(&state, &events));
    dirty.map(|dirty| if dirty.networks { usize::MAX } else { dirty.keys.len() }).collect()
}

/// The nodes, networks, services and tasks of [`evaluations`]; the first network is the routing mesh's.
const FIRST: u8 = 2;
const LAST: u8 = 101;

#[test]
fn an_event_is_evaluated_only_for_the_nodes_that_it_concerns() {
    let at = |node: u8, n: usize| {
        let mut all = vec![0; usize::from(LAST - FIRST) + 1];
        all[usize::from(node - FIRST)] = n;
        all
    };
    // A report: the task and its endpoint, where it runs.
    assert_eq!(evaluations(&Step::Status { task: 50, state: TaskState::Running }), at(50, 2));
    assert_eq!(evaluations(&Step::Desired { task: 50, state: TaskState::Shutdown }), at(50, 2));
    // Its end takes the network away from its node: everything is looked at there, and nothing elsewhere.
    assert_eq!(evaluations(&Step::Status { task: 50, state: TaskState::Failed }), at(50, usize::MAX));
    // A service and a network, in the network's nodes.
    let changed = Step::Service { id: 50, network: 50, published: false, allocated: true };
    assert_eq!(evaluations(&changed), at(50, 1));
    assert_eq!(evaluations(&Step::Network { id: 50, allocated: false }), at(50, 1));
    // Of these everyone must know.
    let everywhere = vec![1; usize::from(LAST - FIRST) + 1];
    let published = Step::Service { id: 50, network: 50, published: true, allocated: true };
    assert_eq!(evaluations(&published), everywhere);
    assert_eq!(evaluations(&Step::Node { id: 50, vtep: false, alive: true }), everywhere);
    // A data path dies: the node, and the endpoints of its tasks where they are known.
    let mut died = everywhere;
    died[usize::from(50 - FIRST)] += 1;
    assert_eq!(evaluations(&Step::Node { id: 50, vtep: true, alive: false }), died);
}

#[test]
fn other_nodes_learn_the_host_name_that_the_user_gave() {
    let mut state = one_task();
    let aliases = |state: &State| {
        set(ME, state).into_values().find_map(|row| match row {
            Assignment::Endpoint(endpoint) => Some(endpoint.attachments[0].aliases.clone()),
            _ => None,
        })
    };
    assert_eq!(aliases(&state), Some(vec![]), "agents make the default one themselves");
    let mut task = (**state.tasks().get(&task_id(1)).expect("it is there")).clone();
    for (hostname, expected) in [("db-{{.Task.Slot}}", vec!["db-1".to_owned()]), ("{{.Nothing}}", vec![])] {
        task.spec.container.hostname = hostname.to_owned();
        let changes = put_task(&state, task.clone());
        apply(&mut state, changes);
        task = (**state.tasks().get(&task_id(1)).expect("it is there")).clone();
        assert_eq!(aliases(&state), Some(expected), "{hostname}");
    }
}

#[test]
fn every_node_learns_that_a_service_answers_its_clients_directly() {
    let mut state = State::default();
    let published = Step::Service { id: 1, network: 2, published: true, allocated: true };
    for step in [Step::Network { id: INGRESS, allocated: true }, published] {
        let changes = changes(&state, &step);
        apply(&mut state, changes);
    }
    let mut sender = NodeAssignments::new(node_id(ME), Arc::new(state.clone()));
    for (value, expected) in [("true", true), ("false", false)] {
        let mut service = (**state.services().get(&service_id(1)).expect("it is there")).clone();
        service.spec.labels.insert(ServiceSpec::DSR_LABEL.to_owned(), value.to_owned());
        let change = put(&state, Object::Service(Box::new(service)));
        let events = apply(&mut state, vec![change]);

        let increment = sender.advance(Arc::new(state.clone()), &events);

        let told = increment.upserts.iter().find_map(|row| match row {
            Assignment::Service(service) => Some(service.dsr),
            _ => None,
        });
        assert_eq!(told, Some(expected));
    }
}

#[test]
fn each_step_of_a_slow_start_is_told_and_nothing_else() {
    let mut state = one_task();
    let first = Task { weight: FIRST_WEIGHT, ..task(2, 1, 2, &[INGRESS]) };
    apply(&mut state, vec![Change::Create(Object::Task(Box::new(first)))]);
    let mut sender = NodeAssignments::new(node_id(ME), Arc::new(state.clone()));
    let mut weights = BTreeMap::new();
    for row in sender.complete() {
        let Assignment::Endpoint(endpoint) = row else { continue };
        weights.insert(endpoint.task, endpoint.weight);
    }
    assert_eq!(weights, BTreeMap::from([(task_id(1), FULL_WEIGHT), (task_id(2), FIRST_WEIGHT)]));
    for (weight, expected) in [(20, vec![20]), (100, vec![100]), (60, vec![])] {
        let events = apply(&mut state, vec![Change::TaskWeight { id: task_id(2), weight }]);
        let Increment { upserts, removals } = sender.advance(Arc::new(state.clone()), &events);
        let told = upserts.into_iter().map(|row| match row {
            Assignment::Endpoint(endpoint) if endpoint.task == task_id(2) => endpoint.weight,
            other => panic!("{other:?}"),
        });
        assert_eq!((told.collect::<Vec<_>>(), removals), (expected, vec![]));
    }
}
