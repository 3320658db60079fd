//! The language of scenarios. A block is commands, a line `----`, and what they print; blocks are parted by an empty
//! line, `#` begins a comment.
//!
//! ```text
//! node NAME [label=value]…      cpu, mem (GiB), manager=yes, arch and os are no labels
//! drain|pause|active|kill|silence|hear|revive|mute|remove NAME…   `hear`: its agent works again, and its state says so later
//! relabel NODE label=value
//! skew NODE SECONDS             its clock is so far ahead of the leader's (behind: -SECONDS)
//! say NODE WORD                its status has another message
//! history N                    ended tasks kept per slot
//! network NAME
//! service NAME [key=value]…     see `spec.rs`
//! update NAME [key=value]…      as the API does it: remembers the old spec, clears the update status, runs a job again
//! rollback|rm NAME              as the API does it
//! meanwhile update|rollback …   the same, before the loops next write a status of NAME's update, and after their look
//! delete NAME                   the service object goes at once
//! fail NAME.SLOT                the running task fails
//! lose NAME.SLOT                the running task's object is deleted
//! leader                        another leader takes over
//! run TIME · pass HOURS        `pass` is one step of time for all
//! ps NAME · ls · status NAME · spread NAME · count NAME (its tasks)
//! trace NAME TIME               lets time pass and prints each change of how many run, by image
//! ```

mod print;
mod spec;

use std::fmt::Write;
use std::time::Duration;

use control_model::change::{Change, Object, ObjectRef};
use control_model::object::{
    JobStatus, Network, Node, NodeState, NodeStatus, Service, UpdateState, UpdateStatus,
};
use control_model::spec::{Availability, NetworkSpec, Role};
use control_model::{NetworkId, NodeId, ServiceId, TaskId, TaskState, Timestamp};

use control_store::State;

use crate::cluster::{Cluster, STEP, new_service, zero_node};

/// Plays a scenario; returns its text with the output that came out.
pub fn play(text: &str) -> String {
    let mut player = Player { cluster: Cluster::new() };
    let blocks: Vec<String> = text.trim_end().split("\n\n").map(|block| player.block(block)).collect();
    blocks.join("\n\n") + "\n"
}

struct Player {
    cluster: Cluster,
}

impl Player {
    fn block(&mut self, block: &str) -> String {
        let Some((commands, _)) = block.split_once("----") else {
            self.commands(block);
            return block.into();
        };
        let output = self.commands(commands);
        format!("{}\n----\n{}", commands.trim_end(), output.trim_end()).trim_end().to_owned()
    }

