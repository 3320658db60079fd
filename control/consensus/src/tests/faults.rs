//! Crashes while clients write: what was acknowledged is never lost, what was refused never appears.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use control_model::change::{Change, Object};
use control_model::object::Cluster;
use control_model::spec::Role;
use control_store::ReplicatedStore as _;
use openraft::async_runtime::WatchReceiver as _;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;

use super::rig::{Begin, Manager, PATIENCE, TestCluster, has_mark, mark};
use crate::Consensus;

const ROUNDS: usize = 6;
const WRITERS: u64 = 4;
const WRITES_BEFORE_CRASH: u64 = 60;

/// Writes marks one after another through `consensus` while it lives; returns those that were acknowledged.
async fn write_marks(
    consensus: Arc<Consensus>,
    first: u64,
    stop: Arc<AtomicBool>,
    written: watch::Sender<u64>,
) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    for number in first.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match consensus.propose(vec![mark(number)]).await {
            Ok(_) => {
                acknowledged.push(number);
                written.send_modify(|written| *written += 1);
            }
            // This manager was crashed.
            Err(_) => break,
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_crashes() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut cluster = TestCluster::new(3).await;
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, mut written) = watch::channel(0);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let manager = cluster.managers.choose(&mut random).unwrap();
                let first = (round as u64 * WRITERS + writer) * 100_000;
                tokio::spawn(write_marks(manager.consensus.clone(), first, stop.clone(), sender.clone()))
            })
            .collect();
        let enough = random.random_range(1..WRITES_BEFORE_CRASH);
        let writing = written.wait_for(|written| *written >= enough);
        tokio::time::timeout(PATIENCE, writing).await.expect("writes within the test's patience").unwrap();
        if random.random_bool(0.3) {
            cluster.managers[0].consensus.raft().trigger().snapshot().await.unwrap();
        }
        // The leader in two rounds of three, else any one.
        let victim = if round % 3 == 2 {
            cluster.managers.remove(random.random_range(0..3))
        } else {
            cluster.take_leader().await
        };
        let id = victim.id;
        let addr = victim.crash().await;
        cluster.managers[0].consensus.propose(vec![mark(50_000_000 + round as u64)]).await.unwrap();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            acknowledged.extend(writer.await.unwrap());
        }
        let dir = cluster.dir.path();
        let again = Manager::start(&cluster.authority, dir, id, Begin::Open, Some(addr)).await;
        cluster.managers.push(again);
        for manager in &cluster.managers {
            manager.consensus.linearize().await.unwrap();
            let lost: Vec<_> =
                acknowledged.iter().filter(|number| !has_mark(&manager.consensus, **number)).collect();
            assert!(lost.is_empty(), "manager {} lost {lost:?} in round {round}, seed {seed}", manager.id);
        }
    }
    // All replicas are the same, byte by byte, at the same index.
    let index = cluster.managers[0].consensus.propose(vec![mark(99_000_000)]).await.unwrap();
    let mut images = Vec::new();
    for manager in &cluster.managers {
        manager.consensus.wait_applied(index).await;
        let state = manager.consensus.state();
        images.push((state.index(), state.to_snapshot()));
    }
    let last = images.iter().map(|(index, _)| *index).max();
    let mut same = images.iter().filter(|(index, _)| Some(*index) == last).map(|(_, image)| image);
    let first = same.next().unwrap();
    assert!(same.all(|image| image == first));
    println!("{} acknowledged writes over {ROUNDS} crashes", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_few_large_entries_is_cut_off() {
    let cluster = TestCluster::new(1).await;
    let consensus = &cluster.managers[0].consensus;
    let large = 256 << 10;
    for number in 0..4 {
        let mut node = super::rig::node(50 + number, Role::Worker);
        node.description.hostname = "x".repeat(large);
        let object = Object::Node(Box::new(node));
        consensus.propose(vec![Change::Create(object)]).await.unwrap();
    }
    assert!(consensus.log_len_bytes() > 4 * large);
    let shrinking = async {
        while consensus.log_len_bytes() > large {
            crate::housekeeping::shrink(consensus.raft()).await.unwrap();
            tokio::time::sleep(crate::limits::RETRY_PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, shrinking).await.unwrap();
    consensus.propose(vec![mark(1)]).await.unwrap();
    assert_eq!(consensus.state().nodes().len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_and_what_is_kept_behind_them_are_the_clusters_settings() {
    let cluster = TestCluster::new(1).await;
    let consensus = &cluster.managers[0].consensus;
    for number in 0..40 {
        consensus.propose(vec![mark(number)]).await.unwrap();
    }
    tokio::time::sleep(2 * crate::limits::LOG_CHECK_INTERVAL).await;
    let ends = || {
        let metrics = consensus.raft().metrics();
        let now = metrics.borrow_watched();
        (now.snapshot.map(|id| id.index()), now.purged.map(|id| id.index()))
    };
    assert_eq!(ends(), (None, None), "by default there is one after 10,000 entries");

    let mut cluster_object = Cluster::clone(consensus.state().cluster().unwrap());
    cluster_object.spec.snapshot_interval = 20;
    cluster_object.spec.log_entries_for_slow_followers = 5;
    let expected = cluster_object.meta.version;
    let object = Object::Cluster(Box::new(cluster_object));
    consensus.propose(vec![Change::Update { object, expected }]).await.unwrap();
    let cut = async {
        loop {
            if let (Some(snapshot), Some(purged)) = ends() {
                break (snapshot, purged);
            }
            tokio::time::sleep(crate::limits::RETRY_PAUSE).await;
        }
    };
    let (snapshot, purged) = tokio::time::timeout(PATIENCE, cut).await.unwrap();
    assert!(snapshot > 40, "{snapshot}");
    assert_eq!(purged, snapshot - 5);
}
