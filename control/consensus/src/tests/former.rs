//! Certificates of managers that are none any more, where no leader says so.

use std::collections::BTreeSet;
use std::time::Duration;

use control_model::change::{Change, Object, ObjectRef};
use control_model::spec::Role;
use control_model::{NodeId, Timestamp};
use control_rpc::{Channels, encode, pb};
use control_store::{ProposeError, ReadError, ReplicatedStore as _};
use openraft::raft::VoteRequest;

use super::cluster::codes;
use super::rig::{Manager, PATIENCE, TestCluster, create_node, mark, now, peer};
use crate::Consensus;
use crate::network::{To, raft_client};
use crate::types::TypeConfig;

fn id(n: u64) -> NodeId {
    NodeId::from_bits(n.into())
}

async fn demote(consensus: &Consensus, n: u64) {
    let node = consensus.state().nodes().get(&id(n)).unwrap().clone();
    let mut demoted = (*node).clone();
    demoted.spec.role = Role::Worker;
    let object = Object::Node(Box::new(demoted));
    consensus.propose(vec![Change::Update { object, expected: node.meta.version }]).await.unwrap();
}

/// Of two managers the one that does not lead, when the other is gone.
async fn leaderless(mut cluster: TestCluster) -> (TestCluster, Manager) {
    let leader = cluster.take_leader().await;
    let left = cluster.managers.pop().unwrap();
    leader.consensus.linearize().await.unwrap();
    left.consensus.linearize().await.unwrap();
    leader.crash().await;
    let mut leadership = left.consensus.leadership();
    tokio::time::timeout(PATIENCE, leadership.wait_for(|now| now.leader.is_none())).await.unwrap().unwrap();
    (cluster, left)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_managers_messages_are_refused_also_without_a_leader() {
    let cluster = TestCluster::new(2).await;
    let channels = |n| Channels::new(cluster.authority.identity(peer(n, Role::Manager)));
    let [removed, demoted, stranger] = [5, 6, 7].map(channels);
    // Given in the hour after its demotion.
    let soon = Timestamp(now().0 + 3_600_000_000_000 / 2);
    let again = cluster.authority.identity_until(peer(6, Role::Manager), soon, Duration::from_hours(24));
    let again = Channels::new(again);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let consensus = &cluster.managers[0].consensus;
    consensus.propose(vec![create_node(5, Role::Manager), create_node(6, Role::Manager)]).await.unwrap();
    consensus.propose(vec![Change::Delete(ObjectRef::Node(id(5)))]).await.unwrap();
    demote(consensus, 6).await;

    let (_cluster, left) = leaderless(cluster).await;
    // What does nothing without a leader is open: reads and writes for other managers.
    let closed = "PermissionDenied".to_owned();
    for former in [&removed, &demoted] {
        assert!(codes(former, left.addr).await.contains(&closed));
        let status = ask_for_vote(former, &left, 99).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status}");
    }
    for newer in [&stranger, &again] {
        let heard = codes(newer, left.addr).await;
        assert!(!heard.contains(&closed), "this replica may be behind: {heard:?}");
    }
    left.consensus.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_was_let_go_says_so_and_not_that_there_is_no_leader() {
    let cluster = TestCluster::new(3).await;
    let leader = cluster.leader().await;
    let (leader, former) = (cluster.get(leader), cluster.follower(leader));
    demote(&leader.consensus, former.id).await;
    former.consensus.linearize().await.unwrap();
    leader.consensus.remove_voter(former.id).await.unwrap();
    let mut leadership = former.consensus.leadership();
    tokio::time::timeout(PATIENCE, leadership.wait_for(|now| now.leader.is_none())).await.unwrap().unwrap();
    assert_eq!(former.consensus.linearize().await, Err(ReadError::NotManager));
    assert_eq!(former.consensus.propose(vec![mark(1)]).await, Err(ProposeError::NotManager));
}

/// The manager with `channels` asks `of` for its vote for `candidate`, in a term far ahead.
async fn ask_for_vote(channels: &Channels, of: &Manager, candidate: u64) -> Result<(), tonic::Status> {
    let vote = openraft::Vote::new(1_000, candidate);
    let message = VoteRequest::<TypeConfig> { vote, last_log_id: None, leadership_transfer: false };
    let body = encode(&To { to: of.id, message }).unwrap();
    raft_client(channels, of.addr).vote(pb::Payload { body }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_votes_under_its_own_raft_id_alone() {
    let cluster = TestCluster::new(2).await;
    let leader = cluster.leader().await;
    let (of, other) = (cluster.get(leader), cluster.follower(leader));
    let channels = Channels::new(other.identity());
    let status = ask_for_vote(&channels, of, of.id).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (tonic::Code::PermissionDenied, &*format!("this Raft id is that of node {}", id(of.id)))
    );
    ask_for_vote(&channels, of, other.id).await.unwrap();
    let known: BTreeSet<u64> = of.consensus.members().into_keys().collect();
    assert!(known.contains(&other.id));
}
