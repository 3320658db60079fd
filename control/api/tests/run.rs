//! `docker run` and its parts through the real CLI.

mod common;

use std::time::{SystemTime, UNIX_EPOCH};

use common::Daemon;
use common::cli::programs;
use common::engine::container;
use control_model::spec::{PortConfig, Protocol, PublishMode};
use control_model::standalone::{ConsoleSize, NetworkMode, RestartRule};
use control_store::ReplicatedStore as _;
use serde_json::{Value, json};

async fn inspected(daemon: &Daemon, name: &str) -> Value {
    let (status, reply) = daemon.request("GET", &format!("/containers/{name}/json"), b"").await;
    assert_eq!(status, 200, "{reply}");
    serde_json::from_str(&reply).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_pulled_run_shown_stopped_and_removed() {
    for program in programs() {
        let daemon = Daemon::manager().await;
        let run = async |line: &str| daemon.docker_by(program, line, b"").await;
        let begun = run("run -d -p 8080:80 --name helloapp tutum/hello-world serve").await;
        assert_eq!((begun.code, begun.stdout.len()), (0, 65), "{program}: {begun:?}");
        assert!(begun.stdout.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()), "{begun:?}");
        let words = [
            "Unable to find image 'tutum/hello-world:latest' locally",
            "Downloaded newer image for tutum/hello-world",
        ];
        assert!(words.iter().all(|words| begun.stderr.contains(words)), "{program}: {begun:?}");
        let port = PortConfig::new(Protocol::Tcp, 80, 8080, PublishMode::Host);
        assert_eq!(daemon.engine.containers.lock().expect("no panic")[0].host_ports, [port]);

        let shown = run("ps --format {{.Image}}|{{.Command}}|{{.Status}}|{{.Ports}}|{{.Names}}").await.stdout;
        assert!(shown.starts_with("tutum/hello-world|\"serve\"|Up "), "{program}: {shown}");
        assert!(shown.ends_with("|0.0.0.0:8080->80/tcp|helloapp\n"), "{program}: {shown}");
        assert_eq!(run("port helloapp").await.stdout, "80/tcp -> 0.0.0.0:8080\n", "{program}");
        assert_eq!(run("stop helloapp").await.stdout, "helloapp\n", "{program}");
        assert_eq!(run("ps -q").await.stdout, "", "{program}");
        assert!(run("ps -a --format {{.Status}}").await.stdout.starts_with("Exited (0)"), "{program}");
        assert_eq!(run("start helloapp").await.stdout, "helloapp\n", "{program}");
        let refused = run("rm helloapp").await;
        assert!(
            refused.code == 1 && refused.stderr.contains("container is running"),
            "{program}: {refused:?}"
        );
        assert_eq!(run("rm -f helloapp").await.stdout, "helloapp\n", "{program}");
        assert_eq!(run("ps -aq").await.stdout, "", "{program}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_the_streams_and_the_code_of_its_container() {
    let daemon = Daemon::manager().await;
    for program in programs() {
        let run = async |line: &str, input: &[u8]| {
            let output = daemon.docker_by(program, line, input).await;
            (output.code, output.stdout, output.stderr)
        };
        let said = |code, out: &str, err: &str| (code, out.to_owned(), err.to_owned());
        assert_eq!(run("run --rm whoami:v1 echo a b", b"").await, said(0, "a b\n", ""), "{program}");
        assert_eq!(run("run --rm -i whoami:v1 cat", b"one\ntwo").await, said(0, "one\ntwo", ""), "{program}");
        assert_eq!(run("run --rm whoami:v1 fail", b"").await, said(3, "", "it failed\n"), "{program}");
        assert_eq!(run("run --rm -t whoami:v1 echo x", b"").await, said(0, "x\n", ""), "{program}");
        let (code, _, words) = run("run --name gone whoami:v1 missing", b"").await;
        assert!(
            code == 127 && words.contains("executable file not found in $PATH"),
            "{program}: {code} {words}"
        );
        assert_eq!(run("rm gone", b"").await.0, 0, "{program}");
        assert_eq!(run("ps -aq", b"").await.1, "", "{program}: the others are gone");

        assert_eq!(run("create -i --name parts whoami:v1 cat", b"").await.0, 0, "{program}");
        assert_eq!(run("start -ai parts", b"by parts").await, said(0, "by parts", ""), "{program}");
        assert_eq!(run("wait parts", b"").await, said(0, "0\n", ""), "{program}");
        assert_eq!(run("rename parts other", b"").await.0, 0, "{program}");
        assert_eq!(run("restart other", b"").await.1, "other\n", "{program}");
        assert_eq!(run("rm -f other", b"").await.1, "other\n", "{program}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_for_is_shown_again() {
    let daemon = Daemon::manager().await;
    let options =
        "-e A=b -l x=y --restart on-failure:3 -w /srv --memory 10m -v /:/rootfs:ro -p 8080:80 --hostname h";
    daemon.prints(&format!("create --name web {options} whoami:v1 serve")).await;
    daemon.prints("update --restart unless-stopped web").await;
    let own = daemon.engine.containers.lock().expect("no panic")[0].own.clone().expect("no service made it");
    assert_eq!(own.spec.restart, RestartRule::UnlessStopped);
    let shown = inspected(&daemon, "web").await;
    let host = &shown["HostConfig"];
    assert_eq!(host["RestartPolicy"], json!({"Name": "unless-stopped", "MaximumRetryCount": 0}));
    assert_eq!((&host["Binds"], &host["Memory"]), (&json!(["/:/rootfs:ro"]), &json!(10 << 20)));
    assert_eq!((&host["NetworkMode"], &host["LogConfig"]["Type"]), (&json!("bridge"), &json!("json-file")));
    let config = &shown["Config"];
    assert_eq!((&config["Env"], &config["WorkingDir"]), (&json!(["A=b"]), &json!("/srv")));
    assert_eq!((&config["Cmd"], &config["ExposedPorts"]), (&json!(["serve"]), &json!({"80/tcp": {}})));
    assert_eq!(
        (&shown["State"]["Status"], &shown["NetworkSettings"]["IPAddress"]),
        (&json!("created"), &json!(""))
    );
    daemon.prints("start web").await;
    let shown = inspected(&daemon, "web").await;
    let networks = &shown["NetworkSettings"];
    assert_eq!((&networks["IPAddress"], &networks["Gateway"]), (&json!("172.18.0.2"), &json!("172.18.0.1")));
    assert_eq!(networks["Networks"]["bridge"]["MacAddress"], json!("02:42:ac:12:00:02"));

    let resize = |size: &str| format!("/containers/web/resize?{size}");
    assert_eq!(daemon.request("POST", &resize("h=40&w=120"), b"").await.0, 200);
    assert_eq!(daemon.request("POST", &resize("h=x&w=1"), b"").await.0, 400);
    assert_eq!(daemon.engine.lives.lock().expect("no panic").sizes, [ConsoleSize { rows: 40, columns: 120 }]);
    daemon.engine.end(shown["Id"].as_str().expect("an id"), 9);
    assert_eq!(daemon.request("POST", &resize("h=40&w=120"), b"").await.0, 409);
    let own = |change: &dyn Fn(&mut control_api::standalone::Own)| {
        let mut containers = daemon.engine.containers.lock().expect("no panic");
        change(containers[0].own.as_mut().expect("no service made it"));
    };
    own(&|own| (own.is_restarting, own.n_restarts) = (true, 4));
    let listed = daemon.docker("ps --format {{.State}}|{{.Status}}").await.stdout;
    assert!(listed.starts_with("restarting|Restarting (9) "), "{listed}");
    let shown = inspected(&daemon, "web").await;
    assert_eq!((&shown["State"]["Restarting"], &shown["RestartCount"]), (&json!(true), &json!(4)));
    own(&|own| own.is_restarting = false);
    assert_eq!(daemon.docker("container prune -f").await.stdout.lines().count(), 4);
    assert!(daemon.engine.containers.lock().expect("no panic").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_is_refused_and_makes_nothing() {
    let daemon = Daemon::manager().await;
    for (options, words) in [
        ("--privileged", "HostConfig.Privileged is not supported by this daemon"),
        ("--network host", "HostConfig.NetworkMode host is not supported by this daemon"),
        ("--pid host", "HostConfig.PidMode is not supported by this daemon"),
        ("--platform linux/s390x", "platform linux/s390x is not supported by this daemon"),
        ("--device /dev/null", "HostConfig.Devices is not supported by this daemon"),
        ("-p 127.0.0.1:80:80", "HostConfig.PortBindings at 127.0.0.1 alone is not supported by this daemon"),
        ("-v /a:/b:what", "invalid volume specification: '/a:/b:what'"),
    ] {
        let refused = daemon.docker(&format!("run {options} whoami:v1")).await;
        assert!(refused.code == 125 && refused.stderr.contains(words), "{options}: {refused:?}");
    }
    let unknown = daemon.error("POST", "/containers/none/start", "").await;
    assert_eq!(unknown, (404, "No such container: none".into()));
    let wait = daemon.error("POST", "/containers/none/wait?condition=soon", "").await;
    assert_eq!(wait, (400, "invalid condition: \"soon\"".into()));
    assert!(daemon.engine.containers.lock().expect("no panic").is_empty());

    let alone = Daemon::alone().await;
    let refused = alone.docker("run whoami:v1").await;
    assert!(refused.code == 125 && refused.stderr.contains("Use \"docker swarm init\""), "{refused:?}");
}

/// A task's container is its service's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_tasks_are_left_to_the_swarm() {
    let daemon = Daemon::manager().await;
    daemon
        .prints("service create -d --no-resolve-image --name web --constraint node.hostname==m1 whoami:v1")
        .await;
    daemon.running("web", 1).await;
    let task = daemon.store.state().tasks().iter().next().expect("made").clone();
    let name = task.name();
    daemon.engine.containers.lock().expect("no panic").push(container(&task));
    for line in ["start", "restart", "rm", "rm -f", "update --restart no"] {
        let refused = daemon.refuses(&format!("{line} {name}")).await;
        assert!(refused.contains("belongs to a task of the swarm"), "{line}: {refused}");
    }
    let refused = daemon.refuses(&format!("rename {name} other")).await;
    assert!(refused.contains("belongs to a task of the swarm"), "{refused}");
    assert_eq!(daemon.docker("container prune -f").await.stdout, "Total reclaimed space: 0B\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_told_in_order() {
    let daemon = Daemon::manager().await;
    daemon.prints("run --name web whoami:v1 echo x").await;
    daemon.prints("rename web other").await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let (_, told) = daemon.request("GET", &format!("/events?since=1&until={}", now + 1), b"").await;
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of_containers = told.iter().filter(|one| one["Type"] == "container");
    let words =
        of_containers.map(|one| (one["Action"].as_str(), one["Actor"]["Attributes"]["name"].as_str()));
    let expected = ["create", "attach", "start", "die", "rename"]
        .map(|action| (Some(action), Some(if action == "rename" { "other" } else { "web" })));
    assert_eq!(words.collect::<Vec<_>>(), expected);
    assert_eq!(told.last().expect("some")["Actor"]["Attributes"]["oldName"], "/web");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_in_a_network_of_the_swarm() {
    let daemon = Daemon::manager().await;
    daemon.prints("network create -d overlay --attachable open").await;
    daemon.prints("run -d --name web --network open --network-alias db whoami:v1 serve").await;
    let own = daemon.engine.containers.lock().expect("no panic")[0].own.clone().expect("no service made it");
    let expected = NetworkMode::Swarm { network: "open".into(), aliases: vec!["db".into()] };
    assert_eq!(own.spec.network, expected);
    let shown = inspected(&daemon, "web").await;
    assert_eq!(shown["HostConfig"]["NetworkMode"], json!("open"));
    let networks = shown["NetworkSettings"]["Networks"].as_object().expect("a map");
    assert_eq!(networks.keys().collect::<Vec<_>>(), ["open"]);
    let refused = daemon.docker("run --network open --ip 10.0.0.9 whoami:v1").await;
    assert!(refused.stderr.contains("IPAMConfig is not supported by this daemon"), "{refused:?}");
    let refused = daemon.docker("run --network-alias db whoami:v1").await;
    assert!(refused.stderr.contains("network-scoped alias"), "{refused:?}");
}
