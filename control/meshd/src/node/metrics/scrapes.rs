//! Scrapes that come at the same time, or soon after each other, get one reading: a pass over the flow tables may be long,
//! and `/metrics` is open to everyone who reaches it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use control_api::node::InspectError;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a reading is given to those who ask. Scrapes of one server are further apart.
const KEPT: Duration = Duration::from_secs(1);

/// The last reading.
#[derive(Debug, Clone, Default)]
pub struct Scrapes(Arc<Mutex<Option<Reading>>>);

#[derive(Debug)]
struct Reading {
    page: String,
    /// When it was complete.
    at: Instant,
}

impl Scrapes {
    /// The last page if it is younger than a second, else what `read` gives. Only one reads at a time, also when the one
    /// that asked goes away meanwhile. An error is nobody's but the caller's: the next one tries again.
    pub async fn page(
        &self,
        read: impl Future<Output = Result<String, InspectError>> + Send + 'static,
    ) -> Result<String, InspectError> {
        let mut last = self.0.clone().lock_owned().await;
        if let Some(reading) = last.as_ref().filter(|reading| reading.at.elapsed() < KEPT) {
            return Ok(reading.page.clone());
        }
        // A task of its own: what reads the tables can't be stopped, and must be waited for by the next one.
        let reading = tokio::spawn(async move {
            let page = read.await?;
            *last = Some(Reading { page: page.clone(), at: Instant::now() });
            Ok(page)
        });
        reading.await.map_err(|error| InspectError(error.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    /// Counts how often it is read, and how often at a time.
    #[derive(Default)]
    struct Source {
        n_reads: AtomicUsize,
        n_now: AtomicUsize,
        released: Notify,
    }

    impl Source {
        fn read(self: &Arc<Self>) -> impl Future<Output = Result<String, InspectError>> + Send + 'static {
            let this = self.clone();
            async move {
                assert_eq!(this.n_now.fetch_add(1, Ordering::SeqCst), 0, "two read at a time");
                this.released.notified().await;
                this.n_now.fetch_sub(1, Ordering::SeqCst);
                Ok(format!("reading {}", this.n_reads.fetch_add(1, Ordering::SeqCst)))
            }
        }
    }

    type Asked = tokio::task::JoinHandle<Result<String, InspectError>>;

    fn ask(scrapes: &Scrapes, source: &Arc<Source>) -> Asked {
        let (scrapes, source) = (scrapes.clone(), source.clone());
        tokio::spawn(async move { scrapes.page(source.read()).await })
    }

    /// Lets every task go on as far as it can: there is one thread.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn scrapes_of_one_second_share_a_reading() {
        let (scrapes, source) = (Scrapes::default(), Arc::new(Source::default()));
        let asking: Vec<Asked> = (0..10).map(|_| ask(&scrapes, &source)).collect();
        settle().await;
        source.released.notify_one();
        for asked in asking {
            let page = asked.await.expect("no panic").expect("a page");
            assert_eq!(page, "reading 0");
        }
        tokio::time::advance(KEPT).await;
        source.released.notify_one();
        assert_eq!(scrapes.page(source.read()).await, Ok("reading 1".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_whose_reader_went_away_is_waited_for() {
        let (scrapes, source) = (Scrapes::default(), Arc::new(Source::default()));
        let gone = ask(&scrapes, &source);
        settle().await;
        gone.abort();
        let next = ask(&scrapes, &source);
        settle().await;
        assert_eq!(source.n_now.load(Ordering::SeqCst), 1);
        source.released.notify_one();
        assert_eq!(next.await.expect("no panic"), Ok("reading 0".to_owned()));
    }

    #[tokio::test]
    async fn a_failure_is_not_kept() {
        let scrapes = Scrapes::default();
        let failed = scrapes.page(async { Err(InspectError("no maps".to_owned())) }).await;
        assert_eq!(failed, Err(InspectError("no maps".to_owned())));
        assert_eq!(scrapes.page(async { Ok("page".to_owned()) }).await, Ok("page".to_owned()));
    }
}
