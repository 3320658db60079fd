//! The fence between a cluster and the new one that was forced out of it (`--force-new-cluster`).
//!
//! A manager that refuses a Raft message says of which fencing epoch its state is. Who hears of a later one than its own
//! belongs to the old side: it was left behind as lost, and must not lead any more.

use std::sync::Arc;

use control_store::State;
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::machine::View;

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

/// Listens to refusals.
pub(crate) struct Fence {
    view: Arc<View>,
    /// The latest epoch that was heard of beyond this replica's own.
    beyond: watch::Sender<Option<u64>>,
}

impl Fence {
    pub(crate) fn new(view: Arc<View>) -> Self {
        Self { view, beyond: watch::Sender::new(None) }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Option<u64>> {
        self.beyond.subscribe()
    }

    /// Another manager, proven by its certificate, has refused a message.
    pub(crate) fn heard(&self, status: &Status) {
        let told = status.metadata().get(EPOCH).and_then(|epoch| epoch.to_str().ok()?.parse::<u64>().ok());
        // A replica that has yet to learn of its cluster knows no epoch to compare with.
        let (Some(told), Some(own)) = (told, epoch_of(&self.view.state())) else { return };
        if told <= own {
            return;
        }
        self.beyond.send_if_modified(|beyond| {
            let is_news = Some(told) > *beyond;
            if is_news {
                tracing::error!(epoch = told, own, "a new cluster was forced without this manager");
                *beyond = Some(told);
            }
            is_news
        });
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
        assert_eq!(*beyond.borrow(), Some(4));
    }

    #[test]
    fn a_replica_without_a_cluster_is_beyond_no_fence() {
        let fence = Fence::new(Arc::new(View::new(State::default())));
        fence.heard(&refused_by(7));
        assert_eq!(*fence.watch().borrow(), None);
        assert!(refusal(Status::not_found("x"), &State::default()).metadata().is_empty());
    }
}
