//! A backend is gone without a word, as with its machine: how long its clients' sockets stay silent. From the increment
//! of the node's assignments to the error that the last of them reads.

use std::cell::RefCell;
use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::compare::{Better, Bound, Comparison, Goal, Metric, Peer, Plan, compare};
use crate::netns::Place;
use crate::pair::{self, Assigned, Extent, Pair};

const METRIC: Metric = Metric {
    name: "A backend is gone: from the increment to its clients' error",
    unit: "ms",
    better: Better::Lower,
};
const ONE: &str = "one connection";
const MANY: &str = "the last of 1,000 connections";
const N_MANY: usize = 1_000;

/// Sooner than a person notices, and than most programs time out.
const GOALS: [Goal; 2] =
    [Goal { row: ONE, bound: Bound::Below(100.0) }, Goal { row: MANY, bound: Bound::Below(100.0) }];

/// How long a socket may be silent before the row counts as failed.
const LIMIT: Duration = Duration::from_secs(10);

/// Its clients are on the first node.
const CLIENTS_NODE: usize = 0;

pub fn measure(plan: Plan) -> Comparison {
    let backend = Backend::start();
    let rows = vec![
        Peer::maybe(ONE, &backend, |backend| backend.silence(1)),
        Peer::maybe(MANY, &backend, |backend| backend.silence(N_MANY)),
    ];
    compare(METRIC, plan, rows).aiming_at(&GOALS)
}

/// A task that accepts connections, by a virtual address, and says nothing.
struct Backend {
    listener: TcpListener,
    clients: Place,
    assigned: RefCell<Assigned>,
    pair: Pair,
}

impl Backend {
    fn start() -> Result<Self> {
        let pair = Pair::start()?;
        let extent = Extent::services(1);
        pair.converge(1, extent)?;
        let bind = || Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, pair::PORT))?);
        let listener = pair.task(1)?.inside(bind)?;
        let assigned = RefCell::new(Assigned::new(CLIENTS_NODE, 1, extent));
        Ok(Self { listener, clients: pair.task(CLIENTS_NODE)?, assigned, pair })
    }

    /// Milliseconds until the last of so many connections has heard. The backend's own machine is told nothing: its end
    /// stays as it is.
    fn silence(&self, n_connections: usize) -> Result<f64> {
        let listener = &self.listener;
        let connections = self.clients.inside(|| {
            (0..n_connections)
                .map(|_| {
                    let client = TcpStream::connect((pair::VIP, pair::PORT))?;
                    client.set_read_timeout(Some(LIMIT))?;
                    Ok((client, listener.accept()?.0))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        let node = self.pair.node(CLIENTS_NODE);
        let change = |is_there| {
            let update = self.assigned.borrow().asked_backend(is_there);
            self.assigned.borrow_mut().take(update)
        };
        let start = Instant::now();
        let gone = change(false)?;
        node.want(gone.clone());
        let heard = connections.iter().try_for_each(|(client, _)| match { client }.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => Ok(()),
            other => bail!("a client's socket has {other:?}"),
        });
        let taken = start.elapsed();
        node.converge(gone)?;
        node.converge(change(true)?)?;
        heard.map(|()| taken.as_secs_f64() * 1e3)
    }
}
