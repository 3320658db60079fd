//! Where packets go once it is known for whom they are.

use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{Chooser, Endpoint, Ip, MacAddr, NodeConfig};

use crate::tunnel::Through;
use crate::verdict::Verdict;
use crate::{maps, scratch, skb};

/// Through the tunnel to an endpoint of another node.
#[inline(always)]
pub fn tunnel_to_endpoint(vni: u32, endpoint: &Endpoint) -> Verdict {
    let (node, destination) = (endpoint.vtep, endpoint.mac);
    scratch::aim(Through { node, vni, destination, source: ROUTER_MAC })
}

/// To a backend of another node that may know a flow.
#[inline(always)]
pub fn tunnel_to_other(config: &NodeConfig, endpoint: &Endpoint, chooser: Chooser) -> Verdict {
    let (node, destination) = (endpoint.vtep, endpoint.mac);
    scratch::aim(Through { node, vni: config.ingress_vni, destination, source: chooser.mac() })
}

/// Out of this node, to a client or to a process of this node itself.
#[inline(always)]
pub fn leave_here(config: &NodeConfig, client: Ip) -> Verdict {
    if maps::is_own(client) {
        skb::receive_at(config.vxlan_ifindex)
    } else {
        skb::send_routed(config.uplink_ifindex)
    }
}

/// To a process of the node that owns `address`.
#[inline(always)]
pub fn to_host_process(config: &NodeConfig, owner: Ip) -> Verdict {
    if owner.is_unspecified() {
        // Taken in by the VXLAN device, as if it had been tunnelled: the routes to the ingress network lead there, so
        // that the strictest reverse path filter agrees.
        skb::receive_at(config.vxlan_ifindex)
    } else {
        tunnel_to_node(config, owner, ROUTER_MAC)
    }
}

/// Through the tunnel to another node itself; who sends is told by the inner source.
#[inline(always)]
pub fn tunnel_to_node(config: &NodeConfig, node: Ip, source: MacAddr) -> Verdict {
    scratch::aim(Through { node, vni: config.ingress_vni, destination: ROUTER_MAC, source })
}
