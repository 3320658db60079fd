//! One query, read from bytes that a container sent. Pure; no bytes make it panic.

use hickory_proto::op::{Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, DecodeError};

/// Records besides the question that a query may carry: OPT and TSIG are two, the rest is room.
const MAX_EXTRA_RECORDS: u16 = 8;

/// Length of a DNS header, bytes (RFC 1035 section 4.1.1).
pub const HEADER_LEN: usize = 12;

/// What has to come back in the header of any reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryHeader {
    pub id: u16,
    pub op_code: OpCode,
    pub recursion_desired: bool,
    /// The client says that it understands the AD bit (RFC 6840 section 5.7).
    pub authentic_data: bool,
    /// The client wants answers that fail validation too (RFC 4035 section 3.2.2).
    pub checking_disabled: bool,
}

/// A well-formed query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub header: QueryHeader,
    pub name: Name,
    pub record_type: RecordType,
    pub class: DNSClass,
    pub edns: Option<ClientEdns>,
}

/// The OPT record of a query (RFC 6891 section 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEdns {
    /// Largest UDP payload that the client takes, bytes.
    pub max_payload: u16,
    pub version: u8,
    pub dnssec_ok: bool,
}

/// Why bytes are no query that can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAQuery {
    /// Too short for an answer to be addressed, or itself an answer: replying would feed a loop.
    Silence,
    /// To be refused with this code.
    Refuse(QueryHeader, ResponseCode),
}

impl Question {
    /// Reads a query; what follows the records is ignored.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotAQuery> {
        let mut decoder = BinDecoder::new(bytes);
        let header = Header::read(&mut decoder).map_err(|_| NotAQuery::Silence)?;
        if header.metadata.message_type == MessageType::Response {
            return Err(NotAQuery::Silence);
        }
        let query_header = QueryHeader {
            id: header.metadata.id,
            op_code: header.metadata.op_code,
            recursion_desired: header.metadata.recursion_desired,
            authentic_data: header.metadata.authentic_data,
            checking_disabled: header.metadata.checking_disabled,
        };
        let refuse = |code| NotAQuery::Refuse(query_header, code);
        if header.metadata.op_code != OpCode::Query {
            return Err(refuse(ResponseCode::NotImp));
        }
        let counts = header.counts;
        let n_extra = counts.answers.saturating_add(counts.authorities).saturating_add(counts.additionals);
        if counts.queries != 1 || n_extra > MAX_EXTRA_RECORDS {
            return Err(refuse(ResponseCode::FormErr));
        }
        let query = Query::read(&mut decoder).map_err(|_| refuse(ResponseCode::FormErr))?;
        let edns = read_edns(&mut decoder, &header).map_err(|_| refuse(ResponseCode::FormErr))?;
        Ok(Self {
            header: query_header,
            name: query.name().clone(),
            record_type: query.query_type(),
            class: query.query_class(),
            edns,
        })
    }
}

/// The OPT record among the records after the question.
fn read_edns(decoder: &mut BinDecoder<'_>, header: &Header) -> Result<Option<ClientEdns>, DecodeError> {
    let counts = header.counts;
    if counts.answers == 0 && counts.authorities == 0 && counts.additionals == 0 {
        return Ok(None);
    }
    let op_code = header.metadata.op_code;
    for n_records in [counts.answers, counts.authorities] {
        Message::read_records(decoder, usize::from(n_records), false, op_code)?;
    }
    let (_, edns, _) = Message::read_records(decoder, usize::from(counts.additionals), true, op_code)?;
    Ok(edns.map(|edns| ClientEdns {
        max_payload: edns.max_payload(),
        version: edns.version(),
        dnssec_ok: edns.flags().dnssec_ok,
    }))
}
