//! A view that follows others says what one that begins says, and shares with them what it may.

use control_model::AssignmentKey;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

const SEEDS: u64 = 64;
const STEPS: usize = 60;
const PHASES: [Phase; 4] = [Phase::Starting, Phase::Running, Phase::Draining, Phase::Ended];

/// Assignments and own tasks that change at random. Few of each kind, so that rows often meet: addresses have several
/// endpoints, endpoints move between nodes, services and networks, networks leave while tasks are in them.
struct Cluster {
    random: StdRng,
    set: AssignmentSet,
    /// Own tasks with a sandbox: they may stay after they have left the set.
    own: Vec<(Task, Phase)>,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), set: set(), own: vec![] }
    }

    fn step(&mut self) {
        match self.random.random_range(0..10) {
            0 => self.again(),
            1 | 2 => self.change_own(),
            _ => self.increment(),
        }
    }

    /// The whole set once more, as after a new session; sometimes a part of it is gone.
    fn again(&mut self) {
        let keeps_all = self.random.random_bool(0.5);
        let rows: Vec<Assignment> = self.set.rows().collect();
        let rows = rows.into_iter().filter(|_| keeps_all || self.random.random_bool(0.8)).collect();
        let update = AssignmentUpdate::Complete { generation: self.next_generation(), set: rows };
        self.set.apply(update).expect("newer");
    }

    fn increment(&mut self) {
        let (base, generation) = (self.set.generation(), self.next_generation());
        let upserts: Vec<Assignment> = (0..self.random.random_range(0..4)).map(|_| self.row()).collect();
        let removals = (0..self.random.random_range(0..3)).map(|_| self.row().key()).collect();
        let update = AssignmentUpdate::Incremental { base, generation, upserts, removals };
        self.set.apply(update).expect("it goes on top");
    }

    fn next_generation(&self) -> Generation {
        let Generation { epoch, index } = self.set.generation();
        Generation { epoch, index: index + 1 }
    }

    fn change_own(&mut self) {
        let (number, phase) = (self.random.random_range(1..4), PHASES[self.random.random_range(0..4)]);
        self.own.retain(|(task, _)| task.id != TaskId::from_bits(number.into()));
        if self.random.random_bool(0.8) {
            let task = Task { attachments: self.attachments(), ..task(number, &[]) };
            self.own.push((task, phase));
        }
        self.own.sort_by_key(|(task, _)| task.id);
    }

    fn row(&mut self) -> Assignment {
        match self.random.random_range(0..8) {
            0 => self.network(),
            1 => self.service(),
            2 => self.peer(),
            3 => Assignment::Task(Box::new(task(self.random.random_range(1..4), &LOCAL))),
            _ => self.endpoint(),
        }
    }

    fn network_id(&mut self) -> NetworkId {
        [INGRESS, APP, BACK][self.random.random_range(0..3)]
    }

    fn service_id(&mut self) -> ServiceId {
        ServiceId::from_bits(self.random.random_range(7..9))
    }

    fn node_id(&mut self) -> NodeId {
        NodeId::from_bits(self.random.random_range(1..5))
    }

    fn address(&mut self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 1, self.random.random_range(4..8))
    }

    fn attachments(&mut self) -> Vec<NetworkAttachment> {
        let mut row = || NetworkAttachment {
            network: self.network_id(),
            address: IpNetwork::from(IpAddr::V4(self.address())),
            aliases: vec![format!("alias{}", self.random.random_range(0..3))],
        };
        vec![row(), row()]
    }

    fn network(&mut self) -> Assignment {
        let (id, is_known) = (self.network_id(), self.random.random_bool(0.8));
        let is_internal = self.random.random_bool(0.5);
        let mut row = network(id, "n", "10.0.1.0/24", |spec| {
            spec.ingress = id == INGRESS;
            spec.internal = is_internal;
        });
        row.state = row.state.filter(|_| is_known);
        Assignment::Network(Box::new(row))
    }

    fn service(&mut self) -> Assignment {
        let network = self.network_id();
        Assignment::Service(ServiceView {
            id: self.service_id(),
            name: format!("s{}", self.random.random_range(0..3)),
            endpoint: Endpoint {
                mode: EndpointMode::Vip,
                ports: ports(),
                vips: vec![(network, self.address())],
            },
            dsr: self.random.random_bool(0.5),
            aliases: vec![(network, vec!["www".into()])],
        })
    }

    fn peer(&mut self) -> Assignment {
        let (id, end) = (self.node_id(), self.random.random_range(11..14));
        let further = [self.random.random_range(200..203)];
        let since = self.random.random_range(0..5);
        Assignment::Peer(node(id, end, &further, since, self.random.random_bool(0.7)))
    }

    fn endpoint(&mut self) -> Assignment {
        let number = self.random.random_range(1..7);
        Assignment::Endpoint(EndpointView {
            task: TaskId::from_bits(number),
            service: self.service_id(),
            name: format!("web.{number}"),
            node: self.node_id(),
            attachments: self.attachments(),
            ready: self.random.random_bool(0.7),
            weight: self.random.random_range(99..101),
        })
    }
}

