//! Real containers by the real runtime.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{PATIENCE, TestNode, cgroup_dirs, task};
use control_model::dependency::{DependencyFile, DependencySpec, Payload};
use control_model::executor::{Executor, ExecutorError, Exit, Provisions};
use control_model::generic::parse_resources;
use control_model::object::HealthStatus;
use control_model::spec::{HealthConfig, Mount, MountKind, PortConfig, Protocol, PublishMode};
use control_model::{Dependency, DependencyId, DependencyKind, Task};

const RUNC: &str = "/usr/sbin/runc";
const ENTRYPOINT: &str = r#"ENTRYPOINT ["/toolbox"]"#;

async fn node() -> TestNode {
    let node = TestNode::new(RUNC, &[]);
    node.import("toolbox:1", &[ENTRYPOINT, "ENV FROM=image", "EXPOSE 80"]).await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn output_and_exit_codes_are_kept() {
    let node = node().await;
    let good = task("toolbox:1", &["echo", "out", "+", "warn", "err"]);
    assert_eq!(node.output(&good).await, (0, vec!["out".to_owned(), "err".to_owned()]));
    let bad = task("docker.io/library/toolbox:1", &["exit", "3"]);
    assert_eq!(node.output(&bad).await.0, 3);
    let info = node.oci.container_of_task(bad.id).expect("known");
    assert_eq!((info.state, info.record.name.as_str()), ("exited", bad.name().as_str()));
    assert_eq!(info.record.labels["com.docker.swarm.service.name"], "web");
    for task in [good, bad] {
        node.oci.remove(task.id).await.expect("removed");
        node.oci.remove(task.id).await.expect("removing the absent is success");
    }
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_sees_what_docker_would_show_it() {
    let node = node().await;
    let commands =
        ["env", "+", "cat", "/etc/resolv.conf", "+", "cat", "/etc/hostname", "+", "ls", "/sys/class/net"];
    let mut seen = task("toolbox:1", &commands);
    seen.spec.container.env = vec!["NODE={{.Node.Hostname}}".into(), "SLOT={{.Task.Slot}}".into()];
    seen.spec.container.hostname = "{{.Service.Name}}-{{.Task.Slot}}".into();
    let given = ["gpu=b", "gpu=a", "ssd=3"].map(String::from);
    seen.generic = parse_resources(&given).expect("a node's");
    let port = |published, mode| PortConfig::new(Protocol::Tcp, 80, published, mode);
    seen.ports =
        vec![port(8080, PublishMode::Ingress), port(8081, PublishMode::Host), port(0, PublishMode::Host)];
    let (code, lines) = node.output(&seen).await;
    assert_eq!(code, 0);
    for line in [
        "FROM=image",
        "DOCKER_RESOURCE_GPU=a,b",
        "DOCKER_RESOURCE_SSD=3",
        "NODE=test-node",
        "SLOT=1",
        "HOSTNAME=web-1",
        "web-1",
        "nameserver 127.0.0.11",
        "lo",
    ] {
        assert!(lines.iter().any(|one| one == line), "{line} in {lines:#?}");
    }
    let record = node.oci.container_of_task(seen.id).expect("known").record;
    assert_eq!(
        (record.hostname.as_str(), record.user.as_str(), record.working_dir.as_str()),
        ("web-1", "", "/")
    );
    assert!(
        ["FROM=image", "SLOT=1"].iter().all(|entry| record.env.iter().any(|one| one == entry)),
        "{:?}",
        record.env
    );
    assert_eq!(record.host_ports().collect::<Vec<_>>(), [&port(8081, PublishMode::Host)]);
    assert_eq!(record.exposed_ports, ["80/tcp"]);
    // The sandbox is the given one: it has nothing but its loopback.
    assert!(!lines.iter().any(|line| line.starts_with("eth")), "{lines:#?}");
    node.oci.remove(seen.id).await.expect("removed");
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_the_terminal_directory_hosts_and_groups_of_its_service() {
    let node = node().await;
    let commands =
        ["terminal", "+", "cat", "seed", "+", "cat", "/etc/hosts", "+", "cat", "/proc/self/status"];
    let mut given = task("toolbox:1", &commands);
    let container = &mut given.spec.container;
    (container.tty, container.dir, container.user) = (true, "/data".into(), "44:45".into());
    container.hosts = vec!["10.9.9.9 db".into()];
    container.groups = vec!["web".into()];
    let (code, lines) = node.output(&given).await;
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    assert_eq!((code, &lines[..2]), (0, &["true", "from the image"][..]), "{lines:#?}");
    for line in ["10.9.9.9\tdb", "Uid:\t44\t44\t44\t44", "Gid:\t45\t45\t45\t45"] {
        assert!(lines.contains(&line), "{line} in {lines:#?}");
    }
    let groups = lines.iter().find(|line| line.starts_with("Groups:")).expect("a line");
    assert!(groups.split_whitespace().any(|group| group == "33"), "{groups}");
    node.oci.remove(given.id).await.expect("removed");
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn users_mounts_and_read_only_roots_work() {
    let node = node().await;
    let bound = node.dir.path().join("bound");
    std::fs::create_dir(&bound).expect("made");
    std::fs::write(bound.join("file"), "from the host\n").expect("written");
    let mount = |kind, source: &str, target: &str, read_only| Mount {
        kind,
        source: source.into(),
        target: target.into(),
        read_only,
        tmpfs_size_bytes: 0,
        tmpfs_mode: 0,
        volume_labels: std::collections::BTreeMap::new(),
        volume_options: std::collections::BTreeMap::new(),
        no_copy: false,
    };
    let bound = bound.to_str().expect("text");
    let commands = [
        "cat",
        "/in/file",
        "+",
        "cat",
        "/data/seed",
        "+",
        "write",
        "/data/new",
        "x",
        "+",
        "write",
        "/x",
        "y",
    ];
    let mut first = task("toolbox:1", &commands);
    first.spec.container.read_only = true;
    first.spec.container.mounts =
        vec![mount(MountKind::Bind, bound, "/in", true), mount(MountKind::Volume, "vol", "/data", false)];
    let (_, lines) = node.output(&first).await;
    assert_eq!(lines[0], "from the host");
    assert_eq!(lines[1], "from the image", "a new volume has the image's content");
    assert_eq!(lines[2], "written", "a volume can be written to under a read-only root");
    assert!(lines[3].contains("Read-only file system"), "{lines:?}");
    let mut second =
        task("toolbox:1", &["cat", "/data/new", "+", "write", "/tmp/x", "y", "+", "write", "/y", "z"]);
    second.spec.container.user = "web".into();
    second.spec.container.mounts =
        vec![mount(MountKind::Volume, "vol", "/data", true), mount(MountKind::Tmpfs, "", "/tmp", false)];
    let (_, lines) = node.output(&second).await;
    assert_eq!(lines[..2], ["x", "written"], "a named volume outlives its tasks");
    assert!(lines[2].contains("Permission denied"), "web can't write to the root: {lines:?}");
    for task in [first, second] {
        node.oci.remove(task.id).await.expect("removed");
    }
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn bound_directories_are_the_hosts_and_tmpfs_has_its_size_and_mode() {
    let node = node().await;
    let bound = node.dir.path().join("bound");
    std::fs::create_dir(&bound).expect("made");
    let bind = |target: &str, read_only| Mount {
        kind: MountKind::Bind,
        source: bound.to_str().expect("text").into(),
        read_only,
        ..Mount::volume(target)
    };
    let memory = Mount {
        kind: MountKind::Tmpfs,
        tmpfs_size_bytes: 1 << 20,
        tmpfs_mode: 0o700,
        ..Mount::volume("/memory")
    };
    let commands =
        ["write", "/out/new", "x", "+", "write", "/in/other", "y", "+", "cat", "/proc/self/mountinfo"];
    let mut task = task("toolbox:1", &commands);
    task.spec.container.mounts = vec![bind("/out", false), bind("/in", true), memory];
    let (_, lines) = node.output(&task).await;
    assert_eq!(lines[0], "written");
    assert_eq!(std::fs::read_to_string(bound.join("new")).expect("written"), "x");
    assert!(lines[1].contains("Read-only file system") && !bound.join("other").exists(), "{lines:?}");
    let memory = lines.iter().find(|line| line.contains(" /memory ")).expect("mounted");
    for option in [" - tmpfs ", "size=1024k", "mode=700"] {
        assert!(memory.contains(option), "{option} in {memory}");
    }
    node.oci.remove(task.id).await.expect("removed");
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_in_the_cgroup_and_memory_kills() {
    let node = node().await;
    let mut limited = task("toolbox:1", &["eat", "64"]);
    limited.spec.resources.limits.memory_bytes = 16 << 20;
    limited.spec.resources.limits.nano_cpus = 500_000_000;
    limited.spec.resources.pids_limit = 50;
    node.run(&limited).await;
    let record = node.oci.container_of_task(limited.id).expect("known").record;
    let limits: Vec<String> = cgroup_dirs(&record.cgroup)
        .iter()
        .flat_map(|dir| ["pids.max", "cpu.max", "cpu.cfs_quota_us"].map(|file| dir.join(file)))
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
        .collect();
    assert!(limits.contains(&"50".to_owned()), "{limits:?}");
    assert!(limits.iter().any(|limit| limit.starts_with("50000")), "{limits:?}");
    let exit =
        tokio::time::timeout(PATIENCE, node.oci.wait(limited.id)).await.expect("ends").expect("waited");
    assert_eq!(exit, Exit { code: 137, out_of_memory: true });
    node.oci.remove(limited.id).await.expect("removed");
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_asks_first_and_kills_after_the_grace() {
    let node = node().await;
    // As the first process of its namespace it has no default action for SIGTERM: it stays until SIGKILL.
    let mut stubborn = task("toolbox:1", &["echo", "up", "+", "stay"]);
    stubborn.spec.container.stop_grace_period = Some(Duration::from_millis(100));
    node.run(&stubborn).await;
    node.line(&stubborn, "up").await;
    node.oci.shutdown(&stubborn).await.expect("stopped");
    let exit = node.oci.wait(stubborn.id).await.expect("waited");
    assert_eq!(exit, Exit { code: 137, out_of_memory: false });
    // SIGKILL as the stop signal needs no grace: the end comes at once, not after an hour.
    let mut quick = task("toolbox:1", &["echo", "up", "+", "stay"]);
    quick.spec.container.stop_signal = "SIGKILL".into();
    quick.spec.container.stop_grace_period = Some(Duration::from_hours(1));
    node.run(&quick).await;
    tokio::time::timeout(PATIENCE, node.oci.shutdown(&quick)).await.expect("at once").expect("stopped");
    for task in [stubborn, quick] {
        node.oci.remove(task.id).await.expect("removed");
    }
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_daemon_and_are_found() {
    let mut node = node().await;
    let (runs, ends, made) = (
        task("toolbox:1", &["echo", "up", "+", "stay"]),
        task("toolbox:1", &["exit", "4"]),
        task("toolbox:1", &["env"]),
    );
    node.run(&runs).await;
    node.run(&ends).await;
    node.oci.prepare(&made, &Provisions::default()).await.expect("prepared");
    node.line(&runs, "up").await;
    node.reopen(RUNC);
    let exit = tokio::time::timeout(PATIENCE, node.oci.wait(ends.id)).await.expect("ends").expect("waited");
    assert_eq!(exit.code, 4);
    let found = node.oci.list_ours().await.expect("listed");
    let of = |id| found.iter().find(|one| one.task == id).cloned().expect("found");
    assert!(of(runs.id).exit.is_none() && of(runs.id).status.pid > 0);
    assert_eq!(of(ends.id).exit, Some(Exit { code: 4, out_of_memory: false }));
    assert!(of(made.id).exit.is_none() && of(made.id).status.pid == 0);
    let again = node.oci.start(&runs, &node.sandbox).await.expect("idempotent");
    assert_eq!(again, of(runs.id).status, "the process is the same");
    node.oci.terminate(runs.id).await.expect("killed");
    for task in [runs, ends, made] {
        node.oci.remove(task.id).await.expect("removed");
    }
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_conmon_was_killed_ends_with_255() {
    let node = node().await;
    let lost = task("toolbox:1", &["echo", "up", "+", "stay"]);
    node.run(&lost).await;
    let pid_file = node.dir.path().join("run/tasks").join(lost.id.to_string()).join("conmon.pid");
    let pid: i32 = std::fs::read_to_string(pid_file).expect("written").trim().parse().expect("a number");
    // The test started this process through the executor; its id is from its own file.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .expect("killed");
    let exit = tokio::time::timeout(PATIENCE, node.oci.wait(lost.id)).await.expect("ends").expect("waited");
    assert_eq!(exit.code, 255);
    node.oci.remove(lost.id).await.expect("removed");
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_is_refused_in_dockers_words() {
    let node = node().await;
    let missing = task("nothing:1", &[]);
    let error = node.oci.prepare(&missing, &Provisions::default()).await.expect_err("no image");
    assert_eq!(error, ExecutorError::Rejected("No such image: nothing:1".into()));
    let mut absent = task("toolbox:1", &[]);
    absent.spec.container.command = vec!["nothing".into()];
    node.oci.prepare(&absent, &Provisions::default()).await.expect("prepared");
    let error = node.oci.start(&absent, &node.sandbox).await.expect_err("no binary").to_string();
    assert!(error.starts_with("starting container failed: ") && error.ends_with(": unknown"), "{error}");
    assert!(error.contains(r#"exec: "nothing": executable file not found in $PATH"#), "{error}");
    let mut bind = task("toolbox:1", &[]);
    bind.spec.container.mounts = vec![Mount {
        kind: MountKind::Bind,
        source: "/nowhere".into(),
        target: "/x".into(),
        read_only: false,
        tmpfs_size_bytes: 0,
        tmpfs_mode: 0,
        volume_labels: std::collections::BTreeMap::new(),
        volume_options: std::collections::BTreeMap::new(),
        no_copy: false,
    }];
    let error = node.oci.prepare(&bind, &Provisions::default()).await.expect_err("no source").to_string();
    assert_eq!(error, r#"invalid mount config for type "bind": bind source path does not exist: /nowhere"#);
    for task in [missing, absent, bind] {
        node.oci.remove(task.id).await.expect("removed");
    }
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_may_do_what_docker_allows() {
    let node = node().await;
    let plain = task("toolbox:1", &["cat", "/proc/self/status"]);
    let (_, lines) = node.output(&plain).await;
    // The mask of Docker's 14 capabilities; a filter is on; no_new_privs is off.
    for line in ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "Seccomp:\t2", "NoNewPrivs:\t0"] {
        assert!(lines.iter().any(|one| one == line), "{line} in {lines:#?}");
    }
    let mut bare = task("toolbox:1", &["cat", "/proc/self/status", "+", "cat", "/proc/kcore"]);
    bare.spec.container.cap_drop = vec!["ALL".into()];
    bare.spec.container.user = "33:33".into();
    let (_, lines) = node.output(&bare).await;
    for line in ["CapEff:\t0000000000000000", "Uid:\t33\t33\t33\t33"] {
        assert!(lines.iter().any(|one| one == line), "{line} in {lines:#?}");
    }
    for task in [plain, bare] {
        node.oci.remove(task.id).await.expect("removed");
    }
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_in_the_middle_of_a_start_finds_its_way() {
    let mut node = node().await;
    let (runs, half) = (task("toolbox:1", &["stay"]), task("toolbox:1", &["exit", "0"]));
    node.run(&runs).await;
    node.oci.prepare(&half, &Provisions::default()).await.expect("prepared");
    // As if the daemon had died before it could write what came of the start.
    for task in [&runs, &half] {
        let path = node.dir.path().join("state/tasks").join(task.id.to_string()).join("task.json");
        let text = std::fs::read_to_string(&path).expect("written");
        let mut record: serde_json::Value = serde_json::from_str(&text).expect("a record");
        record["stage"] = "Starting".into();
        std::fs::write(&path, record.to_string()).expect("written");
    }
    // And one whose preparation had not come to a record.
    let cut = task("toolbox:1", &["exit", "0"]);
    let cut_dir = node.dir.path().join("state/tasks").join(cut.id.to_string());
    std::fs::create_dir_all(cut_dir.join("upper")).expect("made");
    node.reopen(RUNC);
    assert!(!cut_dir.exists());
    let found = node.oci.list_ours().await.expect("listed");
    let pid = |id| found.iter().find(|one| one.task == id).expect("found").status.pid;
    assert!(pid(runs.id) > 0, "it runs: the runtime says so");
    assert_eq!(pid(half.id), 0);
    assert_eq!(node.output(&half).await.0, 0, "it is prepared anew and runs");
    node.oci.terminate(runs.id).await.expect("killed");
    for task in [runs, half] {
        node.oci.remove(task.id).await.expect("removed");
    }
    node.assert_clean();
}

/// A task that is probed every few milliseconds.
fn checked(test: &[&str], retries: u32) -> Task {
    let mut task = task("toolbox:1", &["echo", "up", "+", "stay"]);
    let brief = Duration::from_millis(20);
    task.spec.container.health = Some(HealthConfig {
        test: test.iter().map(|&word| word.to_owned()).collect(),
        interval: brief,
        timeout: Duration::from_secs(30),
        retries,
        ..HealthConfig::default()
    });
    task
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_check_runs_in_the_container() {
    use HealthStatus::{Healthy, Starting, Unhealthy};
    let mut node = node().await;
    let mut task = checked(&["CMD", "/toolbox", "cat", "/proc/self/status", "+", "has", "/health/good"], 2);
    let dir = node.dir.path().join("health");
    std::fs::create_dir(&dir).expect("made");
    std::fs::write(dir.join("good"), "").expect("written");
    task.spec.container.user = "33:33".into();
    task.spec.container.mounts = vec![Mount {
        kind: MountKind::Bind,
        source: dir.to_str().expect("text").into(),
        target: "/health".into(),
        read_only: true,
        tmpfs_size_bytes: 0,
        tmpfs_mode: 0,
        volume_labels: std::collections::BTreeMap::new(),
        volume_options: std::collections::BTreeMap::new(),
        no_copy: false,
    }];
    node.run(&task).await;
    assert_eq!(changed(&node, &task, Starting).await, Ok(Healthy));
    let health = node.oci.container_of_task(task.id).expect("known").health.expect("it has a check");
    let probe = health.log.back().expect("a probe");
    assert_eq!((health.status, health.failing_streak, probe.exit_code), (Healthy, 0, 0));
    for part in ["Uid:\t33\t33\t33\t33", "/health/good is there"] {
        assert!(probe.output.contains(part), "{part} in {:?}", probe.output);
    }
    // Another daemon goes on where this one was.
    node.reopen(RUNC);
    assert_eq!(node.oci.list_ours().await.expect("listed")[0].status.health, Some(Healthy));
    std::fs::remove_file(dir.join("good")).expect("removed");
    assert_eq!(changed(&node, &task, Healthy).await, Ok(Unhealthy));
    let health = node.oci.container_of_task(task.id).expect("known").health.expect("it has a check");
    assert_eq!(health.failing_streak, 2);
    assert!(health.log.back().expect("a probe").output.ends_with("no /health/good\n"));
    // Who waits for more hears of the end.
    let waits = changed(&node, &task, Unhealthy);
    let (waited, killed) = tokio::join!(waits, node.oci.terminate(task.id));
    killed.expect("killed");
    assert_eq!(waited, Err(ExecutorError::Failed("the container has ended".into())));
    node.oci.remove(task.id).await.expect("removed");
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_takes_too_long_is_killed_and_has_failed() {
    let node = node().await;
    let mut task = checked(&["CMD", "/toolbox", "stay"], 1);
    task.spec.container.health.as_mut().expect("a check").timeout = Duration::from_secs(1);
    node.run(&task).await;
    assert_eq!(changed(&node, &task, HealthStatus::Starting).await, Ok(HealthStatus::Unhealthy));
    let info = node.oci.container_of_task(task.id).expect("known");
    let probe = info.health.expect("it has a check").log.pop_back().expect("a probe");
    assert_eq!((probe.exit_code, probe.output.as_str()), (-1, "Health check exceeded timeout (1s)"));
    let cgroup = cgroup_dirs(&info.record.cgroup).pop().expect("it runs");
    let processes = std::fs::read_to_string(cgroup.join("cgroup.procs")).expect("readable");
    assert_eq!(processes.lines().count(), 1, "the container's own alone: {processes}");
    node.oci.terminate(task.id).await.expect("killed");
    node.oci.remove(task.id).await.expect("removed");
    node.assert_clean();
}

async fn changed(node: &TestNode, task: &Task, known: HealthStatus) -> Result<HealthStatus, ExecutorError> {
    let changed = tokio::time::timeout(PATIENCE, node.oci.health(task.id, known)).await.expect("in time");
    changed.map(|health| health.expect("it has a check"))
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_configs_are_files_in_memory_until_the_process_ends() {
    let node = node().await;
    // The mounts come first: who has read the last line has them all.
    let show =
        ["cat", "/proc/self/mountinfo", "+", "cat", "/run/secrets/key", "+", "cat", "/etc/page", "+", "stay"];
    let mut shown = task("toolbox:1", &show);
    let (secret, config) = (DependencyId::from_bits(1), DependencyId::from_bits(2));
    let file = |kind, id, target: &str| DependencyFile {
        kind,
        id,
        name: target.into(),
        target: target.into(),
        uid: 33,
        gid: 34,
        mode: 0o440,
    };
    shown.spec.container.env = vec!["COLOUR=red".into()];
    shown.spec.container.dependencies =
        vec![file(DependencyKind::Secret, secret, "key"), file(DependencyKind::Config, config, "/etc/page")];
    let object = |id, kind, data: &str, is_template| {
        let data = Payload(data.into());
        let spec = DependencySpec { name: "n".into(), data, is_template, ..DependencySpec::default() };
        Arc::new(Dependency::new(id, kind, spec))
    };
    let template = "{{.Node.Hostname}} {{ env \"COLOUR\" }} {{ secret \"key\" }}\n";
    let both = vec![
        object(secret, DependencyKind::Secret, "hunter2\n", false),
        object(config, DependencyKind::Config, template, true),
    ];
    let missing = Provisions { dependencies: both[..1].to_vec(), ..Provisions::default() };
    let error = node.oci.prepare(&shown, &missing).await.expect_err("no config");
    assert_eq!(error, ExecutorError::Rejected("config not found: /etc/page".into()));
    // Everybody reads why a task is rejected: there is nothing of the bytes in it.
    for (text, why) in [
        ("hunter2 {{ oops".to_owned(), "line 1 of the template begins with {{ what does not end"),
        ("\n{{ env hunter2 }}".to_owned(), "line 2 of the template has a placeholder that is not known"),
        ("{{ secret \"key\" }}".repeat(200_000), "line 1 of the template makes it longer than 1024000 bytes"),
    ] {
        let wrong = vec![both[0].clone(), object(config, DependencyKind::Config, &text, true)];
        let wrong = Provisions { dependencies: wrong, ..Provisions::default() };
        let error = node.oci.prepare(&shown, &wrong).await.expect_err(why);
        assert_eq!(error, ExecutorError::Rejected(format!("config n: {why}")));
    }
    let provisions = Provisions { dependencies: both, ..Provisions::default() };
    node.oci.prepare(&shown, &provisions).await.expect("prepared");
    let dir = node.dir.path().join("run/tasks").join(shown.id.to_string()).join("dependencies");
    let file = std::fs::metadata(dir.join("0")).expect("made");
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (33, 34, 0o440));
    assert_eq!(std::fs::metadata(&dir).expect("made").mode() & 0o7777, 0o700);
    node.oci.start(&shown, &node.sandbox).await.expect("started");
    for line in ["hunter2", "test-node red hunter2"] {
        node.line(&shown, line).await;
    }
    let is_mounted = || {
        std::fs::read_to_string("/proc/self/mountinfo")
            .expect("readable")
            .contains(dir.to_str().expect("text"))
    };
    let log = node.log(&shown);
    let mounts: Vec<&String> = log.iter().filter(|line| line.contains(" /run/secrets/key ")).collect();
    assert!(mounts.iter().any(|line| line.contains(" ro,") && line.contains(" - tmpfs ")), "{log:#?}");
    assert!(is_mounted());
    node.oci.terminate(shown.id).await.expect("killed");
    assert!(!is_mounted(), "its bytes go with the process, not with what is kept of the container");
    node.oci.remove(shown.id).await.expect("removed");
    node.assert_clean();
}

/// Who is sent to a process before it listens is refused; who stops it need not wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_starting_until_its_published_port_is_open() {
    let node = TestNode::new(RUNC, &[]);
    node.import("toolbox:1", &[r#"ENTRYPOINT ["/toolbox"]"#]).await;
    let mut late = task("toolbox:1", &["listen", "80", "300"]);
    late.ports = vec![PortConfig::new(Protocol::Tcp, 80, 8080, PublishMode::Ingress)];
    let started = node.run(&late).await;
    assert_eq!(started.health, Some(HealthStatus::Starting));
    // A daemon that starts anew looks on.
    let found = node.oci.list_ours().await.expect("listed");
    assert_eq!(found[0].status.health, Some(HealthStatus::Starting));
    let open = node.oci.health(late.id, HealthStatus::Starting).await;
    assert_eq!(open.expect("it runs"), None);
    let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", started.pid)).expect("it runs");
    assert!(sockets.contains("00000000:0050 00000000:0000 0A"), "{sockets}");
    node.oci.terminate(late.id).await.expect("killed");
    node.oci.remove(late.id).await.expect("removed");

    // One that ends instead is not waited for.
    let mut ends = task("toolbox:1", &["exit", "3"]);
    ends.ports = late.ports;
    node.run(&ends).await;
    let ended = node.oci.health(ends.id, HealthStatus::Starting).await;
    assert_eq!(ended, Err(ExecutorError::Failed("the container has ended".into())));
    assert_eq!(node.oci.wait(ends.id).await.expect("ended").code, 3);
    node.oci.remove(ends.id).await.expect("removed");

    // Nor one that has no port to open.
    let plain = task("toolbox:1", &["stay"]);
    assert_eq!(node.run(&plain).await.health, None);
    node.oci.terminate(plain.id).await.expect("killed");
    node.oci.remove(plain.id).await.expect("removed");
    node.assert_clean();
}
