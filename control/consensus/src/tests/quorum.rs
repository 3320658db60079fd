//! Quorum: found lost, named, waited for where it is only an election.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use control_store::{ProposeError, ReadError, ReplicatedStore as _};
use openraft::async_runtime::WatchReceiver as _;

use super::rig::{PATIENCE, TestCluster, has_mark, mark};
use crate::Consensus;
use crate::limits::{LEADER_LOST_AFTER, RETRY_PAUSE};

/// A user's patience. Tests of the real time are for idle machines; here a busy one may take longer.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_every_call_soon_says_who_is_missing() {
    let mut cluster = TestCluster::new(3).await;
    cluster.managers[0].consensus.propose(vec![mark(1)]).await.unwrap();
    let last = cluster.take_leader().await;
    last.consensus.linearize().await.unwrap();
    let mut missing = Vec::new();
    for manager in cluster.managers {
        missing.push(manager.crash().await);
    }
    // A leader may read for as long as its lease lasts.
    let mut leadership = last.consensus.leadership();
    let lost = leadership.wait_for(|now| !now.is_me && now.leader.is_none());
    tokio::time::timeout(PATIENCE, lost).await.unwrap().unwrap();
    for round in 0..3 {
        let began = Instant::now();
        let (write, read) = tokio::join!(last.consensus.propose(vec![mark(2)]), last.consensus.linearize());
        println!("round {round}: {:?}", began.elapsed());
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        let Err(ProposeError::NoLeader(write)) = write else { panic!("{write:?}") };
        let Err(ReadError::NoLeader(read)) = read else { panic!("{read:?}") };
        for text in [write, read] {
            assert!(
                text.starts_with("The swarm does not have a leader. It's possible that too few"),
                "{text}"
            );
            assert!(text.contains("1 of 3 managers answer, 2 are needed"), "{text}");
            assert!(missing.iter().all(|addr| text.contains(&addr.to_string())), "{text}");
            assert!(text.contains("docker swarm init --force-new-cluster"), "{text}");
        }
    }
    assert_eq!(last.consensus.silent().len(), 2);
    assert!(has_mark(&last.consensus, 1), "what it has can be read");
    last.stop().await;
}

/// What it appended then would be committed when the others come back, though its user was told otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_quorum_steps_down_and_appends_nothing() {
    let mut cluster = TestCluster::new(3).await;
    let leader = cluster.take_leader().await;
    for manager in cluster.managers {
        manager.crash().await;
    }
    let mut leadership = leader.consensus.leadership();
    let lost = leadership.wait_for(|now| !now.is_me && now.leader.is_none());
    tokio::time::timeout(PATIENCE, lost).await.unwrap().unwrap();
    let last_log = || leader.consensus.raft().metrics().borrow_watched().last_log_index;
    let before = last_log();
    leader.consensus.propose(vec![mark(1)]).await.unwrap_err();
    assert_eq!(last_log(), before);
    leader.stop().await;
}

/// Writes and reads in turn, all of which must succeed; how many, and the longest.
async fn call_until(consensus: Arc<Consensus>, first: u64, stop: Arc<AtomicBool>) -> (u64, Duration) {
    let mut longest = Duration::ZERO;
    for number in first.. {
        if stop.load(Ordering::Relaxed) {
            return (number - first, longest);
        }
        let began = Instant::now();
        if number % 2 == 0 {
            consensus.propose(vec![mark(number)]).await.expect("a write is held over the change");
        } else {
            consensus.linearize().await.expect("a read is held over the change");
        }
        longest = longest.max(began.elapsed());
    }
    unreachable!("numbers don't end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_the_leader_fails_no_call() {
    for crash in [false, true] {
        let mut cluster = TestCluster::new(3).await;
        let leader = cluster.take_leader().await;
        let stop = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                let manager = &cluster.managers[caller % 2];
                let first = u64::try_from(caller).unwrap() * 100_000;
                tokio::spawn(call_until(manager.consensus.clone(), first, stop.clone()))
            })
            .collect();
        cluster.managers[0].consensus.propose(vec![mark(900_000)]).await.unwrap();
        if crash {
            leader.crash().await;
        } else {
            leader.stop().await;
        }
        cluster.managers[0].consensus.propose(vec![mark(900_001)]).await.unwrap();
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            let (n_calls, longest) = caller.await.unwrap();
            println!("crash: {crash}, {n_calls} calls, the longest took {longest:?}");
        }
    }
}

/// Without pre-vote its term would grow with each of its elections, and end that of the leader when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_hears_nobody_disturbs_nobody() {
    let mut cluster = TestCluster::new(3).await;
    let leader = cluster.leader().await;
    let term = cluster.get(leader).consensus.leadership().borrow().term;
    let cut_off = cluster.managers.iter().position(|manager| manager.id != leader).unwrap();
    cluster.managers[cut_off].cut_off().await;
    let mut leadership = cluster.managers[cut_off].consensus.leadership();
    let lost = leadership.wait_for(|now| now.leader.is_none());
    tokio::time::timeout(PATIENCE, lost).await.unwrap().unwrap();
    // Some elections long.
    tokio::time::sleep(LEADER_LOST_AFTER).await;
    cluster.get(leader).consensus.propose(vec![mark(1)]).await.unwrap();
    cluster.managers[cut_off].serve_again().await;
    let found = leadership.wait_for(|now| now.leader == Some(leader));
    tokio::time::timeout(PATIENCE, found).await.unwrap().unwrap();
    for manager in &cluster.managers {
        let now = *manager.consensus.leadership().borrow();
        assert_eq!((now.leader, now.term), (Some(leader), term), "manager {}", manager.id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_learn_from_the_leader_who_is_silent() {
    let mut cluster = TestCluster::new(3).await;
    let leader = cluster.leader().await;
    let dead = cluster.managers.iter().position(|manager| manager.id != leader).unwrap();
    let dead = cluster.managers.remove(dead);
    let dead_id = dead.id;
    dead.crash().await;
    let follower = &cluster.follower(leader).consensus;
    let learning = async {
        loop {
            follower.linearize().await.unwrap();
            if follower.silent() == BTreeSet::from([dead_id]) {
                return;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, learning).await.unwrap();
    assert_eq!(cluster.get(leader).consensus.silent(), BTreeSet::from([dead_id]));
}
