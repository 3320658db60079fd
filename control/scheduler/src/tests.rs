//! Placement of groups on states made by hand, and laws of random ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control_model::change::{Change, Entry, Object, ObjectRef, RequestId};
use control_model::generic::{environment, parse_resources};
use control_model::object::{Node, NodeDescription, NodeState, NodeStatus, Slot, Task, TaskStatus};
use control_model::spec::{
    Availability, NetworkAttachmentSpec, PortConfig, Protocol, PublishMode, Resources, Role,
};
use control_model::{NetworkId, NodeId, ServiceId, TaskId, TaskState, Timestamp};
use control_store::{Event, State};

use crate::Scheduler;

const SECOND: i64 = 1_000_000_000;

struct World {
    state: State,
    machine: Scheduler,
    now: Timestamp,
    n_writes: u64,
    n_ids: u128,
}

impl World {
    fn new() -> Self {
        let state = State::default();
        let machine = Scheduler::new(&state, Timestamp(0));
        Self { state, machine, now: Timestamp(0), n_writes: 0, n_ids: 0 }
    }

    fn apply(&mut self, changes: Vec<Change>) -> Vec<Event> {
        self.n_writes += 1;
        let entry = Entry { request: RequestId(u128::from(self.n_writes)), at: self.now, changes };
        self.state.apply(self.n_writes, &entry).expect("a valid write")
    }

    /// Applies what others write and what the machine answers, until its next deadline has passed too.
    fn write(&mut self, changes: Vec<Change>) {
        let mut changes = changes;
        loop {
            while !changes.is_empty() {
                let events = self.apply(changes);
                changes = self.machine.handle(&self.state, &events, self.now);
            }
            let Some(at) = self.machine.next_deadline() else { return };
            self.now = self.now.max(at);
            changes = self.machine.tick(&self.state, self.now);
        }
    }

    fn id(&mut self) -> u128 {
        self.n_ids += 1;
        self.n_ids
    }

    fn add_nodes(&mut self, n: usize) -> Vec<NodeId> {
        let ids: Vec<_> = (0..n).map(|_| NodeId::from_bits(self.id())).collect();
        let nodes = ids.iter().map(|id| Change::Create(Object::Node(Box::new(node(*id)))));
        self.write(nodes.collect());
        ids
    }

    fn edit_node(&mut self, id: NodeId, edit: impl FnOnce(&mut Node)) {
        let mut node = Node::clone(self.state.nodes().get(&id).expect("a node"));
        edit(&mut node);
        let expected = node.meta.version;
        self.write(vec![Change::Update { object: Object::Node(Box::new(node)), expected }]);
    }

    fn add_tasks(&mut self, service: u128, n: usize, edit: impl Fn(&mut Task)) -> Vec<TaskId> {
        let mut tasks: Vec<Task> = (0..n).map(|_| task(self.id(), service)).collect();
        tasks.iter_mut().for_each(edit);
        let ids = tasks.iter().map(|task| task.id).collect();
        self.write(tasks.into_iter().map(|task| Change::Create(Object::Task(Box::new(task)))).collect());
        ids
    }

    fn end(&mut self, id: TaskId, state: TaskState) {
        let status = TaskStatus { state, at: self.now, ..TaskStatus::default() };
        self.write(vec![Change::TaskStatus { id, status }]);
    }

    fn task(&self, id: TaskId) -> &Task {
        self.state.tasks().get(&id).expect("a task")
    }

    /// Tasks of the service on each node that are not ended.
    fn spread(&self, service: u128) -> Vec<usize> {
        let on = |node: &Arc<Node>| {
            let tasks = self.state.tasks_of_node(node.id);
            tasks
                .filter(|t| t.service == ServiceId::from_bits(service) && !t.status.state.is_terminal())
                .count()
        };
        self.state.nodes().iter().map(on).collect()
    }
}

fn node(id: NodeId) -> Node {
    Node {
        description: NodeDescription {
            resources: Resources { nano_cpus: 4, memory_bytes: 16 },
            ..NodeDescription::default()
        },
        status: NodeStatus { state: NodeState::Ready, data_path_alive: true, ..NodeStatus::default() },
        ..Node::new(id, Role::Worker)
    }
}

