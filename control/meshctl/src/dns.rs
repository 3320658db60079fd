//! `meshctl dns`: what the node's DNS process serves, and what a task gets for a name.

use std::fmt::Write as _;
use std::net::SocketAddr;

use clap::Subcommand;
use comfy_table::Cell;
use dataplane_model::inspect::{DnsQueryReport, DnsRecord, DnsSandbox, DnsWay, DnsZoneReport};

use crate::parse_name;
use crate::source::Source;
use crate::text::{number, or_nothing, table};

#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// The names that the DNS process has for this node's sandboxes
    Zone {
        /// Only what is served to this task (name, id, or the beginning of one)
        #[arg(long, value_name = "TASK", value_parser = parse_name)]
        task: Option<String>,
        /// Only this network
        #[arg(long, value_name = "NETWORK", value_parser = parse_name)]
        network: Option<String>,
    },
    /// What a task of this node gets for a name, and where the answer comes from
    Query {
        /// The task that asks (name, id, or the beginning of one)
        #[arg(long, value_name = "TASK", value_parser = parse_name)]
        task: String,
        /// As it is: search domains are the task's own affair
        #[arg(value_parser = parse_name)]
        name: String,
        #[arg(value_name = "TYPE", default_value = "A", value_parser = parse_name)]
        record_type: String,
    },
}

/// What is served, if there is anything in the network that was asked for.
pub async fn ask_zone(
    source: &Source,
    task: Option<&str>,
    network: Option<&str>,
) -> anyhow::Result<DnsZoneReport> {
    let report = source.dns_zone(task, network).await?;
    if let Some(network) = network {
        anyhow::ensure!(!report.sandboxes.is_empty(), "no task of this node is in a network {network}");
    }
    Ok(report)
}

/// The sandboxes and what they may ask, then the names.
pub fn zone(report: &DnsZoneReport) -> String {
    let sandboxes =
        table(&["SANDBOX", "TASK", "NETWORKS", "OTHER NAMES"], report.sandboxes.iter().map(sandbox));
    let names = report.names.iter().map(|row| {
        let values =
            if row.values.is_empty() { "(no address now)".to_owned() } else { row.values.join(", ") };
        vec![
            Cell::new(&row.network),
            Cell::new(&row.name),
            Cell::new(or_nothing(&row.record_type)),
            number(row.ttl_s),
            Cell::new(values),
        ]
    });
    format!("{sandboxes}\n{}", table(&["NETWORK", "NAME", "TYPE", "TTL", "VALUE"], names))
}

fn sandbox(row: &DnsSandbox) -> Vec<Cell> {
    let forwarding = match row.forwarding.as_str() {
        "nowhere" => "denied".to_owned(),
        "node" => "asked of the node's resolvers".to_owned(),
        servers => format!("asked of {servers}"),
    };
    let short = if row.keeps_short_names { ", those of one label denied" } else { "" };
    vec![
        Cell::new(&row.sandbox),
        Cell::new(or_nothing(&row.task)),
        Cell::new(or_nothing(&row.networks.join(", "))),
        Cell::new(format!("{forwarding}{short}")),
    ]
}

pub fn query(report: &DnsQueryReport) -> String {
    let rows = [
        ("Task", report.sandbox.clone()),
        ("Question", format!("{} {}", report.name, report.record_type)),
        ("Code", report.code.clone()),
        ("From", way(report.way)),
        ("Took", format!("{} µs", report.took_us)),
    ];
    let mut out = String::new();
    for (name, value) in rows {
        writeln!(out, "{:<11}{value}", format!("{name}:")).expect("a string takes all");
    }
    let sections = [
        ("answer", &report.answers),
        ("authority", &report.authorities),
        ("additional", &report.additionals),
    ];
    let lines =
        sections.into_iter().flat_map(|(section, rows)| rows.iter().map(move |row| line(section, row)));
    let lines: Vec<Vec<Cell>> = lines.collect();
    if lines.is_empty() {
        return out;
    }
    out + "\n" + &table(&["SECTION", "NAME", "TYPE", "TTL", "DATA"], lines.into_iter())
}

