//! HTTP load by `wrk`: 32 connections from one thread.

use anyhow::{Context as _, Result, ensure};

use crate::netns::Place;

/// Connections at a time: enough to keep both cores busy, as many as one thread serves without queueing.
const CONNECTIONS: u32 = 32;

/// Whether connections are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    Kept,
    /// A new one for every request.
    Short,
}

/// Requests per second that `url` answers to a client in `place`.
pub fn requests_per_second(place: &Place, url: &str, connections: Connections, seconds: u32) -> Result<f64> {
    let mut args = vec![
        "-t1".to_owned(),
        format!("-c{CONNECTIONS}"),
        format!("-d{seconds}s"),
        "--timeout=5s".to_owned(),
    ];
    if connections == Connections::Short {
        args.extend(["-H".to_owned(), "Connection: close".to_owned()]);
    }
    args.push(url.to_owned());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    parse(&place.run("wrk", &args)?)
}

/// The rate; an error if a request failed.
fn parse(output: &str) -> Result<f64> {
    let value = |name: &str| output.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    ensure!(value("Non-2xx or 3xx responses:").is_none(), "requests were refused: {output}");
    ensure!(value("Socket errors:").is_none_or(is_harmless), "requests failed: {output}");
    let rate: f64 = value("Requests/sec:").and_then(|rate| rate.parse().ok()).context("wrk gave no rate")?;
    ensure!(rate > 0.0, "not one request was answered");
    Ok(rate)
}

/// Reads that end with the connection are how a server closes it; all else is a failure.
fn is_harmless(errors: &str) -> bool {
    errors.split(',').all(|part| part.trim().starts_with("read ") || part.trim().ends_with(" 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "Running 1s test @ http://127.0.0.1:80/\n  1 threads and 32 connections\n  Thread Stats   \
        Avg      Stdev     Max   +/- Stdev\n    Latency   225.44us   71.15us   2.69ms   94.40%\n  151205 requests in \
        1.10s, 28.12MB read\nRequests/sec: 137477.59\nTransfer/sec:     25.57MB\n";

    #[test]
    fn the_rate_is_read() {
        assert!((parse(OUTPUT).unwrap() - 137_477.59).abs() < 0.001);
        assert!(parse("").is_err());
    }

    #[test]
    fn failures_are_no_rate() {
        let with = |line: &str| parse(&OUTPUT.replace("Requests/sec", &format!("  {line}\nRequests/sec")));
        assert!(with("Socket errors: connect 0, read 3, write 0, timeout 0").is_ok());
        assert!(with("Socket errors: connect 0, read 0, write 0, timeout 1").is_err());
        assert!(with("Non-2xx or 3xx responses: 5").is_err());
    }
}
