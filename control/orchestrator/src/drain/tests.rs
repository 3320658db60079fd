use control_model::change::{Entry, Object, RequestId};
use control_model::object::{
    ContainerStatus, HealthStatus, NetworkAttachment, Node, NodeStatus, Slot, TaskStatus,
};
use control_model::spec::Role;
use control_model::{NetworkId, ServiceId};

use super::*;

const TASK: TaskId = TaskId::from_bits(7);
const NODES: [NodeId; 2] = [NodeId::from_bits(1), NodeId::from_bits(2)];

struct World {
    state: State,
    machine: DrainLoop,
    n_writes: u64,
}

impl World {
    /// Two ready nodes, a task in a network that is in `state`.
    fn new(state: TaskState) -> Self {
        let mut world = Self {
            state: State::default(),
            machine: DrainLoop::new(&State::default(), Timestamp(0)),
            n_writes: 0,
        };
        let objects = NODES.map(|id| Object::Node(Box::new(node(id)))).into_iter();
        let objects = objects.chain([Object::Task(Box::new(task(state)))]);
        let drained = world.write(objects.map(Change::Create).collect(), &[0, 0]);
        assert_eq!(drained, []);
        world
    }

    fn now(&self) -> Timestamp {
        Timestamp(i64::try_from(self.n_writes).expect("few"))
    }

    /// Applies `changes`; the nodes have acknowledged up to the indexes in `acks`.
    fn write(&mut self, changes: Vec<Change>, acks: &[u64]) -> Vec<Change> {
        self.n_writes += 1;
        let entry = Entry { request: RequestId(u128::from(self.n_writes)), at: self.now(), changes };
        let events = self.state.apply(self.n_writes, &entry).expect("a valid write");
        let now = self.now();
        self.machine.handle(&self.state, &events, acknowledgements(acks), now)
    }

    fn stop(&mut self, acks: &[u64]) -> Vec<Change> {
        self.write(vec![Change::TaskDesired { id: TASK, state: TaskState::Shutdown }], acks)
    }

    fn tick(&mut self, acks: &[u64], now: Timestamp) -> Vec<Change> {
        self.machine.tick(&self.state, acknowledgements(acks), now)
    }
}

fn acknowledgements(acks: &[u64]) -> impl Iterator<Item = (NodeId, Generation)> {
    NODES.into_iter().zip(acks.iter().map(|index| Generation { epoch: 0, index: *index }))
}

fn node(id: NodeId) -> Node {
    Node {
        status: NodeStatus { state: NodeState::Ready, data_path_alive: true, ..NodeStatus::default() },
        ..Node::new(id, Role::Worker)
    }
}

fn task(state: TaskState) -> Task {
    let network = NetworkId::from_bits(3);
    let address = "10.0.0.3/24".parse().expect("an address");
    Task {
        service_name: "s".into(),
        node: Some(NODES[0]),
        spec_version: 1,
        attachments: vec![NetworkAttachment { network, address, aliases: Vec::new() }],
        status: TaskStatus { state, ..TaskStatus::default() },
        ..Task::new(TASK, ServiceId::from_bits(4), Slot::Replica(1))
    }
}

const DRAINED: [Change; 1] = [Change::TaskDrained { id: TASK }];

#[test]
fn waits_for_every_node_to_pass_the_write() {
    let mut world = World::new(TaskState::Running);
    assert_eq!(world.stop(&[1, 1]), []);
    assert_eq!(world.tick(&[2, 1], Timestamp(3)), []);
    // What was acknowledged before need not be said again.
    assert_eq!(world.tick(&[], Timestamp(3)), []);
    assert_eq!(world.tick(&[2], Timestamp(3)), []);
    assert_eq!(world.tick(&[2, 2], Timestamp(3)), DRAINED);
    assert_eq!(world.tick(&[2, 2], Timestamp(3)), []);
    assert_eq!(world.machine.take_given_up(), []);
}

#[test]
fn later_writes_to_the_task_do_not_move_the_goal() {
    let mut world = World::new(TaskState::Running);
    assert_eq!(world.stop(&[1, 1]), []);
    assert_eq!(world.write(vec![Change::TaskDesired { id: TASK, state: TaskState::Remove }], &[1, 1]), []);
    assert_eq!(world.tick(&[2, 2], Timestamp(4)), DRAINED);
}

