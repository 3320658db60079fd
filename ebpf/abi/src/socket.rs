//! Tables of the socket hooks.

use crate::limits::MAX_SANDBOX_NETWORKS;
use crate::wire::{Ip4, Port};

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
    pub struct SocketNatKey: 16 bytes {
        pub socket_cookie: u64,
        pub backend: Ip4,
        pub port: Port,
        pub protocol: u8,
        pad: u8,
    }
}

map_type! {
    /// What the socket's owner asked for.
    pub struct OriginalDestination: 8 bytes {
        address: Ip4,
        port: Port,
        /// 1: `::1`, and `address` is 127.0.0.1.
        is_localhost6: u8,
        pad: u8,
    }
}

/// An address that a socket's owner may have asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginalAddress {
    /// As it is, or mapped into IPv6 (RFC 4291 section 2.5.5.2) if the socket is one of IPv6.
    Ip4(Ip4),
    /// `::1`.
    Localhost6,
}

impl OriginalAddress {
    /// The address that stands for it.
    #[inline]
    #[must_use]
    pub const fn ip4(self) -> Ip4 {
        match self {
            Self::Ip4(address) => address,
            Self::Localhost6 => Ip4::LOCALHOST,
        }
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
    pub const fn new(socket_cookie: u64, backend: (Ip4, Port), protocol: u8) -> Self {
        Self { socket_cookie, backend: backend.0, port: backend.1, protocol, pad: 0 }
    }
}

impl OriginalDestination {
    #[inline]
    pub const fn new(address: OriginalAddress, port: Port) -> Self {
        let is_localhost6 = matches!(address, OriginalAddress::Localhost6) as u8;
        Self { address: address.ip4(), port, is_localhost6, pad: 0 }
    }

    #[inline]
    pub const fn destination(&self) -> (OriginalAddress, Port) {
        let address = if self.is_localhost6 == 0 {
            OriginalAddress::Ip4(self.address)
        } else {
            OriginalAddress::Localhost6
        };
        (address, self.port)
    }
}
