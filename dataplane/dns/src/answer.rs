//! What a sandbox is told: [`answer`] over its [`SandboxView`]. Pure: which of several addresses comes first is an
//! argument.
//!
//! A name that exists is never denied: where it has no record of the asked type the answer is empty (NODATA, RFC 2308
//! section 2.2). musl takes a denial of AAAA as a denial of the name.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, RecordType};

use dataplane_model::SandboxId;

use crate::question::{NotAQuery, Question};
use crate::response::{Response, Transport, write_refusal};
use crate::zones::{Forwarding, NetworkZone, Zones};

/// The highest version of EDNS that is spoken (RFC 6891 section 6.1.3).
const EDNS_VERSION: u8 = 0;

/// Longest name in its written form, bytes.
const MAX_TEXT_LEN: usize = 255;

/// One sandbox's part of the [`Zones`]; the networks' tables are shared.
#[derive(Debug, Clone)]
pub struct SandboxView {
    pub networks: Vec<Arc<NetworkZone>>,
    pub forwarding: Forwarding,
    /// Seconds.
    pub ttl_s: u32,
}

/// The view of each sandbox.
pub fn sandbox_views(zones: &Zones) -> BTreeMap<SandboxId, SandboxView> {
    let networks: BTreeMap<_, _> =
        zones.networks.iter().map(|(key, zone)| (*key, Arc::new(zone.clone()))).collect();
    let view = |zone: &crate::zones::SandboxZone| SandboxView {
        networks: zone.networks.iter().filter_map(|key| networks.get(key).cloned()).collect(),
        forwarding: zone.forwarding.clone(),
        ttl_s: zones.ttl_s,
    };
    zones.sandboxes.iter().map(|(id, zone)| (id.clone(), view(zone))).collect()
}

/// What is to be done with a query.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The reply is in the buffer.
    Reply,
    /// No network has the name: the sandbox's resolvers are to be asked.
    Forward(Question),
    /// Nothing is to be sent.
    Silence,
}

/// Answers `query`, which came by `transport`, into `out`. `rotation` picks the address that comes first.
pub fn answer(
    query: &[u8],
    view: &SandboxView,
    transport: Transport,
    rotation: u32,
    out: &mut Vec<u8>,
) -> Outcome {
    let question = match Question::parse(query) {
        Ok(question) => question,
        Err(NotAQuery::Silence) => return Outcome::Silence,
        Err(NotAQuery::Refuse(header, code)) => {
            write_refusal(out, header, code);
            return Outcome::Reply;
        }
    };
    if question.edns.is_some_and(|edns| edns.version > EDNS_VERSION) {
        return reply_empty(&question, ResponseCode::BADVERS, transport, out);
    }
    if question.class != DNSClass::IN {
        return reply_empty(&question, ResponseCode::Refused, transport, out);
    }
    match resolve(&question, view) {
        Resolved::Addresses(addresses) => {
            write_addresses(&question, addresses, (transport, rotation, view.ttl_s), out);
            Outcome::Reply
        }
        Resolved::Pointer(name, network) => {
            let mut response = Response::begin(out, &question, ResponseCode::NoError, transport);
            if matches!(question.record_type, RecordType::PTR | RecordType::ANY) {
                response.push_pointer(&[name, network], view.ttl_s);
            }
            response.finish();
            Outcome::Reply
        }
        Resolved::Denied => reply_empty(&question, ResponseCode::NXDomain, transport, out),
        Resolved::NotHere if view.forwarding == Forwarding::Forbidden => {
            // Not REFUSED: musl would wait for another server until its time is up.
            reply_empty(&question, ResponseCode::NXDomain, transport, out)
        }
        Resolved::NotHere => Outcome::Forward(question),
    }
}

/// The reply to a question that could not be forwarded: "try again", never "there is none".
pub fn write_failure(question: &Question, transport: Transport, out: &mut Vec<u8>) {
    reply_empty(question, ResponseCode::ServFail, transport, out);
}

fn reply_empty(question: &Question, code: ResponseCode, transport: Transport, out: &mut Vec<u8>) -> Outcome {
    Response::begin(out, question, code, transport).finish();
    Outcome::Reply
}

fn write_addresses(
    question: &Question,
    addresses: &[Ipv4Addr],
    how: (Transport, u32, u32),
    out: &mut Vec<u8>,
) {
    let (transport, rotation, ttl_s) = how;
    let mut response = Response::begin(out, question, ResponseCode::NoError, transport);
    if matches!(question.record_type, RecordType::A | RecordType::ANY) && !addresses.is_empty() {
        let first = usize::try_from(rotation).unwrap_or(0) % addresses.len();
        let rotated = addresses[first..].iter().chain(&addresses[..first]);
        for address in rotated {
            if !response.push_address(*address, ttl_s) {
                break;
            }
        }
    }
    response.finish();
}

/// What the sandbox's networks say about a name.
enum Resolved<'a> {
    Addresses(&'a [Ipv4Addr]),
    /// Name, and its network's.
    Pointer(&'a str, &'a str),
    /// It could only be ours, and there is none.
    Denied,
    NotHere,
}

fn resolve<'a>(question: &Question, view: &'a SandboxView) -> Resolved<'a> {
    let mut buffer = [0; MAX_TEXT_LEN];
    let Some(text) = lower_text(&question.name, &mut buffer) else { return Resolved::NotHere };
    if let Some(reverse) = text.strip_suffix(".in-addr.arpa") {
        return reverse_address(reverse).map_or(Resolved::NotHere, |address| resolve_reverse(address, view));
    }
    resolve_name(text, view).map_or(Resolved::NotHere, Resolved::Addresses)
}

/// The first network that has the name with an address, else one that has the name, else `name.network`.
fn resolve_name<'a>(text: &str, view: &'a SandboxView) -> Option<&'a [Ipv4Addr]> {
    let plain = view.networks.iter().filter_map(|zone| zone.names.get(text));
    let found = first_with_address(plain);
    found.or_else(|| first_with_address(view.networks.iter().filter_map(|zone| qualified(text, zone))))
}

fn qualified<'a>(text: &str, zone: &'a NetworkZone) -> Option<&'a Vec<Ipv4Addr>> {
    let name = text.strip_suffix(zone.name.as_str())?.strip_suffix('.')?;
    zone.names.get(name)
}

fn first_with_address<'a>(found: impl Iterator<Item = &'a Vec<Ipv4Addr>>) -> Option<&'a [Ipv4Addr]> {
    let mut exists = None;
    for addresses in found {
        if !addresses.is_empty() {
            return Some(addresses);
        }
        exists = Some(addresses.as_slice());
    }
    exists
}

fn resolve_reverse(address: Ipv4Addr, view: &SandboxView) -> Resolved<'_> {
    for zone in &view.networks {
        if let Some(name) = zone.reverse.get(&address) {
            return Resolved::Pointer(name, &zone.name);
        }
    }
    if view.networks.iter().any(|zone| zone.subnet.contains(address)) {
        return Resolved::Denied;
    }
    Resolved::NotHere
}

/// The address whose octets stand here backwards (RFC 1035 section 3.5).
fn reverse_address(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in octets.iter_mut().rev() {
        *octet = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
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

#[cfg(test)]
mod tests;
