//! The daemon as it is run: in network namespaces, spoken to through its socket. Needs root.

mod common;

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use common::{Net, Node, eventually, message, run};

#[test]
fn one_node_from_init_over_a_kill_to_leave() {
    let net = Net::new("one", 1);
    let mut node = net.node(0);
    node.start();
    assert_eq!(node.swarm()["LocalNodeState"], "inactive");

    let (status, id) = node.init();
    assert_eq!(status, 200, "{id}");
    let before = node.swarm();
    let tokens = node.get("/swarm")["JoinTokens"].clone();
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

    let (status, another_id) = node.init();
    assert_eq!(status, 200, "a new swarm can begin");
    assert_ne!(another_id, id, "of another node");
    assert_ne!(node.swarm()["Cluster"]["ID"], before["Cluster"]["ID"]);
    assert_ne!(node.get("/swarm")["JoinTokens"], tokens);
    assert_eq!(node.nodes(), ["node0 ready manager"]);
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

#[test]
fn one_of_two_managers_leaves_by_force_and_comes_back_as_another_node() {
    let net = Net::new("force", 2);
    let (mut first, mut second) = (net.node(0), net.node(1));
    first.start();
    second.start();
    let (listen, advertise) = ("0.0.0.0:2377", "eth0");
    let init =
        json!({ "ListenAddr": listen, "AdvertiseAddr": advertise, "Spec": {}, "Availability": "drain" });
    assert_eq!(first.call("POST", "/swarm/init", &init).0, 200);
    let nodes = first.get("/nodes");
    assert_eq!(nodes[0]["Spec"]["Availability"], "drain");
    let root = first.swarm()["Cluster"]["TLSInfo"]["TrustRoot"].as_str().unwrap_or_default().to_owned();
    assert!(root.starts_with("-----BEGIN CERTIFICATE-----"), "{root}");

    let token = |kind: &str| first.get("/swarm")["JoinTokens"][kind].as_str().expect("a token").to_owned();
    let (as_manager, as_worker) = (token("Manager"), token("Worker"));
    assert_eq!(second.join(&as_manager).0, 200);
    first.wait_for_nodes(&["node0 ready manager", "node1 ready manager"]);
    let leads = |id: &str| first.get(&format!("/nodes/{id}"))["ManagerStatus"]["Leader"] == true;
    let id = first.id_of("node1");
    assert!(leads(&first.id_of("node0")) && !leads(&id), "who joins leads nobody");
    let is_of_an_id = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    assert!(id.len() == 25 && id.chars().all(is_of_an_id), "{id}");
    let again = second.join(&as_worker);
    assert_eq!(again.0, 503, "{again:?}");
    assert!(message(&again).contains("This node is already part of a swarm."), "{again:?}");

    let refused = second.call("POST", "/swarm/leave", &Value::Null);
    assert_eq!(refused.0, 503, "{refused:?}");
    assert!(
        message(&refused).contains("Without a Raft quorum your swarm will be inaccessible"),
        "{refused:?}"
    );
    assert_eq!(second.call("POST", "/swarm/leave?force=1", &Value::Null).0, 200);
    // It has given up its seat: one of one is a majority.
    let made = first.call("POST", "/networks/create", &json!({ "Name": "n", "Driver": "overlay" }));
    assert_eq!(made.0, 201, "{made:?}");
    assert_eq!(second.join(&token("Worker")).0, 200);
    first.wait_for_nodes(&["node0 ready manager", "node1 down manager", "node1 ready worker"]);
    let all = first.get("/nodes");
    let n_former = all.as_array().expect("a list").iter().filter(|node| node["ID"] == id.as_str()).count();
    assert_eq!((n_former, all.as_array().map(Vec::len)), (1, Some(3)), "who comes back is another node");
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
