use std::time::Duration;

use proptest::prelude::*;

use super::*;

const A: NodeId = NodeId::from_bits(1);
const B: NodeId = NodeId::from_bits(2);

fn at(ms: u64) -> Timestamp {
    Timestamp(0).after(Duration::from_millis(ms))
}

fn random(seed: u64) -> Random {
    let mut dice = crate::core::Dice::new(seed);
    Box::new(move || dice.roll())
}

fn ring(n: u8) -> GossipKeys {
    let mut next = 0;
    let mut fresh = move || {
        next += 1;
        [next; 32]
    };
    (0..n).fold(GossipKeys::default(), |ring, _| ring.rotated(&mut fresh, at(0)))
}

fn envelopes(me: NodeId, seed: u64) -> Envelopes {
    let mut envelopes = Envelopes::new(me, random(seed));
    envelopes.set_keys(ring(1));
    envelopes.set_members(&[A, B].into());
    envelopes
}

/// Carries datagrams to and fro until nothing is left; the messages that `b` got, and all datagrams.
fn carry(
    a: &mut Envelopes,
    b: &mut Envelopes,
    first: Vec<Vec<u8>>,
    now: Timestamp,
) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut to_b, mut to_a, mut messages, mut all) = (first, Vec::new(), Vec::new(), Vec::new());
    while !to_b.is_empty() || !to_a.is_empty() {
        for datagram in std::mem::take(&mut to_b) {
            match b.open(&datagram, now) {
                Opened::Message(from, message) => {
                    messages.push((from == a.me).then_some(message).expect("of a"));
                }
                Opened::Replies(_, replies) => to_a.extend(replies),
                Opened::Refused(why) => panic!("refused: {why:?}"),
            }
            all.push(datagram);
        }
        for datagram in std::mem::take(&mut to_a) {
            match a.open(&datagram, now) {
                Opened::Replies(_, replies) => to_b.extend(replies),
                other => panic!("no reply: {other:?}"),
            }
            all.push(datagram);
        }
    }
    (messages, all)
}

fn send(a: &mut Envelopes, b: &mut Envelopes, text: &[u8], now: Timestamp) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let first = a.seal(b.me, text.to_vec(), now);
    carry(a, b, first, now)
}

#[test]
fn the_first_messages_wait_for_a_ticket_and_the_later_ones_do_not() {
    let (mut a, mut b) = (envelopes(A, 1), envelopes(B, 2));
    let mut first = a.seal(B, b"one".to_vec(), at(0));
    first.extend(a.seal(B, b"two".to_vec(), at(0)));
    assert_eq!(first.len(), 1, "one question");
    assert_eq!(carry(&mut a, &mut b, first, at(1)).0, [b"one".to_vec(), b"two".to_vec()]);
    let (messages, datagrams) = send(&mut a, &mut b, b"three", at(2));
    assert_eq!((messages, datagrams.len()), (vec![b"three".to_vec()], 1));
    assert_eq!(datagrams[0].len(), 5 + OVERHEAD);
}

#[test]
fn a_lost_question_is_asked_again() {
    let (mut a, mut b) = (envelopes(A, 1), envelopes(B, 2));
    assert_eq!(a.seal(B, b"one".to_vec(), at(0)).len(), 1);
    assert_eq!(a.seal(B, b"two".to_vec(), at(50)).len(), 0);
    let (messages, _) = send(&mut a, &mut b, b"three", at(100));
    assert_eq!(messages.len(), 3);
}

#[test]
fn what_was_recorded_changes_nothing() {
    let (mut a, mut b) = (envelopes(A, 1), envelopes(B, 2));
    let mut recorded = Vec::new();
    for ms in 0..10 {
        recorded.extend(send(&mut a, &mut b, b"old", at(ms)).1);
    }
    let replay = |who: &mut Envelopes, recorded: &[Vec<u8>], when| {
        for datagram in recorded {
            let came = who.open(datagram, when);
            assert!(!matches!(came, Opened::Message(..)), "{came:?}");
        }
    };
    replay(&mut a, &recorded, at(20));
    replay(&mut b, &recorded, at(20));
    assert_eq!(send(&mut a, &mut b, b"new", at(30)).1.len(), 1, "the ticket is still good");
    // The sender begins anew.
    let mut a = envelopes(A, 3);
    recorded.extend(send(&mut a, &mut b, b"of a new life", at(200)).1);
    replay(&mut b, &recorded, at(300));
    // The receiver does.
    let mut b = envelopes(B, 4);
    replay(&mut b, &recorded, at(400));
    recorded.extend(send(&mut a, &mut b, b"lost with the old ticket", at(600)).1);
    assert_eq!(send(&mut a, &mut b, b"again", at(700)).0, [b"again".to_vec()]);
    replay(&mut b, &recorded, at(800));
}

