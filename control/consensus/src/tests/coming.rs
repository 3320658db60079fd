//! Managers that come, and that are let go.

use std::net::SocketAddr;

use control_model::change::{Change, Object};
use control_model::spec::Role;
use control_store::{ProposeError, ReplicatedStore as _};
use futures::StreamExt;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::rig::{Manager, PATIENCE, TestCluster, create_node, has_mark, mark, node};

/// A way to a manager that lets so many bytes through to it, and the rest when it is told to.
struct Way {
    addr: SocketAddr,
    is_open: watch::Sender<bool>,
    n_passed: watch::Receiver<usize>,
    _passing: JoinSet<()>,
}

impl Way {
    /// To `target`.
    async fn new(target: SocketAddr, n_bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let is_open = watch::Sender::new(false);
        let (passed, n_passed) = watch::channel(0);
        let opened = is_open.subscribe();
        let mut passing = JoinSet::new();
        passing.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (passed, mut opened) = (passed.clone(), opened.clone());
                connections.spawn(async move {
                    let far = TcpStream::connect(target).await.unwrap();
                    let ((mut from_near, mut to_near), (mut from_far, mut to_far)) =
                        (near.into_split(), far.into_split());
                    let forth = async {
                        let mut piece = vec![0; 4096];
                        while let Ok(n @ 1..) = from_near.read(&mut piece).await {
                            if *passed.borrow() > n_bytes {
                                opened.wait_for(|is_open| *is_open).await.unwrap();
                            }
                            passed.send_modify(|passed| *passed += n);
                            if to_far.write_all(&piece[..n]).await.is_err() {
                                return;
                            }
                        }
                    };
                    tokio::join!(forth, tokio::io::copy(&mut from_far, &mut to_near)).1.ok();
                });
            }
        });
        Self { addr, is_open, n_passed, _passing: passing }
    }

    /// Returns when no more than `n_bytes` is let through.
    async fn is_full(&self, n_bytes: usize) {
        let mut n_passed = self.n_passed.clone();
        let full = n_passed.wait_for(|n_passed| *n_passed > n_bytes);
        tokio::time::timeout(PATIENCE, full).await.unwrap().unwrap();
    }

    fn open(&self) {
        self.is_open.send_replace(true);
    }
}

/// A log that takes long to bring over holds up nobody: a voter is who has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_waits_for_a_manager_that_does_not_have_the_log() {
    const N_BYTES: usize = 256 << 10;
    let cluster = TestCluster::new(1).await;
    let leader = &cluster.managers[0].consensus;
    for number in 0..64 {
        let mut node = node(500_000 + number, Role::Worker);
        node.spec.labels.insert("long".into(), "x".repeat(16 << 10));
        leader.propose(vec![Change::Create(Object::Node(Box::new(node)))]).await.unwrap();
    }
    leader.propose(vec![create_node(2, Role::Manager)]).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let way = Way::new(listener.local_addr().unwrap(), N_BYTES).await;
    let newcomer = Manager::behind(&cluster.authority, cluster.dir.path(), 2, (listener, way.addr)).await;
    let join = || {
        let (consensus, via) = (newcomer.consensus.clone(), cluster.managers[0].addr);
        tokio::spawn(async move { consensus.join(via).await })
    };
    let joining = join();
    way.is_full(N_BYTES).await;
    for number in 0..10 {
        leader.propose(vec![mark(number)]).await.unwrap();
    }
    assert_eq!(leader.voters(), [1].into(), "it does not count before it has the log");
    tokio::time::timeout(PATIENCE, leader.finish_change())
        .await
        .unwrap()
        .expect("other changes don't wait for it");
    // Who loses patience goes on learning, and asks again.
    joining.abort();
    assert!(joining.await.unwrap_err().is_cancelled());
    assert!(leader.members().contains_key(&2));
    let joining = join();
    way.open();
    tokio::time::timeout(PATIENCE, joining).await.unwrap().unwrap().unwrap();
    assert_eq!(leader.voters(), [1, 2].into());
    newcomer.consensus.linearize().await.unwrap();
    assert!(has_mark(&newcomer.consensus, 9));
}

/// The leader has written what it asked for, and it hears no more of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_let_go_hears_that_its_write_is_done() {
    let cluster = TestCluster::new(3).await;
    let leader = cluster.get(cluster.leader().await);
    let follower = cluster.follower(leader.id);
    leader.consensus.remove_voter(follower.id).await.unwrap();
    let (_, mut events) = leader.consensus.subscribe();
    let writing = {
        let consensus = follower.consensus.clone();
        tokio::spawn(async move { consensus.propose(vec![mark(1)]).await })
    };
    while !has_mark(&leader.consensus, 1) {
        tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap();
    }
    follower.consensus.stop().await;
    let written = tokio::time::timeout(PATIENCE, writing).await.unwrap().unwrap();
    assert!(written.is_ok(), "{written:?}");
    let late = follower.consensus.propose(vec![mark(2)]).await;
    assert!(matches!(late, Err(ProposeError::NotManager)), "{late:?}");
}
