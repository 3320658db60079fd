//! One call for many who want the same answer.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

/// Runs one call at a time. Who comes meanwhile shares the next one with all others who came: an answer is only of use to
/// those who asked before the call began.
pub(crate) struct SharedCall<T> {
    n_begun: AtomicU64,
    /// The last call that has ended: its number and its answer.
    last: Mutex<Option<(u64, T)>>,
}

impl<T> Default for SharedCall<T> {
    fn default() -> Self {
        Self { n_begun: AtomicU64::new(0), last: Mutex::new(None) }
    }
}

impl<T: Clone> SharedCall<T> {
    /// The answer of a call that began after this one. Where the others take longer than `patience`, `call` runs beside them.
    pub(crate) async fn run(&self, patience: Duration, call: impl Future<Output = T>) -> T {
        let n_before = self.n_begun.load(Ordering::SeqCst);
        let Ok(mut last) = timeout(patience, self.last.lock()).await else { return call.await };
        if let Some((number, answer)) = &*last
            && *number > n_before
        {
            return answer.clone();
        }
        let number = self.n_begun.fetch_add(1, Ordering::SeqCst) + 1;
        let answer = call.await;
        *last = Some((number, answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    struct Rig {
        calls: SharedCall<u64>,
        n_calls: AtomicU64,
        /// A call ends for each permit.
        gate: Semaphore,
    }

    impl Rig {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                calls: SharedCall::default(),
                n_calls: AtomicU64::new(0),
                gate: Semaphore::new(0),
            })
        }

        /// Asks; the answer is the number of the call that gave it.
        async fn ask(self: Arc<Self>, patience: Duration) -> u64 {
            let call = async {
                let number = self.n_calls.fetch_add(1, Ordering::SeqCst) + 1;
                self.gate.acquire().await.expect("open").forget();
                number
            };
            self.calls.run(patience, call).await
        }
    }

    /// As many tasks ask as there are, one after the other, until each waits.
    async fn asking(rig: &Arc<Rig>, n: usize, patience: Duration) -> Vec<tokio::task::JoinHandle<u64>> {
        let asking = (0..n).map(|_| tokio::spawn(rig.clone().ask(patience))).collect();
        for _ in 0..n {
            tokio::task::yield_now().await;
        }
        asking
    }

    #[tokio::test]
    async fn who_comes_during_a_call_shares_the_next() {
        let rig = Rig::new();
        let first = asking(&rig, 1, LONG).await;
        let others = asking(&rig, 20, LONG).await;
        rig.gate.add_permits(2);
        for asked in first {
            assert_eq!(asked.await.expect("answered"), 1);
        }
        for asked in others {
            assert_eq!(asked.await.expect("answered"), 2, "not of the call that began before");
        }
        assert_eq!(rig.n_calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_leaves_the_others_theirs() {
        let rig = Rig::new();
        let first = asking(&rig, 1, LONG).await;
        let others = asking(&rig, 2, LONG).await;
        first[0].abort();
        rig.gate.add_permits(1);
        for asked in others {
            assert_eq!(asked.await.expect("answered"), 2);
        }
    }

    #[tokio::test]
    async fn a_call_that_hangs_holds_nobody_longer_than_the_patience() {
        let rig = Rig::new();
        let hanging = asking(&rig, 1, LONG).await;
        let others = asking(&rig, 2, Duration::from_millis(10)).await;
        while rig.n_calls.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        rig.gate.add_permits(3);
        for asked in hanging.into_iter().chain(others) {
            asked.await.expect("answered");
        }
    }
}
