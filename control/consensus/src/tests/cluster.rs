//! Several managers: forwarding, failover, membership, snapshots.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use control_model::change::{Change, Entry, ObjectRef, RequestId};
use control_model::spec::Role;
use control_model::{NodeId, Timestamp};
use control_store::{ApplyError, ProposeError, ReplicatedStore as _};
use futures::StreamExt;
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver as _;

use super::rig::{Authority, Begin, Manager, PATIENCE, TestCluster, create_node, has_mark, mark, now, peer};
use crate::network::raft_client;
use crate::{Consensus, JoinError, Member, MembershipError};
use control_rpc::{Channels, pb};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_writes_through_the_leader_and_reads_what_others_wrote() {
    let cluster = TestCluster::new(3).await;
    let leader = cluster.leader().await;
    let follower = &cluster.follower(leader).consensus;
    let index = follower.propose(vec![mark(1)]).await.unwrap();
    assert!(has_mark(follower, 1));
    assert!(follower.state().index() >= index);
    for manager in &cluster.managers {
        manager.consensus.linearize().await.unwrap();
        assert!(has_mark(&manager.consensus, 1), "manager {}", manager.id);
        assert_eq!(manager.consensus.voters(), BTreeSet::from([1, 2, 3]));
    }
    // Refused by the state: the same answer everywhere, nothing changed.
    let exists = follower.propose(vec![mark(2), mark(1)]).await.unwrap_err();
    assert!(matches!(exists, ProposeError::Refused(ApplyError::Exists(ObjectRef::Node(_)))));
    assert!(!has_mark(follower, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_when_the_leader_crashes() {
    let mut cluster = TestCluster::new(3).await;
    let leader = cluster.take_leader().await;
    let old = leader.id;
    leader.crash().await;
    let began = Instant::now();
    cluster.managers[0].consensus.propose(vec![mark(1)]).await.unwrap();
    println!("first write {:?} after the leader's crash", began.elapsed());
    let new = cluster.leader().await;
    assert_ne!(new, old);
    cluster.managers[1].consensus.linearize().await.unwrap();
    assert!(has_mark(&cluster.managers[1].consensus, 1));
}

/// By silence alone nobody is elected so soon: the lease and the shortest timeout, less a heartbeat that was just due.
const SILENCE: Duration = Duration::from_millis(600 + 300 - 250);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_process_has_ended_is_replaced_before_its_silence_says_so() {
    let mut cluster = TestCluster::new(3).await;
    for round in 1.. {
        let leader = cluster.take_leader().await;
        let id = leader.id;
        let began = Instant::now();
        let addr = leader.crash().await;
        cluster.managers[0].consensus.propose(vec![mark(round)]).await.unwrap();
        let taken = began.elapsed();
        println!("first write {taken:?} after the crash");
        if taken < SILENCE {
            return;
        }
        assert!(round < 10, "the others always wait for the leader's silence");
        // The machine may have stalled.
        let dir = cluster.dir.path().to_owned();
        let again = Manager::start(&cluster.authority, &dir, id, Begin::Open, Some(addr)).await;
        cluster.managers.push(again);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_heard_leads_on_though_its_port_refuses() {
    let mut cluster = TestCluster::new(3).await;
    for round in 0.. {
        let leader = cluster.leader().await;
        let at = cluster.managers.iter().position(|manager| manager.id == leader).unwrap();
        let term = cluster.managers[at].consensus.leadership().borrow().term;
        cluster.managers[at].cut_off().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = cluster.leader().await;
        cluster.managers[at].serve_again().await;
        let now = cluster.managers[at].consensus.leadership().borrow().term;
        if (after, now) == (leader, term) {
            return;
        }
        // The machine may have stalled for as long as an election takes.
        assert!(round < 5, "the others replace a leader that they hear");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over_first() {
    let mut cluster = TestCluster::new(3).await;
    let leader = cluster.take_leader().await;
    let term = cluster.managers[0].consensus.leadership().borrow().term;
    let old = leader.id;
    leader.stop().await;
    let began = Instant::now();
    cluster.managers[0].consensus.propose(vec![mark(1)]).await.unwrap();
    println!("first write {:?} after the leader's stop", began.elapsed());
    assert_ne!(cluster.leader().await, old);
    // One election, not several.
    let after = cluster.managers[0].consensus.leadership().borrow().term;
    assert!(after <= term + 2, "term {term} became {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_writes_and_reads_say_so_and_state_stays_readable() {
    let mut cluster = TestCluster::new(3).await;
    cluster.managers[0].consensus.propose(vec![mark(1)]).await.unwrap();
    let last = cluster.managers.pop().unwrap();
    last.consensus.linearize().await.unwrap();
    for manager in cluster.managers {
        manager.crash().await;
    }
    let words = "The swarm does not have a leader. It's possible that too few managers are online.";
    let write = last.consensus.propose(vec![mark(2)]);
    let read = last.consensus.linearize();
    let (write, read) = tokio::join!(write, read);
    let (write, read) = (write.unwrap_err().to_string(), read.unwrap_err().to_string());
    assert!(write.contains(words) && read.contains(words), "{write} / {read}");
    assert!(has_mark(&last.consensus, 1) && !has_mark(&last.consensus, 2));
    let mut leadership = last.consensus.leadership();
    let none = leadership.wait_for(|now| now.leader.is_none() && !now.is_me);
    tokio::time::timeout(PATIENCE, none).await.unwrap().unwrap();
    last.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_leader_decided_is_written_in_its_term_or_never() {
    let cluster = TestCluster::new(3).await;
    let leader = cluster.get(cluster.leader().await);
    let term = leader.consensus.leadership().borrow().term;
    leader.consensus.propose_as_leader(term, vec![mark(1)]).await.unwrap();
    assert!(has_mark(&leader.consensus, 1));
    let refused = |done: Result<u64, ProposeError>| assert!(matches!(done, Err(ProposeError::NoLeader(_))));
    refused(leader.consensus.propose_as_leader(term - 1, vec![mark(2)]).await);
    for other in cluster.managers.iter().filter(|manager| manager.id != leader.id) {
        refused(other.consensus.propose_as_leader(term, vec![mark(3)]).await);
    }
    leader.consensus.propose(vec![mark(4)]).await.unwrap();
    assert!(!has_mark(&leader.consensus, 2) && !has_mark(&leader.consensus, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_applies_once() {
    let cluster = TestCluster::new(2).await;
    let leader = cluster.leader().await;
    let entry = |request, change| Entry { request: RequestId(request), at: now(), changes: vec![change] };
    let follower = &cluster.follower(leader).consensus;
    follower.propose_entry(entry(u128::MAX, mark(1))).await.unwrap();
    // Without the request's memory the second create would be refused.
    cluster.get(leader).consensus.propose_entry(entry(u128::MAX, mark(1))).await.unwrap();
    let other = follower.propose_entry(entry(5, mark(1))).await.unwrap_err();
    assert!(matches!(other, ProposeError::Refused(ApplyError::Exists(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_above_the_limit_is_refused_on_every_manager() {
    let cluster = TestCluster::new(2).await;
    let mut large = super::rig::node(50, Role::Worker);
    large.description.hostname = "x".repeat(crate::limits::MAX_ENTRY_BYTES);
    let change = Change::Create(control_model::Object::Node(Box::new(large)));
    for manager in &cluster.managers {
        let error = manager.consensus.propose(vec![change.clone()]).await.unwrap_err();
        assert_eq!(error, ProposeError::TooLarge);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_member_starts_from_a_snapshot_and_its_watchers_see_the_difference() {
    let mut cluster = TestCluster::new(1).await;
    let first = cluster.managers[0].consensus.clone();
    for number in 0..20 {
        first.propose(vec![mark(number)]).await.unwrap();
    }
    first.propose(vec![create_node(2, Role::Manager)]).await.unwrap();
    // A large object makes the image more than one piece long.
    let mut large = super::rig::node(60, Role::Worker);
    large.description.hostname = "x".repeat(1 << 20);
    first.propose(vec![Change::Create(control_model::Object::Node(Box::new(large)))]).await.unwrap();
    let applied = first.state().index();
    first.raft().trigger().snapshot().await.unwrap();
    let wait = || first.raft().wait(Some(PATIENCE));
    wait().metrics(|m| m.snapshot.is_some_and(|s| s.index() >= applied), "snapshot").await.unwrap();
    first.raft().trigger().purge_log(applied).await.unwrap();
    wait().metrics(|m| m.purged.is_some_and(|p| p.index() >= applied), "purge").await.unwrap();

    let second = Manager::start(&cluster.authority, cluster.dir.path(), 2, Begin::Create, None).await;
    let (before, mut events) = second.consensus.subscribe();
    assert_eq!(before.nodes().len(), 0);
    second.consensus.join(cluster.managers[0].addr).await.unwrap();
    let batch = events.next().await.unwrap();
    assert_eq!(batch.events.len(), first.state().nodes().len() + 1);
    assert!(has_mark(&second.consensus, 19));
    second.consensus.propose(vec![mark(100)]).await.unwrap();
    assert!(has_mark(&first, 100));
    cluster.managers.push(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_voters_leave_and_the_quorum_is_kept() {
    let mut cluster = TestCluster::new(3).await;
    let leader = cluster.leader().await;
    // A follower asks for the leader's removal: leadership moves first.
    let follower = cluster.follower(leader);
    follower.consensus.remove_voter(leader).await.unwrap();
    follower.consensus.remove_voter(leader).await.unwrap();
    follower.consensus.linearize().await.unwrap();
    assert!(!follower.consensus.voters().contains(&leader));
    let gone = cluster.managers.iter().position(|manager| manager.id == leader).unwrap();
    let gone = cluster.managers.remove(gone);
    gone.crash().await;
    cluster.managers[0].consensus.propose(vec![mark(1)]).await.unwrap();

    // Of two, one is dead: the living one may not go.
    let survivor = cluster.take_leader().await;
    let dead = cluster.managers.pop().unwrap();
    let dead_id = dead.id;
    dead.crash().await;
    let gone = tokio::time::timeout(PATIENCE, async {
        while survivor.consensus.reachable().contains(&dead_id) {
            tokio::time::sleep(crate::limits::RETRY_PAUSE).await;
        }
    });
    gone.await.unwrap();
    let error = survivor.consensus.remove_voter(survivor.id).await.unwrap_err();
    assert!(matches!(error, MembershipError::WouldLoseQuorum), "{error}");
    survivor.stop().await;
}

/// A change of the voters is half done.
fn is_joint(consensus: &Consensus) -> bool {
    let metrics = consensus.raft().metrics();
    let membership = metrics.borrow_watched().membership_config.clone();
    membership.membership().get_joint_config().len() > 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_again_to_join_becomes_a_voter_though_the_change_stopped_half_way() {
    let cluster = TestCluster::new(1).await;
    let leader = &cluster.managers[0].consensus;
    leader.propose(vec![create_node(2, Role::Manager)]).await.unwrap();
    let second = Manager::start(&cluster.authority, cluster.dir.path(), 2, Begin::Create, None).await;
    let member = Member { node_id: super::rig::node(2, Role::Manager).id, addr: second.addr };
    leader.raft().add_learner(2, member, true).await.unwrap();
    {
        // As where the leader misses its quorum for a moment: the first half is written, the second one is not.
        let adding = leader.raft().change_membership(ChangeMembers::AddVoterIds([2].into()), true);
        tokio::pin!(adding);
        assert!(futures::poll!(&mut adding).is_pending());
        let began = Instant::now();
        while !is_joint(leader) {
            assert!(began.elapsed() < PATIENCE);
            tokio::task::yield_now().await;
        }
    }
    second.consensus.join(cluster.managers[0].addr).await.unwrap();
    assert!(!is_joint(leader));
    assert_eq!(leader.voters(), BTreeSet::from([1, 2]));
    second.stop().await;
}

/// Its disk went before it had learned all: what it was before is not to stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_anew_leaves_no_learner_behind() {
    let cluster = TestCluster::new(1).await;
    let leader = &cluster.managers[0].consensus;
    leader.propose(vec![create_node(2, Role::Manager)]).await.unwrap();
    let second = Manager::start(&cluster.authority, cluster.dir.path(), 2, Begin::Create, None).await;
    let former =
        Member { node_id: super::rig::node(2, Role::Manager).id, addr: "127.0.0.1:1".parse().unwrap() };
    leader.raft().add_learner(7, former, false).await.unwrap();
    assert!(leader.members().contains_key(&7));
    second.consensus.join(cluster.managers[0].addr).await.unwrap();
    assert_eq!(leader.members().into_keys().collect::<Vec<_>>(), [1, 2]);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_ends_a_change_that_the_last_one_began() {
    let mut cluster = TestCluster::new(3).await;
    let leader = cluster.take_leader().await;
    let others: BTreeSet<u64> = cluster.managers.iter().map(|manager| manager.id).collect();
    let raft = leader.consensus.raft();
    {
        // The first half is under way with the first poll; the second one needs another, which does not come.
        let removal = raft.change_membership(ChangeMembers::RemoveVoters([leader.id].into()), true);
        tokio::pin!(removal);
        assert!(futures::poll!(&mut removal).is_pending());
        let began = Instant::now();
        while !cluster.managers.iter().all(|manager| is_joint(&manager.consensus)) {
            assert!(began.elapsed() < PATIENCE);
            tokio::task::yield_now().await;
        }
    }
    leader.crash().await;
    let next = cluster.leader().await;
    let next = cluster.managers.iter().find(|manager| manager.id == next).unwrap();
    assert!(is_joint(&next.consensus));
    next.consensus.finish_change().await.unwrap();
    assert!(!is_joint(&next.consensus));
    assert_eq!(next.consensus.voters(), others);
    next.consensus.finish_change().await.unwrap();
    next.consensus.propose(vec![mark(1)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_voter_can_not_be_removed() {
    let cluster = TestCluster::new(1).await;
    let error = cluster.managers[0].consensus.remove_voter(1).await.unwrap_err();
    assert!(matches!(error, MembershipError::WouldLoseQuorum), "{error}");
    cluster.managers[0].consensus.remove_voter(77).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_wanted_and_reachable_manager_may_join() {
    let cluster = TestCluster::new(1).await;
    let first = &cluster.managers[0];
    // Unknown to the state, then known as a worker.
    let second = Manager::start(&cluster.authority, cluster.dir.path(), 2, Begin::Create, None).await;
    for round in 0..2 {
        let error = second.consensus.join(first.addr).await.unwrap_err();
        assert!(matches!(&error, JoinError::Refused(text) if text.contains("not wanted")), "{error}");
        if round == 0 {
            first.consensus.propose(vec![create_node(2, Role::Worker)]).await.unwrap();
        }
    }
    let member = Member { node_id: NodeId::from_bits(3), addr: "127.0.0.1:1".parse().unwrap() };
    let error = first.consensus.add_voter(3, member).await.unwrap_err();
    assert!(matches!(error, MembershipError::Unreachable(3, _)), "{error}");
    assert_eq!(first.consensus.members().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_new_disk_replaces_its_former_self() {
    let mut cluster = TestCluster::new(3).await;
    let leader = cluster.leader().await;
    let lost = cluster.managers.iter().position(|manager| manager.id != leader).unwrap();
    let lost = cluster.managers.remove(lost);
    let node_id = lost.consensus.me().node_id;
    let addr = lost.crash().await;
    // The same node, another Raft id, the same address.
    let identity =
        cluster.authority.identity(control_rpc::PeerIdentity { node_id, ..peer(0, Role::Manager) });
    let mut options = super::rig::options(cluster.dir.path(), 44, addr, Channels::new(identity.clone()));
    options.node_id = node_id;
    let again = Consensus::create(options).await.unwrap();
    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    let serving = control_rpc::serve(listener, identity, again.service(), std::future::pending());
    let server = tokio::spawn(async move { serving.await.unwrap() });
    again.join(cluster.get(leader).addr).await.unwrap();
    again.propose(vec![mark(1)]).await.unwrap();
    let nodes: BTreeSet<NodeId> = again.members().values().map(|member| member.node_id).collect();
    assert_eq!((again.voters().len(), nodes.len()), (3, 3), "{:?}", again.members());
    again.shutdown().await;
    server.abort();
}

/// Restarts the manager at `at` of the list under another address, which the members don't know.
async fn restart_elsewhere(cluster: &mut TestCluster, id: u64) {
    let at = cluster.managers.iter().position(|manager| manager.id == id).unwrap();
    let manager = cluster.managers.remove(at);
    manager.crash().await;
    let moved = Manager::start(&cluster.authority, cluster.dir.path(), id, Begin::Open, None).await;
    assert!(!moved.consensus.is_listed());
    cluster.managers.push(moved);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_moved_are_found_again() {
    let mut cluster = TestCluster::new(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower(leader).id;
    restart_elsewhere(&mut cluster, follower).await;
    let moved = cluster.get(follower).consensus.clone();
    moved.join(cluster.get(leader).addr).await.unwrap();
    // Its vote is needed, and reaches by the stream that was there before.
    let third = cluster.managers.iter().position(|m| m.id != leader && m.id != follower).unwrap();
    let third = cluster.managers.remove(third);
    let (third_id, third_addr) = (third.id, third.crash().await);
    cluster.get(leader).consensus.propose(vec![mark(1)]).await.unwrap();
    moved.linearize().await.unwrap();
    assert!(has_mark(&moved, 1) && moved.is_listed());
    let back =
        Manager::start(&cluster.authority, cluster.dir.path(), third_id, Begin::Open, Some(third_addr));
    cluster.managers.push(back.await);

    // The leader itself: another leads then, or it leads again and says where it is.
    restart_elsewhere(&mut cluster, leader).await;
    let now = cluster.leader().await;
    let moved = cluster.get(leader).consensus.clone();
    moved.join(cluster.get(now).addr).await.unwrap();
    let listed = async {
        while !cluster.managers.iter().all(|manager| {
            manager.consensus.members().get(&leader).is_some_and(|member| member.addr == moved.addr())
        }) {
            tokio::time::sleep(crate::limits::RETRY_PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, listed).await.unwrap();
    assert_eq!(moved.voters(), BTreeSet::from([1, 2, 3]));
    moved.propose(vec![mark(2)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_one_moves_and_one_alone_moves() {
    for n_managers in [2, 1] {
        let mut cluster = TestCluster::new(n_managers).await;
        restart_elsewhere(&mut cluster, 1).await;
        let leader = cluster.leader().await;
        let moved = cluster.get(1).consensus.clone();
        moved.join(cluster.get(leader).addr).await.unwrap();
        moved.propose(vec![mark(1)]).await.unwrap();
        assert!(moved.is_listed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_moves_another_node() {
    let cluster = TestCluster::new(2).await;
    let leader = cluster.leader().await;
    let (leader, follower) = (cluster.get(leader), cluster.follower(leader));
    let node_id = leader.consensus.me().node_id;
    let thief = Member { node_id, addr: leader.addr };
    let refused = leader.consensus.add_voter(follower.id, thief).await.unwrap_err();
    assert!(matches!(refused, MembershipError::OtherNode(id) if id == follower.id), "{refused}");
    assert_eq!(leader.consensus.members().get(&follower.id), Some(&follower.consensus.me()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_strangers_and_the_expired_get_no_answer() {
    let cluster = TestCluster::new(1).await;
    let addr = cluster.managers[0].addr;
    let ask = async |identity| {
        raft_client(&Channels::new(identity), addr).read_index(pb::Empty {}).await.map(|_| ())
    };
    let manager = cluster.authority.identity(peer(5, Role::Manager));
    cluster.managers[0].consensus.propose(vec![create_node(5, Role::Manager)]).await.unwrap();
    ask(manager).await.unwrap();

    let worker = cluster.authority.identity(peer(5, Role::Worker));
    assert_eq!(ask(worker).await.unwrap_err().code(), tonic::Code::PermissionDenied);

    let foreign = Authority::new().identity(peer(5, Role::Manager));
    ask(foreign).await.unwrap_err();

    let day = Duration::from_hours(24);
    let long_ago = Timestamp(now().0 - 3 * 24 * 3600 * 1_000_000_000);
    let expired = cluster.authority.identity_until(peer(5, Role::Manager), long_ago, day);
    ask(expired).await.unwrap_err();

    let other_cluster = control_rpc::PeerIdentity {
        cluster_id: control_model::ClusterId::from_bits(1),
        ..peer(5, Role::Manager)
    };
    ask(cluster.authority.identity(other_cluster)).await.unwrap_err();

    let anonymous = control_rpc::anonymous_channel(addr, cluster.authority.root()).unwrap();
    let mut client = pb::raft_client::RaftClient::new(anonymous);
    let refused = client.read_index(pb::Empty {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    // The replica is as it was.
    assert_eq!(cluster.managers[0].consensus.voters(), BTreeSet::from([1]));
}

/// What the manager with `channels` is told by each call but `join`.
pub(super) async fn codes(channels: &Channels, addr: std::net::SocketAddr) -> BTreeSet<String> {
    let mut client = raft_client(channels, addr);
    let payload = || pb::Payload { body: vec![0xc1] };
    let answers = [
        client.append_entries(payload()).await.map(|_| ()),
        client.vote(payload()).await.map(|_| ()),
        client.pre_vote(payload()).await.map(|_| ()),
        client.transfer_leader(payload()).await.map(|_| ()),
        client.propose(payload()).await.map(|_| ()),
        client.install_snapshot(tokio_stream::iter([payload()])).await.map(|_| ()),
        client.read_index(pb::Empty {}).await.map(|_| ()),
        client.misses(pb::Empty {}).await.map(|_| ()),
        client.remove(pb::RaftRemoveRequest { raft_id: 77 }).await.map(|_| ()),
    ];
    answers
        .into_iter()
        .map(|answer| answer.map_or_else(|status| format!("{:?}", status.code()), |()| "Ok".to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_of_a_former_manager_opens_nothing() {
    let cluster = TestCluster::new(1).await;
    cluster.leader().await;
    let (first, addr) = (&cluster.managers[0].consensus, cluster.managers[0].addr);
    let channels = Channels::new(cluster.authority.identity(peer(5, Role::Manager)));
    let refused = BTreeSet::from(["PermissionDenied".to_owned()]);
    assert_eq!(codes(&channels, addr).await, refused, "never a member");

    first.propose(vec![create_node(5, Role::Manager)]).await.unwrap();
    let heard = BTreeSet::from(["InvalidArgument".to_owned(), "Ok".to_owned()]);
    assert_eq!(codes(&channels, addr).await, heard, "wanted");

    let node = first.state().nodes().get(&NodeId::from_bits(5)).unwrap().clone();
    let mut demoted = (*node).clone();
    demoted.spec.role = Role::Worker;
    let object = control_model::Object::Node(Box::new(demoted));
    first.propose(vec![Change::Update { object, expected: node.meta.version }]).await.unwrap();
    assert_eq!(codes(&channels, addr).await, refused, "demoted");

    first.propose(vec![Change::Delete(ObjectRef::Node(NodeId::from_bits(5)))]).await.unwrap();
    assert_eq!(codes(&channels, addr).await, refused, "removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_to_a_last_choice_only_if_there_is_no_other() {
    let cluster = TestCluster::new(3).await;
    for _ in 0..2 {
        let leader = cluster.leader().await;
        let others = cluster.managers.iter().map(|manager| manager.id).filter(|id| *id != leader);
        let others: Vec<u64> = others.collect();
        for (next, last_choice) in [(others[1], others[0]), (leader, others[0])] {
            let consensus = &cluster.get(cluster.leader().await).consensus;
            // Who has just begun to lead has yet to hear from the others, and hands over to nobody that it does not hear.
            let hears_all = async {
                while consensus.reachable().len() < cluster.managers.len() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(PATIENCE, hears_all).await.unwrap();
            consensus.transfer_leadership(&BTreeSet::from([last_choice])).await.unwrap();
            let mut leadership = cluster.get(next).consensus.leadership();
            tokio::time::timeout(PATIENCE, leadership.wait_for(|now| now.is_me)).await.unwrap().unwrap();
        }
    }
    let leader = cluster.leader().await;
    let all = cluster.managers.iter().map(|manager| manager.id).collect();
    cluster.get(leader).consensus.transfer_leadership(&all).await.unwrap();
    assert_ne!(cluster.leader().await, leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_follows_a_leader_that_it_never_heard_of() {
    let mut cluster = TestCluster::new(3).await;
    let leader = cluster.leader().await;
    let away = cluster.managers.iter().position(|manager| manager.id != 1 && manager.id != leader).unwrap();
    let away = cluster.managers.remove(away);
    let id = away.id;
    let addr = away.crash().await;
    cluster.add(4).await;
    let leader = cluster.leader().await;
    cluster.get(leader).consensus.raft().trigger().transfer_leader(4).await.unwrap();
    let mut leadership = cluster.get(4).consensus.leadership();
    tokio::time::timeout(PATIENCE, leadership.wait_for(|now| now.is_me)).await.unwrap().unwrap();
    cluster.get(4).consensus.propose(vec![mark(1)]).await.unwrap();

    let back = Manager::start(&cluster.authority, cluster.dir.path(), id, Begin::Open, Some(addr)).await;
    assert!(!back.consensus.members().contains_key(&4), "it does not know the leader yet");
    let mut applied = back.consensus.view().applied();
    let known = applied.wait_for(|_| has_mark(&back.consensus, 1));
    tokio::time::timeout(PATIENCE, known).await.unwrap().unwrap();
    cluster.managers.push(back);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_messages_are_refused() {
    let cluster = TestCluster::new(1).await;
    let channels = Channels::new(cluster.managers[0].identity());
    let mut client = raft_client(&channels, cluster.managers[0].addr);
    for body in [vec![], vec![0xc1], vec![0xff; 100], b"\x82\xa2to\x01\xa7message\x90".to_vec()] {
        let payload = || pb::Payload { body: body.clone() };
        for status in [
            client.append_entries(payload()).await.unwrap_err(),
            client.vote(payload()).await.unwrap_err(),
            client.pre_vote(payload()).await.unwrap_err(),
            client.transfer_leader(payload()).await.unwrap_err(),
            client.propose(payload()).await.unwrap_err(),
            client.install_snapshot(tokio_stream::iter([payload()])).await.unwrap_err(),
        ] {
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        }
    }
    cluster.managers[0].consensus.propose(vec![mark(1)]).await.unwrap();
}
