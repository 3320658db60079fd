//! Where a container's output goes besides the node's own file: Docker's log drivers and their options (moby `daemon/logger`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Those that there are.
pub const LOG_DRIVERS: [&str; 6] = ["gelf", "journald", "json-file", "local", "none", "syslog"];

const SYSLOG_PORT: u16 = 514;
/// Kept of a container's output where nobody says how much.
pub const DEFAULT_KEPT_BYTES: u64 = 16 << 20;
/// Less would be begun anew with each few lines.
const MIN_KEPT_BYTES: u64 = 4 << 10;

/// A driver as a user names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDriver {
    pub name: String,
    pub options: BTreeMap<String, String>,
}

impl Default for LogDriver {
    /// Docker's.
    fn default() -> Self {
        Self { name: "json-file".to_owned(), options: BTreeMap::new() }
    }
}

/// Why there is no such driver. `Display` begins as Docker's words do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogDriverError {
    #[error("logger: no log driver named '{0}' is registered")]
    Unknown(String),
    #[error("unknown log opt '{option}' for {driver} log driver")]
    Option { driver: String, option: String },
    #[error("invalid value for log opt {option}: {value:?}: {why}")]
    Value { option: String, value: String, why: &'static str },
    #[error("the {driver} log driver needs the log opt {option}")]
    Missing { driver: &'static str, option: &'static str },
}

/// What a driver and its options say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// Bytes that the node keeps for `docker logs`; `None` is nothing.
    pub kept_bytes: Option<u64>,
    pub destination: Option<Destination>,
    pub tag: Tag,
    /// Labels and variables of the container that go with each line.
    pub labels: Vec<String>,
    pub env: Vec<String>,
}

/// Who is told each line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Syslog { server: Server, facility: u8, format: SyslogFormat },
    Gelf { server: Server, compression: Compression },
    Journald,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// `host:port`.
    Udp(String),
    Tcp(String),
    LocalStream(PathBuf),
    LocalDatagram(PathBuf),
    /// The host's own system log.
    Local,
}

/// How a line of the system log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyslogFormat {
    /// Without a host name: for the host's own log.
    Unix,
    Rfc3164,
    Rfc5424,
    /// RFC 5424 with microseconds.
    Rfc5424Micro,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    /// Level 0 to 9.
    Gzip(u32),
    Zlib(u32),
}

/// What names a container's lines: text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Of(Placeholder),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    Id,
    FullId,
    Name,
    ImageId,
    ImageFullId,
    ImageName,
    DaemonName,
}

/// What the placeholders of a [`Tag`] stand for.
#[derive(Debug, Clone, Copy)]
pub struct Tagged<'a> {
    pub container_id: &'a str,
    pub name: &'a str,
    pub image_id: &'a str,
    pub image: &'a str,
}

impl LogDriver {
    /// What a task gets on a node that has `nodes`: without a name of its own that one, and its options where the two are the same.
    #[must_use]
    pub fn over(&self, nodes: &Self) -> Self {
        if !self.name.is_empty() && self.name != nodes.name {
            return self.clone();
        }
        let mut all = nodes.clone();
        all.options.extend(self.options.clone());
        all
    }

    /// Checks what can be without knowing the node, which may have further options, and another driver for one without a name.
    pub fn check(&self) -> Result<(), LogDriverError> {
        match self.logging() {
            Err(LogDriverError::Missing { .. }) => Ok(()),
            Err(LogDriverError::Unknown(name)) if name.is_empty() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Checks the options, and says what they mean.
    pub fn logging(&self) -> Result<Logging, LogDriverError> {
        let options = Options { driver: &self.name, given: &self.options };
        let (labels, env) = (options.list("labels"), options.list("env"));
        let (kept_bytes, destination) = match self.name.as_str() {
            "json-file" | "local" => {
                options.check(&["max-size", "max-file", "mode", "tag"])?;
                (Some(options.kept_bytes(&self.name)?), None)
            }
            "none" => {
                options.check(&[])?;
                (None, None)
            }
            "syslog" => {
                options.check(&["syslog-address", "syslog-facility", "syslog-format", "mode", "tag"])?;
                (Some(DEFAULT_KEPT_BYTES), Some(options.syslog()?))
            }
            "gelf" => {
                let own = ["gelf-address", "gelf-compression-type", "gelf-compression-level"];
                options.check(&[&own[..], &["mode", "tag", "labels", "env"]].concat())?;
                (Some(DEFAULT_KEPT_BYTES), Some(options.gelf()?))
            }
            "journald" => {
                options.check(&["mode", "tag", "labels", "env"])?;
                (Some(DEFAULT_KEPT_BYTES), Some(Destination::Journald))
            }
            other => return Err(LogDriverError::Unknown(other.to_owned())),
        };
        // Neither keeps a container waiting: its lines are on the disk first, and go from there.
        options.one_of("mode", &["blocking", "non-blocking"])?;
        let tag = options.parsed("tag", "{{.ID}}")?;
        Ok(Logging { kept_bytes, destination, tag, labels, env })
    }
}

struct Options<'a> {
    driver: &'a str,
    given: &'a BTreeMap<String, String>,
}

impl Options<'_> {
    fn check(&self, known: &[&str]) -> Result<(), LogDriverError> {
        let strange = self.given.keys().find(|key| !known.contains(&key.as_str()));
        strange.map_or(Ok(()), |option| {
            Err(LogDriverError::Option { driver: self.driver.to_owned(), option: option.clone() })
        })
    }

