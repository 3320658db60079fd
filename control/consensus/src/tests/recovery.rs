//! A new cluster is forced out of an old one's remains, and the old one's managers come back.

use std::collections::BTreeSet;
use std::fs;

use control_model::spec::{NodeSpec, Role};
use control_model::{Change, Cluster, Node, NodeId, Object};
use control_store::{ReplicatedStore as _, State};

use super::rig::{Begin, Manager, PATIENCE, TestCluster, has_mark, mark, now, options, peer};
use crate::{Backup, BackupSecret, Consensus, OpenError};
use control_rpc::Channels;

/// The third manager's new Raft id.
const AGAIN: u64 = 33;

/// What the daemon does, but for the first node, which it leaves a wanted manager.
pub(super) fn raise_epoch(state: &State) -> Vec<Change> {
    let old = state.cluster().unwrap();
    let cluster = Cluster { epoch: old.epoch + 1, ..(**old).clone() };
    let mut changes =
        vec![Change::Update { object: Object::Cluster(Box::new(cluster)), expected: old.meta.version }];
    if let Some(old) = state.nodes().get(&NodeId::from_bits(2)) {
        let spec = NodeSpec { role: Role::Worker, ..old.spec.clone() };
        let node = Node { spec, ..(**old).clone() };
        changes.push(Change::Update { object: Object::Node(Box::new(node)), expected: old.meta.version });
    }
    changes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_goes_on_and_the_others_are_fenced_off() {
    let mut cluster = TestCluster::new(3).await;
    for number in 0..10 {
        cluster.managers[0].consensus.propose(vec![mark(number)]).await.unwrap();
    }
    let third = cluster.managers.pop().unwrap();
    third.consensus.linearize().await.unwrap();
    let before = (third.consensus.state().index(), third.consensus.leadership().borrow().term);
    let mut others = Vec::new();
    for manager in std::mem::take(&mut cluster.managers) {
        others.push((manager.id, manager.crash().await));
    }
    let addr = third.crash().await;
    let dir = cluster.dir.path();
    let again = Manager::start(&cluster.authority, dir, 3, Begin::Recover(AGAIN), Some(addr)).await;
    again.consensus.linearize().await.unwrap();
    assert!((0..10).all(|number| has_mark(&again.consensus, number)));
    assert_eq!(again.consensus.generation().epoch, 2);
    assert_eq!(again.consensus.voters(), BTreeSet::from([AGAIN]));
    let index = again.consensus.propose(vec![mark(10)]).await.unwrap();
    let term = again.consensus.leadership().borrow().term;
    assert!((index, term) > before, "{index} in term {term}, {before:?} before");

    // The old side has its quorum again.
    let mut old = Vec::new();
    for (id, addr) in others {
        old.push(Manager::start(&cluster.authority, dir, id, Begin::Open, Some(addr)).await);
    }
    // The one that leads is told first; the other one hears of it when it has to elect another.
    while !old.is_empty() {
        let waits = old.iter().map(|manager| {
            let mut fenced = manager.consensus.fenced();
            Box::pin(async move {
                fenced.wait_for(Option::is_some).await.map(|beyond| beyond.map(|beyond| beyond.epoch))
            })
        });
        let first = tokio::time::timeout(PATIENCE, futures::future::select_all(waits)).await;
        let (epoch, at, _) = first.expect("one is told in time");
        assert_eq!(epoch.unwrap(), Some(2), "manager {}", old[at].id);
        old.remove(at).crash().await;
    }
    assert_eq!(*again.consensus.fenced().borrow(), None);
    assert_eq!(again.consensus.leadership().borrow().term, term, "nobody disturbed it");
    again.consensus.propose(vec![mark(11)]).await.unwrap();

    // As from then on after every restart.
    let addr = again.stop().await;
    let again = Manager::reopen(&cluster.authority, dir, (3, AGAIN), addr).await;
    again.consensus.linearize().await.unwrap();
    assert!(has_mark(&again.consensus, 11));
    cluster.managers.push(again);
    cluster.add(4).await;
    let fourth = &cluster.get(4).consensus;
    fourth.propose(vec![mark(12)]).await.unwrap();
    assert_eq!((fourth.generation().epoch, fourth.voters()), (2, BTreeSet::from([AGAIN, 4])));
}

/// A manager that is gone may have told a user of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_were_not_known_to_be_committed_count() {
    let mut cluster = TestCluster::new(2).await;
    let leader = cluster.take_leader().await;
    let id = leader.id;
    cluster.managers.pop().unwrap().crash().await;
    leader.consensus.propose(vec![mark(1)]).await.unwrap_err();
    assert!(!has_mark(&leader.consensus, 1));
    let addr = leader.crash().await;
    let dir = cluster.dir.path();
    let again = Manager::start(&cluster.authority, dir, id, Begin::Recover(AGAIN), Some(addr)).await;
    assert!(has_mark(&again.consensus, 1));
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_and_a_cut_log_are_enough() {
    let mut cluster = TestCluster::new(1).await;
    let manager = cluster.managers.pop().unwrap();
    for number in 0..5 {
        manager.consensus.propose(vec![mark(number)]).await.unwrap();
    }
    let applied = manager.consensus.state().index();
    let raft = manager.consensus.raft().clone();
    raft.trigger().snapshot().await.unwrap();
    let wait = || raft.wait(Some(PATIENCE));
    wait().metrics(|m| m.snapshot.is_some_and(|s| s.index() >= applied), "snapshot").await.unwrap();
    raft.trigger().purge_log(applied).await.unwrap();
    wait().metrics(|m| m.purged.is_some_and(|p| p.index() >= applied), "purge").await.unwrap();
    manager.consensus.propose(vec![mark(5)]).await.unwrap();
    let addr = manager.crash().await;
    // Half of an earlier attempt, which was killed.
    let beside = cluster.dir.path().join("m1.new");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("log.redb"), "torn").unwrap();
    let dir = cluster.dir.path();
    let again = Manager::start(&cluster.authority, dir, 1, Begin::Recover(AGAIN), Some(addr)).await;
    assert!((0..6).all(|number| has_mark(&again.consensus, number)));
    assert!(!beside.exists(), "the old data is gone");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_becomes_a_cluster_elsewhere() {
    let mut cluster = TestCluster::new(1).await;
    let manager = cluster.managers.pop().unwrap();
    for number in 0..5 {
        manager.consensus.propose(vec![mark(number)]).await.unwrap();
    }
    let secret = BackupSecret::KeyFile(vec![7; 32].into());
    let state = (*manager.consensus.state()).clone();
    let me = manager.identity().me();
    let backup = Backup { taken_at: now(), node: me.node_id, cluster: me.cluster_id, state };
    let file = backup.seal(&secret).unwrap();
    manager.consensus.propose(vec![mark(5)]).await.unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    let state = Backup::open(&file, &secret).unwrap().state;
    let open = || Manager::restore(&cluster.authority, elsewhere.path(), (1, AGAIN), state.clone());
    let again = open().await.unwrap();
    again.consensus.linearize().await.unwrap();
    assert!((0..5).all(|number| has_mark(&again.consensus, number)) && !has_mark(&again.consensus, 5));
    assert_eq!((again.consensus.generation().epoch, again.consensus.voters()), (2, BTreeSet::from([AGAIN])));
    again.consensus.propose(vec![mark(6)]).await.unwrap();
    let addr = again.stop().await;
    assert!(matches!(open().await, Err(OpenError::Exists(_))), "a used directory is not overwritten");
    let again = Manager::reopen(&cluster.authority, elsewhere.path(), (1, AGAIN), addr).await;
    again.consensus.linearize().await.unwrap();
    assert!(has_mark(&again.consensus, 6));
    again.stop().await;
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_made_of_nothing_or_of_damage() {
    let mut cluster = TestCluster::new(1).await;
    let manager = cluster.managers.pop().unwrap();
    let identity = manager.identity();
    manager.consensus.propose(vec![mark(1)]).await.unwrap();
    let addr = manager.stop().await;
    let recover = async |id| {
        let options = options(cluster.dir.path(), id, addr, Channels::new(identity.clone()));
        Consensus::recover(options, raise_epoch).await.map(drop)
    };
    assert!(matches!(recover(9).await, Err(OpenError::Absent(_))));
    // A manager that has not joined yet.
    let empty = cluster.authority.identity(peer(2, Role::Manager));
    let options = options(cluster.dir.path(), 2, addr, Channels::new(empty));
    Consensus::create(options).await.unwrap().stop().await;
    let refused = recover(2).await;
    assert!(matches!(refused, Err(OpenError::Empty(_))), "{refused:?}");

    let path = cluster.dir.path().join("m1/log.redb");
    let good = fs::read(&path).unwrap();
    let mut refused = 0;
    for at in (0..good.len()).step_by(good.len() / 16) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        let data = fs::read(cluster.dir.path().join("m1/data.key")).unwrap();
        if recover(1).await.is_ok() {
            // A byte that nothing depends on. What was made is as good as the old.
            break;
        }
        assert_eq!(fs::read(cluster.dir.path().join("m1/data.key")).unwrap(), data, "nothing has changed");
        refused += 1;
    }
    assert!(refused > 0);
}
