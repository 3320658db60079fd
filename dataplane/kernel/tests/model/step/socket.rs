//! Socket hooks: a published port of this node, or a virtual address, becomes a backend where a socket connects or sends;
//! and the other way round where its owner asks for the peer. IPv6 sockets reach IPv4 by mapped addresses (RFC 4291 section
//! 2.5.5.2), and this host by `::1` or `::`.

use ebpf_abi::{
    DropReason, FrontendKey, Ip, Ip4, OriginalDestination, Port, ProgramId, RingKey, SocketNatKey, VipKey,
    protocol,
};
use ebpf_packet::hash::socket_hash;

use super::{Verdict, Way};
use crate::network::Family;
use crate::packet::{SocketAddress, SocketCall};
use crate::tables::Tables;

type Destination = (SocketAddress, Port);

pub fn step(tables: &mut Tables, call: &SocketCall) -> (Verdict, Destination) {
    let asked = meaning(&call.address);
    let (verdict, destination) = match call.program {
        ProgramId::MeshConnect4 | ProgramId::MeshConnect6 => {
            // Asked for before it is known whose socket it is.
            let random = tables.next_random();
            translate(tables, call, asked, random)
        }
        ProgramId::MeshSendmsg4 | ProgramId::MeshSendmsg6 => {
            let hash = socket_hash(call.socket_cookie, asked, call.port);
            translate(tables, call, asked, hash)
        }
        _ => restore(tables, call, asked),
    };
    let told = |(address, port)| (telling(&call.address, address), port);
    (verdict, destination.map_or((call.address, call.port), told))
}

/// As the tables have it.
fn meaning(address: &SocketAddress) -> Ip {
    match address {
        SocketAddress::V4(address) => (*address).into(),
        SocketAddress::V6(address) => Ip(address.octets()),
    }
}

/// How an address is told to a socket of this family.
fn telling(family: &SocketAddress, address: Ip) -> SocketAddress {
    match family {
        SocketAddress::V4(_) => SocketAddress::V4(address.low()),
        SocketAddress::V6(_) => SocketAddress::V6(address.0.into()),
    }
}

/// What a hook decides, and where the socket goes or seems to, if elsewhere than it says.
type Decision = (Verdict, Option<(Ip, Port)>);

fn is_node(tables: &Tables, call: &SocketCall) -> bool {
    call.netns_cookie == tables.wanted.config.netns_cookie
}

/// A stranger's socket, or nobody knows whose.
fn is_foreign(tables: &Tables, call: &SocketCall) -> bool {
    let known = is_node(tables, call) || tables.wanted.sandboxes.contains_key(&call.netns_cookie);
    tables.config().is_none() || !known
}

fn translate(tables: &mut Tables, call: &SocketCall, asked: Ip, hash: u32) -> Decision {
    if is_foreign(tables, call) {
        return (Verdict::Ignore, None);
    }
    let Some((ring, port, family)) = service(tables, call, asked) else { return (Verdict::Pass, None) };
    let backend = tables.wanted.place(&ring, 0, hash);
    let Some(backend) = backend.and_then(|backend| tables.address(ring.vni, backend, family)) else {
        return (Verdict::Drop(DropReason::NoBackend), None);
    };
    let key = SocketNatKey::new(call.socket_cookie, (backend, port), call.protocol);
    tables.written.socket_nat.insert(key, OriginalDestination::new(asked, call.port));
    (Verdict::Forward(Way::Translated), Some((backend, port)))
}

/// The ring that serves a destination, the backends' port, and which of their addresses is used: a published port's IPv4 ones,
/// except where a datagram may not become one of IPv4, and a virtual address's of the family that was asked for. 0.0.0.0 is this host (as localhost is): the node's own
/// processes mean the node, and a task itself.
fn service(tables: &Tables, call: &SocketCall, address: Ip) -> Option<(RingKey, Port, Family)> {
    let is_any = address == Ip4::UNSPECIFIED.into() || address == Ip::UNSPECIFIED;
    let is_this_host = is_any || address == Ip::LOCALHOST6 || (address.is_v4() && address.low().0[0] == 127);
    let of_node = is_node(tables, call);
    // No way leads from a task to other nodes by IPv6: what they publish is served from here.
    let is_nodes = !of_node && !address.is_v4() && tables.wanted.address_owners.contains_key(&address);
    let is_localhost = is_any || address == Ip::LOCALHOST6 || is_nodes;
    let meant = if is_localhost { Ip4::LOCALHOST.into() } else { address };
    let key = FrontendKey::new(meant, call.port, call.protocol);
    if let Some(frontend) = tables.wanted.frontends.get(&key).filter(|_| of_node || !is_this_host) {
        let is_datagram6 = call.program == ProgramId::MeshSendmsg6;
        let family = if is_datagram6 { Family::V6 } else { Family::V4 };
        return Some((frontend.ring, frontend.target, family));
    }
    let networks = tables.wanted.sandboxes.get(&call.netns_cookie).filter(|_| !of_node)?;
    if ![protocol::TCP, protocol::UDP].contains(&call.protocol) {
        return None;
    }
    let vip = |vni: &u32| {
        let key = VipKey { vni: *vni, address: tables.name(*vni, address)? };
        tables.wanted.vips.get(&key)
    };
    let ring = networks.networks().iter().find_map(vip)?;
    Some((*ring, call.port, Family::of_address(address)))
}

fn restore(tables: &Tables, call: &SocketCall, told: Ip) -> Decision {
    if is_foreign(tables, call) {
        return (Verdict::Ignore, None);
    }
    let key = SocketNatKey::new(call.socket_cookie, (told, call.port), call.protocol);
    match tables.written.socket_nat.get(&key) {
        Some(asked) => (Verdict::Forward(Way::Translated), Some((asked.address, asked.port))),
        None => (Verdict::Pass, None),
    }
}
