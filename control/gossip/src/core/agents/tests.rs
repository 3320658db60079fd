use super::*;

const ME: NodeId = NodeId::from_bits(1);
const OTHER: NodeId = NodeId::from_bits(2);

fn at(ms: u64) -> Timestamp {
    Timestamp(0).after(Duration::from_millis(ms))
}

fn agents(n_others: u128) -> Agents {
    let mut agents = Agents::new(ME);
    agents.set_members(&(2..n_others + 2).map(NodeId::from_bits).collect());
    agents
}

fn suspect(incarnation: u64, by: u128) -> Claim {
    Claim { incarnation, state: Claimed::Suspect(NodeId::from_bits(by)) }
}

/// Ticks every 10 ms; when the agent was suspected, and when it became silent.
fn watch(agents: &mut Agents, from: u64, to: u64) -> (Option<u64>, Option<u64>) {
    let (mut dice, mut suspected, mut silent) = (Dice::new(1), None, None);
    for ms in (from..to).step_by(10) {
        let mut out = Out::default();
        agents.tick(at(ms), &mut dice, &mut out);
        if out.suspected.contains(&OTHER) {
            suspected.get_or_insert(ms);
        }
        if agents.silent().contains(&OTHER) {
            silent.get_or_insert(ms);
        }
    }
    (suspected, silent)
}

#[test]
fn an_agent_that_answers_neither_this_node_nor_others_is_suspected_and_then_silent() {
    let mut agents = agents(4);
    let mut out = Out::default();
    agents.ping(OTHER, at(0), &mut out);
    agents.ping(OTHER, at(10), &mut out);
    assert_eq!(out.bodies, [(OTHER, Body::Ping(1))], "one question at a time");
    let mut out = Out::default();
    agents.tick(at(150), &mut Dice::new(1), &mut out);
    assert_eq!(out.bodies.len(), 3);
    assert!(out.bodies.iter().all(|(to, body)| *to != OTHER && *body == Body::Ask(1, OTHER)));
    for (helper, _) in out.bodies {
        agents.take(helper, Body::Silent(1), at(200), &mut Out::default());
    }
    assert_eq!(watch(&mut agents, 160, 5000), (Some(450), Some(450 + 3200)), "nobody shares it");
    assert_eq!(agents.trouble, 1, "the helpers were heard");
}

#[test]
fn a_suspicion_that_others_share_is_shorter() {
    for (sharers, silent_at) in [(0, 3200), (1, 2000), (2, 1310), (3, 800)] {
        let mut agents = agents(4);
        for by in 0..=sharers {
            agents.claim(OTHER, suspect(0, 3 + by), at(0), &mut Out::default());
        }
        assert_eq!(watch(&mut agents, 0, 5000).1, Some(silent_at));
    }
    let mut alone = agents(1);
    alone.claim(OTHER, suspect(0, 1), at(0), &mut Out::default());
    assert_eq!(watch(&mut alone, 0, 5000).1, Some(800), "there is nobody to share it");
}

#[test]
fn an_answer_through_another_node_is_one() {
    let mut agents = agents(4);
    let mut out = Out::default();
    agents.ping(OTHER, at(0), &mut out);
    agents.tick(at(150), &mut Dice::new(1), &mut out);
    let (helper, _) = out.bodies[1];
    agents.take(NodeId::from_bits(99), Body::Lives(1), at(200), &mut out);
    assert!(agents.next_deadline().is_some(), "nobody asked that one");
    agents.take(helper, Body::Lives(1), at(200), &mut out);
    assert_eq!(watch(&mut agents, 200, 2000), (None, None));
}

#[test]
fn who_is_asked_to_ask_says_what_has_come_of_it() {
    let mut agents = agents(4);
    let (asker, mut out) = (NodeId::from_bits(3), Out::default());
    agents.take(asker, Body::Ask(77, OTHER), at(0), &mut out);
    agents.take(asker, Body::Ask(78, OTHER), at(0), &mut out);
    assert_eq!(out.bodies, [(OTHER, Body::Ping(1)), (OTHER, Body::Ping(2))]);
    let mut out = Out::default();
    agents.take(OTHER, Body::Pong(1), at(20), &mut out);
    agents.tick(at(150), &mut Dice::new(1), &mut out);
    assert_eq!(out.bodies, [(asker, Body::Lives(77)), (asker, Body::Silent(78))]);
}

#[test]
fn what_is_said_falsely_of_this_node_is_refuted_and_older_words_count_no_more() {
    let (mut accused, mut judge) = (agents(2), Agents::new(OTHER));
    judge.set_members(&[ME].into());
    let mut out = Out::default();
    judge.claim(ME, suspect(0, 3), at(0), &mut out);
    judge.claim(ME, Claim { incarnation: 0, state: Claimed::Silent }, at(1), &mut out);
    let Some(News::Agent(_, accusation)) = judge.accusation(ME) else { panic!("it is silent") };
    let mut refutation = Out::default();
    accused.claim(ME, accusation, at(2), &mut refutation);
    let [News::Agent(ME, word)] = refutation.news[..] else { panic!("one refutation") };
    assert_eq!(word, Claim { incarnation: 1, state: Claimed::Alive });
    let mut out = Out::default();
    judge.claim(ME, word, at(3), &mut out);
    assert_eq!((out.returned, judge.accusation(ME)), (vec![ME], None));
    judge.claim(ME, suspect(0, 3), at(4), &mut Out::default());
    assert_eq!(judge.accusation(ME), None, "of the incarnation before");
}

#[test]
fn the_own_stall_makes_nobody_silent() {
    let mut agents = agents(4);
    let mut out = Out::default();
    agents.claim(OTHER, suspect(0, 3), at(0), &mut out);
    agents.ping(NodeId::from_bits(3), at(0), &mut out);
    agents.forgive(Duration::from_secs(5), at(5000));
    agents.tick(at(5000), &mut Dice::new(1), &mut out);
    assert!(agents.silent().is_empty());
    assert_eq!(agents.trouble, 1);
}

#[test]
fn a_node_in_trouble_waits_longer() {
    let mut agents = agents(4);
    agents.trouble = 3;
    agents.ping(OTHER, at(0), &mut Out::default());
    assert_eq!(agents.next_deadline(), Some(at(600)));
    agents.take(OTHER, Body::Pong(1), at(500), &mut Out::default());
    assert_eq!(agents.trouble, 2);
}
