use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{RData, Record};
use proptest::prelude::*;

use super::*;

const ID: u16 = 0x1234;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// A client's query, changed by `change`.
fn question_with(text: &str, change: impl FnOnce(&mut Message)) -> Question {
    let mut message = Message::new(9, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), RecordType::A));
    change(&mut message);
    Question::parse(&message.to_vec().unwrap()).unwrap()
}

fn question(text: &str) -> Question {
    question_with(text, |_| ())
}

fn with_edns(payload: u16) -> impl FnOnce(&mut Message) {
    move |message| {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
}

fn address(text: &str, ttl_s: u32) -> Record {
    Record::from_rdata(name(text), ttl_s, RData::A(A::new(192, 0, 2, 1)))
}

fn soa(ttl_s: u32, minimum_s: u32) -> Record {
    let soa = SOA::new(name("ns.example."), name("admin.example."), 1, 2, 3, 4, minimum_s);
    Record::from_rdata(name("example."), ttl_s, RData::SOA(soa))
}

/// An answer to `a.example.`, changed by `change`.
fn reply(change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::new(ID, MessageType::Response, OpCode::Query);
    message.metadata.authoritative = true;
    message.add_query(Query::query(name("a.example."), RecordType::A));
    change(&mut message);
    message.to_vec().unwrap()
}

/// One more address of `a.example.`.
fn push(message: &mut Message, ttl_s: u32) {
    message.add_answer(address("a.example.", ttl_s));
}

fn read(bytes: &[u8]) -> Option<Relayed> {
    Relayed::read(bytes, &question("A.example."), ID)
}

fn write(relayed: &Relayed, question: &Question, transport: Transport, age: Age) -> Message {
    let mut out = vec![0xff; 7];
    relayed.write(question, transport, age, &mut out);
    assert!(out.len() <= max_response_len(question, transport));
    Message::from_vec(&out).unwrap()
}

#[test]
fn only_an_answer_to_the_question_counts() {
    let good = reply(|message| push(message, 60));
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        read(&bytes).map(|answer| answer.decides())
    };
    assert_eq!(with(13, b'A'), Some(true), "another spelling");
    assert_eq!(with(3, 3), Some(true), "no such name");
    assert_eq!(with(3, 2), Some(false), "a failure");
    assert_eq!(with(3, 5), Some(false), "a refusal");
    assert_eq!(with(0, 0x99), None, "another id");
    assert_eq!(with(2, 0), None, "no answer");
    assert_eq!(with(2, 0xa8), None, "an answer to an update");
    assert_eq!(with(13, b'b'), None, "another name");
    assert_eq!(with(12 + 11 + 1, 28), None, "another type");
    assert_eq!(with(12 + 11 + 3, 3), None, "another class");
    assert_eq!(with(5, 2), None, "two questions");
    assert_eq!(with(7, 2), None, "a record that is not there");
    assert_eq!(read(&good[..good.len() - 1]), None, "cut off and not marked so");
    let mut bare = good[..HEADER_LEN].to_vec();
    bare[3..8].copy_from_slice(&[5, 0, 0, 0, 0]);
    assert_eq!(read(&bare).map(|answer| answer.decides()), Some(false), "a refusal without the question");
    bare[3] = 0;
    assert_eq!(read(&bare), None, "nothing without the question");
}

#[test]
fn a_client_gets_its_own_id_flags_and_spelling() {
    let answer = read(&reply(|message| push(message, 60))).unwrap();
    let message = write(&answer, &question("a.EXAMPLE."), Transport::Udp, Age::Fresh(0));
    let flags = &message.metadata;
    assert_eq!((flags.id, flags.authoritative, flags.recursion_desired), (9, false, true));
    assert!(flags.recursion_available);
    assert!(message.queries[0].name().eq_case(&name("a.EXAMPLE.")));
    assert_eq!(message.answers[0].data, RData::A(A::new(192, 0, 2, 1)));
    assert_eq!(message.edns, None);
}

#[test]
fn edns_ends_here() {
    let bytes = reply(|message| {
        message.add_answer(address("a.example.", 60));
        with_edns(777)(message);
    });
    let answer = read(&bytes).unwrap();
    assert_eq!(write(&answer, &question("a.example."), Transport::Udp, Age::Fresh(0)).edns, None);
    let asked = question_with("a.example.", with_edns(1400));
    let message = write(&answer, &asked, Transport::Udp, Age::Fresh(0));
    assert_eq!(message.edns.unwrap().max_payload(), crate::response::MAX_UDP_LEN);
    assert_eq!((message.answers.len(), message.additionals.len()), (1, 0));
}

#[test]
fn an_extended_code_comes_through() {
    let bytes = reply(|message| {
        message.metadata.response_code = ResponseCode::BADVERS;
        with_edns(1232)(message);
    });
    let answer = read(&bytes).unwrap();
    assert!(answer.rejects_edns() && !answer.decides());
}

#[test]
fn times_grow_shorter_and_never_negative() {
    let bytes = reply(|message| {
        message.add_answer(address("a.example.", 60));
        message.add_answer(address("a.example.", 5));
    });
    let message = write(&read(&bytes).unwrap(), &question("a.example."), Transport::Udp, Age::Fresh(20));
    assert_eq!(message.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [40, 0]);
}

