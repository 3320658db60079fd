//! [`SocketReset`]: what no row stands for. It leaves nothing in the kernel that could be compared.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::view::{SandboxId, Vni};

/// Sockets that are to learn that their peer is gone: without it they would be silent until retransmission gives up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketReset {
    pub vni: Vni,
    /// Peers in that network that are gone.
    pub addresses: Arc<BTreeSet<Ipv4Addr>>,
    /// Sandboxes whose sockets are meant.
    pub sandboxes: BTreeSet<SandboxId>,
    /// Also the sockets of the node's own processes.
    pub in_node: bool,
}

impl SocketReset {
    /// Leaves out the addresses that `is_back` says exist again.
    pub fn retain_gone(&mut self, is_back: impl Fn(&Ipv4Addr) -> bool) {
        if self.addresses.iter().any(&is_back) {
            Arc::make_mut(&mut self.addresses).retain(|address| !is_back(address));
        }
    }

    /// The namespaces whose sockets are meant: sandboxes', and (`None`) the node's own.
    pub fn places(&self) -> impl Iterator<Item = Option<SandboxId>> + '_ {
        self.sandboxes.iter().cloned().map(Some).chain(self.in_node.then_some(None))
    }
}

impl fmt::Display for SocketReset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sockets {} to", self.vni.get())?;
        self.addresses.iter().try_for_each(|address| write!(f, " {address}"))?;
        f.write_str(" in")?;
        self.sandboxes.iter().try_for_each(|id| write!(f, " {id}"))?;
        f.write_str(if self.in_node { " node" } else { "" })
    }
}
