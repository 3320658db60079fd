//! Long-lived connections: slow downloads from `whoami`'s `/stream`, held open while the lab is disrupted. Every byte is
//! compared with what its position says it must be; nothing is retried.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::Lab;
use crate::net::enter;
use crate::process::wait_until;

/// Longest wait for a connection and an answer's head.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);
/// A download that gets nothing for this long is broken: TCP's retransmissions have long been given their chance.
const STALL_LIMIT: Duration = Duration::from_secs(45);
/// Longest download; they are stopped before.
const SECONDS: u32 = 600;
/// Bytes a second of each.
const RATE: u32 = 10_000;
/// Bytes that a download must still get when it is asked whether it lives: more than can be on its way already.
const LAST_BYTES: u64 = RATE as u64 / 2;

/// What became of the downloads.
#[derive(Debug, Clone, Default)]
pub struct DownloadsReport {
    pub n_started: usize,
    pub n_broken: usize,
    /// Broken ones by text.
    pub failures: BTreeMap<String, usize>,
    /// Longest time in which a download that lived on got nothing.
    pub longest_stall: Duration,
    pub n_bytes: u64,
    /// Downloads by the task that served them.
    pub tasks: BTreeMap<String, usize>,
}

/// Downloads that run until they are stopped.
pub struct Downloads {
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Downloads that have their first byte.
    n_begun: AtomicU64,
    /// The round of waiting for bytes, and how many downloads have got some in it.
    round: AtomicU64,
    n_served: AtomicU64,
    report: Mutex<DownloadsReport>,
}

impl Downloads {
    /// `n` downloads by the lab's client, from `targets` in turn.
    pub fn start(lab: &Lab, targets: &[SocketAddr], n: usize) -> Result<Self> {
        ensure!(!targets.is_empty(), "downloads need a target");
        let shared = Arc::new(Shared::default());
        let namespace = lab.client_namespace();
        let readers = targets.iter().cycle().take(n).map(|&target| {
            let (shared, namespace) = (shared.clone(), namespace.clone());
            thread::spawn(move || {
                let result = enter(&namespace).and_then(|()| Download::run(target, &shared));
                shared.note(target, result);
            })
        });
        let downloads = Self { readers: readers.collect(), shared };
        downloads.shared.lock().n_started = n;
        Ok(downloads)
    }

    /// How many have got their first byte.
    pub fn n_begun(&self) -> u64 {
        self.shared.n_begun.load(Ordering::Relaxed)
    }

    /// How many have broken so far.
    pub fn n_broken(&self) -> usize {
        self.shared.lock().n_broken
    }

    /// Returns when each one that is not broken has got bytes that were not on their way before the call.
    pub fn wait_for_bytes(&self, limit: Duration) -> Result<()> {
        self.shared.n_served.store(0, Ordering::Relaxed);
        self.shared.round.fetch_add(1, Ordering::Release);
        wait_until("all downloads to go on", limit, || {
            let n_served = self.shared.n_served.load(Ordering::Relaxed);
            let report = self.shared.lock();
            Ok((n_served >= (report.n_started - report.n_broken) as u64).then_some(()))
        })?;
        Ok(())
    }

    /// Ends them. Each must get some more bytes first, so that those that live on in name alone are found.
    pub fn stop(mut self) -> Result<DownloadsReport> {
        self.end()?;
        Ok(self.shared.lock().clone())
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for reader in self.readers.drain(..) {
            reader.join().map_err(|_| anyhow!("a download panicked"))?;
        }
        Ok(())
    }
}

impl Drop for Downloads {
    /// Downloads that nobody stopped must not run into what comes next.
    fn drop(&mut self) {
        // Whoever drops them has failed already.
        let _ = self.end();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, DownloadsReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, target: SocketAddr, result: Result<Download>) {
        let mut report = self.lock();
        match result {
            Ok(download) => {
                report.longest_stall = report.longest_stall.max(download.longest_stall);
                report.n_bytes += download.position;
                *report.tasks.entry(download.task).or_default() += 1;
            }
            Err(error) => {
                report.n_broken += 1;
                *report.failures.entry(format!("from {target}: {error:#}")).or_default() += 1;
            }
        }
    }
}

struct Download {
    task: String,
    position: u64,
    longest_stall: Duration,
}

impl Download {
    /// Reads until it is told to stop, and has got bytes since.
    fn run(target: SocketAddr, shared: &Shared) -> Result<Self> {
        let mut stream = TcpStream::connect_timeout(&target, BEGIN_LIMIT).context("connect")?;
        stream.set_read_timeout(Some(BEGIN_LIMIT))?;
        write!(stream, "GET /stream?seconds={SECONDS}&rate={RATE} HTTP/1.1\r\nHost: {target}\r\n\r\n")?;
        let mut reader = BufReader::new(stream);
        let task = read_head(&mut reader).context("no head")?;
        reader.get_ref().set_read_timeout(Some(STALL_LIMIT))?;
        let mut download = Self { task, position: 0, longest_stall: Duration::ZERO };
        download.receive(&mut reader)?;
        shared.n_begun.fetch_add(1, Ordering::Relaxed);
        let (mut end, mut round, mut goal) = (None, 0, None);
        while end.is_none_or(|end| download.position < end) {
            if end.is_none() && shared.stop.load(Ordering::Relaxed) {
                end = Some(download.position + LAST_BYTES);
            }
            let asked_at = Instant::now();
            let received = download.receive(&mut reader);
            received.with_context(|| {
                let waited = asked_at.elapsed().as_secs_f64();
                format!("task {}, after {} bytes and {waited:.1} s", download.task, download.position)
            })?;
            download.longest_stall = download.longest_stall.max(asked_at.elapsed());
            let round_now = shared.round.load(Ordering::Acquire);
            if std::mem::replace(&mut round, round_now) != round_now {
                goal = Some(download.position + LAST_BYTES);
            }
            if goal.take_if(|goal| download.position >= *goal).is_some() {
                shared.n_served.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(download)
    }

    fn receive(&mut self, reader: &mut impl std::io::Read) -> Result<()> {
        let mut buffer = [0; 4096];
        let len = reader.read(&mut buffer)?;
        if len == 0 {
            bail!("the connection was closed");
        }
        for (byte, position) in buffer[..len].iter().zip(self.position..) {
            ensure!(*byte == byte_at(position), "byte {position} is wrong");
        }
        self.position += len as u64;
        Ok(())
    }
}

/// The head of an answer; returns the task that gave it.
fn read_head(reader: &mut BufReader<TcpStream>) -> Result<String> {
    let (mut line, mut task) = (String::new(), String::new());
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200"), "answered {line:?}");
    while !line.trim_end().is_empty() {
        if let Some(name) = line.strip_prefix("X-Task: ") {
            name.trim().clone_into(&mut task);
        }
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "cut off");
    }
    Ok(task)
}

/// What `whoami` sends at a position of its stream.
fn byte_at(position: u64) -> u8 {
    position.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}