    fn get(&self, option: &str) -> Option<&str> {
        self.given.get(option).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn wrong(&self, option: &str, why: &'static str) -> LogDriverError {
        let value = self.get(option).unwrap_or_default().to_owned();
        LogDriverError::Value { option: option.to_owned(), value, why }
    }

    fn parsed<T: FromStr<Err = &'static str>>(
        &self,
        option: &str,
        default: &str,
    ) -> Result<T, LogDriverError> {
        self.get(option).unwrap_or(default).parse().map_err(|why| self.wrong(option, why))
    }

    fn one_of(&self, option: &str, words: &[&str]) -> Result<(), LogDriverError> {
        let is_known = self.get(option).is_none_or(|value| words.contains(&value));
        if is_known { Ok(()) } else { Err(self.wrong(option, "it is none of those that are known")) }
    }

    fn list(&self, option: &str) -> Vec<String> {
        let words = self.get(option).unwrap_or_default().split(',');
        words.map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    /// A number of files of a size are one of the size of all.
    fn kept_bytes(&self, driver: &str) -> Result<u64, LogDriverError> {
        let default_files = if driver == "local" { "5" } else { "1" };
        let n_files = self.get("max-file").unwrap_or(default_files).parse::<u64>().ok().filter(|n| *n > 0);
        let n_files = n_files.ok_or_else(|| self.wrong("max-file", "it is no number of files"))?;
        let size = match self.get("max-size") {
            // What is unlimited in Docker is limited here: a disk is, too.
            None | Some("-1") if driver == "json-file" => return Ok(DEFAULT_KEPT_BYTES),
            None => 20_000_000,
            Some(text) => size(text).ok_or_else(|| self.wrong("max-size", "it is no size, as 10m is"))?,
        };
        Ok(size.saturating_mul(n_files).max(MIN_KEPT_BYTES))
    }

    fn syslog(&self) -> Result<Destination, LogDriverError> {
        let format = match self.get("syslog-format") {
            None => SyslogFormat::Unix,
            Some("rfc3164") => SyslogFormat::Rfc3164,
            Some("rfc5424") => SyslogFormat::Rfc5424,
            Some("rfc5424micro") => SyslogFormat::Rfc5424Micro,
            Some(_) => return Err(self.wrong("syslog-format", "it is none of those that are known")),
        };
        let facility = self.get("syslog-facility").unwrap_or("daemon");
        let facility =
            facility_number(facility).ok_or_else(|| self.wrong("syslog-facility", "there is none of it"))?;
        let server = match self.get("syslog-address") {
            None => Server::Local,
            Some(text) => server(text, Some(SYSLOG_PORT)).map_err(|why| self.wrong("syslog-address", why))?,
        };
        Ok(Destination::Syslog { server, facility, format })
    }

    fn gelf(&self) -> Result<Destination, LogDriverError> {
        let missing = LogDriverError::Missing { driver: "gelf", option: "gelf-address" };
        let address = self.get("gelf-address").ok_or(missing)?;
        let server = server(address, None).map_err(|why| self.wrong("gelf-address", why))?;
        if !matches!(server, Server::Udp(_) | Server::Tcp(_)) {
            return Err(self.wrong("gelf-address", "it is neither udp:// nor tcp://"));
        }
        let level = self.get("gelf-compression-level");
        // 1 is gzip's quickest, and Docker's default.
        let level_number = level.map_or(Some(1), |text| text.parse::<u32>().ok().filter(|n| *n <= 9));
        let level_number =
            level_number.ok_or_else(|| self.wrong("gelf-compression-level", "it is no level from 0 to 9"))?;
        let compression = match (&server, self.get("gelf-compression-type")) {
            (Server::Udp(_), None | Some("gzip")) => Compression::Gzip(level_number),
            (Server::Udp(_), Some("zlib")) => Compression::Zlib(level_number),
            (_, Some("none")) => Compression::None,
            // Its messages end with a byte of zeros, which a compressed one may hold.
            (_, None) if level.is_none() => Compression::None,
            _ => return Err(self.wrong("gelf-compression-type", "there is none of it over this transport")),
        };
        Ok(Destination::Gelf { server, compression })
    }
}

/// `udp://host:port`, `tcp://`, `unix:///path`, `unixgram:///path`.
fn server(text: &str, default_port: Option<u16>) -> Result<Server, &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or("it has no protocol, as udp:// is one")?;
    let path = || {
        if rest.starts_with('/') { Ok(PathBuf::from(rest)) } else { Err("its path is not absolute") }
    };
    let host = || with_port(rest, default_port).ok_or("it has no host and port");
    match scheme {
        "udp" => host().map(Server::Udp),
        "tcp" => host().map(Server::Tcp),
        "unix" => path().map(Server::LocalStream),
        "unixgram" => path().map(Server::LocalDatagram),
        _ => Err("its protocol is not supported by this daemon (udp, tcp, unix, unixgram)"),
    }
}

