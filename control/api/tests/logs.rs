//! `docker logs` and `docker service logs` through the real CLI.

mod common;

use std::sync::atomic::Ordering;

use common::cli::programs;
use common::engine::container;
use common::{Daemon, world};
use control_model::object::Slot;
use control_model::{NodeId, OutputLine, OutputStream, Task, Timestamp};
use control_store::ReplicatedStore as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};

const SECOND: i64 = 1_000_000_000;

fn lines(of: &str) -> Vec<OutputLine> {
    let line = |second: i64, stream, text: &str| OutputLine {
        at: Timestamp(second * SECOND),
        stream,
        text: format!("{of} {text}\n").into_bytes(),
    };
    vec![
        line(1, OutputStream::Stdout, "one"),
        line(2, OutputStream::Stderr, "two"),
        line(3, OutputStream::Stdout, "three"),
    ]
}

/// A service with a task on each of these nodes, whose container has written [`lines`] of its slot.
async fn service(daemon: &Daemon, name: &str, flags: &str, nodes: &[&str]) -> Vec<Task> {
    let constraint = match nodes {
        [node] => format!("--constraint node.hostname=={node}"),
        _ => "--constraint node.hostname!=w2".to_owned(),
    };
    let n_tasks = nodes.len();
    let create = format!(
        "service create -d --no-resolve-image --name {name} --replicas {n_tasks} {constraint} {flags} whoami:v1"
    );
    daemon.prints(&create).await;
    daemon.running(name, n_tasks).await;
    let state = daemon.store.state();
    let id = state.service_by_name(name).expect("made").id;
    let tasks: Vec<Task> = state.tasks_of_service(id).map(|task| (**task).clone()).collect();
    for task in &tasks {
        let container = container(task);
        let written = lines(&slot(task));
        daemon.engine.outputs.lock().expect("no panic").insert(container.id.clone(), written);
        daemon.engine.containers.lock().expect("no panic").push(container);
    }
    tasks
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn slot(task: &Task) -> String {
    match task.slot {
        Slot::Replica(number) => number.to_string(),
        Slot::Node(node) => node.to_string(),
    }
}

fn short(task: &Task) -> String {
    task.id.to_string()[..12].to_owned()
}

fn hostname(node: Option<NodeId>) -> &'static str {
    if node == Some(world::MANAGER) { "m1" } else { "w1" }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_all_tasks_say_whose_they_are() {
    let daemon = Daemon::manager().await;
    let tasks = service(&daemon, "web", "", &["m1", "w1"]).await;
    for program in programs() {
        let output = daemon.docker_by(program, "service logs web", b"").await;
        let of = |stream: OutputStream| {
            let all = tasks.iter().flat_map(|task| {
                let of_stream = lines(&slot(task)).into_iter().filter(move |l| l.stream == stream);
                of_stream.map(move |line| {
                    let prefix = format!("web.{}.{}@{}", slot(task), short(task), hostname(task.node));
                    format!("{prefix}    | {}", String::from_utf8_lossy(&line.text).trim_end())
                })
            });
            let mut all: Vec<String> = all.collect();
            all.sort_unstable();
            all
        };
        assert_eq!(sorted(&output.stdout), of(OutputStream::Stdout), "{program}");
        assert_eq!(sorted(&output.stderr), of(OutputStream::Stderr), "{program}");
        let last = daemon.docker_by(program, "service logs --raw --tail 1 -t web", b"").await.stdout;
        let expected = ["1970-01-01T00:00:03.000000000Z 1 three", "1970-01-01T00:00:03.000000000Z 2 three"];
        assert_eq!(sorted(&last), expected, "{program}");
        let since =
            daemon.docker_by(program, "service logs --raw --since 1970-01-01T00:00:02Z web", b"").await;
        assert_eq!(sorted(&since.stdout), ["1 three", "2 three"]);
        assert_eq!(sorted(&since.stderr), ["1 two", "2 two"]);
        let one = daemon.docker_by(program, &format!("service logs --raw {}", tasks[0].id), b"").await;
        assert_eq!(one.stdout.lines().count(), 2, "{program}: a task by its id: {one:?}");
    }
    let wrong = daemon.refuses("service logs nothing").await;
    assert!(wrong.contains("no such task or service: nothing"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_node_has_is_said_to_be_missing() {
    let daemon = Daemon::manager().await;
    service(&daemon, "web", "", &["w2"]).await;
    let output = daemon.docker("service logs web").await;
    assert_eq!(output.stdout, "");
    assert!(
        output.stderr.contains("warning: incomplete log stream. some logs could not be retrieved")
            && output.stderr.contains(&format!("node {} is not available", world::WORKER_2)),
        "{output:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_gets_each_line_once_however_often_the_node_is_lost() {
    let daemon = Daemon::manager().await;
    let task = service(&daemon, "web", "", &["w1"]).await.remove(0);
    daemon.engine.n_breaks.store(usize::MAX, Ordering::SeqCst);
    let mut following = daemon.started(programs()[0], "service logs --raw -f --tail 2 web");
    let mut shown = BufReader::new(following.stdout.take().expect("piped")).lines();
    assert_eq!(shown.next_line().await.expect("text").expect("one"), "1 three");
    // Of the same moment, and what the tail left out is not told later.
    let more = |text: &str| OutputLine {
        at: Timestamp(3 * SECOND),
        stream: OutputStream::Stdout,
        text: format!("{text}\n").into_bytes(),
    };
    let id = task.id.container_id();
    for text in ["four", "five"] {
        daemon.engine.outputs.lock().expect("no panic").get_mut(&id).expect("made").push(more(text));
        assert_eq!(shown.next_line().await.expect("text").expect("one"), text);
    }
    // Nor does it count for a task that came meanwhile.
    daemon.prints("service scale -d web=2").await;
    daemon.running("web", 2).await;
    let state = daemon.store.state();
    let newcomer = state.tasks_of_service(task.service).find(|one| one.id != task.id).expect("the second");
    let written = ["2 one", "2 two", "2 three"].map(more).to_vec();
    daemon.engine.outputs.lock().expect("no panic").insert(newcomer.id.container_id(), written);
    daemon.engine.containers.lock().expect("no panic").push(container(newcomer));
    daemon.engine.n_breaks.store(0, Ordering::SeqCst);
    for text in ["2 one", "2 two", "2 three"] {
        assert_eq!(shown.next_line().await.expect("text").expect("one"), text);
    }
    following.start_kill().expect("killed");
    let rest = following.wait_with_output().await.expect("it ends");
    assert_eq!(String::from_utf8_lossy(&rest.stderr), "1 two\n");
    assert_eq!(shown.next_line().await.expect("text"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_container_that_can_not_be_read_hides_no_other() {
    let daemon = Daemon::manager().await;
    let tasks = service(&daemon, "web", "", &["m1", "w1"]).await;
    let lost = tasks[0].id.container_id();
    daemon.engine.unreadable.lock().expect("no panic").insert(lost);
    let output = daemon.docker("service logs --raw web").await;
    let left = slot(&tasks[1]);
    assert_eq!(output.stdout, format!("{left} one\n{left} three\n"), "{output:?}");
    assert!(output.stderr.contains(&format!("task {}: the disk is gone", tasks[0].id)), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_of_this_node_shows_its_lines() {
    let daemon = Daemon::manager().await;
    let tasks = service(&daemon, "web", "", &["m1"]).await;
    let name = tasks[0].name();
    let output = daemon.docker(&format!("logs {name}")).await;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("1 one\n1 three\n", "1 two\n"));
    let last = daemon.docker(&format!("logs -n 1 -t {}", &tasks[0].id.container_id()[..12])).await;
    assert_eq!(last.stdout, "1970-01-01T00:00:03.000000000Z 1 three\n");
    let path = format!("/containers/{name}/logs");
    let (status, reply) = daemon.request("GET", &path, b"").await;
    assert_eq!(status, 400);
    assert!(reply.contains("Bad parameters: you must choose at least one stream"), "{reply}");
    let missing = daemon.refuses("logs nothing").await;
    assert!(missing.contains("No such container: nothing"), "{missing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_one_stream_and_no_frames() {
    let daemon = Daemon::manager().await;
    service(&daemon, "tty", "--tty", &["m1"]).await;
    let output = daemon.docker("service logs --raw tty").await;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("1 one\n1 two\n1 three\n", ""));
}
