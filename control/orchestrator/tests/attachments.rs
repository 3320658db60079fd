//! Places in networks of containers that no service made: given, kept through all that happens to services, and gone with them.

#![allow(dead_code, unused_imports, reason = "the cluster is shared")]

mod cluster;

use std::time::Duration;

use cluster::{Cluster, zero_node};
use control_model::change::{Change, Object};
use control_model::object::{Network, NodeState, TaskStatus};
use control_model::spec::{Availability, DnsConfig, NetworkSpec, NodeSpec};
use control_model::standalone::AttachRequest;
use control_model::{NetworkId, NodeId, Task, TaskId, TaskState};

const NODE: NodeId = NodeId::from_bits(7);
const NETWORK: NetworkId = NetworkId::from_bits(9);

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    let spec = NetworkSpec { name: "open".into(), attachable: true, ..NetworkSpec::default() };
    cluster.commit(vec![
        Change::Create(Object::Node(Box::new(zero_node(NODE, "m1")))),
        Change::Create(Object::Network(Box::new(Network::new(NETWORK, spec)))),
    ]);
    cluster.settle();
    cluster
}

fn attach(cluster: &mut Cluster, id: u128) -> TaskId {
    let request = AttachRequest {
        id: TaskId::from_bits(id),
        name: format!("web{id}"),
        hostname: "web".into(),
        aliases: vec!["alias".into()],
        network: "open".into(),
        ports: Vec::new(),
        dns: DnsConfig::default(),
    };
    let task = request.task(NODE, NETWORK);
    let id = task.id;
    cluster.commit(vec![Change::Create(Object::Task(Box::new(task)))]);
    id
}

fn task(cluster: &Cluster, id: TaskId) -> Option<Task> {
    cluster.state().tasks().get(&id).map(|task| Task::clone(task))
}

fn has_state(cluster: &Cluster, id: TaskId, state: TaskState) -> bool {
    task(cluster, id).is_some_and(|task| task.status.state == state)
}

#[test]
fn a_place_is_given_and_kept_until_its_node_ends_it() {
    let mut cluster = cluster();
    let (one, other) = (attach(&mut cluster, 21), attach(&mut cluster, 22));
    cluster.run(Duration::from_secs(1));
    let (first, second) = (task(&cluster, one).expect("kept"), task(&cluster, other).expect("kept"));
    assert_eq!(
        (first.name().as_str(), first.node, first.status.state),
        ("web21", Some(NODE), TaskState::Running)
    );
    let address = |task: &Task| task.attachments[0].address;
    assert_eq!(
        (first.attachments.len(), first.attachments[0].aliases.as_slice()),
        (1, &["alias".to_owned()][..])
    );
    assert_ne!(address(&first), address(&second));

    cluster.change_leader();
    cluster.run(Duration::from_secs(1));
    let drained = NodeSpec { availability: Availability::Drain, ..NodeSpec::default() };
    let node = cluster.state().nodes().get(&NODE).expect("there").clone();
    let object = Object::Node(Box::new(control_model::Node { spec: drained, ..(*node).clone() }));
    cluster.commit(vec![Change::Update { object, expected: node.meta.version }]);
    cluster.run(Duration::from_secs(2));
    assert!(has_state(&cluster, one, TaskState::Running), "a drain is about tasks of services");

    let status = TaskStatus { state: TaskState::Complete, at: cluster.now(), ..TaskStatus::default() };
    cluster.commit(vec![Change::TaskStatus { id: one, status }]);
    cluster.run(Duration::from_secs(1));
    assert_eq!(task(&cluster, one), None);
    assert!(has_state(&cluster, other, TaskState::Running));
}

#[test]
fn a_place_that_nobody_takes_is_given_up() {
    let mut cluster = cluster();
    cluster.set_life(NODE, NodeState::Down, false);
    let waits = attach(&mut cluster, 21);
    cluster.run(Duration::from_secs(1));
    assert!(has_state(&cluster, waits, TaskState::Pending), "its node is down");
    cluster.commit(vec![Change::TaskDesired { id: waits, state: TaskState::Remove }]);
    cluster.run(Duration::from_secs(1));
    assert_eq!(task(&cluster, waits), None);
}