/// `host:port` or `[address]:port`; the port may be left out where there is one by default.
fn with_port(text: &str, default: Option<u16>) -> Option<String> {
    let bare = text.trim_end_matches('/');
    let behind_address = bare.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match bare[behind_address..].rfind(':') {
        Some(colon) => {
            (&bare[..behind_address + colon], bare[behind_address + colon + 1..].parse::<u16>().ok()?)
        }
        None => (bare, default?),
    };
    let is_host = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
    (is_host && port > 0).then(|| format!("{host}:{port}"))
}

/// RFC 5424, table 1, by the names of `syslog.h`.
fn facility_number(text: &str) -> Option<u8> {
    const NAMES: [&str; 12] = [
        "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    ];
    let number = match text.strip_prefix("local") {
        Some(digit) => digit.parse::<u8>().ok().filter(|digit| *digit < 8).map(|digit| 16 + digit),
        None => NAMES.iter().position(|name| *name == text).and_then(|at| u8::try_from(at).ok()),
    };
    number.or_else(|| text.parse().ok().filter(|number| *number < 24))
}

/// `10m`, `1.5g`, `100kb`: powers of 1000 (go-units `FromHumanSize`).
fn size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1e3,
        "m" | "mb" | "mib" => 1e6,
        "g" | "gb" | "gib" => 1e9,
        "t" | "tb" | "tib" => 1e12,
        _ => return None,
    };
    let bytes = number * unit;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
    (1.0..1e18).contains(&bytes).then_some(bytes as u64)
}

impl FromStr for Tag {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, behind)) = rest.split_once("{{") {
            let (name, after) = behind.split_once("}}").ok_or("a placeholder has no end")?;
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Of(Placeholder::of(name.trim()).ok_or("there is no such placeholder")?));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }
}

impl Placeholder {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            ".ID" => Self::Id,
            ".FullID" => Self::FullId,
            ".Name" => Self::Name,
            ".ImageID" => Self::ImageId,
            ".ImageFullID" => Self::ImageFullId,
            ".ImageName" => Self::ImageName,
            ".DaemonName" => Self::DaemonName,
            _ => return None,
        })
    }

    fn value<'a>(self, tagged: &Tagged<'a>) -> &'a str {
        let Tagged { container_id, name, image_id, image } = *tagged;
        let image_digits = image_id.strip_prefix("sha256:").unwrap_or(image_id);
        match self {
            Self::Id => short(container_id),
            Self::FullId => container_id,
            Self::Name => name,
            Self::ImageId => short(image_digits),
            Self::ImageFullId => image_id,
            Self::ImageName => image,
            Self::DaemonName => "docker",
        }
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

impl Tag {
    pub fn expand(&self, tagged: &Tagged<'_>) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Of(placeholder) => placeholder.value(tagged).to_owned(),
        };
        self.0.iter().map(piece).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logging(name: &str, options: &[(&str, &str)]) -> Result<Logging, String> {
        let options = options.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        LogDriver { name: name.to_owned(), options }.logging().map_err(|error| error.to_string())
    }

    fn destination(name: &str, options: &[(&str, &str)]) -> Destination {
        logging(name, options).expect("valid").destination.expect("somewhere else")
    }

