//! What a sandbox is told: [`answer`] over its [`SandboxView`]. Pure: which of several addresses comes first is an
//! argument.
//!
//! A name that exists is never denied: where it has no record of the asked type the answer is empty (NODATA, RFC 2308
//! section 2.2). musl takes a denial of AAAA as a denial of the name. Both kinds of "no" carry an SOA record that says how
//! long they may be kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, RecordType};

use dataplane_model::SandboxId;

use crate::question::{NotAQuery, Question};
use crate::response::{Owner, Response, Section, Transport, write_refusal};
use crate::zones::{Forwarding, NetworkZone, TtlPolicy, Zones};

mod resolve;

use self::resolve::{Resolved, Service, resolve};

/// The highest version of EDNS that is spoken (RFC 6891 section 6.1.3).
const EDNS_VERSION: u8 = 0;

/// One sandbox's part of the [`Zones`]; the networks' tables are shared.
#[derive(Debug, Clone)]
pub struct SandboxView {
    pub networks: Vec<Arc<NetworkZone>>,
    pub forwarding: Forwarding,
    pub keeps_short_names: bool,
    pub ttl: TtlPolicy,
}

/// The view of each sandbox.
pub fn sandbox_views(zones: Zones) -> BTreeMap<SandboxId, SandboxView> {
    let networks: BTreeMap<_, _> =
        zones.networks.into_iter().map(|(key, zone)| (key, Arc::new(zone))).collect();
    let view = |zone: crate::zones::SandboxZone| SandboxView {
        networks: zone.networks.iter().filter_map(|key| networks.get(key).cloned()).collect(),
        forwarding: zone.forwarding,
        keeps_short_names: zone.keeps_short_names,
        ttl: zones.ttl,
    };
    zones.sandboxes.into_iter().map(|(id, zone)| (id, view(zone))).collect()
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
        return reply_code(&question, ResponseCode::BADVERS, transport, out);
    }
    if question.class != DNSClass::IN {
        return reply_code(&question, ResponseCode::Refused, transport, out);
    }
    let mut reply = Reply { question: &question, transport, rotation, ttl: view.ttl, out };
    match resolve(&question, view) {
        Resolved::Addresses(addresses) => reply.addresses(addresses),
        Resolved::Service(service) => reply.service(&service),
        Resolved::Pointer(name, network) => reply.pointer([name, network]),
        Resolved::Exists => reply.nothing(),
        Resolved::Denied => reply.denial(),
        // Not REFUSED: musl would wait for another server until its time is up.
        Resolved::NotHere if !may_leave(&question, view) => reply.denial(),
        Resolved::NotHere => return Outcome::Forward(question),
    }
    Outcome::Reply
}

/// The addresses that the sandbox's networks have for `name`; `None` if none of them has the name.
pub fn addresses<'a>(name: &str, view: &'a SandboxView) -> Option<&'a [IpAddr]> {
    resolve::addresses(&name.to_ascii_lowercase(), view)
}

/// Is `query` one that the sandbox's networks answer, also by that there is no such name?
pub fn is_own(query: &[u8], view: &SandboxView) -> bool {
    Question::parse(query).is_ok_and(|question| !matches!(resolve(&question, view), Resolved::NotHere))
}

/// The reply to a question that could not be forwarded: "try again", never "there is none".
pub fn write_failure(question: &Question, transport: Transport, out: &mut Vec<u8>) {
    reply_code(question, ResponseCode::ServFail, transport, out);
}

fn reply_code(question: &Question, code: ResponseCode, transport: Transport, out: &mut Vec<u8>) -> Outcome {
    Response::begin(out, question, code, transport).finish();
    Outcome::Reply
}

fn may_leave(question: &Question, view: &SandboxView) -> bool {
    let asks_address = matches!(question.record_type, RecordType::A | RecordType::AAAA);
    let is_short = question.name.iter().count() == 1;
    view.forwarding != Forwarding::Forbidden && !(view.keeps_short_names && asks_address && is_short)
}

/// A reply with all that it is made of.
struct Reply<'a> {
    question: &'a Question,
    transport: Transport,
    rotation: u32,
    ttl: TtlPolicy,
    out: &'a mut Vec<u8>,
}

impl Reply<'_> {
    fn begin(&mut self, code: ResponseCode) -> Response<'_> {
        Response::begin(self.out, self.question, code, self.transport)
    }

    /// Those of the asked family, beginning with another one each time.
    fn addresses(&mut self, addresses: &[IpAddr]) {
        let asked = family(self.question.record_type, addresses);
        if asked.is_empty() {
            return self.nothing();
        }
        let (rotation, ttl_s) = (self.rotation, self.ttl.found_s);
        let mut response = self.begin(ResponseCode::NoError);
        for address in rotated(asked, rotation) {
            if !response.push_address(Section::Answer, Owner::QUESTION, *address, ttl_s) {
                break;
            }
        }
        response.finish();
    }

    /// One SRV record for each name behind the service, and their addresses as far as there is room.
    fn service(&mut self, service: &Service<'_>) {
        let asked = matches!(self.question.record_type, RecordType::SRV | RecordType::ANY);
        let targets = service.targets();
        if !asked || targets.is_empty() {
            return self.nothing();
        }
        let (rotation, ttl_s) = (self.rotation, self.ttl.found_s);
        let mut response = self.begin(ResponseCode::NoError);
        let mut owners = Vec::with_capacity(targets.len());
        for target in rotated(targets, rotation) {
            let Some(name) = service.name_of(target) else { continue };
            let Some(owner) = response.push_service(service.port, [name, service.network()], ttl_s) else {
                continue;
            };
            owners.push((name, owner));
        }
        for (name, owner) in owners {
            for address in service.addresses_of(name) {
                response.push_address(Section::Additional, owner, *address, ttl_s);
            }
        }
        response.finish();
    }

    fn pointer(&mut self, name: [&str; 2]) {
        if !matches!(self.question.record_type, RecordType::PTR | RecordType::ANY) {
            return self.nothing();
        }
        let ttl_s = self.ttl.found_s;
        let mut response = self.begin(ResponseCode::NoError);
        response.push_pointer(name, ttl_s);
        response.finish();
    }

    /// The name is there, the record is not. Each name of ours is a zone of its own.
    fn nothing(&mut self) {
        self.negative(ResponseCode::NoError, Some(Owner::QUESTION));
    }

    /// There is no such name: that is for the zone above to say.
    fn denial(&mut self) {
        let parent = Owner::parent(self.question);
        self.negative(ResponseCode::NXDomain, parent);
    }

    fn negative(&mut self, code: ResponseCode, owner: Option<Owner>) {
        let ttl_s = self.ttl.denied_s;
        let mut response = self.begin(code);
        response.push_authority(owner, ttl_s);
        response.finish();
    }
}

/// The part of `addresses`, IPv4 first, that answers a question of this type.
fn family(record_type: RecordType, addresses: &[IpAddr]) -> &[IpAddr] {
    let (v4, v6) = addresses.split_at(addresses.partition_point(IpAddr::is_ipv4));
    match record_type {
        RecordType::A => v4,
        RecordType::AAAA => v6,
        RecordType::ANY => addresses,
        _ => &[],
    }
}

fn rotated(addresses: &[IpAddr], rotation: u32) -> impl Iterator<Item = &IpAddr> {
    let first = usize::try_from(rotation).unwrap_or(0) % addresses.len().max(1);
    addresses[first..].iter().chain(&addresses[..first])
}

#[cfg(test)]
mod tests;
