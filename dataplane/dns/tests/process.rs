//! The DNS process with real sockets in real network namespaces: it answers, forwards, outlives its client and is
//! replaced when it dies. The whole test lives in a namespace of its own. Needs root.
//!
//! Called as `process serve <socket> <resolv.conf>` this program is the process under test.

#[expect(dead_code, reason = "the forwarding tests use the rest")]
mod support;

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dataplane_dns::{Forwarding, Zones, inspect};
use dataplane_model::SandboxId;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use support::{PATIENCE, Sandbox, Scene, TcpClient, query_tcp, query_udp, served, wait_for, zones};

const WEB: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

fn main() {
    support::serve_if_told();
    support::enter_own_netns();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        answers_by_udp_and_tcp().await;
        each_of_many_sandboxes_gets_its_own_names().await;
        a_libc_understands_the_answers().await;
        a_sandbox_that_left_is_let_go().await;
        a_sandbox_that_comes_late_is_served().await;
        a_second_process_is_refused().await;
        a_connection_takes_several_queries_and_is_not_kept_for_ever().await;
        connections_have_a_limit().await;
        outlives_its_client_and_obeys_the_next().await;
        is_replaced_when_killed().await;
        tells_what_it_serves().await;
        a_container_may_have_port_53_of_its_own().await;
    });
    println!("process: 12 tests passed");
}

async fn answers_by_udp_and_tcp() {
    let scene = Scene::new("answers");
    let (app, back) = (Sandbox::new(), Sandbox::new());
    let client = scene.client();
    client.set_zones(zones(
        1,
        &[(&app, &[("web", WEB)], Forwarding::Forbidden), (&back, &[], Forwarding::Forbidden)],
    ));
    served(&client, 1).await;

    for reply in [query_udp(&app, "web.", RecordType::A), query_tcp(&app, "web.", RecordType::A)] {
        let reply = reply.expect("an answer");
        assert_eq!(reply.answers.len(), 1);
        assert_eq!(reply.answers[0].data.to_string(), WEB.to_string());
    }
    let reply = query_udp(&back, "web.", RecordType::A).expect("an answer");
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "names are per network");

    client.set_zones(zones(2, &[(&app, &[("db", WEB)], Forwarding::Forbidden)]));
    served(&client, 2).await;
    let reply = query_udp(&app, "web.", RecordType::A).expect("an answer");
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "the zones are swapped whole");
    client.stop_server().await.expect("the process ends");
}

async fn each_of_many_sandboxes_gets_its_own_names() {
    let scene = Scene::new("many");
    let sandboxes: Vec<Sandbox> = (0..20).map(|_| Sandbox::new()).collect();
    let names: Vec<String> = (0..20).map(|i| format!("only{i}")).collect();
    let tables: Vec<[(&str, Ipv4Addr); 1]> = names.iter().map(|name| [(name.as_str(), WEB)]).collect();
    let rows =
        sandboxes.iter().zip(&tables).map(|(sandbox, table)| (sandbox, &table[..], Forwarding::Forbidden));
    let client = scene.client();
    client.set_zones(zones(1, &rows.collect::<Vec<_>>()));
    served(&client, 1).await;
    for (sandbox, name) in sandboxes.iter().zip(&names) {
        let reply = query_udp(sandbox, &format!("{name}."), RecordType::A).expect("an answer");
        assert_eq!(reply.answers.len(), 1, "{name}");
    }
    client.stop_server().await.expect("the process ends");
}

async fn a_libc_understands_the_answers() {
    let scene = Scene::new("libc");
    let sandbox = Sandbox::new();
    let client = scene.client();
    client.set_zones(zones(1, &[(&sandbox, &[("web", WEB), ("db.a.example", WEB)], Forwarding::Forbidden)]));
    served(&client, 1).await;
    for options in ["ndots:0", "edns0 ndots:0", "use-vc ndots:2", "single-request-reopen"] {
        let file = format!("nameserver 127.0.0.11\nsearch b.example a.example\noptions {options}\n");
        scene.write("container.conf", &file);
        let file = scene.path("container.conf");
        let found = |name| sandbox.getent(&file, name).map(|text| text.contains(&WEB.to_string()));
        assert_eq!(found("web"), Some(true), "{options}");
        assert_eq!(found("db"), Some(true), "by the search list, with {options}");
        assert_eq!(found("nobody"), None, "{options}");
    }
    client.stop_server().await.expect("the process ends");
}

