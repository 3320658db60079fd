//! Images and containers of a node through the real CLI.

mod common;

use common::Daemon;
use common::cli::programs;
use common::engine::DIGEST;
use control_api::engine::{Container, Health, HealthProbe};
use control_model::log_driver::LogDriver;
use control_model::object::HealthStatus;
use control_model::spec::{PortConfig, Protocol, PublishMode};
use control_model::{TaskId, Timestamp};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_come_and_go() {
    let daemon = Daemon::alone().await;
    assert_eq!(
        daemon.prints("images --format '{{.Repository}} {{.Tag}} {{.ID}} {{.Size}}'").await,
        "whoami v1 <id> 1.23MB"
    );
    assert_eq!(
        daemon
            .prints("image inspect --format '{{.Os}}/{{.Architecture}} {{json .RepoTags}}' whoami:v1")
            .await,
        r#"linux/amd64 ["whoami:v1"]"#
    );
    assert_eq!(
        daemon.prints("pull nginx").await,
        format!(
            "Using default tag: latest
latest: Pulling from library/nginx
Copying blob dddd
Digest: {DIGEST}
Status: Downloaded newer image for nginx:latest
docker.io/library/nginx:latest"
        )
    );
    let loaded = daemon.docker_with_input("load", b"an archive").await;
    assert_eq!((loaded.code, loaded.stdout.as_str()), (0, "Loaded image: loaded:v1\n"));
    let imported = daemon
        .docker_with_input("import --change 'CMD [\"/whoami\"]' - whoami:v2", b"a root file system")
        .await;
    assert_eq!((imported.code, imported.stdout), (0, format!("sha256:{:064x}\n", 0x123)));
    assert_eq!(daemon.prints("tag whoami:v2 whoami:v3").await, "");
    assert_eq!(daemon.prints("images --format {{.Tag}} whoami").await, "v2\nv3\nv1");
    assert_eq!(
        daemon.prints("rmi whoami:v2").await,
        "Untagged: whoami:v2\nUntagged: whoami:v3\nDeleted: sha256:<id>"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_are_nowhere_are_said_so() {
    let daemon = Daemon::alone().await;
    assert_eq!(
        daemon.refuses("pull missing:1").await,
        "Error response from daemon: manifest for missing:1 not found: manifest unknown: manifest unknown"
    );
    // Half way: what was said stays said, the error comes last.
    let broken = daemon.docker("pull broken:1").await;
    assert_ne!(broken.code, 0);
    assert_eq!(
        (broken.stdout.as_str(), broken.stderr.as_str()),
        ("1: Pulling from library/broken\nCopying blob dddd\n", "unexpected EOF\n")
    );
    assert_eq!(daemon.error("GET", "/images/none/json", "").await, (404, "No such image: none".into()));
    assert_eq!(daemon.error("DELETE", "/images/none", "").await, (404, "No such image: none".into()));
    assert_eq!(
        daemon.error("POST", "/images/none/tag?repo=x&tag=1", "").await,
        (404, "No such image: none".into())
    );
    assert_eq!(
        daemon.error("POST", "/images/whoami:v1/tag?repo=A+b", "").await,
        (400, "invalid reference format".into())
    );
    assert_eq!(
        daemon.error("POST", "/images/create?fromImage=A+b", "").await,
        (400, "invalid reference format".into())
    );
    assert_eq!(
        daemon.error("GET", "/distribution/whoami:v1/json", "").await,
        (404, "manifest for whoami:v1 not found".into())
    );
    let load = daemon.docker_with_input("load", b"no archive").await;
    assert_eq!((load.code, load.stderr.as_str()), (1, "Error response from daemon: invalid tar header\n"));
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp(control_manager::clock::now().0 - seconds * 1_000_000_000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_looked_into_and_leaves_its_node() {
    for program in programs() {
        let daemon = Daemon::alone().await;
        let run = async |line: &str| daemon.docker_by(program, line, b"").await;
        let history = run("history --no-trunc --format '{{.ID}}|{{.CreatedBy}}|{{.Size}}' whoami:v1").await;
        let expected = format!("sha256:{:064x}|CMD /whoami|0B\n<missing>|COPY whoami /|1.23MB\n", 0xabc);
        assert_eq!(history.stdout, expected, "{program}: {history:?}");
        let saved = run("save whoami:v1").await;
        assert_eq!(saved.stdout, "whoami:v1", "{program}: {saved:?}");
        let missing = run("save nothing").await;
        assert!(missing.stderr.contains("No such image: nothing"), "{program}: {missing:?}");

        // Nobody, a stranger, and who is known.
        run("tag whoami:v1 registry.example/whoami:v1").await;
        let denied = run("push registry.example/whoami:v1").await;
        let words = "denied: requested access to the resource is denied";
        assert!(denied.code != 0 && denied.stderr.contains(words), "{program}: {denied:?}");
        let login = "login -u user --password-stdin registry.example";
        let stranger = daemon.docker_by(program, login, b"open").await;
        assert!(stranger.code != 0 && stranger.stderr.contains("unauthorized"), "{program}: {stranger:?}");
        let known = daemon.docker_by(program, login, b"open sesame").await;
        assert!(known.code == 0 && known.stdout.contains("Login Succeeded"), "{program}: {known:?}");
        let pushed = run("push registry.example/whoami:v1").await;
        let said: Vec<&str> = pushed.stdout.lines().collect();
        let expected = [
            "The push refers to repository [registry.example/whoami]",
            "Copying registry.example/whoami:v1",
            &format!("v1: digest: {DIGEST} size: 528"),
        ];
        assert_eq!(said, expected, "{program}: {pushed:?}");
    }
}

fn running_container() -> Container {
    Container {
        id: format!("{:064x}", 0xabc),
        name: "web.1.x".into(),
        task: TaskId::from_bits(1),
        own: None,
        image: "whoami:v1".into(),
        image_id: DIGEST.into(),
        command: vec!["/whoami".into(), "-m".into(), "a b".into()],
        env: Vec::new(),
        user: String::new(),
        working_dir: "/".into(),
        hostname: "web-1".into(),
        tty: false,
        log: LogDriver::default(),
        host_ports: vec![PortConfig::new(Protocol::Tcp, 80, 8080, PublishMode::Host)],
        exposed_ports: vec!["80/tcp".into(), "53/udp".into()],
        mounts: Vec::new(),
        labels: [("com.docker.swarm.service.name".to_owned(), "web".to_owned())].into(),
        created: ago(130),
        started: Some(ago(125)),
        finished: None,
        running: true,
        pid: 77,
        exit_code: 0,
        out_of_memory: false,
        health: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_health_of_containers_is_shown() {
    let daemon = Daemon::worker().await;
    let probe = HealthProbe { start: ago(3), end: ago(2), exit_code: 1, output: "no answer".into() };
    let checked = Container {
        id: "d".repeat(64),
        name: "api.1.z".into(),
        health: Some(Health { status: HealthStatus::Healthy, failing_streak: 1, log: vec![probe] }),
        ..running_container()
    };
    *daemon.engine.containers.lock().expect("no panic") = vec![running_container(), checked];
    assert_eq!(
        daemon.docker("ps --filter health=healthy --format '{{.Names}} {{.Status}}'").await.stdout,
        "api.1.z Up 2 minutes (healthy)\n"
    );
    assert_eq!(daemon.prints("ps --filter health=none --format {{.Names}}").await, "web.1.x");
    let health = "{{with .State.Health}}{{.Status}} {{.FailingStreak}} {{(index .Log 0).Output}}{{end}}";
    assert_eq!(
        daemon.docker(&format!("inspect --format '{health}' api.1.z")).await.stdout,
        "healthy 1 no answer\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_tasks_are_shown() {
    let daemon = Daemon::worker().await;
    let running = running_container();
    let ended = Container {
        id: "e".repeat(64),
        name: "web.2.y".into(),
        created: ago(10_000),
        started: Some(ago(9_000)),
        finished: Some(ago(7_200)),
        running: false,
        exit_code: 137,
        ..running.clone()
    };
    *daemon.engine.containers.lock().expect("no panic") = vec![running, ended];
    let format = "--format '{{.ID}} {{.Image}} {{.Command}} {{.Status}} {{.Ports}} {{.Names}}' --no-trunc";
    assert_eq!(
        daemon.docker(&format!("ps {format}")).await.stdout,
        format!(
            "{:064x} whoami:v1 \"/whoami -m 'a b'\" Up 2 minutes 53/udp, 0.0.0.0:8080->80/tcp web.1.x\n",
            0xabc
        )
    );
    assert_eq!(
        daemon.docker(&format!("ps -a --filter status=exited {format}")).await.stdout,
        format!("{} whoami:v1 \"/whoami -m 'a b'\" Exited (137) 2 hours ago  web.2.y\n", "e".repeat(64))
    );
    let shown = daemon
        .prints(
            "inspect --format '{{.State.Status}} {{.State.Pid}} {{.Path}} {{json .Args}} {{.Name}} {{.Config.Hostname}}' web.1.x",
        )
        .await;
    assert_eq!(shown, r#"running 77 /whoami ["-m","a b"] /web.1.x web-1"#);
    assert_eq!(daemon.prints("port web.1.x").await, "80/tcp -> 0.0.0.0:8080");
    assert_eq!(daemon.prints("ps -l --format {{.Names}}").await, "web.1.x");
    assert_eq!(daemon.prints("ps -n 2 --format {{.Names}}").await, "web.1.x\nweb.2.y");
    let sizes = (501, "the size of containers is not supported by this daemon".to_owned());
    assert_eq!(daemon.error("GET", "/containers/json?size=1", "").await, sizes);
    assert_eq!(daemon.error("GET", "/containers/web.1.x/json?size=1", "").await, sizes);
    assert_eq!(
        daemon.error("GET", "/containers/json?filters=%7B%22status%22:[%22up%22]%7D", "").await,
        (400, "invalid filter 'status=up'".into())
    );
    assert_eq!(
        daemon.error("GET", "/containers/json?limit=x", "").await,
        (400, "strconv.Atoi: parsing \"x\": invalid syntax".into())
    );
    assert_eq!(
        daemon.error("GET", "/containers/none/json", "").await,
        (404, "No such container: none".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inspect_goes_through_all_kinds() {
    let daemon = Daemon::manager().await;
    daemon.prints("service create -d --no-resolve-image --name web whoami:v1").await;
    assert_eq!(daemon.prints("inspect --format {{.Spec.Name}} web").await, "web");
    assert_eq!(daemon.prints("inspect --format {{.Description.Hostname}} w1").await, "w1");
    assert_eq!(daemon.prints("inspect --format {{.Ingress}} ingress").await, "true");
    assert_eq!(daemon.refuses("inspect nothing").await, "Error: No such object: nothing");
}
