//! The MTU of the interface that has an address, asked for without a netlink socket: who wants to know is in no async runtime.

use std::ffi::c_char;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Bytes; `None` if no interface of the caller's network namespace has the address.
pub fn mtu_of_address(address: IpAddr) -> Option<u32> {
    let interface = getifaddrs().ok()?.find(|interface| ip(interface) == Some(address))?;
    mtu_of(&interface.interface_name)
}

fn ip(interface: &InterfaceAddress) -> Option<IpAddr> {
    let address = interface.address?;
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// `SIOCGIFMTU` (netdevice(7)).
fn mtu_of(name: &str) -> Option<u32> {
    // SAFETY: of plain integers and bytes, of which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the name's end.
    if name.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    // SAFETY: the request has a name, and the kernel writes no more than the request.
    if unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) } != 0 {
        return None;
    }
    // SAFETY: the call has written it.
    u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_one_and_nobody_has_none() {
        assert!(mtu_of_address(IpAddr::from([127, 0, 0, 1])).is_some_and(|mtu_bytes| mtu_bytes >= 1500));
        assert_eq!(mtu_of_address(IpAddr::from([192, 0, 2, 77])), None);
        assert_eq!(mtu_of("a-name-that-is-no-interface"), None);
    }
}
