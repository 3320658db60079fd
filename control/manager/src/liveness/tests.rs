//! Scenarios: what is heard and probed, line by line, and what the leader would write.

use std::fmt::Write as _;
use std::time::Duration;

use control_model::object::Cluster;
use control_model::spec::Role;
use control_model::{ClusterId, Entry, Object, RequestId};

use super::*;

/// A cluster of the nodes 1…n and a leader that began at 0 ms.
struct World {
    state: State,
    liveness: Liveness,
    out: String,
}

impl World {
    fn new(n_nodes: u128) -> Self {
        let mut world =
            Self { state: State::default(), liveness: Liveness::new(Timestamp(0)), out: String::new() };
        let mut changes = vec![Change::Create(Object::Cluster(Box::new(cluster())))];
        changes.extend((1..=n_nodes).map(|id| Change::Create(Object::Node(Box::new(node(id))))));
        world.apply(changes);
        world
    }

    fn apply(&mut self, changes: Vec<Change>) {
        let index = self.state.index() + 1;
        let entry = Entry { request: RequestId(index.into()), at: Timestamp(0), changes };
        self.state.apply(index, &entry).expect("valid changes");
    }

    /// Runs `script`: `<ms> beat|probe|answer|tick [node]`, and `leader` for a new one.
    fn run(&mut self, script: &str) -> String {
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let ms: u64 = words[0].parse().expect("milliseconds");
            let now = Timestamp(0).after(Duration::from_millis(ms));
            let id = || NodeId::from_bits(words[2].parse().expect("node"));
            match words[1] {
                "beat" => self.liveness.heartbeat(id(), None, now),
                "probe" => self.liveness.probe_sent(id(), now),
                "answer" => self.liveness.probe_answered(id(), now),
                "leader" => self.liveness = Liveness::new(now),
                "tick" => self.tick(ms, now),
                other => panic!("unknown word {other}"),
            }
        }
        std::mem::take(&mut self.out)
    }

    fn tick(&mut self, ms: u64, now: Timestamp) {
        let changes = self.liveness.tick(&self.state, now);
        for change in &changes {
            let Change::NodeStatus { id, status } = change else { panic!("only statuses: {change:?}") };
            let path = if status.data_path_alive { "alive" } else { "dead" };
            writeln!(self.out, "{ms} node {} {:?} path {path} {}", id.bits(), status.state, status.message)
                .expect("a string takes all");
        }
        self.apply(changes);
    }
}

fn cluster() -> Cluster {
    Cluster::new(ClusterId::from_bits(1))
}

fn node(id: u128) -> Node {
    Node::new(NodeId::from_bits(id), Role::Worker)
}

/// `probe` and `tick` every 300 ms in `[from, to)`, and a heartbeat at each full 900 ms if `beats`.
fn silence(from: u64, to: u64, beats: bool) -> String {
    let mut script = String::new();
    for ms in (from..to).step_by(300) {
        if beats && ms.is_multiple_of(900) {
            writeln!(script, "{ms} beat 1").expect("a string takes all");
        }
        writeln!(script, "{ms} probe 1\n{ms} tick").expect("a string takes all");
    }
    script
}

const COMES_UP: &str = "
    10 beat 1
    10 probe 1
    20 answer 1
    20 tick";

#[test]
fn a_node_that_is_heard_and_answers_is_ready() {
    assert_eq!(World::new(1).run(COMES_UP), "20 node 1 Ready path alive \n");
}

#[test]
fn an_agent_without_data_path_is_ready_and_takes_no_traffic() {
    assert_eq!(World::new(1).run("10 beat 1\n20 tick"), "20 node 1 Ready path dead \n");
}

#[test]
fn a_silent_agent_with_a_living_data_path_goes_down_after_the_grace_and_keeps_its_backends() {
    let mut world = World::new(1);
    world.run(COMES_UP);
    let mut script = String::new();
    for ms in (300..16_000).step_by(300) {
        writeln!(script, "{ms} probe 1\n{ms} answer 1\n{ms} tick").expect("a string takes all");
    }
    assert_eq!(world.run(&script), "15300 node 1 Down path alive heartbeat failure\n");
    assert_eq!(world.run("16000 beat 1\n16000 tick"), "16000 node 1 Ready path alive \n");
}

#[test]
fn a_dead_data_path_loses_its_backends_after_five_misses_and_comes_back_with_one_answer() {
    let mut world = World::new(1);
    world.run(COMES_UP);
    assert_eq!(world.run(&silence(300, 3000, true)), "1800 node 1 Ready path dead \n");
    assert_eq!(world.run("3010 answer 1\n3010 tick"), "3010 node 1 Ready path alive \n");
}

#[test]
fn both_dead_is_down_after_two_and_a_half_seconds() {
    let mut world = World::new(1);
    world.run(COMES_UP);
    let expected = "1800 node 1 Ready path dead \n\
                    2700 node 1 Down path dead heartbeat failure and no answer from the data path\n";
    assert_eq!(world.run(&silence(300, 20_000, false)), expected);
}

#[test]
fn a_new_leader_gives_everyone_a_fresh_grace() {
    let mut world = World::new(1);
    world.run(COMES_UP);
    world.run("900 tick\n1800 tick\n2700 tick");
    assert_eq!(world.run("60000 leader\n60100 probe 1\n60100 tick\n60900 tick"), "");
    let mut ticks = String::new();
    for ms in (61_000..77_000).step_by(1000) {
        writeln!(ticks, "{ms} tick").expect("a string takes all");
    }
    assert_eq!(world.run(&ticks), "76000 node 1 Down path alive heartbeat failure\n");
}

#[test]
fn a_node_that_is_down_stays_down_under_a_new_leader_until_heard() {
    let mut world = World::new(1);
    world.run(COMES_UP);
    world.run(&silence(300, 20_000, false));
    assert_eq!(world.run("30000 leader\n30300 tick\n30600 tick"), "");
    assert_eq!(world.run("30700 beat 1\n30700 tick"), "30700 node 1 Ready path dead \n");
}

#[test]
fn a_leader_that_stood_still_blames_nobody() {
    let mut world = World::new(1);
    world.run(COMES_UP);
    assert_eq!(world.run("30000 tick\n30300 tick"), "");
}

#[test]
fn a_removed_node_is_forgotten() {
    let mut world = World::new(2);
    world.run(COMES_UP);
    world.apply(vec![Change::Delete(control_model::ObjectRef::Node(NodeId::from_bits(1)))]);
    world.run("900 beat 2\n900 tick");
    assert_eq!(world.liveness.nodes.len(), 1);
}

#[test]
fn a_silence_beside_a_dead_data_path_ends_between_two_probes() {
    let mut world = World::new(1);
    world.run(COMES_UP);
    // The agent's last word is of 900 ms; its data path is found dead with the sixth probe.
    world.run(&silence(300, 1500, true));
    assert_eq!(world.liveness.next_deadline(), None, "its data path counts as alive");
    assert_eq!(world.run(&silence(1500, 2100, false)), "1800 node 1 Ready path dead \n");
    let deadline = world.liveness.next_deadline().expect("silent and dead");
    let just_before = Timestamp(0).after(Duration::from_millis(3400));
    assert!(deadline > just_before && deadline < just_before.after(Duration::from_millis(1)));
    assert_eq!(world.run(&silence(2100, 3400, false)), "");
    assert_eq!(world.run("3400 tick"), "");
    let down = "3401 node 1 Down path dead heartbeat failure and no answer from the data path\n";
    assert_eq!(world.run("3401 tick"), down);
    assert_eq!(world.liveness.next_deadline(), None, "what is decided has no deadline");
}
