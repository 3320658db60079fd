//! Probes of data paths: BPF on the other node sends them back, whether its daemon runs or not.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use control_model::probe::{PROBE_LEN, probe_datagram, probe_token};
use control_model::{NodeId, Timestamp};
use tokio::net::UdpSocket;

use super::sockets::{IDLE_PAUSE, MAX_BATCH, open_udp};

/// An answer that takes longer answers nothing any more.
const KEEP: Duration = Duration::from_secs(2);

/// The probes of this node.
pub(super) struct Probes {
    socket: UdpSocket,
    /// `None` where the system has no IPv6.
    socket6: Option<UdpSocket>,
    out: Outstanding,
}

impl Probes {
    pub fn new() -> io::Result<Self> {
        let socket = open_udp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
        let socket6 = open_udp(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).ok();
        Ok(Self { socket, socket6, out: Outstanding::default() })
    }

    /// Sends one probe. One that can't be sent is one without an answer.
    pub fn send(&mut self, node: NodeId, data_path: SocketAddr, now: Timestamp) {
        let token = rand::random();
        self.out.sent(token, node, now);
        let Some(socket) = (if data_path.is_ipv4() { Some(&self.socket) } else { self.socket6.as_ref() })
        else {
            return;
        };
        if let Err(error) = socket.try_send_to(&probe_datagram(token), data_path) {
            tracing::debug!(%node, %data_path, %error, "probe not sent");
        }
    }

    /// Waits for answers; whose they are.
    pub async fn answers(&mut self) -> Vec<NodeId> {
        let v6 = async {
            match &self.socket6 {
                Some(socket) => socket.readable().await,
                None => std::future::pending().await,
            }
        };
        let ready = tokio::select! {
            ready = self.socket.readable() => ready,
            ready = v6 => ready,
        };
        let mut answered = Vec::new();
        if ready.is_ok() {
            for socket in [Some(&self.socket), self.socket6.as_ref()].into_iter().flatten() {
                let datagrams = std::iter::from_fn(|| received(socket)).take(MAX_BATCH);
                let tokens = datagrams.filter_map(|datagram| probe_token(&datagram));
                answered.extend(tokens.filter_map(|token| self.out.answered(token)));
            }
        }
        if answered.is_empty() {
            tokio::time::sleep(IDLE_PAUSE).await;
        }
        answered
    }
}

/// The next datagram, if one is there.
fn received(socket: &UdpSocket) -> Option<Vec<u8>> {
    // One byte more, so that a longer datagram is no answer.
    let mut buffer = [0; PROBE_LEN + 1];
    let (len, _) = socket.try_recv_from(&mut buffer).ok()?;
    Some(buffer[..len].to_vec())
}

/// Probes without an answer, by token.
#[derive(Debug, Default)]
struct Outstanding {
    of: BTreeMap<u128, (NodeId, Timestamp)>,
    swept_at: Timestamp,
}

impl Outstanding {
    fn sent(&mut self, token: u128, node: NodeId, now: Timestamp) {
        if now.since(self.swept_at) >= KEEP {
            self.swept_at = now;
            self.of.retain(|_, (_, at)| now.since(*at) < KEEP);
        }
        self.of.insert(token, (node, now));
    }

    /// Each is answered once.
    fn answered(&mut self, token: u128) -> Option<NodeId> {
        self.of.remove(&token).map(|(node, _)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_echoed_probe_is_an_answer_and_other_datagrams_are_none() {
        let echo = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let mut probes = Probes::new().expect("sockets");
        probes.socket.writable().await.expect("a socket");
        let node = NodeId::from_bits(7);
        probes.send(node, echo.local_addr().expect("bound"), Timestamp(0));
        let mut buffer = [0; 100];
        let (len, from) = echo.recv_from(&mut buffer).await.expect("the probe");
        echo.send_to(&probe_datagram(1), from).await.expect("sent");
        echo.send_to(&buffer[..len], from).await.expect("sent");
        echo.send_to(&buffer[..len], from).await.expect("sent");
        let mut answered = Vec::new();
        while answered.is_empty() {
            answered = probes.answers().await;
        }
        assert_eq!(answered, [node]);
    }

    #[test]
    fn old_probes_are_forgotten() {
        let mut out = Outstanding::default();
        let node = NodeId::from_bits(7);
        (0..1000).for_each(|n| out.sent(n, node, Timestamp(0)));
        out.sent(1000, node, Timestamp(0).after(KEEP));
        assert_eq!((out.of.len(), out.answered(5), out.answered(1000)), (1, None, Some(node)));
    }
}