fn task(id: u128, service: u128) -> Task {
    Task {
        service_name: "s".into(),
        spec_version: 1,
        status: TaskStatus { state: TaskState::Pending, ..TaskStatus::default() },
        ..Task::new(
            TaskId::from_bits(id),
            ServiceId::from_bits(service),
            Slot::Replica(u64::try_from(id).expect("few")),
        )
    }
}

fn host_port(published: u16) -> PortConfig {
    PortConfig::new(Protocol::Tcp, 80, published, PublishMode::Host)
}

#[test]
fn assigns_with_swarmkits_words() {
    let mut world = World::new();
    let node = world.add_nodes(1)[0];
    let id = world.add_tasks(1, 1, |_| {})[0];
    let task = world.task(id);
    assert_eq!((task.node, task.status.state), (Some(node), TaskState::Assigned));
    assert_eq!(task.status.message, "scheduler assigned task to node");
}

#[test]
fn confirms_a_given_node_or_says_why_not() {
    let mut world = World::new();
    let node = world.add_nodes(2)[1];
    let bind = |task: &mut Task| {
        task.node = Some(node);
        task.slot = Slot::Node(node);
    };
    let id = world.add_tasks(1, 1, bind)[0];
    assert_eq!(world.task(id).status.message, "scheduler confirmed task can run on preassigned node");
    let big = world.add_tasks(2, 1, |task| {
        bind(task);
        task.spec.resources.reservations.memory_bytes = 17;
    })[0];
    assert_eq!(world.task(big).status.error, "insufficient resources on 1 node");
    world.edit_node(node, |node| node.description.resources.memory_bytes = 17);
    assert_eq!(world.task(big).status.state, TaskState::Assigned);
    assert_eq!(world.task(big).node, Some(node));
}

#[test]
fn spreads_a_service_before_it_evens_out_nodes() {
    let mut world = World::new();
    world.add_nodes(3);
    world.add_tasks(1, 2, |_| {});
    // The lone third node is the emptiest, but each node gets one of the service.
    world.add_tasks(2, 3, |_| {});
    assert_eq!(world.spread(2), [1, 1, 1]);
    world.add_tasks(3, 1, |_| {});
    assert_eq!(world.spread(3), [0, 0, 1]);
}

#[test]
fn explains_all_refusals_the_most_frequent_first() {
    let mut world = World::new();
    let nodes = world.add_nodes(6);
    for node in &nodes[..3] {
        world.edit_node(*node, |node| node.spec.availability = Availability::Drain);
    }
    world.edit_node(nodes[3], |node| node.status.state = NodeState::Down);
    let id = world.add_tasks(1, 1, |task| task.spec.resources.reservations.nano_cpus = 5)[0];
    let expected =
        "no suitable node (4 nodes not available for new tasks; insufficient resources on 2 nodes)";
    assert_eq!(world.task(id).status.error, expected);
    let version = world.task(id).meta.version;
    // The same reason again is not written again.
    world.edit_node(nodes[0], |node| drop(node.spec.labels.insert("a".into(), "b".into())));
    assert_eq!(world.task(id).meta.version, version);
}

#[test]
fn a_node_whose_data_path_is_dead_gets_no_task_that_others_reach() {
    let mut world = World::new();
    let nodes = world.add_nodes(2);
    let publish = |task: &mut Task| task.ports = vec![host_port(80)];
    let here = world.add_tasks(1, 1, publish)[0];
    // The emptier one has joined just now: its agent is heard, and no probe was answered yet.
    world.edit_node(nodes[1], |node| node.status.data_path_alive = false);
    let waiting = world.add_tasks(2, 1, publish)[0];
    let expected = "no suitable node (data path does not answer on 1 node; \
                    host-mode port already in use on 1 node)";
    assert_eq!(world.task(waiting).status.error, expected);
    // What others don't reach runs there.
    let lone = world.add_tasks(3, 1, |_| {})[0];
    assert_eq!(world.task(lone).node, Some(nodes[1]));
    // What runs stays.
    world.edit_node(nodes[0], |node| node.status.data_path_alive = false);
    assert_eq!((world.task(here).node, world.task(here).status.state), (Some(nodes[0]), TaskState::Assigned));
    let both = "no suitable node (data path does not answer on 2 nodes)";
    assert_eq!(world.task(waiting).status.error, both);
    // A data path that answers brings what waits, and nothing else has to happen.
    world.edit_node(nodes[1], |node| node.status.data_path_alive = true);
    assert_eq!((world.task(waiting).node, world.task(waiting).status.error.as_str()), (Some(nodes[1]), ""));
}

