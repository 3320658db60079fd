//! Scenarios as text, and random creation and deletion against what must always be true.

use std::collections::BTreeSet;
use std::fmt::Write;

use control_model::change::{Change, Entry, Object, ObjectRef, RequestId};
use control_model::object::{Cluster, Network, Node, Service, Slot, Task, TaskStatus};
use control_model::spec::{
    EndpointMode, EndpointSpec, IpamConfig, NetworkAttachmentSpec, NetworkSpec, PortConfig, Protocol,
    PublishMode, Role, ServiceSpec, TaskSpec,
};
use control_model::{ClusterId, NetworkId, NodeId, ServiceId, TaskId, TaskState, Timestamp};
use control_store::{Event, State};
use ipnetwork::IpNetwork;

use crate::subnet::Holder;
use crate::{Allocator, check_beside_pool, check_ports, check_subnets};

mod many;

/// A state, the machine, and users of both.
struct World {
    state: State,
    machine: Allocator,
    n_writes: u64,
    n_ids: u128,
}

impl World {
    fn new(pool: &str, subnet_size: u8) -> Self {
        let state = State::default();
        let machine = Allocator::new(&state, Timestamp(0));
        let mut world = Self { state, machine, n_writes: 0, n_ids: 0 };
        let cluster = Cluster {
            default_address_pool: vec![pool.parse().unwrap()],
            subnet_size,
            ..Cluster::new(ClusterId::from_bits(1))
        };
        world.write(vec![Change::Create(Object::Cluster(Box::new(cluster)))]);
        world
    }

