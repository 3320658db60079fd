//! `docker exec` through the real CLI.

mod common;

use common::Daemon;
use common::cli::programs;
use common::engine::container;
use control_store::ReplicatedStore as _;

/// A daemon with one container, and its name.
async fn with_a_container() -> (Daemon, String) {
    let daemon = Daemon::manager().await;
    let create = "service create -d --no-resolve-image --name web --constraint node.hostname==m1 whoami:v1";
    daemon.prints(create).await;
    daemon.running("web", 1).await;
    let state = daemon.store.state();
    let task = state.tasks().iter().next().expect("made").clone();
    daemon.engine.containers.lock().expect("no panic").push(container(&task));
    (daemon, task.name())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_has_its_streams_and_its_code() {
    let (daemon, name) = with_a_container().await;
    for program in programs() {
        let run = async |line: &str, input: &[u8]| daemon.docker_by(program, line, input).await;
        let echo = run(&format!("exec {name} echo a b"), b"").await;
        assert_eq!((echo.code, echo.stdout.as_str(), echo.stderr.as_str()), (0, "a b\n", ""), "{program}");
        let failed = run(&format!("exec {name} other"), b"").await;
        assert_eq!((failed.code, failed.stdout.as_str(), failed.stderr.as_str()), (3, "", "it failed\n"));
        let cat = run(&format!("exec -i {name} cat"), b"one\ntwo\n").await;
        assert_eq!((cat.code, cat.stdout.as_str()), (0, "one\ntwo\n"), "{program}");
        let told = run(&format!("exec -e A=b -u web -w /srv {name} tell"), b"").await;
        assert_eq!(told.stdout, "[\"A=b\"] web /srv false false\n", "{program}");
        let detached = run(&format!("exec -d {name} echo x"), b"").await;
        assert_eq!((detached.code, detached.stdout.as_str()), (0, ""), "{program}");
        let terminal = run(&format!("exec -t {name} echo x"), b"").await;
        assert_eq!((terminal.code, terminal.stdout.as_str()), (0, "x\n"), "{program}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_run_is_refused() {
    let (daemon, name) = with_a_container().await;
    let missing = daemon.refuses("exec nothing echo").await;
    assert!(missing.contains("No such container: nothing"), "{missing}");
    let privileged = daemon.refuses(&format!("exec --privileged {name} echo")).await;
    assert!(privileged.contains("a privileged exec is not supported by this daemon"), "{privileged}");
    let create = format!("/containers/{name}/exec");
    let (status, reply) = daemon.request("POST", &create, b"{}").await;
    assert_eq!(status, 400);
    assert!(reply.contains("No exec command specified"), "{reply}");
    let (status, reply) = daemon.request("GET", "/exec/abc/json", b"").await;
    assert_eq!(status, 404);
    assert!(reply.contains("No such exec instance: abc"), "{reply}");
    daemon.engine.containers.lock().expect("no panic")[0].running = false;
    let ended = daemon.refuses(&format!("exec {name} echo")).await;
    assert!(ended.contains("is not running"), "{ended}");
}

/// Clients that can't have a connection of their own (docker-py's `exec_run` asks for one all the same) get the output as a reply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_reply_has_the_output_and_a_process_runs_once() {
    let (daemon, name) = with_a_container().await;
    let config = br#"{"AttachStdout":true,"AttachStderr":true,"Tty":true,"Cmd":["echo","hi"]}"#;
    let (status, reply) = daemon.request("POST", &format!("/containers/{name}/exec"), config).await;
    assert_eq!(status, 201, "{reply}");
    let id = reply.split('"').nth(3).expect("an id").to_owned();
    let start = format!("/exec/{id}/start");
    assert_eq!(daemon.request("POST", &start, b"{}").await, (200, "hi".to_owned()));
    let (status, again) = daemon.request("POST", &start, b"{}").await;
    assert_eq!(status, 409, "{again}");
    let (_, shown) = daemon.request("GET", &format!("/exec/{id}/json"), b"").await;
    assert!(shown.contains(r#""ExitCode":0"#) && shown.contains(r#""Running":false"#), "{shown}");
}