#[test]
fn networks_need_a_data_path_also_on_the_node_that_is_given() {
    let mut world = World::new();
    let node = world.add_nodes(1)[0];
    world.edit_node(node, |node| node.status.data_path_alive = false);
    let id = world.add_tasks(1, 1, |task| {
        task.node = Some(node);
        task.slot = Slot::Node(node);
        task.spec.networks =
            vec![NetworkAttachmentSpec { target: NetworkId::from_bits(1), aliases: Vec::new() }];
    })[0];
    assert_eq!(world.task(id).status.error, "data path does not answer on 1 node");
    world.edit_node(node, |node| node.status.data_path_alive = true);
    assert_eq!(world.task(id).status.state, TaskState::Assigned);
}

#[test]
fn constraints_that_can_not_be_read_are_met_by_no_node() {
    let mut world = World::new();
    world.add_nodes(2);
    let constrain = |task: &mut Task| task.spec.placement.constraints = vec!["node.role ~ worker".into()];
    let id = world.add_tasks(1, 1, constrain)[0];
    assert_eq!(world.task(id).node, None);
    assert_eq!(world.task(id).status.error, "no suitable node (scheduling constraints can not be read)");
}

#[test]
fn no_node_at_all() {
    let mut world = World::new();
    let id = world.add_tasks(1, 1, |_| {})[0];
    assert_eq!(world.task(id).status.error, "no suitable node");
    world.add_nodes(1);
    assert_eq!(world.task(id).status.state, TaskState::Assigned);
    assert_eq!(world.task(id).status.error, "");
}

#[test]
fn host_ports_are_freed_with_their_task() {
    let mut world = World::new();
    world.add_nodes(2);
    let ids = world.add_tasks(1, 3, |task| task.ports = vec![host_port(80)]);
    assert_eq!(world.spread(1), [1, 1]);
    let waiting = world.task(ids[2]);
    assert_eq!(waiting.status.error, "no suitable node (host-mode port already in use on 2 nodes)");
    world.end(ids[0], TaskState::Shutdown);
    assert_eq!(world.task(ids[2]).node, world.task(ids[0]).node);
}

#[test]
fn generic_resources_are_given_once_and_come_back() {
    let mut world = World::new();
    let nodes = world.add_nodes(2);
    let terms = ["gpu=a", "gpu=b", "ssd=3"].map(String::from);
    world.edit_node(nodes[0], |node| node.description.generic = parse_resources(&terms).expect("a node's"));
    let one_gpu = |task: &mut Task| {
        task.spec.resources.generic.insert("gpu".into(), 1);
    };
    let ids = world.add_tasks(1, 3, one_gpu);
    let given: Vec<_> = ids.iter().map(|id| environment(&world.task(*id).generic).join("")).collect();
    assert_eq!(given, ["DOCKER_RESOURCE_GPU=a", "DOCKER_RESOURCE_GPU=b", ""]);
    assert_eq!(world.task(ids[2]).status.error, "no suitable node (insufficient resources on 2 nodes)");
    // Another leader counts the same.
    world.machine = Scheduler::new(&world.state, world.now);
    world.write(Vec::new());
    assert_eq!(world.task(ids[2]).node, None);
    world.end(ids[0], TaskState::Failed);
    assert_eq!(environment(&world.task(ids[2]).generic), ["DOCKER_RESOURCE_GPU=a"]);
    let ssd = world.add_tasks(2, 2, |task| {
        task.spec.resources.generic.insert("ssd".into(), 2);
    });
    let placed: Vec<_> = ssd.iter().map(|id| world.task(*id).node).collect();
    assert_eq!(placed, [Some(nodes[0]), None]);
}

#[test]
fn at_most_so_many_replicas_per_node() {
    let mut world = World::new();
    world.add_nodes(2);
    let ids = world.add_tasks(1, 5, |task| task.spec.placement.max_replicas_per_node = 2);
    assert_eq!(world.spread(1), [2, 2]);
    let error = &world.task(ids[4]).status.error;
    assert_eq!(error, "no suitable node (max replicas per node limit exceed)");
    // One that shall stop does not count any more.
    world.write(vec![Change::TaskDesired { id: ids[0], state: TaskState::Shutdown }]);
    assert_eq!(world.task(ids[4]).status.state, TaskState::Assigned);
}

