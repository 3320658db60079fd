//! A line as a log server reads it. The fields are those of Docker's drivers (moby `daemon/logger`), so that what looks for them
//! finds them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use control_model::log_driver::{Compression, Destination, Logging, Server, SyslogFormat, Tagged};
use control_model::{OutputLine, OutputStream, Timestamp};
use flate2::write::{GzEncoder, ZlibEncoder};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::image::sha256_digest;

/// Severities of RFC 5424, table 2.
const ERROR: u8 = 3;
const INFORMATIONAL: u8 = 6;
/// Bytes of a datagram that no path to a server cuts, and of its head where it is one of several (the GELF specification, "GELF
/// via UDP").
const MAX_DATAGRAM_LEN: usize = 1420;
const CHUNK_MAGIC: [u8; 2] = [0x1e, 0x0f];
const CHUNK_HEAD_LEN: usize = 12;
const MAX_CHUNKS: usize = 128;
const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// Whose lines they are.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub container_id: String,
    pub name: String,
    pub image: String,
    pub image_id: String,
    pub command: String,
    pub created_at: Timestamp,
    pub hostname: String,
    /// The daemon's.
    pub pid: u32,
    pub labels: BTreeMap<String, String>,
    /// `KEY=value`.
    pub env: Vec<String>,
}

/// Makes messages for one destination out of the lines of one container.
#[derive(Debug)]
pub(crate) struct Encoder {
    destination: Destination,
    origin: Origin,
    tag: String,
    /// Labels and variables that were asked for.
    extra: BTreeMap<String, String>,
}

impl Encoder {
    /// `None` if nobody is told.
    pub fn new(logging: &Logging, origin: Origin) -> Option<Self> {
        let destination = logging.destination.clone()?;
        let tag = logging.tag.expand(&Tagged {
            container_id: &origin.container_id,
            name: &origin.name,
            image_id: &origin.image_id,
            image: &origin.image,
        });
        let labels =
            logging.labels.iter().filter_map(|key| Some((key.clone(), origin.labels.get(key)?.clone())));
        let variables = origin.env.iter().filter_map(|entry| entry.split_once('='));
        let wanted = variables.filter(|(key, _)| logging.env.iter().any(|name| name == key));
        let extra = labels.chain(wanted.map(|(key, value)| (key.to_owned(), value.to_owned()))).collect();
        Some(Self { destination, origin, tag, extra })
    }

    /// Where the messages go.
    pub fn server(&self) -> Server {
        match &self.destination {
            Destination::Syslog { server, .. } | Destination::Gelf { server, .. } => server.clone(),
            Destination::Journald => Server::LocalDatagram(PathBuf::from(JOURNAL_SOCKET)),
        }
    }

    /// What is sent of a line, each a datagram of its own where those are sent. Nothing of an empty one.
    pub fn messages(&self, line: &OutputLine) -> Vec<Vec<u8>> {
        let text = line.text.strip_suffix(b"\n").unwrap_or(&line.text);
        if text.is_empty() {
            return Vec::new();
        }
        let severity = match line.stream {
            OutputStream::Stdout => INFORMATIONAL,
            OutputStream::Stderr => ERROR,
        };
        match &self.destination {
            Destination::Syslog { facility, format, .. } => {
                vec![self.syslog(line.at, facility * 8 + severity, *format, text)]
            }
            Destination::Gelf { server, compression } => {
                let message = self.gelf(line.at, severity, text);
                match server {
                    Server::Udp(_) => chunks(&compressed(message, *compression)),
                    _ => vec![[message, vec![0]].concat()],
                }
            }
            Destination::Journald => {
                vec![self.journal(line.at, severity, text, line.text.ends_with(b"\n"))]
            }
        }
    }

    fn syslog(&self, at: Timestamp, priority: u8, format: SyslogFormat, text: &[u8]) -> Vec<u8> {
        let Origin { hostname, pid, .. } = &self.origin;
        let tag = &self.tag;
        let at = moment(at).to_zoned(TimeZone::system());
        let stamp = || at.strftime("%b %e %H:%M:%S");
        let head = match format {
            SyslogFormat::Unix => format!("<{priority}>{} {tag}[{pid}]: ", stamp()),
            SyslogFormat::Rfc3164 => format!("<{priority}>{} {hostname} {tag}[{pid}]: ", stamp()),
            SyslogFormat::Rfc5424 => {
                let at = at.strftime("%Y-%m-%dT%H:%M:%S%:z");
                format!("<{priority}>1 {at} {hostname} {tag} {pid} {tag} - ")
            }
            SyslogFormat::Rfc5424Micro => {
                let at = at.strftime("%Y-%m-%dT%H:%M:%S%.6f%:z");
                format!("<{priority}>1 {at} {hostname} {tag} {pid} {tag} - ")
            }
        };
        [head.as_bytes(), text, b"\n"].concat()
    }

