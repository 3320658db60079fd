//! Flows outlive a change of the ABI: their maps are pinned apart from the others, under a version of their layout. Where the
//! layout changed too they can't be read, and begin anew.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use ebpf_abi::names::map;
use ebpf_abi::{
    CachedBackend, EndpointKey, FlowTuple, ForwardFlow, ForwardKey, Ip4, OriginalDestination, ReplyFlow,
    ReplyKey, SocketNatKey, StandIn, VipFlow, VipFlowKey,
};

use super::pins::{PinDir, PinError};
use super::sys;

/// The sizes of keys and values of the maps of flows, bytes.
const SIZES: [(&str, usize, usize); map::OF_FLOWS.len()] = [
    (map::TICK, size_of::<u32>(), size_of::<u32>()),
    (map::FLOW_CACHE, size_of::<FlowTuple>(), size_of::<CachedBackend>()),
    (map::FLOWS, size_of::<ForwardKey>(), size_of::<ForwardFlow>()),
    (map::REPLIES, size_of::<ReplyKey>(), size_of::<ReplyFlow>()),
    (map::HALF_OPEN, 0, size_of::<ForwardKey>()),
    (map::STAND_INS, size_of::<Ip4>(), size_of::<StandIn>()),
    (map::VIP_FLOWS, size_of::<VipFlowKey>(), size_of::<VipFlow>()),
    (map::VIPS_ASKED, size_of::<u32>(), size_of::<u32>()),
    (map::VIP_SHARES, size_of::<EndpointKey>(), size_of::<u32>()),
    (map::SOCKET_NAT, size_of::<SocketNatKey>(), size_of::<OriginalDestination>()),
];

/// Makes room for this version's flows: what is pinned in their place and can't be read is removed now. Those of another
/// layout are left until their programs are replaced.
pub fn take_over(pins: &PinDir) -> Result<(), PinError> {
    for other in pins.other_flows()? {
        tracing::warn!("flows of another layout can't be read, and begin anew: {}", other.display());
    }
    for (name, key_size, value_size) in SIZES {
        let own = pins.map(name);
        if has_sizes(&own, key_size, value_size) == Some(false) {
            tracing::warn!("what is pinned as {} is none, and removed", own.display());
            fs::remove_file(&own).map_err(|source| PinError::Io { path: own, source })?;
        }
    }
    Ok(())
}

/// `None` if nothing is pinned there.
fn has_sizes(path: &Path, key_size: usize, value_size: usize) -> Option<bool> {
    let map = sys::open_pin(path).ok()?;
    let info = sys::map_info(map.as_fd()).ok();
    let sizes =
        info.and_then(|info| Some((info.key_size.try_into().ok()?, info.value_size.try_into().ok()?)));
    Some(sizes == Some((key_size, value_size)))
}
