//! Which interfaces the kernel forwards from. Per interface: `net.ipv4.ip_forward` stays as the operator has it.

use dataplane_model::KernelState;
use dataplane_model::kernel_state::{LinkName, Present};

use super::{NetError, sysctl};

/// Which of the interfaces that we may set do forward.
pub(super) fn observe(uplinks: &[LinkName], state: &mut KernelState) -> Result<(), NetError> {
    for name in uplinks.iter().cloned().chain([LinkName::gateway_bridge(), LinkName::vxlan()]) {
        if sysctl::read(&key(&name))?.as_deref() == Some("1") {
            state.forwarding.insert(name, Present);
        }
    }
    Ok(())
}

/// The host forwards by itself.
pub(super) fn host_forwards() -> Result<bool, NetError> {
    Ok(sysctl::read("ipv4/conf/all/forwarding")?.as_deref() == Some("1"))
}

pub(super) fn set(name: &LinkName, on: bool) -> Result<(), NetError> {
    if !on && host_forwards()? {
        return Ok(());
    }
    sysctl::write_if_there(&key(name), if on { "1" } else { "0" })
}

fn key(name: &LinkName) -> String {
    format!("ipv4/conf/{name}/forwarding")
}
