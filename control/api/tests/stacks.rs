//! `docker stack` through the real CLI: compose files become networks, secrets, configs and services.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::Daemon;
use common::cli::programs;
use control_model::{Service, TaskId};
use control_store::ReplicatedStore as _;
use serde_json::{Value, from_str, json};

/// Writes a file where the CLI finds it; gives its path.
fn written(daemon: &Daemon, name: &str, text: &str) -> String {
    let path = daemon.path(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

/// What the CLI prints; order is its own.
async fn sorted(daemon: &Daemon, program: &str, line: &str) -> Vec<String> {
    let output = daemon.docker_by(program, line, b"").await;
    assert_eq!(output.code, 0, "{program} {line}: {output:?}");
    let mut lines: Vec<String> = output.stdout.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

fn deploy(program: &str, options: &str, file: &str, stack: &str) -> String {
    // Debian's program has no `--detach`, and waits for nothing.
    let detach = if program.starts_with("/usr/bin") { "" } else { "--detach=true" };
    format!("stack deploy {detach} --resolve-image never {options} -c {file} {stack}")
}

/// What the program says, which one on its standard output and the other on its standard error.
async fn removed(daemon: &Daemon, program: &str, stack: &str) -> String {
    let output = daemon.docker_by(program, &format!("stack rm {stack}"), b"").await;
    assert_eq!(output.code, 0, "{program}: {output:?}");
    output.stdout + &output.stderr
}

/// Those that users see: what is removed stays until its tasks are.
fn services(daemon: &Daemon) -> BTreeMap<String, Arc<Service>> {
    let state = daemon.store.state();
    let seen = state.services().iter().filter(|service| !service.pending_delete);
    seen.map(|service| (service.spec.name.clone(), service.clone())).collect()
}

/// The tasks that are to run, by service.
fn tasks(daemon: &Daemon) -> BTreeMap<String, Vec<TaskId>> {
    let state = daemon.store.state();
    let mut all: BTreeMap<String, Vec<TaskId>> = BTreeMap::new();
    for task in state.tasks().iter().filter(|task| task.desired_state <= control_model::TaskState::Running) {
        all.entry(task.service_name.clone()).or_default().push(task.id);
    }
    all
}

async fn spec(daemon: &Daemon, service: &str, path: &str) -> Value {
    let output =
        daemon.docker(&format!("service inspect {service} --format '{{{{json .Spec{path}}}}}'")).await;
    from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

const VOTING: [(&str, usize); 6] = [
    ("app_db", 1),
    ("app_redis", 1),
    ("app_result", 1),
    ("app_visualizer", 1),
    ("app_vote", 2),
    ("app_worker", 1),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_voting_app_is_deployed_looked_at_changed_and_removed() {
    for program in programs() {
        let daemon = Daemon::manager().await;
        let file = written(&daemon, "voting.yml", include_str!("stacks/voting.yml"));
        let said = sorted(&daemon, program, &deploy(program, "", &file, "app")).await;
        let mut expected: Vec<String> =
            ["backend", "default", "frontend"].map(|name| format!("Creating network app_{name}")).into();
        expected.extend(VOTING.map(|(name, _)| format!("Creating service {name}")));
        assert_eq!(said, expected, "{program}");
        for (name, n_tasks) in VOTING {
            daemon.running(name, n_tasks).await;
        }
        let listed = sorted(&daemon, program, "stack ls").await;
        assert!(listed.iter().any(|line| line.split_whitespace().take(2).eq(["app", "6"])), "{listed:?}");
        let names = sorted(&daemon, program, "stack services app --format '{{.Name}} {{.Replicas}}'").await;
        let mut expected: Vec<String> =
            VOTING.iter().map(|(name, n_tasks)| format!("{name} {n_tasks}/{n_tasks}")).collect();
        expected[2] = "app_result 1/1 (max 1 per node)".into();
        assert_eq!(names, expected, "{program}");
        let two = "stack services --filter name=app_vote --filter name=app_db app --format {{.Name}}";
        assert_eq!(sorted(&daemon, program, two).await, ["app_db", "app_vote"]);
        let one = "stack ps -f name=app_vote.1 -f desired-state=running app --format {{.Name}}";
        assert_eq!(sorted(&daemon, program, one).await, ["app_vote.1"]);
        assert_eq!(sorted(&daemon, program, "stack ps -q app").await.len(), 7);

        // What is the same stays; what is new is made, and what is gone goes if that is asked for.
        let (before, ran) = (services(&daemon), tasks(&daemon));
        let text = include_str!("stacks/voting.yml");
        let changed =
            text.replace("voting/vote:before", "voting/vote:after").replace("  worker:", "  toiler:");
        let file = written(&daemon, "changed.yml", &changed);
        let said = sorted(&daemon, program, &deploy(program, "--prune", &file, "app")).await;
        assert!(said.contains(&"Creating service app_toiler".to_owned()), "{said:?}");
        assert!(said.contains(&"Removing service app_worker".to_owned()), "{said:?}");
        daemon.running("app_toiler", 1).await;
        let (after, run) = (services(&daemon), tasks(&daemon));
        assert!(!after.contains_key("app_worker"));
        for (name, _) in VOTING.iter().filter(|(name, _)| !["app_vote", "app_worker"].contains(name)) {
            assert_eq!(after[*name].spec, before[*name].spec, "{program}");
            assert_eq!(run[*name], ran[*name], "{program}: {name} runs on");
        }
        assert_eq!(after["app_vote"].spec.task.container.image, "voting/vote:after");

        let said = removed(&daemon, program, "app").await;
        assert_eq!(
            said.lines().filter(|line| line.starts_with("Removing service app_")).count(),
            6,
            "{said}"
        );
        assert_eq!(
            said.lines().filter(|line| line.starts_with("Removing network app_")).count(),
            3,
            "{said}"
        );
        assert!(services(&daemon).is_empty());
        let empty = daemon.docker_by(program, "stack services app", b"").await;
        assert!(empty.stderr.contains("Nothing found in stack: app"), "{empty:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_compose_file_says_is_in_the_services() {
    let daemon = Daemon::manager().await;
    let program = programs()[0];
    let file = written(&daemon, "voting.yml", include_str!("stacks/voting.yml"));
    sorted(&daemon, program, &deploy(program, "", &file, "app")).await;
    assert_eq!(
        spec(&daemon, "app_worker", ".TaskTemplate.RestartPolicy").await,
        json!({ "Condition": "on-failure", "Delay": 10_000_000_000_u64, "MaxAttempts": 3,
                "Window": 120_000_000_000_u64 })
    );
    assert_eq!(spec(&daemon, "app_worker", ".Labels.APP").await, "VOTING");
    assert_eq!(
        spec(&daemon, "app_worker", ".TaskTemplate.Placement.Constraints").await,
        json!(["node.role==manager"])
    );
    assert_eq!(spec(&daemon, "app_redis", ".UpdateConfig.Delay").await, 10_000_000_000_u64);
    assert_eq!(
        spec(&daemon, "app_visualizer", ".TaskTemplate.ContainerSpec.StopGracePeriod").await,
        90_000_000_000_u64
    );
    let mounts = spec(&daemon, "app_visualizer", ".TaskTemplate.ContainerSpec.Mounts").await;
    assert_eq!((&mounts[0]["Type"], &mounts[0]["Source"]), (&json!("bind"), &json!("/var/run/docker.sock")));
    let mounts = spec(&daemon, "app_db", ".TaskTemplate.ContainerSpec.Mounts").await;
    assert_eq!((&mounts[0]["Type"], &mounts[0]["Source"]), (&json!("volume"), &json!("app_db-data")));
    let labels = json!({ "com.docker.stack.namespace": "app" });
    assert_eq!(mounts[0]["VolumeOptions"]["Labels"], labels, "the volume is the stack's");
    // Quotes in a list are a part of the value.
    let env = spec(&daemon, "app_db", ".TaskTemplate.ContainerSpec.Env").await;
    assert_eq!(env, json!(["POSTGRES_PASSWORD=\"postgres\"", "POSTGRES_USER=postgres"]));
    // A port without another gets one that is free.
    let port = daemon.docker("service inspect app_redis --format '{{json .Endpoint.Ports}}'").await.stdout;
    let ports: Value = from_str(&port).expect("JSON");
    assert_eq!((&ports[0]["TargetPort"], &ports[0]["PublishedPort"]), (&json!(6379), &json!(30000)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wordpress_is_told_what_is_ignored() {
    let daemon = Daemon::manager().await;
    for program in programs() {
        let file = written(&daemon, "mysql.yml", include_str!("stacks/mysql.yml"));
        let output = daemon.docker_by(program, &deploy(program, "", &file, "mysql"), b"").await;
        assert_eq!(output.code, 0, "{program}: {output:?}");
        let said = output.stdout + &output.stderr;
        assert!(said.contains("Ignoring unsupported options: links"), "{program}: {said}");
        for name in ["mysql_mysql", "mysql_web"] {
            assert!(said.contains(&format!("Creating service {name}")), "{program}: {said}");
            daemon.running(name, 1).await;
        }
        let said = removed(&daemon, program, "mysql").await;
        for what in ["service mysql_mysql", "service mysql_web", "network mysql_default"] {
            assert!(said.contains(&format!("Removing {what}")), "{program}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configs_secrets_and_networks_of_a_stack_and_from_outside() {
    let daemon = Daemon::manager().await;
    let program = programs()[0];
    let file = written(&daemon, "files.yml", include_str!("stacks/files.yml"));
    written(&daemon, "page.html", "<p>hello</p>");
    written(&daemon, "key", "hunter2");
    let missing = daemon.docker(&deploy(program, "", &file, "s")).await;
    assert!(
        missing.code != 0
            && missing.stderr.contains("network \"outside\" is declared as external, but could not be found"),
        "{missing:?}"
    );
    daemon.prints("network create -d overlay outside").await;
    let shared = written(&daemon, "shared", "all");
    daemon.prints(&format!("config create shared {shared}")).await;
    let said = sorted(&daemon, program, &deploy(program, "", &file, "s")).await;
    let expected = [
        "Creating config s_page",
        "Creating network s_inside",
        "Creating secret s_key",
        "Creating service s_web",
    ];
    assert_eq!(said, expected);
    let driver = "config inspect --format {{.Spec.Templating.Name}} s_page";
    assert_eq!(daemon.docker_by(program, driver, b"").await.stdout, "golang\n");
    let container = spec(&daemon, "s_web", ".TaskTemplate.ContainerSpec").await;
    let names = |key: &str| -> Vec<Value> {
        container[key].as_array().expect("a list").iter().map(|one| one["File"].clone()).collect()
    };
    let file_at = |name: &str, uid: &str, gid: &str, mode: u32| json!({ "Name": name, "UID": uid, "GID": gid, "Mode": mode });
    assert_eq!(names("Secrets"), [file_at("key", "0", "0", 0o444)]);
    assert_eq!(
        names("Configs"),
        [file_at("page", "0", "0", 0o444), file_at("/etc/shared", "33", "34", 0o440)]
    );
    assert_eq!(
        container["Healthcheck"],
        json!({ "Test": ["CMD", "/check"], "Interval": 7_000_000_000_u64, "Retries": 4 })
    );
    assert_eq!(spec(&daemon, "s_web", ".Mode").await, json!({ "Global": {} }));
    assert_eq!(spec(&daemon, "s_web", ".EndpointSpec.Mode").await, "dnsrr");
    assert_eq!(
        spec(&daemon, "s_web", ".TaskTemplate.Resources").await,
        json!({ "Limits": { "NanoCPUs": 500_000_000, "MemoryBytes": 64 << 20 },
                "Reservations": { "MemoryBytes": 32 << 20 } })
    );
    let network =
        daemon.docker("network inspect s_inside --format '{{.Attachable}} {{json .Options}}'").await.stdout;
    assert!(
        network.starts_with("true {") && network.contains("\"com.docker.network.driver.mtu\":\"1300\""),
        "{network}"
    );

    // The same again changes nothing; a config with other bytes is refused, as a config's never change.
    let before = services(&daemon)["s_web"].meta.spec_version;
    sorted(&daemon, program, &deploy(program, "", &file, "s")).await;
    assert_eq!(services(&daemon)["s_web"].meta.spec_version, before);
    written(&daemon, "page.html", "<p>other</p>");
    let refused = daemon.docker(&deploy(program, "", &file, "s")).await;
    assert!(
        refused.code != 0 && refused.stderr.contains("only updates to Labels are allowed"),
        "{refused:?}"
    );
    let said = removed(&daemon, program, "s").await;
    for what in ["service s_web", "secret s_key", "config s_page", "network s_inside"] {
        assert!(said.contains(&format!("Removing {what}")), "{said}");
    }
    let left = daemon.prints("config ls -q --filter name=shared").await;
    assert_eq!(left.lines().count(), 1, "what is from outside stays");
}
