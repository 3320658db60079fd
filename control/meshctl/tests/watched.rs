//! What is watched as JSON: each line is a report of [`dataplane_model::inspect`], of one node or with the name of each.

use std::fmt::Debug;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use dataplane_model::inspect::{
    DropsReport, FlowSample, FlowSamples, NodeAnswer, NodeOutcome, ProgramCounters, SampledPacket,
    SampledTunnel, TopDrop, TopProgram, TopReport, TopRows, TopService,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

const N_LINES: usize = 4;
const TWO_NODES: &str = r#"[{"hostname":"m1","node_id":"a1","vtep":"198.18.0.11"},
    {"hostname":"w1","node_id":"b2","vtep":null}]"#;

/// A daemon that says the same as often as it is asked, of whatever node. Ends with the test.
fn serve(directory: &Path, report: String) {
    let listener = UnixListener::bind(directory.join("docker.sock")).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 4096];
            let len = stream.read(&mut request).expect("a request");
            let body = if request[..len].starts_with(b"GET /mesh/nodes HTTP") { TWO_NODES } else { &report };
            let _written = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
}

/// The first lines that `meshctl` writes.
fn lines(report: &impl Serialize, arguments: &[&str]) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a directory");
    serve(directory.path(), serde_json::to_string(report).expect("JSON"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .env("DOCKER_HOST", format!("unix://{}", directory.path().join("docker.sock").display()))
        .args(arguments)
        .arg("--json")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let out = BufReader::new(child.stdout.take().expect("piped"));
    let lines = out.lines().take(N_LINES).map(|line| line.expect("text")).collect();
    // It may have ended, since nobody reads any more.
    let _killed = child.kill();
    child.wait().expect("it ends");
    lines
}

/// Every field comes back, and there is no other.
fn read<T: DeserializeOwned + Serialize + PartialEq + Debug>(line: &str) -> T {
    let report: T = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let fields: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(serde_json::to_value(&report).expect("JSON"), fields);
    report
}

/// When the daemon says `said`, each line is `shown`.
fn check<T>(said: &T, shown: &T, command: &[&str])
where
    T: DeserializeOwned + Serialize + PartialEq + Debug,
{
    let of_one = lines(said, command);
    assert_eq!(of_one.len(), N_LINES);
    for line in &of_one {
        assert_eq!(read::<T>(line), *shown);
    }
    let of_all = lines(said, &[command, &["--all"]].concat());
    assert_eq!(of_all.len(), N_LINES);
    for (line, hostname) in of_all.iter().zip(["m1", "w1"].into_iter().cycle()) {
        let answer: NodeAnswer<T> = read(line);
        assert_eq!(answer.hostname, hostname);
        match &answer.outcome {
            NodeOutcome::Answer(report) => assert_eq!(report, shown),
            NodeOutcome::Error(error) => panic!("{error}"),
        }
    }
}

#[test]
fn each_line_of_top_is_a_report() {
    let rows = TopRows { n_now: 7, n_new: 2 };
    let program = "mesh_xdp".to_owned();
    let report = TopReport {
        elapsed_ms: 1001,
        services: vec![TopService {
            port: "8080/tcp".into(),
            service: "web".into(),
            entering: rows,
            kept: rows,
            sockets: rows,
        }],
        programs: vec![TopProgram { program: program.clone(), n_packets: 5, n_runs: 6, run_time_ns: 700 }],
        drops: vec![TopDrop { program, reason: "no-backend".into(), n_packets: 3 }],
    };
    check(&report, &report, &["top"]);
}

#[test]
fn each_line_of_flows_is_a_report() {
    let inner = SampledPacket {
        destination_mac: "02:42:0a:00:00:05".into(),
        protocol: "tcp".into(),
        source: "192.0.2.1:40000".into(),
        destination: "198.18.0.11:8080".into(),
        flags: "S".into(),
        inner: None,
    };
    let before = SampledPacket { inner: Some(Box::new(inner.clone())), ..inner.clone() };
    let sample = FlowSample {
        at_ns: 1,
        program: "mesh_uplink".into(),
        interface: "up0".into(),
        verdict: "dropped".into(),
        reason: Some("no-backend".into()),
        len: 74,
        tunnel: Some(SampledTunnel { from: [198, 18, 0, 12].into(), vni: 4096 }),
        before,
        after: inner,
    };
    let report = FlowSamples { every: 1, samples: vec![sample], n_left_off: 2, n_lost: 3 };
    check(&report, &report, &["flows", "--watch"]);
}

/// What was counted before is no second's.
#[test]
fn each_line_of_drops_is_a_report_of_what_is_new() {
    let program = |n: u64| ProgramCounters {
        program: "mesh_xdp".into(),
        received: 6 * n,
        forwarded: 3 * n,
        passed: n,
        drops: vec![("no-backend".to_owned(), 2 * n)],
    };
    let said = DropsReport { programs: vec![program(1)] };
    let quiet = ProgramCounters { drops: vec![], ..program(0) };
    check(&said, &DropsReport { programs: vec![quiet] }, &["drops", "--watch"]);
}
