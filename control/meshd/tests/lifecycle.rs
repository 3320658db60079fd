//! The daemon as it is run: in network namespaces, spoken to through its socket. Needs root.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest time for anything in these tests, on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// Namespaces that are joined by one link, each with a daemon's directories; removed when dropped.
struct Net {
    name: String,
    dir: tempfile::TempDir,
    n_nodes: usize,
}

impl Net {
    /// One namespace with an interface whose other end is unused, or two that are linked.
    fn new(test: &str, n_nodes: usize) -> Self {
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

    fn node(&self, i: usize) -> Node<'_> {
        Node { net: self, i, child: None }
    }

    fn bpffs(&self, i: usize) -> PathBuf {
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
struct Node<'a> {
    net: &'a Net,
    i: usize,
    child: Option<Child>,
}

impl Node<'_> {
    fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("a log");
        let child = self.net.meshd(self.i).stderr(log).stdin(Stdio::null()).spawn().expect("started");
        self.child = Some(child);
        eventually("the daemon answers", || UnixStream::connect(self.socket()).is_ok());
    }

    fn log(&self) -> PathBuf {
        self.net.dir.path().join(format!("{}.log", self.i))
    }

    fn socket(&self) -> PathBuf {
        self.net.dir.path().join(format!("run/{}/docker.sock", self.i))
    }

    fn kill(&mut self) {
        let mut child = self.child.take().expect("running");
        child.kill().expect("killed");
        child.wait().expect("ended");
    }

    /// SIGTERM; returns whether it ended well.
    fn terminate(&mut self) -> bool {
        let mut child = self.child.take().expect("running");
        run("kill", &["-TERM", &child.id().to_string()]);
        child.wait().expect("ended").success()
    }

    /// An API call: status and body.
    fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
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

    fn get(&self, path: &str) -> Value {
        let (status, value) = self.call("GET", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    fn swarm(&self) -> Value {
        self.get("/info")["Swarm"].clone()
    }

    fn init(&self) -> (u16, Value) {
        let body = json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "eth0", "Spec": {} });
        self.call("POST", "/swarm/init", &body)
    }

    fn join(&self, token: &str) -> (u16, Value) {
        let body = json!({
            "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "", "RemoteAddrs": ["198.18.77.11:2377"], "JoinToken": token,
        });
        self.call("POST", "/swarm/join", &body)
    }

    /// Hostname, state and role of all nodes, as this manager sees them.
    fn nodes(&self) -> Vec<String> {
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

    fn wait_for_nodes(&self, expected: &[&str]) {
        eventually(&format!("nodes are {expected:?}"), || self.nodes() == expected);
    }

    fn id_of(&self, hostname: &str) -> String {
        let nodes = self.get("/nodes");
        let mut all = nodes.as_array().expect("a list").iter();
        let node = all.find(|n| n["Description"]["Hostname"] == hostname).expect("a member");
        node["ID"].as_str().expect("an id").to_owned()
    }

    fn set_role(&self, hostname: &str, role: &str) {
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

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output().expect("started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
    output
}

fn ip(args: &str) {
    run("ip", &args.split(' ').collect::<Vec<_>>());
}

/// Waits for the outside world, which tells nobody when it has changed.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "timeout: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn message(answer: &(u16, Value)) -> &str {
    answer.1["message"].as_str().unwrap_or_default()
}

#[test]
fn one_node_from_init_over_a_kill_to_leave() {
    let net = Net::new("one", 1);
    let mut node = net.node(0);
    node.start();
    assert_eq!(node.swarm()["LocalNodeState"], "inactive");

    let (status, id) = node.init();
    assert_eq!(status, 200, "{id}");
    let before = node.swarm();
    assert_eq!(before["NodeID"], id);
    assert_eq!((&before["LocalNodeState"], &before["ControlAvailable"]), (&json!("active"), &json!(true)));
    assert_eq!(node.nodes(), ["node0 ready manager"]);
    let again = node.init();
    assert_eq!(again.0, 503, "{again:?}");
    assert!(message(&again).starts_with("This node is already part of a swarm."), "{again:?}");

    node.kill();
    node.start();
    eventually("the store is back", || node.swarm()["ControlAvailable"] == true);
    let after = node.swarm();
    assert_eq!((&after["NodeID"], &after["Cluster"]["ID"]), (&before["NodeID"], &before["Cluster"]["ID"]));

    let refused = node.call("POST", "/swarm/leave", &Value::Null);
    assert_eq!(refused.0, 503, "{refused:?}");
    assert!(message(&refused).contains("Removing the last manager erases all current state"), "{refused:?}");
    let left = node.call("POST", "/swarm/leave?force=1", &Value::Null);
    assert_eq!(left.0, 200, "{left:?}");
    assert_eq!(node.swarm()["LocalNodeState"], "inactive");
    assert!(!net.bpffs(0).join("v1").exists(), "the data plane is gone");

    assert_eq!(node.init().0, 200, "a new swarm can begin");
    assert_ne!(node.swarm()["Cluster"]["ID"], before["Cluster"]["ID"]);
    assert!(node.terminate(), "SIGTERM is a clean end");
    assert!(!node.socket().exists(), "the socket is gone");
}

#[test]
fn a_worker_joins_becomes_manager_and_worker_again_and_leaves() {
    let net = Net::new("two", 2);
    let (mut manager, mut worker) = (net.node(0), net.node(1));
    manager.start();
    worker.start();
    assert_eq!(manager.init().0, 200);
    let tokens = manager.get("/swarm")["JoinTokens"].clone();
    let token = tokens["Worker"].as_str().expect("a token");

    let refused = worker.join("SWMTKN-1-nonsense");
    assert_eq!((refused.0, message(&refused)), (400, "invalid join token"));
    let mut wrong = token.to_owned();
    wrong.pop();
    wrong.push(if token.ends_with('0') { '1' } else { '0' });
    let refused = worker.join(&wrong);
    assert!(message(&refused).contains("A valid join token is necessary"), "{refused:?}");
    assert_eq!(manager.nodes(), ["node0 ready manager"], "no node was made");
    assert_eq!(worker.swarm()["LocalNodeState"], "inactive");

    let joined = worker.join(token);
    assert_eq!(joined.0, 200, "{joined:?}");
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready worker"]);
    let refused = worker.call("GET", "/nodes", &Value::Null);
    assert!(message(&refused).contains("This node is not a swarm manager."), "{refused:?}");

    manager.set_role("node1", "manager");
    eventually("the worker is a manager", || worker.swarm()["ControlAvailable"] == true);
    worker.wait_for_nodes(&["node0 ready manager", "node1 ready manager"]);

    manager.set_role("node1", "worker");
    eventually("the manager is a worker", || worker.swarm()["ControlAvailable"] == false);
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready worker"]);

    let left = worker.call("POST", "/swarm/leave", &Value::Null);
    assert_eq!(left.0, 200, "{left:?}");
    manager.wait_for_nodes(&["node0 ready manager", "node1 down worker"]);

    let gone = manager.call("DELETE", &format!("/nodes/{}", manager.id_of("node1")), &Value::Null);
    assert_eq!(gone.0, 200, "{gone:?}");
    assert_eq!(worker.join(token).0, 200, "a node may come back as another one");
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready worker"]);
    let removed = format!("/nodes/{}?force=1", manager.id_of("node1"));
    assert_eq!(manager.call("DELETE", &removed, &Value::Null).0, 200);
    eventually("the removed node knows it", || worker.swarm()["LocalNodeState"] == "error");
    let left = worker.call("POST", "/swarm/leave", &Value::Null);
    assert_eq!(left.0, 200, "{left:?}");
}

/// The digest of a node's assignments, asked for by `at`.
fn digest(at: &Node, path: &str) -> String {
    at.get(path)["digest"].as_str().expect("a fingerprint").to_owned()
}

#[test]
fn a_manager_asks_every_node() {
    let net = Net::new("ask", 2);
    let (mut manager, mut worker) = (net.node(0), net.node(1));
    manager.start();
    worker.start();
    assert_eq!(manager.init().0, 200);
    let tokens = manager.get("/swarm")["JoinTokens"].clone();
    assert_eq!(worker.join(tokens["Worker"].as_str().expect("a token")).0, 200);
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready worker"]);

    let rows = manager.get("/mesh/nodes");
    assert_eq!(rows[1]["hostname"], "node1", "{rows}");
    assert_eq!(rows[1]["vtep"], "198.18.77.12", "{rows}");
    for name in ["node1", "198.18.77.12", rows[1]["node_id"].as_str().expect("an id")] {
        let status = manager.get(&format!("/mesh/nodes/{name}/status"));
        assert_eq!((&status["hostname"], &status["role"]), (&json!("node1"), &json!("worker")));
    }
    assert_eq!(manager.get("/mesh/nodes/node0/status")["role"], "manager (leader)");
    let unknown = manager.call("GET", "/mesh/nodes/node7/status", &Value::Null);
    assert_eq!((unknown.0, message(&unknown)), (404, "no node has the name, id or tunnel end node7"));
    // What is not inspection, and other nodes' inspection, no node answers to a manager.
    for path in
        ["/mesh/nodes/node1/nodes", "/mesh/nodes/node1/nodes/node0/status", "/mesh/nodes/node1/%2e%2e/info"]
    {
        let refused = manager.call("GET", path, &Value::Null);
        assert_ne!(refused.0, 200, "{path}: {refused:?}");
    }
    let worker_asks = worker.call("GET", "/mesh/nodes/node0/status", &Value::Null);
    assert!(message(&worker_asks).contains("only managers may ask other nodes"), "{worker_asks:?}");
    assert_eq!(worker.call("GET", "/mesh/nodes", &Value::Null).0, 503);

    eventually("both hold what the manager wants", || {
        ["node0", "node1"].iter().all(|node| {
            let report = manager.get(&format!("/mesh/nodes/{node}/verify"));
            let tables = report["differences"].as_array().expect("a list");
            report["is_compared"] == true && tables.iter().all(|d| d["table"] != "assignments")
        })
    });
    assert_eq!(worker.get("/mesh/verify")["is_compared"], false, "a worker can't know");
    let before = digest(&manager, "/mesh/nodes/node1/assigned");
    assert_eq!(digest(&worker, "/mesh/assigned"), before);

    worker.kill();
    eventually("the worker's end is noticed", || {
        let gone = manager.call("GET", "/mesh/nodes/node1/status", &Value::Null);
        gone.0 == 500 && message(&gone) == "no manager has a session with it"
    });
    worker.start();
    eventually("it is asked again", || {
        manager.call("GET", "/mesh/nodes/node1/assigned", &Value::Null).0 == 200
    });
}

#[test]
fn what_is_cut_half_way_can_be_gone_on_with() {
    let net = Net::new("cut", 1);
    let mut node = net.node(0);
    node.start();

    let mut client = UnixStream::connect(node.socket()).expect("the daemon listens");
    let body = r#"{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"eth0","Spec":{}}"#;
    let head = format!("POST /v1.41/swarm/init HTTP/1.1\r\nHost: d\r\nContent-Length: {}\r\n", body.len());
    write!(client, "{head}Content-Type: application/json\r\n\r\n{body}").expect("sent");
    eventually("init has begun", || node.swarm()["LocalNodeState"] != "inactive");
    drop(client);
    eventually("init ends without its client", || node.swarm()["LocalNodeState"] == "active");
    let before = node.swarm();

    // As a crash leaves it on the way in or out of a swarm.
    node.kill();
    let swarm_dir = net.dir.path().join("state/0/swarm");
    std::fs::remove_file(swarm_dir.join("node.json")).expect("a member's file");
    assert!(swarm_dir.join("raft").exists(), "the old swarm's raft data is there");
    node.start();
    assert_eq!(node.swarm()["LocalNodeState"], "inactive");
    let (status, answer) = node.init();
    assert_eq!(status, 200, "{answer}");
    assert_ne!(node.swarm()["Cluster"]["ID"], before["Cluster"]["ID"]);

    // A mount can't be removed: the leave fails.
    let busy = swarm_dir.join("busy");
    std::fs::create_dir(&busy).expect("made");
    let path = busy.to_str().expect("UTF-8");
    run("mount", &["-t", "tmpfs", "tmpfs", path]);
    let failed = node.call("POST", "/swarm/leave?force=1", &Value::Null);
    let state = node.swarm()["LocalNodeState"].clone();
    run("umount", &[path]);
    assert_ne!(failed.0, 200, "{failed:?}");
    assert_eq!(state, "error", "{failed:?}");
    let left = node.call("POST", "/swarm/leave?force=1", &Value::Null);
    assert_eq!(left.0, 200, "{left:?}");
    assert_eq!(node.swarm()["LocalNodeState"], "inactive");
    assert!(!net.bpffs(0).join("v1").exists(), "the data plane is gone");
}
