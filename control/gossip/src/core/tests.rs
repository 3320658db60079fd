//! Decoders of bytes from outside. What many nodes do together is in `tests/simulation.rs`.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        drop(Message::decode(&bytes));
        drop(Frame::decode(&bytes));
    }

    /// Whatever a member says, the core takes it and goes on.
    #[test]
    fn no_message_panics(seed in any::<u64>(), bytes in proptest::collection::vec(any::<u8>(), 1..40)) {
        let ids = [1, 2, 3, 4].map(NodeId::from_bits);
        let contact = Contact { gossip: Some(([10, 0, 0, 1], 7946).into()), data_path: ([10, 0, 0, 1], 4789).into() };
        let mut core = Core::new(ids[0], 1, seed, Timestamp(0));
        let others = ids[1..].iter().map(|id| (*id, contact)).collect();
        let said = Said { contacts: Arc::new(others), ..Said::default() };
        core.said(&said, Timestamp(0));
        let mut dice = Dice::new(seed);
        for byte in bytes {
            let now = Timestamp(i64::from(byte) * 10_000_000);
            let message = any_message(&mut dice, &ids);
            core.message(ids[dice.below(4)], &message, now);
            core.take_frame(&Frame { known: vec![message::Known { origin: ids[dice.below(4)], life: dice.roll(), version: dice.roll() }], ..Frame::default() }, true, now);
            core.tick(now);
            for output in core.take_outputs() {
                if let Output::Send(_, message) = output {
                    prop_assert_eq!(Message::decode(&message.encode()), Some(message));
                }
            }
        }
    }
}

/// Gives `to` what `from` sends it in a second.
fn hear(from: &mut Core, to: &mut Core, start: Timestamp) {
    for ms in (0..1000).step_by(50) {
        let now = start.after(Duration::from_millis(ms));
        from.tick(now);
        for output in from.take_outputs() {
            if let Output::Send(node, message) = output
                && node == to.me
            {
                to.message(from.me, &message, now);
            }
        }
    }
}

#[test]
fn a_node_takes_back_what_others_have_said_in_its_name() {
    let ids = [1, 2, 3].map(NodeId::from_bits);
    let contact =
        Contact { gossip: Some(([10, 0, 0, 1], 7946).into()), data_path: ([10, 0, 0, 1], 4789).into() };
    let node = |me: NodeId, ended: &[TaskId]| {
        let mut core = Core::new(me, 5, 1, Timestamp(0));
        let others = ids.iter().filter(|id| **id != me).map(|id| (*id, contact)).collect();
        let said =
            Said { contacts: Arc::new(others), ended: ended.iter().copied().collect(), ..Said::default() };
        core.said(&said, Timestamp(0));
        core
    };
    let [lives, has_ended] = [7, 8].map(TaskId::from_bits);
    let (mut origin, mut other) = (node(ids[0], &[has_ended]), node(ids[1], &[]));
    // The third knows the others' keys, as each member does.
    let lie = Ended { origin: ids[0], life: 5, version: 2, task: lives };
    let lie = Message { body: Body::News, news: vec![News::Ended(lie)] };
    other.message(ids[2], &lie, Timestamp(0));
    hear(&mut origin, &mut other, Timestamp(0));
    assert_eq!(*other.opinion().ended, [lives, has_ended].into());

    origin.message(ids[2], &lie, Timestamp(0).after(Duration::from_secs(1)));
    hear(&mut origin, &mut other, Timestamp(0).after(Duration::from_secs(1)));
    assert_eq!(*other.opinion().ended, [has_ended].into());
    // The lie that is told again is of a life that is over.
    other.message(ids[2], &lie, Timestamp(0).after(Duration::from_secs(2)));
    assert_eq!(*other.opinion().ended, [has_ended].into());
}

fn any_message(dice: &mut Dice, ids: &[NodeId; 4]) -> Message {
    use message::{Claim, Claimed};
    let id = |dice: &mut Dice| ids[dice.below(4)];
    let numbers = [0, 1, 2, u64::MAX - 1, u64::MAX];
    let number = |dice: &mut Dice| numbers[dice.below(numbers.len())];
    let body = match dice.below(6) {
        0 => Body::Ping(number(dice)),
        1 => Body::Pong(number(dice)),
        2 => Body::Ask(number(dice), id(dice)),
        3 => Body::Lives(number(dice)),
        4 => Body::Silent(number(dice)),
        _ => Body::News,
    };
    let mut news = Vec::new();
    for _ in 0..dice.below(MAX_NEWS + 1) {
        let state = [Claimed::Alive, Claimed::Silent, Claimed::Suspect(id(dice))][dice.below(3)];
        news.push(match dice.below(3) {
            0 => News::Agent(id(dice), Claim { incarnation: number(dice), state }),
            1 => News::Doubt(id(dice), number(dice)),
            _ => News::Ended(Ended {
                origin: id(dice),
                life: number(dice),
                version: number(dice),
                task: TaskId::from_bits(dice.below(5) as u128),
            }),
        });
    }
    Message { body, news }
}
