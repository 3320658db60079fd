//! Questions to other resolvers, and their answers: what is asked on behalf of a client ([`write_query`]), what of an
//! answer is trusted and kept ([`Relayed::read`]), and how it is given to a client ([`Relayed::write`]). Pure.
//!
//! Records are passed on as the bytes that they came in, whatever their type: only times, and the parts that are between
//! two neighbours (id, flags, the spelling of the question, OPT), are made anew. No bytes make it panic.

use std::net::SocketAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};

use crate::question::{HEADER_LEN, Question};
use crate::response::{
    FLAG_AUTHENTIC_DATA, FLAG_AUTHORITATIVE, FLAG_CHECKING_DISABLED, FLAG_RECURSION_AVAILABLE,
    FLAG_RECURSION_DESIRED, FLAG_RESPONSE, FLAG_TRUNCATED, OPT_LEN, Transport, max_response_len, write_name,
    write_opt,
};

mod walk;

use self::walk::{Cursor, Record};

/// UDP payload that other resolvers may send, bytes: what no path fragments (DNS flag day 2020).
const MAX_UPSTREAM_PAYLOAD: u16 = 1232;

/// Records of one answer: a message of 64 KiB has no more than some five thousand of the smallest.
const MAX_RECORDS: usize = 6000;

/// Info codes of extended errors (RFC 8914 sections 4.4 and 4.20).
const STALE_ANSWER: u16 = 3;
const STALE_DENIAL: u16 = 19;

/// Time of a record in a stale answer, seconds (RFC 8767 section 5.2).
const STALE_TTL_S: u32 = 30;

/// The query to another resolver, under `id`: of the client's only the question and what it means travel on, EDNS is
/// between two neighbours (RFC 6891 section 6.2.6). `edns` is false for a resolver that knows none.
pub fn write_query(question: &Question, id: u16, edns: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + 64 + OPT_LEN);
    let header = question.header;
    out.extend_from_slice(&id.to_be_bytes());
    out.push(if header.recursion_desired { FLAG_RECURSION_DESIRED } else { 0 });
    // AD asks for the AD bit in the answer (RFC 6840 section 5.7): it is kept for all, and shown to those who ask.
    out.push(FLAG_AUTHENTIC_DATA | if header.checking_disabled { FLAG_CHECKING_DISABLED } else { 0 });
    out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
    write_name(&mut out, &question.name);
    out.extend_from_slice(&u16::from(question.record_type).to_be_bytes());
    out.extend_from_slice(&u16::from(question.class).to_be_bytes());
    if edns {
        write_opt(&mut out, 0, question.edns.is_some_and(|edns| edns.dnssec_ok), None);
        let payload_at = out.len() - OPT_LEN + 3;
        out[payload_at..payload_at + 2].copy_from_slice(&MAX_UPSTREAM_PAYLOAD.to_be_bytes());
    }
    out
}

/// How old an answer is when it is given to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// Within its time; seconds since it came.
    Fresh(u32),
    /// Past its time, and there is no better (RFC 8767).
    Stale,
}

/// An answer of another resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    /// Without OPT; the header's counts say so.
    bytes: Box<[u8]>,
    question_end: usize,
    records: Box<[Kept]>,
    /// With the high bits of the OPT record (RFC 6891 section 6.1.3).
    code: u16,
    resolver: Option<SocketAddr>,
}

/// A record's place in the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    section: usize,
    ttl_at: usize,
    end: usize,
}

