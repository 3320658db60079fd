//! The DNS process with real sockets in real network namespaces: it answers, forwards, outlives its client and is
//! replaced when it dies. The whole test lives in a namespace of its own. Needs root.
//!
//! Called as `process serve <socket> <resolv.conf>` this program is the process under test.

mod support;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use dataplane_dns::{DnsClient, Forwarding, ServerOptions, Zones, run_server};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use support::{Sandbox, Scene, TestResolver, query_tcp, query_udp, wait_for, zones};

/// Nothing here takes longer than milliseconds; this is for a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

const WEB: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, command, socket, resolv_conf] = &args[..]
        && command == "serve"
    {
        let options = ServerOptions { socket: socket.into(), resolv_conf: resolv_conf.into() };
        let ended = run_server(&options);
        std::process::exit(ended.map_or_else(|error| support::complain(&error), |()| 0));
    }
    support::enter_own_netns();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        answers_by_udp_and_tcp().await;
        a_sandbox_that_left_is_let_go().await;
        a_sandbox_that_comes_late_is_served().await;
        a_second_process_is_refused().await;
        forwards_to_the_fastest_resolver().await;
        outlives_its_client_and_obeys_the_next().await;
        is_replaced_when_killed().await;
    });
    println!("process: 7 tests passed");
}

async fn served(client: &DnsClient, revision: u64) {
    let mut status = client.status();
    let done = status.wait_for(|now| now.connected && now.revision == revision && now.failed.is_empty());
    tokio::time::timeout(PATIENCE, done)
        .await
        .expect("the zones are served in time")
        .expect("the client lives");
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

async fn a_sandbox_that_left_is_let_go() {
    let scene = Scene::new("left");
    let sandbox = Sandbox::new();
    let client = scene.client();
    client.set_zones(zones(1, &[(&sandbox, &[("web", WEB)], Forwarding::Forbidden)]));
    served(&client, 1).await;
    assert!(!sandbox.port_is_free());
    client.set_zones(Zones { revision: 2, ..Zones::default() });
    served(&client, 2).await;
    assert!(sandbox.port_is_free(), "a socket that stays open keeps the namespace");
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

async fn forwards_to_the_fastest_resolver() {
    let scene = Scene::new("forward");
    let silent = TestResolver::start("127.0.53.1", None);
    let good = TestResolver::start("127.0.53.2", Some(Ipv4Addr::new(192, 0, 2, 80)));
    scene.write("resolv.conf", "nameserver 127.0.53.1\nnameserver 127.0.53.2\n");
    let sandbox = Sandbox::new();
    let client = scene.client();
    client.set_zones(zones(1, &[(&sandbox, &[("web", WEB)], Forwarding::Node)]));
    served(&client, 1).await;

    for _ in 0..3 {
        let reply = query_udp(&sandbox, "example.com.", RecordType::A).expect("an answer");
        assert_eq!(reply.answers[0].data.to_string(), "192.0.2.80");
    }
    wait_for(PATIENCE, || silent.n_queries() >= 1);
    assert_eq!(good.n_queries(), 1, "asked once, then kept");

    scene.write("resolv.conf", "nameserver 127.0.53.99\n");
    wait_for(PATIENCE, || {
        let reply = query_udp(&sandbox, "other.example.", RecordType::A).expect("an answer");
        reply.metadata.response_code == ResponseCode::ServFail
    });
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
    assert!(sandbox.port_is_free());
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
