//! DNS load by `dnsperf`: A queries for one name, by UDP.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};

use crate::netns::Place;

/// Queries that wait for an answer at a time.
const OUTSTANDING: u32 = 100;

/// Share of queries that may go without an answer, percent: a socket's buffer overflows now and then.
const MAX_LOST_PERCENT: f64 = 1.0;

/// What a server did.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    pub per_second: f64,
    pub n_answers: f64,
}

/// Asks the server at `address` for `name` from `place`, as fast as it answers.
pub fn ask(place: &Place, address: Ipv4Addr, name: &str, seconds: u32) -> Result<Answered> {
    let mut queries = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut queries, format!("{name} A\n").as_bytes())?;
    let file = queries.path().display().to_string();
    let (address, seconds, outstanding) = (address.to_string(), seconds.to_string(), OUTSTANDING.to_string());
    let args =
        ["-s", &address, "-d", &file, "-l", &seconds, "-q", &outstanding, "-c", "4", "-T", "1", "-t", "2"];
    parse(&place.run("dnsperf", &args)?)
}

/// An error if names were not found or too many queries lost.
fn parse(output: &str) -> Result<Answered> {
    let value = |name: &str| output.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let per_second: f64 =
        value("Queries per second:").and_then(|rate| rate.parse().ok()).context("dnsperf gave no rate")?;
    let codes = value("Response codes:").unwrap_or_default();
    ensure!(codes.starts_with("NOERROR") && !codes.contains(','), "names were not found: {codes}");
    let lost = value("Queries lost:").and_then(|lost| lost.split_once('(')?.1.split_once('%'));
    let lost: f64 = lost.and_then(|(percent, _)| percent.parse().ok()).context("dnsperf gave no loss")?;
    ensure!(lost <= MAX_LOST_PERCENT, "{lost} % of the queries were lost");
    let completed = value("Queries completed:").and_then(|text| text.split_whitespace().next()?.parse().ok());
    Ok(Answered { per_second, n_answers: completed.context("dnsperf gave no number of answers")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "Statistics:\n\n  Queries sent:         184716\n  Queries completed:    184716 (100.00%)\n  \
        Queries lost:         0 (0.00%)\n\n  Response codes:       NOERROR 184716 (100.00%)\n  Average packet size:  \
        request 21, response 37\n  Run time (s):         2.001034\n  Queries per second:   92310.275607\n";

    #[test]
    fn the_rate_is_read() {
        let answered = parse(OUTPUT).unwrap();
        assert!((answered.per_second - 92_310.275_607).abs() < 0.001);
        assert!((answered.n_answers - 184_716.0).abs() < 0.001);
    }

    #[test]
    fn names_that_are_not_found_and_losses_are_no_rate() {
        assert!(parse(&OUTPUT.replace("NOERROR", "NXDOMAIN")).is_err());
        assert!(parse(&OUTPUT.replace("lost:         0 (0.00%)", "lost:         9000 (4.87%)")).is_err());
        assert!(parse("").is_err());
    }
}
