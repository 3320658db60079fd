//! The node's gossip: where it listens, and what it is started with.

use std::net::SocketAddr;
use std::sync::Arc;

use control_agent::AgentHandle;
use control_gossip::service::{Gossip, Options, Sockets};
use control_model::NodeId;
use control_model::gossip::Opinion;
use tokio::sync::watch;

use crate::disk::NodeFile;

/// Gossip that has its port, and waits for the agent.
pub struct Prepared {
    sockets: Sockets,
    /// What others are told.
    pub addr: SocketAddr,
}

/// Takes the port. A node without gossip works as before there was any: managers say who lives. So one that doesn't get its
/// port says so and goes on.
pub fn prepare(file: &NodeFile, port: u16) -> Option<Prepared> {
    let listen = SocketAddr::new(file.listen.ip(), port);
    match Sockets::bind(listen) {
        Ok(sockets) => Some(Prepared { sockets, addr: SocketAddr::new(file.advertise.ip(), port) }),
        Err(error) => {
            tracing::error!(%listen, %error, "this node takes no part in gossip: give --gossip-port another port");
            None
        }
    }
}

/// Starts it.
pub fn start(
    prepared: Option<Prepared>,
    me: NodeId,
    agent: &AgentHandle,
    opinion: watch::Sender<Arc<Opinion>>,
) -> Option<Gossip> {
    let sockets = prepared?.sockets;
    let options = Options { me, sockets, said: agent.said(), keys: agent.gossip_keys() };
    Gossip::start(options, opinion).inspect_err(|error| tracing::error!(%error, "gossip does not start")).ok()
}
