use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(text: &str) -> Question {
    let mut message = Message::new(9, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), RecordType::A));
    Question::parse(&message.to_vec().unwrap()).unwrap()
}

fn answer_of(text: &str, code: ResponseCode, record: Option<Record>) -> Relayed {
    let mut message = Message::new(1, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    message.add_query(Query::query(name(text), RecordType::A));
    if let Some(record) = record {
        match record.record_type() {
            RecordType::SOA => message.add_authority(record),
            _ => message.add_answer(record),
        };
    }
    Relayed::read(&message.to_vec().unwrap(), &question(text), 1).unwrap()
}

fn found(text: &str, ttl_s: u32) -> Relayed {
    let record = Record::from_rdata(name(text), ttl_s, RData::A(A::new(192, 0, 2, 1)));
    answer_of(text, ResponseCode::NoError, Some(record))
}

fn denied(text: &str, ttl_s: u32) -> Relayed {
    let soa = SOA::new(name("ns."), name("admin."), 1, 2, 3, 4, ttl_s);
    let record = Record::from_rdata(name("."), ttl_s, RData::SOA(soa));
    answer_of(text, ResponseCode::NXDomain, Some(record))
}

/// A table, and a clock that stands where it is told. Each question comes from another client.
struct Scene {
    lookups: Arc<Lookups>,
    start: Instant,
}

impl Scene {
    fn new() -> Self {
        Self { lookups: Lookups::new(), start: Instant::now() }
    }

    fn begin(&self, text: &str, after: Duration) -> Step {
        self.begin_as(text, 1, (&ClientLimits::default(), after))
    }

    fn begin_as(&self, text: &str, upstreams: u64, (limits, after): (&ClientLimits, Duration)) -> Step {
        self.lookups.begin(Key::new(&question(text), upstreams), limits, self.start + after)
    }

    /// Asks, and gets this answer.
    fn look_up(&self, text: &str, answer: Option<Relayed>, after: Duration) {
        let Step::Ask(ticket, ..) = self.begin(text, after) else { panic!("{text} is not to be asked") };
        ticket.finish(answer, self.start + after);
    }

    fn is_asked(&self, text: &str, after: Duration) -> bool {
        matches!(self.begin(text, after), Step::Ask(..))
    }

    fn age(&self, text: &str, after: Duration) -> Option<Age> {
        match self.begin(text, after) {
            Step::Done(_, age) => Some(age),
            _ => None,
        }
    }
}

#[test]
fn an_answer_is_kept_for_its_time_in_any_spelling() {
    let scene = Scene::new();
    scene.look_up("a.example.", Some(found("a.example.", 10)), Duration::ZERO);
    assert_eq!(scene.age("A.Example.", 4 * SECOND), Some(Age::Fresh(4)));
    assert!(scene.is_asked("a.example.", 10 * SECOND));
    assert!(scene.is_asked("b.example.", Duration::ZERO));
}

#[test]
fn other_resolvers_have_other_answers() {
    let scene = Scene::new();
    scene.look_up("a.", Some(found("a.", 10)), Duration::ZERO);
    assert!(matches!(scene.begin_as("a.", 2, (&ClientLimits::default(), Duration::ZERO)), Step::Ask(..)));
}

#[test]
fn no_time_is_longer_than_the_limit() {
    let scene = Scene::new();
    scene.look_up("a.", Some(found("a.", 86_400)), Duration::ZERO);
    scene.look_up("no.", Some(denied("no.", 86_400)), Duration::ZERO);
    let nearly = |kept: Duration| kept.checked_sub(Duration::from_millis(1)).unwrap();
    assert!(scene.age("a.", nearly(MAX_KEPT)).is_some());
    assert!(scene.is_asked("a.", MAX_KEPT));
    assert!(scene.age("no.", nearly(MAX_NEGATIVE_KEPT)).is_some());
    assert!(scene.is_asked("no.", MAX_NEGATIVE_KEPT));
}

#[test]
fn a_failure_is_kept_for_a_moment() {
    let scene = Scene::new();
    scene.look_up("a.", None, Duration::ZERO);
    assert!(matches!(scene.begin("a.", Duration::ZERO), Step::Failed));
    assert!(scene.is_asked("a.", FAILURE_KEPT));
    scene.look_up("b.", Some(answer_of("b.", ResponseCode::Refused, None)), Duration::ZERO);
    assert_eq!(scene.age("b.", Duration::ZERO), Some(Age::Fresh(0)), "the resolver's own words");
    assert!(scene.is_asked("b.", FAILURE_KEPT));
}

#[test]
fn what_must_not_be_kept_is_not() {
    let scene = Scene::new();
    scene.look_up("a.", Some(found("a.", 0)), Duration::ZERO);
    assert!(scene.is_asked("a.", Duration::ZERO));
}

#[test]
fn an_old_answer_is_at_hand_while_a_new_one_is_asked_for() {
    let scene = Scene::new();
    scene.look_up("a.", Some(found("a.", 10)), Duration::ZERO);
    let later = 60 * SECOND;
    let Step::Ask(ticket, _, Some(_)) = scene.begin("a.", later) else { panic!("with the old answer") };
    let Step::Wait(_, Some(_)) = scene.begin("a.", later) else { panic!("another client has it too") };
    ticket.finish(None, scene.start + later);
    assert_eq!(scene.age("a.", later), Some(Age::Stale));
    let retry = later + STALE_RETRY_PERIOD;
    assert_eq!(scene.age("a.", retry.checked_sub(SECOND).unwrap()), Some(Age::Stale), "not asked each time");
    scene.look_up("a.", Some(found("a.", 10)), retry);
    assert_eq!(scene.age("a.", retry), Some(Age::Fresh(0)), "the resolver is back");
}

#[test]
fn an_answer_is_not_old_for_ever() {
    let scene = Scene::new();
    scene.look_up("a.", Some(found("a.", 10)), Duration::ZERO);
    let Step::Ask(_, _, None) = scene.begin("a.", MAX_STALE + 11 * SECOND) else {
        panic!("no answer is left")
    };
}

#[test]
fn a_denial_takes_the_place_of_an_old_answer() {
    let scene = Scene::new();
    scene.look_up("a.", Some(found("a.", 10)), Duration::ZERO);
    scene.look_up("a.", Some(denied("a.", 0)), 20 * SECOND);
    let Step::Ask(_, _, None) = scene.begin("a.", 20 * SECOND) else { panic!("the name is gone") };
}

#[tokio::test]
async fn equal_questions_are_asked_once() {
    let scene = Scene::new();
    let Step::Ask(ticket, first, None) = scene.begin("a.", Duration::ZERO) else { panic!("asked") };
    let Step::Wait(second, None) = scene.begin("A.", Duration::ZERO) else { panic!("asked already") };
    ticket.finish(Some(found("a.", 10)), scene.start);
    assert!(first.wait().await.is_some());
    assert!(second.wait().await.is_some());
}

#[tokio::test]
async fn a_lookup_that_is_given_up_keeps_nobody_waiting() {
    let scene = Scene::new();
    let Step::Ask(ticket, waiter, _) = scene.begin("a.", Duration::ZERO) else { panic!("asked") };
    drop(ticket);
    assert!(waiter.wait().await.is_none());
    assert!(scene.is_asked("a.", Duration::ZERO), "the next one asks again");
}

#[test]
fn a_client_beyond_its_rate_gets_what_is_there() {
    let scene = Scene::new();
    scene.look_up("old.", Some(found("old.", 10)), Duration::ZERO);
    let (limits, later) = (ClientLimits::default(), 20 * SECOND);
    let begin = |text: &str| scene.begin_as(text, 1, (&limits, later));
    let n_asked = (0..2000).filter(|i| matches!(begin(&format!("n{i}.")), Step::Ask(..))).count();
    assert_eq!(n_asked, 1000);
    assert!(matches!(begin("more."), Step::Failed));
    assert!(matches!(begin("old."), Step::Done(_, Age::Stale)));
    assert!(scene.is_asked("more.", later), "another client is not kept from it");
}

#[test]
fn two_sandboxes_cant_keep_a_third_from_asking() {
    let scene = Scene::new();
    let greedy = [ClientLimits::default(), ClientLimits::default()];
    let ask = |limits: &ClientLimits, name: String| match scene.begin_as(&name, 1, (limits, Duration::ZERO)) {
        Step::Ask(ticket, ..) => Some(ticket),
        _ => None,
    };
    let running: Vec<Ticket> = (0..1000)
        .flat_map(|i| [(0, i), (1, i)])
        .filter_map(|(who, i)| ask(&greedy[who], format!("n{i}.of{who}.")))
        .collect();
    assert!(running.len() > 600, "{} run: what nobody else needs is used", running.len());
    let third = ClientLimits::default();
    let its: Vec<Ticket> = (0..50).filter_map(|i| ask(&third, format!("n{i}.of-third."))).collect();
    assert_eq!(its.len(), 50, "while the others have {}", running.len());
    drop(running);
    assert!(ask(&greedy[0], "again.".to_owned()).is_some(), "a place is given back");
}

#[test]
fn the_oldest_leaves_a_full_table() {
    let mut shard = Shard::default();
    let now = Instant::now();
    let keys: Vec<Key> =
        (0..=MAX_KEPT_PER_SHARD).map(|i| Key::new(&question(&format!("n{i}.")), 1)).collect();
    for key in &keys {
        shard.keep(key, Some(Arc::new(found("a.", 10))), now);
    }
    assert!(!shard.kept.contains_key(&keys[0]));
    assert!(shard.kept.contains_key(&keys[1]));
    assert_eq!((shard.kept.len(), shard.by_age.len()), (MAX_KEPT_PER_SHARD, MAX_KEPT_PER_SHARD));
    shard.keep(&keys[1], Some(Arc::new(found("a.", 0))), now);
    assert_eq!((shard.kept.len(), shard.by_age.len()), (MAX_KEPT_PER_SHARD - 1, MAX_KEPT_PER_SHARD - 1));
}
