//! Whether a process listens on the ports that clients are sent to.
//!
//! A task serves as soon as it runs, and a process needs a moment from its first step to its socket: who is sent to it in between
//! is refused. So a container is starting until there is a socket for each published port, or for a bounded time. Where there
//! is a health check, that says more.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use control_model::Timestamp;
use control_model::spec::{PortConfig, Protocol};

use super::record::{ContainerRecord, Stage};

/// A process that has no socket by then has none to be waited for: it may never have.
const LISTEN_GRACE: Duration = Duration::from_secs(3);
/// Most listen at once. A kernel goes through all of its sockets for each look, whatever the namespace: it is not asked often of
/// those that take longer.
const FIRST_PERIOD: Duration = Duration::from_millis(5);
const LAST_PERIOD: Duration = Duration::from_millis(100);
/// `TCP_LISTEN`, and `TCP_CLOSE`, which is what an unconnected UDP socket is in (`include/net/tcp_states.h`).
const LISTENING: &str = "0A";
const UNCONNECTED: &str = "07";

/// What is still waited for of a container whose process runs and that has no check: that it opens its ports.
#[derive(Debug)]
pub(crate) struct Opening<'r> {
    pid: i32,
    ports: &'r [PortConfig],
    /// How much longer that is waited for.
    left: Duration,
}

/// `None` where nothing is waited for, or not any more.
pub(super) fn opening(record: &ContainerRecord, now: Timestamp) -> Option<Opening<'_>> {
    let Stage::Started { pid, at } = record.stage else { return None };
    let is_awaited = record.health.is_none() && record.ended.is_none();
    Opening::of(pid, &record.ports, at, now).filter(|_| is_awaited)
}

impl<'r> Opening<'r> {
    /// Of a process without a check that was started at `at`; `None` where nothing is waited for, or not any more.
    pub(crate) fn of(pid: i32, ports: &'r [PortConfig], at: Timestamp, now: Timestamp) -> Option<Self> {
        let left = LISTEN_GRACE.checked_sub(now.since(at))?;
        (!ports.is_empty() && !left.is_zero()).then_some(Self { pid, ports, left })
    }

    /// Returns when something listens on each of the ports, or when the time is over.
    pub(crate) async fn over(self) {
        let wanted = self.ports.iter().filter_map(|port| Some((Table::of(port.protocol)?, port.target)));
        if tokio::time::timeout(self.left, wait_until_open(self.pid, wanted.collect())).await.is_err() {
            tracing::info!(pid = self.pid, "nothing listens on a published port yet");
        }
    }
}

async fn wait_until_open(pid: i32, mut wanted: BTreeSet<(Table, u16)>) {
    let mut period = FIRST_PERIOD;
    while !wanted.is_empty() {
        let tables: BTreeSet<Table> = wanted.iter().map(|(table, _)| *table).collect();
        let read = tokio::task::spawn_blocking(move || open_ports(pid, &tables));
        // Of a process that is gone there is nothing: its end is seen elsewhere.
        let open = read.await.ok().flatten().unwrap_or_default();
        wanted.retain(|port| !open.contains(port));
        if !wanted.is_empty() {
            tokio::time::sleep(period).await;
            period = LAST_PERIOD.min(period * 2);
        }
    }
}

/// A kernel's table of sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Tcp,
    Udp,
}

impl Table {
    /// SCTP has none like it.
    fn of(protocol: Protocol) -> Option<Self> {
        match protocol {
            Protocol::Tcp => Some(Self::Tcp),
            Protocol::Udp => Some(Self::Udp),
            Protocol::Sctp => None,
        }
    }

    /// Its name, that of IPv6's, and the state of a socket that takes what comes.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Tcp => ("tcp", "tcp6", LISTENING),
            Self::Udp => ("udp", "udp6", UNCONNECTED),
        }
    }
}

/// Ports with a socket that others can reach; `None` if the process is gone.
fn open_ports(pid: i32, tables: &BTreeSet<Table>) -> Option<BTreeSet<(Table, u16)>> {
    let proc = Path::new("/proc").join(pid.to_string()).join("net");
    let mut open = BTreeSet::new();
    for table in tables {
        let (name, name6, state) = table.words();
        let read = fs::read_to_string(proc.join(name)).ok()?;
        // There is none of IPv6 on a kernel without it.
        let read6 = fs::read_to_string(proc.join(name6)).unwrap_or_default();
        open.extend(sockets(&read, state).chain(sockets(&read6, state)).map(|port| (*table, port)));
    }
    Some(open)
}

/// Local ports of a kernel's table of sockets in this state, without those of the loopback interface.
fn sockets<'t>(table: &'t str, state: &'t str) -> impl Iterator<Item = u16> + 't {
    table.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _remote, found) = (words.next()?, words.next()?, words.next()?);
        let (address, port) = local.split_once(':')?;
        if found != state || is_loopback(address) {
            return None;
        }
        u16::from_str_radix(port, 16).ok()
    })
}

/// Each 32-bit word of the address is written as a number of the machine.
fn is_loopback(address: &str) -> bool {
    let word = |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok();
    let address: Option<IpAddr> = if address.len() == 8 {
        word(0).map(|word| IpAddr::from(word.to_ne_bytes()))
    } else {
        let words = [word(0), word(1), word(2), word(3)].map(|word| word.unwrap_or_default().to_ne_bytes());
        words.as_flattened().try_into().ok().map(|bytes: [u8; 16]| IpAddr::from(bytes))
    };
    address.is_some_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
        0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n   \
        1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1\n   \
        2: 0200000A:0051 0300000A:C350 01 00000000:00000000 00:00000000 00000000     0        0 3 1\n   \
        3: 0200000A:0052 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1\n";
    const TCP6: &str = "  sl  local_address                         remote_address                        st\n   \
        0: 00000000000000000000000000000000:0053 00000000000000000000000000000000:0000 0A 0:0\n   \
        1: 00000000000000000000000001000000:0054 00000000000000000000000000000000:0000 0A 0:0\n   \
        2: 0000000000000000FFFF00000100007F:0055 00000000000000000000000000000000:0000 0A 0:0\n   \
        3: 0000000000000000FFFF00000100000A:0056 00000000000000000000000000000000:0000 0A 0:0\n";

    #[test]
    fn a_port_is_open_where_others_can_reach_it() {
        assert_eq!(sockets(TCP, LISTENING).collect::<Vec<_>>(), [0x50, 0x52]);
        assert_eq!(sockets(TCP6, LISTENING).collect::<Vec<_>>(), [0x53, 0x56]);
        assert_eq!(sockets("", LISTENING).count(), 0);
    }

    #[tokio::test]
    async fn who_listens_is_not_waited_for() {
        let own = i32::try_from(std::process::id()).unwrap();
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = |protocol, target| {
            PortConfig::new(protocol, target, 0, control_model::spec::PublishMode::Ingress)
        };
        let ports = [
            port(Protocol::Tcp, listener.local_addr().unwrap().port()),
            port(Protocol::Udp, socket.local_addr().unwrap().port()),
            port(Protocol::Sctp, 1),
        ];
        let opening = Opening { pid: own, ports: &ports, left: LISTEN_GRACE };
        assert!(tokio::time::timeout(LISTEN_GRACE / 2, opening.over()).await.is_ok());
    }
}
