//! Bytes from other nodes: every decoder of a manager and of an agent, with what was sent and then cut, flipped or
//! overwritten. None may panic, and none may take more memory than its bytes allow.

use control_model::change::{Entry, RequestId};
use control_model::gossip::GossipKeys;
use control_model::object::{NodeDescription, TaskStatus};
use control_model::spec::{DnsConfig, PortConfig, Protocol, PublishMode};
use control_model::standalone::AttachRequest;
use control_model::{Assignment, AssignmentUpdate, Change, Generation, NetworkId, Object, TaskId, Timestamp};
use control_rpc::{decode, decode_assignments, encode, encode_assignments, pb};
use control_store::{ReplicatedStore as _, State};
use proptest::prelude::*;
use prost::Message as _;

use crate::testing::{description, service, store};

/// What happens to bytes on the way.
#[derive(Debug, Clone)]
enum Harm {
    Flip(usize, u8),
    Overwrite(usize, Vec<u8>),
    Insert(usize, Vec<u8>),
    Cut(usize, usize),
    /// MessagePack's longest lists, maps and texts begin so.
    Claim(usize, u8),
}

fn harm() -> impl Strategy<Value = Harm> {
    let noise = || proptest::collection::vec(any::<u8>(), 1..16);
    prop_oneof![
        (any::<usize>(), 1_u8..).prop_map(|(at, bits)| Harm::Flip(at, bits)),
        (any::<usize>(), noise()).prop_map(|(at, noise)| Harm::Overwrite(at, noise)),
        (any::<usize>(), noise()).prop_map(|(at, noise)| Harm::Insert(at, noise)),
        (any::<usize>(), 1_usize..64).prop_map(|(at, n)| Harm::Cut(at, n)),
        (any::<usize>(), proptest::sample::select(&[0xc6_u8, 0xc9, 0xdb, 0xdd, 0xdf][..]))
            .prop_map(|(at, kind)| Harm::Claim(at, kind)),
    ]
}

impl Harm {
    fn done_to(&self, bytes: &mut Vec<u8>) {
        let place = |at: usize, bytes: &[u8]| at % (bytes.len() + 1);
        match self {
            Self::Flip(at, bits) => {
                let at = place(*at, bytes);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Self::Overwrite(at, noise) => {
                let at = place(*at, bytes);
                let end = (at + noise.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&noise[..end - at]);
            }
            Self::Insert(at, noise) => {
                let at = place(*at, bytes);
                bytes.splice(at..at, noise.iter().copied());
            }
            Self::Cut(at, n) => {
                let at = place(*at, bytes);
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            Self::Claim(at, kind) => {
                let at = place(*at, bytes);
                bytes.splice(at..at, [*kind, 0xff, 0xff, 0xff, 0xff]);
            }
        }
    }
}

/// One valid message of each kind.
fn messages() -> Vec<Vec<u8>> {
    let store = store(3);
    store.commit(vec![Change::Create(Object::Service(Box::new(service(2))))]).expect("a service");
    let state = store.state();
    let rows: Vec<Assignment> =
        state.networks().iter().map(|network| Assignment::Network(Box::new((**network).clone()))).collect();
    let update = AssignmentUpdate::Complete { generation: Generation { epoch: 1, index: 9 }, set: rows };
    let statuses =
        vec![(TaskId::from_bits(7), TaskStatus { message: "started".into(), ..TaskStatus::default() })];
    let changes = vec![Change::NodeDescription {
        id: crate::testing::node_id(1),
        description: Box::new(description(9)),
    }];
    let entry = Entry { request: RequestId(5), at: Timestamp(1), changes };
    let body = encode(&description(1)).expect("small");
    let session = pb::SessionRequest { description: body.clone(), epoch: 1 }.encode_to_vec();
    let report = pb::TaskStatusRequest { session_id: "ab".into(), body: encode(&statuses).expect("small") };
    let attach = AttachRequest {
        id: TaskId::from_bits(8),
        name: "web".into(),
        hostname: "web".into(),
        aliases: vec!["db".into()],
        network: "open".into(),
        ports: vec![PortConfig::new(Protocol::Tcp, 80, 8080, PublishMode::Host)],
        dns: DnsConfig::default(),
    };
    vec![
        encode(&attach).expect("small"),
        body,
        encode(&statuses).expect("small"),
        encode(&entry).expect("small"),
        encode(&GossipKeys::default()).expect("small"),
        encode_assignments(&update).expect("small"),
        state.to_snapshot(),
        session,
        report.encode_to_vec(),
    ]
}

/// Every decoder that bytes from outside reach, and what becomes of what it lets through.
fn read(bytes: &[u8], state: &State) {
    let _ = decode::<NodeDescription>(bytes);
    let _ = decode::<GossipKeys>(bytes);
    if let Ok(request) = decode::<AttachRequest>(bytes) {
        let _ = request.task(crate::testing::node_id(1), NetworkId::from_bits(1));
    }
    let _ = decode::<std::collections::BTreeMap<String, u64>>(bytes);
    if let Ok(statuses) = decode::<Vec<(TaskId, TaskStatus)>>(bytes) {
        let _ = crate::dispatcher::checked_report(crate::testing::node_id(1), state, statuses);
    }
    if let Ok(entry) = decode::<Entry>(bytes) {
        let mut next = state.clone();
        let _ = next.apply(state.index() + 1, &entry);
    }
    let _ = decode_assignments(bytes);
    if let Ok(state) = State::from_snapshot(bytes) {
        let _ = state.to_snapshot();
    }
    let _ = pb::SessionRequest::decode(bytes);
    let _ = pb::TaskStatusRequest::decode(bytes);
    let _ = pb::IssueRequest::decode(bytes);
    let _ = pb::RaftJoinRequest::decode(bytes);
    let _ = pb::LivenessReport::decode(bytes);
    let text = String::from_utf8_lossy(bytes);
    let _ = text.parse::<control_ca::JoinToken>();
    let _ = control_ca::parse_unlock_key(&text);
    let _ = control_ca::Certificate::parse(&text);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_that_were_harmed_are_refused_or_read(
        which in any::<proptest::sample::Index>(),
        harms in proptest::collection::vec(harm(), 1..6),
    ) {
        let mut bytes = which.get(&messages()).clone();
        for harm in &harms {
            harm.done_to(&mut bytes);
        }
        read(&bytes, &store(2).state());
    }

    #[test]
    fn noise_is_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        read(&bytes, &store(2).state());
    }
}
