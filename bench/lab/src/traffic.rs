//! Small HTTP traffic inside the lab: single requests, and a steady stream whose every failure is counted.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::Lab;
use crate::net::enter;

/// Longest wait for a connection, and for each read.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Threads of a steady stream.
const N_SENDERS: u32 = 8;
/// A stream ends by itself after this.
const STREAM_LIMIT: Duration = Duration::from_mins(5);

/// One answer of the `whoami` server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// `key: value` lines of the body.
    pub fields: BTreeMap<String, String>,
}

impl Answer {
    /// The value of a line, empty if there is none.
    pub fn get(&self, key: &str) -> &str {
        self.fields.get(key).map_or("", String::as_str)
    }

    /// The peer's address without its port, as the server saw it.
    pub fn peer(&self) -> Option<IpAddr> {
        self.get("peer").parse::<SocketAddr>().ok().map(|peer| peer.ip().to_canonical())
    }
}

/// One request on a connection of its own.
pub fn request(to: SocketAddr) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, REQUEST_LIMIT).context("connect")?;
    stream.set_read_timeout(Some(REQUEST_LIMIT))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").context("send")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("receive")?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    parse(head, body)
}

fn parse(head: &str, body: &str) -> Result<Answer> {
    ensure!(head.starts_with("HTTP/1.1 200"), "answered {}", head.lines().next().unwrap_or_default());
    let fields =
        body.lines().filter_map(|l| l.split_once(": ")).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    Ok(Answer { fields })
}

/// How requests use connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// One for each request.
    Short,
    /// One for many, until the server says that it closes.
    KeptAlive,
}

/// A connection that is used until the server says that it closes. A request that fails on it is not sent again.
#[derive(Default)]
struct KeptConnection(Option<BufReader<TcpStream>>);

impl KeptConnection {
    fn request(&mut self, to: SocketAddr) -> Result<Answer> {
        let is_new = self.0.is_none();
        let mut reader = match self.0.take() {
            Some(reader) => reader,
            None => BufReader::new(TcpStream::connect_timeout(&to, REQUEST_LIMIT).context("connect")?),
        };
        let context = if is_new { "on a new connection" } else { "on a used connection" };
        let (head, body) = exchange(&mut reader).context(context)?;
        if !head.contains("Connection: close") {
            self.0 = Some(reader);
        }
        parse(&head, &body)
    }
}

fn exchange(reader: &mut BufReader<TcpStream>) -> Result<(String, String)> {
    reader.get_ref().set_read_timeout(Some(REQUEST_LIMIT))?;
    reader.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n").context("send")?;
    let (mut head, mut body_len) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let begin = head.len();
        ensure!(reader.read_line(&mut head).context("receive")? > 0, "receive: closed after {begin} bytes");
        if let Some(len) = head[begin..].strip_prefix("Content-Length: ") {
            body_len = len.trim().parse()?;
        }
    }
    let mut body = vec![0; body_len];
    reader.read_exact(&mut body).context("receive the body")?;
    Ok((head, String::from_utf8(body)?))
}

/// What became of a steady stream.
#[derive(Debug, Clone, Default)]
pub struct TrafficReport {
    pub n_sent: u64,
    pub n_failed: u64,
    /// Failures by text.
    pub failures: BTreeMap<String, u64>,
    /// Slowest answer.
    pub slowest: Duration,
    /// When the first and the last failure came, from the start of the stream.
    pub failed_between: Option<(Duration, Duration)>,
    /// Answers by the server's `version` line.
    pub versions: BTreeMap<String, u64>,
}

/// A steady stream of requests from the lab's client, until it is stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<TrafficReport>>,
    senders: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// `rate_per_s` requests a second, to `targets` in turn, each on a new connection.
    pub fn start(lab: &Lab, targets: &[SocketAddr], rate_per_s: u32) -> Result<Self> {
        Self::start_with(lab, targets, rate_per_s, Connections::Short)
    }

    /// The same with connections used as `connections` says; a kept one goes to the next target when it is replaced.
    pub fn start_with(
        lab: &Lab,
        targets: &[SocketAddr],
        rate_per_s: u32,
        connections: Connections,
    ) -> Result<Self> {
        ensure!(!targets.is_empty(), "traffic needs a target");
        let stop = Arc::new(AtomicBool::new(false));
        let report = Arc::new(Mutex::new(TrafficReport::default()));
        let pace = Duration::from_secs(1) * N_SENDERS / rate_per_s.max(1);
        let namespace = lab.client_namespace();
        let start = Instant::now();
        let senders = (0..N_SENDERS)
            .map(|n| {
                let (stop, report, targets, namespace) =
                    (stop.clone(), report.clone(), targets.to_vec(), namespace.clone());
                thread::spawn(move || {
                    if let Err(error) = enter(&namespace) {
                        note(&report, start.elapsed(), start.elapsed(), Err(error));
                        return;
                    }
                    let mut kept = KeptConnection::default();
                    let ask = |turn: usize| {
                        let to = targets[turn % targets.len()];
                        let sent_at = Instant::now();
                        let result = match connections {
                            Connections::Short => request(to),
                            Connections::KeptAlive => kept.request(to),
                        };
                        let result = result.with_context(|| format!("to {to}"));
                        note(&report, sent_at.duration_since(start), sent_at.elapsed(), result);
                    };
                    send(n as usize, start + pace * n / N_SENDERS, pace, &stop, ask);
                })
            })
            .collect();
        Ok(Self { stop, report, senders })
    }

    /// What became of it so far.
    pub fn so_far(&self) -> TrafficReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the stream.
    pub fn stop(mut self) -> Result<TrafficReport> {
        self.end()?;
        Ok(self.so_far())
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for sender in self.senders.drain(..) {
            sender.join().map_err(|_| anyhow!("a sender panicked"))?;
        }
        Ok(())
    }
}

impl Drop for Traffic {
    /// A stream that nobody stopped must not run into what comes next.
    fn drop(&mut self) {
        // Whoever drops it has failed already.
        let _ = self.end();
    }
}

fn send(first: usize, start: Instant, pace: Duration, stop: &AtomicBool, mut ask: impl FnMut(usize)) {
    let mut next = start;
    for turn in first.. {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) || start.elapsed() > STREAM_LIMIT {
            return;
        }
        ask(turn);
        next += pace;
    }
}

fn note(report: &Mutex<TrafficReport>, at: Duration, took: Duration, result: Result<Answer>) {
    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
    report.n_sent += 1;
    report.slowest = report.slowest.max(took);
    match result {
        Ok(answer) => *report.versions.entry(answer.get("version").to_owned()).or_default() += 1,
        Err(error) => {
            report.n_failed += 1;
            *report.failures.entry(format!("{error:#}")).or_default() += 1;
            let first = report.failed_between.map_or(at, |(first, _)| first.min(at));
            report.failed_between = Some((first, at));
        }
    }
}
