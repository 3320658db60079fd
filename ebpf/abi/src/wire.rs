//! Values in network byte order, as byte arrays: a swapped order does not compile. Aligned, so that the programs load
//! them with one instruction.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 address.
#[repr(C, align(4))]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ip4(pub [u8; 4]);

/// An address of either family: IPv6, or IPv4 mapped into it (RFC 4291 section 2.5.5.2). No IPv6 packet has a mapped address
/// (the parser refuses it), so one key never means two flows.
#[repr(C, align(4))]
#[derive(Clone, Copy, Default, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::derived_hash_with_manual_eq, reason = "equal by words is equal by bytes")]
pub struct Ip(pub [u8; 16]);

/// By words: for bytes the compiler would call its `memcmp`, which goes byte by byte.
impl PartialEq for Ip {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let (own, others) = (self.to_be_words(), other.to_be_words());
        (own[0] ^ others[0]) | (own[1] ^ others[1]) | (own[2] ^ others[2]) | (own[3] ^ others[3]) == 0
    }
}

/// A TCP, UDP or SCTP port.
#[repr(C, align(2))]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub [u8; 2]);

/// An Ethernet address.
#[repr(C, align(2))]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

const _: () = assert!(size_of::<Ip4>() == 4 && size_of::<Ip>() == 16);
const _: () = assert!(size_of::<Port>() == 2 && size_of::<MacAddr>() == 6);

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

impl Ip {
    /// `::`.
    pub const UNSPECIFIED: Self = Self([0; 16]);
    /// 127.0.0.1.
    pub const LOCALHOST4: Self = Self::v4(Ip4::LOCALHOST);
    /// `::1`.
    pub const LOCALHOST6: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// The third word of all mapped addresses.
    const MAPPED: u32 = 0xffff_u32.to_be();

    /// The mapped form.
    #[inline]
    pub const fn v4(address: Ip4) -> Self {
        Self::from_be_words([0, 0, Self::MAPPED, address.to_be_u32()])
    }

    /// The four integers that the kernel calls `__be32[4]`.
    #[inline]
    pub const fn to_be_words(self) -> [u32; 4] {
        let all = u128::from_le_bytes(self.0);
        #[expect(clippy::cast_possible_truncation, reason = "a word at a time")]
        [
            (all as u32).to_le(),
            ((all >> 32) as u32).to_le(),
            ((all >> 64) as u32).to_le(),
            ((all >> 96) as u32).to_le(),
        ]
    }

    /// From what the kernel calls `__be32[4]`. By one number: bytes one by one the compiler would fill in by its `memset`.
    #[inline]
    pub const fn from_be_words([a, b, c, d]: [u32; 4]) -> Self {
        let low = a.to_le() as u128 | (b.to_le() as u128) << 32;
        let high = c.to_le() as u128 | (d.to_le() as u128) << 32;
        Self((low | high << 64).to_le_bytes())
    }

    #[inline]
    pub const fn is_v4(self) -> bool {
        matches!(self.to_be_words(), [0, 0, Self::MAPPED, _])
    }

    /// The last 32 bits.
    #[inline]
    pub const fn low(self) -> Ip4 {
        let [.., low] = self.to_be_words();
        Ip4::from_be_u32(low)
    }

    /// `None` for an IPv6 address.
    #[inline]
    pub const fn to_v4(self) -> Option<Ip4> {
        if self.is_v4() { Some(self.low()) } else { None }
    }

    /// 0.0.0.0 or `::`.
    #[inline]
    pub const fn is_unspecified(self) -> bool {
        let [a, b, c, d] = self.to_be_words();
        a == 0 && b == 0 && d == 0 && (c == 0 || self.is_v4())
    }

    /// 127.0.0.0/8 or `::1`.
    #[inline]
    pub const fn is_loopback(self) -> bool {
        const LAST_OF_ONE: u32 = 1_u32.to_be();
        matches!(self.to_be_words(), [0, 0, 0, LAST_OF_ONE]) || (self.is_v4() && self.low().is_loopback())
    }

    /// Nothing that one endpoint owns: see [`Ip4::is_multicast_or_above`], and `ff00::/8` (RFC 4291 section 2.7).
    #[inline]
    pub const fn is_multicast_or_above(self) -> bool {
        self.0[0] == 0xff || (self.is_v4() && self.low().is_multicast_or_above())
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

    /// The link-local IPv6 address that an interface with this MAC gives itself (RFC 4862 section 5.3, RFC 4291 appendix A).
    #[inline]
    pub const fn link_local(self) -> Ip {
        const UNIVERSAL: u8 = 2;
        let mac = self.0;
        let high = u32::from_ne_bytes([mac[0] ^ UNIVERSAL, mac[1], mac[2], 0xff]);
        let low = u32::from_ne_bytes([0xfe, mac[3], mac[4], mac[5]]);
        Ip::from_be_words([0xfe80_0000_u32.to_be(), 0, high, low])
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

impl From<Ip4> for Ip {
    #[inline]
    fn from(address: Ip4) -> Self {
        Self::v4(address)
    }
}

impl From<IpAddr> for Ip {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::v4(address.into()),
            IpAddr::V6(address) => Self(address.octets()),
        }
    }
}

impl From<Ip> for IpAddr {
    fn from(address: Ip) -> Self {
        address
            .to_v4()
            .map_or_else(|| Self::V6(Ipv6Addr::from(address.0)), |address| Self::V4(address.into()))
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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
    // SAFETY: an array of sixteen bytes, without padding.
    unsafe impl aya::Pod for super::Ip {}
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
    fn addresses_of_both_families() {
        for text in ["10.0.0.5", "0.0.0.0", "127.0.0.9", "224.0.0.1", "2001:db8::5", "::", "::1", "ff02::1"] {
            let address: IpAddr = text.parse().unwrap();
            let ip = Ip::from(address);
            assert_eq!(IpAddr::from(ip), address);
            assert_eq!(Ip::from_be_words(ip.to_be_words()), ip);
            assert_eq!(ip.is_v4(), address.is_ipv4(), "{text}");
            assert_eq!(ip.is_unspecified(), address.is_unspecified(), "{text}");
            assert_eq!(ip.is_loopback(), address.is_loopback(), "{text}");
            assert_eq!(ip.is_multicast_or_above(), address.is_multicast(), "{text}");
        }
        assert_eq!(Ip::v4(Ip4([10, 0, 0, 5])).to_v4(), Some(Ip4([10, 0, 0, 5])));
        assert_eq!(Ip::LOCALHOST6.to_v4(), None);
    }

    #[test]
    fn endpoint_macs_name_their_address() {
        let ip = Ip4([10, 0, 0, 5]);
        assert_eq!(MacAddr::of_endpoint(ip).endpoint(), Some(ip));
        assert_eq!(crate::limits::ROUTER_MAC.endpoint(), None);
        let link_local: IpAddr = "fe80::42:aff:fe00:5".parse().unwrap();
        assert_eq!(IpAddr::from(MacAddr::of_endpoint(ip).link_local()), link_local);
    }
}
