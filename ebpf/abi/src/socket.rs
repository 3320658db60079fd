//! Tables of the socket hooks.

use crate::limits::MAX_SANDBOX_NETWORKS;
use crate::wire::{Ip, Port};

map_type! {
    /// The networks of a sandbox, by its netns cookie: whose virtual addresses its sockets may use.
    pub struct SandboxNetworks: 68 bytes {
        /// How many of `vnis` count.
        pub n_vnis: u32,
        pub vnis: [u32; MAX_SANDBOX_NETWORKS],
    }
}

map_type! {
    /// A translated socket, seen from its backend.
    pub struct SocketNatKey: 32 bytes {
        pub socket_cookie: u64,
        pub backend: Ip,
        pub port: Port,
        pub protocol: u8,
        pad: u8,
        pad_word: u32,
    }
}

map_type! {
    /// What the socket's owner asked for.
    pub struct OriginalDestination: 20 bytes {
        pub address: Ip,
        pub port: Port,
        pad: u16,
    }
}

impl SandboxNetworks {
    /// `None` if there are more than [`MAX_SANDBOX_NETWORKS`].
    pub fn new(networks: &[u32]) -> Option<Self> {
        let mut vnis = [0; MAX_SANDBOX_NETWORKS];
        vnis.get_mut(..networks.len())?.copy_from_slice(networks);
        let n_vnis = u32::try_from(networks.len()).ok()?;
        Some(Self { n_vnis, vnis })
    }

    /// The networks that count.
    pub fn networks(&self) -> &[u32] {
        let n_vnis = usize::try_from(self.n_vnis).unwrap_or(usize::MAX);
        self.vnis.get(..n_vnis).unwrap_or(&self.vnis)
    }
}

impl SocketNatKey {
    #[inline]
    pub fn new(socket_cookie: u64, backend: (impl Into<Ip>, Port), protocol: u8) -> Self {
        Self { socket_cookie, backend: backend.0.into(), port: backend.1, protocol, pad: 0, pad_word: 0 }
    }
}

impl OriginalDestination {
    #[inline]
    pub fn new(address: impl Into<Ip>, port: Port) -> Self {
        Self { address: address.into(), port, pad: 0 }
    }
}
