//! Work that is the leader's alone.

use control_consensus::Leadership;
use tokio::sync::watch;

/// Does `work` whenever this manager leads, anew for each term, and drops it where it stands when leadership is lost.
/// Work that ends is begun again. Ends with consensus.
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
            () = work(term) => {}
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
