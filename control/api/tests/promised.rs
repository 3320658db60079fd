//! What descriptions of swarm mode promise of the CLI, flag by flag, where no other test shows it.

mod common;

use common::Daemon;
use common::cli::{mask, programs};
use control_store::{ReplicatedStore as _, State};
use serde_json::{Value, from_str, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

const CREATE: &str = "service create -d --no-resolve-image";

/// What the program prints; it must succeed and warn of nothing.
async fn run(daemon: &Daemon, program: &str, line: &str) -> String {
    let output = daemon.docker_by(program, line, b"").await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{program} {line}");
    mask(&output.stdout)
}

/// Waits until the service's last update, which replaces its tasks, is over, and so many of them run.
async fn updated(daemon: &Daemon, service: &str, count: usize) {
    let is_over = |state: &State| {
        let status = state.service_by_name(service).and_then(|service| service.update_status.clone());
        status.is_some_and(|status| status.completed_at.is_some())
    };
    daemon.until(is_over).await;
    daemon.running(service, count).await;
}

/// A part of what `docker <what> inspect` shows.
async fn shown(daemon: &Daemon, what: &str, name: &str, path: &str) -> Value {
    let output = daemon.docker(&format!("{what} inspect --format '{{{{json {path}}}}}' {name}")).await;
    from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_as_the_flags_of_create_say() {
    let daemon = Daemon::manager().await;
    let file = daemon.path("env");
    std::fs::write(&file, "# a comment\nFROM=file\n").expect("written");
    let container = format!(
        "--env A=1 --env-file {} --env B=2 --host db:10.9.9.9 --hostname h --container-label c=d --read-only --tty \
         --user web:web --workdir /w --group ops --stop-grace-period 30s",
        file.display()
    );
    let task = "--restart-condition on-failure --restart-delay 7s --restart-max-attempts 4 --restart-window 1m \
                --limit-cpu 1 --limit-memory 256mb --reserve-cpu .25 --reserve-memory 128mb \
                --constraint node.role==manager --constraint node.hostname!=w9 \
                --placement-pref spread=node.labels.zone --placement-pref spread=node.labels.rack";
    let service = "--label a=b --label bare --replicas 2 --update-delay 10s --update-parallelism 2 \
                   --update-failure-action continue --update-monitor 30s --update-max-failure-ratio 0.1 \
                   --rollback-delay 1s --rollback-parallelism 3 --rollback-failure-action continue \
                   --rollback-monitor 20s --rollback-max-failure-ratio .2";
    for program in programs() {
        let create = format!("{CREATE} --name web {container} {task} {service} whoami:v1 ping -c 1");
        assert_eq!(run(&daemon, program, &create).await, "<id>");
        let mut spec = shown(&daemon, "service", "web", ".Spec").await;
        let (mut task, mode) = (spec["TaskTemplate"].take(), spec["Mode"].take());
        let expected = json!({
            "Image": "whoami:v1", "Labels": {"c": "d"}, "Args": ["ping", "-c", "1"], "Hostname": "h",
            "Env": ["FROM=file", "A=1", "B=2"], "Dir": "/w", "User": "web:web", "Groups": ["ops"], "Init": false,
            "TTY": true, "ReadOnly": true, "StopGracePeriod": 30_000_000_000_u64, "Hosts": ["10.9.9.9 db"],
            "DNSConfig": {},
        });
        let mut container = task["ContainerSpec"].take();
        // The older program names the default.
        container.as_object_mut().expect("fields").remove("Isolation");
        assert_eq!(container, expected, "{program}");
        let expected = json!({
            "Limits": {"NanoCPUs": 1_000_000_000, "MemoryBytes": 256 << 20},
            "Reservations": {"NanoCPUs": 250_000_000, "MemoryBytes": 128 << 20},
        });
        assert_eq!(task["Resources"], expected, "{program}");
        let restart = json!({ "Condition": "on-failure", "Delay": 7_000_000_000_u64, "MaxAttempts": 4,
                              "Window": 60_000_000_000_u64 });
        assert_eq!(task["RestartPolicy"], restart, "{program}");
        let spread = |label: &str| json!({"Spread": {"SpreadDescriptor": format!("node.labels.{label}")}});
        let placement = json!({
            "Constraints": ["node.role==manager", "node.hostname!=w9"],
            "Preferences": [spread("zone"), spread("rack")],
        });
        assert_eq!(task["Placement"], placement, "{program}");
        assert_eq!(
            (&spec["Labels"], mode),
            (&json!({"a": "b", "bare": ""}), json!({"Replicated": {"Replicas": 2}}))
        );
        let update = json!({ "Parallelism": 2, "Delay": 10_000_000_000_u64, "FailureAction": "continue",
            "Monitor": 30_000_000_000_u64, "MaxFailureRatio": 0.1, "Order": "stop-first" });
        assert_eq!(spec["UpdateConfig"], update, "{program}");
        let rollback = json!({ "Parallelism": 3, "Delay": 1_000_000_000, "FailureAction": "continue",
            "Monitor": 20_000_000_000_u64, "MaxFailureRatio": 0.2, "Order": "stop-first" });
        assert_eq!(spec["RollbackConfig"], rollback, "{program}");
        daemon.running("web", 2).await;
        run(&daemon, program, "service rm web").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_flag_of_update_changes_what_it_names() {
    let daemon = Daemon::manager().await;
    for program in programs() {
        run(
            &daemon,
            program,
            &format!("{CREATE} --name web --env A=1 --env B=2 --update-monitor 1s whoami:v1"),
        )
        .await;
        daemon.running("web", 1).await;
        let update = "service update -d --no-resolve-image --args '-v x' --env-add B=3 --env-add C=4 --env-rm A \
                      --host-add db:10.9.9.9 --hostname h --group-add ops --label-add a=b --container-label-add c=d \
                      --limit-cpu 0.5 --limit-memory 1GB --reserve-cpu 0.5 --reserve-memory 1GB --read-only \
                      --restart-condition none --restart-delay 7s --restart-max-attempts 4 --tty --user 33:33 \
                      --workdir /w --constraint-add node.role==manager --update-delay 1s --update-parallelism 2 \
                      --update-failure-action continue --update-max-failure-ratio 0.1 web";
        assert_eq!(run(&daemon, program, update).await, "web");
        let mut container = shown(&daemon, "service", "web", ".Spec.TaskTemplate.ContainerSpec").await;
        container.as_object_mut().expect("fields").remove("Isolation");
        // The older program sends them in any order.
        container["Env"].as_array_mut().expect("a list").sort_by_key(Value::to_string);
        let expected = json!({
            "Image": "whoami:v1", "Labels": {"c": "d"}, "Args": ["-v", "x"], "Hostname": "h", "Env": ["B=3", "C=4"],
            "Dir": "/w", "User": "33:33", "Groups": ["ops"], "Init": false, "TTY": true, "ReadOnly": true,
            "StopGracePeriod": 10_000_000_000_u64, "Hosts": ["10.9.9.9 db"], "DNSConfig": {},
        });
        assert_eq!(container, expected, "{program}");
        let half = json!({"NanoCPUs": 500_000_000, "MemoryBytes": 1 << 30});
        let resources = shown(&daemon, "service", "web", ".Spec.TaskTemplate.Resources").await;
        assert_eq!(resources, json!({"Limits": half, "Reservations": half}), "{program}");
        let before = shown(&daemon, "service", "web", ".PreviousSpec.TaskTemplate.ContainerSpec.Env").await;
        assert_eq!(before, json!(["A=1", "B=2"]), "{program}");
        updated(&daemon, "web", 1).await;
        let back = "service update -d --no-resolve-image --env-rm C --host-rm db:10.9.9.9 --group-rm ops --label-rm a \
                    --container-label-rm c --constraint-rm node.role==manager --read-only=false web";
        run(&daemon, program, back).await;
        let container = shown(&daemon, "service", "web", ".Spec.TaskTemplate.ContainerSpec").await;
        assert_eq!((&container["Env"], &container["Labels"]), (&json!(["B=3"]), &Value::Null), "{program}");
        for gone in ["Hosts", "Groups", "ReadOnly"] {
            assert_eq!(container[gone], Value::Null, "{program}: {gone}");
        }
        let policy = shown(&daemon, "service", "web", ".Spec.UpdateConfig").await;
        assert_eq!(
            (&policy["Parallelism"], &policy["FailureAction"]),
            (&json!(2), &json!("continue")),
            "it stays"
        );
        updated(&daemon, "web", 1).await;
        let pretty = daemon.docker_by(program, "service inspect --pretty web", b"").await.stdout;
        let status =
            pretty.split_once("UpdateStatus:\n State:\t\tcompleted\n Started:\t").map(|(_, rest)| rest);
        assert!(
            status.is_some_and(|rest| rest.contains(" Message:\tupdate completed\n")),
            "{program}: {pretty}"
        );
        run(&daemon, program, "service rm web").await;
    }
}

/// At what number the port is published, among those of a spec or an endpoint.
fn published(ports: &Value, target: u64) -> Option<u64> {
    let port = ports.as_array()?.iter().find(|port| port["TargetPort"] == target)?;
    port["PublishedPort"].as_u64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_and_networks_are_added_to_a_service_and_taken_away() {
    let daemon = Daemon::manager().await;
    daemon.prints("network create -d overlay app").await;
    for program in programs() {
        run(&daemon, program, &format!("{CREATE} --name web --update-monitor 1s whoami:v1")).await;
        daemon.running("web", 1).await;
        let ports = "service ls --format {{.Ports}}";
        run(&daemon, program, "service update -d --publish-add published=8000,target=80 web").await;
        updated(&daemon, "web", 1).await;
        assert_eq!(run(&daemon, program, ports).await, "*:8000->80/tcp", "{program}");
        // Of the second one the cluster chooses the number.
        run(&daemon, program, "service update web -d --publish-add 81").await;
        updated(&daemon, "web", 1).await;
        let wanted = shown(&daemon, "service", "web", ".Spec.EndpointSpec.Ports").await;
        assert_eq!((published(&wanted, 80), published(&wanted, 81)), (Some(8000), None), "{program}");
        let given = shown(&daemon, "service", "web", ".Endpoint.Ports").await;
        let chosen = published(&given, 81).expect("a number");
        assert!((30000..=32767).contains(&chosen), "{program}: {given}");
        assert_eq!(
            run(&daemon, program, ports).await,
            format!("*:8000->80/tcp, *:{chosen}->81/tcp"),
            "{program}"
        );
        // Nobody else has them, though nothing runs behind them.
        run(&daemon, program, "service scale -d web=0").await;
        daemon.running("web", 0).await;
        let taken = daemon.docker_by(program, &format!("{CREATE} -p 8000:80 whoami:v1"), b"").await;
        assert!(
            taken.stderr.contains("port '8000' is already in use by service 'web'"),
            "{program}: {taken:?}"
        );
        run(&daemon, program, "service update -d --publish-rm 80 --publish-rm 81 --replicas 1 web").await;
        daemon.running("web", 1).await;
        assert_eq!(run(&daemon, program, ports).await, "", "{program}");

        run(&daemon, program, "service update -d --network-add app web").await;
        updated(&daemon, "web", 1).await;
        let networks = "service inspect --pretty web";
        assert!(run(&daemon, program, networks).await.contains("\nNetworks: app\n"), "{program}");
        run(&daemon, program, "service update -d --network-rm app web").await;
        updated(&daemon, "web", 1).await;
        assert!(!run(&daemon, program, networks).await.contains("Networks:"), "{program}");
        run(&daemon, program, "service rm web").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_are_shown_as_they_are_asked_for() {
    let daemon = Daemon::manager().await;
    for program in programs() {
        let run = async |line: &str| run(&daemon, program, line).await;
        run(&format!("{CREATE} --name web --replicas 2 --update-monitor 1s whoami:v1")).await;
        run(&format!("{CREATE} --name db --constraint node.labels.none==1 whoami:v1")).await;
        daemon.running("web", 2).await;
        run("service update -d --no-resolve-image --image whoami:v2 web").await;
        updated(&daemon, "web", 2).await;
        daemon.until(|state| state.tasks().iter().any(|task| !task.status.error.is_empty())).await;
        // The newer one of a slot first; what waits is nowhere.
        assert_eq!(
            run("service ps web db").await,
            "ID  NAME  IMAGE  NODE  DESIRED STATE  CURRENT STATE  ERROR  PORTS
<id>  db.1  whoami:v1  Running  Pending <age> ago  \"no suitable node (scheduling …\"
<id>  web.1  whoami:v2  m1  Running  Running <age> ago
<id>  \\_ web.1  whoami:v1  m1  Shutdown  Shutdown <age> ago
<id>  web.2  whoami:v2  w1  Running  Running <age> ago
<id>  \\_ web.2  whoami:v1  w1  Shutdown  Shutdown <age> ago",
            "{program}"
        );
        let format = "--format '{{.Name}} {{.Image}}'";
        assert_eq!(
            run(&format!("service ps -f node=w1 {format} web")).await,
            "web.2 whoami:v2\nweb.2 whoami:v1"
        );
        assert_eq!(
            run(&format!("service ps -f name=web.1 -f desired-state=running {format} web")).await,
            "web.1 whoami:v2"
        );
        assert_eq!(
            run(&format!("service ps -f desired-state=shutdown -f name=web.2 {format} web")).await,
            "web.2 whoami:v1"
        );
        let ids = daemon
            .docker_by(program, "service ps -q --no-trunc -f desired-state=running web", b"")
            .await
            .stdout;
        assert!(ids.lines().count() == 2 && ids.lines().all(|id| id.len() == 25), "{program}: {ids}");
        assert_eq!(
            run("service ps -q -f desired-state=accepted web").await,
            "",
            "{program}: nobody wants that"
        );
        let first = ids.lines().next().expect("two");
        assert_eq!(
            run(&format!("service ps -f id={first} {format} web")).await.lines().count(),
            1,
            "{program}"
        );
        let raw = daemon
            .docker_by(program, "service ps --no-resolve --format '{{.Name}} {{.Node}}' web", b"")
            .await;
        let service = shown(&daemon, "service", "web", ".ID").await;
        let expected = format!("{}.1 {}", service.as_str().expect("an id"), common::world::MANAGER);
        assert!(raw.stdout.lines().any(|line| line == expected), "{program}: {raw:?}");
        let whole = run("service ps --no-trunc --format {{.Error}} db").await;
        assert_eq!(
            whole, "\"no suitable node (scheduling constraints not satisfied on 3 nodes)\"",
            "{program}"
        );
        assert_eq!(run("service rm web db").await, "web\ndb", "{program}");
        daemon.until(|state| state.services().is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_found_scaled_and_removed_several_at_once() {
    let daemon = Daemon::manager().await;
    for program in programs() {
        let run = async |line: &str| run(&daemon, program, line).await;
        for name in ["web", "db"] {
            run(&format!("{CREATE} --name {name} whoami:v1")).await;
        }
        let id = shown(&daemon, "service", "web", ".ID").await;
        let beginning = &id.as_str().expect("an id")[..8];
        // An empty format is none.
        let found = daemon.docker_by(program, &format!("service inspect --format= {beginning}"), b"").await;
        let all: Value = from_str(&found.stdout).expect("JSON");
        assert_eq!(
            (all[0]["ID"].as_str(), all.as_array().map(Vec::len)),
            (id.as_str(), Some(1)),
            "{program}"
        );
        assert_eq!(run("service scale -d web=3 db=2").await, "web scaled to 3\ndb scaled to 2");
        daemon.running("web", 3).await;
        daemon.running("db", 2).await;
        let listed = "service ls --format '{{.Name}} {{.Replicas}}'";
        assert_eq!(run(listed).await, "db 2/2\nweb 3/3", "{program}");
        assert_eq!(run("service scale -d web=0").await, "web scaled to 0");
        daemon.running("web", 0).await;
        assert_eq!(run(listed).await, "db 2/2\nweb 0/0", "{program}");
        run("service scale -d web=1").await;
        daemon.running("web", 1).await;
        assert_eq!(run("service rm web db").await, "web\ndb", "{program}");
        daemon.until(|state| state.services().is_empty()).await;
        assert_eq!(run("service ls").await, "ID  NAME  MODE  REPLICAS  IMAGE  PORTS", "{program}");
        let gone = daemon.docker_by(program, "service inspect web", b"").await;
        assert_eq!(gone.stdout, "[]\n", "{program}");
        assert!(gone.stderr.contains("Error: no such service: web"), "{program}: {gone:?}");
    }
}

/// A client that waits is told what keeps a task from running, and ends once it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_says_why_a_task_does_not_run() {
    let daemon = Daemon::manager().await;
    for program in programs() {
        let create =
            "service create --no-resolve-image --name web --restart-delay 10ms --update-monitor 1s missing:1";
        let mut creating = daemon.started(program, create);
        let mut said = BufReader::new(creating.stdout.take().expect("piped"));
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains("1/1: No such image: missing:1") {
            assert!(said.read_until(b'\n', &mut text).await.expect("it is read") > 0, "{program}: {text:?}");
        }
        run(&daemon, program, "service update -d --no-resolve-image --image whoami:v1 web").await;
        // Whether it sees the task run or hears first that the update is over, it ends.
        said.read_to_end(&mut text).await.expect("it is read");
        let ended = creating.wait_with_output().await.expect("it ends");
        assert!(ended.status.success(), "{program}: {} {ended:?}", String::from_utf8_lossy(&text));
        run(&daemon, program, "service rm web").await;
        daemon.until(|state| state.services().is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_are_shown_with_all_that_they_have() {
    let daemon = Daemon::manager().await;
    daemon.prints("network create -d overlay --label bare one").await;
    daemon.prints("network create -d overlay two").await;
    daemon
        .prints(&format!("{CREATE} --name web --publish 8080:80 --constraint node.hostname==m1 whoami:v1"))
        .await;
    daemon.running("web", 1).await;
    let inspect = async |name: &str| -> Value {
        let text = daemon.docker(&format!("network inspect {name}")).await.stdout;
        from_str::<Value>(&text).expect("JSON")[0].take()
    };
    let task = daemon.store.state().tasks().iter().next().expect("made").clone();
    let container = task.status.container.clone().expect("it runs");
    let mut ingress = inspect("ingress").await;
    assert_eq!(ingress["Id"].take().as_str().map(str::len), Some(25));
    assert!(ingress["Created"].take().is_string());
    let peer = |name: &str, id: control_model::NodeId, host: u8| json!({"Name": format!("{name}-{}", &id.to_string()[..12]), "IP": format!("198.18.0.{host}")});
    let expected = json!({
        "Name": "ingress", "Id": null, "Created": null, "Scope": "swarm", "Driver": "overlay",
        "EnableIPv4": true, "EnableIPv6": false,
        "IPAM": {"Driver": "default", "Options": null, "Config": [{"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1"}]},
        "Internal": false, "Attachable": false, "Ingress": true,
        "ConfigFrom": {"Network": ""}, "ConfigOnly": false,
        "Containers": { container.container_id: {
            "Name": task.name(), "EndpointID": task.id.to_string(), "MacAddress": "02:42:0a:00:00:03",
            "IPv4Address": "10.0.0.3/24", "IPv6Address": "",
        } },
        "Options": {"com.docker.network.driver.overlay.vxlanid_list": "4096"}, "Labels": {},
        "Peers": [
            peer("m1", common::world::MANAGER, 11),
            peer("w1", common::world::WORKER_1, 12),
            peer("w2", common::world::WORKER_2, 13),
        ],
    });
    assert_eq!(ingress, expected);
    let (one, two) = (inspect("one").await, inspect("two").await);
    let of = |network: &Value| {
        let config = &network["IPAM"]["Config"][0];
        let vni = &network["Options"]["com.docker.network.driver.overlay.vxlanid_list"];
        [&config["Subnet"], &config["Gateway"], vni, &network["EnableIPv6"], &network["Internal"]]
            .map(ToString::to_string)
    };
    assert_eq!(of(&one), [r#""10.0.1.0/24""#, r#""10.0.1.1""#, r#""4097""#, "false", "false"]);
    assert_eq!(of(&two), [r#""10.0.2.0/24""#, r#""10.0.2.1""#, r#""4098""#, "false", "false"]);
    assert_eq!((&one["Labels"], &one["Containers"]), (&json!({"bare": ""}), &Value::Null));
    // Each node's way out is its own.
    let bridge =
        "network ls --no-trunc --filter name=docker_gwbridge --format '{{.ID}} {{.Driver}} {{.Scope}}'";
    let own = daemon.docker(bridge).await.stdout;
    let others = Daemon::worker().await.docker(bridge).await.stdout;
    assert!(own != others && own.ends_with(" bridge local\n") && own.find(' ') == Some(64), "{own} {others}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_are_removed_but_those_in_use() {
    let daemon = Daemon::manager().await;
    for program in programs() {
        for name in ["one", "used", "two"] {
            run(&daemon, program, &format!("network create -d overlay {name}")).await;
        }
        run(&daemon, program, &format!("{CREATE} --name web --network used whoami:v1")).await;
        daemon.running("web", 1).await;
        let removed = daemon.docker_by(program, "network rm one used two", b"").await;
        assert_eq!((removed.code, removed.stdout.as_str()), (1, "one\ntwo\n"), "{program}: {removed:?}");
        let words = "Error response from daemon: rpc error: code = FailedPrecondition desc = network <id> is in use by \
                     service <id>";
        assert_eq!(mask(&removed.stderr).lines().next(), Some(words), "{program}");
        let left = "network ls --filter driver=overlay --format {{.Name}}";
        assert_eq!(run(&daemon, program, left).await, "ingress\nused", "{program}");
        run(&daemon, program, "service rm web").await;
        daemon.until(|state| state.services().is_empty()).await;
        run(&daemon, program, "network rm used").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_of_a_removed_node_shows_the_nodes_id() {
    let daemon = Daemon::manager().await;
    daemon.prints(&format!("{CREATE} --name web --constraint node.hostname==w2 whoami:v1")).await;
    daemon.running("web", 1).await;
    daemon.prints("node rm --force w2").await;
    for program in programs() {
        let ps = "service ps --filter desired-state=shutdown --format '{{.Node}} {{.CurrentState}}' web";
        let left = daemon.docker_by(program, ps, b"").await.stdout;
        assert!(left.starts_with(&format!("{} Orphaned ", common::world::WORKER_2)), "{program}: {left}");
    }
}

/// What is printed by the program alone, or refused before the daemon hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_own_words() {
    let daemon = Daemon::manager().await;
    let write = |name: &str, text: &str| {
        let path = daemon.path(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let env = write("env.yml", "version: '3'\nservices:\n  web: { image: whoami:v1, env: [A=1] }\n");
    let ports =
        write("ports.yml", "version: '3'\nservices:\n  web: { image: whoami:v1 }\n  ports: ['80:80']\n");
    let bare = write("bare.yml", "services:\n  web: { image: whoami:v1 }\n");
    let old = write("old.yml", "version: '2'\nservices:\n  web: { image: whoami:v1 }\n");
    for program in programs() {
        for (line, words) in [
            ("service create --network app".to_owned(), "requires at least 1 argument"),
            ("service create --args x whoami:v1".to_owned(), "unknown flag: --args"),
            ("service create --log-opts a=b whoami:v1".to_owned(), "unknown flag: --log-opts"),
            ("service create --limits-memory 512mb whoami:v1".to_owned(), "unknown flag: --limits-memory"),
            ("stack deploy --bundle-file x s".to_owned(), "--bundle-file"),
            (format!("stack deploy -c {env} s"), "services.web Additional property env is not allowed"),
            (format!("stack deploy -c {ports} s"), "services.ports must be a mapping"),
            (format!("stack deploy -c {old} s"), "unsupported Compose file version: 2"),
        ] {
            let refused = daemon.docker_by(program, &line, b"").await;
            assert!(refused.code != 0 && refused.stderr.contains(words), "{program} {line}: {refused:?}");
        }
        // The older program wants to know what version a file is of.
        let described = daemon.docker_by(program, &format!("stack config -c {bare}"), b"").await;
        assert!(
            program.starts_with("/usr/bin") || described.stdout.contains("image: whoami:v1"),
            "{described:?}"
        );
        let version = daemon.docker_by(program, "--version", b"").await.stdout;
        assert!(
            version.starts_with("Docker version ") && version.contains(", build "),
            "{program}: {version}"
        );
        let help = daemon.docker_by(program, "service --help", b"").await.stdout;
        for command in ["create", "inspect", "logs", "ls", "ps", "rm", "rollback", "scale", "update"] {
            assert!(help.lines().any(|line| line.starts_with(&format!("  {command} "))), "{program}: {help}");
        }
        let help = daemon.docker_by(program, "stack --help", b"").await.stdout;
        for command in ["deploy", "ls", "ps", "rm", "services"] {
            assert!(help.lines().any(|line| line.starts_with(&format!("  {command} "))), "{program}: {help}");
        }
    }
    assert!(daemon.store.state().services().is_empty());
}
