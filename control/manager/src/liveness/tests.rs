//! Scenarios: what is heard and probed, line by line, and what the leader would write.

use std::fmt::Write as _;
use std::time::Duration;

use control_model::object::{Cluster, NodeDescription};
use control_model::spec::Role;
use control_model::{ClusterId, Entry, Object, RequestId};
use proptest::prelude::*;

use super::*;

/// The judge's own node; none of those that it judges, but where a test says so.
const ME: NodeId = NodeId::from_bits(99);

/// A cluster of the nodes 1…n and a leader that began at 0 ms.
struct World {
    state: State,
    liveness: Liveness,
    out: String,
}

impl World {
    fn new(n_nodes: u128) -> Self {
        let mut world =
            Self { state: State::default(), liveness: Liveness::new(ME, Timestamp(0)), out: String::new() };
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

    /// Gossip finds neither life in these.
    fn gossip(&mut self, gone: &[NodeId]) {
        let silent: BTreeSet<NodeId> = gone.iter().copied().collect();
        let opinion = Opinion { silent_paths: silent.clone(), silent_agents: silent, ..Opinion::default() };
        self.liveness.gossip(&opinion);
    }

    /// Runs `script`: `<ms> beat|set-up|probe|answer|tick|gone [node]`, `back` when gossip has nothing to say any more, and `leader` for
    /// a new one.
    fn run(&mut self, script: &str) -> String {
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let ms: u64 = words[0].parse().expect("milliseconds");
            let now = Timestamp(0).after(Duration::from_millis(ms));
            let id = || NodeId::from_bits(words[2].parse().expect("node"));
            match words[1] {
                "beat" => _ = self.liveness.heartbeat(id(), None, now),
                "set-up" => self.liveness.data_plane_set_up(id(), now),
                "probe" => drop(self.liveness.probe_sent(id(), now)),
                "answer" => self.liveness.probe_answered(id(), now),
                "leader" => self.liveness = Liveness::new(ME, now),
                "gone" => self.gossip(&[id()]),
                "back" => self.gossip(&[]),
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
fn a_node_that_has_come_is_ready_when_its_path_is_judged() {
    let mut world = World::new(1);
    assert_eq!(world.run("10 beat 1\n20 tick"), "", "heard, and not yet asked");
    assert_eq!(world.run("300 probe 1\n310 tick"), "", "asked, and the answer may come yet");
    assert_eq!(world.run("320 answer 1\n600 tick"), "600 node 1 Ready path alive \n");

    let mut world = World::new(1);
    let script =
        format!("{}3000 beat 1\n3000 set-up 1\n{}", silence(300, 3000, false), silence(3000, 4500, true));
    assert_eq!(world.run(&script), "", "what it missed before it was heard says nothing");
    let judged = world.run("4500 probe 1\n4500 tick");
    assert_eq!(judged, "4500 node 1 Ready path dead \n", "its agent can do what needs no data path");

    let mut world = World::new(1);
    assert_eq!(world.run(&silence(0, 9900, true)), "", "its data plane may be set up yet");
    assert_eq!(world.run("9900 beat 1\n10000 tick"), "10000 node 1 Ready path dead \n");

    let mut mine = World { liveness: Liveness::new(NodeId::from_bits(1), Timestamp(0)), ..World::new(1) };
    assert_eq!(
        mine.run("10 beat 1\n20 tick"),
        "20 node 1 Ready path dead \n",
        "nobody probes the judge's own"
    );
}

/// What the kernel held before a reboot it does not hold after it: an agent that was silent says anew that its data plane is set
/// up.
#[test]
fn a_node_that_is_back_is_set_up_when_it_says_so_again() {
    let node = NodeId::from_bits(1);
    let mut liveness = Liveness::new(NodeId::from_bits(99), Timestamp(0));
    let mut hear = |ms, index| {
        let now = Timestamp(0).after(Duration::from_millis(ms));
        let heard = Heard { at: now, addr: None, applied: Generation { epoch: 0, index } };
        liveness.hear(BTreeMap::from([(node, heard)]), now);
        liveness.nodes[&node].set_up_since
    };
    let at = |ms| Some(Timestamp(0).after(Duration::from_millis(ms)));
    assert_eq!(hear(100, 0), None);
    assert_eq!(hear(600, 7), at(600));
    assert_eq!(hear(1100, 8), at(600));
    assert_eq!(hear(60_000, 8), None, "it was away");
    assert_eq!(hear(60_500, 8), None);
    assert_eq!(hear(61_000, 9), at(61_000));
}

#[test]
fn a_period_of_an_earlier_version_kills_nobody_between_two_beats() {
    let mut world = World::new(1);
    let mut hasty = Cluster::clone(world.state.cluster().expect("made"));
    hasty.spec.heartbeat_period = Duration::from_millis(100);
    let expected = hasty.meta.version;
    world.apply(vec![Change::Update { object: Object::Cluster(Box::new(hasty)), expected }]);
    world.run(COMES_UP);
    assert_eq!(world.run("1000 tick\n1020 beat 1\n2000 tick\n2900 tick\n3800 tick\n4020 tick"), "");
    assert_eq!(world.run("4021 tick"), "4021 node 1 Down path alive heartbeat failure\n");
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
fn a_node_that_gossip_finds_gone_is_down_as_soon_as_heartbeat_and_probes_confirm_it() {
    let down = |script: &str| {
        let mut world = World::new(1);
        world.run(COMES_UP);
        world.run(&format!("300 probe 1\n600 probe 1\n{script}\n1200 tick"))
    };
    let gone = "1200 node 1 Down path dead heartbeat failure and no answer from the data path\n";
    assert_eq!(down("700 gone 1\n900 tick\n900 probe 1"), gone, "after the heartbeat that did not come");
    assert_eq!(down("700 gone 1\n700 beat 1\n900 probe 1"), "", "its agent is heard");
    assert_eq!(down("700 gone 1\n900 answer 1"), "", "its data path answers");
    assert_eq!(down("700 gone 1\n900 probe 1\n900 back"), "", "refuted");

    let mut world = World::new(1);
    world.run(COMES_UP);
    let went = world.run("300 probe 1\n600 probe 1\n900 probe 1\n900 gone 1\n900 tick\n1200 tick");
    assert_eq!(went, gone);
    assert_eq!(
        world.run("1300 beat 1\n1300 answer 1\n1300 back\n1300 tick"),
        "1300 node 1 Ready path alive \n"
    );
}

/// The node says that its tunnel ends where another's does.
fn comes_to_one_address(id: u128) -> Change {
    let address = std::net::Ipv4Addr::new(198, 18, 0, 12).into();
    let description = NodeDescription {
        data_path_addr: Some(address),
        addresses: vec![address],
        ..NodeDescription::default()
    };
    Change::NodeDescription { id: NodeId::from_bits(id), description: Box::new(description) }
}

#[test]
fn who_answers_at_a_nodes_address_after_another_one_came_there_is_that_one() {
    let mut world = World::new(2);
    world.apply(vec![comes_to_one_address(1)]);
    assert_eq!(world.run(COMES_UP), "20 node 1 Ready path alive \n");
    world.apply(vec![comes_to_one_address(2)]);
    let comes = "300 beat 2\n300 probe 1\n300 probe 2\n310 answer 1\n310 answer 2\n310 tick";
    assert_eq!(world.run(comes), "310 node 2 Ready path alive \n", "its agent was just heard");
    let round =
        |ms| format!("{ms} beat 2\n{ms} probe 1\n{ms} probe 2\n{ms} answer 1\n{ms} answer 2\n{ms} tick\n");
    let stays: String = (600..=2700).step_by(300).map(round).collect();
    assert_eq!(
        world.run(&stays),
        "2700 node 1 Down path dead heartbeat failure and no answer from the data path\n"
    );
}

#[test]
fn who_is_heard_loses_its_data_path_to_nobodys_word() {
    let mut world = World::new(2);
    world.apply(vec![comes_to_one_address(1)]);
    world.run(COMES_UP);
    world.apply(vec![comes_to_one_address(2)]);
    let round = |ms| {
        let mut script = String::new();
        for id in 1..=2 {
            writeln!(script, "{ms} beat {id}\n{ms} probe {id}\n{ms} answer {id}")
                .expect("a string takes all");
        }
        script + &format!("{ms} tick\n")
    };
    let both: String = (300..=20_000).step_by(300).map(round).collect();
    assert_eq!(world.run(&both), "300 node 2 Ready path alive \n", "nothing is said of node 1");
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
    assert_eq!(world.run("30700 beat 1\n30700 probe 1\n30700 tick"), "");
    assert_eq!(world.run("30710 answer 1\n31000 tick"), "31000 node 1 Ready path alive \n");
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

/// The nodes `1..=n_probed` in rounds of 300 ms in `[from, to)`: all are probed, some answer, some agents beat.
fn rounds(from: u64, to: u64, n_probed: u128, answer: &[u128], beat: &[u128]) -> String {
    let mut script = String::new();
    for ms in (from..to).step_by(300) {
        for id in beat.iter().filter(|_| ms.is_multiple_of(900)) {
            writeln!(script, "{ms} beat {id}").expect("a string takes all");
        }
        for id in 1..=n_probed {
            writeln!(script, "{ms} probe {id}").expect("a string takes all");
        }
        for id in answer {
            writeln!(script, "{ms} answer {id}").expect("a string takes all");
        }
        writeln!(script, "{ms} tick").expect("a string takes all");
    }
    script
}

const FOUR: &[u128] = &[1, 2, 3, 4];

/// A leader that probes the nodes `1..=n`, all of which are ready since 0 ms.
fn all_ready(n: u128) -> World {
    let (mut world, all) = (World::new(n), (1..=n).collect::<Vec<_>>());
    assert_eq!(world.run(&rounds(0, 900, n, &all, &all)).lines().count(), usize::try_from(n).expect("few"));
    world
}

#[test]
fn a_judge_that_hears_most_agents_and_no_data_path_condemns_nobody() {
    let mut world = all_ready(4);
    assert_eq!(world.run(&rounds(900, 60_000, 4, &[], FOUR)), "");
    let since = world.liveness.doubts_itself_since().expect("in doubt");
    assert_eq!(since, Timestamp(0).after(Duration::from_millis(900 + 2 * 300)), "with the second miss");
    // It recovers, and one of the nodes is dead after all.
    assert_eq!(world.run(&rounds(60_000, 61_500, 4, &[1, 2, 4], FOUR)), "");
    assert_eq!(world.liveness.doubts_itself_since(), None);
    assert_eq!(world.run(&rounds(61_500, 63_000, 4, &[1, 2, 4], FOUR)), "61500 node 3 Ready path dead \n");
}

#[test]
fn one_that_is_heard_by_the_judge_does_not_clear_it() {
    let mut world = all_ready(4);
    assert_eq!(world.run(&rounds(900, 20_000, 4, &[2], FOUR)), "");
    assert!(world.liveness.doubts_itself_since().is_some());
}

#[test]
fn half_of_the_nodes_and_fewer_are_believed_to_be_dead() {
    let mut world = all_ready(4);
    let dead = "2400 node 1 Ready path dead \n2400 node 4 Ready path dead \n";
    assert_eq!(world.run(&rounds(900, 20_000, 4, &[2, 3], FOUR)), dead);
    assert_eq!(world.liveness.doubts_itself_since(), None);
}

#[test]
fn in_a_cluster_of_three_two_silent_ones_are_spared_and_one_is_not() {
    assert_eq!(all_ready(2).run(&rounds(900, 20_000, 2, &[], &[1, 2])), "");
    assert_eq!(all_ready(2).run(&rounds(900, 20_000, 2, &[2], &[1, 2])), "2400 node 1 Ready path dead \n");
}

#[test]
fn in_a_cluster_of_two_the_other_one_is_condemned() {
    assert_eq!(all_ready(1).run(&rounds(900, 20_000, 1, &[], &[1])), "2400 node 1 Ready path dead \n");
}

#[test]
fn one_after_the_other_they_are_believed_to_be_dead() {
    let mut world = all_ready(4);
    let mut out = String::new();
    for (nth, answer) in [&[2, 3, 4][..], &[3, 4], &[4], &[]].into_iter().enumerate() {
        let from = 900 + 3000 * u64::try_from(nth).expect("few");
        out += &world.run(&rounds(from, from + 3000, 4, answer, FOUR));
    }
    let dead = |ms: u64, id| format!("{ms} node {id} Ready path dead \n");
    assert_eq!(out, [dead(2400, 1), dead(5400, 2), dead(8400, 3), dead(11_400, 4)].concat());
}

#[test]
fn a_partition_silences_agents_too_and_takes_what_it_takes() {
    let lost =
        |id| format!("2700 node {id} Down path dead heartbeat failure and no answer from the data path\n");
    let mut world = all_ready(4);
    // The last heartbeats are of 0 ms: nothing has been heard for more than 2.5 s at 2700 ms.
    assert_eq!(world.run(&rounds(900, 20_000, 4, &[2], &[2])), [lost(1), lost(3), lost(4)].concat());
    assert_eq!(world.liveness.doubts_itself_since(), None);
}

#[test]
fn a_node_that_is_lost_while_the_judge_doubts_itself_is_lost() {
    let mut world = all_ready(4);
    let lost = "2700 node 4 Down path dead heartbeat failure and no answer from the data path\n";
    assert_eq!(world.run(&rounds(900, 20_000, 4, &[], &[1, 2, 3])), lost, "both of its lives ended at once");
}

#[test]
fn while_the_judge_doubts_itself_agents_may_be_restarted_but_not_for_ever() {
    let mut world = all_ready(4);
    assert_eq!(world.run(&rounds(900, 9000, 4, &[], FOUR)), "");
    assert_eq!(world.run(&rounds(9000, 18_000, 4, &[], &[1, 2, 3])), "", "node 4 is away for 9 s");
    assert_eq!(world.run(&rounds(18_000, 18_900, 4, &[], FOUR)), "");
    let lost = "33300 node 4 Down path dead heartbeat failure\n";
    assert_eq!(world.run(&rounds(18_900, 60_000, 4, &[], &[1, 2, 3])), lost);
}

#[test]
fn an_agent_that_was_down_before_takes_no_data_path_with_it_when_the_judge_fails() {
    let mut world = all_ready(4);
    let down = "15300 node 4 Down path alive heartbeat failure\n";
    assert_eq!(world.run(&rounds(900, 20_100, 4, FOUR, &[1, 2, 3])), down);
    assert_eq!(world.run(&rounds(20_100, 30_000, 4, &[], &[1, 2, 3])), "");
    assert_eq!(world.run(&rounds(30_000, 33_000, 4, FOUR, &[1, 2, 3])), "");
}

#[test]
fn a_new_leader_whose_own_data_path_is_broken_condemns_nobody() {
    let mut world = all_ready(4);
    assert_eq!(world.run("60000 leader"), "");
    assert_eq!(world.run(&rounds(60_000, 90_000, 4, &[], FOUR)), "");
    assert!(world.liveness.doubts_itself_since().is_some());
}

#[test]
fn those_that_count_as_dead_already_are_no_witnesses() {
    let mut world = all_ready(4);
    let dead = "2400 node 1 Ready path dead \n2400 node 2 Ready path dead \n";
    assert_eq!(world.run(&rounds(900, 6000, 4, &[3, 4], FOUR)), dead);
    assert_eq!(world.run(&rounds(6000, 20_000, 4, &[], FOUR)), "", "the last two at once");
}

#[test]
fn a_path_that_is_back_for_a_part_of_a_round_condemns_nobody_who_was_not_asked_in_it() {
    let mut world = all_ready(4);
    let script = [
        rounds(900, 3000, 4, &[], FOUR),
        // Two of four are no majority any more, and have missed far more than is allowed.
        rounds(3000, 3300, 4, &[1, 2], FOUR),
        rounds(3300, 20_000, 4, &[], FOUR),
    ];
    assert_eq!(world.run(&script.concat()), "");
}

#[test]
fn a_node_that_dies_while_the_judges_path_is_down_is_found_when_it_is_back() {
    let mut world = all_ready(4);
    assert_eq!(world.run(&rounds(900, 20_100, 4, &[], FOUR)), "");
    let dead = "21600 node 4 Ready path dead \n";
    assert_eq!(world.run(&rounds(20_100, 24_000, 4, &[1, 2, 3], FOUR)), dead, "as fast as ever");
}

/// Times for which the judge's path works and then fails, in probes of one node each: parts of rounds, and many rounds.
fn outages() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let times = || prop_oneof![1..10u64, 1..120u64];
    prop::collection::vec((times(), times()), 1..usize::try_from(PROBE_MISSES).expect("few"))
}

proptest! {
    /// A judge whose own data path goes and comes back at any moment, of a round too, while all others live and answer
    /// with any delay. It judges whenever somebody has missed too many, and at any other moment. As many outages as
    /// it takes misses to condemn could look like the death of one: each when that one is asked. So everybody is
    /// asked once at least after fewer.
    #[test]
    fn outages_of_the_judge_alone_condemn_nobody(
        n in 2..8u64,
        delay in 0..7u64,
        series in prop::collection::vec(outages(), 1..4),
        ticks in prop::collection::vec(any::<bool>(), 64),
    ) {
        let mut world = all_ready(n.into());
        let series = series.into_iter().flat_map(|outages| [vec![(n, 0)], outages].concat());
        let works: Vec<bool> = series
            .flat_map(|(works, fails)| [(true, works), (false, fails)])
            .flat_map(|(works, times)| (0..times).map(move |_| works))
            .collect();
        let asked = |step: usize| NodeId::from_bits(u128::try_from(step).expect("few") % u128::from(n) + 1);
        let delay = usize::try_from(delay % n).expect("few");
        for (step, tick) in (0..works.len()).zip(ticks.iter().cycle()) {
            let ms = 900 + u64::try_from(step).expect("few") * 300 / n;
            let now = Timestamp(0).after(Duration::from_millis(ms));
            let _ = world.liveness.heartbeat(asked(step), None, now);
            let has_died = world.liveness.probe_sent(asked(step), now);
            if has_died || *tick {
                world.tick(ms, now);
            }
            if let Some(sent) = step.checked_sub(delay).filter(|sent| works[*sent]) {
                world.liveness.probe_answered(asked(sent), now);
            }
        }
        prop_assert_eq!(&world.out, "");
    }
}