    fn commands(&mut self, commands: &str) -> String {
        let mut output = String::new();
        for line in commands.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let words: Vec<&str> = line.split_whitespace().collect();
            self.command(words[0], &words[1..], &mut output);
        }
        output
    }

    fn command(&mut self, verb: &str, words: &[&str], output: &mut String) {
        match verb {
            "node" => self.add_node(words[0], &words[1..]),
            "network" => self.add_network(words[0]),
            "service" => self.add_service(words[0], &words[1..]),
            "update" => self.update(words[0], &words[1..]),
            "rollback" => self.roll_back(words[0]),
            "meanwhile" => self.meanwhile(words),
            "rm" => {
                let state = self.cluster.state();
                let old = state.service_by_name(words[0]).expect("a service");
                let new = Service { pending_delete: true, ..Service::clone(old) };
                let object = Object::Service(Box::new(new));
                self.cluster.commit(vec![Change::Update { object, expected: old.meta.version }]);
            }
            "delete" => {
                let id = service_id(&self.cluster.state(), words[0]);
                self.cluster.commit(vec![Change::Delete(ObjectRef::Service(id))]);
            }
            "rm-network" => self.remove_network(words[0]),
            "fail" => self.fail(words[0]),
            "lose" => {
                let id = self.running(words[0]);
                self.cluster.commit(vec![Change::Delete(ObjectRef::Task(id))]);
            }
            "relabel" => self.relabel(words[0], words[1]),
            "promote" => self.set_role(words[0], Role::Manager),
            "demote" => self.set_role(words[0], Role::Worker),
            "skew" => {
                let id = node_id(&self.cluster.state(), words[0]);
                self.cluster.agents.ahead_secs.insert(id, number(words[1]));
            }
            "say" => {
                let state = self.cluster.state();
                let id = node_id(&state, words[0]);
                let status = state.nodes().get(&id).expect("a node").status.clone();
                let status = NodeStatus { message: words[1].into(), ..status };
                self.cluster.commit(vec![Change::NodeStatus { id, status }]);
            }
            "history" => self.keep_history(number(words[0])),
            "leader" => self.cluster.change_leader(),
            "pass" => {
                let hours: u64 = number(words[0].trim_end_matches('h'));
                self.cluster.skip(Duration::from_hours(hours));
            }
            "run" => self.cluster.run(duration(words[0])),
            "trace" => self.trace(words[0], duration(words[1]), output),
            "ps" => print::ps(&self.cluster.state(), words[0], output),
            "ls" => print::ls(&self.cluster.state(), output),
            "status" => print::status(&self.cluster.state(), words[0], output),
            "spread" => print::spread(&self.cluster.state(), words[0], output),
            "count" => print::count(&self.cluster.state(), words[0], output),
            "weights" => print::weights(&self.cluster.state(), words[0], output),
            "networks" => print::networks(&self.cluster.state(), output),
            "endpoint" => print::endpoint(&self.cluster.state(), words[0], output),
            _ => words.iter().for_each(|name| self.node_command(verb, name)),
        }
        self.cluster.settle();
    }

    fn add_node(&mut self, name: &str, words: &[&str]) {
        let mut node = zero_node(NodeId::from_bits(self.cluster.ids.next()), name);
        for (key, value) in words.iter().filter_map(|word| word.split_once('=')) {
            match key {
                "cpu" => node.description.resources.nano_cpus = number::<i64>(value) * 1_000_000_000,
                "mem" => node.description.resources.memory_bytes = number::<i64>(value) << 30,
                "arch" => node.description.platform.architecture = value.into(),
                "os" => node.description.platform.os = value.into(),
                "manager" => node.certificate_role = Role::Manager,
                _ => drop(node.spec.labels.insert(key.into(), value.into())),
            }
        }
        self.cluster.commit(vec![Change::Create(Object::Node(Box::new(node)))]);
    }

    fn node_command(&mut self, verb: &str, name: &str) {
        let id = node_id(&self.cluster.state(), name);
        match verb {
            "drain" => self.set_availability(id, Availability::Drain),
            "pause" => self.set_availability(id, Availability::Pause),
            "active" => self.set_availability(id, Availability::Active),
            "kill" => self.cluster.set_life(id, NodeState::Down, false),
            "silence" => self.cluster.set_life(id, NodeState::Down, true),
            "revive" => self.cluster.set_life(id, NodeState::Ready, true),
            "hear" => drop(self.cluster.agents.dead.remove(&id)),
            "mute" => self.cluster.silent.push(id),
            "remove" => {
                self.cluster.agents.dead.insert(id);
                self.cluster.commit(vec![Change::Delete(ObjectRef::Node(id))]);
            }
            _ => panic!("unknown command {verb}"),
        }
    }

    fn relabel(&mut self, name: &str, label: &str) {
        let state = self.cluster.state();
        let mut node = Node::clone(state.nodes().get(&node_id(&state, name)).expect("a node"));
        let (key, value) = label.split_once('=').expect("label=value");
        node.spec.labels.insert(key.into(), value.into());
        let expected = node.meta.version;
        self.cluster.commit(vec![Change::Update { object: Object::Node(Box::new(node)), expected }]);
    }

    /// The role that its certificate shows: what constraints go by.
    fn set_role(&mut self, name: &str, role: Role) {
        let state = self.cluster.state();
        let mut node = Node::clone(state.nodes().get(&node_id(&state, name)).expect("a node"));
        node.certificate_role = role;
        let expected = node.meta.version;
        self.cluster.commit(vec![Change::Update { object: Object::Node(Box::new(node)), expected }]);
    }

    fn keep_history(&mut self, limit: i64) {
        let mut cluster = (**self.cluster.state().cluster().expect("a cluster")).clone();
        cluster.spec.task_history_limit = limit;
        let expected = cluster.meta.version;
        self.cluster.commit(vec![Change::Update { object: Object::Cluster(Box::new(cluster)), expected }]);
    }

    fn set_availability(&mut self, id: NodeId, availability: Availability) {
        let node = self.cluster.state().nodes().get(&id).expect("a node").clone();
        let mut changed = Node::clone(&node);
        changed.spec.availability = availability;
        let object = Object::Node(Box::new(changed));
        self.cluster.commit(vec![Change::Update { object, expected: node.meta.version }]);
    }

    fn add_network(&mut self, name: &str) {
        let network = Network::new(
            NetworkId::from_bits(self.cluster.ids.next()),
            NetworkSpec { name: name.into(), ..NetworkSpec::default() },
        );
        self.cluster.commit(vec![Change::Create(Object::Network(Box::new(network)))]);
    }

    fn remove_network(&mut self, name: &str) {
        let state = self.cluster.state();
        let network =
            Network { pending_delete: true, ..(**state.network_by_name(name).expect("a network")).clone() };
        let expected = network.meta.version;
        self.cluster.commit(vec![Change::Update { object: Object::Network(Box::new(network)), expected }]);
    }

    fn add_service(&mut self, name: &str, words: &[&str]) {
        let mut service = new_service(ServiceId::from_bits(self.cluster.ids.next()), name);
        spec::edit(&self.cluster.state(), &mut service.spec, words);
        service.job = service.spec.mode.is_job().then(JobStatus::default);
        self.cluster.commit(vec![Change::Create(Object::Service(Box::new(service)))]);
    }

    fn update(&mut self, name: &str, words: &[&str]) {
        let change = updated(&self.cluster.state(), self.cluster.now(), name, words);
        self.cluster.commit(vec![change]);
    }

    fn roll_back(&mut self, name: &str) {
        let change = rolled_back(&self.cluster.state(), self.cluster.now(), name);
        self.cluster.commit(vec![change]);
    }

    fn meanwhile(&mut self, words: &[&str]) {
        let mut words: Option<Vec<String>> = Some(words.iter().map(|word| (*word).to_owned()).collect());
        let clock = self.cluster.clock();
        self.cluster.interfere = Some(Box::new(move |state, changes| {
            let is_status =
                |id| changes.iter().any(|c| matches!(c, Change::UpdateStatus { id: of, .. } if *of == id));
            let Some(words) = words.take_if(|words| is_status(service_id(state, &words[1]))) else {
                return Vec::new();
            };
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match words[0] {
                "update" => vec![updated(state, clock(), words[1], &words[2..])],
                "rollback" => vec![rolled_back(state, clock(), words[1])],
                verb => panic!("unknown command {verb}"),
            }
        }));
    }

    fn fail(&mut self, name: &str) {
        let id = self.running(name);
        self.cluster.agents.doomed.insert(id);
    }

    /// The task of this name that runs.
    fn running(&self, name: &str) -> TaskId {
        let state = self.cluster.state();
        let runs = |task: &&std::sync::Arc<control_model::Task>| {
            task.status.state == TaskState::Running && print::name(&state, task) == name
        };
        state.tasks().iter().find(runs).unwrap_or_else(|| panic!("{name} does not run")).id
    }

    fn trace(&mut self, name: &str, span: Duration, output: &mut String) {
        let start = self.cluster.now();
        let mut last = String::new();
        while self.cluster.now() < start.after(span) {
            let picture = print::picture(&self.cluster.state(), name);
            if picture != last {
                let at = self.cluster.now().since(start).as_millis();
                writeln!(output, "{:>4}.{} s  {picture}", at / 1000, at % 1000 / 100).expect("a string");
                last = picture;
            }
            self.cluster.run(STEP);
        }
    }
}

