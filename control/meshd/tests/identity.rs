//! Who may open a manager's disk, and whom its certificate makes it. Needs root.

mod common;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use control_ca::{Certificate, NodeKey, RootCa};
use control_model::spec::Role;
use control_model::{PeerIdentity, Timestamp};
use serde_json::{Value, json};

use common::{Net, Node, eventually, message};

const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm \
                      unlock\" to unlock it.";

fn unlock_key(node: &Node) -> String {
    node.get("/swarm/unlockkey")["UnlockKey"].as_str().expect("a text").to_owned()
}

fn unlock(node: &Node, key: &str) -> (u16, Value) {
    node.call("POST", "/swarm/unlock", &json!({ "UnlockKey": key }))
}

/// `docker swarm update`, by what it changes in the spec and asks for.
fn update(node: &Node, asks: &str, change: impl FnOnce(&mut Value)) {
    let swarm = node.get("/swarm");
    let mut spec = swarm["Spec"].clone();
    change(&mut spec);
    let path = format!("/swarm/update?version={}{asks}", swarm["Version"]["Index"]);
    let (status, answer) = node.call("POST", &path, &spec);
    assert_eq!(status, 200, "{answer}");
}

fn set_autolock(node: &Node, autolock: bool) {
    update(node, "", |spec| spec["EncryptionConfig"]["AutoLockManagers"] = autolock.into());
}

/// Starts the daemon again, and waits until it stands as expected.
fn restart(node: &mut Node, expected: &str) {
    node.kill();
    node.start();
    eventually(&format!("the node is {expected}"), || node.swarm()["LocalNodeState"] == expected);
}

/// Is there a key on the disk that opens the rest of it?
fn lies_open(net: &Net, i: usize) -> bool {
    let dir = net.dir.path().join(format!("state/{i}/swarm"));
    let node = std::fs::read_to_string(dir.join("node.pem")).expect("a member's file");
    node.contains("PRIVATE KEY") || dir.join("raft.key").exists()
}

/// What opens a manager's disk, wrapped by the cluster's key: another file after each change of that key.
fn data_key(net: &Net) -> PathBuf {
    net.dir.path().join("state/0/swarm/raft/data.key")
}

/// Waits until the manager's disk opens by another key than it did with `before`: it follows its store in its own time.
fn followed(net: &Net, before: &[u8]) {
    eventually("the disk follows", || std::fs::read(data_key(net)).is_ok_and(|now| now != before));
}

#[test]
fn a_locked_manager_waits_for_its_key() {
    let net = Net::new("lock", 1);
    let mut node = net.node(0);
    node.start();
    let body = json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "eth0", "Spec": {}, "AutoLockManagers": true });
    assert_eq!(node.call("POST", "/swarm/init", &body).0, 200);
    assert!(!lies_open(&net, 0), "locked from its first moment");
    let first = unlock_key(&node);
    assert_eq!(unlock(&node, &first).0, 409, "it is not locked");
    let before = node.swarm();
    assert_eq!(before["Cluster"]["Spec"]["EncryptionConfig"]["AutoLockManagers"], true);

    restart(&mut node, "locked");
    for path in ["/nodes", "/services", "/swarm", "/swarm/unlockkey"] {
        let refused = node.call("GET", path, &Value::Null);
        assert_eq!((refused.0, message(&refused)), (503, LOCKED), "{path}");
    }
    let refused = node.call("POST", "/swarm/leave", &Value::Null);
    assert!(message(&refused).starts_with("Swarm is encrypted and locked."), "{refused:?}");
    let refused = unlock(&node, "nonsense");
    assert_eq!((refused.0, message(&refused)), (400, "invalid key string"));
    let wrong = unlock(&node, &format!("SWMKEY-1-{}", "A".repeat(43)));
    assert_eq!((wrong.0, message(&wrong)), (401, "swarm could not be unlocked: invalid key provided"));
    assert_eq!(node.swarm()["LocalNodeState"], "locked");

    let unlocked = unlock(&node, &first);
    assert_eq!(unlocked.0, 200, "{unlocked:?}");
    let after = node.swarm();
    assert_eq!((&after["NodeID"], &after["Cluster"]["ID"]), (&before["NodeID"], &before["Cluster"]["ID"]));
    assert_eq!(node.nodes(), ["node0 ready manager"]);

    // Who asks a manager for another key locks its disk with that before it hears of it.
    update(&node, "&rotateManagerUnlockKey=true", |_| {});
    let second = unlock_key(&node);
    assert_ne!(second, first);
    restart(&mut node, "locked");
    assert_eq!(unlock(&node, &first).0, 401, "the old key opens nothing");
    assert_eq!(unlock(&node, &second).0, 200);

    set_autolock(&node, false);
    eventually("the lock is off", || lies_open(&net, 0));
    restart(&mut node, "active");
    set_autolock(&node, true);
    eventually("the lock is on", || !lies_open(&net, 0));
    restart(&mut node, "locked");
    let left = node.call("POST", "/swarm/leave?force=1", &Value::Null);
    assert_eq!(left.0, 200, "{left:?}");
    assert_eq!(node.swarm()["LocalNodeState"], "inactive");
}