    /// Applies what a user writes, and all that the machine answers.
    fn write(&mut self, changes: Vec<Change>) {
        let mut changes = changes;
        while !changes.is_empty() {
            let events = self.apply(changes);
            let now = self.now();
            changes = self.machine.handle(&self.state, &events, now);
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(i64::try_from(self.n_writes).unwrap())
    }

    fn apply(&mut self, changes: Vec<Change>) -> Vec<Event> {
        self.n_writes += 1;
        let entry = Entry { request: RequestId(u128::from(self.n_writes)), at: self.now(), changes };
        self.state.apply(self.n_writes, &entry).expect("a valid write")
    }

    fn change_leader(&mut self) {
        self.machine = Allocator::new(&self.state, self.now());
        let now = self.now();
        let changes = self.machine.tick(&self.state, now);
        self.write(changes);
    }

    fn id(&mut self) -> u128 {
        self.n_ids += 1;
        self.n_ids
    }

    fn add_network(&mut self, name: &str, words: &[&str]) {
        let network = Network::new(NetworkId::from_bits(self.id()), network_spec(name, words));
        self.write(vec![Change::Create(Object::Network(Box::new(network)))]);
    }

    fn spec(&self, name: &str, words: &[&str]) -> ServiceSpec {
        let mut endpoint = EndpointSpec::default();
        let mut task = TaskSpec::default();
        for word in words {
            match word.split_once('=') {
                Some(("net", name)) => {
                    let target = self.state.network_by_name(name).expect("a network").id;
                    task.networks.push(NetworkAttachmentSpec { target, aliases: vec!["alias".into()] });
                }
                Some(("port", port)) => endpoint.ports.push(port_of(port)),
                _ => endpoint.mode = EndpointMode::Dnsrr,
            }
        }
        ServiceSpec { name: name.into(), task: task.into(), endpoint, ..ServiceSpec::default() }
    }

    fn add_service(&mut self, name: &str, words: &[&str]) {
        let service = Service::new(ServiceId::from_bits(self.id()), self.spec(name, words));
        self.write(vec![Change::Create(Object::Service(Box::new(service)))]);
    }

    fn update_service(&mut self, name: &str, words: &[&str]) {
        let mut service = Service::clone(self.state.service_by_name(name).expect("a service"));
        service.spec = self.spec(name, words);
        let expected = service.meta.version;
        self.write(vec![Change::Update { object: Object::Service(Box::new(service)), expected }]);
    }

    fn add_task(&mut self, service: &str) -> TaskId {
        let service = self.state.service_by_name(service).expect("a service").clone();
        let id = TaskId::from_bits(self.id());
        let task = Task {
            service_name: service.spec.name.clone(),
            spec: service.spec.task.clone(),
            spec_version: service.meta.spec_version,
            endpoint_mode: service.spec.endpoint.mode,
            ports: service.spec.endpoint.ports.clone(),
            ..Task::new(
                id,
                service.id,
                Slot::Replica(1 + self.state.tasks_of_service(service.id).count() as u64),
            )
        };
        self.write(vec![Change::Create(Object::Task(Box::new(task)))]);
        id
    }

    /// `app.2` is the task in slot 2 of app.
    fn task(&self, name: &str) -> TaskId {
        let (service, slot) = name.split_once('.').expect("service.slot");
        let slot = Slot::Replica(slot.parse().unwrap());
        let is_named = |task: &&std::sync::Arc<Task>| task.service_name == service && task.slot == slot;
        self.state.tasks().iter().find(is_named).expect("a task").id
    }

    fn command(&mut self, line: &str, output: &mut String) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "network" => self.add_network(words[1], &words[2..]),
            "service" => self.add_service(words[1], &words[2..]),
            "update" => self.update_service(words[1], &words[2..]),
            "task" => drop(self.add_task(words[1])),
            "end" => {
                let status = TaskStatus { state: TaskState::Failed, at: self.now(), ..TaskStatus::default() };
                self.write(vec![Change::TaskStatus { id: self.task(words[1]), status }]);
            }
            "stop" => {
                let id = self.task(words[1]);
                self.write(vec![Change::TaskDesired { id, state: TaskState::Shutdown }]);
            }
            "delete" => {
                let service = self.state.service_by_name(words[1]).expect("a service").id;
                self.write(vec![Change::Delete(ObjectRef::Service(service))]);
            }
            "leader" => self.change_leader(),
            "print" => self.print(words[1], output),
            "subnet" => {
                let spec = network_spec("asked", &words[1..]);
                let fits = check_beside_pool(&self.state, &spec).map_err(|error| error.to_string());
                let answer = fits.and_then(|()| check_subnets(&self.state, &spec));
                writeln!(output, "{}", answer.err().unwrap_or("good".into())).unwrap();
            }
            "ports" => {
                let ports: Vec<_> = words[1..].iter().map(|word| port_of(word)).collect();
                let answer = check_ports(&self.state, &ports, None);
                writeln!(output, "{}", answer.err().unwrap_or("good".into())).unwrap();
            }
            verb => panic!("unknown command {verb}"),
        }
    }

    fn print(&self, name: &str, output: &mut String) {
        if let Some(network) = self.state.network_by_name(name) {
            let given = network.state.as_ref().map(|state| {
                let subnets = state.ipam.iter().map(|i| format!("{} via {}", i.subnet, i.gateway.unwrap()));
                format!("{} {}", state.vni, subnets.collect::<Vec<_>>().join(", "))
            });
            writeln!(output, "{name} {}", given.unwrap_or("-".into())).unwrap();
        }
        let Some(service) = self.state.service_by_name(name) else { return };
        let network = |id: &NetworkId| self.state.networks().get(id).unwrap().spec.name.clone();
        if let Some(endpoint) = &service.endpoint {
            let vips = endpoint.vips.iter().map(|(id, vip)| format!(" {} {vip}", network(id)));
            let ports = endpoint.ports.iter().map(|port| format!(" {}:{}", port.published, port.target));
            let (vips, ports) = (vips.collect::<String>(), ports.collect::<String>());
            writeln!(output, "{name} vips{vips} ports{ports}").unwrap();
        } else {
            writeln!(output, "{name} -").unwrap();
        }
        for task in self.state.tasks_of_service(service.id) {
            let Slot::Replica(slot) = task.slot else { continue };
            let has = task.attachments.iter().map(|a| format!(" {} {}", network(&a.network), a.address));
            let ports = task.ports.iter().map(|port| format!(" {}:{}", port.published, port.target));
            let (has, ports) = (has.collect::<String>(), ports.collect::<String>());
            let status = &task.status;
            let why = if status.error.is_empty() { &status.message } else { &status.error };
            writeln!(output, "{name}.{slot} {}{has}{ports} | {why}", status.state.as_str()).unwrap();
        }
    }
}

/// Subnets, and `ipv6`.
fn network_spec(name: &str, words: &[&str]) -> NetworkSpec {
    let subnets = words.iter().filter(|word| **word != "ipv6");
    let ipam = subnets.map(|s| IpamConfig { subnet: s.parse().unwrap(), range: None, gateway: None });
    NetworkSpec {
        name: name.into(),
        ingress: name == "ingress",
        ipv6: words.contains(&"ipv6"),
        ipam: ipam.collect(),
        ..NetworkSpec::default()
    }
}

/// `PUBLISHED:TARGET`, or `host:PUBLISHED:TARGET`.
fn port_of(text: &str) -> PortConfig {
    let (mode, text) = match text.strip_prefix("host:") {
        Some(rest) => (PublishMode::Host, rest),
        None => (PublishMode::Ingress, text),
    };
    let (published, target) = text.split_once(':').expect("published:target");
    PortConfig::new(Protocol::Tcp, target.parse().unwrap(), published.parse().unwrap(), mode)
}