async fn a_sandbox_that_left_is_let_go() {
    let scene = Scene::new("left");
    let sandbox = Sandbox::new();
    let client = scene.client();
    client.set_zones(zones(1, &[(&sandbox, &[("web", WEB)], Forwarding::Forbidden)]));
    served(&client, 1).await;
    assert_eq!(sandbox.n_udp_sockets(), 1);
    client.set_zones(Zones { revision: 2, ..Zones::default() });
    served(&client, 2).await;
    // A socket that stays open would keep the namespace.
    wait_for(PATIENCE, || sandbox.n_udp_sockets() == 0);
    client.stop_server().await.expect("the process ends");
}

async fn a_sandbox_that_comes_late_is_served() {
    let scene = Scene::new("late");
    let sandbox = Sandbox::new();
    let link = scene.path("netns");
    let mut wanted = zones(1, &[(&sandbox, &[("web", WEB)], Forwarding::Forbidden)]);
    for zone in wanted.sandboxes.values_mut() {
        zone.netns.clone_from(&link);
    }
    let client = scene.client();
    client.set_zones(wanted);
    let mut status = client.status();
    let failed = status.wait_for(|now| now.failed.values().any(|reason| reason.contains("No such file")));
    tokio::time::timeout(PATIENCE, failed).await.expect("in time").expect("the client lives");
    std::os::unix::fs::symlink(sandbox.path(), &link).expect("a link");
    served(&client, 1).await;
    assert!(query_udp(&sandbox, "web.", RecordType::A).is_some());
    client.stop_server().await.expect("the process ends");
}

async fn a_second_process_is_refused() {
    let scene = Scene::new("second");
    let client = scene.client();
    client.set_zones(Zones { revision: 1, ..Zones::default() });
    served(&client, 1).await;
    let launch = scene.launch();
    let output = std::process::Command::new(&launch.program).args(&launch.args).output().expect("it starts");
    assert!(!output.status.success());
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.contains("another DNS process serves"), "{complaint}");
    client.set_zones(Zones { revision: 2, ..Zones::default() });
    served(&client, 2).await;
    client.stop_server().await.expect("the process ends");
}

async fn outlives_its_client_and_obeys_the_next() {
    let scene = Scene::new("outlives");
    let sandbox = Sandbox::new();
    let client = scene.client();
    client.set_zones(zones(1, &[(&sandbox, &[("web", WEB)], Forwarding::Forbidden)]));
    served(&client, 1).await;
    let process = scene.server_pid();
    drop(client);
    assert!(query_udp(&sandbox, "web.", RecordType::A).is_some(), "it goes on alone");

    let next = scene.client();
    next.set_zones(zones(2, &[(&sandbox, &[("db", WEB)], Forwarding::Forbidden)]));
    served(&next, 2).await;
    assert_eq!(scene.server_pid(), process, "the same process");
    assert_eq!(query_udp(&sandbox, "db.", RecordType::A).expect("an answer").answers.len(), 1);
    next.stop_server().await.expect("the process ends");
    wait_for(PATIENCE, || sandbox.n_udp_sockets() == 0);
}

async fn is_replaced_when_killed() {
    let scene = Scene::new("killed");
    let sandbox = Sandbox::new();
    let client = scene.client();
    client.set_zones(zones(1, &[(&sandbox, &[("web", WEB)], Forwarding::Forbidden)]));
    served(&client, 1).await;
    let first = scene.server_pid();
    scene.kill_server();
    let path: PathBuf = scene.path("dns.sock.lock");
    wait_for(PATIENCE, || std::fs::read_to_string(&path).is_ok_and(|pid| !pid.is_empty() && pid != first));
    let mut status = client.status();
    let back = status.wait_for(|now| now.connected && now.served.len() == 1);
    tokio::time::timeout(PATIENCE, back).await.expect("in time").expect("the client lives");
    wait_for(PATIENCE, || query_udp(&sandbox, "web.", RecordType::A).is_some());
    client.stop_server().await.expect("the process ends");
}

async fn a_connection_takes_several_queries_and_is_not_kept_for_ever() {
    let scene = Scene::new("connection");
    let sandbox = Sandbox::new();
    let client = scene.client();
    client.set_zones(zones(1, &[(&sandbox, &[("web", WEB)], Forwarding::Forbidden)]));
    served(&client, 1).await;

    let mut connection = TcpClient::connect(&sandbox);
    let ids = [connection.send("web.", RecordType::A), connection.send("db.", RecordType::A)];
    let codes = ids.map(|id| {
        let reply = connection.receive().expect("an answer");
        assert_eq!(reply.metadata.id, id);
        reply.metadata.response_code
    });
    assert_eq!(codes, [ResponseCode::NoError, ResponseCode::NXDomain]);

    let id = connection.send("web.", RecordType::A);
    connection.finish();
    assert_eq!(connection.receive().expect("asked before the end").metadata.id, id);
    assert!(connection.receive().is_none(), "then the server ends too");

    let mut silent = TcpClient::connect(&sandbox);
    silent.send_bytes(&[0, 40, 1]);
    let started = Instant::now();
    assert!(silent.receive().is_none(), "closed by the server");
    let after = started.elapsed();
    assert!(after > Duration::from_secs(9) && after < PATIENCE, "{after:?}");
    client.stop_server().await.expect("the process ends");
}

