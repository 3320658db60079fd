//! From the leader's clock to the rings: a slow start by the real state, assignments and plans.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control_manager::assignments::NodeAssignments;
use control_model::change::{Entry, Object, RequestId};
use control_model::object::{Node, NodeDescription, NodeState, NodeStatus, Service, TaskStatus};
use control_model::slow_start::FIRST_WEIGHT;
use control_model::spec::{Role, ServiceSpec};
use control_model::{Change, TaskState, Timestamp};
use control_orchestrator::SlowStartLoop;
use control_store::State;
use dataplane_model::kernel_state::LinkName;
use dataplane_plan::{Forwarding6, IngressHook, NodeFacts, TcAttach, Uplink};

use super::*;

const COLD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

/// A state, and what two nodes make of it.
struct World {
    state: Arc<State>,
    leader: SlowStartLoop,
    nodes: [(NodeAssignments, AssignmentSet); 2],
}

impl World {
    fn new() -> Self {
        let mut state = State::default();
        apply(&mut state, 0, objects().into_iter().map(Change::Create).collect());
        let state = Arc::new(state);
        let nodes = [ME, OTHER].map(|node| {
            let sender = NodeAssignments::new(node, state.clone());
            let mut set = AssignmentSet::default();
            let update =
                AssignmentUpdate::Complete { generation: generation(&state), set: sender.complete() };
            set.apply(update).expect("the first one");
            (sender, set)
        });
        Self { leader: SlowStartLoop::new(&state, at(0)), state, nodes }
    }

    /// Writes, and what the leader says to it; sends both to the nodes.
    fn write(&mut self, second: u64, changes: Vec<Change>) {
        let mut changes = changes;
        while !changes.is_empty() {
            let mut state = State::clone(&self.state);
            let base = generation(&state);
            let events = apply(&mut state, second, changes);
            self.state = Arc::new(state);
            for (sender, set) in &mut self.nodes {
                let increment = sender.advance(self.state.clone(), &events);
                let (upserts, removals) = (increment.upserts, increment.removals);
                let generation = generation(&self.state);
                let update = AssignmentUpdate::Incremental { base, generation, upserts, removals };
                set.apply(update).expect("the next one");
            }
            changes = self.leader.handle(&self.state, &events, at(second));
        }
    }

    /// Of 1,000 places of the ring, how many the cold task has; the ring is the same on both nodes.
    fn share_permille(&self) -> usize {
        let [one, other] = self.nodes.each_ref().map(|(_, set)| ring(set));
        assert_eq!(one, other);
        one.iter().filter(|address| **address == COLD).count() * 1000 / one.len()
    }
}

fn generation(state: &State) -> Generation {
    Generation { epoch: 1, index: state.index() }
}

fn at(second: u64) -> Timestamp {
    Timestamp(0).after(Duration::from_secs(second))
}

fn apply(state: &mut State, second: u64, changes: Vec<Change>) -> Vec<control_store::Event> {
    let index = state.index() + 1;
    let entry = Entry { request: RequestId(index.into()), at: at(second), changes };
    state.apply(index, &entry).expect("a valid write")
}

/// Two nodes that live, and a published service with a task on each: one that has long served, one that is to begin.
fn objects() -> Vec<Object> {
    let mut spec = ServiceSpec { name: "web".into(), ..ServiceSpec::default() };
    spec.labels.insert(ServiceSpec::SLOW_START_LABEL.into(), "30s".into());
    let endpoint = Some(Endpoint { ports: ports(), ..Endpoint::default() });
    let task = |number, node, address, state, weight| Task {
        node: Some(node),
        status: TaskStatus { state, ..TaskStatus::default() },
        weight,
        ..task(number, &[(INGRESS, address)])
    };
    let ingress = network(INGRESS, "ingress", "10.0.0.0/24", |spec| spec.ingress = true);
    vec![
        Object::Node(Box::new(live_node(ME, 11))),
        Object::Node(Box::new(live_node(OTHER, 12))),
        Object::Network(Box::new(ingress)),
        Object::Service(Box::new(Service { endpoint, ..Service::new(WEB, spec) })),
        Object::Task(Box::new(task(1, OTHER, "10.0.0.4/24", TaskState::Running, dp::FULL_WEIGHT))),
        Object::Task(Box::new(task(2, OTHER, "10.0.0.5/24", TaskState::Starting, FIRST_WEIGHT))),
    ]
}

fn live_node(id: NodeId, last: u8) -> Node {
    let address = IpAddr::from([198, 18, 0, last]);
    Node {
        description: NodeDescription {
            data_path_addr: Some(address),
            addresses: vec![address],
            ..NodeDescription::default()
        },
        status: NodeStatus { state: NodeState::Ready, data_path_alive: true, ..NodeStatus::default() },
        ..Node::new(id, Role::Worker)
    }
}

/// The service's ring as a node plans it that runs no task.
fn ring(set: &AssignmentSet) -> Arc<[Ipv4Addr]> {
    let mut maker = ViewMaker::new(context());
    let planned = dataplane_plan::plan(maker.next(set, []).expect("the first"), &facts()).expect("a plan");
    let mut rings = planned.state.rings.iter();
    let (_, ring) = rings.next().expect("a ring");
    assert!(rings.next().is_none());
    ring.0.clone()
}

fn facts() -> NodeFacts {
    let uplink = Uplink {
        index: 2,
        mtu_bytes: 1500,
        addresses: vec![Ipv4Addr::new(198, 18, 0, 11)],
        addresses6: vec![],
        kind: Some("veth".into()),
        driver: None,
        has_native_xdp: false,
    };
    NodeFacts {
        uplinks: BTreeMap::from([(LinkName::new("up0").expect("short"), uplink)]),
        connected: ["198.18.0.0/24".parse().expect("a subnet")].into(),
        host_forwards: false,
        forwarding6: Forwarding6::Off,
        has_tcx: true,
        has_ipv6: true,
        has_socket_reset: true,
        ingress_hook: IngressHook::Auto,
        tc_attach: TcAttach::Auto,
        gateway_subnet: "172.18.0.0/16".parse().expect("a subnet"),
        gateway_subnet6: None,
        has_way_out6: false,
        xdp_refusals: BTreeMap::new(),
        gateway_addresses: BTreeMap::new(),
    }
}

#[test]
fn the_leader_s_steps_come_to_the_rings_of_all_nodes() {
    let mut world = World::new();
    assert_eq!(world.share_permille(), 0, "it does not run");
    let status = TaskStatus { state: TaskState::Running, at: at(100), ..TaskStatus::default() };
    world.write(100, vec![Change::TaskStatus { id: TaskId::from_bits(2), status }]);
    let mut shares = vec![world.share_permille()];
    while let Some(due) = world.leader.next_deadline() {
        let steps = world.leader.tick(&world.state, due);
        world.write(due.since(at(0)).as_secs(), steps);
        shares.push(world.share_permille());
    }
    // Weights of 10, 20, 40, 60, 80 and 100 percent beside one of 100, in a ring of 251 places.
    assert_eq!(shares, [91, 167, 286, 374, 442, 498]);
}
