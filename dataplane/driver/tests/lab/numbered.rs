//! Numbered datagrams, each of which must come back: what repeats nothing shows every gap.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::Ns;

/// Between two datagrams of one socket.
const PACE: Duration = Duration::from_millis(2);
/// Seconds of datagrams: a thread that waits for its turn on a busy machine must lose none.
const BUFFER_BYTES: usize = 8 << 20;
/// Of the numbers that are missing.
const SHOWN: usize = 20;
/// Between two looks of a receiver at whether it is over.
const LOOK: Duration = Duration::from_millis(100);

/// Sends every datagram in `ns` back.
pub fn serve_echo(ns: &Ns, port: u16) {
    let socket = ns.run(move || buffered(("0.0.0.0", port)));
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((n_bytes, client)) = socket.recv_from(&mut buffer) {
            let _sent = socket.send_to(&buffer[..n_bytes], client);
        }
    });
}

/// One socket and what it is still waiting for. Ends when dropped.
pub struct Numbered {
    name: String,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    pause: Pause,
    numbers: Mutex<Numbers>,
}

/// A client that asks nothing for a while.
#[derive(Default)]
pub struct Pause {
    is_wanted: AtomicBool,
    has_begun: AtomicBool,
}

impl Pause {
    pub fn want(&self, is_wanted: bool) {
        self.is_wanted.store(is_wanted, Ordering::SeqCst);
    }

    /// The client has seen that it is to rest, and asks nothing more.
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::SeqCst)
    }

    /// Between two questions: true if there is to be none now.
    pub fn is_on(&self) -> bool {
        let is_on = self.is_wanted.load(Ordering::SeqCst);
        self.has_begun.store(is_on, Ordering::SeqCst);
        is_on
    }
}

#[derive(Default)]
struct Numbers {
    n_sent: u64,
    unanswered: BTreeSet<u64>,
    failures: Vec<String>,
}

/// How a client asks: the kernel translates virtual addresses for the one when it connects, for the other each time.
#[derive(Debug, Clone, Copy)]
pub enum Asks {
    Connected,
    Unconnected,
}

impl Numbered {
    pub fn start(name: &str, ns: &Ns, to: (Ipv4Addr, u16), asks: Asks) -> Self {
        let socket = ns.run(move || {
            let socket = buffered(("0.0.0.0", 0));
            if matches!(asks, Asks::Connected) {
                socket.connect(to).unwrap();
            }
            socket
        });
        socket.set_read_timeout(Some(LOOK)).unwrap();
        let (socket, shared) = (Arc::new(socket), Arc::new(Shared::default()));
        let (sends, sent) = (Arc::clone(&socket), Arc::clone(&shared));
        let sender = thread::spawn(move || sent.send(&sends, to, asks));
        let received = Arc::clone(&shared);
        let receiver = thread::spawn(move || received.receive(&socket));
        Self { name: name.to_owned(), shared, threads: vec![sender, receiver] }
    }

    pub fn n_sent(&self) -> u64 {
        self.shared.numbers.lock().unwrap().n_sent
    }

    pub fn pause(&self) -> &Pause {
        &self.shared.pause
    }

    /// What is not as it should be with the numbers below `n`: empty when all have come back.
    pub fn complaint(&self, n: u64) -> String {
        let numbers = self.shared.numbers.lock().unwrap();
        let n_missing = numbers.unanswered.range(..n).count();
        if n_missing == 0 && numbers.failures.is_empty() {
            return String::new();
        }
        let some: Vec<&u64> = numbers.unanswered.range(..n).take(SHOWN).collect();
        format!("{}: {n_missing} missing of {n}: {some:?}, {:?}\n", self.name, numbers.failures)
    }
}

impl Shared {
    fn send(&self, socket: &UdpSocket, to: (Ipv4Addr, u16), asks: Asks) {
        while !self.is_over.load(Ordering::Relaxed) {
            if self.pause.is_on() {
                thread::sleep(PACE);
                continue;
            }
            let number = {
                let mut numbers = self.numbers.lock().unwrap();
                let number = numbers.n_sent;
                numbers.n_sent += 1;
                numbers.unanswered.insert(number);
                number
            };
            let sent = match asks {
                Asks::Connected => socket.send(&number.to_be_bytes()),
                Asks::Unconnected => socket.send_to(&number.to_be_bytes(), to),
            };
            if let Err(error) = sent {
                self.numbers.lock().unwrap().failures.push(format!("{number}: {error}"));
            }
            thread::sleep(PACE);
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        let mut number = [0; 8];
        while !self.is_over.load(Ordering::Relaxed) {
            // Errors of earlier datagrams are told to the sender, too, or show as a number that is missing.
            if socket.recv(&mut number).is_ok() {
                self.numbers.lock().unwrap().unanswered.remove(&u64::from_be_bytes(number));
            }
        }
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

fn buffered(address: (&str, u16)) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).unwrap();
    socket
}
