//! Asks the service DNS directly: a static program can't rely on libc's resolver. RFC 1035, A records.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::{CommandResult, option, positional};

/// The DNS server of every container.
const SERVICE_DNS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const DNS_PORT: u16 = 53;
/// Wait for one answer; then the question is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS: u16 = 3;
/// Longest datagram without EDNS is 512 bytes; a server may know better.
const ANSWER_LEN_MAX: usize = 4096;
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;
const NXDOMAIN: u8 = 3;

/// What a server answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// RFC 1035 section 4.1.1.
    pub code: u8,
    pub addresses: Vec<Ipv4Addr>,
}

/// `resolve NAME [--server ADDRESS]`.
pub fn resolve_command(options: &[&str]) -> CommandResult {
    let words = positional(options, &["--server"])?;
    let [name] = words.as_slice() else { return Err("resolve needs one name".into()) };
    let server = option(options, "--server").map_or(Ok(IpAddr::V4(SERVICE_DNS)), str::parse);
    let server = server.map_err(|_| "--server needs an address".to_owned())?;
    for address in resolve(name, server)? {
        println!("{address}");
    }
    Ok(())
}

/// Addresses of a name by the service DNS; an address is its own.
pub fn resolve_service(name: &str) -> Result<Vec<Ipv4Addr>, String> {
    match name.parse() {
        Ok(address) => Ok(vec![address]),
        Err(_) => resolve(name, IpAddr::V4(SERVICE_DNS)),
    }
}

fn resolve(name: &str, server: IpAddr) -> Result<Vec<Ipv4Addr>, String> {
    let answer = ask(name, server).map_err(|error| format!("{name}: {server} does not answer: {error}"))?;
    match answer {
        Answer { code: NXDOMAIN, .. } => Err(format!("{name}: NXDOMAIN")),
        Answer { code: 0, addresses } if addresses.is_empty() => Err(format!("{name}: no address")),
        Answer { code: 0, addresses } => Ok(addresses),
        Answer { code, .. } => Err(format!("{name}: the server refused with code {code}")),
    }
}

fn ask(name: &str, server: IpAddr) -> io::Result<Answer> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddr::new(server, DNS_PORT))?;
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for attempt in 0..ATTEMPTS {
        let id =
            attempt.wrapping_mul(7919).wrapping_add(u16::try_from(std::process::id() & 0xffff).unwrap_or(1));
        let question = question(id, name).ok_or(io::ErrorKind::InvalidInput)?;
        match exchange(&socket, id, &question) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn exchange(socket: &UdpSocket, id: u16, question: &[u8]) -> io::Result<Answer> {
    socket.send(question)?;
    let start = Instant::now();
    while let Some(left) = ANSWER_TIMEOUT.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        let mut bytes = [0; ANSWER_LEN_MAX];
        let len = socket.recv(&mut bytes)?;
        if let Some(answer) = parse(&bytes[..len], id) {
            return Ok(answer);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// A question for A records, recursion desired. `None` if the name fits no question.
fn question(id: u16, name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::from(id.to_be_bytes());
    bytes.extend([0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..64).contains(len))?;
        bytes.push(len);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(TYPE_A.to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    Some(bytes)
}

/// Reads an answer with this id. `None` for anything else.
fn parse(bytes: &[u8], id: u16) -> Option<Answer> {
    let field = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    if field(0)? != id || bytes.get(2)? & 0x80 == 0 {
        return None;
    }
    let code = bytes.get(3)? & 0x0f;
    let mut at = 12;
    for _ in 0..field(4)? {
        at = skip_name(bytes, at)? + 4;
    }
    let mut addresses = Vec::new();
    for _ in 0..field(6)? {
        at = skip_name(bytes, at)?;
        let (kind, len) = (field(at)?, usize::from(field(at + 8)?));
        let data = bytes.get(at + 10..at + 10 + len)?;
        if let (TYPE_A, [a, b, c, d]) = (kind, data) {
            addresses.push(Ipv4Addr::new(*a, *b, *c, *d));
        }
        at += 10 + len;
    }
    Some(Answer { code, addresses })
}

/// Where the name at `at` ends; a pointer (section 4.1.4) ends it.
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            len if len & 0xc0 == 0xc0 => return Some(at + 2),
            len => at += 1 + usize::from(len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer_to(question: &[u8]) -> Vec<u8> {
        let mut bytes = question.to_vec();
        bytes[2] |= 0x80;
        bytes[7] = 2;
        for last in [4, 5] {
            bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 10, 0, 1, last]);
        }
        bytes
    }

    #[test]
    fn answers_are_read() {
        let question = question(7, "tasks.whoami").expect("a good name");
        let bytes = answer_to(&question);
        let addresses = vec![Ipv4Addr::new(10, 0, 1, 4), Ipv4Addr::new(10, 0, 1, 5)];
        assert_eq!(parse(&bytes, 7), Some(Answer { code: 0, addresses }));
        assert_eq!(parse(&bytes, 8), None, "another question's");
        assert_eq!(parse(&question, 7), None, "a question is no answer");
        let mut refused = question.clone();
        (refused[2], refused[3]) = (0x81, 3);
        assert_eq!(parse(&refused, 7), Some(Answer { code: NXDOMAIN, addresses: vec![] }));
    }

    #[test]
    fn cut_answers_and_bad_names_are_refused() {
        let bytes = answer_to(&question(7, "a.b").expect("a good name"));
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len], 7), None, "cut at {len}");
        }
        for name in ["", "a..b", &"x".repeat(64)] {
            assert_eq!(question(1, name), None, "{name:?}");
        }
    }
}
