//! Everything of the kernel's network but BPF: interfaces, addresses, routes, sandboxes, the packet filter.
//!
//! A [`Net`] works in the network namespace of the thread that made it, and must stay on that thread.

mod devices;
mod error;
mod events;
mod filter;
mod forwarding;
mod mtu;
pub mod namespace;
mod netlink;
mod routes;
mod sandbox;
mod sock_diag;
mod sockets;
mod sysctl;
mod uplinks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dataplane_model::kernel_state::{Change, LinkName};
use dataplane_model::{KernelState, Op, SandboxId};

pub use error::NetError;
use events::Events;
pub use mtu::mtu_of_address;
use netlink::Netlink;
pub use sockets::NodeSockets;
pub use uplinks::Machine;

/// Where sandboxes are, and which interfaces lead to other machines.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Directory of the sandboxes' namespaces; one file each, a bind mount of the namespace.
    pub netns_dir: PathBuf,
    /// Interfaces to other machines; empty for the one that holds the tunnel end.
    pub uplinks: Vec<LinkName>,
}

/// The network of one node.
pub struct Net {
    options: NetOptions,
    node: Netlink,
    events: Events,
    filter: filter::FilterTable,
    /// As last chosen by [`Net::machine`].
    uplinks: Vec<LinkName>,
    has_socket_reset: bool,
}

impl Net {
    /// In the namespace of the calling thread, which must have a tokio runtime entered.
    pub fn new(options: NetOptions) -> Result<Self, NetError> {
        let no_socket = |source| NetError::io("open a netlink socket", source);
        let (node, events) = (Netlink::here().map_err(no_socket)?, Events::here().map_err(no_socket)?);
        let (filter, has_socket_reset) = (filter::FilterTable::default(), sockets::can_reset());
        Ok(Self { options, node, events, filter, uplinks: Vec::new(), has_socket_reset })
    }

    /// What the plan must know of this machine. Where no uplink was named it is the one with the address `vtep`, or with the index
    /// `last_uplink`.
    pub async fn machine(
        &mut self,
        vtep: std::net::IpAddr,
        last_uplink: Option<u32>,
    ) -> Result<Machine, NetError> {
        let chosen = uplinks::Chosen { named: &self.options.uplinks, vtep, index: last_uplink };
        let machine = uplinks::machine(&self.node, &chosen, self.has_socket_reset).await?;
        self.uplinks = machine.uplinks.keys().cloned().collect();
        Ok(machine)
    }

    /// Returns when interfaces or addresses may have changed since this [`Net`] was made, or since the last time.
    pub async fn changed(&mut self) {
        self.events.next().await;
    }

    /// Fills `state` with what is ours.
    pub async fn observe(&mut self, state: &mut KernelState) -> Result<(), NetError> {
        let links = self.node.links().await?;
        devices::observe(&self.node, &links, state).await?;
        forwarding::observe(&self.uplinks, state)?;
        routes::observe(&self.node, &links, state).await?;
        self.filter.observe(state)?;
        sandbox::observe(&self.options.netns_dir, &links, state).await
    }

    /// Does `op` if it is the network's; `false` if it is not.
    pub async fn apply(&mut self, op: &Op) -> Result<bool, NetError> {
        match op {
            Op::Device(Change::Put(name, device)) => devices::put(&self.node, name, device).await?,
            Op::Device(Change::Delete(name)) => devices::delete(&self.node, name).await?,
            Op::Forwarding(Change::Put(name, _)) => forwarding::set(name, true)?,
            Op::Forwarding(Change::Delete(name)) => forwarding::set(name, false)?,
            Op::Forwarding6(Change::Put(name, _)) => forwarding::set6(name, true)?,
            Op::Forwarding6(Change::Delete(name)) => forwarding::set6(name, false)?,
            Op::Route(Change::Put(subnet, route)) => routes::put(&self.node, *subnet, route).await?,
            Op::Route(Change::Delete(subnet)) => routes::delete(&self.node, *subnet).await?,
            Op::Filter(Change::Put(_, filter)) => self.filter.put(filter)?,
            Op::Filter(Change::Delete(_)) => self.filter.delete()?,
            Op::Sandbox(Change::Put(id, net)) => {
                let given = given_netns_dir(&self.options.netns_dir).join(&id.0);
                sandbox::put(&self.node, &self.netns_path(id), &given, net).await?;
            }
            Op::Sandbox(Change::Delete(id)) => sandbox::delete(&self.netns_path(id)).await?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The sockets of the node and its sandboxes, for a thread of its own.
    pub fn sockets(&self) -> NodeSockets {
        NodeSockets::new(&self.options.netns_dir, self.has_socket_reset)
    }

    /// The id, in this namespace, of the one that the other end of a veth pair is in; `None` if the link is gone, or is none.
    pub async fn sandbox_behind(&self, link: &LinkName) -> Result<Option<u32>, NetError> {
        Ok(self.node.link(link.as_str()).await?.and_then(|link| link.peer_namespace))
    }

    /// The same of all links, by interface index.
    pub async fn sandboxes_behind(&self) -> Result<BTreeMap<u32, u32>, NetError> {
        let links = self.node.links().await?;
        Ok(links.iter().filter_map(|link| Some((link.index, link.peer_namespace?))).collect())
    }

    /// The file that the sandbox's namespace is mounted on.
    pub fn netns_path(&self, id: &SandboxId) -> PathBuf {
        netns_path(&self.options.netns_dir, id)
    }
}

/// Where namespaces lie that somebody else has made for sandboxes, by their ids: they are taken when the sandbox is made.
pub fn given_netns_dir(netns_dir: &Path) -> PathBuf {
    netns_dir.with_file_name("given-netns")
}

/// The file that a sandbox's namespace is mounted on.
pub fn netns_path(netns_dir: &Path, id: &SandboxId) -> PathBuf {
    netns_dir.join(&id.0)
}
