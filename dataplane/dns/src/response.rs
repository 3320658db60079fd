//! Writes answers into a buffer that is used again for the next one. Pure.

use std::net::Ipv4Addr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::question::{HEADER_LEN, QueryHeader, Question};

/// Largest UDP answer when the client says nothing, bytes (RFC 1035 section 4.2.1).
const PLAIN_UDP_LEN: usize = 512;

/// Largest UDP answer and query, bytes, whatever the client says: what the loopback link carries in one piece and the
/// server's buffers hold.
pub const MAX_UDP_LEN: u16 = 4096;

/// Largest TCP answer, bytes: its length is 16 bits (RFC 1035 section 4.2.2).
const MAX_TCP_LEN: usize = 65_535;

/// Length of an OPT record without options, bytes (RFC 6891 section 6.1.2).
const OPT_LEN: usize = 11;

/// Points at the question's name, the first after the header (RFC 1035 section 4.1.4).
const QUESTION_NAME_POINTER: [u8; 2] = [0xc0, 0x0c];

const FLAG_RESPONSE: u8 = 0x80;
const FLAG_AUTHORITATIVE: u8 = 0x04;
const FLAG_TRUNCATED: u8 = 0x02;
const FLAG_RECURSION_DESIRED: u8 = 0x01;
const FLAG_RECURSION_AVAILABLE: u8 = 0x80;

/// Longest label and name, bytes (RFC 1035 section 2.3.4).
const MAX_LABEL_LEN: usize = 63;
const MAX_NAME_LEN: usize = 255;

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

/// An answer that is being written: header and question first, then records while there is room, then [`Self::finish`].
#[derive(Debug)]
pub struct Response<'a> {
    out: &'a mut Vec<u8>,
    /// Bytes that header, question and answers may have; the OPT record comes on top.
    room: usize,
    n_answers: u16,
    edns: bool,
    code: ResponseCode,
}

impl<'a> Response<'a> {
    /// Replaces `out` by the header and the question.
    pub fn begin(
        out: &'a mut Vec<u8>,
        question: &Question,
        code: ResponseCode,
        transport: Transport,
    ) -> Self {
        out.clear();
        write_header(out, question.header, code, 1);
        for label in &question.name {
            write_label(out, label);
        }
        out.push(0);
        out.extend_from_slice(&u16::from(question.record_type).to_be_bytes());
        out.extend_from_slice(&u16::from(question.class).to_be_bytes());
        let edns = question.edns.is_some();
        let room = max_response_len(question, transport) - if edns { OPT_LEN } else { 0 };
        Self { out, room, n_answers: 0, edns, code }
    }

    /// Adds an A record. False if it didn't fit: then the answer is marked as truncated.
    pub fn push_address(&mut self, address: Ipv4Addr, ttl_s: u32) -> bool {
        self.push_record(RecordType::A, ttl_s, &address.octets())
    }

    /// Adds a PTR record. A name that DNS can't carry is left out.
    pub fn push_pointer(&mut self, labels: &[&str], ttl_s: u32) {
        let Some(wire_name) = encode_name(labels) else { return };
        self.push_record(RecordType::PTR, ttl_s, &wire_name);
    }

    /// Adds the OPT record where the client sent one (RFC 6891 section 6.1.1), and the counts.
    pub fn finish(self) {
        if self.edns {
            let high_code = u8::try_from(u16::from(self.code) >> 4).unwrap_or(u8::MAX);
            self.out.push(0);
            self.out.extend_from_slice(&u16::from(RecordType::OPT).to_be_bytes());
            self.out.extend_from_slice(&MAX_UDP_LEN.to_be_bytes());
            self.out.extend_from_slice(&[high_code, 0, 0, 0, 0, 0]);
        }
        self.out[6..8].copy_from_slice(&self.n_answers.to_be_bytes());
        self.out[10..12].copy_from_slice(&u16::from(self.edns).to_be_bytes());
    }

    fn push_record(&mut self, record_type: RecordType, ttl_s: u32, data: &[u8]) -> bool {
        const FIXED_LEN: usize = 12;
        let data_len = u16::try_from(data.len()).expect("record data is an address or a name");
        if self.out.len() + FIXED_LEN + data.len() > self.room {
            self.out[2] |= FLAG_TRUNCATED;
            return false;
        }
        self.out.extend_from_slice(&QUESTION_NAME_POINTER);
        self.out.extend_from_slice(&u16::from(record_type).to_be_bytes());
        self.out.extend_from_slice(&[0, 1]);
        self.out.extend_from_slice(&ttl_s.to_be_bytes());
        self.out.extend_from_slice(&data_len.to_be_bytes());
        self.out.extend_from_slice(data);
        self.n_answers += 1;
        true
    }
}

fn write_header(out: &mut Vec<u8>, header: QueryHeader, code: ResponseCode, n_questions: u16) {
    let desired = if header.recursion_desired { FLAG_RECURSION_DESIRED } else { 0 };
    let authoritative = if n_questions == 1 { FLAG_AUTHORITATIVE } else { 0 };
    out.extend_from_slice(&header.id.to_be_bytes());
    out.push(FLAG_RESPONSE | (u8::from(header.op_code) << 3) | authoritative | desired);
    out.push(FLAG_RECURSION_AVAILABLE | code.low());
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
