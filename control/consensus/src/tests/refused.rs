//! Leaders whose port refuses connections, though their processes live: a packet filter does that.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use control_store::ReplicatedStore as _;

use super::rig::{Manager, PATIENCE, TestCluster, mark};

/// Longer than any election that is not wanted here.
const WHILE: Duration = Duration::from_secs(3);
/// The machine may stall for as long as an election takes.
const TRIES: usize = 5;

/// Nobody listens there.
fn nowhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// From now on `leader` reaches none of these, and its port refuses all.
async fn refuse(leader: &mut Manager, others: &[u64]) {
    for other in others {
        leader.consensus.addresses().note(*other, nowhere());
    }
    leader.cut_off().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_that_is_refused_deposes_no_leader_that_another_hears() {
    for round in 0.. {
        let mut cluster = TestCluster::new(3).await;
        let mut leader = cluster.take_leader().await;
        let term = leader.consensus.leadership().borrow().term;
        let cut = cluster.managers[0].id;
        refuse(&mut leader, &[cut]).await;
        let began = Instant::now();
        while began.elapsed() < WHILE && leader.consensus.leadership().borrow().is_me {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let now = *leader.consensus.leadership().borrow();
        if (now.is_me, now.term) == (true, term) {
            leader.consensus.propose(vec![mark(1)]).await.unwrap();
            return;
        }
        assert!(round < TRIES, "a healthy leader was deposed in each of {TRIES} rounds");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_by_refusals_answers_no_read_after_the_next_ones_write() {
    let mut cluster = TestCluster::new(3).await;
    let mut leader = cluster.take_leader().await;
    let ids: Vec<u64> = cluster.managers.iter().map(|manager| manager.id).collect();
    let index = leader.consensus.propose(vec![mark(1)]).await.unwrap();
    for manager in &cluster.managers {
        manager.consensus.wait_applied(index).await;
    }
    refuse(&mut leader, &ids).await;
    let began = Instant::now();
    let next = cluster.leader().await;
    cluster.get(next).consensus.propose(vec![mark(2)]).await.unwrap();
    println!("{:?} after the cut another one leads and has written", began.elapsed());
    let read = leader.consensus.read_index().await;
    assert!(read.is_err(), "it read at {:?}, before index {index} plus two", read.ok());
    let mut leadership = leader.consensus.leadership();
    let stepped_down = leadership.wait_for(|now| !now.is_me);
    tokio::time::timeout(PATIENCE, stepped_down).await.unwrap().unwrap();
}