async fn connections_have_a_limit() {
    let scene = Scene::new("limit");
    let sandbox = Sandbox::new();
    let client = scene.client();
    client.set_zones(zones(1, &[(&sandbox, &[("web", WEB)], Forwarding::Forbidden)]));
    served(&client, 1).await;

    let mut open: Vec<TcpClient> = (0..64).map(|_| TcpClient::connect(&sandbox)).collect();
    for connection in &mut open {
        connection.send("web.", RecordType::A);
        assert!(connection.receive().is_some());
    }
    let mut late = TcpClient::connect(&sandbox);
    late.send("web.", RecordType::A);
    assert!(late.is_silent(), "it waits for a place");
    assert!(query_udp(&sandbox, "web.", RecordType::A).is_some(), "datagrams need none");
    drop(open.pop());
    assert!(late.receive().is_some(), "there is a place now");
    client.stop_server().await.expect("the process ends");
}

async fn a_container_may_have_port_53_of_its_own() {
    let scene = Scene::new("port");
    let sandbox = Sandbox::new();
    let client = scene.client();
    client.set_zones(zones(1, &[(&sandbox, &[("web", WEB)], Forwarding::Forbidden)]));
    served(&client, 1).await;

    let any = (Ipv4Addr::UNSPECIFIED, 53);
    let own = sandbox.run(|| UdpSocket::bind(any).expect("a free port"));
    let own_tcp = sandbox.run(|| TcpListener::bind(any).expect("a free port"));
    assert!(query_udp(&sandbox, "web.", RecordType::A).is_some(), "names are still ours");
    assert!(query_tcp(&sandbox, "web.", RecordType::A).is_some());
    sandbox.run(|| {
        let asker = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        asker.send_to(b"to its own server", ("127.0.0.1", 53)).expect("loopback");
        TcpStream::connect(("127.0.0.1", 53)).expect("it listens");
    });
    own.set_read_timeout(Some(PATIENCE)).expect("a time");
    assert_eq!(own.recv_from(&mut [0; 64]).expect("what was sent").0, 17);
    own_tcp.accept().expect("what connected");

    let first = scene.server_pid();
    scene.kill_server();
    let path: PathBuf = scene.path("dns.sock.lock");
    wait_for(PATIENCE, || std::fs::read_to_string(&path).is_ok_and(|pid| !pid.is_empty() && pid != first));
    wait_for(PATIENCE, || query_udp(&sandbox, "web.", RecordType::A).is_some());
    client.stop_server().await.expect("the process ends");
}

async fn tells_what_it_serves() {
    let scene = Scene::new("tells");
    let (app, back) = (Sandbox::new(), Sandbox::new());
    let client = scene.client();
    let rows = [
        (&app, &[("web", WEB)][..], Forwarding::Node),
        (&back, &[("db", WEB), ("idle", WEB)][..], Forwarding::Forbidden),
    ];
    client.set_zones(zones(4, &rows));
    served(&client, 4).await;
    let socket = scene.path("dns.sock");
    let names = |report: &dataplane_model::inspect::DnsZoneReport| {
        report.names.iter().map(|row| format!("{}/{}", row.network, row.name)).collect::<Vec<_>>()
    };

    let all = inspect::zone(&socket, None, None).await.expect("it tells");
    assert_eq!((all.revision, all.sandboxes.len()), (4, 2));
    assert_eq!(names(&all), ["net0/web", "net1/db", "net1/idle"]);
    let one = inspect::zone(&socket, Some(&SandboxId("sandbox1".to_owned())), None).await.expect("it tells");
    assert_eq!((names(&one), one.sandboxes[0].forwarding.as_str()), (names(&all)[1..].to_vec(), "nowhere"));
    let network = inspect::zone(&socket, None, Some("NET0")).await.expect("it tells");
    assert_eq!((names(&network), network.sandboxes.len()), (names(&all)[..1].to_vec(), 1));

    client.set_zones(zones(5, &[]));
    served(&client, 5).await;
    client.stop_server().await.expect("the process ends");
    let none = inspect::zone(&socket, None, None).await.expect_err("there is no process");
    assert_eq!(none.to_string(), "no DNS process answers");
}
