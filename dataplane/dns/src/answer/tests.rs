use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::Name;
use proptest::prelude::*;

use super::*;
use crate::testing::node_view;
use crate::zones::{PortRecord, zones_from_view};

/// Where the conversations are; written again with `UPDATE_GOLDEN=1`.
const CONVERSATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/answer/conversations.txt");

fn view_of(sandbox: &str) -> SandboxView {
    let zones = zones_from_view(&node_view(), Path::new("/n"), TtlPolicy::default());
    sandbox_views(zones)[&SandboxId(sandbox.to_owned())].clone()
}

fn query(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    message
}

/// A view whose `many` has this number of addresses.
fn view_of_many(n_addresses: u16) -> SandboxView {
    let mut view = view_of("client");
    let addresses = (0..n_addresses).map(|i| Ipv4Addr::from(0x0a00_0000 + u32::from(i)).into()).collect();
    Arc::make_mut(&mut view.networks[0]).names.insert("many".to_owned(), addresses);
    view
}

/// A view in which `dual` has two tasks, each with an address of either family, and a port.
fn dual_stack_view() -> SandboxView {
    let mut view = view_of("client");
    let zone = Arc::make_mut(&mut view.networks[0]);
    zone.subnets.push("fd00:1::/64".parse().unwrap());
    let addresses: Vec<IpAddr> =
        ["10.0.1.20", "10.0.1.21", "fd00:1::20", "fd00:1::21"].map(|a| a.parse().unwrap()).into();
    for (address, task) in addresses.iter().zip(["dual.1.x", "dual.2.y", "dual.1.x", "dual.2.y"]) {
        zone.reverse.insert(*address, task.to_owned());
        zone.names.entry(task.to_owned()).or_default().push(*address);
    }
    zone.names.insert("dual".to_owned(), addresses);
    let port = PortRecord { label: "dns".to_owned(), protocol: "udp".to_owned(), port: 5353 };
    zone.ports.insert("dual".to_owned(), vec![port]);
    view
}

/// What the sandbox gets, as one line and one more per record.
fn ask(bytes: &[u8], view: &SandboxView, transport: Transport, rotation: u32) -> String {
    let mut out = Vec::new();
    match answer(bytes, view, transport, rotation, &mut out) {
        Outcome::Silence => "silence\n".to_owned(),
        Outcome::Forward(question) => format!("forward {} {}\n", question.name, question.record_type),
        Outcome::Reply => describe(&out),
    }
}

fn describe(reply: &[u8]) -> String {
    let message = Message::from_vec(reply).unwrap();
    let flags = &message.metadata;
    let mut text = format!("{} id={}", flags.response_code, flags.id);
    for (flag, name) in [
        (flags.authoritative, "aa"),
        (flags.truncation, "tc"),
        (flags.recursion_desired, "rd"),
        (flags.recursion_available, "ra"),
    ] {
        if flag {
            write!(text, " {name}").unwrap();
        }
    }
    if let Some(edns) = &message.edns {
        write!(text, " edns={}", edns.max_payload()).unwrap();
    }
    text.push('\n');
    let sections = [(" ", &message.answers), ("-", &message.authorities), ("+", &message.additionals)];
    for (mark, record) in
        sections.into_iter().flat_map(|(mark, records)| records.iter().map(move |r| (mark, r)))
    {
        writeln!(text, "{mark} {} {} {} {}", record.name, record.ttl, record.record_type(), record.data)
            .unwrap();
    }
    text
}

/// `<sandbox> <type> <name>`, with the rotation behind it where it matters.
fn run_command(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let rotation = words.get(3).map_or(0, |word| word.parse().unwrap());
    let message = query(words[2], words[1].parse().unwrap());
    ask(&message.to_vec().unwrap(), &view_of(words[0]), Transport::Udp, rotation)
}

#[test]
fn conversations() {
    let text = std::fs::read_to_string(CONVERSATIONS).unwrap();
    let mut actual = String::new();
    for block in text.split("\n\n") {
        let (command, _) =
            block.split_once("\n----\n").expect("a block is a command, four dashes, and its output");
        let last_line = command.lines().last().unwrap();
        write!(actual, "{command}\n----\n{}\n", run_command(last_line)).unwrap();
    }
    let actual = actual.trim_end().to_owned() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(CONVERSATIONS, &actual).unwrap();
    }
    assert_eq!(actual, text, "UPDATE_GOLDEN=1 writes {CONVERSATIONS} again");
}

#[test]
fn the_question_comes_back_as_it_was_spelled() {
    let message = query("WeB.", RecordType::A);
    let mut out = Vec::new();
    answer(&message.to_vec().unwrap(), &view_of("client"), Transport::Udp, 0, &mut out);
    let reply = Message::from_vec(&out).unwrap();
    assert!(reply.queries[0].name().eq_case(&Name::from_ascii("WeB.").unwrap()));
}