impl Relayed {
    /// Reads an answer to `question` that was asked under `id`; `None` if it is none (RFC 5452 section 9.1), or broken.
    pub fn read(bytes: &[u8], question: &Question, id: u16) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let header = cursor.take(HEADER_LEN)?;
        let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let op_code = (header[2] >> 3) & 0x0f;
        if header[..2] != id.to_be_bytes() || header[2] & FLAG_RESPONSE == 0 || op_code != 0 {
            return None;
        }
        let low_code = u16::from(header[3] & 0x0f);
        if count(4) == 0 {
            // A refusal may come without the question.
            return (low_code != 0 && low_code != u16::from(ResponseCode::NXDomain))
                .then(|| Self::bare(header, question, low_code));
        }
        (count(4) == 1 && is_question(&mut cursor, question)).then_some(())?;
        let counts = [count(6), count(8), count(10)];
        let question_end = cursor.position();
        let is_cut = header[2] & FLAG_TRUNCATED != 0;
        let (records, opt) = read_records(&mut cursor, counts, is_cut)?;
        let end = records.last().map_or(question_end, |kept| kept.end);
        let high_code = opt.map_or(0, |opt| (opt.ttl_s >> 24 & 0xff) << 4);
        let mut this = Self {
            bytes: bytes[..end].into(),
            question_end,
            records: records.into(),
            code: low_code | u16::try_from(high_code).unwrap_or(0),
            resolver: None,
        };
        this.write_counts();
        Some(this)
    }

    /// A code and nothing else.
    fn bare(header: &[u8], question: &Question, code: u16) -> Self {
        let mut bytes = header.to_vec();
        bytes[4..].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        write_name(&mut bytes, &question.name);
        bytes.extend_from_slice(&u16::from(question.record_type).to_be_bytes());
        bytes.extend_from_slice(&u16::from(question.class).to_be_bytes());
        let question_end = bytes.len();
        Self { bytes: bytes.into(), question_end, records: Box::default(), code, resolver: None }
    }

    fn write_counts(&mut self) {
        for section in 0..3 {
            let n = self.records.iter().filter(|kept| kept.section == section).count();
            let n = u16::try_from(n).expect("no more than the limit of records");
            self.bytes[6 + 2 * section..8 + 2 * section].copy_from_slice(&n.to_be_bytes());
        }
    }

    /// The same, told by `resolver`.
    #[must_use]
    pub fn told_by(mut self, resolver: SocketAddr) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Who told it, where that is known.
    pub fn resolver(&self) -> Option<SocketAddr> {
        self.resolver
    }

    pub fn code(&self) -> ResponseCode {
        ResponseCode::from(u8::try_from(self.code >> 4).unwrap_or(u8::MAX), (self.code & 0x0f) as u8)
    }

    /// It says what there is or that there is nothing, rather than that the resolver can't tell.
    pub fn decides(&self) -> bool {
        matches!(self.code(), ResponseCode::NoError | ResponseCode::NXDomain)
    }

    /// The resolver doesn't know EDNS, or not so (RFC 6891 section 7).
    pub fn rejects_edns(&self) -> bool {
        matches!(self.code(), ResponseCode::FormErr | ResponseCode::NotImp) || self.code == 16
    }

    pub fn is_truncated(&self) -> bool {
        self.bytes[2] & FLAG_TRUNCATED != 0
    }

    /// Room that it takes, bytes.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Seconds for which the records of its answer may be kept; for a denial those of its SOA (RFC 2308 section 5).
    /// `None` for one that is cut off, an error, or a denial without SOA.
    pub fn time_to_keep_s(&self) -> Option<Lifetime> {
        if self.is_truncated() || !self.decides() {
            return None;
        }
        let answers = self.records.iter().filter(|kept| kept.section == 0);
        let shortest_s = answers.clone().map(|kept| self.ttl_s(*kept)).min();
        let has_asked_type = answers.clone().any(|kept| self.answers_type(*kept));
        if self.code() == ResponseCode::NXDomain || !has_asked_type {
            let negative_s = self.negative_ttl_s()?;
            return Some(Lifetime::Denied(shortest_s.map_or(negative_s, |s| s.min(negative_s))));
        }
        shortest_s.map(Lifetime::Found)
    }

    /// The record is of the type of the question, or the question is for any.
    fn answers_type(&self, kept: Kept) -> bool {
        let asked = [self.bytes[self.question_end - 4], self.bytes[self.question_end - 3]];
        let record_type = [self.bytes[kept.ttl_at - 4], self.bytes[kept.ttl_at - 3]];
        record_type == asked || asked == u16::from(RecordType::ANY).to_be_bytes()
    }

    fn ttl_s(&self, kept: Kept) -> u32 {
        let bytes = &self.bytes[kept.ttl_at..kept.ttl_at + 4];
        let ttl_s = u32::from_be_bytes(bytes.try_into().expect("four bytes"));
        // A time with the highest bit set means none (RFC 2181 section 8).
        if ttl_s > i32::MAX.unsigned_abs() { 0 } else { ttl_s }
    }

    fn negative_ttl_s(&self) -> Option<u32> {
        let is_soa = |kept: &&Kept| {
            kept.section == 1
                && self.bytes[kept.ttl_at - 4..kept.ttl_at - 2] == u16::from(RecordType::SOA).to_be_bytes()
                && kept.end - kept.ttl_at >= 6 + 22
        };
        let soa = self.records.iter().find(is_soa)?;
        let minimum = &self.bytes[soa.end - 4..soa.end];
        Some(self.ttl_s(*soa).min(u32::from_be_bytes(minimum.try_into().expect("four bytes"))))
    }

    /// Replaces `out` by the reply to `question`, which has the name, type and class of the one that was asked.
    pub fn write(&self, question: &Question, transport: Transport, age: Age, out: &mut Vec<u8>) {
        let error = match age {
            Age::Fresh(_) => None,
            Age::Stale if self.code() == ResponseCode::NXDomain => Some(STALE_DENIAL),
            Age::Stale => Some(STALE_ANSWER),
        };
        let opt_len = question.edns.map_or(0, |_| OPT_LEN + if error.is_some() { 6 } else { 0 });
        let room = max_response_len(question, transport).saturating_sub(opt_len);
        let n_records = self.records.iter().take_while(|kept| kept.end <= room).count();
        let records = &self.records[..n_records];
        out.clear();
        out.extend_from_slice(&self.bytes[..records.last().map_or(self.question_end, |kept| kept.end)]);
        for kept in records {
            let ttl_s = match age {
                Age::Fresh(age_s) => self.ttl_s(*kept).saturating_sub(age_s),
                Age::Stale => STALE_TTL_S,
            };
            out[kept.ttl_at..kept.ttl_at + 4].copy_from_slice(&ttl_s.to_be_bytes());
        }
        self.write_head(question, records, out);
        if let Some(edns) = question.edns {
            write_opt(out, self.code, edns.dnssec_ok, error);
            let n_additionals = u16::from_be_bytes([out[10], out[11]]) + 1;
            out[10..12].copy_from_slice(&n_additionals.to_be_bytes());
        }
    }

    /// The client's id, flags and spelling, and what is left of the records.
    fn write_head(&self, question: &Question, records: &[Kept], out: &mut [u8]) {
        let header = question.header;
        out[..2].copy_from_slice(&header.id.to_be_bytes());
        out[2] &= !(FLAG_AUTHORITATIVE | FLAG_RECURSION_DESIRED);
        if header.recursion_desired {
            out[2] |= FLAG_RECURSION_DESIRED;
        }
        out[3] |= FLAG_RECURSION_AVAILABLE;
        out[3] &= !FLAG_CHECKING_DISABLED;
        if header.checking_disabled {
            out[3] |= FLAG_CHECKING_DISABLED;
        }
        if !(header.authentic_data || question.edns.is_some_and(|edns| edns.dnssec_ok)) {
            out[3] &= !FLAG_AUTHENTIC_DATA;
        }
        let mut at = HEADER_LEN;
        for label in &question.name {
            out[at + 1..=at + label.len()].copy_from_slice(label);
            at += 1 + label.len();
        }
        for section in 0..3 {
            let count = |records: &[Kept]| records.iter().filter(|kept| kept.section == section).count();
            let n = count(records);
            if section < 2 && n < count(&self.records) {
                out[2] |= FLAG_TRUNCATED;
            }
            let n = u16::try_from(n).expect("no more than the limit of records");
            out[6 + 2 * section..8 + 2 * section].copy_from_slice(&n.to_be_bytes());
        }
    }
}

