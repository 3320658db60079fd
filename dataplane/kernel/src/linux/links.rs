//! Interfaces by name and by index. An index that no interface has (any more) is called `#<index>`: no interface can be
//! wanted by such a name, so its rows are removed.

use std::collections::BTreeMap;

use dataplane_model::kernel_state::LinkName;

use crate::seam::KernelError;

/// The interfaces of the calling thread's namespace at one moment.
pub(super) struct Links(BTreeMap<u32, LinkName>);

impl Links {
    pub(super) fn read() -> Result<Self, KernelError> {
        let listed = nix::net::if_::if_nameindex().map_err(|error| KernelError::of(&error))?;
        let named = |link: &nix::net::if_::Interface| {
            Some((link.index(), LinkName::new(link.name().to_str().ok()?)?))
        };
        Ok(Self(listed.iter().filter_map(named).collect()))
    }

    pub(super) fn name(&self, index: u32) -> LinkName {
        let gone = || LinkName::new(&format!("#{index}")).expect("at most 11 bytes");
        self.0.get(&index).cloned().unwrap_or_else(gone)
    }
}

/// `None` if there is no such interface.
pub(super) fn index_of(name: &LinkName) -> Option<u32> {
    match name.as_str().strip_prefix('#') {
        Some(index) => index.parse().ok(),
        None => nix::net::if_::if_nametoindex(name.as_str()).ok(),
    }
}

/// Like [`index_of`]; absence is an error.
pub(super) fn existing(name: &LinkName) -> Result<u32, KernelError> {
    index_of(name).ok_or_else(|| KernelError(format!("interface {name} is gone")))
}