#[test]
fn scenarios() {
    for (pool, size, scenario) in [
        ("10.0.0.0/8", 24, include_str!("scenarios/services.txt")),
        ("10.0.0.0/26", 28, include_str!("scenarios/exhausted.txt")),
        ("10.0.0.0/8", 24, include_str!("scenarios/ipv6.txt")),
    ] {
        let mut world = World::new(pool, size);
        for block in scenario.trim_end().split("\n\n") {
            let (commands, expected) = block.split_once("\n----").unwrap_or((block, ""));
            let mut output = String::new();
            for line in commands.lines().filter(|line| !line.starts_with('#')) {
                world.command(line, &mut output);
            }
            assert_eq!(output.trim_end(), expected.trim_start(), "after:\n{commands}\n");
        }
    }
}

/// A small generator, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n.max(1)
    }
}

/// Every address, VNI and port in the state has one holder, and lies where it may.
fn check_laws(state: &State) {
    let mut vnis = BTreeSet::new();
    let mut held: BTreeSet<(NetworkId, IpNetwork)> = BTreeSet::new();
    let given = state.networks().iter().filter_map(|n| Some((n.id, n.state.as_ref()?)));
    let subnets: Vec<(NetworkId, IpNetwork)> =
        given.flat_map(|(id, given)| given.ipam.iter().map(move |ipam| (id, ipam.subnet))).collect();
    for network in state.networks().iter() {
        let Some(given) = &network.state else { continue };
        assert!(vnis.insert(given.vni) && given.vni >= 4096, "VNI {}", given.vni);
        for ipam in &given.ipam {
            let reserved = [ipam.subnet.network(), ipam.subnet.broadcast(), ipam.gateway.unwrap()];
            held.extend(reserved.map(|ip| (network.id, IpNetwork::from(ip))));
            let others = subnets.iter().filter(|(id, _)| *id != network.id);
            for (_, other) in others {
                let apart = !other.contains(ipam.subnet.network()) && !ipam.subnet.contains(other.network());
                assert!(apart, "{other} overlaps {}", ipam.subnet);
            }
        }
    }
    let mut ports = BTreeSet::new();
    for service in state.services().iter() {
        let Some(endpoint) = &service.endpoint else { continue };
        for (network, vip) in &endpoint.vips {
            assert!(held.insert((*network, IpNetwork::from(std::net::IpAddr::V4(*vip)))), "{vip} twice");
        }
        for port in endpoint.ports.iter().filter(|port| port.mode == PublishMode::Ingress) {
            assert!(ports.insert((port.protocol, port.published)), "port {} twice", port.published);
        }
    }
    for task in state.tasks().iter().filter(|task| !task.status.state.is_terminal()) {
        for attachment in &task.attachments {
            let address = IpNetwork::from(attachment.address.ip());
            assert!(held.insert((attachment.network, address)), "{address} twice");
        }
    }
}

#[test]
fn nothing_is_ever_given_twice() {
    for seed in 0..30 {
        println!("seed {seed}");
        let mut random = Random(seed);
        // Small enough that subnets and addresses run out again and again.
        let mut world = World::new("10.0.0.0/25", 28);
        world.add_network("ingress", &[]);
        let mut n_names = 0;
        for _ in 0..300 {
            random_action(&mut world, &mut random, &mut n_names);
            check_laws(&world.state);
        }
        // Whatever could not be served is served when there is room.
        let served = |world: &World| {
            world.state.tasks().iter().find(|t| t.status.state != TaskState::New).map(|t| t.id)
        };
        while let Some(id) = served(&world) {
            world.write(vec![Change::Delete(ObjectRef::Task(id))]);
            check_laws(&world.state);
        }
        check_nothing_leaked(&world);
        let mut tasks = world.state.tasks().iter();
        let waiting = tasks.find(|task| may_be_served(&world.state, task));
        assert!(waiting.is_none(), "still waits: {waiting:#?}");
    }
}