#[test]
fn an_older_epoch_does_not_count() {
    let mut world = World::new(TaskState::Running);
    assert_eq!(world.stop(&[1, 1]), []);
    let newer = Generation { epoch: 1, index: 1 };
    let acks = NODES.map(|id| (id, newer));
    // An acknowledgement of a newer epoch is beyond any index of this one.
    assert_eq!(world.machine.tick(&world.state, acks, Timestamp(3)), DRAINED);
}

#[test]
fn a_silent_node_holds_it_back_for_three_seconds() {
    let mut world = World::new(TaskState::Running);
    assert_eq!(world.stop(&[9, 0]), []);
    let due = world.machine.next_deadline().expect("a deadline");
    assert_eq!(due, world.now().after(Duration::from_secs(3)));
    assert_eq!(world.tick(&[9, 0], Timestamp(due.0 - 1)), []);
    assert_eq!(world.machine.take_given_up(), []);
    assert_eq!(world.tick(&[9, 0], due), DRAINED);
    let given_up = GivenUp { task: TASK, nodes: vec![NODES[1]] };
    assert_eq!(world.machine.take_given_up(), [given_up], "who was not waited for is named");
    assert_eq!(world.machine.take_given_up(), []);
    assert_eq!(world.machine.next_deadline(), None);
}

#[test]
fn a_node_that_is_down_is_not_waited_for() {
    let mut world = World::new(TaskState::Running);
    assert_eq!(world.stop(&[9, 0]), []);
    let status = NodeStatus { state: NodeState::Down, ..NodeStatus::default() };
    assert_eq!(world.write(vec![Change::NodeStatus { id: NODES[1], status }], &[9, 0]), DRAINED);
}

#[test]
fn what_is_in_no_ring_goes_at_once() {
    let mut starting = World::new(TaskState::Starting);
    assert_eq!(starting.stop(&[0, 0]), DRAINED);
    let mut unassigned = World::new(TaskState::Pending);
    assert_eq!(unassigned.stop(&[0, 0]), []);
    let mut lone = World::new(TaskState::Running);
    let bare = Task { attachments: Vec::new(), ..task(TaskState::Running) };
    lone.write(vec![Change::Update { object: Object::Task(Box::new(bare)), expected: 1 }], &[0, 0]);
    assert_eq!(lone.stop(&[0, 0]), DRAINED);
}

#[test]
fn what_its_health_check_has_given_up_is_drained_too() {
    let mut world = World::new(TaskState::Running);
    let with = |health, at| {
        let container = Some(ContainerStatus { health, ..ContainerStatus::default() });
        let status = TaskStatus { state: TaskState::Running, at, container, ..TaskStatus::default() };
        vec![Change::TaskStatus { id: TASK, status }]
    };
    assert_eq!(world.write(with(Some(HealthStatus::Healthy), Timestamp(2)), &[1, 1]), []);
    assert_eq!(world.machine.next_deadline(), None);
    assert_eq!(world.write(with(Some(HealthStatus::Unhealthy), Timestamp(3)), &[2, 2]), []);
    assert_eq!(world.tick(&[3, 2], Timestamp(4)), []);
    assert_eq!(world.tick(&[3, 3], Timestamp(4)), DRAINED);
}

#[test]
fn ended_tasks_need_no_drain() {
    let mut world = World::new(TaskState::Running);
    assert_eq!(world.stop(&[0, 0]), []);
    let status = TaskStatus { state: TaskState::Failed, ..TaskStatus::default() };
    assert_eq!(world.write(vec![Change::TaskStatus { id: TASK, status }], &[0, 0]), []);
    assert_eq!(world.machine.next_deadline(), None);
}

#[test]
fn another_leader_waits_anew() {
    let mut world = World::new(TaskState::Running);
    assert_eq!(world.stop(&[1, 1]), []);
    world.machine = DrainLoop::new(&world.state, Timestamp(100));
    assert_eq!(world.machine.next_deadline(), Some(Timestamp(100)));
    assert_eq!(world.tick(&[1, 1], Timestamp(100)), []);
    assert_eq!(world.tick(&[2, 2], Timestamp(101)), DRAINED);
}