#[test]
fn a_task_that_shall_stop_is_not_placed() {
    let mut world = World::new();
    let id = world.add_tasks(1, 1, |_| {})[0];
    world.write(vec![Change::TaskDesired { id, state: TaskState::Shutdown }]);
    assert_eq!(world.task(id).status.state, TaskState::Shutdown);
    world.add_nodes(1);
    assert_eq!(world.task(id).node, None);
}

#[test]
fn nodes_where_a_service_keeps_failing_come_last() {
    let mut world = World::new();
    let nodes = world.add_nodes(2);
    let place_and_fail = |world: &mut World| {
        let id = world.add_tasks(1, 1, |_| {})[0];
        world.end(id, TaskState::Failed);
        world.task(id).node.expect("placed")
    };
    // A tie goes to the first node, until it has failed five times.
    for _ in 0..5 {
        assert_eq!(place_and_fail(&mut world), nodes[0]);
    }
    assert_eq!(place_and_fail(&mut world), nodes[1]);
    // Failures are forgotten after five minutes.
    world.now = world.now.after(Duration::from_mins(6));
    assert_eq!(place_and_fail(&mut world), nodes[0]);
}

#[test]
fn preferences_nest() {
    let mut world = World::new();
    let nodes = world.add_nodes(6);
    for (at, node) in nodes.iter().enumerate() {
        let (zone, rack) = [("a", "1"), ("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("", "")][at];
        world.edit_node(*node, |node| {
            node.spec.labels.insert("zone".into(), zone.into());
            node.spec.labels.insert("rack".into(), rack.into());
        });
    }
    world.add_tasks(1, 12, |task| {
        task.spec.placement.spread_preferences = vec!["node.labels.zone".into(), "node.labels.rack".into()];
    });
    // Four per zone, the one without a label is a zone too; two per rack in a and b.
    assert_eq!(world.spread(1), [1, 1, 2, 2, 2, 4]);
}

#[test]
fn a_full_branch_leaves_its_share_to_the_others() {
    let mut world = World::new();
    let nodes = world.add_nodes(3);
    world.edit_node(nodes[0], |node| drop(node.spec.labels.insert("zone".into(), "a".into())));
    world.add_tasks(1, 9, |task| {
        task.spec.placement.spread_preferences = vec!["node.labels.zone".into()];
        task.spec.resources.reservations.nano_cpus = 2;
        task.spec.placement.max_replicas_per_node = 4;
    });
    assert_eq!(world.spread(1), [2, 2, 2]);
    world.edit_node(nodes[1], |node| node.description.resources.nano_cpus = 100);
    assert_eq!(world.spread(1), [2, 4, 2]);
}

#[test]
fn a_new_leader_counts_the_same() {
    let mut world = World::new();
    world.add_nodes(3);
    world.add_tasks(1, 4, |task| task.ports = vec![host_port(80)]);
    world.machine = Scheduler::new(&world.state, world.now);
    world.write(Vec::new());
    assert_eq!(world.spread(1), [1, 1, 1]);
    world.add_tasks(2, 5, |task| task.ports = vec![host_port(80)]);
    assert_eq!(world.spread(2), [0, 0, 0]);
}

/// A small generator, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % n.max(1)
    }
}

#[test]
fn equal_nodes_are_evenly_used() {
    for seed in 0..50 {
        let mut random = Random(seed);
        let mut world = World::new();
        let n_nodes = 1 + random.below(9);
        world.add_nodes(n_nodes);
        for service in 1..6 {
            for _ in 0..=random.below(4) {
                let n_tasks = random.below(20);
                world.add_tasks(service, n_tasks, |_| {});
                let spread = world.spread(service);
                let (least, most) = (spread.iter().min().unwrap(), spread.iter().max().unwrap());
                assert!(most - least <= 1, "seed {seed}: {spread:?}");
            }
        }
    }
}

#[test]
fn nothing_is_promised_twice() {
    for seed in 0..30 {
        let mut random = Random(seed);
        let mut world = World::new();
        world.add_nodes(4);
        let mut live: Vec<TaskId> = Vec::new();
        for step in 0..150 {
            random_step(&mut world, &mut random, &mut live);
            check_capacity(&world.state, &format!("seed {seed}, step {step}"));
        }
        // All room is used: what waits does not fit on any node as it is.
        world.now = Timestamp(world.now.0 + SECOND);
        world.write(Vec::new());
        for task in world.state.tasks().iter().filter(|task| task.status.state == TaskState::Pending) {
            let fits = world.state.nodes().iter().any(|node| has_room(&world.state, node, task));
            assert!(!fits, "seed {seed}: {task:#?}");
        }
    }
}

