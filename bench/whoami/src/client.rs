//! The HTTP client.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::dns::resolve_service;
use crate::http::{parse_response, parse_url};
use crate::{CommandResult, option, positional};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer of ours is a few hundred bytes.
const ANSWER_LEN_MAX: u64 = 1 << 20;

/// One kind of request.
struct Call {
    host: String,
    target: SocketAddr,
    path: String,
    timeout: Duration,
}

/// `get URL [-n N] [--only NAME] [--timeout MS] [--resolve NAME=ADDRESS]`.
pub fn get(options: &[&str]) -> CommandResult {
    let words = positional(options, &["-n", "--only", "--timeout", "--resolve"])?;
    let [url] = words.as_slice() else { return Err("get needs one URL".into()) };
    let n = option(options, "-n").map_or(Ok(1), str::parse::<u32>).map_err(|_| "-n needs a number")?;
    let timeout = option(options, "--timeout").map(str::parse::<u64>).transpose();
    let timeout =
        timeout.map_err(|_| "--timeout needs milliseconds")?.map_or(DEFAULT_TIMEOUT, Duration::from_millis);
    let call = Call::new(url, timeout, option(options, "--resolve"))?;
    let mut failed = 0;
    for _ in 0..n {
        match call.run() {
            Ok(body) => show(&body, option(options, "--only")),
            Err(error) => {
                eprintln!("whoami: {error}");
                failed += 1;
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {n} requests failed")) }
}

/// `healthcheck [URL | --file PATH]`.
pub fn health_check(options: &[&str]) -> CommandResult {
    let words = positional(options, &["--file"])?;
    if let Some(file) = option(options, "--file") {
        return if Path::new(file).exists() { Ok(()) } else { Err(format!("no {file}")) };
    }
    let url = words.first().copied().unwrap_or("http://127.0.0.1/");
    Call::new(url, DEFAULT_TIMEOUT, None)?.run().map(|_| ())
}

fn show(body: &str, only: Option<&str>) {
    match only {
        None => println!("{body}"),
        Some(name) => {
            let prefix = format!("{name}: ");
            body.lines().filter_map(|line| line.strip_prefix(&prefix)).for_each(|value| println!("{value}"));
        }
    }
}

impl Call {
    fn new(url: &str, timeout: Duration, fixed: Option<&str>) -> Result<Self, String> {
        let (host, port, path) = parse_url(url).ok_or_else(|| format!("{url}: not an http:// URL"))?;
        let address = match fixed.and_then(|rule| rule.split_once('=')).filter(|(name, _)| *name == host) {
            Some((_, address)) => address.parse::<Ipv4Addr>().map_err(|_| "--resolve needs NAME=ADDRESS")?,
            None => *resolve_service(host)?.first().ok_or("no address")?,
        };
        Ok(Self { host: host.to_owned(), target: SocketAddr::from((address, port)), path, timeout })
    }

    /// The body of a good answer.
    fn run(&self) -> Result<String, String> {
        let answer = self.exchange().map_err(|error| format!("{}: {error}", self.target))?;
        match parse_response(&answer) {
            Some((200..=299, body)) => Ok(body),
            Some((code, _)) => Err(format!("{}: status {code}", self.target)),
            None => Err(format!("{}: no HTTP answer", self.target)),
        }
    }

    fn exchange(&self) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&self.target, self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        let (path, host) = (&self.path, &self.host);
        stream.write_all(
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut answer = Vec::new();
        stream.take(ANSWER_LEN_MAX).read_to_end(&mut answer)?;
        Ok(answer)
    }
}
