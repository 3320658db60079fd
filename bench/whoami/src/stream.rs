//! `GET /stream?seconds=S&rate=BYTES_PER_S`: a long answer, sent slowly, whose every byte follows from its position. What
//! receives it sees at once whether the connection lived on, and whether anything was lost or mixed up.

use std::time::Duration;

/// Longest answer: nothing that tests disrupt takes longer.
const SECONDS_MAX: u32 = 600;
/// Fastest: a hundred of these are still no load.
const RATE_MAX: u32 = 1 << 20;
/// Chunks a second.
const CHUNKS_PER_S: u32 = 10;
/// Between two chunks.
pub const CHUNK_PERIOD: Duration = Duration::from_millis(1000 / CHUNKS_PER_S as u64);

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRequest {
    /// Bytes of each chunk.
    pub chunk_len: usize,
    pub n_chunks: u32,
}

/// `None` if the target is another one; an error says what is wrong with it.
pub fn parse(target: &str) -> Option<Result<StreamRequest, String>> {
    let query = target.strip_prefix("/stream")?;
    let query = query.strip_prefix('?').or(query.is_empty().then_some(""))?;
    Some(parse_query(query))
}

impl StreamRequest {
    /// Bytes of the whole answer.
    pub fn len(self) -> u64 {
        u64::from(self.n_chunks) * self.chunk_len as u64
    }

    pub fn chunk(self, number: u32) -> Vec<u8> {
        let begin = u64::from(number) * self.chunk_len as u64;
        (begin..begin + self.chunk_len as u64).map(byte_at).collect()
    }
}

/// The byte at a position: no period that a lost segment could hide in.
fn byte_at(position: u64) -> u8 {
    position.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

fn parse_query(query: &str) -> Result<StreamRequest, String> {
    let (mut seconds, mut rate) = (10, 10_000);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (field, max) = match name {
            "seconds" => (&mut seconds, SECONDS_MAX),
            "rate" => (&mut rate, RATE_MAX),
            _ => return Err(format!("unknown parameter {name}\n")),
        };
        let valid = value.parse().ok().filter(|value| (1..=max).contains(value));
        *field = valid.ok_or_else(|| format!("{name} is a number from 1 to {max}\n"))?;
    }
    let chunk_len = usize::try_from(rate.div_ceil(CHUNKS_PER_S)).expect("the rate is bounded");
    Ok(StreamRequest { chunk_len, n_chunks: seconds * CHUNKS_PER_S })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_and_bounded() {
        assert_eq!(parse("/"), None);
        assert_eq!(parse("/streams"), None);
        let stream = parse("/stream?seconds=3&rate=1000").expect("a stream").expect("good");
        assert_eq!((stream.chunk_len, stream.n_chunks, stream.len()), (100, 30, 3000));
        assert!(parse("/stream").expect("a stream").is_ok());
        for bad in ["seconds=0", "seconds=601", "rate=x", "rate=1048577", "seconds", "more=1"] {
            assert!(parse(&format!("/stream?{bad}")).expect("a stream").is_err(), "{bad}");
        }
    }

    #[test]
    fn chunks_join_to_one_pattern() {
        let (small, large) =
            (StreamRequest { chunk_len: 7, n_chunks: 4 }, StreamRequest { chunk_len: 28, n_chunks: 1 });
        let joined: Vec<u8> = (0..4).flat_map(|number| small.chunk(number)).collect();
        assert_eq!(joined, large.chunk(0));
        assert_ne!(joined[..14], joined[14..]);
    }
}
