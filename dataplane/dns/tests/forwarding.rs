//! What no network of a sandbox knows: asked of resolvers, real ones and strange ones, by the DNS process with real
//! sockets in real network namespaces. The whole test lives in a namespace of its own. Needs root and dnsmasq.
//!
//! Called as `forwarding serve <socket> <resolv.conf>` this program is the process under test.

#[expect(dead_code, reason = "the process tests use the rest")]
mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use dataplane_dns::{DnsClient, Forwarding, inspect};
use dataplane_model::SandboxId;
use dataplane_model::inspect::{DnsQueryReport, DnsWay};
use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use support::resolver::{Dnsmasq, Manner, TestResolver};
use support::{
    PATIENCE, Sandbox, Scene, TcpClient, ask_udp, query, query_tcp, query_udp, served, wait_for, zones,
};

const WEB: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 90);

fn main() {
    support::serve_if_told();
    support::enter_own_netns();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        the_first_good_answer_wins_and_the_hosts_resolvers_are_followed().await;
        equal_questions_are_asked_once_and_nothing_waits_behind_them().await;
        only_an_answer_to_the_question_counts_and_none_can_be_guessed().await;
        a_tasks_own_resolvers_are_asked_from_its_sandbox().await;
        a_real_resolver_is_relayed().await;
        old_answers_are_better_than_none().await;
        internal_networks_ask_nobody().await;
        an_inspection_says_where_an_answer_comes_from().await;
    });
    println!("forwarding: 8 tests passed");
}

/// The process with one sandbox that forwards so.
async fn start(scene: &Scene, sandbox: &Sandbox, forwarding: Forwarding) -> DnsClient {
    let client = scene.client();
    client.set_zones(zones(1, &[(sandbox, &[("web", WEB)], forwarding)]));
    served(&client, 1).await;
    client
}

/// The address that the sandbox gets for a name.
fn address(sandbox: &Sandbox, name: &str) -> Option<String> {
    let reply = query_udp(sandbox, name, RecordType::A).expect("an answer");
    reply.answers.first().map(|record| record.data.to_string())
}

fn code(sandbox: &Sandbox, name: &str) -> ResponseCode {
    query_udp(sandbox, name, RecordType::A).expect("an answer").metadata.response_code
}

async fn the_first_good_answer_wins_and_the_hosts_resolvers_are_followed() {
    let scene = Scene::new("first");
    let _silent = TestResolver::start("127.0.53.1", Manner::Silent);
    let _failing = TestResolver::start("127.0.53.2", Manner::Fails);
    let good = TestResolver::start("127.0.53.3", Manner::Answers(OUTSIDE));
    scene.write("resolv.conf", "nameserver 127.0.53.1\nnameserver 127.0.53.2\nnameserver 127.0.53.3\n");
    let sandbox = Sandbox::new();
    let client = start(&scene, &sandbox, Forwarding::Node).await;

    let started = Instant::now();
    assert_eq!(address(&sandbox, "example.com."), Some(OUTSIDE.to_string()));
    assert!(started.elapsed() < Duration::from_millis(900), "neither silence nor failure is waited for");
    for _ in 0..3 {
        assert_eq!(address(&sandbox, "example.com."), Some(OUTSIDE.to_string()));
    }
    assert_eq!(good.seen().len(), 1, "asked once, then kept");

    TestResolver::start("127.0.53.4", Manner::Answers(ELSEWHERE));
    scene.write("resolv.conf", "nameserver 127.0.53.4\n");
    wait_for(PATIENCE, || address(&sandbox, "example.com.") == Some(ELSEWHERE.to_string()));
    scene.write("resolv.conf", "nameserver 127.0.53.99\n");
    wait_for(PATIENCE, || code(&sandbox, "other.example.") == ResponseCode::ServFail);
    assert_eq!(address(&sandbox, "web."), Some(WEB.to_string()), "our own names need no resolver");
    client.stop_server().await.expect("the process ends");
}

