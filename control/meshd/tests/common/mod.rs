//! Daemons in network namespaces, as they are run, spoken to through their sockets.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest time for anything in these tests, on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// Namespaces that are joined by one link, each with a daemon's directories; removed when dropped.
pub struct Net {
    name: String,
    pub dir: tempfile::TempDir,
    n_nodes: usize,
}

impl Net {
    /// One namespace with an interface whose other end is unused, or two that are linked.
    pub fn new(test: &str, n_nodes: usize) -> Self {
        let name = format!("md{test}{}", std::process::id() % 100_000);
        let net = Self { name, dir: tempfile::tempdir().expect("a directory"), n_nodes };
        for i in 0..2 {
            ip(&format!("netns add {}", net.netns(i)));
            ip(&format!("-n {} link set lo up", net.netns(i)));
        }
        ip(&format!("-n {} link add eth0 type veth peer name eth0 netns {}", net.netns(0), net.netns(1)));
        for i in 0..2 {
            ip(&format!("-n {} addr add 198.18.77.{}/24 dev eth0", net.netns(i), 11 + i));
            ip(&format!("-n {} link set eth0 up", net.netns(i)));
        }
        net
    }

    fn netns(&self, i: usize) -> String {
        format!("{}-{i}", self.name)
    }

    pub fn node(&self, i: usize) -> Node<'_> {
        Node { net: self, i, child: None }
    }

    pub fn bpffs(&self, i: usize) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name).join(i.to_string())
    }

    /// `meshd` with this node's directories, in its namespace.
    fn meshd(&self, i: usize) -> Command {
        let path = |kind: &str| self.dir.path().join(kind).join(i.to_string());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.netns(i)))
            .arg(env!("CARGO_BIN_EXE_meshd"))
            .arg("--state-dir")
            .arg(path("state"))
            .arg("--run-dir")
            .arg(path("run"))
            .arg("--bpffs-dir")
            .arg(self.bpffs(i))
            .arg("--cgroup-parent")
            .arg(format!("/{}/{i}", self.name))
            .args(["--hostname", &format!("node{i}"), "--log-level", "debug,h2=warn,hyper_util=warn"]);
        command
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for i in 0..self.n_nodes {
            let torn_down = self.meshd(i).arg("teardown").output();
            let gone = torn_down.is_ok_and(|output| output.status.success());
            assert!(gone || std::thread::panicking(), "teardown of node {i} failed");
        }
        let _ = std::fs::remove_dir(Path::new("/sys/fs/bpf").join(&self.name));
        for i in 0..2 {
            ip(&format!("netns del {}", self.netns(i)));
        }
    }
}

/// A daemon, killed when dropped.
pub struct Node<'a> {
    net: &'a Net,
    i: usize,
    child: Option<Child>,
}

impl Node<'_> {
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// With further options.
    pub fn start_with(&mut self, options: &[String]) {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("a log");
        let mut daemon = self.net.meshd(self.i);
        let child = daemon.args(options).stderr(log).stdin(Stdio::null()).spawn().expect("started");
        self.child = Some(child);
        eventually("the daemon answers", || UnixStream::connect(self.socket()).is_ok());
    }

    /// What the daemon's program says with these words, and whether all is well.
    pub fn says(&self, words: &[String]) -> (bool, String) {
        let output = self.net.meshd(self.i).args(words).output().expect("started");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The output of another program in the node's namespace.
    pub fn run_beside(&self, program: &str, words: &[String]) -> Output {
        let netns = format!("--net=/run/netns/{}", self.net.netns(self.i));
        Command::new("nsenter").arg(netns).arg(program).args(words).output().expect("started")
    }

    fn log(&self) -> PathBuf {
        self.net.dir.path().join(format!("{}.log", self.i))
    }

    pub fn socket(&self) -> PathBuf {
        self.net.dir.path().join(format!("run/{}/docker.sock", self.i))
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("running");
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    /// SIGTERM; returns whether it ended well.
    pub fn terminate(&mut self) -> bool {
        let mut child = self.child.take().expect("running");
        run("kill", &["-TERM", &child.id().to_string()]);
        child.wait().expect("ended").success()
    }

    /// An API call: status and body.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut socket = UnixStream::connect(self.socket()).expect("the daemon listens");
        socket.set_read_timeout(Some(LIMIT)).expect("set");
        write!(
            socket,
            "{method} /v1.41{path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        // A body in pieces has sizes around it; the JSON is between.
        let json = body.find(['{', '[', '"']).zip(body.rfind(['}', ']', '"']));
        let value = json.and_then(|(from, to)| serde_json::from_str(&body[from..=to]).ok());
        (status, value.unwrap_or_default())
    }

    pub fn get(&self, path: &str) -> Value {
        let (status, value) = self.call("GET", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    pub fn swarm(&self) -> Value {
        self.get("/info")["Swarm"].clone()
    }

    pub fn init(&self) -> (u16, Value) {
        let body = json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "eth0", "Spec": {} });
        self.call("POST", "/swarm/init", &body)
    }

    pub fn join(&self, token: &str) -> (u16, Value) {
        let body = json!({
            "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "", "RemoteAddrs": ["198.18.77.11:2377"], "JoinToken": token,
        });
        self.call("POST", "/swarm/join", &body)
    }

    /// Hostname, state and role of all nodes, as this manager sees them.
    pub fn nodes(&self) -> Vec<String> {
        let nodes = self.get("/nodes");
        let line = |n: &Value| {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let (name, state) = (text(&n["Description"]["Hostname"]), text(&n["Status"]["State"]));
            format!("{name} {state} {}", text(&n["Spec"]["Role"]))
        };
        let mut lines: Vec<_> = nodes.as_array().expect("a list").iter().map(line).collect();
        lines.sort();
        lines
    }

    pub fn wait_for_nodes(&self, expected: &[&str]) {
        eventually(&format!("nodes are {expected:?}"), || self.nodes() == expected);
    }

    pub fn id_of(&self, hostname: &str) -> String {
        let nodes = self.get("/nodes");
        let mut all = nodes.as_array().expect("a list").iter();
        let node = all.find(|n| n["Description"]["Hostname"] == hostname).expect("a member");
        node["ID"].as_str().expect("an id").to_owned()
    }

    pub fn set_role(&self, hostname: &str, role: &str) {
        let nodes = self.get("/nodes");
        let all = nodes.as_array().expect("a list");
        let node = all.iter().find(|n| n["Description"]["Hostname"] == hostname).expect("a member");
        let (id, version) = (node["ID"].as_str().expect("an id"), &node["Version"]["Index"]);
        let body = json!({ "Role": role, "Availability": "active" });
        let (status, answer) = self.call("POST", &format!("/nodes/{id}/update?version={version}"), &body);
        assert_eq!(status, 200, "{answer}");
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("-- node {}:\n{}", self.i, tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

pub fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output().expect("started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
    output
}

fn ip(args: &str) {
    run("ip", &args.split(' ').collect::<Vec<_>>());
}

/// Waits for the outside world, which tells nobody when it has changed.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "timeout: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn message(answer: &(u16, Value)) -> &str {
    answer.1["message"].as_str().unwrap_or_default()
}