    #[test]
    fn files_are_kept_to_a_size() {
        let kept = |name, options: &[(&str, &str)]| logging(name, options).map(|one| one.kept_bytes);
        assert_eq!(kept("json-file", &[]), Ok(Some(DEFAULT_KEPT_BYTES)));
        assert_eq!(kept("json-file", &[("max-size", "10m")]), Ok(Some(10_000_000)));
        assert_eq!(kept("json-file", &[("max-size", "1.5g"), ("max-file", "2")]), Ok(Some(3_000_000_000)));
        assert_eq!(kept("local", &[]), Ok(Some(100_000_000)));
        assert_eq!(kept("none", &[]), Ok(None));
        for (option, value) in [("max-size", "much"), ("max-size", "0"), ("max-file", "0"), ("mode", "x")] {
            let error = kept("json-file", &[(option, value)]).expect_err("no such value");
            assert!(error.starts_with(&format!("invalid value for log opt {option}: ")), "{error}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert_eq!(
            logging("splunk", &[]),
            Err("logger: no log driver named 'splunk' is registered".to_owned())
        );
        for (driver, option) in [("json-file", "labels"), ("none", "tag"), ("syslog", "env-regex")] {
            let expected = format!("unknown log opt '{option}' for {driver} log driver");
            assert_eq!(logging(driver, &[(option, "x")]), Err(expected));
        }
        assert_eq!(logging("gelf", &[]), Err("the gelf log driver needs the log opt gelf-address".into()));
        for address in ["10.0.0.1", "tcp+tls://a:1", "udp://:514", "unix://a", "tcp://a:0", "udp://a/b:1"] {
            let error = logging("syslog", &[("syslog-address", address)]).expect_err(address);
            assert!(error.starts_with("invalid value for log opt syslog-address"), "{error}");
        }
        for (option, value) in [("tag", "{{.Nothing}}"), ("tag", "{{.ID"), ("syslog-facility", "local8")] {
            assert!(logging("syslog", &[(option, value)]).is_err(), "{option} {value}");
        }
        let tcp = ("gelf-address", "tcp://a:1");
        assert!(logging("gelf", &[tcp, ("gelf-compression-type", "gzip")]).is_err());
        assert!(logging("gelf", &[("gelf-address", "udp://a")]).is_err(), "it has no port by default");
    }

    #[test]
    fn a_nodes_options_are_under_a_tasks() {
        let of = |name: &str, options: &[(&str, &str)]| LogDriver {
            name: name.to_owned(),
            options: options.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        };
        let nodes = of("gelf", &[("gelf-address", "udp://h:1"), ("tag", "a")]);
        let own = [("tag", "b")];
        assert!(of("gelf", &own).check().is_ok() && of("gelf", &own).logging().is_err());
        let both = of("gelf", &[("gelf-address", "udp://h:1"), ("tag", "b")]);
        assert_eq!(of("gelf", &own).over(&nodes), both);
        assert_eq!(of("", &own).over(&nodes), both);
        assert_eq!(of("syslog", &own).over(&nodes), of("syslog", &own));
        assert!(of("", &own).check().is_ok() && of("splunk", &own).check().is_err());
    }

    #[test]
    fn destinations() {
        let local = Destination::Syslog { server: Server::Local, facility: 3, format: SyslogFormat::Unix };
        assert_eq!(destination("syslog", &[]), local);
        let options =
            [("syslog-address", "udp://[::1]"), ("syslog-facility", "local7"), ("syslog-format", "rfc5424")];
        let far = Destination::Syslog {
            server: Server::Udp("[::1]:514".into()),
            facility: 23,
            format: SyslogFormat::Rfc5424,
        };
        assert_eq!(destination("syslog", &options), far);
        let gelf = |address: &str, more: &[(&str, &str)]| {
            let Destination::Gelf { server, compression } =
                destination("gelf", &[&[("gelf-address", address)], more].concat())
            else {
                panic!("another one")
            };
            (server, compression)
        };
        assert_eq!(gelf("udp://h:12201", &[]), (Server::Udp("h:12201".into()), Compression::Gzip(1)));
        let zlib = [("gelf-compression-type", "zlib"), ("gelf-compression-level", "9")];
        assert_eq!(gelf("udp://h:1", &zlib).1, Compression::Zlib(9));
        assert_eq!(gelf("tcp://h:1", &[]), (Server::Tcp("h:1".into()), Compression::None));
        assert_eq!(destination("journald", &[("labels", "a, b")]), Destination::Journald);
    }

    #[test]
    fn tags_have_placeholders() {
        let tagged = Tagged {
            container_id: "0123456789abcdef",
            name: "web.1.x",
            image_id: "sha256:fedcba9876543210",
            image: "web:1",
        };
        let tag = |text: &str| text.parse::<Tag>().expect("valid").expand(&tagged);
        assert_eq!(tag("{{.ID}}"), "0123456789ab");
        assert_eq!(tag("{{ .Name }}/{{.ImageName}}-{{.ImageID}}"), "web.1.x/web:1-fedcba987654");
        assert_eq!(tag("plain"), "plain");
    }
}