fn random_step(world: &mut World, random: &mut Random, live: &mut Vec<TaskId>) {
    let mut amount = |n| i64::try_from(random.below(n)).expect("small");
    let (memory, cpus, port) = (amount(9), amount(3), amount(6));
    match random.below(8) {
        0..4 => {
            let n_tasks = 1 + random.below(3);
            // Tasks of one service and version are alike.
            let service = u128::from(world.n_writes) + 1;
            live.extend(world.add_tasks(service, n_tasks, |task| {
                task.spec.resources.reservations = Resources { nano_cpus: cpus, memory_bytes: memory };
                task.ports = vec![host_port(u16::try_from(port).expect("small"))];
            }));
        }
        4..7 if !live.is_empty() => {
            let id = live.swap_remove(random.below(live.len()));
            if random.below(2) == 0 {
                world.write(vec![Change::Delete(ObjectRef::Task(id))]);
            } else {
                world.end(id, TaskState::Failed);
            }
        }
        _ => world.machine = Scheduler::new(&world.state, world.now),
    }
}

/// What tasks on the node that have not ended hold.
fn held(state: &State, node: NodeId) -> (Resources, BTreeMap<u16, usize>) {
    let mut sum = Resources::default();
    let mut ports = BTreeMap::new();
    for task in state.tasks_of_node(node).filter(|task| !task.status.state.is_terminal()) {
        sum.nano_cpus += task.spec.resources.reservations.nano_cpus;
        sum.memory_bytes += task.spec.resources.reservations.memory_bytes;
        for port in task.ports.iter().filter(|port| port.published != 0) {
            *ports.entry(port.published).or_default() += 1;
        }
    }
    (sum, ports)
}

fn check_capacity(state: &State, when: &str) {
    for node in state.nodes().iter() {
        let (sum, ports) = held(state, node.id);
        let has = node.description.resources;
        assert!(sum.nano_cpus <= has.nano_cpus && sum.memory_bytes <= has.memory_bytes, "{when}: {sum:?}");
        assert!(ports.values().all(|n| *n == 1), "{when}: {ports:?}");
    }
}

fn has_room(state: &State, node: &Node, task: &Task) -> bool {
    let (sum, ports) = held(state, node.id);
    let (has, asked) = (node.description.resources, task.spec.resources.reservations);
    sum.nano_cpus + asked.nano_cpus <= has.nano_cpus
        && sum.memory_bytes + asked.memory_bytes <= has.memory_bytes
        && task.ports.iter().all(|port| port.published == 0 || !ports.contains_key(&port.published))
}

/// In words as plain as can be: of the nodes that take the task, the one with the fewest of its service, then of all.
fn plain_choice(state: &State, task: &Task) -> Option<NodeId> {
    let active = |node: &Node| {
        let tasks = state.tasks_of_node(node.id).filter(|t| !t.status.state.is_terminal());
        tasks.filter(|t| t.desired_state <= TaskState::Complete).map(|t| t.service).collect::<Vec<_>>()
    };
    let rank = |node: &Arc<Node>| {
        let services = active(node);
        let n_of_service = services.iter().filter(|service| **service == task.service).count();
        (n_of_service, services.len(), node.id)
    };
    state.nodes().iter().filter(|node| has_room(state, node, task)).map(rank).min().map(|(.., id)| id)
}

#[test]
fn each_task_goes_where_a_plain_search_would_put_it() {
    for seed in 1..=20 {
        let mut random = Random(seed);
        let mut world = World::new();
        world.add_nodes(7);
        for _ in 0..60 {
            let service = 1 + u128::try_from(random.below(4)).expect("few");
            let mut wanted = task(world.id(), service);
            let nano_cpus = i64::try_from(service % 3).expect("few");
            wanted.spec.resources.reservations = Resources { nano_cpus, memory_bytes: 0 };
            let choice = plain_choice(&world.state, &wanted);
            let id = wanted.id;
            world.write(vec![Change::Create(Object::Task(Box::new(wanted)))]);
            assert_eq!(world.task(id).node, choice, "seed {seed}");
            if random.below(3) == 0 && choice.is_some() {
                world.end(id, TaskState::Complete);
            }
        }
    }
}
