//! Services, tasks and networks through the real CLI, with the real leader loops.

mod common;

use std::collections::BTreeMap;

use common::Daemon;
use common::cli::programs;
use common::engine::{self, DIGEST};
use control_api::engine::Container;
use control_model::log_driver::LogDriver;
use control_model::spec::RegistryCredentials;
use control_model::{NetworkId, TaskId, Timestamp};
use control_store::ReplicatedStore as _;

const CREATE: &str = "service create -d --no-resolve-image";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_lives_through_all_its_commands() {
    let daemon = Daemon::manager().await;
    for program in programs() {
        let run = async |line: &str| {
            let output = daemon.docker_by(program, line, b"").await;
            assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{program} {line}");
            common::cli::mask(&output.stdout)
        };
        assert_eq!(run("network create -d overlay app").await, "<id>");
        assert_eq!(
            run(&format!("{CREATE} --name web --replicas 3 --network app --publish 8080:80 whoami:v1")).await,
            "<id>"
        );
        daemon.running("web", 3).await;
        assert_eq!(
            run("service ls").await,
            "ID  NAME  MODE  REPLICAS  IMAGE  PORTS\n<id>  web  replicated  3/3  whoami:v1  *:8080->80/tcp"
        );
        assert_eq!(
            run("service ps web").await,
            "ID  NAME  IMAGE  NODE  DESIRED STATE  CURRENT STATE  ERROR  PORTS
<id>  web.1  whoami:v1  m1  Running  Running <age> ago
<id>  web.2  whoami:v1  w1  Running  Running <age> ago
<id>  web.3  whoami:v1  w2  Running  Running <age> ago"
        );
        assert_eq!(run("service inspect --pretty web").await, PRETTY);
        assert_eq!(run("service scale -d web=5").await, "web scaled to 5");
        daemon.running("web", 5).await;
        assert_eq!(run("service update -d --replicas 2 --env-add A=1 web").await, "web");
        daemon.running("web", 2).await;
        assert_eq!(run("service inspect --format '{{json .Spec.TaskTemplate.ContainerSpec.Env}} {{.PreviousSpec.Mode.Replicated.Replicas}}' web").await, r#"["A=1"] 5"#);
        // Docker's own CLI knows no delay for a rollback but the rollback's.
        let both = daemon.docker_by(program, "service update --rollback --update-delay 0s web", b"").await;
        assert_eq!(both.stderr.trim_end(), "other flags may not be combined with --rollback", "{program}");
        assert_eq!(run("service rollback -d web").await, "web");
        daemon.running("web", 5).await;
        assert_eq!(
            run("service inspect --format '{{json .Spec.TaskTemplate.ContainerSpec.Env}}' web").await,
            "null"
        );
        assert_eq!(
            run("node ps w1 --format '{{.Name}} {{.DesiredState}}' --filter desired-state=running")
                .await
                .lines()
                .count(),
            2
        );
        assert_eq!(run("service rm web").await, "web");
        assert_eq!(run("service ls -q").await, "");
        assert_eq!(run("network rm app").await, "app");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_number_of_another_protocol_is_another_port() {
    let daemon = Daemon::manager().await;
    let sctp = "published=9999,target=7,protocol=sctp";
    daemon.prints(&format!("{CREATE} --name echo -p {sctp} whoami:v1")).await;
    daemon.prints(&format!("{CREATE} --name web -p 9999:80 -p 9999:53/udp whoami:v1")).await;

    let refused = daemon.refuses(&format!("{CREATE} --name other -p 9999:9/sctp whoami:v1")).await;
    assert!(refused.contains("port '9999' is already in use by service 'echo'"), "{refused}");

    daemon.running("echo", 1).await;
    daemon.running("web", 1).await;
    assert_eq!(
        daemon.prints("service ls --format '{{.Name}} {{.Ports}}'").await,
        "echo *:9999->7/sctp\nweb *:9999->80/tcp, *:9999->53/udp"
    );
    let pretty = daemon.prints("service inspect --pretty echo").await;
    let ports = "Ports:\n PublishedPort = 9999\n  Protocol = sctp\n  TargetPort = 7\n  PublishMode = ingress";
    assert!(pretty.contains(ports), "{pretty}");
    assert_eq!(daemon.prints("service rm echo web").await, "echo\nweb");
}

const PRETTY: &str = "
ID:\t\t<id>
Name:\t\tweb
Service Mode:\tReplicated
 Replicas:\t3
Placement:
UpdateConfig:
 Parallelism:\t1
 On failure:\tpause
 Monitoring Period: 5s
 Max failure ratio: 0
 Update order:  stop-first
RollbackConfig:
 Parallelism:\t1
 On failure:\tpause
 Monitoring Period: 5s
 Max failure ratio: 0
 Rollback order:  stop-first
ContainerSpec:
 Image:\t\twhoami:v1
 Init:\t\tfalse
Resources:
Networks: app
Endpoint Mode:\tvip
Ports:
 PublishedPort = 8080
  Protocol = tcp
  TargetPort = 80
  PublishMode = ingress
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_bars_converge() {
    let daemon = Daemon::manager().await;
    let create = "service create --no-resolve-image --name web --replicas 2 --update-monitor 1s whoami:v1";
    assert_eq!(
        condensed(&daemon.prints(create).await),
        "<id>
overall progress: 0 out of 2 tasks
1/2:
2/2:
overall progress: 2 out of 2 tasks
verify: Waiting 1 seconds to verify that tasks are stable...
verify: Service <id> converged"
    );
    let update = condensed(&daemon.prints("service update --no-resolve-image --image whoami:v2 web").await);
    assert!(update.starts_with("web\noverall progress: 0 out of 2 tasks\n1/2:\n2/2:\n"), "{update}");
    assert!(update.ends_with("\noverall progress: 2 out of 2 tasks\nverify: Waiting 1 seconds to verify that tasks are stable...\nverify: Service web converged"), "{update}");
    assert_eq!(
        daemon.prints("service ps --format '{{.Name}} {{.Image}} {{.DesiredState}}' web").await,
        "web.1 whoami:v2 Running\nweb.1 whoami:v1 Shutdown\nweb.2 whoami:v2 Running\nweb.2 whoami:v1 Shutdown"
    );
    let status = daemon
        .prints("service inspect --format '{{.UpdateStatus.State}}: {{.UpdateStatus.Message}}' web")
        .await;
    assert_eq!(status, "completed: update completed");
    let rollback = condensed(&daemon.prints("service rollback web").await);
    assert!(
        rollback.starts_with(
            "web\nrollback: manually requested rollback\noverall progress: rolling back update: "
        ),
        "{rollback}"
    );
    assert!(rollback.ends_with("verify: Service web converged"), "{rollback}");
}

/// Each line where it comes first, without the counts half way: when the CLI asks depends on the machine.
fn condensed(text: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        let half_way = line.ends_with("1 out of 2 tasks");
        if !line.is_empty() && !half_way && !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_nowhere_is_said_per_task() {
    let daemon = Daemon::manager().await;
    daemon.prints(&format!("{CREATE} --name ghost --restart-delay 10m missing:1")).await;
    let state = daemon
        .until(|state| {
            state.tasks().iter().any(|task| task.status.state == control_model::TaskState::Rejected)
        })
        .await;
    assert_eq!(state.services().len(), 1);
    let shown = daemon
        .prints("service ps --no-trunc --filter desired-state=shutdown --format '{{.Name}} {{.Error}}' ghost")
        .await;
    assert_eq!(shown, "ghost.1 \"No such image: missing:1\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_with_a_digest_is_pinned_and_one_without_is_warned_of() {
    let daemon = Daemon::manager().await;
    daemon.prints("service create -d --name a pinned:1").await;
    assert_eq!(
        daemon.prints("service inspect --format '{{.Spec.TaskTemplate.ContainerSpec.Image}} {{json .Spec.TaskTemplate.Placement}}' a").await,
        format!("pinned:1@{DIGEST} {}", r#"{"Platforms":[{"Architecture":"amd64","OS":"linux"}]}"#)
    );
    let output = daemon.docker("service create -d --name b whoami:v1").await;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(
        output.stderr,
        "image whoami:v1 could not be accessed on a registry to record
its digest. Each node will access whoami:v1 independently,
possibly leading to different nodes running different
versions of the image.

"
    );
}

/// They go with the service to the nodes, last as long as nobody gives others, and are shown to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_a_service_is_at_its_registry_goes_with_it() {
    for program in programs() {
        let daemon = Daemon::manager().await;
        let config = daemon.path("config");
        std::fs::create_dir_all(&config).expect("made");
        // `user:open sesame`, as `docker login` keeps it.
        let login = r#"{"auths": {"registry.example:5000": {"auth": "dXNlcjpvcGVuIHNlc2FtZQ=="}}}"#;
        std::fs::write(config.join("config.json"), login).expect("written");
        let run = async |line: &str| {
            let output = daemon.docker_by(program, line, b"").await;
            assert_eq!(output.code, 0, "{program} {line}: {output:?}");
            output.stdout
        };
        let registry = || {
            let state = daemon.store.state();
            state.service_by_name("web").expect("made").spec.task.container.registry.clone()
        };
        let expected = RegistryCredentials {
            username: "user".into(),
            password: "open sesame".into(),
            ..RegistryCredentials::default()
        };
        let image = "registry.example:5000/web:1";
        run(&format!("service create -d --no-resolve-image --with-registry-auth --name web {image}")).await;
        assert_eq!(registry(), Some(expected.clone()), "{program}");
        let tasks = || {
            let state = daemon.store.state();
            let id = state.service_by_name("web").expect("made").id;
            state.tasks_of_service(id).map(|task| task.id).collect::<Vec<_>>()
        };
        daemon.running("web", 1).await;
        let ran = tasks();
        let shown = run("service inspect web").await;
        assert!(!shown.contains("sesame") && !shown.contains("user"), "{shown}");
        // What the client does not say again stays; a password is no reason to begin anew.
        run("service update -d --label-add a=b web").await;
        assert_eq!(registry(), Some(expected), "{program}");
        std::fs::write(config.join("config.json"), login.replace("dXNlcjpvcGVuIHNlc2FtZQ==", "dXNlcjpuZXc="))
            .expect("written");
        run("service update -d --no-resolve-image --with-registry-auth web").await;
        assert_eq!(registry().map(|one| one.password), Some("new".into()), "{program}");
        assert_eq!(tasks(), ran, "{program}");
        // As it was before.
        run("service update -d --rollback web").await;
        assert_eq!(registry().map(|one| one.password), Some("open sesame".into()), "{program}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_says_where_its_output_goes() {
    for program in programs() {
        let daemon = Daemon::manager().await;
        let run = async |line: &str| daemon.docker_by(program, line, b"").await;
        let create = "service create -d --no-resolve-image --log-driver syslog --log-opt tag={{.Name}} \
                      --log-opt syslog-address=udp://logs:514 --constraint node.hostname==m1 --name web whoami:v1";
        let output = run(create).await;
        assert_eq!(output.code, 0, "{program}: {output:?}");
        let shown = run("service inspect --format '{{json .Spec.TaskTemplate.LogDriver}}' web").await.stdout;
        let expected = r#"{"Name":"syslog","Options":{"syslog-address":"udp://logs:514","tag":"{{.Name}}"}}"#;
        assert_eq!(shown.trim_end(), expected, "{program}");
        daemon.running("web", 1).await;
        let task = daemon.store.state().tasks().iter().next().expect("made").clone();
        daemon.engine.containers.lock().expect("no panic").push(engine::container(&task));
        let config =
            run(&format!("inspect --format '{{{{json .HostConfig.LogConfig}}}}' {}", task.name())).await;
        let expected = r#"{"Type":"syslog","Config":{"syslog-address":"udp://logs:514","tag":"{{.Name}}"}}"#;
        assert_eq!(config.stdout.trim_end(), expected, "{program}: {config:?}");
        // Another one makes other tasks.
        run("service update -d --no-resolve-image --log-driver json-file --log-opt max-size=10m web").await;
        daemon
            .until(|state| {
                state
                    .tasks()
                    .iter()
                    .any(|task| task.spec.log_driver.as_ref().is_some_and(|one| one.name == "json-file"))
            })
            .await;
        for (flags, words) in [
            ("--log-driver splunk", "logger: no log driver named 'splunk' is registered"),
            (
                "--log-driver json-file --log-opt labels=a",
                "unknown log opt 'labels' for json-file log driver",
            ),
            (
                "--log-driver syslog --log-opt syslog-address=logs",
                "invalid value for log opt syslog-address: \"logs\": it has no protocol",
            ),
        ] {
            let output =
                run(&format!("service create -d --no-resolve-image {flags} --name bad whoami:v1")).await;
            assert!(output.code != 0 && output.stderr.contains(words), "{program}: {output:?}");
        }
        let info = run("info --format '{{.LoggingDriver}} {{.Plugins.Log}}'").await.stdout;
        assert_eq!(info.trim_end(), "json-file [gelf journald json-file local none syslog]", "{program}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_global_service_runs_on_every_node() {
    let daemon = Daemon::manager().await;
    daemon
        .prints(&format!(
            "{CREATE} --name all --mode global --publish published=9000,target=80,mode=host whoami:v1"
        ))
        .await;
    daemon.running("all", 3).await;
    assert_eq!(
        daemon.prints("service ls").await,
        "ID  NAME  MODE  REPLICAS  IMAGE  PORTS\n<id>  all  global  3/3  whoami:v1"
    );
    assert_eq!(
        daemon.prints("service ps all").await,
        "ID  NAME  IMAGE  NODE  DESIRED STATE  CURRENT STATE  ERROR  PORTS
<id>  all.<id>  whoami:v1  m1  Running  Running <age> ago  *:9000->80/tcp
<id>  all.<id>  whoami:v1  w1  Running  Running <age> ago  *:9000->80/tcp
<id>  all.<id>  whoami:v1  w2  Running  Running <age> ago  *:9000->80/tcp"
    );
    assert_eq!(
        daemon.refuses("service scale all=5").await,
        "all: scale can only be used with replicated or replicated-job mode"
    );
    assert_eq!(
        daemon.refuses("service update --replicas 1 all").await,
        "replicas can only be used with replicated mode"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_are_listed_inspected_and_removed() {
    let daemon = Daemon::manager().await;
    daemon.prints("network create -d overlay --subnet 192.168.7.0/24 --gateway 192.168.7.9 --ip-range 192.168.7.128/25 --internal --attachable --label team=x --opt com.docker.network.driver.mtu=1400 app").await;
    assert_eq!(
        daemon.prints("network ls").await,
        "NETWORK ID  NAME  DRIVER  SCOPE
<id>  app  overlay  swarm
<id>  docker_gwbridge  bridge  local
<id>  ingress  overlay  swarm"
    );
    assert_eq!(
        daemon.prints("network ls --filter driver=overlay --filter label=team=x --format {{.Name}}").await,
        "app"
    );
    daemon.until(|state| state.network_by_name("app").is_some_and(|network| network.state.is_some())).await;
    let shown: serde_json::Value =
        serde_json::from_str(&daemon.docker("network inspect app").await.stdout).expect("JSON");
    let mut shown = shown[0].clone();
    for varying in ["Id", "Created"] {
        assert!(shown[varying].take().is_string());
    }
    assert_eq!(
        shown,
        serde_json::json!({
            "Name": "app", "Id": null, "Created": null, "Scope": "swarm", "Driver": "overlay",
            "EnableIPv4": true, "EnableIPv6": false,
            "IPAM": {
                "Driver": "default", "Options": null,
                "Config": [{"Subnet": "192.168.7.0/24", "IPRange": "192.168.7.128/25", "Gateway": "192.168.7.9"}]
            },
            "Internal": true, "Attachable": true, "Ingress": false,
            "ConfigFrom": {"Network": ""}, "ConfigOnly": false, "Containers": null,
            "Options": {
                "com.docker.network.driver.mtu": "1400",
                "com.docker.network.driver.overlay.vxlanid_list": "4097"
            },
            "Labels": {"team": "x"}
        })
    );
    let ingress = daemon.prints("network inspect --format '{{.Ingress}} {{(index .IPAM.Config 0).Subnet}} {{index .Options \"com.docker.network.driver.overlay.vxlanid_list\"}} {{range .Peers}}{{.IP}} {{end}}' ingress").await;
    assert_eq!(ingress.trim_end(), "true 10.0.0.0/24 4096 198.18.0.11 198.18.0.12 198.18.0.13");
    assert_eq!(daemon.prints("network rm app").await, "app");
    assert!(daemon.refuses("network inspect app").await.contains("network app not found"));
}

/// Of a task, `web.1.x`.
fn container(task: TaskId) -> Container {
    Container {
        id: "c".repeat(64),
        name: "web.1.x".into(),
        task,
        own: None,
        image: "whoami:v1".into(),
        image_id: DIGEST.into(),
        command: vec!["/whoami".into()],
        env: vec!["A=b".into()],
        user: "web".into(),
        working_dir: "/srv".into(),
        hostname: "web".into(),
        tty: false,
        log: LogDriver::default(),
        host_ports: Vec::new(),
        exposed_ports: Vec::new(),
        mounts: Vec::new(),
        labels: BTreeMap::new(),
        created: Timestamp(0),
        started: Some(Timestamp(0)),
        finished: None,
        running: true,
        pid: 77,
        exit_code: 0,
        out_of_memory: false,
        health: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_shows_both_its_families() {
    let daemon = Daemon::manager().await;
    let create = "network create -d overlay --ipv6";
    daemon
        .prints(&format!(
            "{create} --subnet 10.88.0.0/24 --subnet 2001:db8:88::/64 --gateway 10.88.0.7 --gateway 2001:db8:88::7 given"
        ))
        .await;
    daemon.prints(&format!("{create} own")).await;
    daemon.until(|state| state.networks().iter().all(|network| network.state.is_some())).await;
    let of_network = "network inspect --format '{{.EnableIPv4}} {{.EnableIPv6}} {{range .IPAM.Config}}{{.Subnet}} via {{.Gateway}}, {{end}}'";
    assert_eq!(
        daemon.docker(&format!("{of_network} given")).await.stdout.trim(),
        "true true 10.88.0.0/24 via 10.88.0.7, 2001:db8:88::/64 via 2001:db8:88::7,"
    );
    assert_eq!(
        daemon.docker(&format!("{of_network} own")).await.stdout.trim(),
        "true true 10.0.1.0/24 via 10.0.1.1, fd44:4444:4444:1002::/64 via fd44:4444:4444:1002::1,"
    );
    // Nobody asked for the routing mesh's.
    assert_eq!(
        daemon.docker(&format!("{of_network} ingress")).await.stdout.trim(),
        "true false 10.0.0.0/24 via 10.0.0.1,"
    );
    assert_eq!(
        daemon.prints("network ls --filter driver=overlay --format '{{.Name}} {{.IPv6}}'").await,
        "given true\ningress false\nown true"
    );

    daemon.prints(&format!("{CREATE} --name web --network given --publish 8080:80 whoami:v1")).await;
    daemon.running("web", 1).await;
    let task = daemon.docker("service ps -q --no-trunc web").await.stdout.trim().to_owned();
    let of_task = "inspect --type task --format '{{range .NetworksAttachments}}{{.Network.Spec.Name}} {{json .Addresses}} {{end}}'";
    assert_eq!(
        daemon.docker(&format!("{of_task} {task}")).await.stdout.trim(),
        r#"ingress ["10.0.0.3/24"] given ["10.88.0.9/24","2001:db8:88::9/64"]"#
    );
    let of_service = "service inspect --format '{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}' web";
    assert_eq!(daemon.docker(of_service).await.stdout.trim(), "10.0.0.2/24 10.88.0.8/24");

    let id = task.parse().expect("a task's id");
    *daemon.engine.containers.lock().expect("no panic") = vec![container(id)];
    let of_container = "inspect --format '{{with .NetworkSettings.Networks.given}}{{.IPAddress}}/{{.IPPrefixLen}} {{.GlobalIPv6Address}}/{{.GlobalIPv6PrefixLen}} {{.IPv6Gateway}}{{end}}' web.1.x";
    assert_eq!(
        daemon.docker(of_container).await.stdout.trim(),
        "10.88.0.9/24 2001:db8:88::9/64 2001:db8:88::7"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_free_again_when_its_service_is_gone() {
    let daemon = Daemon::manager().await;
    daemon.prints(&format!("{CREATE} --name web --publish 8080:80 whoami:v1")).await;
    daemon.running("web", 1).await;
    daemon.prints("service rm web").await;
    // The old one is still leaving; this waits for it.
    daemon.prints(&format!("{CREATE} --name web --publish 8080:80 whoami:v2")).await;
    daemon.running("web", 1).await;
    assert_eq!(
        daemon.prints("service ls --format '{{.Image}} {{.Ports}}'").await,
        "whoami:v2 *:8080->80/tcp"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_shows_the_networks_of_its_tasks() {
    let worker = Daemon::worker().await;
    assert_eq!(worker.prints("network ls --format {{.Name}}").await, "docker_gwbridge");
    let mut ingress = worker.store.state().ingress_network().expect("the world has one").as_ref().clone();
    ingress.id = NetworkId::from_bits(76);
    let mut app = ingress.clone();
    app.id = NetworkId::from_bits(77);
    app.spec.name = "app".into();
    app.spec.ingress = false;
    let app_id = app.id.to_string();
    *worker.node.networks.lock().expect("not poisoned") = vec![ingress, app].into();
    assert_eq!(
        worker
            .prints("network ls --filter driver=overlay --format '{{.ID}} {{.Name}} {{.Driver}} {{.Scope}}'")
            .await,
        "<id> app overlay swarm\n<id> ingress overlay swarm"
    );
    for term in ["app", app_id.as_str()] {
        let shown =
            worker.docker(&format!("network inspect --format '{{{{.Id}}}} {{{{.Ingress}}}}' {term}")).await;
        assert_eq!(shown.stdout.trim(), format!("{app_id} false"));
    }
    // Both ids begin with zeros: which one is meant is not clear.
    assert!(worker.refuses("network inspect 0").await.contains("network 0 not found"));
    assert!(worker.refuses("network inspect other").await.contains("network other not found"));
}
