//! Frames as a task with `NET_RAW` makes them, and what comes of them.

use std::os::fd::{AsRawFd as _, OwnedFd};

use etherparse::{Icmpv6Type, PacketBuilder};
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

use crate::lab::{Ns, shell};

/// A MAC and an address of either family: of a sender, of who is asked.
#[derive(Debug, Clone, Copy)]
pub struct End<A> {
    pub mac: [u8; 6],
    pub address: A,
}

/// The MAC of an interface of the calling thread's namespace.
pub fn mac_of(interface: &str) -> [u8; 6] {
    let shown = shell(&format!("ip -o link show {interface}"));
    let text = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

pub fn udp4(from: End<[u8; 4]>, to: End<[u8; 4]>, port: u16) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2(from.mac, to.mac).ipv4(from.address, to.address, 64);
    let mut frame = Vec::new();
    ip.udp(40_000, port).write(&mut frame, b"hello").unwrap();
    frame
}

pub fn udp6(from: End<[u8; 16]>, to: End<[u8; 16]>, port: u16) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2(from.mac, to.mac).ipv6(from.address, to.address, 64);
    let mut frame = Vec::new();
    ip.udp(40_000, port).write(&mut frame, b"hello").unwrap();
    frame
}

/// Tells all that `who` has its address (RFC 826).
pub fn arp(who: End<[u8; 4]>) -> Vec<u8> {
    let mut frame = [[0xff; 6], who.mac].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend([&who.mac[..], &who.address, &[0xff; 6], &who.address].concat());
    frame
}

/// Tells `to` that the sender has `target` (RFC 4861 section 4.4).
pub fn advertisement(from: End<[u8; 16]>, to: End<[u8; 16]>, target: [u8; 16]) -> Vec<u8> {
    const NEVER_FORWARDED: u8 = 255;
    const OVERRIDE: [u8; 4] = [0x20, 0, 0, 0];
    let message = Icmpv6Type::Unknown { type_u8: 136, code_u8: 0, bytes5to8: OVERRIDE };
    let ip = PacketBuilder::ethernet2(from.mac, to.mac).ipv6(from.address, to.address, NEVER_FORWARDED);
    let mut frame = Vec::new();
    ip.icmpv6(message).write(&mut frame, &[&target[..], &[2, 1], &from.mac].concat()).unwrap();
    frame
}

/// Sends frames as they are.
pub fn send(ns: &Ns, interface: &'static str, frames: Vec<Vec<u8>>) {
    ns.run(move || {
        let ifindex = i32::try_from(nix::net::if_::if_nametoindex(interface).unwrap()).unwrap();
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
        // SAFETY: zeros are a valid address, as are the members set.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        (to.sll_family, to.sll_ifindex) = (u16::try_from(libc::AF_PACKET).unwrap(), ifindex);
        let size = libc::socklen_t::try_from(size_of_val(&to)).unwrap();
        for frame in frames {
            // SAFETY: frame and address outlive the call, and are as long as it is told.
            let sent = unsafe {
                let to = std::ptr::from_ref(&to).cast();
                libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, size)
            };
            assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", std::io::Error::last_os_error());
        }
    });
}

/// Hears every frame that comes to an interface of a namespace from when it is made.
pub struct Ear(OwnedFd);

impl Ear {
    pub fn new(ns: &Ns, interface: &'static str) -> Self {
        ns.run(move || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
            let ifindex = i32::try_from(nix::net::if_::if_nametoindex(interface).unwrap()).unwrap();
            // SAFETY: zeros are a valid address, as are the members set.
            let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            (at.sll_family, at.sll_ifindex) = (u16::try_from(libc::AF_PACKET).unwrap(), ifindex);
            at.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
            let size = libc::socklen_t::try_from(size_of_val(&at)).unwrap();
            // SAFETY: the address outlives the call, and is as long as it is told.
            let bound = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&at).cast(), size) };
            assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
            Self(socket)
        })
    }

    /// The frames since it was asked last.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2048];
        let mut next = || {
            let n_bytes = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()).ok()?;
            Some(buffer[..n_bytes].to_vec())
        };
        std::iter::from_fn(&mut next).collect()
    }
}
