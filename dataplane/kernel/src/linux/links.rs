//! Interfaces by name and by index. An index that no interface has (any more) is called `#<index>`: no interface can be
//! wanted by such a name, so its rows are removed.

use std::collections::BTreeMap;

use dataplane_model::kernel_state::LinkName;

use crate::seam::KernelError;

/// The interfaces of the calling thread's namespace at one moment.
pub(super) struct Links {
    names: BTreeMap<u32, LinkName>,
    /// Namespace ids of their other ends, as far as these are elsewhere.
    sandboxes: BTreeMap<u32, u32>,
}

impl Links {
    pub(super) fn read(sandboxes: BTreeMap<u32, u32>) -> Result<Self, KernelError> {
        let listed = nix::net::if_::if_nameindex().map_err(|error| KernelError::of(&error))?;
        let named = |link: &nix::net::if_::Interface| {
            Some((link.index(), LinkName::new(link.name().to_str().ok()?)?))
        };
        Ok(Self { names: listed.iter().filter_map(named).collect(), sandboxes })
    }

    pub(super) fn name(&self, index: u32) -> LinkName {
        let gone = || LinkName::new(&format!("#{index}")).expect("at most 11 bytes");
        self.names.get(&index).cloned().unwrap_or_else(gone)
    }

    pub(super) fn sandbox(&self, index: u32) -> Option<u32> {
        self.sandboxes.get(&index).copied()
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
