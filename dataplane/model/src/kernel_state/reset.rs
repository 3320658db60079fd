//! [`SocketReset`]: the one step that is no row. It leaves nothing in the kernel that could be compared.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use crate::view::{SandboxId, Vni};

/// Sockets that are to learn that their peer is gone: without it they would be silent until retransmission gives up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketReset {
    pub vni: Vni,
    /// Peers in that network that are gone.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Sandboxes whose sockets are meant.
    pub sandboxes: BTreeSet<SandboxId>,
    /// Also the sockets of the node's own processes.
    pub in_node: bool,
}

impl SocketReset {
    /// What is left of it when `is_back` says which peers exist again; `None` if nothing is.
    pub fn without(mut self, is_back: impl Fn(&Ipv4Addr) -> bool) -> Option<Self> {
        self.addresses.retain(|address| !is_back(address));
        (!self.addresses.is_empty()).then_some(self)
    }
}

impl fmt::Display for SocketReset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to", self.vni.get())?;
        self.addresses.iter().try_for_each(|address| write!(f, " {address}"))?;
        f.write_str(" in")?;
        self.sandboxes.iter().try_for_each(|id| write!(f, " {id}"))?;
        f.write_str(if self.in_node { " node" } else { "" })
    }
}
