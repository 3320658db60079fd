//! The leader's probes of the nodes' data paths, over UDP to each node's tunnel port. BPF answers, meshd or not.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use control_model::NodeId;
use control_model::probe::{PROBE_LEN, probe_datagram, probe_token};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;

/// After an error of the socket, or datagrams that are no answers, so that neither keeps a processor busy.
const IDLE_PAUSE: Duration = Duration::from_millis(10);
/// Answers taken in one go: then the leader looks whether something else is due.
const MAX_ANSWERS: usize = 256;
/// Answers that wait while the leader writes. The kernel charges a short datagram with about 1 KiB: room for those of
/// 4,000 nodes, where the system's default loses some of 200.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// Sends probes and tells answers apart by their tokens.
#[derive(Debug)]
pub struct Prober {
    socket: UdpSocket,
    /// `None` where the system has no IPv6.
    socket6: Option<UdpSocket>,
    out: Outstanding,
}

impl Prober {
    pub async fn new() -> io::Result<Self> {
        let socket = open(Ipv4Addr::UNSPECIFIED.into()).await?;
        let socket6 = open(Ipv6Addr::UNSPECIFIED.into()).await.ok();
        Ok(Self { socket, socket6, out: Outstanding::default() })
    }

    /// Sends one probe. One that can't be sent is one without an answer.
    pub fn send(&mut self, node: NodeId, vtep: SocketAddr) {
        let token = rand::random();
        self.out.sent(node, token);
        let Some(socket) = (if vtep.is_ipv4() { Some(&self.socket) } else { self.socket6.as_ref() }) else {
            tracing::debug!(%node, %vtep, "probe not sent: this system has no IPv6");
            return;
        };
        if let Err(error) = socket.try_send_to(&probe_datagram(token), vtep) {
            tracing::debug!(%node, %vtep, %error, "probe not sent");
        }
    }

    /// The next nodes that answer their last probes; at least one. Loses none when it is dropped.
    pub async fn answers(&mut self) -> Vec<NodeId> {
        loop {
            // The missing answer counts, not the reason: of an error it is read again.
            tokio::select! {
                _ = self.socket.readable() => {}
                () = readable(self.socket6.as_ref()) => {}
            }
            let answers = self.take_answers();
            if !answers.is_empty() {
                return answers;
            }
            tokio::time::sleep(IDLE_PAUSE).await;
        }
    }

    /// Those that wait in the sockets.
    fn take_answers(&mut self) -> Vec<NodeId> {
        let mut buffer = [0; PROBE_LEN + 1];
        let mut answers = Vec::new();
        for socket in [Some(&self.socket), self.socket6.as_ref()].into_iter().flatten() {
            let received = std::iter::from_fn(|| {
                let (len, _) = socket.try_recv_from(&mut buffer).ok()?;
                Some(probe_token(&buffer[..len]))
            });
            answers.extend(received.take(MAX_ANSWERS).flatten().filter_map(|token| self.out.answered(token)));
        }
        answers
    }

    /// Forgets those for whom `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(&NodeId) -> bool) {
        self.out.retain(keep);
    }
}

async fn open(any: IpAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((any, 0)).await?;
    let forced = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES);
    // Without CAP_NET_ADMIN the system's limit holds.
    if let Err(error) = forced.or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)) {
        tracing::warn!(%error, "the probes' receive buffer stays as it is");
    }
    // A new socket counts as not writable until the runtime has looked: the first probes would be lost.
    socket.writable().await?;
    Ok(socket)
}

async fn readable(socket: Option<&UdpSocket>) {
    match socket {
        // As for the other one, the missing answer counts.
        Some(socket) => drop(socket.readable().await),
        None => std::future::pending().await,
    }
}

/// The last probe to each node, unless it was answered.
#[derive(Debug, Default)]
struct Outstanding {
    token_of: BTreeMap<NodeId, u128>,
    node_of: BTreeMap<u128, NodeId>,
}

impl Outstanding {
    fn sent(&mut self, node: NodeId, token: u128) {
        if let Some(before) = self.token_of.insert(node, token) {
            self.node_of.remove(&before);
        }
        self.node_of.insert(token, node);
    }

    /// Whose last probe this answers; each is answered once.
    fn answered(&mut self, token: u128) -> Option<NodeId> {
        let node = self.node_of.remove(&token)?;
        self.token_of.remove(&node);
        Some(node)
    }

    fn retain(&mut self, keep: impl Fn(&NodeId) -> bool) {
        self.token_of.retain(|node, _| keep(node));
        self.node_of.retain(|_, node| keep(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N_NODES: u128 = 1000;

    fn node(id: u128) -> NodeId {
        NodeId::from_bits(id)
    }

    #[test]
    fn each_of_a_thousand_nodes_answers_its_last_probe_alone_and_once() {
        let mut out = Outstanding::default();
        for round in [0, N_NODES] {
            (1..=N_NODES).for_each(|id| out.sent(node(id), round + id));
        }
        assert_eq!((1..=N_NODES).find_map(|token| out.answered(token)), None, "answers of the round before");
        out.retain(|id| *id != node(7));
        for id in (1..=N_NODES).rev() {
            assert_eq!(out.answered(N_NODES + id), (id != 7).then_some(node(id)));
            assert_eq!(out.answered(N_NODES + id), None);
        }
        assert!(out.token_of.is_empty() && out.node_of.is_empty());
    }

    #[tokio::test]
    async fn answers_of_a_thousand_nodes_wait_for_a_leader_that_is_busy() {
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            all_answer_at(address).await;
        }
    }

    async fn all_answer_at(address: IpAddr) {
        let echo = UdpSocket::bind((address, 0)).await.expect("a socket");
        let echo_addr = echo.local_addr().expect("bound");
        let mut prober = Prober::new().await.expect("a socket");
        let mut buffer = [0; PROBE_LEN];
        for id in 1..=N_NODES {
            prober.send(node(id), echo_addr);
            let received = tokio::time::timeout(crate::testing::LIMIT, echo.recv_from(&mut buffer)).await;
            let (len, from) = received.expect("no probe was sent").expect("the probe");
            echo.send_to(&buffer[..len], from).await.expect("sent back");
        }
        let mut answered = std::collections::BTreeSet::new();
        while answered.len() < 1000 {
            let next = tokio::time::timeout(crate::testing::LIMIT, prober.answers()).await;
            answered.extend(next.unwrap_or_else(|_| panic!("only {} answers are left", answered.len())));
        }
    }
}
