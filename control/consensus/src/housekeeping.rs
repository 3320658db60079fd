//! Snapshots and cuts of the log: as often as the cluster's settings say, and where its size asks for one sooner.

use std::sync::Arc;

use control_model::spec::ClusterSpec;
use openraft::Raft;
use openraft::async_runtime::WatchReceiver as _;

use crate::limits::{LOG_CHECK_INTERVAL, MAX_LOG_BYTES};
use crate::log::LogStore;
use crate::machine::{Machine, View};
use crate::types::TypeConfig;

/// Looks at the log now and then until Raft stops.
pub(crate) async fn run(raft: Raft<TypeConfig, Machine>, log: LogStore, view: Arc<View>) {
    loop {
        tokio::time::sleep(LOG_CHECK_INTERVAL).await;
        let done =
            if log.len_bytes() > MAX_LOG_BYTES { shrink(&raft).await } else { keep(&raft, &view).await };
        if done.is_err() {
            return;
        }
    }
}

/// One step: the cut behind the last snapshot, or a newer snapshot for the next step.
/// openraft keeps what a follower is being sent.
pub(crate) async fn shrink(raft: &Raft<TypeConfig, Machine>) -> Result<(), ()> {
    let ends = Ends::of(raft);
    let done = match ends.snapshot {
        Some(snapshot) if ends.purged < Some(snapshot) => raft.trigger().purge_log(snapshot).await,
        _ => raft.trigger().snapshot().await,
    };
    done.map_err(drop)
}

/// What the cluster's settings ask for.
async fn keep(raft: &Raft<TypeConfig, Machine>, view: &View) -> Result<(), ()> {
    let (ends, state) = (Ends::of(raft), view.state());
    let default = ClusterSpec::default();
    let spec = state.cluster().map_or(&default, |cluster| &cluster.spec);
    if let Some(upto) = ends.cut(spec.log_entries_for_slow_followers) {
        raft.trigger().purge_log(upto).await.map_err(drop)?;
    }
    if ends.wants_snapshot(spec.snapshot_interval) {
        raft.trigger().snapshot().await.map_err(drop)?;
    }
    Ok(())
}

/// Log indexes.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    applied: Option<u64>,
    /// The last entry that the last snapshot holds.
    snapshot: Option<u64>,
    /// The last entry that was cut off.
    purged: Option<u64>,
}

impl Ends {
    fn of(raft: &Raft<TypeConfig, Machine>) -> Self {
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        Self {
            applied: now.last_applied.map(|id| id.index()),
            snapshot: now.snapshot.map(|id| id.index()),
            purged: now.purged.map(|id| id.index()),
        }
    }

    /// There are `interval` entries at least that no snapshot holds.
    fn wants_snapshot(self, interval: u64) -> bool {
        let after = |end: Option<u64>| end.map_or(0, |last| last.saturating_add(1));
        after(self.applied).saturating_sub(after(self.snapshot)) >= interval.max(1)
    }

    /// The last entry to cut off, so that `n_kept` stay behind the snapshot; `None` if there are no more.
    fn cut(self, n_kept: u64) -> Option<u64> {
        let upto = self.snapshot?.checked_sub(n_kept)?;
        (self.purged < Some(upto)).then_some(upto)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(applied: u64, snapshot: Option<u64>, purged: Option<u64>) -> Ends {
        Ends { applied: Some(applied), snapshot, purged }
    }

    #[test]
    fn a_snapshot_is_made_when_so_many_entries_are_in_none() {
        assert!(!Ends::default().wants_snapshot(0));
        assert!(!ends(8, None, None).wants_snapshot(10), "0 to 8 are nine");
        assert!(ends(9, None, None).wants_snapshot(10));
        assert!(!ends(19, Some(10), None).wants_snapshot(10));
        assert!(ends(20, Some(10), None).wants_snapshot(10));
        assert!(!ends(20, Some(20), None).wants_snapshot(1));
        assert!(!ends(20, Some(10), None).wants_snapshot(u64::MAX));
    }

    #[test]
    fn so_many_entries_stay_behind_the_snapshot() {
        assert_eq!(ends(30, None, None).cut(0), None);
        assert_eq!(ends(30, Some(20), None).cut(0), Some(20));
        assert_eq!(ends(30, Some(20), None).cut(5), Some(15));
        assert_eq!(ends(30, Some(20), Some(15)).cut(5), None);
        assert_eq!(ends(30, Some(20), Some(15)).cut(4), Some(16));
        assert_eq!(ends(30, Some(20), None).cut(21), None);
        // A manager that was sent a snapshot has nothing behind it.
        assert_eq!(ends(30, Some(20), Some(20)).cut(5), None);
    }
}
