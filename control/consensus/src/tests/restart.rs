//! What is on disk: found again, or refused.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use control_model::change::{Change, Object};
use control_model::spec::Role;
use control_store::ReplicatedStore as _;

use super::rig::{Authority, Begin, Manager, TestCluster, has_mark, mark, options};
use crate::limits::LOG_MEMORY_BYTES;
use crate::{Consensus, Kek, OpenError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_manager_finds_everything_again() {
    let mut cluster = TestCluster::new(1).await;
    let manager = cluster.managers.pop().unwrap();
    for number in 0..30 {
        manager.consensus.propose(vec![mark(number)]).await.unwrap();
    }
    let before = manager.consensus.state().to_snapshot();
    let addr = manager.crash().await;
    let dir = cluster.dir.path();
    assert_eq!(Consensus::stored_raft_id(&dir.join("m1")).unwrap(), Some(1));
    let again = Manager::start(&cluster.authority, dir, 1, Begin::Open, Some(addr)).await;
    again.consensus.linearize().await.unwrap();
    assert!(has_mark(&again.consensus, 29));
    assert_eq!(again.consensus.state().nodes().len(), 31);
    drop(before);
    again.consensus.propose(vec![mark(30)]).await.unwrap();
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_only_the_file_has_reach_a_new_manager_and_a_restarted_one() {
    let mut cluster = TestCluster::new(1).await;
    let large = 256 << 10;
    let n_large = 1 + LOG_MEMORY_BYTES / large;
    for number in 0..n_large {
        let mut node = super::rig::node(50 + u64::try_from(number).unwrap(), Role::Worker);
        node.description.hostname = "x".repeat(large);
        let change = Change::Create(Object::Node(Box::new(node)));
        cluster.managers[0].consensus.propose(vec![change]).await.unwrap();
    }
    assert!(cluster.managers[0].consensus.log_len_bytes() > LOG_MEMORY_BYTES);
    cluster.add(2).await;
    let has_all = |consensus: &Consensus| {
        let state = consensus.state();
        state.nodes().iter().filter(|node| node.description.hostname.len() == large).count() == n_large
    };
    cluster.managers[1].consensus.linearize().await.unwrap();
    assert!(has_all(&cluster.managers[1].consensus));
    let mut addrs = Vec::new();
    for manager in std::mem::take(&mut cluster.managers) {
        addrs.push((manager.id, manager.crash().await));
    }
    for (id, addr) in addrs {
        let again = Manager::start(&cluster.authority, cluster.dir.path(), id, Begin::Open, Some(addr)).await;
        assert!(has_all(&again.consensus));
        cluster.managers.push(again);
    }
    cluster.leader().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_managers_restart_and_go_on() {
    let mut cluster = TestCluster::new(3).await;
    cluster.managers[2].consensus.propose(vec![mark(1)]).await.unwrap();
    // One of them from a snapshot and a purged log.
    let raft = cluster.managers[1].consensus.raft().clone();
    raft.trigger().snapshot().await.unwrap();
    raft.wait(Some(super::rig::PATIENCE))
        .metrics(|metrics| metrics.snapshot.is_some(), "snapshot")
        .await
        .unwrap();
    let mut addrs = Vec::new();
    for manager in std::mem::take(&mut cluster.managers) {
        addrs.push((manager.id, manager.crash().await));
    }
    for (id, addr) in addrs {
        let dir = cluster.dir.path();
        let again = Manager::start(&cluster.authority, dir, id, Begin::Open, Some(addr)).await;
        cluster.managers.push(again);
    }
    for manager in &cluster.managers {
        cluster.leader().await;
        manager.consensus.linearize().await.unwrap();
        assert!(has_mark(&manager.consensus, 1));
    }
    cluster.managers[0].consensus.propose(vec![mark(2)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_directory_is_not_overwritten_and_an_unused_one_not_opened() {
    let cluster = TestCluster::new(1).await;
    let manager = &cluster.managers[0];
    let options = |id| {
        let channels = control_rpc::Channels::new(manager.identity());
        options(cluster.dir.path(), id, manager.addr, channels)
    };
    assert!(matches!(Consensus::create(options(1)).await, Err(OpenError::Exists(_))));
    assert!(matches!(Consensus::bootstrap(options(1), vec![]).await, Err(OpenError::Exists(_))));
    assert!(matches!(Consensus::open(options(2)).await, Err(OpenError::Absent(_))));
    let mut wrong = options(1);
    wrong.raft_id = 9;
    assert!(matches!(Consensus::open(wrong).await, Err(OpenError::OtherId(1, 9))));
    let mut wrong = options(1);
    wrong.kek = Kek::new([8; 32]);
    assert!(matches!(Consensus::open(wrong).await, Err(OpenError::WrongKey)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_readable_is_on_disk() {
    let mut cluster = TestCluster::new(1).await;
    let manager = cluster.managers.pop().unwrap();
    manager.consensus.raft().trigger().snapshot().await.unwrap();
    let wait = manager.consensus.raft().wait(Some(super::rig::PATIENCE));
    wait.metrics(|metrics| metrics.snapshot.is_some(), "snapshot").await.unwrap();
    let state = manager.consensus.state();
    let secret = state.cluster().unwrap().ca.manager_token.clone();
    let secret = secret.as_bytes();
    manager.stop().await;
    let mut files = 0;
    for file in fs::read_dir(cluster.dir.path().join("m1")).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        assert!(!bytes.windows(10).any(|window| window == b"BEGIN CERT"));
        files += 1;
    }
    assert_eq!(files, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_an_error_or_changes_nothing() {
    let mut cluster = TestCluster::new(1).await;
    let manager = cluster.managers.pop().unwrap();
    for number in 0..10 {
        manager.consensus.propose(vec![mark(number)]).await.unwrap();
    }
    let identity = manager.identity();
    let addr = manager.stop().await;
    let dir = cluster.dir.path().join("m1");
    let open = || {
        Consensus::open(options(cluster.dir.path(), 1, addr, control_rpc::Channels::new(identity.clone())))
    };
    for name in ["log.redb", "data.key"] {
        let path = dir.join(name);
        let good = fs::read(&path).unwrap();
        let used = good.iter().rposition(|byte| *byte != 0).unwrap();
        let step = (used / 16).max(1);
        let mut refused = 0;
        for at in (0..=used).step_by(step) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            match open().await {
                Err(_) => refused += 1,
                // A byte that nothing depends on.
                Ok(consensus) => {
                    consensus.linearize().await.unwrap();
                    assert!((0..10).all(|number| has_mark(&consensus, number)), "{name} byte {at}");
                    consensus.stop().await;
                }
            }
            fs::write(&path, &good).unwrap();
        }
        assert!(refused > 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_gone_is_an_error() {
    let mut cluster = TestCluster::new(1).await;
    let manager = cluster.managers.pop().unwrap();
    let identity = manager.identity();
    let addr = manager.stop().await;
    let path = cluster.dir.path().join("m1/log.redb");
    let good = fs::read(&path).unwrap();
    let open = || {
        let channels = control_rpc::Channels::new(identity.clone());
        Consensus::open(options(cluster.dir.path(), 1, addr, channels))
    };
    // It has voted and acknowledged: without its log it would do so again.
    fs::remove_file(&path).unwrap();
    assert!(matches!(open().await, Err(OpenError::Corrupt(_))));
    fs::write(&path, []).unwrap();
    assert!(matches!(open().await, Err(OpenError::Corrupt(_))));
    fs::write(&path, good).unwrap();
    open().await.unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_an_error() {
    let mut cluster = TestCluster::new(1).await;
    let manager = cluster.managers.pop().unwrap();
    manager.consensus.raft().trigger().snapshot().await.unwrap();
    let wait = manager.consensus.raft().wait(Some(super::rig::PATIENCE));
    wait.metrics(|metrics| metrics.snapshot.is_some(), "snapshot").await.unwrap();
    let identity = manager.identity();
    let addr = manager.stop().await;
    let path = cluster.dir.path().join("m1/snapshot.sealed");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    for cut in [false, true] {
        if cut {
            bytes.truncate(middle);
        } else {
            bytes[middle] ^= 1;
        }
        fs::write(&path, &bytes).unwrap();
        let channels = control_rpc::Channels::new(identity.clone());
        let opened = Consensus::open(options(cluster.dir.path(), 1, addr, channels)).await;
        assert!(matches!(opened, Err(OpenError::Corrupt(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_leaves_what_it_acknowledged() {
    let mut cluster = TestCluster::new(1).await;
    let manager = cluster.managers.pop().unwrap();
    for number in 0..10 {
        manager.consensus.propose(vec![mark(number)]).await.unwrap();
    }
    // The files as `kill -9` would leave them: open, and never closed.
    let killed = cluster.dir.path().join("killed");
    fs::create_dir_all(killed.join("m1")).unwrap();
    for file in fs::read_dir(cluster.dir.path().join("m1")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), killed.join("m1").join(file.file_name())).unwrap();
    }
    let addr = manager.crash().await;
    let again = Manager::start(&cluster.authority, &killed, 1, Begin::Open, Some(addr)).await;
    again.consensus.linearize().await.unwrap();
    assert!((0..10).all(|number| has_mark(&again.consensus, number)));
    again.consensus.propose(vec![mark(10)]).await.unwrap();
    again.stop().await;
}

/// Where the child of the test below keeps its data.
const CHILD_DIR: &str = "MESHD_TEST_RAFT_DIR";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that is killed by the test below"]
async fn child_that_writes_until_killed() {
    let dir = std::env::var(CHILD_DIR).unwrap();
    let authority = Authority::new();
    let manager = Manager::start(&authority, Path::new(&dir), 1, Begin::Bootstrap, None).await;
    for number in 0.. {
        manager.consensus.propose(vec![mark(number)]).await.unwrap();
        println!("wrote {number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process whose disk is full in the test below"]
async fn child_that_writes_until_its_disk_is_full() {
    let dir = std::env::var(CHILD_DIR).unwrap();
    let authority = Authority::new();
    let manager = Manager::start(&authority, Path::new(&dir), 1, Begin::Bootstrap, None).await;
    let refused = async {
        for number in 0.. {
            match manager.consensus.propose(vec![mark(number)]).await {
                Ok(_) => println!("wrote {number}"),
                Err(error) => return error,
            }
        }
        unreachable!("numbers don't end");
    };
    let refused = refused.await;
    let failure = async {
        while manager.consensus.failure().is_none() {
            tokio::time::sleep(crate::limits::RETRY_PAUSE).await;
        }
    };
    tokio::time::timeout(super::rig::PATIENCE, failure).await.unwrap();
    println!("refused {refused}");
    println!("failed {}", manager.consensus.failure().unwrap());
}

/// A limit on the size of files stands in for the disk's: either ends a write in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_raft_and_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let limited = "trap '' XFSZ; ulimit -f 8192; exec \"$0\" \"$@\"";
    let child = Command::new("sh")
        .args(["-c", limited])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tests::restart::child_that_writes_until_its_disk_is_full",
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD_DIR, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let written = said.lines().filter_map(|line| line.strip_prefix("wrote ")?.parse::<u64>().ok());
    let last = written.max().unwrap_or_else(|| panic!("nothing was written: {said}"));
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(said.lines().any(|line| line.starts_with("refused ")), "{said}");
    let failed = said.lines().find(|line| line.starts_with("failed ")).expect("it says why");
    println!("after {last} writes: {failed}");
    // With room again.
    let again = Manager::start(&Authority::new(), dir.path(), 1, Begin::Open, None).await;
    again.consensus.linearize().await.unwrap();
    assert!((0..=last).all(|number| has_mark(&again.consensus, number)), "of {last}");
    again.consensus.propose(vec![mark(last + 2)]).await.unwrap();
    assert_eq!(again.consensus.failure(), None);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_while_it_writes_loses_nothing_acknowledged() {
    for n_writes in [3, 17, 40] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::restart::child_that_writes_until_killed", "--ignored", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let written = |line: String| line.strip_prefix("wrote ").map(|number| number.parse::<u64>().unwrap());
        let last = lines.filter_map(written).nth(n_writes).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let again = Manager::start(&Authority::new(), dir.path(), 1, Begin::Open, None).await;
        again.consensus.linearize().await.unwrap();
        assert!((0..=last).all(|number| has_mark(&again.consensus, number)), "of {last}");
        again.stop().await;
    }
}