#[test]
fn a_long_answer_is_cut_off_over_udp_and_whole_over_tcp() {
    let view = view_of_many(300);
    let plain = query("many.", RecordType::A).to_vec().unwrap();
    let cut = ask(&plain, &view, Transport::Udp, 0);
    assert!(cut.starts_with("No Error id=7 aa tc rd ra\n"), "{cut}");
    assert_eq!(cut.lines().count(), 1 + (512 - 12 - 10) / 16);
    let whole = ask(&plain, &view, Transport::Tcp, 0);
    assert!(!whole.contains(" tc "), "{whole}");
    assert_eq!(whole.lines().count(), 301);
}

#[test]
fn edns_raises_the_limit_and_is_answered() {
    let view = view_of_many(300);
    let mut message = query("many.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    let mut out = Vec::new();
    answer(&message.to_vec().unwrap(), &view, Transport::Udp, 0, &mut out);
    assert!(out.len() <= 1232 && out.len() > 1232 - 16, "{}", out.len());
    assert!(describe(&out).starts_with("No Error id=7 aa tc rd ra edns=4096\n"), "{}", describe(&out));
}

#[test]
fn an_edns_version_of_the_future_is_refused() {
    let mut message = query("web.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    message.set_edns(edns);
    let mut out = Vec::new();
    answer(&message.to_vec().unwrap(), &view_of("client"), Transport::Udp, 0, &mut out);
    let reply = Message::from_vec(&out).unwrap();
    // Compared as a number: 16 has two names.
    assert_eq!(u16::from(reply.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert_eq!(reply.version(), 0);
}

#[test]
fn what_is_no_question_is_refused_or_ignored() {
    let view = view_of("client");
    let good = query("web.", RecordType::A).to_vec().unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        ask(&bytes, &view, Transport::Udp, 0)
    };
    assert_eq!(ask(&good[..11], &view, Transport::Udp, 0), "silence\n");
    assert_eq!(with(2, 0x81), "silence\n", "an answer");
    assert_eq!(with(2, 0x29), "Not Implemented id=7 rd ra\n", "an update");
    assert_eq!(with(5, 2), "Form Error id=7 rd ra\n", "two questions");
    assert_eq!(with(5, 0), "Form Error id=7 rd ra\n", "no question");
    assert_eq!(with(12, 0xc0), "Form Error id=7 rd ra\n", "a name that points at itself");
    assert_eq!(with(11, 1), "Form Error id=7 rd ra\n", "a record that is not there");
    assert_eq!(ask(&good[..good.len() - 1], &view, Transport::Udp, 0), "Form Error id=7 rd ra\n", "cut off");
    let chaos = with(good.len() - 1, 3);
    assert_eq!(chaos, "Query Refused id=7 rd ra\n", "said without authority");
}

#[test]
fn no_opt_is_sent_to_who_sent_none_and_the_dnssec_bit_comes_back() {
    let mut out = Vec::new();
    let view = view_of("client");
    for name in ["web.", "nothing.back.", "2.1.0.10.in-addr.arpa."] {
        let message = query(name, RecordType::A);
        answer(&message.to_vec().unwrap(), &view, Transport::Udp, 0, &mut out);
        assert_eq!(Message::from_vec(&out).unwrap().edns, None, "{name}");
    }
    let mut message = query("web.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_dnssec_ok(true);
    message.set_edns(edns);
    answer(&message.to_vec().unwrap(), &view, Transport::Udp, 0, &mut out);
    assert!(Message::from_vec(&out).unwrap().edns.unwrap().flags().dnssec_ok);
}

#[test]
fn a_size_below_the_smallest_counts_as_the_smallest() {
    let view = view_of_many(300);
    let mut message = query("many.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(10);
    message.set_edns(edns);
    let mut out = Vec::new();
    answer(&message.to_vec().unwrap(), &view, Transport::Udp, 0, &mut out);
    assert!(out.len() > 512 - 16 && out.len() <= 512, "{}", out.len());
}

#[test]
fn each_family_has_its_own_answers() {
    let view = dual_stack_view();
    let ask = |record_type, name: &str, rotation| {
        ask(&query(name, record_type).to_vec().unwrap(), &view, Transport::Udp, rotation)
    };
    let head = "No Error id=7 aa rd ra\n";
    assert_eq!(
        ask(RecordType::A, "dual.", 1),
        format!("{head}  dual. 5 A 10.0.1.21\n  dual. 5 A 10.0.1.20\n")
    );
    assert_eq!(
        ask(RecordType::AAAA, "dual.", 0),
        format!("{head}  dual. 5 AAAA fd00:1::20\n  dual. 5 AAAA fd00:1::21\n")
    );
    let reverse = "1.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.D.F.ip6.arpa.";
    let pointer = ask(RecordType::PTR, reverse, 0);
    assert!(pointer.ends_with(" 5 PTR dual.2.y.app.\n"), "{pointer}");
    let nobody = reverse.replacen('1', "9", 1);
    assert!(ask(RecordType::PTR, &nobody, 0).starts_with("Non-Existent Domain id=7 aa"));
    let others = reverse.replace("D.F", "E.F");
    assert!(ask(RecordType::PTR, &others, 0).starts_with("forward"));
    assert!(ask(RecordType::PTR, &reverse[2..], 0).starts_with("forward"), "31 digits are no address");
}

#[test]
fn a_port_of_a_service_names_its_tasks_and_brings_their_addresses() {
    let view = dual_stack_view();
    let reply = ask(&query("_dns._udp.dual.", RecordType::SRV).to_vec().unwrap(), &view, Transport::Udp, 1);
    let expected = "No Error id=7 aa rd ra
  _dns._udp.dual. 5 SRV 0 1 5353 dual.2.y.app.
  _dns._udp.dual. 5 SRV 0 1 5353 dual.1.x.app.
+ dual.2.y.app. 5 A 10.0.1.21
+ dual.2.y.app. 5 AAAA fd00:1::21
+ dual.1.x.app. 5 A 10.0.1.20
+ dual.1.x.app. 5 AAAA fd00:1::20
";
    assert_eq!(reply, expected);
}

#[test]
fn addresses_that_have_no_room_beside_ports_are_left_out_unmarked() {
    let mut view = dual_stack_view();
    let zone = Arc::make_mut(&mut view.networks[0]);
    let many: Vec<IpAddr> = (0..11).map(|i| Ipv4Addr::new(10, 0, 1, 100 + i).into()).collect();
    for (i, address) in many.iter().enumerate() {
        zone.reverse.insert(*address, format!("dual.{i}.x"));
        zone.names.insert(format!("dual.{i}.x"), vec![*address]);
    }
    zone.names.insert("dual".to_owned(), many);
    let reply = ask(&query("_dns._udp.dual.", RecordType::SRV).to_vec().unwrap(), &view, Transport::Udp, 0);
    assert!(reply.starts_with("No Error id=7 aa rd ra\n"), "not truncated: {reply}");
    let (records, extra) = (reply.matches(" SRV ").count(), reply.matches("\n+ ").count());
    assert_eq!(records, 11);
    assert!(extra < 11 && extra > 0, "{extra}");
}

#[test]
fn a_short_name_stays_inside_where_the_user_asked_for_dots() {
    let mut view = view_of("client");
    view.keeps_short_names = true;
    let ask =
        |name: &str, record_type| ask(&query(name, record_type).to_vec().unwrap(), &view, Transport::Udp, 0);
    assert!(ask("unknown.", RecordType::A).starts_with("Non-Existent Domain"));
    assert!(ask("unknown.", RecordType::AAAA).starts_with("Non-Existent Domain"));
    assert!(ask("unknown.example.", RecordType::A).starts_with("forward"));
    assert!(ask("unknown.", RecordType::MX).starts_with("forward"));
    assert!(ask("web.", RecordType::A).contains("10.0.1.2"));
}

#[test]
fn a_name_with_a_dot_inside_a_label_is_not_ours() {
    let name = Name::from_labels([b"web.1.a".as_slice()]).unwrap();
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name, RecordType::A));
    assert!(ask(&message.to_vec().unwrap(), &view_of("client"), Transport::Udp, 0).starts_with("forward"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing panics, and whatever is replied is a message to that client within its limit.
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600), tcp: bool) {
        check_any(&bytes, tcp)?;
    }

    /// The same for bytes that look like a question: a header of one, then anything.
    #[test]
    fn any_question_is_survived(
        id: u16, flags: u8, n_additionals in 0..3_u8, body in prop::collection::vec(any::<u8>(), 0..300), tcp: bool,
    ) {
        let [high, low] = id.to_be_bytes();
        let mut bytes = vec![high, low, flags & 0x01, 0, 0, 1, 0, 0, 0, 0, 0, n_additionals];
        bytes.extend(body);
        check_any(&bytes, tcp)?;
    }

    /// A name that exists is never denied, whatever is asked of it.
    #[test]
    fn a_name_that_exists_is_never_denied(index in any::<prop::sample::Index>(), number: u16, upper: bool) {
        let view = view_of("client");
        let names: Vec<&String> = view.networks.iter().flat_map(|zone| zone.names.keys()).collect();
        let name = names[index.index(names.len())];
        let spelled = if upper { name.to_ascii_uppercase() } else { name.clone() };
        let record_type = RecordType::from(number);
        prop_assume!(!matches!(record_type, RecordType::OPT | RecordType::Unknown(0)));
        let message = query(&format!("{spelled}."), record_type);
        let reply = ask(&message.to_vec().unwrap(), &view, Transport::Udp, 0);
        prop_assert!(reply.starts_with("No Error id=7 aa"), "{} {}: {}", spelled, record_type, reply);
    }
}

fn check_any(bytes: &[u8], tcp: bool) -> Result<(), TestCaseError> {
    let transport = if tcp { Transport::Tcp } else { Transport::Udp };
    let mut out = Vec::new();
    if answer(bytes, &view_of_many(50), transport, 3, &mut out) == Outcome::Reply {
        let reply = Message::from_vec(&out);
        prop_assert!(reply.is_ok(), "{:?} for {:02x?}", out, bytes);
        prop_assert_eq!(&out[..2], &bytes[..2]);
        prop_assert!(tcp || out.len() <= usize::from(crate::response::MAX_UDP_LEN));
    }
    Ok(())
}
