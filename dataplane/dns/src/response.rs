//! Writes answers into a buffer that is used again for the next one. Pure.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};

use crate::question::{HEADER_LEN, QueryHeader, Question};

/// Largest UDP answer when the client says nothing, bytes (RFC 1035 section 4.2.1).
const PLAIN_UDP_LEN: usize = 512;

/// Largest UDP answer and query, bytes, whatever the client says: what the loopback link carries in one piece and the
/// server's buffers hold.
pub const MAX_UDP_LEN: u16 = 4096;

/// Largest TCP answer, bytes: its length is 16 bits (RFC 1035 section 4.2.2).
const MAX_TCP_LEN: usize = 65_535;

/// Length of an OPT record without options, bytes (RFC 6891 section 6.1.2).
pub const OPT_LEN: usize = 11;

/// A record's type, class, time and data length, bytes (RFC 1035 section 4.1.3).
const FIXED_LEN: usize = 10;

/// The first two bits of a pointer to a name (RFC 1035 section 4.1.4).
const POINTER: u16 = 0xc000;

pub const FLAG_RESPONSE: u8 = 0x80;
pub const FLAG_AUTHORITATIVE: u8 = 0x04;
pub const FLAG_TRUNCATED: u8 = 0x02;
pub const FLAG_RECURSION_DESIRED: u8 = 0x01;
pub const FLAG_RECURSION_AVAILABLE: u8 = 0x80;
pub const FLAG_AUTHENTIC_DATA: u8 = 0x20;
pub const FLAG_CHECKING_DISABLED: u8 = 0x10;

/// Longest label and name, bytes (RFC 1035 section 2.3.4).
const MAX_LABEL_LEN: usize = 63;
const MAX_NAME_LEN: usize = 255;

/// `nobody.invalid.`: whom to write to about a zone that is served locally (RFC 6303 section 3).
const NOBODY: &[u8] = b"\x06nobody\x07invalid\0";

/// Serial, refresh, retry and expire of such a zone (RFC 6303 section 3).
const SOA_TIMES: [u32; 4] = [1, 3600, 1200, 604_800];

/// Priority and weight of all SRV records: the tasks of a service are alike (RFC 2782).
const SRV_PRIORITY: u16 = 0;
const SRV_WEIGHT: u16 = 1;

/// How a query came, and so how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// Bytes that the answer to `question` may have.
pub fn max_response_len(question: &Question, transport: Transport) -> usize {
    match (transport, question.edns) {
        (Transport::Tcp, _) => MAX_TCP_LEN,
        (Transport::Udp, None) => PLAIN_UDP_LEN,
        (Transport::Udp, Some(edns)) => usize::from(edns.max_payload.min(MAX_UDP_LEN)).max(PLAIN_UDP_LEN),
    }
}

/// Replaces `out` by a reply of a header alone: for a query whose question could not be read.
pub fn write_refusal(out: &mut Vec<u8>, header: QueryHeader, code: ResponseCode) {
    out.clear();
    write_header(out, header, code, 0);
}

/// Who owns a record, as a place in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(u16);

impl Owner {
    /// The name that was asked for, the first after the header.
    #[expect(clippy::cast_possible_truncation, reason = "a header has 12 bytes")]
    pub const QUESTION: Self = Self(POINTER | HEADER_LEN as u16);

    /// The name above the one that was asked for; the root for a name of one label or none.
    pub fn parent(question: &Question) -> Option<Self> {
        let mut labels = question.name.iter();
        let first = u16::try_from(labels.next()?.len()).expect("a label has at most 63 bytes");
        labels.next()?;
        Some(Self(Self::QUESTION.0 + 1 + first))
    }
}

/// The part of a message that records go to (RFC 1035 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Answer,
    Authority,
    Additional,
}

/// An answer that is being written: header and question first, then records, section by section, while there is room,
/// then [`Self::finish`].
#[derive(Debug)]
pub struct Response<'a> {
    out: &'a mut Vec<u8>,
    /// Bytes that header, question and records may have; the OPT record comes on top.
    room: usize,
    counts: [u16; 3],
    edns: Option<bool>,
    code: ResponseCode,
}

