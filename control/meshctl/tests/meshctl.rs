//! The program against a daemon that says one thing, and against none.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `meshctl` against `socket`, with no pins.
fn meshctl(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .env("DOCKER_HOST", format!("unix://{}", directory.join("docker.sock").display()))
        .arg("--bpffs-dir")
        .arg(directory.join("pins"))
        .args(arguments)
        .output()
        .expect("it starts")
}

/// What `meshctl` does when the daemon answers `body` to the path that it asks for.
fn with_answer(path: &str, status: &str, body: &str, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    let listener = UnixListener::bind(directory.path().join("docker.sock")).expect("a socket");
    let expected = format!("GET {path} HTTP/1.1\r\n");
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = [0; 4096];
        let len = stream.read(&mut request).expect("a request");
        assert!(
            request[..len].starts_with(expected.as_bytes()),
            "{}",
            String::from_utf8_lossy(&request[..len])
        );
        stream.write_all(answer.as_bytes()).expect("the client reads");
    });
    let output = meshctl(directory.path(), arguments);
    daemon.join().expect("the daemon was asked rightly");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn a_packet_that_is_missing_fails_drops() {
    let report = |received| {
        let drops = r#"[["no_backend",2]]"#;
        format!(
            r#"{{"programs":[{{"program":"p","received":{received},"forwarded":3,"passed":1,"drops":{drops}}}]}}"#
        )
    };
    let sound = with_answer("/mesh/drops", "200 OK", &report(6), &["drops"]);
    assert!(sound.status.success(), "{}", text(&sound.stderr));
    assert!(text(&sound.stdout).contains("no_backend"), "{}", text(&sound.stdout));
    let unsound = with_answer("/mesh/drops", "200 OK", &report(7), &["drops"]);
    assert_eq!(unsound.status.code(), Some(1));
    assert!(text(&unsound.stderr).contains("not accounted for"));
}

