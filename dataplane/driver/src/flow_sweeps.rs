//! The thread that has flows collected that have ended. It begins before the first view: programs that an older driver left
//! carry traffic. No pass and no acknowledgement waits for it, only the end of the driver, and that for a slice.

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dataplane_kernel::{Pause, Sweeper};

/// Between two sweeps: closed flows stay for ten seconds, and up to this much longer.
const PERIOD: Duration = Duration::from_secs(5);
/// Between two slices of a sweep. A slice of a few thousand idle rows takes about as long, so that sweeping a full table takes
/// half a processor at most.
const PAUSE: Duration = Duration::from_millis(5);

/// A sweep every few seconds, until this is dropped.
pub(crate) struct FlowSweeps {
    end: Arc<End>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct End {
    has_come: Mutex<bool>,
    comes: Condvar,
}

impl FlowSweeps {
    /// Starts the thread.
    pub(crate) fn start(sweeper: impl Sweeper) -> io::Result<Self> {
        let end = Arc::<End>::default();
        let until = Arc::clone(&end);
        let thread =
            thread::Builder::new().name("flow-sweeps".to_owned()).spawn(move || sweep(sweeper, &until))?;
        Ok(Self { end, thread: Some(thread) })
    }

    /// When this returns the tables are let go of.
    pub(crate) fn finish(&mut self) {
        *self.end.has_come.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end.comes.notify_all();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Drop for FlowSweeps {
    fn drop(&mut self) {
        self.finish();
    }
}

impl End {
    /// Waits so long for the end; breaks when it has come.
    fn wait(&self, at_most: Duration) -> ControlFlow<()> {
        let until = Instant::now() + at_most;
        let mut has_come = self.has_come.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if *has_come {
                return ControlFlow::Break(());
            }
            if left.is_zero() {
                return ControlFlow::Continue(());
            }
            has_come = self.comes.wait_timeout(has_come, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn sweep(mut sweeper: impl Sweeper, end: &Arc<End>) {
    let slices_end = Arc::clone(end);
    let pause: Pause = Arc::new(move || slices_end.wait(PAUSE));
    let mut has_failed = false;
    loop {
        let swept = sweeper.sweep(&pause);
        if let Err(error) = &swept
            && !has_failed
        {
            tracing::warn!(%error, "flows that have ended can't be collected; this is tried again");
        }
        has_failed = swept.is_err();
        if end.wait(PERIOD).is_break() {
            return;
        }
    }
}