async fn equal_questions_are_asked_once_and_nothing_waits_behind_them() {
    let scene = Scene::new("equal");
    let slow = TestResolver::start("127.0.53.5", Manner::AnswersWhenReleased(OUTSIDE));
    scene.write("resolv.conf", "nameserver 127.0.53.5\n");
    let sandbox = Sandbox::new();
    let client = start(&scene, &sandbox, Forwarding::Node).await;

    let mut connection = TcpClient::connect(&sandbox);
    let waiting: BTreeSet<u16> = (0..20).map(|_| connection.send("slow.example.", RecordType::A)).collect();
    let local = connection.send("web.", RecordType::A);
    let first = connection.receive().expect("an answer");
    assert_eq!(first.metadata.id, local, "out of turn: a slow question holds up no other (RFC 7766 6.2.1.1)");
    wait_for(PATIENCE, || !slow.seen().is_empty());
    assert_eq!(address(&sandbox, "web."), Some(WEB.to_string()));
    slow.release();
    let answered: BTreeSet<u16> = (0..waiting.len())
        .map(|_| {
            let reply = connection.receive().expect("an answer");
            assert_eq!(reply.answers.len(), 1);
            reply.metadata.id
        })
        .collect();
    assert_eq!(answered, waiting);
    let ids: BTreeSet<u16> = slow.seen().iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), 1, "one look-up, however often it was sent");
    client.stop_server().await.expect("the process ends");
}

async fn only_an_answer_to_the_question_counts_and_none_can_be_guessed() {
    let scene = Scene::new("forged");
    let resolver = TestResolver::start("127.0.53.6", Manner::AnswersAfterForgeries(OUTSIDE));
    scene.write("resolv.conf", "nameserver 127.0.53.6\n");
    let sandbox = Sandbox::new();
    let client = start(&scene, &sandbox, Forwarding::Node).await;

    for i in 0..16 {
        let asked = format!("N{i}.ExAmPlE.");
        let reply = query_udp(&sandbox, &asked, RecordType::A).expect("an answer");
        assert_eq!(reply.answers[0].data.to_string(), OUTSIDE.to_string());
        let name = Name::from_ascii(&asked).expect("a name");
        assert!(reply.queries[0].name().eq_case(&name), "spelled as asked: {}", reply.queries[0].name());
    }
    let seen = resolver.seen();
    let ids: BTreeSet<u16> = seen.iter().map(|(id, _)| *id).collect();
    let ports: BTreeSet<u16> = seen.iter().map(|(_, client)| client.port()).collect();
    assert!(ids.len() > 12 && ports.len() > 12, "{} ids and {} ports", ids.len(), ports.len());
    let in_turn = seen.windows(2).filter(|pair| pair[1].1.port().abs_diff(pair[0].1.port()) <= 2).count();
    assert!(in_turn < 8, "ports are not taken in turn");
    client.stop_server().await.expect("the process ends");
}