#[test]
fn after_any_changes_a_view_is_as_from_nothing() {
    for seed in 0..SEEDS {
        let (mut cluster, mut maker) = (Cluster::new(seed), ViewMaker::new(context()));
        for step in 0..STEPS {
            cluster.step();
            maker.next(&cluster.set, cluster.own.iter().map(|(task, phase)| (task, *phase)));
            let mut afresh = ViewMaker::new(context());
            afresh.follow(maker.sources.clone());
            assert_eq!(maker.view, afresh.view, "seed {seed}, step {step}");
            let known = maker.sources.networks.keys();
            let wanted = cluster.set.networks.keys().chain(known.filter(|id| cluster.is_in(**id)));
            assert_eq!(
                maker.sources.networks.keys().collect::<BTreeSet<_>>(),
                wanted.collect(),
                "seed {seed}, step {step}"
            );
        }
    }
}

impl Cluster {
    fn is_in(&self, network: NetworkId) -> bool {
        self.own.iter().any(|(task, _)| task.attachments.iter().any(|row| row.network == network))
    }
}

/// The set with one increment on top.
fn with(set: &AssignmentSet, upserts: Vec<Assignment>, removals: Vec<AssignmentKey>) -> AssignmentSet {
    let mut set = set.clone();
    let base = set.generation();
    let generation = Generation { index: base.index + 1, ..base };
    set.apply(AssignmentUpdate::Incremental { base, generation, upserts, removals }).expect("it goes on top");
    set
}

#[test]
fn the_last_of_two_endpoints_has_their_address() {
    let mut maker = ViewMaker::new(context());
    let key = (dp::NetworkKey(APP.bits()), Ipv4Addr::new(10, 0, 1, 5));
    let mut holder = |set: &AssignmentSet| {
        let view = maker.next(set, []).expect("something changed");
        view.remote_endpoints.get(&key).map(|row| row.task_name.clone())
    };
    assert_eq!(holder(&set()).as_deref(), Some("web.2"));
    let both = with(&set(), vec![endpoint(9, OTHER, &REMOTE)], vec![]);
    assert_eq!(holder(&both).as_deref(), Some("web.9"));
    let first = with(&both, vec![], vec![AssignmentKey::Endpoint(TaskId::from_bits(9))]);
    assert_eq!(holder(&first).as_deref(), Some("web.2"), "it is there still");
    let none = with(&first, vec![], vec![AssignmentKey::Endpoint(TaskId::from_bits(2))]);
    assert_eq!(holder(&none), None);
}

#[test]
fn what_says_the_same_again_is_shared() {
    let own = task(1, &LOCAL);
    let mut maker = ViewMaker::new(context());
    let first = maker.next(&set(), [(&own, Phase::Running)]).expect("the first").clone();
    assert!(maker.next(&set(), [(&own, Phase::Running)]).is_none(), "nothing has changed");
    let mut again = set();
    let Generation { epoch, index } = again.generation();
    let generation = Generation { epoch: epoch + 1, index };
    again
        .apply(AssignmentUpdate::Complete { generation, set: set().rows().collect() })
        .expect("a later epoch");
    let view = maker.next(&again, [(&own, Phase::Running)]).expect("the generation");
    assert_eq!(view.generation, dp::Generation { epoch: epoch + 1, index });
    assert!(view.networks.ptr_eq(&first.networks) && view.sandboxes.ptr_eq(&first.sandboxes));
    assert!(view.services.ptr_eq(&first.services) && view.peers.ptr_eq(&first.peers));
    assert!(view.remote_endpoints.ptr_eq(&first.remote_endpoints));
}

#[test]
fn an_endpoint_that_changes_leaves_all_other_tables() {
    let own = task(1, &LOCAL);
    let mut maker = ViewMaker::new(context());
    let first = maker.next(&set(), [(&own, Phase::Running)]).expect("the first").clone();
    let more = with(&set(), vec![endpoint(9, OTHER, &[(APP, "10.0.1.9/24")])], vec![]);
    let view = maker.next(&more, [(&own, Phase::Running)]).expect("an endpoint more");
    assert_eq!(view.services.values().next().expect("one").backends.len(), 5);
    assert_eq!(view.remote_endpoints.len(), first.remote_endpoints.len() + 1);
    assert!(view.networks.ptr_eq(&first.networks) && view.sandboxes.ptr_eq(&first.sandboxes));
    assert!(view.peers.ptr_eq(&first.peers));
}
