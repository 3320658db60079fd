//! Whose orders a node takes: no manager's whose state is of an earlier fencing epoch than one that the node has seen.

use std::sync::{Arc, Mutex, PoisonError};

/// Keeps an epoch on disk, so that it holds after a restart; the error says why it can't.
pub type KeepEpoch = Arc<dyn Fn(u64) -> Result<(), String> + Send + Sync>;

/// A manager is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FenceError {
    #[error(
        "the manager's state is of fencing epoch {offered}, this node has seen {seen}: a new cluster was forced without it"
    )]
    Behind { offered: u64, seen: u64 },
    #[error("fencing epoch {0} can't be kept: {1}")]
    NotKept(u64, String),
}

/// The highest epoch that this node has seen.
pub(crate) struct Fence {
    seen: Mutex<u64>,
    keep: KeepEpoch,
}

impl Fence {
    pub fn new(seen: u64, keep: KeepEpoch) -> Self {
        Self { seen: Mutex::new(seen), keep }
    }

    pub fn epoch(&self) -> u64 {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// May a manager of `offered` be obeyed? A higher epoch is on disk before it is.
    pub fn admit(&self, offered: u64) -> Result<(), FenceError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if offered < *seen {
            return Err(FenceError::Behind { offered, seen: *seen });
        }
        if offered > *seen {
            (self.keep)(offered).map_err(|error| FenceError::NotKept(offered, error))?;
            tracing::warn!(epoch = offered, before = *seen, "the cluster was forced anew");
            *seen = offered;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_once_seen_is_kept_and_none_before_it_is_obeyed() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let disk = kept.clone();
        let fence = Fence::new(
            1,
            Arc::new(move |epoch| {
                if epoch > 5 {
                    return Err("no space left".into());
                }
                disk.lock().expect("not poisoned").push(epoch);
                Ok(())
            }),
        );
        assert_eq!(fence.admit(1), Ok(()));
        assert_eq!(fence.admit(3), Ok(()));
        assert_eq!(fence.admit(1), Err(FenceError::Behind { offered: 1, seen: 3 }));
        assert_eq!(fence.admit(6), Err(FenceError::NotKept(6, "no space left".into())));
        assert_eq!(fence.epoch(), 3, "what is not on disk does not count");
        assert_eq!(fence.admit(3), Ok(()));
        assert_eq!(*kept.lock().expect("not poisoned"), [3]);
    }
}
