//! Keeps the log's size bounded where its count of entries does not.

use openraft::Raft;
use openraft::async_runtime::WatchReceiver as _;

use crate::limits::{LOG_CHECK_INTERVAL, MAX_LOG_BYTES};
use crate::log::LogStore;
use crate::machine::Machine;
use crate::types::TypeConfig;

/// Looks at the log now and then until Raft stops.
pub(crate) async fn run(raft: Raft<TypeConfig, Machine>, log: LogStore) {
    loop {
        tokio::time::sleep(LOG_CHECK_INTERVAL).await;
        if log.len_bytes() > MAX_LOG_BYTES && shrink(&raft).await.is_err() {
            return;
        }
    }
}

/// One step: the cut behind the last snapshot, or a newer snapshot for the next step.
/// openraft keeps what a follower is being sent.
pub(crate) async fn shrink(raft: &Raft<TypeConfig, Machine>) -> Result<(), ()> {
    let (snapshot, purged) = {
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        (now.snapshot.map(|id| id.index()), now.purged.map(|id| id.index()))
    };
    let done = match snapshot {
        Some(snapshot) if purged < Some(snapshot) => raft.trigger().purge_log(snapshot).await,
        _ => raft.trigger().snapshot().await,
    };
    done.map_err(drop)
}
