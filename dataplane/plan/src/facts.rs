//! What planning must know besides the view: how this machine is made, and what its operator asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_model::SandboxId;
use dataplane_model::kernel_state::LinkName;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// This machine, as far as the plan depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct NodeFacts {
    /// Interfaces to other machines, by name.
    pub uplinks: BTreeMap<LinkName, Uplink>,
    /// Networks that its interfaces are in, but for those of our own ones.
    pub connected: BTreeSet<IpNetwork>,
    /// The host forwards IPv4 by itself (`net.ipv4.conf.all.forwarding`): then its own rules say what may pass.
    pub host_forwards: bool,
    pub forwarding6: Forwarding6,
    /// The node has routes of IPv6 that lead to other machines.
    pub has_way_out6: bool,
    /// The kernel has TCX links (6.6 and newer).
    pub has_tcx: bool,
    /// The kernel has IPv6.
    pub has_ipv6: bool,
    /// The kernel can end sockets of others (`CONFIG_INET_DIAG_DESTROY`).
    pub has_socket_reset: bool,
    pub ingress_hook: IngressHook,
    pub tc_attach: TcAttach,
    /// Uplinks whose driver has refused to run our XDP program as they are now, and its words. Known by trying alone: it
    /// depends on MTU, queues, offloads and on what else hangs there.
    pub xdp_refusals: BTreeMap<LinkName, String>,
    /// Subnet of the gateway bridge, if it is free; its first address is the bridge's own.
    pub gateway_subnet: Ipv4Network,
    /// The bridge's IPv6 prefix: the plan chooses it, whatever is here.
    pub gateway_subnet6: Option<Ipv6Network>,
    /// Addresses behind the gateway bridge that sandboxes have now: kept while the sandbox lives.
    pub gateway_addresses: BTreeMap<SandboxId, Ipv4Addr>,
}

/// Who may have IPv6 forwarded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Forwarding6 {
    /// Nobody: this kernel has one switch for all interfaces, which is the operator's and is off.
    #[default]
    Off,
    /// Single interfaces (`net.ipv6.conf.<interface>.force_forwarding`, Linux 6.17).
    ByInterface,
    /// Everybody: the host forwards by itself, and its own rules say what may pass.
    Host,
}

/// An interface to other machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Another one means that the interface was made anew.
    pub index: u32,
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