fn line(section: &str, row: &DnsRecord) -> Vec<Cell> {
    let (name, record_type) = (Cell::new(&row.name), Cell::new(&row.record_type));
    vec![Cell::new(section), name, record_type, number(row.ttl_s), Cell::new(&row.data)]
}

fn way(way: DnsWay) -> String {
    let of = |resolver: Option<SocketAddr>| {
        resolver.map_or_else(|| "a resolver".to_owned(), |resolver| resolver.to_string())
    };
    match way {
        DnsWay::OwnZone => "the task's networks".to_owned(),
        DnsWay::NotForwarded => "nobody: no network has the name, and it is not asked for outside".to_owned(),
        DnsWay::Cache { resolver, age_s } => format!("the cache: {} told it {age_s} s ago", of(resolver)),
        DnsWay::Stale { resolver } => {
            format!(
                "the cache: {} told it, it is past its time, and no resolver gives a better one",
                of(resolver)
            )
        }
        DnsWay::Resolver { resolver } => format!("{}, asked now", of(resolver)),
        DnsWay::Nobody => {
            "nobody: no resolver answers (now or a moment ago), or the task has asked too much".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use dataplane_model::inspect::DnsName;

    use super::*;

    #[test]
    fn a_zone_has_sandboxes_and_names() {
        let name = |name: &str, record_type: &str, values: &[&str]| DnsName {
            network: "app".to_owned(),
            name: name.to_owned(),
            record_type: record_type.to_owned(),
            values: values.iter().map(|value| (*value).to_owned()).collect(),
            ttl_s: 5,
        };
        let sandbox = |task: &str, forwarding: &str, keeps_short_names| DnsSandbox {
            sandbox: "t1".to_owned(),
            task: task.to_owned(),
            networks: vec!["app".to_owned(), "back".to_owned()],
            forwarding: forwarding.to_owned(),
            keeps_short_names,
        };
        let report = DnsZoneReport {
            revision: 3,
            sandboxes: vec![sandbox("web.1.t1", "node", true), sandbox("", "nowhere", false)],
            names: vec![
                name("web", "A", &["10.0.1.2"]),
                name("tasks.web", "A", &["10.0.1.5", "10.0.1.6"]),
                name("idle", "", &[]),
            ],
        };
        let expected = "\
SANDBOX   TASK       NETWORKS    OTHER NAMES
t1        web.1.t1   app, back   asked of the node's resolvers, those of one label denied
t1        -          app, back   denied

NETWORK   NAME        TYPE   TTL   VALUE
app       web         A        5   10.0.1.2
app       tasks.web   A        5   10.0.1.5, 10.0.1.6
app       idle        -        5   (no address now)
";
        assert_eq!(zone(&report), expected);
    }

    #[test]
    fn an_answer_says_where_it_comes_from() {
        let report = DnsQueryReport {
            sandbox: "t1".to_owned(),
            name: "example.com".to_owned(),
            record_type: "A".to_owned(),
            code: "NOERROR".to_owned(),
            way: DnsWay::Cache { resolver: Some("192.0.2.53:53".parse().unwrap()), age_s: 4 },
            took_us: 12,
            answers: vec![DnsRecord {
                name: "example.com.".to_owned(),
                record_type: "A".to_owned(),
                ttl_s: 56,
                data: "192.0.2.80".to_owned(),
            }],
            authorities: vec![],
            additionals: vec![],
        };
        let expected = "\
Task:      t1
Question:  example.com A
Code:      NOERROR
From:      the cache: 192.0.2.53:53 told it 4 s ago
Took:      12 µs

SECTION   NAME           TYPE   TTL   DATA
answer    example.com.   A       56   192.0.2.80
";
        assert_eq!(query(&report), expected);
        let denied = DnsQueryReport { way: DnsWay::NotForwarded, answers: vec![], ..report };
        assert!(query(&denied).ends_with("12 µs\n"), "no table without records");
    }
}
