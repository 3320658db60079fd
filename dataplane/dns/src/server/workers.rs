//! Threads that answer. Each has a single-threaded runtime of its own: a query is answered on the thread that its socket
//! woke, and no other thread is woken for it. Taking in new zones happens elsewhere and delays nobody.

use std::io;
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Names are a small part of a node's work: more threads than this would only take turns.
const MAX_WORKERS: usize = 4;

/// The threads; they end when this is dropped.
pub struct Workers {
    workers: Vec<Worker>,
    next: usize,
}

struct Worker {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Workers {
    /// As many as there are cores, within a limit.
    pub fn start() -> io::Result<Self> {
        let n_workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_WORKERS));
        let workers = (0..n_workers).map(|_| Worker::start()).collect::<io::Result<_>>()?;
        Ok(Self { workers, next: 0 })
    }

    /// The one that serves the next sandbox; they take turns.
    pub fn next(&mut self) -> Handle {
        self.next = (self.next + 1) % self.workers.len();
        self.workers[self.next].handle.clone()
    }
}

impl Worker {
    fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let work = move || {
            // Ends when the sender is dropped.
            let _ = runtime.block_on(stopped);
        };
        let thread = std::thread::Builder::new().name("dns-worker".to_owned()).spawn(work)?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its task.
            let _ = thread.join();
        }
    }
}
