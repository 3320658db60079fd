//! Values in network byte order, as byte arrays: a swapped order does not compile. Aligned, so that the programs load
//! them with one instruction.

use core::fmt;
use core::net::Ipv4Addr;

/// An IPv4 address.
#[repr(C, align(4))]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ip4(pub [u8; 4]);

/// A TCP or UDP port.
#[repr(C, align(2))]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub [u8; 2]);

/// An Ethernet address.
#[repr(C, align(2))]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

const _: () = assert!(size_of::<Ip4>() == 4 && size_of::<Port>() == 2 && size_of::<MacAddr>() == 6);

impl Ip4 {
    pub const UNSPECIFIED: Self = Self([0; 4]);
    pub const LOCALHOST: Self = Self([127, 0, 0, 1]);

    /// The integer that the kernel calls `__be32`.
    #[inline]
    pub const fn to_be_u32(self) -> u32 {
        u32::from_ne_bytes(self.0)
    }

    /// From what the kernel calls `__be32`.
    #[inline]
    pub const fn from_be_u32(raw: u32) -> Self {
        Self(raw.to_ne_bytes())
    }

    /// The address as a number.
    #[inline]
    pub const fn to_u32(self) -> u32 {
        u32::from_be_bytes(self.0)
    }

    #[inline]
    pub const fn from_u32(number: u32) -> Self {
        Self(number.to_be_bytes())
    }

    #[inline]
    pub const fn is_unspecified(self) -> bool {
        self.to_be_u32() == 0
    }

    /// 127.0.0.0/8 (RFC 1122 section 3.2.1.3).
    #[inline]
    pub const fn is_loopback(self) -> bool {
        self.0[0] == 127
    }

    /// Multicast, reserved or broadcast: nothing that one endpoint owns (RFC 5771, RFC 1112 section 4).
    #[inline]
    pub const fn is_multicast_or_above(self) -> bool {
        self.0[0] >= 224
    }
}

impl Port {
    #[inline]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be_bytes())
    }

    #[inline]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }

    /// The integer that the kernel calls `__be16`.
    #[inline]
    pub const fn to_be_u16(self) -> u16 {
        u16::from_ne_bytes(self.0)
    }

    /// From what the kernel calls `__be16`.
    #[inline]
    pub const fn from_be_u16(raw: u16) -> Self {
        Self(raw.to_ne_bytes())
    }
}

impl MacAddr {
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address of the endpoint with this IPv4 address: `02:42` and the four bytes, as Docker does it.
    #[inline]
    pub const fn of_endpoint(ip: Ip4) -> Self {
        let [a, b, c, d] = ip.0;
        Self([0x02, 0x42, a, b, c, d])
    }

    /// The endpoint that [`MacAddr::of_endpoint`] names so; `None` for any other MAC.
    #[inline]
    pub const fn endpoint(self) -> Option<Ip4> {
        match self.0 {
            [0x02, 0x42, a, b, c, d] => Some(Ip4([a, b, c, d])),
            _ => None,
        }
    }
}

impl From<Ipv4Addr> for Ip4 {
    fn from(address: Ipv4Addr) -> Self {
        Self(address.octets())
    }
}

impl From<Ip4> for Ipv4Addr {
    fn from(address: Ip4) -> Self {
        Self::from(address.0)
    }
}

impl fmt::Display for Ip4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Ip4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { ":" };
            write!(f, "{separator}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: an array of four bytes, without padding.
    unsafe impl aya::Pod for super::Ip4 {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders() {
        let ip = Ip4::from(Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(ip.to_u32(), 0x0a00_0005);
        assert_eq!(ip.to_be_u32(), 0x0a00_0005_u32.to_be());
        assert_eq!(Ip4::from_be_u32(ip.to_be_u32()), ip);
        assert_eq!(Port::new(8080).to_be_u16(), 8080_u16.to_be());
        assert_eq!(Port::from_be_u16(8080_u16.to_be()).get(), 8080);
    }

    #[test]
    fn endpoint_macs_name_their_address() {
        let ip = Ip4([10, 0, 0, 5]);
        assert_eq!(MacAddr::of_endpoint(ip).endpoint(), Some(ip));
        assert_eq!(crate::limits::ROUTER_MAC.endpoint(), None);
    }
}
