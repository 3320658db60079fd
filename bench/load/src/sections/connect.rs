//! What `connect()` costs to a virtual address, beside the address that it stands for: from a task on one node to a task
//! on the other.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::netns::Place;
use crate::pair::{self, Extent, Pair};

const DATAGRAMS: Metric =
    Metric { name: "connect() of a UDP socket: no packet is sent", unit: "µs", better: Better::Lower };
const STREAMS: Metric = Metric {
    name: "connect() of a TCP socket: until the answer is there",
    unit: "µs",
    better: Better::Lower,
};

const VIP: &str = "to the virtual address";
const ADDRESS: &str = "to the task's address";
const GOALS: [Goal; 1] = [Goal { row: VIP, bound: Bound::Within { more: 0.5, of: ADDRESS } }];

/// Calls per sample, whose median counts.
const N_DATAGRAM_CALLS: usize = 20_000;
const N_STREAM_CALLS: usize = 10_000;

pub fn measure(plan: Plan) -> Vec<Comparison> {
    let tasks = Tasks::start();
    let table = |metric, sample: fn(&Tasks, Ipv4Addr) -> Result<f64>| {
        let rows = vec![
            Peer::maybe(VIP, &tasks, move |tasks| sample(tasks, pair::VIP)),
            Peer::maybe(ADDRESS, &tasks, move |tasks| sample(tasks, pair::overlay_address(1))),
        ];
        compare(metric, plan, rows).aiming_at(&GOALS)
    };
    vec![table(DATAGRAMS, Tasks::connect_datagrams), table(STREAMS, Tasks::connect_streams)]
}

/// Two tasks of one network.
struct Tasks {
    from: Place,
    to: Place,
    _pair: Pair,
}

impl Tasks {
    fn start() -> Result<Self> {
        let pair = Pair::start()?;
        pair.converge(1, Extent::services(1))?;
        Ok(Self { from: pair.task(0)?, to: pair.task(1)?, _pair: pair })
    }

    /// Microseconds of the median call.
    fn connect_datagrams(&self, to: Ipv4Addr) -> Result<f64> {
        self.from.inside(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            median_of(N_DATAGRAM_CALLS, || {
                let start = Instant::now();
                socket.connect((to, pair::PORT))?;
                Ok(start.elapsed())
            })
        })
    }

    /// The same; the listener takes each connection and closes it after its client.
    fn connect_streams(&self, to: Ipv4Addr) -> Result<f64> {
        let listener = self.to.inside(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, pair::PORT))?))?;
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while let Ok((_, _)) = listener.accept() {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let measured = self.from.inside(|| {
                let address = SocketAddr::from((to, pair::PORT));
                median_of(N_STREAM_CALLS, || {
                    let start = Instant::now();
                    let stream = TcpStream::connect(address)?;
                    let elapsed = start.elapsed();
                    drop(stream);
                    Ok(elapsed)
                })
            });
            is_over.store(true, Ordering::Relaxed);
            // The listener waits for one more.
            let woken = self.to.inside(|| Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, pair::PORT))?));
            let measured = measured?;
            woken?;
            Ok(measured)
        })
    }
}

fn median_of(n_calls: usize, mut call: impl FnMut() -> Result<Duration>) -> Result<f64> {
    let mut durations = (0..n_calls).map(|_| call()).collect::<Result<Vec<_>>>()?;
    durations.sort();
    Ok(durations[n_calls / 2].as_secs_f64() * 1e6)
}
