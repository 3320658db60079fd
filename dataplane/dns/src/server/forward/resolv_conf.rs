//! The node's resolvers, read again when the file changed.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

/// The file is looked at again after this long.
const CHECK_PERIOD: Duration = Duration::from_secs(1);

/// A `resolv.conf(5)` file.
pub struct ResolvConf {
    path: PathBuf,
    read: Mutex<Option<Read>>,
}

struct Read {
    checked: Instant,
    modified: SystemTime,
    resolvers: Vec<IpAddr>,
}

impl ResolvConf {
    pub fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::new(None) }
    }

    /// The resolvers in the file's order; none if it can't be read.
    pub fn resolvers(&self) -> Vec<IpAddr> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(known) = read.as_mut().filter(|known| now.duration_since(known.checked) < CHECK_PERIOD) {
            return known.resolvers.clone();
        }
        match self.refresh(read.take(), now) {
            Ok(fresh) => read.insert(fresh).resolvers.clone(),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "can't read the node's resolvers");
                Vec::new()
            }
        }
    }

    fn refresh(&self, known: Option<Read>, checked: Instant) -> io::Result<Read> {
        let modified = fs::metadata(&self.path)?.modified()?;
        match known {
            Some(known) if known.modified == modified => Ok(Read { checked, ..known }),
            _ => Ok(Read { checked, modified, resolvers: parse(&fs::read_to_string(&self.path)?) }),
        }
    }
}

/// The addresses of the `nameserver` lines. A scope (`fe80::1%eth0`) can't be kept in an address; such a line is left
/// out.
fn parse(text: &str) -> Vec<IpAddr> {
    let nameserver = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    };
    text.lines().filter_map(nameserver).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_lines_are_read_in_order() {
        let text = "# made by hand\nsearch a b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 \noptions ndots:2\n\
                    nameserver fe80::1%eth0\nnameserver\n;nameserver 192.0.2.9\n";
        let expected: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(parse(text), expected);
    }
}
