//! Socket hooks: a published port on a node's own address, or a service's virtual address, becomes a backend once, where
//! the socket connects or sends; no packet is touched for it.
//!
//! The programs hang on the root cgroup and see the sockets of everybody. They know theirs by the cookie of the socket's
//! network namespace, and count theirs only.
//!
//! An IPv6 socket reaches IPv4 by mapped addresses (RFC 4291 section 2.5.5.2), as every socket of a Java program does. The
//! kernel asks the hooks of IPv6 for it when it connects, receives and asks for its peer, and those of IPv4 when it sends
//! without being connected. A task's socket that asks for an IPv6 virtual address gets the backend's IPv6 address. A node's
//! process that asks for an IPv6 address of the node, `::1` among them (or `::`, which means the same), is served by IPv4,
//! with the node's address as source: the routing mesh's network gives nodes no IPv6 address that tasks could answer to.

use core::marker::PhantomData;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use ebpf_abi::{
    DropReason, FrontendKey, Ip, Ip4, OriginalDestination, Port, ProgramId, RingKey, SandboxNetworks,
    SocketNatKey, VipKey, protocol,
};
use ebpf_packet::Version;
use ebpf_packet::hash::socket_hash;

use crate::account::SocketAccount;
use crate::maps::{self, FRONTENDS, SANDBOXES, SOCKET_NAT, VIPS};

/// The system call goes on.
const PROCEED: i32 = 1;
/// The system call fails.
const REFUSE: i32 = 0;
/// Linux's code for "connection refused".
const ECONNREFUSED: i32 = 111;

/// A destination that is translated, and what serves it.
struct Service {
    ring: RingKey,
    /// The backends' port.
    target: Port,
    /// Which of their addresses is used.
    version: Version,
}

#[inline(always)]
pub fn connect<F: Family>(program: ProgramId, context: &SockAddrContext) -> i32 {
    let socket = Socket::<F>::of(context);
    // SAFETY: a plain helper call.
    let random = unsafe { bpf_get_prandom_u32() };
    translate(program, &socket, random)
}

/// Datagrams of one socket to one service stay with one backend while the ring stays.
#[inline(always)]
pub fn sendmsg<F: Family>(program: ProgramId, context: &SockAddrContext) -> i32 {
    let socket = Socket::<F>::of(context);
    let (address, port) = socket.destination();
    translate(program, &socket, socket_hash(socket.cookie(), address, port))
}

/// Shows the address that the socket's owner asked for in place of the backend's.
#[inline(always)]
pub fn restore<F: Family>(program: ProgramId, context: &SockAddrContext) -> i32 {
    let socket = Socket::<F>::of(context);
    if !socket.is_ours() {
        return PROCEED;
    }
    let account = SocketAccount::receive(program);
    // SAFETY: the row is copied at once.
    match unsafe { SOCKET_NAT.get(socket.nat_key(socket.destination())) }.copied() {
        Some(original) => {
            socket.set_destination((original.address, original.port));
            account.forwarded();
        }
        None => account.passed(),
    }
    PROCEED
}

/// Each kind of owner goes its own way to the end: a joint one would be beyond the verifier's memory.
#[inline(always)]
fn translate<F: Family>(program: ProgramId, socket: &Socket<'_, F>, hash: u32) -> i32 {
    let Some(config) = maps::config() else { return PROCEED };
    let cookie = socket.netns_cookie();
    if cookie == config.netns_cookie {
        return serve(&SocketAccount::receive(program), socket, frontend(socket), hash);
    }
    // SAFETY: user space alone writes this table, and frees rows only after this program has ended.
    match unsafe { SANDBOXES.get(cookie) } {
        Some(networks) => {
            let account = SocketAccount::receive(program);
            match published(socket) {
                Some(service) => serve(&account, socket, Some(service), hash),
                None => serve(&account, socket, vip(socket, networks), hash),
            }
        }
        None => PROCEED,
    }
}

#[inline(always)]
fn serve<F: Family>(
    account: &SocketAccount,
    socket: &Socket<'_, F>,
    service: Option<Service>,
    hash: u32,
) -> i32 {
    let Some(service) = service else {
        account.passed();
        return PROCEED;
    };
    let backend = maps::pick(&service.ring, hash)
        .and_then(|backend| maps::address(service.ring.vni, backend, service.version));
    let Some(backend) = backend else {
        account.dropped(DropReason::NoBackend);
        // SAFETY: a plain helper call.
        let _ = unsafe { bpf_set_retval(-ECONNREFUSED) };
        return REFUSE;
    };
    socket.translate(backend, service.target);
    account.forwarded();
    PROCEED
}

/// A published port on an address of this node; 0.0.0.0 and `::` mean this host, as for the kernel.
#[inline(always)]
fn frontend<F: Family>(socket: &Socket<'_, F>) -> Option<Service> {
    let (address, port) = socket.destination();
    let is_here = address.is_unspecified() || address == Ip::LOCALHOST6;
    service_at::<F>(if is_here { Ip::LOCALHOST4 } else { address }, port, socket.protocol())
}

/// As [`frontend`], for a task: this host is the task's own there, the node has its addresses only. The kernel takes the
/// task's packets to the ingress network by its leg there, or by its way out. Of IPv6 not every task has one: at IPv6 addresses
/// of other nodes the same ports are published, and served from here.
#[inline(always)]
fn published<F: Family>(socket: &Socket<'_, F>) -> Option<Service> {
    let (address, port) = socket.destination();
    if address.is_loopback() || address.is_unspecified() {
        return None;
    }
    let is_nodes = !address.is_v4() && maps::address_owner(address).is_some();
    service_at::<F>(if is_nodes { Ip::LOCALHOST4 } else { address }, port, socket.protocol())
}

