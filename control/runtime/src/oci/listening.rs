//! Whether a process listens on the ports that clients are sent to.
//!
//! A task serves as soon as it runs, and a process needs a moment from its first step to its socket: who is sent to it in between
//! is refused. So a start is over when there is a socket for each published port, or after a bound. Where there is a health
//! check, that says more.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use control_model::spec::{PortConfig, Protocol};

/// A process that has no socket by then has none to be waited for: it may never have.
const LISTEN_GRACE: Duration = Duration::from_secs(3);
/// Most listen at once. A kernel goes through all of its sockets for each look, whatever the namespace: it is not asked often of
/// those that take longer.
const FIRST_PERIOD: Duration = Duration::from_millis(5);
const LAST_PERIOD: Duration = Duration::from_millis(100);
/// `TCP_LISTEN`, and `TCP_CLOSE`, which is what an unconnected UDP socket is in (`include/net/tcp_states.h`).
const LISTENING: &str = "0A";
const UNCONNECTED: &str = "07";

/// Returns when something listens on each of `ports` in the network of the process, when that can't be seen any more, or after
/// [`LISTEN_GRACE`].
pub(super) async fn wait_until_it_listens(pid: i32, ports: &[PortConfig]) {
    let mut wanted: BTreeSet<(Table, u16)> =
        ports.iter().filter_map(|port| Some((Table::of(port.protocol)?, port.target))).collect();
    let mut period = FIRST_PERIOD;
    let looking = async {
        while !wanted.is_empty() {
            let tables: BTreeSet<Table> = wanted.iter().map(|(table, _)| *table).collect();
            let read = tokio::task::spawn_blocking(move || open_ports(pid, &tables));
            let Ok(Some(open)) = read.await else { return };
            wanted.retain(|port| !open.contains(port));
            if !wanted.is_empty() {
                tokio::time::sleep(period).await;
                period = LAST_PERIOD.min(period * 2);
            }
        }
    };
    if tokio::time::timeout(LISTEN_GRACE, looking).await.is_err() {
        tracing::info!(pid, "nothing listens on a published port yet");
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

/// Words of the address are as the machine has them.
fn is_loopback(address: &str) -> bool {
    let word = |from: usize| address.get(from..from + 8).and_then(|word| u32::from_str_radix(word, 16).ok());
    match address.len() {
        8 => word(0).is_some_and(|word| Ipv4Addr::from(word.to_ne_bytes()).is_loopback()),
        _ => (word(0), word(8), word(16), word(24).map(u32::from_be)) == (Some(0), Some(0), Some(0), Some(1)),
    }
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
        1: 00000000000000000000000001000000:0054 00000000000000000000000000000000:0000 0A 0:0\n";

    #[test]
    fn a_port_is_open_where_others_can_reach_it() {
        assert_eq!(sockets(TCP, LISTENING).collect::<Vec<_>>(), [0x50, 0x52]);
        assert_eq!(sockets(TCP6, LISTENING).collect::<Vec<_>>(), [0x53]);
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
        let at_once = tokio::time::timeout(LISTEN_GRACE / 2, wait_until_it_listens(own, &ports));
        assert!(at_once.await.is_ok());
        // A process that is gone, nobody waits for.
        let gone = tokio::time::timeout(LISTEN_GRACE / 2, wait_until_it_listens(i32::MAX, &ports));
        assert!(gone.await.is_ok());
    }
}
