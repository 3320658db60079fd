//! One query to one resolver.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Header, MessageType, Query, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::question::{HEADER_LEN, Question};
use crate::response::Transport;

/// How long a resolver may take altogether: less than the 5 s after which glibc and musl give up on us.
const EXCHANGE_TIMEOUT: Duration = Duration::from_millis(3500);

/// After it a UDP query is sent again.
const RESEND_PERIOD: Duration = Duration::from_secs(1);

/// Smallest and largest UDP answer that is waited for, bytes.
const MIN_BUFFER_LEN: u16 = 512;

/// Whom to ask, and how.
#[derive(Debug, Clone, Copy)]
pub struct Upstream {
    pub resolver: SocketAddr,
    pub transport: Transport,
}

/// What a resolver said.
#[derive(Debug)]
pub struct UpstreamAnswer {
    /// With the id of the query that came in.
    pub bytes: Vec<u8>,
    /// It says what there is or that there is nothing, rather than that it can't tell.
    pub decides: bool,
}

/// A resolver did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("{resolver} can't be asked: {source}")]
    Io { resolver: SocketAddr, source: io::Error },
    #[error("{0} does not answer")]
    TimedOut(SocketAddr),
}

/// Asks `upstream` the query, under an id and from a port that nobody can guess.
pub async fn exchange(
    upstream: Upstream,
    question: Question,
    mut query: Vec<u8>,
) -> Result<UpstreamAnswer, ExchangeError> {
    let Upstream { resolver, transport } = upstream;
    let id: u16 = rand::random();
    query[..2].copy_from_slice(&id.to_be_bytes());
    let answered = async {
        match transport {
            Transport::Udp => ask_udp(resolver, &question, &query).await,
            Transport::Tcp => ask_tcp(resolver, &question, &query).await,
        }
    };
    let answered =
        timeout(EXCHANGE_TIMEOUT, answered).await.map_err(|_| ExchangeError::TimedOut(resolver))?;
    let (mut bytes, decides) = answered.map_err(|source| ExchangeError::Io { resolver, source })?;
    bytes[..2].copy_from_slice(&question.header.id.to_be_bytes());
    Ok(UpstreamAnswer { bytes, decides })
}

async fn ask_udp(resolver: SocketAddr, question: &Question, query: &[u8]) -> io::Result<(Vec<u8>, bool)> {
    let any: SocketAddr = match resolver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    let len = question.edns.map_or(MIN_BUFFER_LEN, |edns| edns.max_payload.max(MIN_BUFFER_LEN));
    let mut buffer = vec![0; usize::from(len)];
    loop {
        socket.send(query).await?;
        let resend_at = Instant::now() + RESEND_PERIOD;
        while let Ok(received) = timeout_at(resend_at, socket.recv(&mut buffer)).await {
            let received = &buffer[..received?];
            if let Some(decides) = judge(received, query, question) {
                return Ok((received.to_vec(), decides));
            }
        }
    }
}

async fn ask_tcp(resolver: SocketAddr, question: &Question, query: &[u8]) -> io::Result<(Vec<u8>, bool)> {
    let mut stream = TcpStream::connect(resolver).await?;
    let len = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), query].concat()).await?;
    let len = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(len)];
    stream.read_exact(&mut bytes).await?;
    let decides = judge(&bytes, query, question);
    decides.map(|decides| (bytes, decides)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether `bytes` decide the question; `None` if they are no answer to it at all (RFC 5452 section 9.1).
fn judge(bytes: &[u8], query: &[u8], question: &Question) -> Option<bool> {
    if bytes.len() < HEADER_LEN || bytes[..2] != query[..2] {
        return None;
    }
    let mut decoder = BinDecoder::new(bytes);
    let header = Header::read(&mut decoder).ok()?;
    if header.metadata.message_type != MessageType::Response {
        return None;
    }
    let code = header.metadata.response_code;
    if header.counts.queries == 0 {
        // A refusal may come without the question; it decides nothing.
        return (code != ResponseCode::NoError && code != ResponseCode::NXDomain).then_some(false);
    }
    let asked = Query::read(&mut decoder).ok()?;
    let is_answer = asked.name() == &question.name
        && asked.query_type() == question.record_type
        && asked.query_class() == question.class;
    is_answer.then_some(matches!(code, ResponseCode::NoError | ResponseCode::NXDomain))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, OpCode};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    use super::*;

    fn query() -> Vec<u8> {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii("a.example.").unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    /// What is made of an answer that differs from a good one in one byte.
    fn judge_with(at: usize, byte: u8) -> Option<bool> {
        let (query, question) = (query(), Question::parse(&query()).unwrap());
        let mut answer = query.clone();
        answer[2] |= 0x80;
        answer[at] = byte;
        judge(&answer, &query, &question)
    }

    #[test]
    fn only_an_answer_to_the_question_counts() {
        assert_eq!(judge_with(2, 0x80), Some(true), "no records");
        assert_eq!(judge_with(3, 3), Some(true), "no such name");
        assert_eq!(judge_with(3, 2), Some(false), "a failure");
        assert_eq!(judge_with(3, 5), Some(false), "a refusal");
        assert_eq!(judge_with(13, b'A'), Some(true), "another spelling");
        assert_eq!(judge_with(0, 0x99), None, "another id");
        assert_eq!(judge_with(2, 0), None, "no answer");
        assert_eq!(judge_with(13, b'b'), None, "another name");
        assert_eq!(judge_with(query().len() - 3, 28), None, "another type");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_survived(mut tail in prop::collection::vec(any::<u8>(), 0..100)) {
            let query = query();
            let mut bytes = query[..2].to_vec();
            bytes.append(&mut tail);
            let _ = judge(&bytes, &query, &Question::parse(&query).unwrap());
        }
    }
}
