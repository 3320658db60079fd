//! Which interfaces the kernel forwards from. Per interface: `net.ipv4.ip_forward` and `net.ipv6.conf.all.forwarding` stay as
//! the operator has them.
//!
//! Of IPv6 the kernel looks at that one switch, and from Linux 6.17 on at `force_forwarding` of the interface on which a packet
//! came. `forwarding` of an interface says something else: whether it believes routers, which who forwards must not (RFC 4861
//! section 6.2.7). So nothing but `force_forwarding` is written here, and an uplink that has its addresses and its way out from
//! routers keeps them.
//!
//! The gateway bridge takes packets for the loopback addresses too, once they are answers (`route_localnet`): the node's own
//! processes reach host ports by 127.0.0.1. Rules keep all others off.

use dataplane_model::KernelState;
use dataplane_model::kernel_state::{LinkName, Present};
use dataplane_plan::Forwarding6;

use super::{NetError, sysctl};

/// Which of the interfaces that we may set do forward.
pub(super) fn observe(uplinks: &[LinkName], state: &mut KernelState) -> Result<(), NetError> {
    let forces6 = host_forces6()?;
    for name in uplinks.iter().cloned().chain([LinkName::gateway_bridge(), LinkName::vxlan()]) {
        if is_on(&key(&name))? && (name != LinkName::gateway_bridge() || is_on(&localnet_key())?) {
            state.forwarding.insert(name.clone(), Present);
        }
        if !forces6 && is_on(&key6(&name))? {
            state.forwarding6.insert(name, Present);
        }
    }
    Ok(())
}

/// The host forwards IPv4 by itself.
pub(super) fn host_forwards() -> Result<bool, NetError> {
    is_on("ipv4/conf/all/forwarding")
}

/// Who forwards IPv6.
pub(super) fn forwarding6() -> Result<Forwarding6, NetError> {
    if is_on("ipv6/conf/all/forwarding")? || host_forces6()? {
        return Ok(Forwarding6::Host);
    }
    let is_known = sysctl::read("ipv6/conf/all/force_forwarding")?.is_some();
    Ok(if is_known { Forwarding6::ByInterface } else { Forwarding6::Off })
}

/// The host has set it of all interfaces at once.
fn host_forces6() -> Result<bool, NetError> {
    is_on("ipv6/conf/all/force_forwarding")
}

pub(super) fn set(name: &LinkName, on: bool) -> Result<(), NetError> {
    let value = if on { "1" } else { "0" };
    if *name == LinkName::gateway_bridge() {
        sysctl::write_if_there(&localnet_key(), value)?;
    }
    if !on && host_forwards()? {
        return Ok(());
    }
    sysctl::write_if_there(&key(name), value)
}

/// As [`set`], of IPv6.
pub(super) fn set6(name: &LinkName, on: bool) -> Result<(), NetError> {
    if !on && host_forces6()? {
        return Ok(());
    }
    sysctl::write_if_there(&key6(name), if on { "1" } else { "0" })
}

fn is_on(key: &str) -> Result<bool, NetError> {
    Ok(sysctl::read(key)?.as_deref() == Some("1"))
}

fn localnet_key() -> String {
    format!("ipv4/conf/{}/route_localnet", LinkName::gateway_bridge())
}

fn key(name: &LinkName) -> String {
    format!("ipv4/conf/{name}/forwarding")
}

fn key6(name: &LinkName) -> String {
    format!("ipv6/conf/{name}/force_forwarding")
}
