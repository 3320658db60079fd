//! Flows outlive a change of the ABI: their maps are pinned apart from the others, under a version of their layout. Where the
//! layout changed too they can't be read, and begin anew.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::{fs, io};

use ebpf_abi::names::map;
use ebpf_abi::{
    ABI_WITH_FLOWS_INSIDE, FlowTuple, ForwardFlow, ForwardKey, Ip4, OriginalDestination, ReplyFlow, ReplyKey,
    SocketNatKey,
};

use super::pins::{PinDir, PinError};
use super::sys;

/// The sizes of keys and values of the maps of flows, bytes.
const SIZES: [(&str, usize, usize); map::OF_FLOWS.len()] = [
    (map::TICK, size_of::<u32>(), size_of::<u32>()),
    (map::FLOW_CACHE, size_of::<FlowTuple>(), size_of::<Ip4>()),
    (map::FLOWS, size_of::<ForwardKey>(), size_of::<ForwardFlow>()),
    (map::REPLIES, size_of::<ReplyKey>(), size_of::<ReplyFlow>()),
    (map::HALF_OPEN, 0, size_of::<ForwardKey>()),
    (map::SOCKET_NAT, size_of::<SocketNatKey>(), size_of::<OriginalDestination>()),
];

/// Pins the flows of an older version for this one too, whose programs share them from then on. What can't be read is left
/// to be removed with that version, or removed now where it is in the way.
pub fn take_over(pins: &PinDir) -> Result<(), PinError> {
    for other in pins.other_flows()? {
        tracing::warn!("flows of another layout can't be read, their connections end: {}", other.display());
    }
    let older = pins.of_version(ABI_WITH_FLOWS_INSIDE).maps();
    for (name, key_size, value_size) in SIZES {
        let (own, older) = (pins.map(name), older.join(name));
        let is_readable = |path: &Path| has_sizes(path, key_size, value_size);
        let done = match is_readable(&own) {
            Some(false) => {
                tracing::warn!("what is pinned as {} is none, and removed", own.display());
                fs::remove_file(&own)
            }
            None if is_readable(&older) == Some(true) => {
                tracing::info!("takes {name} over from an older version");
                share(&older, &own)
            }
            Some(true) | None => Ok(()),
        };
        done.map_err(|source| PinError::Io { path: own, source })?;
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

fn share(from: &Path, to: &Path) -> io::Result<()> {
    sys::pin_map(sys::open_pin(from)?.as_fd(), to)
}