async fn a_tasks_own_resolvers_are_asked_from_its_sandbox() {
    let scene = Scene::new("own");
    let (own, other) = (Sandbox::new(), Sandbox::new());
    let address_of = "127.0.53.7";
    let _node = TestResolver::start(address_of, Manner::Answers(OUTSIDE));
    let inside = own.run(|| TestResolver::start(address_of, Manner::Answers(ELSEWHERE)));
    scene.write("resolv.conf", "nameserver 127.0.53.7\n");
    let client = scene.client();
    let servers = Forwarding::Servers(vec![address_of.parse().expect("an address")]);
    client.set_zones(zones(
        1,
        &[(&own, &[("web", WEB)], servers.clone()), (&other, &[("web", WEB)], Forwarding::Node)],
    ));
    served(&client, 1).await;

    assert_eq!(address(&own, "example.com."), Some(ELSEWHERE.to_string()));
    assert_eq!(address(&other, "example.com."), Some(OUTSIDE.to_string()), "answers are kept apart");
    client.set_zones(zones(2, &[(&own, &[("db", WEB)], servers)]));
    served(&client, 2).await;
    assert_eq!(address(&own, "example.com."), Some(ELSEWHERE.to_string()));
    assert_eq!(inside.seen().len(), 1, "new zones forget nothing of the same resolvers");

    let silent = own.run(|| TestResolver::start("127.0.53.8", Manner::Silent));
    let servers = Forwarding::Servers(vec!["127.0.53.8".parse().expect("an address")]);
    client.set_zones(zones(3, &[(&own, &[], servers)]));
    served(&client, 3).await;
    let mut waiting = TcpClient::connect(&own);
    waiting.send("never.example.", RecordType::A);
    wait_for(PATIENCE, || !silent.seen().is_empty());
    client.set_zones(zones(4, &[]));
    served(&client, 4).await;
    // Only the two resolvers' sockets stay. A look-up that went on to its time-out would have asked four times.
    wait_for(PATIENCE, || own.n_udp_sockets() == 2);
    assert!(silent.seen().len() < 4, "a look-up ends with its sandbox: {:?}", silent.seen());
    client.stop_server().await.expect("the process ends");
}

fn with_edns(name: &str, record_type: RecordType, payload: u16) -> Vec<u8> {
    let mut message = Message::from_vec(&query(name, record_type)).expect("a query");
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message.to_vec().expect("a message")
}

async fn a_real_resolver_is_relayed() {
    let scene = Scene::new("dnsmasq");
    let server: IpAddr = "127.0.53.10".parse().expect("an address");
    let texts = (0..20).map(|i| format!("--txt-record=big.example,{i:0>200}"));
    let options = ["--host-record=a.example,192.0.2.80,2001:db8::80", "--local=/example/", "--local-ttl=7"];
    let options: Vec<String> = options.into_iter().map(str::to_owned).chain(texts).collect();
    let _dnsmasq = Dnsmasq::start(server, &options);
    scene.write("resolv.conf", "nameserver 127.0.53.10\n");
    let sandbox = Sandbox::new();
    let client = start(&scene, &sandbox, Forwarding::Node).await;

    let reply = query_udp(&sandbox, "a.example.", RecordType::A).expect("an answer");
    assert_eq!((reply.answers[0].ttl, reply.edns.is_none()), (7, true));
    assert!(!reply.metadata.authoritative && reply.metadata.recursion_available);
    let v6 = query_udp(&sandbox, "a.example.", RecordType::AAAA).expect("an answer");
    assert_eq!(v6.answers[0].data.to_string(), "2001:db8::80");
    let none = query_udp(&sandbox, "a.example.", RecordType::MX).expect("an answer");
    assert_eq!((none.metadata.response_code, none.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(code(&sandbox, "none.example."), ResponseCode::NXDomain);

    let cut = query_udp(&sandbox, "big.example.", RecordType::TXT).expect("an answer");
    assert!(cut.metadata.truncation && cut.answers.len() < 20);
    let whole = query_tcp(&sandbox, "big.example.", RecordType::TXT).expect("an answer");
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 20));
    let large = ask_udp(&sandbox, &with_edns("big.example.", RecordType::TXT, 4096)).expect("an answer");
    assert_eq!((large.metadata.truncation, large.edns.is_some()), (true, true), "4.2 kB in 4096 bytes");
    assert!(large.answers.len() > cut.answers.len());
    client.stop_server().await.expect("the process ends");
}

async fn old_answers_are_better_than_none() {
    let scene = Scene::new("stale");
    let server: IpAddr = "127.0.53.11".parse().expect("an address");
    let options = ["--host-record=a.example,192.0.2.80".to_owned(), "--local-ttl=1".to_owned()];
    let dnsmasq = Dnsmasq::start(server, &options);
    scene.write("resolv.conf", "nameserver 127.0.53.11\n");
    let sandbox = Sandbox::new();
    let client = start(&scene, &sandbox, Forwarding::Node).await;

    assert_eq!(address(&sandbox, "a.example."), Some(OUTSIDE.to_string()));
    drop(dnsmasq);
    wait_for(PATIENCE, || {
        let reply = query_udp(&sandbox, "a.example.", RecordType::A).expect("an answer");
        assert_eq!(reply.answers[0].data.to_string(), OUTSIDE.to_string());
        reply.answers[0].ttl == 30
    });
    assert_eq!(code(&sandbox, "b.example."), ResponseCode::ServFail, "there is no old answer");
    client.stop_server().await.expect("the process ends");
}

