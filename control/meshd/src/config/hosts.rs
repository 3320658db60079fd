//! `--host` and `--tlsverify`: where the API is served, as dockerd has it. Over TCP it is never without certificates.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use control_api::TlsFiles;
use serde::{Deserialize, Deserializer};

/// Of the API over TLS, where none is given.
const DEFAULT_PORT: u16 = 2376;
/// dockerd's, where no address is given.
const DEFAULT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where the API is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    pub sockets: Vec<PathBuf>,
    pub remote: Option<Remote>,
}

/// Addresses for clients with certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    pub addresses: Vec<SocketAddr>,
    pub tls: TlsFiles,
}

/// The options of TLS, as they were given.
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    pub verify: bool,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// Why the API can't be served so.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("--host {0}: expected unix:///PATH or tcp://IP[:PORT]")]
    Form(String),
    #[error(
        "--host {0}: only with --tlsverify, --tlscacert, --tlscert and --tlskey, for whoever reaches the API is as good as \
         root on this machine"
    )]
    Open(String),
    #[error("--tlsverify: {0} is missing")]
    NoFile(&'static str),
}

impl Hosts {
    /// Those of `given`; without any, the socket in the run directory.
    pub fn of(given: &[String], tls: TlsOptions, run_dir: &Path) -> Result<Self, HostError> {
        let (mut sockets, mut addresses) = (Vec::new(), Vec::new());
        for host in given {
            match parse(host)? {
                Place::Socket(path) => sockets.push(path),
                Place::Address(_) if !tls.verify => return Err(HostError::Open(host.clone())),
                Place::Address(address) => addresses.push(address),
            }
        }
        if given.is_empty() {
            sockets.push(run_dir.join("docker.sock"));
        }
        let remote = if addresses.is_empty() { None } else { Some(Remote { addresses, tls: tls.files()? }) };
        Ok(Self { sockets, remote })
    }
}

impl fmt::Display for Hosts {
    /// As `--host` has them, with a blank between.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sockets = self.sockets.iter().map(|path| format!("unix://{}", path.display()));
        let addresses = self.remote.iter().flat_map(|remote| &remote.addresses);
        let all: Vec<_> = sockets.chain(addresses.map(|address| format!("tcp://{address}"))).collect();
        f.write_str(&all.join(" "))
    }
}

impl TlsOptions {
    fn files(self) -> Result<TlsFiles, HostError> {
        Ok(TlsFiles {
            ca: self.ca.ok_or(HostError::NoFile("--tlscacert"))?,
            cert: self.cert.ok_or(HostError::NoFile("--tlscert"))?,
            key: self.key.ok_or(HostError::NoFile("--tlskey"))?,
        })
    }
}

enum Place {
    Socket(PathBuf),
    Address(SocketAddr),
}

fn parse(host: &str) -> Result<Place, HostError> {
    let malformed = || HostError::Form(host.to_owned());
    let (scheme, rest) = host.split_once("://").ok_or_else(malformed)?;
    match scheme {
        "unix" if rest.starts_with('/') => Ok(Place::Socket(rest.into())),
        "tcp" => address(rest.trim_end_matches('/')).map(Place::Address).ok_or_else(malformed),
        _ => Err(malformed()),
    }
}

/// An address, a port behind it, either, or nothing.
fn address(text: &str) -> Option<SocketAddr> {
    if let Ok(both) = text.parse() {
        return Some(both);
    }
    if let Some(port) = text.strip_prefix(':') {
        return Some((DEFAULT_ADDRESS, port.parse().ok()?).into());
    }
    let address = match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(text) => text.parse::<Ipv6Addr>().ok()?.into(),
        None if text.is_empty() => DEFAULT_ADDRESS,
        None => text.parse::<Ipv4Addr>().ok()?.into(),
    };
    Some((address, DEFAULT_PORT).into())
}

/// One host as text, or a list of them.
pub fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        One(String),
        More(Vec<String>),
    }
    Ok(match Given::deserialize(deserializer)? {
        Given::One(host) => vec![host],
        Given::More(hosts) => hosts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN_DIR: &str = "/run/meshd";

    fn hosts(given: &[&str], tls: TlsOptions) -> Result<Hosts, String> {
        let given: Vec<_> = given.iter().map(|&host| host.to_owned()).collect();
        Hosts::of(&given, tls, Path::new(RUN_DIR)).map_err(|error| error.to_string())
    }

    fn tls() -> TlsOptions {
        TlsOptions {
            verify: true,
            ca: Some("/c/ca.pem".into()),
            cert: Some("/c/cert.pem".into()),
            key: Some("/c/key.pem".into()),
        }
    }

    #[test]
    fn the_socket_is_there_unless_hosts_are_given() {
        let socket = PathBuf::from(RUN_DIR).join("docker.sock");
        assert_eq!(hosts(&[], tls()), Ok(Hosts { sockets: vec![socket], remote: None }));
        let both = hosts(&["unix:///a", "tcp://198.18.0.1", "unix:///b", "tcp://[::]:1234"], tls());
        let both = both.expect("valid");
        assert_eq!(both.sockets, [Path::new("/a"), Path::new("/b")]);
        let remote = both.remote.expect("addresses");
        assert_eq!(
            remote.addresses,
            ["198.18.0.1:2376", "[::]:1234"].map(|text| text.parse().expect("valid"))
        );
        assert_eq!(remote.tls.key, Path::new("/c/key.pem"));
        assert!(hosts(&["tcp://:1"], tls()).expect("valid").sockets.is_empty());
    }

    #[test]
    fn addresses_have_dockerds_defaults() {
        for (text, expected) in [
            ("", "127.0.0.1:2376"),
            (":2377", "127.0.0.1:2377"),
            ("0.0.0.0", "0.0.0.0:2376"),
            ("[::1]", "[::1]:2376"),
            ("198.18.0.1:80", "198.18.0.1:80"),
        ] {
            assert_eq!(address(text), expected.parse().ok(), "{text}");
        }
    }

    #[test]
    fn what_can_not_be_served_is_refused() {
        for wrong in [
            "tcp://manager",
            "tcp://1.2.3.4:x",
            "tcp://::1",
            "tcp://:70000",
            "unix://a",
            "fd://",
            "/run/x",
            "npipe:////x",
        ] {
            let expected = format!("--host {wrong}: expected unix:///PATH or tcp://IP[:PORT]");
            assert_eq!(hosts(&[wrong], tls()), Err(expected));
        }
        let open = hosts(&["unix:///a", "tcp://0.0.0.0:2375"], TlsOptions { verify: false, ..tls() });
        let words = open.expect_err("refused");
        assert!(words.starts_with("--host tcp://0.0.0.0:2375: only with --tlsverify, "), "{words}");
        let lacking = hosts(&["tcp://0.0.0.0"], TlsOptions { cert: None, ..tls() });
        assert_eq!(lacking, Err("--tlsverify: --tlscert is missing".to_owned()));
    }
}