/// How long an answer may be kept, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    Found(u32),
    Denied(u32),
}

/// Whether the question that came back is the one that was asked, in any spelling.
fn is_question(cursor: &mut Cursor<'_>, question: &Question) -> bool {
    let expected =
        [u16::from(question.record_type).to_be_bytes(), u16::from(question.class).to_be_bytes()].concat();
    takes_name(cursor, &question.name) && cursor.take(4).is_some_and(|bytes| bytes == expected)
}

/// Whether this name comes next, spelled out: there is nothing before a question that it could point at.
fn takes_name(cursor: &mut Cursor<'_>, name: &Name) -> bool {
    for label in name {
        let len = cursor.take(1).map(|len| usize::from(len[0]));
        if len != Some(label.len())
            || !cursor.take(label.len()).is_some_and(|l| l.eq_ignore_ascii_case(label))
        {
            return false;
        }
    }
    cursor.take(1) == Some(&[0])
}

/// The records but OPT, and OPT. What is behind OPT is dropped with it: it may point at names by their place. An answer
/// that was cut off may end anywhere.
fn read_records(
    cursor: &mut Cursor<'_>,
    counts: [usize; 3],
    is_cut: bool,
) -> Option<(Vec<Kept>, Option<Record>)> {
    if counts.iter().sum::<usize>() > MAX_RECORDS {
        return None;
    }
    let mut records: Vec<Kept> = Vec::new();
    let mut opt = None;
    for (section, n) in counts.into_iter().enumerate() {
        for _ in 0..n {
            let record = match cursor.record() {
                Some(record) => record,
                None if is_cut => return Some((records, opt)),
                None => return None,
            };
            if record.kind == u16::from(RecordType::OPT) {
                (section == 2 && opt.is_none()).then_some(())?;
                opt = Some(record);
            } else if opt.is_none() {
                records.push(Kept { section, ttl_at: record.ttl_at, end: record.end });
            }
        }
    }
    Some((records, opt))
}

#[cfg(test)]
mod tests;