async fn internal_networks_ask_nobody() {
    let scene = Scene::new("internal");
    let resolver = TestResolver::start("127.0.53.12", Manner::Answers(OUTSIDE));
    scene.write("resolv.conf", "nameserver 127.0.53.12\n");
    let sandbox = Sandbox::new();
    let client = start(&scene, &sandbox, Forwarding::Forbidden).await;
    let reply = query_udp(&sandbox, "example.com.", RecordType::A).expect("an answer");
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
    assert_eq!(resolver.seen(), []);
    client.stop_server().await.expect("the process ends");
}

async fn ask_for(scene: &Scene, index: usize, name: &str) -> DnsQueryReport {
    let sandbox = SandboxId(format!("sandbox{index}"));
    inspect::query(&scene.path("dns.sock"), &sandbox, name, "a").await.expect("an answer")
}

async fn an_inspection_says_where_an_answer_comes_from() {
    let scene = Scene::new("inspection");
    let silent = TestResolver::start("127.0.53.13", Manner::Silent);
    let good = TestResolver::start("127.0.53.14", Manner::Answers(OUTSIDE));
    scene.write("resolv.conf", "nameserver 127.0.53.13\nnameserver 127.0.53.14\n");
    let (open, closed) = (Sandbox::new(), Sandbox::new());
    let client = scene.client();
    let own: &[_] = &[("web", WEB)];
    client.set_zones(zones(1, &[(&open, own, Forwarding::Node), (&closed, own, Forwarding::Forbidden)]));
    served(&client, 1).await;

    let web = ask_for(&scene, 0, "web").await;
    assert_eq!((web.way, web.code.as_str()), (DnsWay::OwnZone, "NOERROR"));
    assert_eq!((web.answers[0].data.clone(), web.answers[0].ttl_s), (WEB.to_string(), 5));
    let outside = ask_for(&scene, 0, "www.example.").await;
    let resolver = Some("127.0.53.14:53".parse().expect("an address"));
    assert_eq!(outside.way, DnsWay::Resolver { resolver });
    assert_eq!(outside.answers[0].data, OUTSIDE.to_string());
    let task_gets = query_udp(&open, "www.example.", RecordType::A).expect("an answer");
    assert_eq!(task_gets.answers[0].data.to_string(), outside.answers[0].data);
    let kept = ask_for(&scene, 0, "www.example.").await;
    assert!(matches!(kept.way, DnsWay::Cache { resolver: r, .. } if r == resolver), "{:?}", kept.way);
    assert_eq!(good.seen().len(), 1);

    let inside = ask_for(&scene, 1, "www.example.").await;
    assert_eq!((inside.way, inside.code.as_str()), (DnsWay::NotForwarded, "NXDOMAIN"));
    assert_eq!(inside.authorities[0].record_type, "SOA");
    scene.write("resolv.conf", "nameserver 127.0.53.99\n");
    wait_for(PATIENCE, || code(&open, "other.example.") == ResponseCode::ServFail);
    let nobody = ask_for(&scene, 0, "another.example.").await;
    assert_eq!((nobody.way, nobody.code.as_str()), (DnsWay::Nobody, "SERVFAIL"));
    drop(silent);

    let gone = SandboxId("gone".to_owned());
    let refused = inspect::query(&scene.path("dns.sock"), &gone, "web", "A").await;
    assert_eq!(refused.expect_err("none is served").to_string(), "no names are served to gone");
    client.stop_server().await.expect("the process ends");
}