#[inline(always)]
fn service_at<F: Family>(address: Ip, port: Port, protocol: u8) -> Option<Service> {
    // SAFETY: user space alone writes this table; the row is copied at once.
    let frontend = unsafe { FRONTENDS.get(FrontendKey::new(address, port, protocol)) }?;
    Some(Service { ring: frontend.ring, target: frontend.target, version: F::PUBLISHED })
}

/// A virtual address in one of the sandbox's networks, whose subnets do not overlap.
#[inline(always)]
fn vip<F: Family>(socket: &Socket<'_, F>, networks: &SandboxNetworks) -> Option<Service> {
    let protocol = socket.protocol();
    if protocol != protocol::TCP && protocol != protocol::UDP {
        return None;
    }
    let (address, target) = socket.destination();
    let version = if address.is_v4() { Version::V4 } else { Version::V6 };
    for (index, vni) in networks.vnis.iter().enumerate() {
        if index as u32 >= networks.n_vnis {
            return None;
        }
        let Some(address) = maps::name(*vni, address) else { continue };
        // SAFETY: as in `frontend`.
        if let Some(ring) = unsafe { VIPS.get(VipKey { vni: *vni, address }) } {
            return Some(Service { ring: *ring, target, version });
        }
    }
    None
}

/// How a hook's context tells addresses.
pub trait Family {
    /// By which of their addresses backends of published ports are reached.
    const PUBLISHED: Version;
    fn address(context: &SockAddrContext) -> Ip;
    fn set_address(context: &SockAddrContext, address: Ip);
}

/// The hooks of IPv4.
pub enum V4 {}

/// The hooks of IPv6.
pub enum V6 {}

/// The hook of IPv6 datagrams that are sent unconnected: the kernel refuses a mapped address in the place of another.
pub enum V6Datagram {}

impl Family for V4 {
    const PUBLISHED: Version = Version::V4;

    #[inline(always)]
    fn address(context: &SockAddrContext) -> Ip {
        // SAFETY: the context outlives the program.
        Ip::v4(Ip4::from_be_u32(unsafe { (*context.sock_addr).user_ip4 }))
    }

    #[inline(always)]
    fn set_address(context: &SockAddrContext, address: Ip) {
        // SAFETY: the context outlives the program, and the member may be written in all four hooks.
        unsafe { (*context.sock_addr).user_ip4 = address.low().to_be_u32() };
    }
}

impl Family for V6 {
    const PUBLISHED: Version = Version::V4;

    #[inline(always)]
    fn address(context: &SockAddrContext) -> Ip {
        // SAFETY: as in `V4`.
        Ip::from_be_words(unsafe { (*context.sock_addr).user_ip6 })
    }

    #[inline(always)]
    fn set_address(context: &SockAddrContext, address: Ip) {
        // SAFETY: as in `V4`.
        unsafe { (*context.sock_addr).user_ip6 = address.to_be_words() };
    }
}

impl Family for V6Datagram {
    const PUBLISHED: Version = Version::V6;

    #[inline(always)]
    fn address(context: &SockAddrContext) -> Ip {
        V6::address(context)
    }

    #[inline(always)]
    fn set_address(context: &SockAddrContext, address: Ip) {
        V6::set_address(context, address);
    }
}

struct Socket<'a, F> {
    context: &'a SockAddrContext,
    original: Ip,
    family: PhantomData<F>,
}

impl<'a, F: Family> Socket<'a, F> {
    #[inline(always)]
    fn of(context: &'a SockAddrContext) -> Self {
        Self { context, original: F::address(context), family: PhantomData }
    }

    #[inline(always)]
    fn is_ours(&self) -> bool {
        let Some(config) = maps::config() else { return false };
        let cookie = self.netns_cookie();
        cookie == config.netns_cookie || SANDBOXES.get_ptr(cookie).is_some()
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: a plain helper call.
        unsafe { bpf_get_netns_cookie(self.context.as_ptr()) }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: a plain helper call.
        unsafe { bpf_get_socket_cookie(self.context.as_ptr()) }
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.context.sock_addr).protocol as u8 }
    }

    #[inline(always)]
    fn port(&self) -> Port {
        // SAFETY: the context outlives the program.
        Port::from_be_u16(unsafe { (*self.context.sock_addr).user_port } as u16)
    }

    #[inline(always)]
    fn destination(&self) -> (Ip, Port) {
        (self.original, self.port())
    }

    #[inline(always)]
    fn set_destination(&self, (address, port): (Ip, Port)) {
        F::set_address(self.context, address);
        // SAFETY: the context outlives the program, and the member may be written in all hooks.
        unsafe { (*self.context.sock_addr).user_port = port.to_be_u16().into() };
    }

    #[inline(always)]
    fn nat_key(&self, backend: (Ip, Port)) -> SocketNatKey {
        SocketNatKey::new(self.cookie(), backend, self.protocol())
    }

    /// Sends the socket to a backend and remembers what it asked for.
    #[inline(always)]
    fn translate(&self, backend: Ip, target: Port) {
        let key = self.nat_key((backend, target));
        let original = OriginalDestination::new(self.original, self.port());
        // SAFETY: compared at once.
        if unsafe { SOCKET_NAT.get(key) } != Some(&original) {
            // A full table makes room by itself.
            let _ = SOCKET_NAT.insert(key, original, 0);
        }
        self.set_destination((backend, target));
    }
}
