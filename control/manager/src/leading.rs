//! Work that is the leader's alone.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use control_consensus::Leadership;
use futures::FutureExt as _;
use tokio::sync::watch;

/// After a panic. What caused it is likely to be still there.
const PAUSE: Duration = Duration::from_secs(1);

/// Does `work`, and begins it anew when it panics: the daemon goes on, and so must all of it. The panic itself is in the log.
pub async fn unending<F: Future<Output = ()>>(what: &str, mut work: impl FnMut() -> F) {
    while AssertUnwindSafe(async { work().await }).catch_unwind().await.is_err() {
        tracing::error!(what, "it panicked, and begins anew");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Does `work` whenever this manager leads, anew for each term, and drops it where it stands when leadership is lost.
/// Work that ends, or panics, is begun again. Ends with consensus.
pub async fn while_leading<F: Future<Output = ()>>(
    mut leadership: watch::Receiver<Leadership>,
    mut work: impl FnMut(u64) -> F,
) {
    while let Ok(term) = leadership.wait_for(|l| l.is_me).await.map(|l| l.term) {
        // What was said last holds no more when nobody is left to say otherwise.
        if leadership.has_changed().is_err() {
            return;
        }
        tokio::select! {
            () = unending("the leader's work", || work(term)) => {}
            () = lost(leadership.clone(), term) => {}
        }
    }
}

/// Returns when this manager does not lead in `term` any more.
async fn lost(mut leadership: watch::Receiver<Leadership>, term: u64) {
    // An error is the end of consensus: as lost as can be.
    drop(leadership.wait_for(|l| !l.is_me || l.term != term).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_panics_begins_anew() {
        let leadership = watch::channel(Leadership { is_me: true, term: 1, ..Leadership::default() });
        let (mut n_begun, (third, begun)) = (0, tokio::sync::oneshot::channel());
        let mut third = Some(third);
        let work = while_leading(leadership.1, |_| {
            n_begun += 1;
            let third = third.take_if(|_| n_begun == 3);
            async move {
                let third = third.expect("the first and the second time it panics");
                third.send(()).expect("it is waited for");
                std::future::pending::<()>().await;
            }
        });
        tokio::select! {
            () = work => panic!("it leads"),
            done = begun => done.expect("the third time it does not"),
        }
    }

    #[tokio::test]
    async fn the_work_ends_with_consensus_though_it_led_to_the_last() {
        let (sender, leadership) =
            watch::channel(Leadership { is_me: true, term: 1, ..Leadership::default() });
        let mut n_begun = 0;
        let work = while_leading(leadership, |_| {
            n_begun += 1;
            std::future::pending()
        });
        let end = async {
            tokio::task::yield_now().await;
            drop(sender);
        };
        tokio::join!(work, end);
        assert_eq!(n_begun, 1);
    }
}
