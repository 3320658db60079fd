//! What planning must know besides the view: how this machine is made, and what its operator asked for.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_model::SandboxId;
use dataplane_model::kernel_state::LinkName;
use ipnetwork::Ipv4Network;

/// This machine, as far as the plan depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct NodeFacts {
    /// Interfaces to other machines, by name.
    pub uplinks: BTreeMap<LinkName, Uplink>,
    /// The host forwards IPv4 by itself (`net.ipv4.conf.all.forwarding`): then its own rules say what may pass.
    pub host_forwards: bool,
    /// The kernel has TCX links (6.6 and newer).
    pub has_tcx: bool,
    /// The kernel has IPv6.
    pub has_ipv6: bool,
    /// The kernel can end sockets of others (`CONFIG_INET_DIAG_DESTROY`).
    pub has_socket_reset: bool,
    pub ingress_hook: IngressHook,
    pub tc_attach: TcAttach,
    /// Subnet of the gateway bridge, if it is free; its first address is the bridge's own.
    pub gateway_subnet: Ipv4Network,
    /// Addresses behind the gateway bridge that sandboxes have now: kept while the sandbox lives.
    pub gateway_addresses: BTreeMap<SandboxId, Ipv4Addr>,
}

/// An interface to other machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub mtu_bytes: u32,
    pub addresses: Vec<Ipv4Addr>,
    /// Those that others may know it by: global or unique-local, neither temporary nor on the way in or out.
    pub addresses6: Vec<Ipv6Addr>,
    /// `veth`, `bridge`, …: the kind of a virtual interface; `None` for a NIC.
    pub kind: Option<String>,
    /// The NIC's driver and whether it runs XDP by itself.
    pub driver: Option<String>,
    pub has_native_xdp: bool,
}

impl Uplink {
    /// The address is one of its own.
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.addresses.contains(&address),
            IpAddr::V6(address) => self.addresses6.contains(&address),
        }
    }
}

/// Where packets for published ports are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IngressHook {
    /// XDP where it is the faster hook, else tc.
    #[default]
    Auto,
    Xdp,
    Tc,
}

/// How tc programs are attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TcAttach {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    Tcx,
    Clsact,
}