    /// The GELF payload specification, version 1.1.
    fn gelf(&self, at: Timestamp, severity: u8, text: &[u8]) -> Vec<u8> {
        let origin = &self.origin;
        let mut message = json!({
            "version": "1.1",
            "host": origin.hostname,
            "short_message": String::from_utf8_lossy(text),
            "timestamp": seconds(at),
            "level": severity,
            "_command": origin.command,
            "_container_id": origin.container_id,
            "_container_name": origin.name,
            "_created": moment(origin.created_at).to_string(),
            "_image_id": origin.image_id,
            "_image_name": origin.image,
            "_tag": self.tag,
        });
        for (key, value) in &self.extra {
            message[format!("_{key}")] = Value::String(value.clone());
        }
        serde_json::to_vec(&message).expect("text and numbers")
    }

    /// systemd's native protocol: a value with a line feed in it has its length before it.
    fn journal(&self, at: Timestamp, severity: u8, text: &[u8], is_whole: bool) -> Vec<u8> {
        let origin = &self.origin;
        let mut message = Vec::new();
        let mut field = |key: &str, value: &[u8]| {
            message.extend_from_slice(key.as_bytes());
            if value.contains(&b'\n') {
                message.push(b'\n');
                message.extend_from_slice(&(value.len() as u64).to_le_bytes());
            } else {
                message.push(b'=');
            }
            message.extend_from_slice(value);
            message.push(b'\n');
        };
        field("MESSAGE", text);
        field("PRIORITY", severity.to_string().as_bytes());
        field("CONTAINER_ID", &origin.container_id.as_bytes()[..12.min(origin.container_id.len())]);
        field("CONTAINER_ID_FULL", origin.container_id.as_bytes());
        field("CONTAINER_NAME", origin.name.as_bytes());
        field("CONTAINER_TAG", self.tag.as_bytes());
        field("IMAGE_NAME", origin.image.as_bytes());
        field("SYSLOG_IDENTIFIER", self.tag.as_bytes());
        field("SYSLOG_TIMESTAMP", moment(at).to_string().as_bytes());
        if !is_whole {
            field("CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        for (key, value) in &self.extra {
            field(&journal_key(key), value.as_bytes());
        }
        message
    }
}

/// Capital letters, digits and underscores, and none of the last two in front.
fn journal_key(key: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let key: String = key.chars().map(plain).collect();
    key.trim_start_matches(|c: char| c == '_' || c.is_ascii_digit()).to_owned()
}

/// Since the epoch, to the millisecond.
fn seconds(at: Timestamp) -> f64 {
    Duration::from_millis(u64::try_from(at.0).unwrap_or(0) / 1_000_000).as_secs_f64()
}

fn moment(at: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or_default()
}

fn compressed(message: Vec<u8>, compression: Compression) -> Vec<u8> {
    let done = match compression {
        Compression::None => return message,
        Compression::Gzip(level) => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
            encoder.write_all(&message).and_then(|()| encoder.finish())
        }
        Compression::Zlib(level) => {
            let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::new(level));
            encoder.write_all(&message).and_then(|()| encoder.finish())
        }
    };
    done.expect("memory takes it")
}

