//! The leader's probes of the nodes' data paths, over UDP to each node's tunnel port. BPF answers, meshd or not.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use control_model::NodeId;
use control_model::probe::{PROBE_LEN, probe_datagram, probe_token};
use tokio::net::UdpSocket;

/// After an error of the socket, so that one that stays does not keep a processor busy.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Sends probes and tells answers apart by their tokens.
#[derive(Debug)]
pub struct Prober {
    socket: UdpSocket,
    /// Token of the last probe to each node.
    out: BTreeMap<NodeId, u128>,
}

impl Prober {
    pub async fn new() -> io::Result<Self> {
        Ok(Self { socket: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?, out: BTreeMap::new() })
    }

    /// Sends one probe. One that can't be sent is one without an answer.
    pub fn send(&mut self, node: NodeId, vtep: SocketAddrV4) {
        let token = rand::random();
        self.out.insert(node, token);
        if let Err(error) = self.socket.try_send_to(&probe_datagram(token), vtep.into()) {
            tracing::debug!(%node, %vtep, %error, "probe not sent");
        }
    }

    /// The next node that answers its last probe.
    pub async fn answer(&mut self) -> NodeId {
        let mut buffer = [0; PROBE_LEN + 1];
        loop {
            let Ok((len, _)) = self.socket.recv_from(&mut buffer).await else {
                // The missing answer counts, not the reason.
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            };
            let Some(token) = probe_token(&buffer[..len]) else { continue };
            if let Some(node) = self.out.iter().find(|(_, out)| **out == token).map(|(node, _)| *node) {
                self.out.remove(&node);
                return node;
            }
        }
    }

    /// Forgets those for whom `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(&NodeId) -> bool) {
        self.out.retain(|node, _| keep(node));
    }
}
