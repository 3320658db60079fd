//! Ending well: SIGTERM closes the listener, open connections get their answers, then the process ends with 0.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A connection that is idle for this long after SIGTERM is closed. Clients that reuse connections come back sooner
/// and are told to close.
pub const LINGER: Duration = Duration::from_secs(2);
/// All is over after this, answered or not, if nothing else is asked for: below Docker's default grace of 10 s.
pub const DRAIN_DEFAULT: Duration = Duration::from_secs(8);
/// How often the end of the last connection is looked for.
const POLL: Duration = Duration::from_millis(5);

static STOPPING: AtomicBool = AtomicBool::new(false);
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Whether SIGTERM has come.
pub fn is_stopping() -> bool {
    STOPPING.load(Ordering::Acquire)
}

/// An open connection; counts while it lives.
pub struct OpenConnection;

impl OpenConnection {
    /// `None` if there are already `max`.
    pub fn new(max: usize) -> Option<Self> {
        let taken = OPEN.fetch_add(1, Ordering::AcqRel);
        let connection = Self;
        (taken < max).then_some(connection)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Blocks SIGTERM and SIGINT in this thread and those that it starts; a thread of their own waits for them and makes
/// the listener's `accept` fail. Before any other thread.
pub fn stop_on_signal(listener: &TcpListener) -> io::Result<()> {
    let listener = listener.try_clone()?;
    let signals = blocked_signals()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        wait_for(&signals);
        STOPPING.store(true, Ordering::Release);
        // Connections that the kernel has taken for us would be reset by the shutdown: `accept` gets a moment first.
        std::thread::sleep(POLL);
        // SAFETY: shutdown(2) on a descriptor that `listener` keeps open; no memory is touched.
        unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
    })?;
    Ok(())
}

/// Ends the process with 0 when a signal comes: for what has nothing to finish. Before any other thread.
pub fn exit_on_signal() -> io::Result<()> {
    let signals = blocked_signals()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        wait_for(&signals);
        std::process::exit(0);
    })?;
    Ok(())
}

/// Returns when no connection is open, or it has taken `longest`.
pub fn wait_for_connections(longest: Duration) {
    let start = Instant::now();
    while OPEN.load(Ordering::Acquire) > 0 && start.elapsed() < longest {
        std::thread::sleep(POLL);
    }
}

fn blocked_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: an all-zero sigset_t is a valid value to be initialised by sigemptyset; the pointers are to locals that
    // outlive the calls.
    unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGTERM);
        libc::sigaddset(&raw mut signals, libc::SIGINT);
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()) {
            0 => Ok(signals),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn wait_for(signals: &libc::sigset_t) {
    let mut signal = 0;
    // SAFETY: both pointers are to live values of the right type.
    while unsafe { libc::sigwait(signals, &raw mut signal) } != 0 {}
}