/// The datagrams of a message. One that is too long for any number of them is cut: conmon's lines never are.
fn chunks(message: &[u8]) -> Vec<Vec<u8>> {
    if message.len() <= MAX_DATAGRAM_LEN {
        return vec![message.to_vec()];
    }
    let pieces: Vec<&[u8]> = message.chunks(MAX_DATAGRAM_LEN - CHUNK_HEAD_LEN).take(MAX_CHUNKS).collect();
    let n_pieces = u8::try_from(pieces.len()).unwrap_or(u8::MAX);
    // Names the message: two that are the same have the same pieces.
    let digest = sha256_digest(message);
    let id = digest.bytes().rev().take(8).collect::<Vec<u8>>();
    let with_head =
        |(number, piece): (u8, &&[u8])| [&CHUNK_MAGIC[..], &id, &[number, n_pieces], piece].concat();
    (0..n_pieces).zip(&pieces).map(with_head).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use control_model::log_driver::LogDriver;
    use flate2::read::{GzDecoder, ZlibDecoder};

    use super::*;

    fn encoder(driver: &str, options: &[(&str, &str)]) -> Encoder {
        let options = options.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let logging = LogDriver { name: driver.into(), options }.logging().expect("valid");
        let origin = Origin {
            container_id: "0123456789abcdef".into(),
            name: "web.1.x".into(),
            image: "web:1".into(),
            image_id: "sha256:fedcba9876543210".into(),
            command: "/web --port 80".into(),
            created_at: Timestamp(0),
            hostname: "n1".into(),
            pid: 7,
            labels: BTreeMap::from([("com.example/tier".into(), "front".into())]),
            env: vec!["REGION=eu".into(), "SECRET=x".into()],
        };
        Encoder::new(&logging, origin).expect("somebody is told")
    }

    fn line(text: &str, stream: OutputStream) -> OutputLine {
        OutputLine { at: Timestamp(1_500_000_000), stream, text: text.as_bytes().to_vec() }
    }

    fn text(encoder: &Encoder, line: &OutputLine) -> String {
        String::from_utf8(encoder.messages(line).concat()).expect("text")
    }

    #[test]
    fn lines_of_a_system_log() {
        let local = moment(Timestamp(1_500_000_000)).to_zoned(TimeZone::system());
        let (stamp, zone) = (local.strftime("%b %e %H:%M:%S"), local.strftime("%:z"));
        let moment = local.strftime("%Y-%m-%dT%H:%M:%S");
        let unix = encoder("syslog", &[]);
        assert_eq!(
            text(&unix, &line("hello\n", OutputStream::Stdout)),
            format!("<30>{stamp} 0123456789ab[7]: hello\n")
        );
        let far = |format| {
            let options = [
                ("syslog-address", "udp://h"),
                ("syslog-facility", "local0"),
                ("syslog-format", format),
                ("tag", "{{.Name}}"),
            ];
            text(&encoder("syslog", &options), &line("oh\n", OutputStream::Stderr))
        };
        assert_eq!(far("rfc3164"), format!("<131>{stamp} n1 web.1.x[7]: oh\n"));
        assert_eq!(far("rfc5424"), format!("<131>1 {moment}{zone} n1 web.1.x 7 web.1.x - oh\n"));
        assert_eq!(far("rfc5424micro"), format!("<131>1 {moment}.500000{zone} n1 web.1.x 7 web.1.x - oh\n"));
        assert!(unix.messages(&line("\n", OutputStream::Stdout)).is_empty());
    }

    #[test]
    fn messages_for_graylog() {
        let options = [("gelf-address", "tcp://h:1"), ("labels", "com.example/tier,none"), ("env", "REGION")];
        let message = encoder("gelf", &options).messages(&line("one\n", OutputStream::Stdout)).concat();
        let (message, end) = message.split_at(message.len() - 1);
        assert_eq!(end, [0]);
        let shown: Value = serde_json::from_slice(message).expect("JSON");
        let expected = json!({
            "version": "1.1", "host": "n1", "short_message": "one", "timestamp": 1.5, "level": 6,
            "_command": "/web --port 80", "_container_id": "0123456789abcdef", "_container_name": "web.1.x",
            "_created": "1970-01-01T00:00:00Z", "_image_id": "sha256:fedcba9876543210", "_image_name": "web:1",
            "_tag": "0123456789ab", "_com.example/tier": "front", "_REGION": "eu",
        });
        assert_eq!(shown, expected);
    }

    #[test]
    fn messages_for_graylog_are_compressed_and_cut() {
        let address = ("gelf-address", "udp://h:1");
        let short = line("one\n", OutputStream::Stdout);
        let gzip = encoder("gelf", &[address]).messages(&short);
        let mut text = String::new();
        GzDecoder::new(&gzip[0][..]).read_to_string(&mut text).expect("gzip");
        assert!(gzip.len() == 1 && text.contains("\"short_message\":\"one\""), "{text}");
        let zlib = encoder("gelf", &[address, ("gelf-compression-type", "zlib")]).messages(&short);
        let mut text = String::new();
        ZlibDecoder::new(&zlib[0][..]).read_to_string(&mut text).expect("zlib");
        assert!(text.contains("\"short_message\":\"one\""), "{text}");

        let long = line(&"x".repeat(8000), OutputStream::Stdout);
        let pieces = encoder("gelf", &[address, ("gelf-compression-type", "none")]).messages(&long);
        assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() <= MAX_DATAGRAM_LEN));
        let mut whole = Vec::new();
        for (number, piece) in pieces.iter().enumerate() {
            assert_eq!(piece[..2], CHUNK_MAGIC);
            assert_eq!(piece[2..10], pieces[0][2..10], "of one message");
            assert_eq!([usize::from(piece[10]), usize::from(piece[11])], [number, pieces.len()]);
            whole.extend_from_slice(&piece[CHUNK_HEAD_LEN..]);
        }
        let shown: Value = serde_json::from_slice(&whole).expect("JSON");
        assert_eq!(shown["short_message"].as_str().map(str::len), Some(8000));
    }

    #[test]
    fn fields_of_the_journal() {
        let journal = encoder("journald", &[("labels", "com.example/tier"), ("tag", "web")]);
        let shown = text(&journal, &line("part of a line", OutputStream::Stderr));
        let fields: Vec<&str> = shown.lines().collect();
        for field in [
            "MESSAGE=part of a line",
            "PRIORITY=3",
            "CONTAINER_ID=0123456789ab",
            "CONTAINER_NAME=web.1.x",
            "CONTAINER_TAG=web",
            "CONTAINER_PARTIAL_MESSAGE=true",
            "COM_EXAMPLE_TIER=front",
        ] {
            assert!(fields.contains(&field), "{field}: {shown}");
        }
        let two = journal.messages(&line("a\nb\n", OutputStream::Stdout)).concat();
        assert!(two.starts_with(b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nPRIORITY=6\n"), "{two:?}");
        assert_eq!(journal.server(), Server::LocalDatagram(JOURNAL_SOCKET.into()));
    }
}
