//! The thread that ends sockets whose peer is gone. It goes from sandbox to sandbox while the driver reports and goes on:
//! nobody waits for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use dataplane_kernel::{KernelError, Sockets};
use dataplane_model::kernel_state::SocketReset;
use dataplane_model::{SandboxId, Vni};
use tokio::sync::Notify;

use crate::backoff::delay;

/// A reset that failed so often is given up, within two seconds: its sockets time out by themselves.
const ATTEMPTS: u32 = 5;
/// Resets that may wait. A pass adds one per network that lost endpoints; so many means that the thread is stuck.
const MAX_WAITING: usize = 1024;

/// A queue of resets and the thread that takes them.
pub(crate) struct Resets {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// The queue or what is under way changed.
    changed: Condvar,
    /// What there is to report changed.
    news: Notify,
}

#[derive(Default)]
struct Queue {
    /// In the order in which they came.
    jobs: BTreeMap<u64, Job>,
    n_jobs: u64,
    under_way: Option<Work>,
    end: Option<End>,
}

/// How the thread ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    AtOnce,
    /// When each reset was tried.
    WhenTried,
}

/// A reset, as far as it is not done.
struct Job {
    vni: Vni,
    addresses: Arc<BTreeSet<Ipv4Addr>>,
    /// Namespaces that it still has to be tried in.
    left: VecDeque<Option<SandboxId>>,
    failed: Vec<Option<SandboxId>>,
    n_failures: u32,
    /// Why it failed last.
    reason: String,
    retry_at: Option<Instant>,
}

/// One namespace's part of a job.
#[derive(Clone)]
struct Work {
    job: u64,
    vni: Vni,
    addresses: Arc<BTreeSet<Ipv4Addr>>,
    place: Option<SandboxId>,
}

impl Resets {
    /// Starts the thread, in the network namespace of the calling one.
    pub(crate) fn start(sockets: impl Sockets) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), news: Notify::new() });
        let taken = Arc::clone(&shared);
        let thread = thread::Builder::new().name("resets".to_owned()).spawn(move || taken.run(&sockets))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes `reset` when those before it were tried.
    pub(crate) fn push(&self, reset: &SocketReset) {
        let mut queue = self.shared.lock();
        if queue.jobs.len() >= MAX_WAITING {
            tracing::warn!(%reset, "too many resets wait: these sockets are left to time out");
            return;
        }
        let job = Job {
            vni: reset.vni,
            addresses: Arc::clone(&reset.addresses),
            left: reset.places().collect(),
            failed: Vec::new(),
            n_failures: 0,
            reason: String::new(),
            retry_at: None,
        };
        if job.left.is_empty() || job.addresses.is_empty() {
            return;
        }
        let number = queue.n_jobs;
        queue.n_jobs += 1;
        queue.jobs.insert(number, job);
        self.shared.changed.notify_all();
    }

    /// Spares the addresses that `is_back` says exist again. When it returns no reset of such an address is under way: they
    /// may be connected to.
    pub(crate) fn spare(&self, is_back: impl Fn(Vni, &Ipv4Addr) -> bool) {
        let mut queue = self.shared.lock();
        for job in queue.jobs.values_mut() {
            if job.addresses.iter().any(|address| is_back(job.vni, address)) {
                Arc::make_mut(&mut job.addresses).retain(|address| !is_back(job.vni, address));
            }
        }
        let n_jobs = queue.jobs.len();
        queue.jobs.retain(|_, job| !job.addresses.is_empty());
        if queue.jobs.len() < n_jobs {
            self.shared.news.notify_one();
        }
        let is_hit = |work: &Work| work.addresses.iter().any(|address| is_back(work.vni, address));
        while queue.under_way.as_ref().is_some_and(is_hit) {
            queue = self.shared.wait(queue, None);
        }
    }

    /// Returns when [`Resets::errors`] may say something else. May be dropped at any time.
    pub(crate) async fn changed(&self) {
        self.shared.news.notified().await;
    }

    /// What failed and will be tried again, one sentence each.
    pub(crate) fn errors(&self) -> Vec<String> {
        let queue = self.shared.lock();
        let failing = queue.jobs.values().filter(|job| job.n_failures > 0);
        failing
            .map(|job| format!("sockets to tasks of network {} that are gone: {}", job.vni, job.reason))
            .collect()
    }

    /// Returns when all that was pushed has been tried.
    pub(crate) fn finish(mut self) {
        self.end(End::WhenTried);
    }

    fn end(&mut self, how: End) {
        self.shared.lock().end = Some(how);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Drop for Resets {
    /// What waits is left: the next driver looks for such sockets when it starts.
    fn drop(&mut self) {
        self.end(End::AtOnce);
    }
}

impl Shared {
    fn run(&self, sockets: &impl Sockets) {
        while let Some(work) = self.next() {
            let outcome = sockets.reset(work.place.as_ref(), &work.addresses);
            let mut queue = self.lock();
            queue.under_way = None;
            if queue.note(work, outcome, Instant::now()) {
                self.news.notify_one();
            }
            self.changed.notify_all();
        }
    }

    /// Waits for work; `None` is the end.
    fn next(&self) -> Option<Work> {
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            let retry_at = queue.jobs.values().filter_map(|job| job.retry_at).min();
            match (queue.end, queue.take(now)) {
                (Some(End::AtOnce), _) | (Some(End::WhenTried), None) => return None,
                (_, Some(work)) => {
                    queue.under_way = Some(work.clone());
                    return Some(work);
                }
                (None, None) => queue = self.wait(queue, retry_at),
            }
        }
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>, until: Option<Instant>) -> MutexGuard<'a, Queue> {
        let Some(until) = until else {
            return self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        let left = until.saturating_duration_since(Instant::now());
        self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// The next namespace of the first job that is due.
    fn take(&mut self, now: Instant) -> Option<Work> {
        let is_due = |job: &Job| job.retry_at.is_none_or(|retry_at| retry_at <= now);
        let (number, job) = self.jobs.iter_mut().find(|(_, job)| is_due(job))?;
        let place = job.left.pop_front().expect("a job without places is done");
        Some(Work { job: *number, vni: job.vni, addresses: Arc::clone(&job.addresses), place })
    }

    /// `true` if there is something else to report.
    fn note(&mut self, work: Work, outcome: Result<(), KernelError>, now: Instant) -> bool {
        // Spared as a whole meanwhile.
        let Some(job) = self.jobs.get_mut(&work.job) else { return false };
        if let Err(error) = outcome {
            job.reason = error.0;
            job.failed.push(work.place);
        }
        if !job.left.is_empty() {
            return false;
        }
        let had_failed = job.n_failures > 0;
        if job.failed.is_empty() {
            self.jobs.remove(&work.job);
            return had_failed;
        }
        job.n_failures += 1;
        job.left = std::mem::take(&mut job.failed).into();
        job.retry_at = Some(now + delay(job.n_failures));
        if job.n_failures == ATTEMPTS {
            let (vni, reason) = (job.vni.get(), &job.reason);
            tracing::warn!(
                vni,
                reason,
                "sockets to tasks that are gone could not be reset: they will time out"
            );
            self.jobs.remove(&work.job);
        }
        true
    }
}

#[cfg(test)]
mod tests;
