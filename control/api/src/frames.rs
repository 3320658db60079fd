//! Output of several streams on one connection: frames of a byte that says which, three of nothing, four of the length, and
//! the bytes (moby `pkg/stdcopy`). Of a terminal there is one stream, and no frames.

use std::fmt::Write as _;

use control_model::{OutputLine, OutputStream, Timestamp};

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// The daemon's own words: clients show them as an error.
const SYSTEM_ERROR: u8 = 3;

/// How lines are to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub timestamps: bool,
    pub details: bool,
    pub tty: bool,
}

impl Format {
    /// Some lines of one container.
    pub fn lines(self, lines: &[OutputLine], details: &str) -> Vec<u8> {
        let mut out = Vec::new();
        for line in lines {
            self.write(line, details, &mut out);
        }
        out
    }

    /// Appends a line; `details` are its container's (`key=value,…`).
    pub fn write(self, line: &OutputLine, details: &str, out: &mut Vec<u8>) {
        let mut head = String::new();
        if self.timestamps {
            // Writing to a text can't fail.
            let _ = write!(head, "{} ", nanoseconds(line.at));
        }
        if self.details {
            head.push_str(details);
            head.push(' ');
        }
        self.begin(number(line.stream), head.len() + line.text.len(), out);
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(&line.text);
    }

    /// Appends what the daemon itself has to say.
    pub fn write_error(self, words: &str, out: &mut Vec<u8>) {
        let text = format!("Error grabbing logs: {words}\n");
        self.begin(SYSTEM_ERROR, text.len(), out);
        out.extend_from_slice(text.as_bytes());
    }

    fn begin(self, stream: u8, length: usize, out: &mut Vec<u8>) {
        if !self.tty {
            header(stream, length, out);
        }
    }
}

/// Appends bytes of a stream as they are.
pub fn frame(stream: OutputStream, bytes: &[u8], tty: bool, out: &mut Vec<u8>) {
    if !tty {
        header(number(stream), bytes.len(), out);
    }
    out.extend_from_slice(bytes);
}

fn number(stream: OutputStream) -> u8 {
    match stream {
        OutputStream::Stdout => STDOUT,
        OutputStream::Stderr => STDERR,
    }
}

fn header(stream: u8, length: usize, out: &mut Vec<u8>) {
    // A piece is a part of what was read at once, and far from this.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    out.extend_from_slice(&[stream, 0, 0, 0]);
    out.extend_from_slice(&length.to_be_bytes());
}

/// Of fixed width, as Docker writes it (`2006-01-02T15:04:05.000000000Z`).
fn nanoseconds(at: Timestamp) -> String {
    let time = jiff::Timestamp::from_nanosecond(at.0.into()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{time:.9}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stream: OutputStream) -> OutputLine {
        OutputLine { at: Timestamp(1_500_000_000), stream, text: b"hello\n".to_vec() }
    }

    fn written(format: Format, stream: OutputStream) -> Vec<u8> {
        let mut out = Vec::new();
        format.write(&line(stream), "a=b,c=d", &mut out);
        out
    }

    #[test]
    fn frames_say_whose_they_are_and_how_long() {
        let plain = Format { timestamps: false, details: false, tty: false };
        assert_eq!(written(plain, OutputStream::Stdout), b"\x01\0\0\0\0\0\0\x06hello\n");
        assert_eq!(written(plain, OutputStream::Stderr), b"\x02\0\0\0\0\0\0\x06hello\n");
        let terminal = Format { tty: true, ..plain };
        assert_eq!(written(terminal, OutputStream::Stdout), b"hello\n");
        let mut error = Vec::new();
        plain.write_error("no", &mut error);
        assert_eq!(error, b"\x03\0\0\0\0\0\0\x18Error grabbing logs: no\n");
    }

    #[test]
    fn time_comes_before_details() {
        let all = Format { timestamps: true, details: true, tty: true };
        let text = written(all, OutputStream::Stdout);
        assert_eq!(String::from_utf8(text).unwrap(), "1970-01-01T00:00:01.500000000Z a=b,c=d hello\n");
    }
}