#[test]
fn a_manager_killed_in_a_rotation_opens_with_the_key_before_it_and_follows() {
    let net = Net::new("lrot", 1);
    let mut node = net.node(0);
    node.start();
    assert_eq!(node.init().0, 200);
    set_autolock(&node, true);
    eventually("the lock is on", || !lies_open(&net, 0));
    let first = unlock_key(&node);
    let before = std::fs::read(data_key(&net)).expect("a manager's file");
    update(&node, "&rotateManagerUnlockKey=true", |_| {});
    let second = unlock_key(&node);
    assert_ne!(second, first);
    // What is on the disk if it dies between the write and the file that follows from it.
    node.kill();
    std::fs::write(data_key(&net), &before).expect("written");
    node.start();
    eventually("the node is locked", || node.swarm()["LocalNodeState"] == "locked");
    assert_eq!(unlock(&node, &second).0, 401, "its disk has not seen this key");
    assert_eq!(unlock(&node, &first).0, 200);
    eventually("the manager has its store", || node.swarm()["ControlAvailable"] == true);
    assert_eq!(unlock_key(&node), second);
    followed(&net, &before);
    restart(&mut node, "locked");
    assert_eq!(unlock(&node, &first).0, 401, "it followed");
    assert_eq!(unlock(&node, &second).0, 200);
    assert_eq!(node.call("POST", "/swarm/leave?force=1", &Value::Null).0, 200);
}

#[test]
fn a_locked_manager_makes_a_new_cluster_of_itself_once_it_is_open() {
    let net = Net::new("lfrc", 1);
    let mut node = net.node(0);
    node.start();
    assert_eq!(node.init().0, 200);
    set_autolock(&node, true);
    eventually("the lock is on", || !lies_open(&net, 0));
    let key = unlock_key(&node);
    let before = node.swarm();
    restart(&mut node, "locked");
    let body =
        json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "eth0", "Spec": {}, "ForceNewCluster": true });
    let refused = node.call("POST", "/swarm/init", &body);
    assert_eq!((refused.0, message(&refused)), (503, LOCKED));
    assert_eq!(unlock(&node, &key).0, 200);
    for _ in 0..2 {
        let forced = node.call("POST", "/swarm/init", &body);
        assert_eq!((forced.0, &forced.1), (200, &before["NodeID"]), "{forced:?}");
        assert_eq!(node.swarm()["Cluster"]["ID"], before["Cluster"]["ID"]);
        assert_eq!(node.nodes(), ["node0 ready manager"]);
        assert!(!lies_open(&net, 0), "it is as locked as before");
    }
    restart(&mut node, "locked");
    assert_eq!(unlock(&node, &key).0, 200, "the node's own key is sealed by the same data key");
    assert_eq!(node.nodes(), ["node0 ready manager"]);
    assert_eq!(node.call("POST", "/swarm/leave?force=1", &Value::Null).0, 200);
}

#[test]
fn a_worker_of_a_locked_cluster_is_locked_while_it_is_a_manager() {
    let net = Net::new("lprm", 2);
    let (mut manager, mut worker) = (net.node(0), net.node(1));
    manager.start();
    worker.start();
    assert_eq!(manager.init().0, 200);
    set_autolock(&manager, true);
    let key = unlock_key(&manager);
    let tokens = manager.get("/swarm")["JoinTokens"].clone();
    assert_eq!(worker.join(tokens["Worker"].as_str().expect("a token")).0, 200);
    restart(&mut worker, "active");

    manager.set_role("node1", "manager");
    eventually("the worker is a manager", || worker.swarm()["ControlAvailable"] == true);
    assert!(!lies_open(&net, 1), "locked from its first moment as a manager");
    restart(&mut worker, "locked");
    assert_eq!(unlock(&worker, &key).0, 200);
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready manager"]);

    manager.set_role("node1", "worker");
    eventually("the manager is a worker", || worker.swarm()["ControlAvailable"] == false);
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready worker"]);
    restart(&mut worker, "active");
}

#[test]
fn a_rotated_root_changes_the_tokens_and_holds_over_restarts() {
    let net = Net::new("root", 2);
    let (mut manager, mut worker) = (net.node(0), net.node(1));
    manager.start();
    worker.start();
    assert_eq!(manager.init().0, 200);
    let token = |role: &str| manager.get("/swarm")["JoinTokens"][role].as_str().expect("a token").to_owned();
    let root = || manager.get("/swarm")["TLSInfo"]["TrustRoot"].as_str().expect("a root").to_owned();
    let (first_token, first_root) = (token("Worker"), root());

    update(&manager, "", |spec| spec["CAConfig"]["ForceRotate"] = 1.into());
    eventually("the rotation ends", || {
        manager.get("/swarm")["RootRotationInProgress"] == false && root() != first_root
    });
    let refused = worker.join(&first_token);
    assert_eq!(refused.0, 400, "{refused:?}");
    assert!(message(&refused).contains("remote CA does not match fingerprint."), "{refused:?}");
    assert_eq!(worker.join(&token("Worker")).0, 200);
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready worker"]);

    worker.kill();
    update(&manager, "", |spec| spec["CAConfig"]["ForceRotate"] = 2.into());
    restart(&mut manager, "active");
    eventually("the store is back", || manager.swarm()["ControlAvailable"] == true);
    assert_eq!(manager.get("/swarm")["RootRotationInProgress"], true, "it waits for the worker");
    worker.start();
    eventually("the rotation ends", || manager.get("/swarm")["RootRotationInProgress"] == false);
    restart(&mut worker, "active");
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready worker"]);
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    Timestamp(i64::try_from(since.as_nanos()).expect("before 2262"))
}