#[test]
fn strangers_other_keys_and_other_receivers_are_refused() {
    let (mut a, mut b) = (envelopes(A, 1), envelopes(B, 2));
    send(&mut a, &mut b, b"one", at(0));
    let datagram = a.seal(B, b"two".to_vec(), at(1)).remove(0);
    let refused = |who: &mut Envelopes, datagram: &[u8]| match who.open(datagram, at(2)) {
        Opened::Refused(why) => why,
        other => panic!("taken: {other:?}"),
    };
    let mut third = envelopes(NodeId::from_bits(3), 5);
    assert_eq!(refused(&mut third, &datagram), Refusal::Forged, "for b alone");
    let mut alone = envelopes(B, 6);
    alone.set_members(&[].into());
    assert_eq!(refused(&mut alone, &datagram), Refusal::Stranger);
    let mut older = envelopes(B, 7);
    older.set_keys(GossipKeys::default());
    assert_eq!(refused(&mut older, &datagram), Refusal::UnknownKey);
    let mut other = ring(1);
    other.keys.iter_mut().for_each(|key| key.key = [99; 32]);
    older.set_keys(other);
    assert_eq!(refused(&mut older, &datagram), Refusal::Forged);
    assert!(alone.seal(A, b"no member".to_vec(), at(3)).is_empty());
    for len in 0..HEADER_LEN {
        assert_eq!(refused(&mut b, &datagram[..len]), Refusal::Malformed);
    }
}

#[test]
fn a_rotation_loses_nothing_whoever_hears_of_it_first() {
    for a_first in [true, false] {
        let (mut a, mut b) = (envelopes(A, 1), envelopes(B, 2));
        for n in 1..20 {
            let (first, second) = if a_first { (&mut a, &mut b) } else { (&mut b, &mut a) };
            first.set_keys(ring(n));
            let now = at(1000 * u64::from(n));
            assert_eq!(send(first, second, b"x", now).0.len(), 1);
            assert_eq!(send(second, first, b"y", now).0.len(), 1);
            second.set_keys(ring(n));
            assert_eq!(send(second, first, b"z", now).0.len(), 1);
        }
    }
}

#[test]
fn frames_of_a_stream_are_opened_once_and_in_their_order() {
    let key = ring(1).keys.remove(0);
    let keys =
        |numbers: (u128, u128), is_caller| StreamKeys::new(&key, (A, numbers.0), (B, numbers.1), is_caller);
    let (mut caller, mut server) = (keys((1, 2), true), keys((1, 2), false));
    let frames: Vec<Vec<u8>> = (0..3).map(|n| caller.seal(&[n])).collect();
    assert_eq!(server.open(&frames[0]), Some(vec![0]));
    assert_eq!(server.open(&frames[2]), None, "not the next one");
    assert_eq!(keys((1, 3), false).open(&frames[0]), None, "of another stream");
    assert_eq!(keys((1, 2), true).open(&frames[0]), None, "one's own");
}

proptest! {
    #[test]
    fn no_bytes_are_a_message_and_none_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
        let mut b = envelopes(B, 1);
        let came = b.open(&bytes, at(0));
        prop_assert!(matches!(came, Opened::Refused(_)));
    }

    #[test]
    fn a_changed_datagram_is_refused(at_byte in 0_usize..60, flip in 1_u8.., cut in 0_usize..60) {
        let (mut a, mut b) = (envelopes(A, 1), envelopes(B, 2));
        send(&mut a, &mut b, b"one", at(0));
        let datagram = a.seal(B, b"two".to_vec(), at(1)).remove(0);
        let mut changed = datagram.clone();
        let place = at_byte % changed.len();
        changed[place] ^= flip;
        prop_assert!(matches!(b.open(&changed, at(2)), Opened::Refused(_)));
        let shorter = &datagram[..cut.min(datagram.len() - 1)];
        prop_assert!(matches!(b.open(shorter, at(2)), Opened::Refused(_)));
        prop_assert_eq!(b.open(&datagram, at(2)), Opened::Message(A, b"two".to_vec()));
    }
}
