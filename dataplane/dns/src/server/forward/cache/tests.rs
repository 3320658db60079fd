use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::{A, SOA};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(text: &str) -> Question {
    let mut message = Message::new(9, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), RecordType::A));
    Question::parse(&message.to_vec().unwrap()).unwrap()
}

/// An answer under another id; `ttl_s` of its record, or of the SOA where `found` is false.
fn reply(text: &str, ttl_s: u32, found: bool) -> Vec<u8> {
    let mut message = Message::new(1, MessageType::Response, OpCode::Query);
    message.metadata.recursion_available = true;
    message.add_query(Query::query(name(text), RecordType::A));
    if found {
        message.add_answer(Record::from_rdata(name(text), ttl_s, RData::A(A::new(192, 0, 2, 1))));
    } else {
        message.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(name("ns."), name("admin."), 1, 2, 3, 4, 3600);
        message.add_authority(Record::from_rdata(name("."), ttl_s, RData::SOA(soa)));
    }
    message.to_vec().unwrap()
}

fn resolvers() -> Vec<SocketAddr> {
    vec!["192.0.2.53:53".parse().unwrap()]
}

fn get(cache: &Cache, text: &str, at: Instant) -> Option<Message> {
    let bytes = cache.get(&question(text), &resolvers(), Transport::Udp, at)?;
    Some(Message::from_vec(&bytes).unwrap())
}

#[test]
fn an_answer_is_kept_for_its_time_and_grows_old() {
    let (cache, start) = (Cache::default(), Instant::now());
    cache.put(&question("a.example."), &resolvers(), &reply("a.example.", 10, true), start);
    let later = get(&cache, "A.Example.", start + Duration::from_secs(4)).unwrap();
    assert_eq!((later.metadata.id, later.answers[0].ttl), (9, 6));
    assert!(later.queries[0].name().eq_case(&name("A.Example.")));
    assert!(get(&cache, "a.example.", start + Duration::from_secs(10)).is_none());
    assert!(get(&cache, "b.example.", start).is_none());
}

#[test]
fn other_resolvers_have_other_answers() {
    let (cache, start) = (Cache::default(), Instant::now());
    cache.put(&question("a."), &resolvers(), &reply("a.", 10, true), start);
    let other: Vec<SocketAddr> = vec!["192.0.2.54:53".parse().unwrap()];
    assert!(cache.get(&question("a."), &other, Transport::Udp, start).is_none());
}

#[test]
fn no_time_is_longer_than_the_limit() {
    let (cache, start) = (Cache::default(), Instant::now());
    cache.put(&question("a."), &resolvers(), &reply("a.", 86_400, true), start);
    cache.put(&question("no."), &resolvers(), &reply("no.", 86_400, false), start);
    let instant = Duration::from_nanos(1);
    let after = |kept: Duration| (start + kept.saturating_sub(instant), start + kept);
    let ((found_last, found), (denied_last, denied)) = (after(MAX_KEPT), after(MAX_NEGATIVE_KEPT));
    assert!(get(&cache, "a.", found_last).is_some());
    assert!(get(&cache, "a.", found).is_none());
    assert!(get(&cache, "no.", denied_last).is_some());
    assert!(get(&cache, "no.", denied).is_none());
}

#[test]
fn a_failure_is_kept_for_a_moment() {
    let (cache, start) = (Cache::default(), Instant::now());
    cache.put_failure(&question("a."), &resolvers(), start);
    let failure = get(&cache, "a.", start).unwrap();
    assert_eq!((failure.metadata.id, failure.metadata.response_code), (9, ResponseCode::ServFail));
    assert!(get(&cache, "a.", start + FAILURE_KEPT).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a resolver sends: nothing panics, and what is kept can be given to a client.
    #[test]
    fn any_answer_is_survived(mut tail in prop::collection::vec(any::<u8>(), 0..200), n_records in 0..4_u8) {
        let (cache, start) = (Cache::default(), Instant::now());
        let mut bytes = reply("a.", 10, true);
        bytes[7] = n_records;
        bytes.append(&mut tail);
        cache.put(&question("a."), &resolvers(), &bytes, start);
        if let Some(kept) = cache.get(&question("a."), &resolvers(), Transport::Udp, start) {
            prop_assert!(Message::from_vec(&kept).is_ok(), "{:02x?}", bytes);
        }
    }
}

#[test]
fn what_must_not_be_kept_is_not() {
    let (cache, start) = (Cache::default(), Instant::now());
    let mut failure = reply("a.", 10, true);
    failure[3] |= 2;
    let mut cut_off = reply("a.", 10, true);
    cut_off[2] |= 2;
    for bytes in [failure, cut_off, reply("a.", 0, true), vec![0; 5]] {
        cache.put(&question("a."), &resolvers(), &bytes, start);
        assert!(get(&cache, "a.", start).is_none(), "{bytes:02x?}");
    }
}

#[test]
fn the_oldest_leaves_a_full_cache() {
    let (cache, start) = (Cache::default(), Instant::now());
    for i in 0..=MAX_ENTRIES {
        let text = format!("n{i}.");
        cache.put(&question(&text), &resolvers(), &reply(&text, 10, true), start);
    }
    assert!(get(&cache, "n0.", start).is_none());
    assert!(get(&cache, "n1.", start).is_some());
    assert_eq!(cache.0.lock().unwrap().by_key.len(), MAX_ENTRIES);
}