#[test]
fn an_old_answer_says_so_to_who_understands() {
    let found = read(&reply(|message| push(message, 60))).unwrap();
    let plain = write(&found, &question("a.example."), Transport::Udp, Age::Stale);
    assert_eq!((plain.answers[0].ttl, plain.edns), (STALE_TTL_S, None));
    let mut out = Vec::new();
    let asked = question_with("a.example.", with_edns(1232));
    found.write(&asked, Transport::Udp, Age::Stale, &mut out);
    assert_eq!(out[out.len() - 6..], [0, 15, 0, 2, 0, 3], "RFC 8914: stale answer");
    let message = Message::from_vec(&out).unwrap();
    assert_eq!((message.answers.len(), message.edns.is_some()), (1, true));
}

#[test]
fn what_does_not_fit_is_left_out_and_marked() {
    let bytes = reply(|message| {
        (0..60).for_each(|_| push(message, 60));
        message.add_additionals((0..5).map(|_| address("b.example.", 60)));
    });
    let answer = read(&bytes).unwrap();
    let cut = write(&answer, &question("a.example."), Transport::Udp, Age::Fresh(0));
    assert!(
        cut.metadata.truncation && cut.answers.len() < 60 && cut.answers.len() > 20,
        "{}",
        cut.answers.len()
    );
    let whole = write(&answer, &question("a.example."), Transport::Tcp, Age::Fresh(0));
    assert!(!whole.metadata.truncation);
    assert_eq!((whole.answers.len(), whole.additionals.len()), (60, 5));
    let room = u16::try_from(bytes.len()).unwrap();
    let asked = question_with("a.example.", with_edns(room - 10));
    let without_extra = write(&answer, &asked, Transport::Udp, Age::Fresh(0));
    assert!(!without_extra.metadata.truncation, "additional records are a convenience");
    assert_eq!(without_extra.answers.len(), 60);
    assert!(without_extra.additionals.len() < 5);
}

#[test]
fn how_long_it_may_be_kept() {
    let life = |change: &dyn Fn(&mut Message)| read(&reply(change)).unwrap().time_to_keep_s();
    let found = |ttl_s| move |message: &mut Message| push(message, ttl_s);
    assert_eq!(life(&found(60)), Some(Lifetime::Found(60)));
    assert_eq!(life(&found(u32::MAX)), Some(Lifetime::Found(0)), "RFC 2181 section 8");
    let no_data = |message: &mut Message| {
        message.add_authority(soa(300, 40));
    };
    assert_eq!(life(&no_data), Some(Lifetime::Denied(40)));
    let denied = |message: &mut Message| {
        message.metadata.response_code = ResponseCode::NXDomain;
        message.add_authority(soa(30, 40));
    };
    assert_eq!(life(&denied), Some(Lifetime::Denied(30)));
    let alias_of_nothing = |message: &mut Message| {
        let alias = RData::CNAME(CNAME(name("b.example.")));
        message.add_answer(Record::from_rdata(name("a.example."), 20, alias));
        message.add_authority(soa(300, 40));
    };
    assert_eq!(life(&alias_of_nothing), Some(Lifetime::Denied(20)), "there is an alias, and no address");
    assert_eq!(life(&|_| ()), None, "a denial without SOA");
    assert_eq!(life(&|message| message.metadata.response_code = ResponseCode::ServFail), None);
    assert_eq!(
        life(&|message| {
            found(60)(message);
            message.metadata.truncation = true;
        }),
        None
    );
}

#[test]
fn the_query_is_made_anew() {
    let asked = question_with("A.example.", |message| {
        message.metadata.checking_disabled = true;
        with_edns(4096)(message);
    });
    let query = Message::from_vec(&write_query(&asked, 77, true)).unwrap();
    assert_eq!((query.metadata.id, query.metadata.message_type), (77, MessageType::Query));
    assert!(query.metadata.recursion_desired && query.metadata.checking_disabled);
    assert!(query.queries[0].name().eq_case(&name("A.example.")));
    assert_eq!(query.edns.as_ref().map(Edns::max_payload), Some(MAX_UPSTREAM_PAYLOAD));
    assert_eq!(Message::from_vec(&write_query(&asked, 77, false)).unwrap().edns, None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a resolver sends: nothing panics.
    #[test]
    fn any_bytes_are_survived(mut tail in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = ID.to_be_bytes().to_vec();
        bytes.append(&mut tail);
        let _ = read(&bytes);
    }

    /// A good answer with any bytes changed, cut off anywhere: what is taken can be given to a client, within its limit.
    #[test]
    fn any_damage_is_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(), is_cut: bool, payload: Option<u16>, stale: bool, tcp: bool,
    ) {
        let mut bytes = reply(|message| {
            message.add_answer(address("a.example.", 60));
            message.add_authority(soa(30, 40));
            with_edns(1232)(message);
        });
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Some(answer) = read(&bytes) {
            let asked = question_with("a.example.", |message| {
                payload.map(with_edns).into_iter().for_each(|edns| edns(message));
            });
            let transport = if tcp { Transport::Tcp } else { Transport::Udp };
            let mut out = Vec::new();
            answer.write(&asked, transport, if stale { Age::Stale } else { Age::Fresh(3) }, &mut out);
            let _ = answer.time_to_keep_s();
            prop_assert!(out.len() <= max_response_len(&asked, transport));
            prop_assert_eq!(&out[..2], &[0, 9]);
        }
    }
}
