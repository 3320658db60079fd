//! What containers write to their standard output and error, and which of it is asked for.

use serde::{Deserialize, Serialize};

use crate::{TaskId, Timestamp};

/// One line, or a part of a long one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLine {
    pub at: Timestamp,
    pub stream: OutputStream,
    /// With its line feed; a part that others follow has none.
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
}

/// How far a container's output is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPosition {
    /// Names the file that is being written: it is begun anew when it is long.
    pub file: u64,
    /// Bytes of it.
    pub offset: u64,
}

/// Lines that follow each other, of those that are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputPiece {
    pub lines: Vec<OutputLine>,
    /// What comes next begins here.
    pub upto: OutputPosition,
}

/// A piece of one task's output, or why there is no more of it: what a node tells its managers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputBatch {
    pub task: TaskId,
    pub lines: Vec<OutputLine>,
    pub upto: Option<OutputPosition>,
    /// Words for the user.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// Which lines of a container are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputQuery {
    pub stdout: bool,
    pub stderr: bool,
    /// Lines of this moment and later ones.
    pub since: Option<Timestamp>,
    /// Lines of this moment and earlier ones.
    pub until: Option<Timestamp>,
    /// What is behind it, instead of a number of the last lines.
    pub after: Option<OutputPosition>,
    /// So many of the last lines that there are, whatever they are; `None` is all.
    pub tail: Option<usize>,
    /// Those too that are still to be written, until the container has ended.
    pub follow: bool,
}

impl OutputQuery {
    /// Is this one of those that are wanted, wherever it stands?
    pub fn wants(&self, line: &OutputLine) -> bool {
        let is_stream = match line.stream {
            OutputStream::Stdout => self.stdout,
            OutputStream::Stderr => self.stderr,
        };
        is_stream
            && self.since.is_none_or(|since| line.at >= since)
            && self.until.is_none_or(|until| line.at <= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_wanted_by_its_stream_and_time() {
        let query = OutputQuery {
            stdout: true,
            stderr: false,
            since: Some(Timestamp(10)),
            until: Some(Timestamp(20)),
            after: None,
            tail: None,
            follow: false,
        };
        let wanted = |at, stream| query.wants(&OutputLine { at: Timestamp(at), stream, text: Vec::new() });
        let wanted_at: Vec<i64> = (8..23).filter(|at| wanted(*at, OutputStream::Stdout)).collect();
        assert_eq!(wanted_at, (10..=20).collect::<Vec<_>>());
        assert!(!wanted(15, OutputStream::Stderr));
    }
}
