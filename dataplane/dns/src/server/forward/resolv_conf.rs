//! The node's resolvers, read again when the file changed.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::net::if_::if_nametoindex;

use super::upstreams::{DNS_PORT, Origin, Upstreams};

/// The file is looked at again after this long. Looking finds also what a watch on the file would not: a link that
/// leads elsewhere now, a file on a file system without notifications, a directory that was mounted over.
const CHECK_PERIOD: Duration = Duration::from_secs(1);

/// A `resolv.conf(5)` file.
pub struct ResolvConf {
    path: PathBuf,
    read: Mutex<Read>,
}

struct Read {
    checked: Option<Instant>,
    version: Option<Version>,
    upstreams: Arc<Upstreams>,
}

/// Tells a file from the one that was read: device, inode, length, and the times of its content and of its inode in
/// nanoseconds, which a tool that sets the first can't set.
#[derive(Debug, PartialEq, Eq)]
struct Version([i128; 5]);

impl ResolvConf {
    pub fn new(path: PathBuf) -> Self {
        let upstreams = Arc::new(Upstreams::new([], Origin::Node));
        Self { path, read: Mutex::new(Read { checked: None, version: None, upstreams }) }
    }

    /// The resolvers in the file's order. While it can't be read those that it had are good.
    pub fn upstreams(&self) -> Arc<Upstreams> {
        self.upstreams_at(Instant::now())
    }

    fn upstreams_at(&self, now: Instant) -> Arc<Upstreams> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.checked.is_none_or(|checked| now.duration_since(checked) >= CHECK_PERIOD) {
            read.checked = Some(now);
            if let Err(error) = self.refresh(&mut read) {
                tracing::warn!(path = %self.path.display(), %error, "can't read the node's resolvers");
            }
        }
        read.upstreams.clone()
    }

    /// The same resolvers keep what is known of them. A file that names none is being written.
    fn refresh(&self, read: &mut Read) -> io::Result<()> {
        let version = Some(version(&fs::metadata(&self.path)?));
        if read.version == version {
            return Ok(());
        }
        let upstreams = Upstreams::new(parse(&fs::read_to_string(&self.path)?), Origin::Node);
        read.version = version;
        if !upstreams.resolvers.is_empty() && upstreams.resolvers != read.upstreams.resolvers {
            tracing::info!(resolvers = ?upstreams.resolvers, "the node's resolvers changed");
            read.upstreams = Arc::new(upstreams);
        }
        Ok(())
    }
}

fn version(metadata: &fs::Metadata) -> Version {
    let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    Version([
        metadata.dev().into(),
        metadata.ino().into(),
        metadata.len().into(),
        time(metadata.mtime(), metadata.mtime_nsec()),
        time(metadata.ctime(), metadata.ctime_nsec()),
    ])
}

/// The addresses of the `nameserver` lines.
fn parse(text: &str) -> Vec<SocketAddr> {
    let nameserver = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| resolver(words.next()?)).flatten()
    };
    text.lines().filter_map(nameserver).collect()
}

/// An address, with its interface behind it where it is good on one link only (`fe80::1%eth0`).
fn resolver(text: &str) -> Option<SocketAddr> {
    let Some((address, scope)) = text.split_once('%') else {
        return text.parse().ok().map(|address: IpAddr| SocketAddr::new(address, DNS_PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let index = scope.parse().ok().or_else(|| if_nametoindex(scope).ok())?;
    Some(SocketAddrV6::new(address, DNS_PORT, 0, index).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nameserver_lines_are_read_in_order() {
        let text = "# made by hand\nsearch a b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 \noptions ndots:2\n\
                    nameserver fe80::1%lo\nnameserver fe80::1%no-such-link\nnameserver\n;nameserver 192.0.2.9\n";
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 1);
        let expected: Vec<SocketAddr> =
            vec!["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap(), scoped.into()];
        assert_eq!(parse(text), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is in the file: nothing panics, and a resolver has the port of DNS.
        #[test]
        fn any_text_is_survived(text in "(nameserver[ \t]?)?\\PC{0,40}(\n(nameserver )?[0-9a-f:.%]{0,30}){0,4}") {
            prop_assert!(parse(&text).iter().all(|resolver| resolver.port() == DNS_PORT));
        }
    }

    /// The time of a check that is due.
    fn checks(n: u32) -> Instant {
        Instant::now() + CHECK_PERIOD * n
    }

    #[test]
    fn a_change_is_followed_and_a_missing_file_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let file = ResolvConf::new(path.clone());
        assert_eq!(file.upstreams_at(checks(0)).resolvers, [], "it comes later");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let first = file.upstreams_at(checks(1));
        assert_eq!(first.resolvers, ["192.0.2.1:53".parse().unwrap()]);

        fs::write(&path, "nameserver 192.0.2.2\n").unwrap();
        assert_eq!(file.upstreams_at(checks(1)).id, first.id, "not looked at for every query");
        let second = file.upstreams_at(checks(2));
        assert_eq!(second.resolvers, ["192.0.2.2:53".parse().unwrap()]);
        assert_ne!(second.id, first.id, "what others said is not used again");

        fs::write(&path, "nameserver 192.0.2.2\nsearch example\n").unwrap();
        assert_eq!(file.upstreams_at(checks(3)).id, second.id, "the same resolvers");
        fs::write(&path, "").unwrap();
        assert_eq!(file.upstreams_at(checks(4)).id, second.id, "it is being written");
        fs::remove_file(&path).unwrap();
        assert_eq!(file.upstreams_at(checks(5)).id, second.id);
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        fs::write(directory.path().join("elsewhere"), "nameserver 192.0.2.3\n").unwrap();
        assert_eq!(file.upstreams_at(checks(6)).resolvers, ["192.0.2.3:53".parse().unwrap()]);
    }
}
