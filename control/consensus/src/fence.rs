//! The fence between a cluster and the new one that was forced out of it (`--force-new-cluster`).
//!
//! A manager that refuses a Raft message says of which fencing epoch its state is, and the leader of a forced cluster calls the
//! managers that it left behind. Who hears of a later epoch than its own belongs to the old side: it was left behind as lost,
//! and must not lead any more.

use std::net::SocketAddr;
use std::sync::Arc;

use control_model::NodeId;
use control_rpc::pb;
use control_store::{ReplicatedStore as _, State};
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::consensus::Consensus;
use crate::machine::View;
use crate::network::raft_client;

/// Metadata of a refusal.
const EPOCH: &str = "mesh-epoch";

/// The epoch of a state; `None` before it holds a cluster.
pub(crate) fn epoch_of(state: &State) -> Option<u64> {
    state.cluster().map(|cluster| cluster.epoch)
}

/// `status`, with the epoch of who refuses.
pub(crate) fn refusal(mut status: Status, state: &State) -> Status {
    let epoch = epoch_of(state).and_then(|epoch| MetadataValue::try_from(epoch.to_string()).ok());
    if let Some(epoch) = epoch {
        status.metadata_mut().insert(EPOCH, epoch);
    }
    status
}

/// A cluster beyond the fence: it was forced out of this replica's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beyond {
    pub epoch: u64,
    /// Who leads it and where its RPC is, if it has called.
    pub leader: Option<(NodeId, SocketAddr)>,
}

/// Listens to refusals and calls.
pub(crate) struct Fence {
    view: Arc<View>,
    /// The latest cluster that was heard of beyond this replica's own.
    beyond: watch::Sender<Option<Beyond>>,
}

impl Fence {
    pub(crate) fn new(view: Arc<View>) -> Self {
        Self { view, beyond: watch::Sender::new(None) }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Option<Beyond>> {
        self.beyond.subscribe()
    }

    /// Another manager, proven by its certificate, has refused a message.
    pub(crate) fn heard(&self, status: &Status) {
        let told = status.metadata().get(EPOCH).and_then(|epoch| epoch.to_str().ok()?.parse::<u64>().ok());
        if let Some(epoch) = told {
            self.note(Beyond { epoch, leader: None });
        }
    }

    /// The leader of a cluster of this epoch, known here as a manager, says where it is. False if this replica's epoch is not
    /// an earlier one.
    pub(crate) fn called(&self, epoch: u64, leader: (NodeId, SocketAddr)) -> bool {
        self.note(Beyond { epoch, leader: Some(leader) })
    }

    fn note(&self, told: Beyond) -> bool {
        // A replica that has yet to learn of its cluster knows no epoch to compare with.
        let Some(own) = epoch_of(&self.view.state()).filter(|own| told.epoch > *own) else { return false };
        self.beyond.send_if_modified(|beyond| {
            let is_news = beyond.is_none_or(|beyond| {
                told.epoch > beyond.epoch
                    || (told.epoch == beyond.epoch && beyond.leader.is_none() && told.leader.is_some())
            });
            if is_news {
                tracing::error!(epoch = told.epoch, own, "a new cluster was forced without this manager");
                *beyond = Some(told);
            }
            is_news
        });
        true
    }
}

impl Consensus {
    /// On the leader of a forced cluster: tells a manager that was left behind, at `addr`, that its cluster was given up, and
    /// where this one is. Refused by one that knows this cluster already.
    pub async fn call_behind(&self, addr: SocketAddr) -> Result<(), Status> {
        let epoch = epoch_of(&self.state()).unwrap_or_default();
        let request = pb::ForcedRequest { epoch, addr: self.addr().to_string() };
        raft_client(self.channels(), addr)
            .forced(request)
            .await
            .map(drop)
            .inspect_err(|status| self.fence().heard(status))
    }
}

#[cfg(test)]
mod tests {
    use control_model::change::{Change, Entry, Object, RequestId};
    use control_model::object::Cluster;
    use control_model::{ClusterId, Timestamp};

    use super::*;

    fn state(epoch: u64) -> State {
        let cluster = Cluster { epoch, ..Cluster::new(ClusterId::from_bits(1)) };
        let changes = vec![Change::Create(Object::Cluster(Box::new(cluster)))];
        let mut state = State::default();
        state.apply(1, &Entry { request: RequestId(1), at: Timestamp(0), changes }).unwrap();
        state
    }

    fn refused_by(epoch: u64) -> Status {
        refusal(Status::not_found("not this raft id"), &state(epoch))
    }

    #[test]
    fn only_a_later_epoch_is_a_fence() {
        let fence = Fence::new(Arc::new(View::new(state(2))));
        let beyond = fence.watch();
        fence.heard(&Status::not_found("it has no cluster yet"));
        fence.heard(&refused_by(1));
        fence.heard(&refused_by(2));
        assert_eq!(*beyond.borrow(), None);
        fence.heard(&refused_by(4));
        fence.heard(&refused_by(3));
        assert_eq!(*beyond.borrow(), Some(Beyond { epoch: 4, leader: None }));
        // Its leader calls.
        let leader = (NodeId::from_bits(1), SocketAddr::from(([198, 18, 0, 15], 2377)));
        for (epoch, is_heard) in [(2, false), (3, true), (4, true)] {
            assert_eq!(fence.called(epoch, leader), is_heard, "{epoch}");
        }
        fence.heard(&refused_by(4));
        assert_eq!(*beyond.borrow(), Some(Beyond { epoch: 4, leader: Some(leader) }));
    }

    #[test]
    fn a_replica_without_a_cluster_is_beyond_no_fence() {
        let fence = Fence::new(Arc::new(View::new(State::default())));
        fence.heard(&refused_by(7));
        assert_eq!(*fence.watch().borrow(), None);
        assert!(refusal(Status::not_found("x"), &State::default()).metadata().is_empty());
    }
}
