//! As much of Redis' protocol (RESP2) as these servers speak.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Longest text, and most items of a list.
const LEN_MAX: usize = 1 << 20;

/// What Redis answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Text(String),
    Number(i64),
    /// No such thing, or nothing in time.
    Nothing,
    List(Vec<Self>),
}

/// A connection.
pub struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    /// `password` for servers that want one.
    pub async fn connect(address: &str, password: Option<&str>) -> Result<Self> {
        let stream = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await;
        let stream = stream.context("no answer").and_then(|result| Ok(result?));
        let stream = stream.with_context(|| format!("can't reach Redis at {address}"))?;
        stream.set_nodelay(true)?;
        let mut redis = Self { stream: BufReader::new(stream) };
        if let Some(password) = password {
            redis.command(&["AUTH", password]).await?;
        }
        Ok(redis)
    }

    /// Sends a command and waits for its answer; an error of Redis' is one here.
    pub async fn command(&mut self, words: &[&str]) -> Result<Reply> {
        self.stream.write_all(&encoded(words)).await?;
        reply(&mut self.stream).await.with_context(|| format!("Redis did not {}", words[0]))
    }
}

/// A command is a list of texts.
fn encoded(words: &[&str]) -> Vec<u8> {
    let texts = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), texts.collect::<String>()).into_bytes()
}

async fn reply(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Reply> {
    let line = line(stream).await?;
    let Some(n_items) = line.strip_prefix('*') else { return value(&line, stream).await };
    let Some(n_items) = length(n_items)? else { return Ok(Reply::Nothing) };
    let mut items = Vec::new();
    for _ in 0..n_items {
        let line = self::line(stream).await?;
        items.push(value(&line, stream).await?);
    }
    Ok(Reply::List(items))
}

/// What begins with this line and is no list.
async fn value(line: &str, stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Reply> {
    let (kind, rest) = line.split_at_checked(1).context("an empty answer")?;
    Ok(match kind {
        "+" => Reply::Text(rest.to_owned()),
        ":" => Reply::Number(rest.parse()?),
        "$" => match length(rest)? {
            Some(len) => Reply::Text(text(len, stream).await?),
            None => Reply::Nothing,
        },
        "-" => bail!("{rest}"),
        _ => bail!("an answer of an unknown kind: {line:?}"),
    })
}

async fn text(len: usize, stream: &mut (impl AsyncBufRead + Unpin)) -> Result<String> {
    let mut bytes = vec![0; len + 2];
    stream.read_exact(&mut bytes).await?;
    ensure!(bytes.ends_with(b"\r\n"), "a text of another length than it said");
    bytes.truncate(len);
    Ok(String::from_utf8(bytes)?)
}

/// `-1` stands for nothing.
fn length(text: &str) -> Result<Option<usize>> {
    if text == "-1" {
        return Ok(None);
    }
    let len = text.parse()?;
    ensure!(len <= LEN_MAX, "an answer of {len}");
    Ok(Some(len))
}

async fn line(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<String> {
    let mut line = String::new();
    stream.take(LEN_MAX as u64).read_line(&mut line).await?;
    Ok(line.strip_suffix("\r\n").context("the connection ended")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(mut bytes: &[u8]) -> Result<Reply> {
        reply(&mut bytes).await
    }

    #[test]
    fn commands_are_lists_of_texts() {
        assert_eq!(
            encoded(&["RPUSH", "votes", "ä"]),
            "*3\r\n$5\r\nRPUSH\r\n$5\r\nvotes\r\n$2\r\nä\r\n".as_bytes()
        );
    }

    #[tokio::test]
    async fn answers_of_all_kinds_are_read() {
        assert_eq!(read(b"+OK\r\n").await.unwrap(), Reply::Text("OK".into()));
        assert_eq!(read(b":-7\r\n").await.unwrap(), Reply::Number(-7));
        assert_eq!(read(b"$4\r\na\r\nb\r\n").await.unwrap(), Reply::Text("a\r\nb".into()));
        assert_eq!(read(b"$-1\r\n").await.unwrap(), Reply::Nothing);
        assert_eq!(read(b"*-1\r\n").await.unwrap(), Reply::Nothing);
        let list = Reply::List(vec![Reply::Text("votes".into()), Reply::Number(1)]);
        assert_eq!(read(b"*2\r\n$5\r\nvotes\r\n:1\r\n").await.unwrap(), list);
    }

    #[tokio::test]
    async fn errors_and_broken_answers_are_errors() {
        assert_eq!(read(b"-NOAUTH who are you\r\n").await.unwrap_err().to_string(), "NOAUTH who are you");
        for bytes in [&b""[..], b"+OK", b"$4\r\nabc", b"$1\r\nabc", b"?\r\n", b"\r\n", b"$9999999999\r\n"] {
            assert!(read(bytes).await.is_err(), "{bytes:?}");
        }
    }
}
