//! What arrives at a node through tunnels, seen on its uplink.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Instant;

use ebpf_abi::{Ip4, MacAddr};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType};
use nix::sys::time::TimeVal;

use super::namespace::Namespace;
use super::traffic::PATIENCE;

/// Where the outer IPv4 source, the outer destination port and the inner frame are.
const OUTER_SOURCE: usize = 26;
const OUTER_PORT: usize = 36;
const INNER: usize = 14 + 20 + 8 + 8;

/// Inner destination and source MAC.
pub type Macs = (MacAddr, MacAddr);

/// Hears every frame of a namespace from when it is made.
pub struct Capture(OwnedFd);

impl Capture {
    pub fn new(namespace: &Namespace) -> Self {
        namespace.run(|| {
            let all = SockProtocol::EthAll;
            let socket =
                socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap();
            socket::setsockopt(&socket, socket::sockopt::ReceiveTimeout, &TimeVal::new(1, 0)).unwrap();
            Self(socket)
        })
    }

    /// The MACs inside the next packet that `from` sends through the tunnel.
    #[track_caller]
    pub fn next(&self, from: Ip4) -> Macs {
        let started = Instant::now();
        let mut frame = [0; 2048];
        loop {
            let size = socket::recv(self.0.as_raw_fd(), &mut frame, socket::MsgFlags::empty()).unwrap_or(0);
            let frame = &frame[..size];
            let is_tunnelled = size > INNER + 14 && frame[OUTER_PORT..][..2] == 4789_u16.to_be_bytes();
            if is_tunnelled && frame[OUTER_SOURCE..][..4] == from.0 {
                let mac = |at: usize| MacAddr(frame[at..at + 6].try_into().unwrap());
                return (mac(INNER), mac(INNER + 6));
            }
            assert!(started.elapsed() < PATIENCE, "{from} sent nothing through the tunnel");
        }
    }
}