fn updated(state: &State, now: Timestamp, name: &str, words: &[&str]) -> Change {
    let old = state.service_by_name(name).expect("a service");
    let mut new = Service::clone(old);
    spec::edit(state, &mut new.spec, words);
    new.previous_spec = Some(Box::new(old.spec.clone()));
    new.update_status = None;
    new.job = old.job.map(|job| JobStatus { iteration: job.iteration + 1, last_execution: now });
    Change::Update { object: Object::Service(Box::new(new)), expected: old.meta.version }
}

fn rolled_back(state: &State, now: Timestamp, name: &str) -> Change {
    let old = state.service_by_name(name).expect("a service");
    let spec = *old.previous_spec.clone().expect("a previous spec");
    let update_status = Some(UpdateStatus {
        state: UpdateState::RollbackStarted,
        started_at: now,
        completed_at: None,
        message: "manually requested rollback".into(),
    });
    let previous_spec = Some(Box::new(old.spec.clone()));
    let new = Service { spec, previous_spec, update_status, ..Service::clone(old) };
    Change::Update { object: Object::Service(Box::new(new)), expected: old.meta.version }
}

/// `10s` or `300ms`.
fn duration(word: &str) -> Duration {
    word.strip_suffix("ms").map_or_else(
        || Duration::from_secs(number::<u64>(word.trim_end_matches('s'))),
        |ms| Duration::from_millis(number(ms)),
    )
}

fn number<N: std::str::FromStr>(word: &str) -> N {
    word.parse().unwrap_or_else(|_| panic!("no number: {word}"))
}

fn node_id(state: &State, name: &str) -> NodeId {
    let node = state.nodes().iter().find(|node| node.description.hostname == name);
    node.unwrap_or_else(|| panic!("no node {name}")).id
}

fn service_id(state: &State, name: &str) -> ServiceId {
    state.service_by_name(name).unwrap_or_else(|| panic!("no service {name}")).id
}