impl<'a> Response<'a> {
    /// Replaces `out` by the header and the question, spelled as it was asked.
    pub fn begin(
        out: &'a mut Vec<u8>,
        question: &Question,
        code: ResponseCode,
        transport: Transport,
    ) -> Self {
        out.clear();
        write_header(out, question.header, code, 1);
        write_name(out, &question.name);
        out.extend_from_slice(&u16::from(question.record_type).to_be_bytes());
        out.extend_from_slice(&u16::from(question.class).to_be_bytes());
        let edns = question.edns.map(|edns| edns.dnssec_ok);
        let room = max_response_len(question, transport) - if edns.is_some() { OPT_LEN } else { 0 };
        Self { out, room, counts: [0; 3], edns, code }
    }

    /// Adds an A or AAAA record. False if it didn't fit.
    pub fn push_address(&mut self, section: Section, owner: Owner, address: IpAddr, ttl_s: u32) -> bool {
        match address {
            IpAddr::V4(address) => self.push(section, owner, (RecordType::A, ttl_s), &address.octets()),
            IpAddr::V6(address) => self.push(section, owner, (RecordType::AAAA, ttl_s), &address.octets()),
        }
    }

    /// Adds a PTR record. A name that DNS can't carry is left out.
    pub fn push_pointer(&mut self, labels: [&str; 2], ttl_s: u32) {
        let Some(name) = encode_name(&labels) else { return };
        self.push(Section::Answer, Owner::QUESTION, (RecordType::PTR, ttl_s), &name);
    }

    /// Adds an SRV record and returns where its target's name stands; `None` if it didn't fit or DNS can't carry the
    /// name. The target is never compressed (RFC 2782).
    pub fn push_service(&mut self, port: u16, target: [&str; 2], ttl_s: u32) -> Option<Owner> {
        const HEAD_LEN: usize = 6;
        let name = encode_name(&target)?;
        let mut data = Vec::with_capacity(HEAD_LEN + name.len());
        for number in [SRV_PRIORITY, SRV_WEIGHT, port] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        data.extend_from_slice(&name);
        let pushed = self.push(Section::Answer, Owner::QUESTION, (RecordType::SRV, ttl_s), &data);
        let at = u16::try_from(self.out.len() - name.len()).ok().filter(|at| *at < POINTER)?;
        pushed.then_some(Owner(POINTER | at))
    }

    /// Adds the SOA record that says how long the absence may be kept (RFC 2308 section 3). `owner` is `None` for the
    /// root.
    pub fn push_authority(&mut self, owner: Option<Owner>, ttl_s: u32) {
        const NUMBERS_LEN: usize = (SOA_TIMES.len() + 1) * size_of::<u32>();
        let mut data = [0; 2 + NOBODY.len() + NUMBERS_LEN];
        let server_len = match owner {
            Some(Owner(pointer)) => {
                data[..2].copy_from_slice(&pointer.to_be_bytes());
                2
            }
            None => 1,
        };
        let (names, numbers) = data[server_len..].split_at_mut(NOBODY.len());
        names.copy_from_slice(NOBODY);
        for (place, number) in numbers.chunks_exact_mut(4).zip(SOA_TIMES.into_iter().chain([ttl_s])) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        let len = server_len + NOBODY.len() + NUMBERS_LEN;
        self.push_owned(Section::Authority, owner, (RecordType::SOA, ttl_s), &data[..len]);
    }