/// Gives a node that does not run a certificate that began `age` ago and is good for `life`.
fn give_certificate(net: &Net, i: usize, root: &RootCa, me: PeerIdentity, (age, life): (Duration, Duration)) {
    let then = now().before(age);
    let key = NodeKey::generate().expect("a key");
    let certificate = root.issue(&key.csr_pem, me, then, life).expect("signed");
    std::fs::write(node_pem(net, i), format!("{}\n{certificate}", key.key_pem.trim_end())).expect("written");
}

fn node_pem(net: &Net, i: usize) -> PathBuf {
    net.dir.path().join(format!("state/{i}/swarm/node.pem"))
}

fn certificate(net: &Net, i: usize) -> Certificate {
    let pem = std::fs::read_to_string(node_pem(net, i)).expect("a certificate");
    Certificate::parse(&pem[pem.find("-----BEGIN CERT").expect("one")..]).expect("a certificate")
}

const DAY: Duration = Duration::from_hours(24);
/// After a year in a cupboard.
const RUN_OUT: (Duration, Duration) = (DAY.saturating_mul(365), DAY);

#[test]
fn certificates_are_renewed_and_nodes_whose_ran_out_come_back_as_themselves() {
    let net = Net::new("exp", 2);
    let (mut manager, mut worker) = (net.node(0), net.node(1));
    manager.start();
    worker.start();
    assert_eq!(manager.init().0, 200);
    // A root of the test's own, so that it can sign for the past.
    let root = RootCa::generate(now()).expect("a root");
    update(&manager, "", |spec| {
        spec["CAConfig"]["SigningCACert"] = root.cert_pem().into();
        spec["CAConfig"]["SigningCAKey"] = root.key_pem().into();
    });
    eventually("the root is the cluster's", || {
        manager.get("/swarm")["TLSInfo"]["TrustRoot"] == root.cert_pem()
    });
    let token = manager.get("/swarm")["JoinTokens"]["Worker"].as_str().expect("a token").to_owned();
    assert_eq!(worker.join(&token).0, 200);
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready worker"]);
    let cluster_id = manager.swarm()["Cluster"]["ID"].as_str().expect("an id").parse().expect("an id");
    let ids = [manager.id_of("node0"), manager.id_of("node1")];
    let identity =
        |i: usize, role| PeerIdentity { node_id: ids[i].parse().expect("an id"), role, cluster_id };

    // Before four fifths of its life are over a certificate is renewed, by a worker as by a manager.
    for (i, node, role) in [(1, &mut worker, Role::Worker), (0, &mut manager, Role::Manager)] {
        node.kill();
        give_certificate(&net, i, &root, identity(i, role), (DAY * 75, DAY * 90));
        node.start();
        eventually("a new certificate", || certificate(&net, i).not_after > now().after(DAY * 80));
        assert_eq!(node.swarm()["LocalNodeState"], "active");
    }
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready worker"]);

    worker.kill();
    give_certificate(&net, 1, &root, identity(1, Role::Worker), RUN_OUT);
    worker.start();
    eventually("the worker says that it can't go on", || worker.swarm()["LocalNodeState"] == "error");
    let error = worker.swarm()["Error"].as_str().expect("a text").to_owned();
    assert!(error.starts_with("Swarm certificates have expired.") && error.contains("join-token"), "{error}");
    let refused = worker.call("GET", "/nodes", &Value::Null);
    assert_eq!((refused.0, message(&refused)), (503, error.as_str()));
    let refused = worker.join("SWMTKN-1-nonsense");
    assert_eq!((refused.0, message(&refused)), (400, "invalid join token"));
    let back = worker.join(&token);
    assert_eq!(back.0, 200, "{back:?}");
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready worker"]);
    assert_eq!(manager.id_of("node1"), ids[1], "it is the node that it was");
    assert_eq!(worker.join(&token).0, 503, "a member whose certificate is good is one already");

    // The only manager has nobody to ask.
    manager.kill();
    give_certificate(&net, 0, &root, identity(0, Role::Manager), RUN_OUT);
    manager.start();
    eventually("the manager has healed itself", || manager.swarm()["LocalNodeState"] == "active");
    manager.wait_for_nodes(&["node0 ready manager", "node1 ready worker"]);
    assert!(certificate(&net, 0).not_after > now());
    assert_eq!(manager.id_of("node0"), ids[0]);
}