#[test]
fn drops_are_watched_until_sigint() {
    let directory = tempfile::tempdir().expect("a directory");
    let listener = UnixListener::bind(directory.path().join("docker.sock")).expect("a socket");
    // Ten packets more are dropped at each look; ends with the test.
    std::thread::spawn(move || {
        for (n_looks, stream) in listener.incoming().enumerate() {
            let mut stream = stream.expect("a connection");
            let _read = stream.read(&mut [0; 4096]).expect("a request");
            let n = 10 * (n_looks + 1);
            let drops = format!(r#"[["no-backend",{n}]]"#);
            let body = format!(
                r#"{{"programs":[{{"program":"p","received":{n},"forwarded":0,"passed":0,"drops":{drops}}}]}}"#
            );
            let _written = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .env("DOCKER_HOST", format!("unix://{}", directory.path().join("docker.sock").display()))
        .args(["drops", "--watch"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    assert!(next().starts_with("PROGRAM "));
    for _ in 0..2 {
        let words = next().split_whitespace().take(4).collect::<Vec<_>>().join(" ");
        assert_eq!(words, "p no-backend 10 the");
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("it runs");
    assert!(killed.success());
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_name_that_leads_to_no_ring_fails() {
    let output = with_answer("/mesh/lb/ring?of=web", "200 OK", "[]", &["lb", "ring", "web"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is called web"), "{}", text(&output.stderr));
}

#[test]
fn json_is_what_the_daemon_said() {
    let output = with_answer("/mesh/endpoints", "200 OK", "[]", &["endpoints", "--json"]);
    assert_eq!((text(&output.stdout).as_str(), output.status.success()), ("[]\n", true));
}

#[test]
fn a_name_is_asked_for_on_a_tasks_behalf() {
    let report = r#"{"sandbox":"t1","name":"db","record_type":"SRV","code":"NXDOMAIN","way":"own-zone",
        "took_us":7,"answers":[],"authorities":[],"additionals":[]}"#;
    let arguments = ["dns", "query", "--task", "web.1", "_pg._tcp.db", "SRV"];
    let output =
        with_answer("/mesh/dns/query?task=web.1&name=_pg._tcp.db&type=SRV", "200 OK", report, &arguments);
    assert!(text(&output.stdout).contains("From:      the task's networks"), "{}", text(&output.stdout));
}

#[test]
fn a_network_without_tasks_has_no_zone() {
    let report = r#"{"revision":1,"sandboxes":[],"names":[]}"#;
    let arguments = ["dns", "zone", "--network", "app"];
    let output = with_answer("/mesh/dns/zone?task=&network=app", "200 OK", report, &arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("in a network app"), "{}", text(&output.stderr));
}

/// A daemon that answers these requests, one after the other in any order, and one more by 404.
fn serve(directory: &Path, answers: Vec<(String, String)>) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(directory.join("docker.sock")).expect("a socket");
    std::thread::spawn(move || {
        let mut answers = answers;
        while !answers.is_empty() {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut request = [0; 4096];
            let len = stream.read(&mut request).expect("a request");
            let request = String::from_utf8_lossy(&request[..len]).into_owned();
            let found = answers.iter().position(|(path, _)| request.starts_with(&format!("GET {path} ")));
            let (_, body) = answers.remove(found.unwrap_or_else(|| panic!("not expected: {request}")));
            let (status, body) = match body.strip_prefix("!") {
                Some(message) => ("500 No", format!(r#"{{"message":"{message}"}}"#)),
                None => ("200 OK", body),
            };
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                .expect("it reads");
        }
    })
}

/// A way of one step.
fn way(at: &str, end: &str) -> String {
    let step = format!(r#"{{"node":"198.18.0.11","at":"{at}","says":"s"}}"#);
    format!(r#"{{"ways":[{{"chance":null,"steps":[{step}],"end":{end}}}]}}"#)
}

const PACKET: &str = r#"{"from":"198.18.0.11","to":"198.18.0.12","vni":4096,"endpoint":"10.0.0.6",
    "source":"192.0.2.1:40000","destination":"198.18.0.11:8080","protocol":6}"#;

#[test]
fn a_trace_is_followed_through_the_managers() {
    let sandbox = r#"{"sandbox":{"destination":"10.0.0.6:80","interface":"mv1","task":"web.2.b"}}"#;
    let here = "/mesh/trace?from=outside/192.0.2.1&to=web:8080&protocol=6&port=40000".to_owned();
    let there = "/mesh/nodes/198.18.0.12/trace/tunnelled?from=198.18.0.11&to=198.18.0.12&vni=4096\
                 &endpoint=10.0.0.6&source=192.0.2.1:40000&destination=198.18.0.11:8080&protocol=6";
    let first = way("ring", &format!(r#"{{"tunnel":{PACKET}}}"#));
    let arguments = ["trace", "--from", "outside/192.0.2.1", "--to", "web:8080"];
    let outcomes = [
        (way("target port", sandbox), "=> into the sandbox of web.2.b behind mv1, to 10.0.0.6:80\n"),
        (
            "!no manager has a session with it".to_owned(),
            "=> goes on at node 198.18.0.12, which did not tell\n",
        ),
    ];
    for (second, end) in outcomes {
        let directory = tempfile::tempdir().expect("a directory");
        let second_step = if second.starts_with('!') { "no manager has a session" } else { "target port" };
        let answers = vec![(here.clone(), first.clone()), (there.to_owned(), second)];
        let daemon = serve(directory.path(), answers);
        let shown = text(&meshctl(directory.path(), &arguments).stdout);
        daemon.join().expect("it was asked rightly");
        assert!(shown.ends_with(end), "{shown}");
        assert!(shown.contains("ring") && shown.contains(second_step), "{shown}");
    }
}

const TWO_NODES: &str = r#"[{"hostname":"m1","node_id":"a1","vtep":"198.18.0.11"},
    {"hostname":"w1","node_id":"b2","vtep":null}]"#;

fn of_both(rest: &str, first: &str, second: &str) -> Vec<(String, String)> {
    let on = |node: &str, answer: &str| (format!("/mesh/nodes/{node}{rest}"), answer.to_owned());
    vec![("/mesh/nodes".to_owned(), TWO_NODES.to_owned()), on("a1", first), on("b2", second)]
}

#[test]
fn all_nodes_are_shown_and_one_that_does_not_answer_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = serve(directory.path(), of_both("/endpoints", "[]", "!its session ended"));
    let output = meshctl(directory.path(), &["endpoints", "--all"]);
    daemon.join().expect("it was asked rightly");
    let shown = text(&output.stdout);
    assert!(shown.starts_with("== m1 (a1)\nVNI"), "{shown}");
    assert!(shown.ends_with("\n== w1 (b2)\nno answer: its session ended\n"), "{shown}");
    assert_eq!(output.status.code(), Some(1), "one is missing");

    let directory = tempfile::tempdir().expect("a directory");
    let daemon = serve(directory.path(), of_both("/endpoints", "[]", "[]"));
    let output = meshctl(directory.path(), &["endpoints", "--all", "--json"]);
    daemon.join().expect("it was asked rightly");
    assert!(output.status.success());
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(rows[1], serde_json::json!({ "hostname": "w1", "node_id": "b2", "answer": [] }));
}

#[test]
fn one_difference_anywhere_fails_verify_of_all() {
    let report = |differences: &str| {
        let generation = r#"{"epoch":1,"index":2}"#;
        format!(
            r#"{{"hostname":"h","node_id":"i","wanted":{generation},"applied":{generation},"n_rows":3,"is_compared":true,"differences":[{differences}],"problems":[]}}"#
        )
    };
    let behind =
        r#"{"table":"assignments","key":"-","is":"ab of generation 1.2","should":"cd of generation 1.3"}"#;
    for (second, code) in [(report(""), 0), (report(behind), 1)] {
        let directory = tempfile::tempdir().expect("a directory");
        let daemon = serve(directory.path(), of_both("/verify", &report(""), &second));
        let output = meshctl(directory.path(), &["verify", "--all"]);
        daemon.join().expect("it was asked rightly");
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stdout));
        let names_it = text(&output.stdout).contains("assignments: is: ab of generation 1.2; should be: cd");
        assert_eq!(names_it, code == 1, "{}", text(&output.stdout));
    }
}

#[test]
fn another_node_is_asked_through_the_daemon_and_never_from_the_pins() {
    let output = with_answer("/mesh/nodes/w1/lb", "200 OK", "[]", &["lb", "ls", "--node", "w1", "--json"]);
    assert_eq!((text(&output.stdout).as_str(), output.status.success()), ("[]\n", true));
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(directory.path().join("pins")).expect("made");
    let output = meshctl(directory.path(), &["lb", "ls", "--node", "w1"]);
    assert!(text(&output.stderr).contains("cannot connect to meshd"), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("pins"), "{}", text(&output.stderr));
    for task in [
        &["trace", "--from", "a", "--to", "b:1", "--all"][..],
        &["dns", "query", "--all", "--task", "a", "b"],
    ] {
        let output = meshctl(directory.path(), task);
        assert!(text(&output.stderr).contains("give it with --node"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_packet_is_sent_when_all_other_nodes_wait_for_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let generation = r#"{"epoch":1,"index":2}"#;
    let status = format!(
        r#"{{"hostname":"m1","node_id":"a1","cluster_id":"","role":"","vtep":null,"wanted":{generation},"applied":{generation},"hooks":[],"errors":[],"from_pins":false}}"#
    );
    let mark = |port: u16| (format!("/mesh/nodes/b2/trace/mark?protocol=6&port={port}"), "null".to_owned());
    let sandbox = r#"{"sandbox":{"destination":"10.0.0.6:80","interface":"mv1","task":"web.2.b"}}"#;
    let marked = "/mesh/nodes/198.18.0.12/trace/marked?from=198.18.0.11&to=198.18.0.12&vni=4096\
                  &endpoint=10.0.0.6&source=192.0.2.1:40000&destination=198.18.0.11:8080&protocol=6";
    let answers = vec![
        ("/mesh/status".to_owned(), status),
        ("/mesh/nodes".to_owned(), TWO_NODES.to_owned()),
        mark(4000),
        (
            "/mesh/trace/live?from=web.1&to=db:80&protocol=6&port=4000".to_owned(),
            way("program", &format!(r#"{{"tunnel":{PACKET}}}"#)),
        ),
        (marked.to_owned(), way("program", sandbox)),
        mark(0),
    ];
    let daemon = serve(directory.path(), answers);
    let arguments = ["trace", "--live", "--from", "web.1", "--to", "db:80", "--port", "4000"];
    let output = meshctl(directory.path(), &arguments);
    daemon.join().expect("it was asked rightly");
    let shown = text(&output.stdout);
    assert!(shown.ends_with("=> into the sandbox of web.2.b behind mv1, to 10.0.0.6:80\n"), "{shown}");
}

#[test]
fn packets_are_sampled_at_the_rate_asked_for() {
    let report = r#"{"every":7,"samples":[],"n_left_off":0,"n_lost":2}"#;
    let output = with_answer("/mesh/flows?every=7", "200 OK", report, &["flows", "--every", "7"]);
    assert!(text(&output.stdout).starts_with("(2 events were lost"), "{}", text(&output.stdout));
    let directory = tempfile::tempdir().expect("a directory");
    let output = meshctl(directory.path(), &["flows", "--every", "0"]);
    assert_eq!(output.status.code(), Some(2), "refused");
}

#[test]
fn a_refusal_is_shown_and_nothing_else_tried() {
    let output =
        with_answer("/mesh/lb", "500 Internal Server Error", r#"{"message":"no maps"}"#, &["lb", "ls"]);
    assert_eq!((text(&output.stderr).as_str(), output.status.code()), ("meshctl: no maps\n", Some(1)));
}

#[test]
fn without_daemon_and_pins_the_error_names_both() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = meshctl(directory.path(), &["status"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("cannot connect to meshd at unix://"), "{error}");
}

#[test]
fn a_difference_fails_verify_and_is_said() {
    let report = |differences: &str| {
        let generation = r#"{"epoch":1,"index":2}"#;
        format!(
            r#"{{"hostname":"h","node_id":"i","wanted":{generation},"applied":{generation},"n_rows":3,"differences":[{differences}],"problems":[]}}"#
        )
    };
    let sound = with_answer("/mesh/verify", "200 OK", &report(""), &["verify"]);
    assert!(sound.status.success(), "{}", text(&sound.stderr));
    let missing = r#"{"table":"peers","key":"198.18.0.12","is":null,"should":"there"}"#;
    let unsound = with_answer("/mesh/verify", "200 OK", &report(missing), &["verify"]);
    assert_eq!(unsound.status.code(), Some(1));
    assert!(text(&unsound.stdout).contains("peers 198.18.0.12: is missing"), "{}", text(&unsound.stdout));
    let json = with_answer("/mesh/verify", "200 OK", &report(missing), &["verify", "--json"]);
    assert_eq!(json.status.code(), Some(1));
    assert!(text(&json.stdout).contains(r#""key": "198.18.0.12""#), "{}", text(&json.stdout));
}

#[test]
fn verify_needs_meshd() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = meshctl(directory.path(), &["verify"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("only meshd can tell"), "{}", text(&output.stderr));
}
