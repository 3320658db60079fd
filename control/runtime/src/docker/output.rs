//! What containers write, out of the engine's logs.

use std::io;

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptions;
use control_model::{OutputLine, OutputPiece, OutputPosition, OutputQuery, OutputStream, Timestamp};
use futures::{Stream, TryStreamExt as _};

use super::{DockerEngine, words};

const NANOS: i64 = 1_000_000_000;

impl DockerEngine {
    /// What a container (id or name) writes, as far as `query` wants it. A position is the time of its last line: the engine's
    /// log knows no other.
    pub fn output(
        &self,
        container: &str,
        query: OutputQuery,
    ) -> impl Stream<Item = io::Result<OutputPiece>> + Send + 'static {
        let after = query.after.and_then(|position| i64::try_from(position.offset).ok());
        let since = query.since.map(|since| since.0).into_iter().chain(after).max();
        let seconds = |at: i64| i32::try_from(at.div_euclid(NANOS)).unwrap_or(i32::MAX);
        let options = LogsOptions {
            follow: query.follow,
            stdout: true,
            stderr: true,
            since: since.map_or(0, seconds),
            // The second is over at its end.
            until: query.until.map_or(0, |until| seconds(until.0).saturating_add(1)),
            timestamps: true,
            tail: match (after, query.tail) {
                (None, Some(n)) => n.to_string(),
                _ => "all".to_owned(),
            },
        };
        let client = self.client().clone();
        let pieces = client.logs(container, Some(options)).map_err(|error| io::Error::other(words(&error)));
        pieces.try_filter_map(move |output| {
            let line = line_of(output).filter(|line| after.is_none_or(|after| line.at.0 > after));
            let piece = line.map(|line| {
                let upto = OutputPosition { file: 0, offset: u64::try_from(line.at.0).unwrap_or(0) };
                let lines = if query.wants(&line) { vec![line] } else { Vec::new() };
                OutputPiece { lines, upto }
            });
            std::future::ready(Ok(piece))
        })
    }
}

/// A line and the time before it (RFC 3339); `None` for what has none.
fn line_of(output: LogOutput) -> Option<OutputLine> {
    let stream = match output {
        LogOutput::StdErr { .. } => OutputStream::Stderr,
        LogOutput::StdOut { .. } | LogOutput::StdIn { .. } | LogOutput::Console { .. } => {
            OutputStream::Stdout
        }
    };
    let bytes = output.into_bytes();
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let at: jiff::Timestamp = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let at = Timestamp(i64::try_from(at.as_nanosecond()).ok()?);
    Some(OutputLine { at, stream, text: bytes[space + 1..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_time_before_it() {
        let line = |text: &'static str| line_of(LogOutput::StdErr { message: text.into() });
        let read = line("1970-01-01T00:00:01.000000002Z a b\n").unwrap();
        assert_eq!((read.at, read.stream), (Timestamp(1_000_000_002), OutputStream::Stderr));
        assert_eq!(read.text, b"a b\n");
        assert_eq!(line("no time\n"), None);
    }
}