#[test]
fn a_task_that_can_not_have_all_has_nothing() {
    let mut world = World::new("10.0.0.0/24", 29);
    world.add_network("roomy", &[]);
    world.add_network("full", &[]);
    world.add_service("both", &["net=roomy", "net=full"]);
    world.add_service("filler", &["net=full"]);
    let fillers: Vec<TaskId> = (0..3).map(|_| world.add_task("filler")).collect();
    let waiting = world.add_task("both");
    let roomy = world.state.network_by_name("roomy").expect("a network").id;
    let is_task = |holder: &Holder| matches!(holder, Holder::Task(_));
    assert!(!world.machine.networks.holders(roomy).iter().any(is_task));
    world.write(vec![Change::Delete(ObjectRef::Task(fillers[0]))]);
    assert_eq!(world.state.tasks().get(&waiting).expect("a task").status.state, TaskState::Pending);
    assert_eq!(world.machine.networks.holders(roomy).into_iter().filter(is_task).count(), 1);
}

/// No task has an address in the state: gateways and virtual IPs alone are held.
fn check_nothing_leaked(world: &World) {
    for network in world.state.networks().iter() {
        let holders = world.machine.networks.holders(network.id);
        let of_tasks = holders.iter().filter(|holder| matches!(holder, Holder::Task(_)));
        assert_eq!(of_tasks.count(), 0, "{}: {holders:?}", network.spec.name);
    }
}

/// All networks that it and its service ask for have a subnet: only addresses can be missing, and no task has any.
fn may_be_served(state: &State, task: &Task) -> bool {
    let is_allocated = |asked: &NetworkAttachmentSpec| {
        state.networks().get(&asked.target).is_some_and(|network| network.state.is_some())
    };
    let service = state.services().get(&task.service);
    let asked = service.map(|s| task.spec.networks.iter().chain(&s.spec.task.networks));
    task.status.state == TaskState::New && asked.is_some_and(|mut asked| asked.all(is_allocated))
}

fn random_action(world: &mut World, random: &mut Random, n_names: &mut usize) {
    let services: Vec<String> = world.state.services().iter().map(|s| s.spec.name.clone()).collect();
    let networks: Vec<String> = world.state.networks().iter().map(|n| n.spec.name.clone()).collect();
    let live = |task: &&std::sync::Arc<Task>| !task.status.state.is_terminal();
    let tasks: Vec<TaskId> = world.state.tasks().iter().filter(live).map(|task| task.id).collect();
    let mut words = vec![format!("net={}", networks[random.below(networks.len())])];
    words.extend((0..random.below(3)).map(|_| format!("port=0:{}", 80 + random.below(3))));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    *n_names += 1;
    match random.below(12) {
        0 if networks.len() < 10 => {
            let families: &[&str] = if n_names.is_multiple_of(2) { &[] } else { &["ipv6"] };
            world.add_network(&format!("n{n_names}"), families);
        }
        1 if services.len() < 12 => world.add_service(&format!("s{n_names}"), &words),
        2 if !services.is_empty() => world.update_service(&services[random.below(services.len())], &words),
        3 if !services.is_empty() && random.below(3) == 0 => {
            let name = &services[random.below(services.len())];
            let service = world.state.service_by_name(name).unwrap().id;
            let mut changes: Vec<Change> = world
                .state
                .tasks_of_service(service)
                .map(|task| Change::Delete(ObjectRef::Task(task.id)))
                .collect();
            changes.push(Change::Delete(ObjectRef::Service(service)));
            world.write(changes);
        }
        4 => world.change_leader(),
        5 | 6 if !tasks.is_empty() => {
            let id = tasks[random.below(tasks.len())];
            let status = TaskStatus { state: TaskState::Failed, at: world.now(), ..TaskStatus::default() };
            world.write(vec![Change::TaskStatus { id, status }]);
        }
        7 if !tasks.is_empty() => {
            let id = tasks[random.below(tasks.len())];
            world.write(vec![Change::Delete(ObjectRef::Task(id))]);
        }
        _ if !services.is_empty() => drop(world.add_task(&services[random.below(services.len())])),
        _ => {}
    }
}

#[test]
fn the_port_of_the_nodes_gossip_is_not_published() {
    let mut world = World::new("10.0.0.0/8", 24);
    let mut node = Node::new(NodeId::from_bits(1), Role::Worker);
    node.description.gossip_addr = Some(([198, 18, 0, 11], 7946).into());
    world.write(vec![Change::Create(Object::Node(Box::new(node)))]);
    let check = |protocol, published| {
        let port = PortConfig::new(protocol, 80, published, PublishMode::Ingress);
        check_ports(&world.state, &[port], None)
    };
    let taken = Err("port '7946' is already in use by the swarm's gossip, see --gossip-port".to_owned());
    assert_eq!((check(Protocol::Tcp, 7946), check(Protocol::Udp, 7946)), (taken.clone(), taken));
    assert_eq!((check(Protocol::Sctp, 7946), check(Protocol::Tcp, 7947)), (Ok(()), Ok(())));
}
