//! Finds what a sandbox's networks say about a name. Nothing is allocated, and nothing takes longer for more names than a
//! look-up in an ordered table does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

use crate::question::Question;
use crate::zones::NetworkZone;

use super::SandboxView;

/// Longest name in its written form, bytes.
const MAX_TEXT_LEN: usize = 255;

/// Hexadecimal digits of an IPv6 address (RFC 3596 section 2.5).
const N_NIBBLES: usize = 32;

/// What the sandbox's networks say about a name.
pub(super) enum Resolved<'a> {
    Addresses(&'a [IpAddr]),
    /// `_port._protocol.service`.
    Service(Service<'a>),
    /// Name, and its network's.
    Pointer(&'a str, &'a str),
    /// There are names below it and it has no records.
    Exists,
    /// It could only be ours, and there is none.
    Denied,
    NotHere,
}

/// A port of a service, and what is behind it.
pub(super) struct Service<'a> {
    pub(super) port: u16,
    zone: &'a NetworkZone,
    addresses: &'a [IpAddr],
}

impl<'a> Service<'a> {
    pub(super) fn network(&self) -> &'a str {
        &self.zone.name
    }

    /// One address for each name behind the service: IPv4, as far as there is any.
    pub(super) fn targets(&self) -> &'a [IpAddr] {
        match self.addresses.partition_point(IpAddr::is_ipv4) {
            0 => self.addresses,
            n_v4 => &self.addresses[..n_v4],
        }
    }

    pub(super) fn name_of(&self, target: &IpAddr) -> Option<&'a str> {
        self.zone.reverse.get(target).map(String::as_str)
    }

    pub(super) fn addresses_of(&self, name: &str) -> &'a [IpAddr] {
        self.zone.names.get(name).map_or(&[], Vec::as_slice)
    }
}

pub(super) fn resolve<'a>(question: &Question, view: &'a SandboxView) -> Resolved<'a> {
    let mut buffer = [0; MAX_TEXT_LEN];
    let Some(text) = lower_text(&question.name, &mut buffer) else { return Resolved::NotHere };
    if let Some(address) = reverse_address(text) {
        return resolve_reverse(address, view);
    }
    if let Some((_, addresses)) = find(text, view) {
        return Resolved::Addresses(addresses);
    }
    if text.starts_with('_') { resolve_service(text, view) } else { Resolved::NotHere }
}

/// Addresses of a name in lower case.
pub(super) fn addresses<'a>(text: &str, view: &'a SandboxView) -> Option<&'a [IpAddr]> {
    find(text, view).map(|(_, addresses)| addresses)
}

/// Addresses of a name, and the network that has it.
type Found<'a> = (&'a NetworkZone, &'a [IpAddr]);

/// The first network that has the name with an address, else one that has the name, else `name.network`.
fn find<'a>(text: &str, view: &'a SandboxView) -> Option<Found<'a>> {
    let plain = view.networks.iter().filter_map(|zone| Some((&**zone, zone.names.get(text)?)));
    let found = first_with_address(plain);
    found.or_else(|| {
        let qualified = |zone: &'a NetworkZone| Some((zone, zone.names.get(unqualified(text, zone)?)?));
        first_with_address(view.networks.iter().filter_map(|zone| qualified(zone)))
    })
}

/// `text` without the network's name behind it.
fn unqualified<'t>(text: &'t str, zone: &NetworkZone) -> Option<&'t str> {
    text.strip_suffix(zone.name.as_str())?.strip_suffix('.')
}

fn first_with_address<'a>(
    found: impl Iterator<Item = (&'a NetworkZone, &'a Vec<IpAddr>)>,
) -> Option<Found<'a>> {
    let mut exists = None;
    for (zone, addresses) in found {
        if !addresses.is_empty() {
            return Some((zone, addresses));
        }
        exists = Some((zone, addresses.as_slice()));
    }
    exists
}

/// `_port._protocol.service` and `_protocol.service` (RFC 2782) of a service that is here. A service is asked for its
/// ports in the network where its name was found.
fn resolve_service<'a>(text: &str, view: &'a SandboxView) -> Resolved<'a> {
    let Some((first, rest)) = split_label(text) else { return Resolved::NotHere };
    let (port, protocol, name) = match split_label(rest) {
        Some((second, name)) => (Some(first), second, name),
        None => (None, first, rest),
    };
    let Some((zone, addresses)) = find(name, view) else { return Resolved::NotHere };
    let ports = zone.ports.get(name).or_else(|| zone.ports.get(unqualified(name, zone)?));
    let mut ports = ports.into_iter().flatten().filter(|record| record.protocol == protocol);
    match port {
        None => ports.next().map_or(Resolved::Denied, |_| Resolved::Exists),
        Some(label) => ports.find(|record| record.label == label).map_or(Resolved::Denied, |record| {
            Resolved::Service(Service { port: record.port, zone, addresses })
        }),
    }
}

/// A first label that begins with an underscore, without it, and the labels behind it.
fn split_label(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('_')?.split_once('.')
}

fn resolve_reverse(address: IpAddr, view: &SandboxView) -> Resolved<'_> {
    for zone in &view.networks {
        if let Some(name) = zone.reverse.get(&address) {
            return Resolved::Pointer(name, &zone.name);
        }
    }
    let is_ours = |zone: &NetworkZone| zone.subnets.iter().any(|subnet| subnet.contains(address));
    if view.networks.iter().any(|zone| is_ours(zone)) { Resolved::Denied } else { Resolved::NotHere }
}

/// The address that a name of the reverse trees stands for.
fn reverse_address(text: &str) -> Option<IpAddr> {
    match text.strip_suffix(".in-addr.arpa") {
        Some(octets) => reverse_v4(octets).map(IpAddr::V4),
        None => reverse_v6(text.strip_suffix(".ip6.arpa")?).map(IpAddr::V6),
    }
}

/// The address whose octets stand here backwards (RFC 1035 section 3.5).
fn reverse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in octets.iter_mut().rev() {
        *octet = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// The address whose digits stand here backwards, one per label (RFC 3596 section 2.5).
fn reverse_v6(text: &str) -> Option<Ipv6Addr> {
    let mut parts = text.split('.');
    let mut bits = 0_u128;
    for position in 0..N_NIBBLES {
        let part = parts.next().filter(|part| part.len() == 1)?;
        bits |= u128::from_str_radix(part, 16).ok()? << (4 * position);
    }
    parts.next().is_none().then(|| Ipv6Addr::from(bits))
}

/// `name` in lower case with dots between its labels, without the last one. `None` if a label has a byte that no name
/// of ours has, or the name is the root.
fn lower_text<'a>(name: &Name, buffer: &'a mut [u8; MAX_TEXT_LEN]) -> Option<&'a str> {
    let mut len = 0;
    for label in name {
        let separator = usize::from(len > 0);
        let end = len + separator + label.len();
        if end > MAX_TEXT_LEN || label.iter().any(|byte| !byte.is_ascii_graphic() || *byte == b'.') {
            return None;
        }
        buffer[len..len + separator].fill(b'.');
        buffer[len + separator..end].copy_from_slice(label);
        len = end;
    }
    let text = &mut buffer[..len];
    text.make_ascii_lowercase();
    let text: &'a [u8] = text;
    std::str::from_utf8(text).ok().filter(|text| !text.is_empty())
}