    /// Adds the OPT record where the client sent one (RFC 6891 section 6.1.1), and the counts.
    pub fn finish(self) {
        let [answers, authorities, additionals] = self.counts;
        if let Some(dnssec_ok) = self.edns {
            write_opt(self.out, u16::from(self.code), dnssec_ok, None);
        }
        let additionals = additionals + u16::from(self.edns.is_some());
        for (at, count) in [(6, answers), (8, authorities), (10, additionals)] {
            self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
    }

    fn push(&mut self, section: Section, owner: Owner, kind: (RecordType, u32), data: &[u8]) -> bool {
        self.push_owned(section, Some(owner), kind, data)
    }

    /// What doesn't fit marks the answer as truncated, unless it is only there for convenience (RFC 2181 section 9).
    fn push_owned(
        &mut self,
        section: Section,
        owner: Option<Owner>,
        (record_type, ttl_s): (RecordType, u32),
        data: &[u8],
    ) -> bool {
        let data_len =
            u16::try_from(data.len()).expect("record data is an address, or a name and some numbers");
        if self.out.len() + size_of::<u16>() + FIXED_LEN + data.len() > self.room {
            if section == Section::Answer {
                self.out[2] |= FLAG_TRUNCATED;
            }
            return false;
        }
        match owner {
            Some(Owner(pointer)) => self.out.extend_from_slice(&pointer.to_be_bytes()),
            None => self.out.push(0),
        }
        self.out.extend_from_slice(&u16::from(record_type).to_be_bytes());
        self.out.extend_from_slice(&[0, 1]);
        self.out.extend_from_slice(&ttl_s.to_be_bytes());
        self.out.extend_from_slice(&data_len.to_be_bytes());
        self.out.extend_from_slice(data);
        self.counts[section as usize] += 1;
        true
    }
}

/// Adds an OPT record; `error` is the info code of an extended error (RFC 8914).
pub fn write_opt(out: &mut Vec<u8>, code: u16, dnssec_ok: bool, error: Option<u16>) {
    /// Option code of an extended error.
    const EXTENDED_ERROR: u16 = 15;
    let high_code = u8::try_from(code >> 4).unwrap_or(u8::MAX);
    out.push(0);
    out.extend_from_slice(&u16::from(RecordType::OPT).to_be_bytes());
    out.extend_from_slice(&MAX_UDP_LEN.to_be_bytes());
    out.extend_from_slice(&[high_code, 0, if dnssec_ok { 0x80 } else { 0 }, 0]);
    match error {
        None => out.extend_from_slice(&[0, 0]),
        Some(error) => {
            for number in [6, EXTENDED_ERROR, 2, error] {
                out.extend_from_slice(&number.to_be_bytes());
            }
        }
    }
}

/// Adds a name as it is spelled.
pub fn write_name(out: &mut Vec<u8>, name: &Name) {
    for label in name {
        write_label(out, label);
    }
    out.push(0);
}

/// Only what is known here is said with authority: not a refusal or a failure.
fn write_header(out: &mut Vec<u8>, header: QueryHeader, code: ResponseCode, n_questions: u16) {
    let desired = if header.recursion_desired { FLAG_RECURSION_DESIRED } else { 0 };
    let knows = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
    let authoritative = if knows { FLAG_AUTHORITATIVE } else { 0 };
    let checking = if header.checking_disabled { FLAG_CHECKING_DISABLED } else { 0 };
    out.extend_from_slice(&header.id.to_be_bytes());
    out.push(FLAG_RESPONSE | (u8::from(header.op_code) << 3) | authoritative | desired);
    out.push(FLAG_RECURSION_AVAILABLE | checking | code.low());
    out.extend_from_slice(&n_questions.to_be_bytes());
    out.extend_from_slice(&[0; 6]);
    debug_assert_eq!(out.len(), HEADER_LEN, "a reply begins with its header");
}

fn write_label(out: &mut Vec<u8>, label: &[u8]) {
    let len = u8::try_from(label.len()).expect("labels that were decoded have at most 63 bytes");
    out.push(len);
    out.extend_from_slice(label);
}

/// The dotted parts as a name on the wire; `None` if one is empty or anything is too long.
fn encode_name(parts: &[&str]) -> Option<Vec<u8>> {
    let mut wire = Vec::with_capacity(MAX_NAME_LEN);
    for label in parts.iter().flat_map(|part| part.split('.')) {
        if label.is_empty() || label.len() > MAX_LABEL_LEN {
            return None;
        }
        write_label(&mut wire, label.as_bytes());
    }
    wire.push(0);
    (wire.len() <= MAX_NAME_LEN).then_some(wire)
}
