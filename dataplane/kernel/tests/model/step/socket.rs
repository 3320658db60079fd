//! Socket hooks: a published port of this node, or a virtual address, becomes a backend where a socket connects or sends;
//! and the other way round where its owner asks for the peer. IPv6 sockets reach IPv4 by mapped addresses (RFC 4291 section
//! 2.5.5.2), and this host by `::1` or `::`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ebpf_abi::{
    DropReason, FrontendKey, Ip4, OriginalAddress, OriginalDestination, Port, ProgramId, RingKey,
    SocketNatKey, VipKey, protocol,
};
use ebpf_packet::hash::socket_hash;

use super::{Verdict, Way};
use crate::packet::{SocketAddress, SocketCall};
use crate::tables::Tables;

type Destination = (SocketAddress, Port);

pub fn step(tables: &mut Tables, call: &SocketCall) -> (Verdict, Destination) {
    let Some(asked) = meaning(&call.address) else { return (Verdict::Ignore, (call.address, call.port)) };
    let (verdict, destination) = match call.program {
        ProgramId::MeshConnect4 | ProgramId::MeshConnect6 => {
            // Asked for before it is known whose socket it is.
            let random = tables.next_random();
            translate(tables, call, asked, random)
        }
        ProgramId::MeshSendmsg4 => {
            let hash = socket_hash(call.socket_cookie, asked.ip4(), call.port);
            translate(tables, call, asked, hash)
        }
        _ => restore(tables, call, asked),
    };
    let told = |(address, port)| (telling(&call.address, address), port);
    (verdict, destination.map_or((call.address, call.port), told))
}

/// What an address stands for; `None` if that is nothing of ours.
fn meaning(address: &SocketAddress) -> Option<OriginalAddress> {
    match address {
        SocketAddress::V4(address) => Some(OriginalAddress::Ip4(*address)),
        SocketAddress::V6(Ipv6Addr::LOCALHOST | Ipv6Addr::UNSPECIFIED) => Some(OriginalAddress::Localhost6),
        SocketAddress::V6(address) => Some(OriginalAddress::Ip4(address.to_ipv4_mapped()?.into())),
    }
}

/// How an address is told to a socket of this family.
fn telling(family: &SocketAddress, address: OriginalAddress) -> SocketAddress {
    match (family, address) {
        (SocketAddress::V4(_), address) => SocketAddress::V4(address.ip4()),
        (SocketAddress::V6(_), OriginalAddress::Localhost6) => SocketAddress::V6(Ipv6Addr::LOCALHOST),
        (SocketAddress::V6(_), OriginalAddress::Ip4(address)) => {
            SocketAddress::V6(Ipv4Addr::from(address).to_ipv6_mapped())
        }
    }
}

/// What a hook decides, and where the socket goes or seems to, if elsewhere than it says.
type Decision = (Verdict, Option<(OriginalAddress, Port)>);

fn is_node(tables: &Tables, call: &SocketCall) -> bool {
    call.netns_cookie == tables.wanted.config.netns_cookie
}

/// A stranger's socket, or nobody knows whose.
fn is_foreign(tables: &Tables, call: &SocketCall) -> bool {
    let known = is_node(tables, call) || tables.wanted.sandboxes.contains_key(&call.netns_cookie);
    tables.config().is_none() || !known
}

fn translate(tables: &mut Tables, call: &SocketCall, asked: OriginalAddress, hash: u32) -> Decision {
    if is_foreign(tables, call) {
        return (Verdict::Ignore, None);
    }
    let Some((ring, port)) = service(tables, call, asked.ip4()) else { return (Verdict::Pass, None) };
    let Some(backend) = tables.wanted.place(&ring, 0, hash) else {
        return (Verdict::Drop(DropReason::NoBackend), None);
    };
    let key = SocketNatKey::new(call.socket_cookie, (backend, port), call.protocol);
    tables.written.socket_nat.insert(key, OriginalDestination::new(asked, call.port));
    (Verdict::Forward(Way::Translated), Some((OriginalAddress::Ip4(backend), port)))
}

/// The ring that serves a destination, and the backends' port. 0.0.0.0 is this host (as localhost is): the node's own
/// processes mean the node, and a task itself.
fn service(tables: &Tables, call: &SocketCall, address: Ip4) -> Option<(RingKey, Port)> {
    let is_this_host = address == Ip4::UNSPECIFIED || address.0[0] == 127;
    let of_node = is_node(tables, call);
    let meant = if address == Ip4::UNSPECIFIED { Ip4::LOCALHOST } else { address };
    let key = FrontendKey::new(meant, call.port, call.protocol);
    if let Some(frontend) = tables.wanted.frontends.get(&key).filter(|_| of_node || !is_this_host) {
        return Some((frontend.ring, frontend.target));
    }
    let networks = tables.wanted.sandboxes.get(&call.netns_cookie).filter(|_| !of_node)?;
    if ![protocol::TCP, protocol::UDP].contains(&call.protocol) {
        return None;
    }
    let vip = |vni: &u32| tables.wanted.vips.get(&VipKey { vni: *vni, address });
    networks.networks().iter().find_map(vip).map(|ring| (*ring, call.port))
}

fn restore(tables: &Tables, call: &SocketCall, told: OriginalAddress) -> Decision {
    if is_foreign(tables, call) {
        return (Verdict::Ignore, None);
    }
    let key = SocketNatKey::new(call.socket_cookie, (told.ip4(), call.port), call.protocol);
    match tables.written.socket_nat.get(&key) {
        Some(asked) => (Verdict::Forward(Way::Translated), Some(asked.destination())),
        None => (Verdict::Pass, None),
    }
}
