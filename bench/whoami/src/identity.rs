//! Who this process is.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};

/// The lines of every answer that don't depend on the request.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The task's name, empty outside of one.
    pub task: String,
    lines: String,
}

impl Identity {
    /// Reads names from the environment and addresses from the kernel. Once: none of them changes.
    pub fn of_this_process(version: &str) -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let fib = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
        let mut lines = format!("hostname: {}\n", hostname());
        for (label, value) in [
            ("task", variable("TASK")),
            ("node", variable("NODE")),
            ("service", variable("SERVICE")),
            ("version", version.to_owned()),
        ] {
            if !value.is_empty() {
                writeln!(lines, "{label}: {value}").expect("writing to a string succeeds");
            }
        }
        for address in local_addresses(&fib) {
            writeln!(lines, "ip: {address}").expect("writing to a string succeeds");
        }
        Self { task: variable("TASK"), lines }
    }

    /// The answer to a peer.
    pub fn answer(&self, local: SocketAddr, remote: SocketAddr, method: &str, target: &str) -> String {
        format!("{}local: {local}\npeer: {remote}\nrequest: {method} {target}\n", self.lines)
    }
}

/// The name that the kernel has, which is the container's.
pub fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Own addresses from `/proc/net/fib_trie`: each is a leaf `|-- a.b.c.d` with a line `/32 host LOCAL` below.
fn local_addresses(fib: &str) -> Vec<Ipv4Addr> {
    let mut addresses = Vec::new();
    let mut leaf = None;
    for line in fib.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            leaf = address.trim().parse::<Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL") {
            addresses.extend(leaf.filter(|address| !address.is_loopback()));
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_found_once() {
        let fib = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\n     |-- 10.0.0.5\n        \
                   /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n     |-- 10.0.0.5\n        \
                   /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n";
        assert_eq!(local_addresses(fib), [Ipv4Addr::new(10, 0, 0, 5)]);
    }

    #[test]
    fn an_answer_names_both_ends() {
        let identity = Identity { task: String::new(), lines: "hostname: h\n".into() };
        let (local, remote) = (SocketAddr::from(([10, 0, 0, 1], 80)), SocketAddr::from(([10, 0, 0, 2], 999)));
        assert_eq!(
            identity.answer(local, remote, "GET", "/x"),
            "hostname: h\nlocal: 10.0.0.1:80\npeer: 10.0.0.2:999\nrequest: GET /x\n"
        );
    }
}
