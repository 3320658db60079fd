//! Rings, flows, and where things are sent.

use std::net::IpAddr;

use comfy_table::Cell;
use dataplane_model::inspect::{
    CachedFlow, FdbEndpoint, FdbReport, FlowsReport, KeptFlow, RingReport, RingRow,
};

use super::{NOTHING, number, or_nothing, table};

/// For each ring what it serves, then a line per backend of it and of its earlier ones.
pub fn rings(reports: &[RingReport]) -> String {
    let parts: Vec<String> = reports.iter().map(ring).collect();
    parts.join("\n")
}

fn ring(report: &RingReport) -> String {
    let head = format!(
        "{:<12}{}\n{:<12}{}\n{:<12}{}\n\n",
        "Service:",
        or_nothing(&report.service),
        "VNI:",
        report.vni,
        "Frontends:",
        report.frontends.join(", ")
    );
    let header = ["RING", "SIZE", "BACKEND", "NODE", "PLACES", "SHARE"];
    head + &table(&header, report.rings.iter().flat_map(ring_lines))
}

fn ring_lines(ring: &RingRow) -> Vec<Vec<Cell>> {
    let age = match ring.age {
        0 => "in use".to_owned(),
        age => format!("earlier {age}"),
    };
    let first = [Cell::new(age), number(ring.size)];
    if ring.backends.is_empty() {
        return vec![first.into_iter().chain([NOTHING; 4].map(Cell::new)).collect()];
    }
    let again = || std::array::from_fn(|_| Cell::new(""));
    let heads = std::iter::once(first).chain(std::iter::repeat_with(again));
    let lines = heads.zip(&ring.backends).map(|(head, backend)| {
        let share = f64::from(backend.places) * 100.0 / f64::from(ring.size.max(1));
        let node = if backend.vtep.is_unspecified() { "gone".to_owned() } else { backend.vtep.to_string() };
        let cells = [Cell::new(backend.address), Cell::new(node), number(backend.places)];
        head.into_iter().chain(cells).chain([number(format!("{share:.1} %"))]).collect()
    });
    lines.collect()
}

/// The two tables, each followed by how many rows are not shown.
pub fn flows(report: &FlowsReport) -> String {
    let cached = table(&["PROTOCOL", "CLIENT", "SERVICE", "BACKEND"], report.cached.iter().map(cached_flow));
    let header = ["PROTOCOL", "CLIENT", "SERVICE", "BACKEND", "SEEN AS", "STATE", "IDLE"];
    let kept = table(&header, report.kept.iter().map(kept_flow));
    format!(
        "Flow cache of this node\n{cached}{}{}\nFlows kept for this node's backends\n{kept}{}{}",
        left_off(report.n_cached_left_off),
        kept_out(report.n_unremembered, "choices were not remembered: too many flows began at once"),
        left_off(report.n_kept_left_off),
        kept_out(report.n_displaced, "half-open flows made room for younger ones")
    )
}

fn kept_out(n_flows: u64, what: &str) -> String {
    if n_flows == 0 { String::new() } else { format!("({n_flows} {what})\n") }
}

fn left_off(n_flows: u64) -> String {
    if n_flows == 0 { String::new() } else { format!("({n_flows} more are not shown, see --limit)\n") }
}

fn cached_flow(flow: &CachedFlow) -> Vec<Cell> {
    vec![Cell::new(&flow.protocol), Cell::new(flow.client), Cell::new(flow.service), Cell::new(flow.backend)]
}

fn kept_flow(flow: &KeptFlow) -> Vec<Cell> {
    vec![
        Cell::new(&flow.protocol),
        Cell::new(flow.client),
        Cell::new(flow.service),
        Cell::new(flow.backend),
        Cell::new(seen_as(flow)),
        Cell::new(&flow.state),
        number(format!("{} s", flow.idle_secs)),
    ]
}

/// The client as the task sees it: its port, and the address if that isn't its own.
fn seen_as(flow: &KeptFlow) -> String {
    let address = flow.client_address_seen.map(|address| address.to_string()).unwrap_or_default();
    format!("{address}:{}", flow.client_port_seen)
}

/// Three tables.
pub fn fdb(report: &FdbReport) -> String {
    let peers = table(&["PEER"], report.peers.iter().map(|peer| vec![Cell::new(peer)]));
    let owners = report.owners.iter().map(|row| vec![Cell::new(row.address), Cell::new(node(row.vtep))]);
    let owners = table(&["ADDRESS", "OWNER"], owners);
    let header = ["VNI", "ENDPOINT", "MAC", "NODE", "IFINDEX", "INTERFACE", "SERVES"];
    let endpoints = table(&header, report.endpoints.iter().map(endpoint));
    format!("{peers}\n{owners}\n{endpoints}")
}

fn endpoint(row: &FdbEndpoint) -> Vec<Cell> {
    vec![
        number(row.vni),
        Cell::new(row.address),
        Cell::new(&row.mac),
        Cell::new(node(row.vtep)),
        number(row.ifindex.map_or_else(|| NOTHING.to_owned(), |ifindex| ifindex.to_string())),
        Cell::new(row.interface.as_deref().unwrap_or(NOTHING)),
        Cell::new(if row.serves { "yes" } else { "no" }),
    ]
}

fn node(vtep: Option<IpAddr>) -> String {
    vtep.map_or_else(|| "this node".to_owned(), |vtep| vtep.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use dataplane_model::inspect::{LoadBalancerBackend, OwnerRow};

    use super::*;

    const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 12));

    fn task(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, host)
    }

    #[test]
    fn a_ring_shows_shares_and_what_it_was() {
        let backend = |host, vtep, places| LoadBalancerBackend { address: task(host), vtep, places };
        let in_use = vec![backend(5, NODE, 70), backend(6, NODE, 141)];
        let before = vec![backend(9, Ipv4Addr::UNSPECIFIED.into(), 101)];
        let report = RingReport {
            service: "whoami".to_owned(),
            vni: 4096,
            frontends: vec!["198.18.0.11:8080/tcp".to_owned(), "127.0.0.1:8080/tcp".to_owned()],
            rings: vec![
                RingRow { age: 0, size: 211, backends: in_use },
                RingRow { age: 1, size: 101, backends: before },
                RingRow { age: 2, size: 0, backends: vec![] },
            ],
        };
        let expected = "\
Service:    whoami
VNI:        4096
Frontends:  198.18.0.11:8080/tcp, 127.0.0.1:8080/tcp

RING        SIZE   BACKEND    NODE          PLACES   SHARE
in use       211   10.0.0.5   198.18.0.12       70    33.2 %
                   10.0.0.6   198.18.0.12      141    66.8 %
earlier 1    101   10.0.0.9   gone             101   100.0 %
earlier 2      0   -          -             -        -
";
        assert_eq!(rings(&[report]), expected);
    }

    #[test]
    fn flows_say_how_many_are_left_off() {
        let report = FlowsReport {
            cached: vec![],
            n_cached_left_off: 0,
            kept: vec![KeptFlow {
                protocol: "tcp".to_owned(),
                client: "198.18.0.100:40000".parse().unwrap(),
                service: "198.18.0.11:8080".parse().unwrap(),
                backend: "10.0.0.5:80".parse().unwrap(),
                client_port_seen: 40000,
                client_address_seen: None,
                state: "established".to_owned(),
                idle_secs: 7,
            }],
            n_kept_left_off: 3,
            n_unremembered: 0,
            n_displaced: 5,
        };
        let expected = "\
Flow cache of this node
PROTOCOL   CLIENT   SERVICE   BACKEND

Flows kept for this node's backends
PROTOCOL   CLIENT               SERVICE            BACKEND       SEEN AS   STATE         IDLE
tcp        198.18.0.100:40000   198.18.0.11:8080   10.0.0.5:80   :40000    established    7 s
(3 more are not shown, see --limit)
(5 half-open flows made room for younger ones)
";
        assert_eq!(flows(&report), expected);
        let mut translated = report.kept[0].clone();
        translated.client_address_seen = Some("246.64.1.2".parse().unwrap());
        assert_eq!(seen_as(&translated), "246.64.1.2:40000");
    }

    #[test]
    fn the_fdb_has_three_tables() {
        let endpoint = |host, here: bool| FdbEndpoint {
            vni: 4096,
            address: task(host),
            mac: "02:42:0a:00:00:05".to_owned(),
            vtep: (!here).then_some(NODE),
            ifindex: here.then_some(12),
            interface: here.then(|| "mv0123".to_owned()),
            serves: here,
        };
        let report = FdbReport {
            peers: vec![NODE],
            owners: vec![
                OwnerRow { address: NODE, vtep: Some(NODE) },
                OwnerRow { address: task(1).into(), vtep: None },
            ],
            endpoints: vec![endpoint(5, true), endpoint(6, false)],
        };
        let expected = "\
PEER
198.18.0.12

ADDRESS       OWNER
198.18.0.12   198.18.0.12
10.0.0.1      this node

VNI    ENDPOINT   MAC                 NODE          IFINDEX   INTERFACE   SERVES
4096   10.0.0.5   02:42:0a:00:00:05   this node          12   mv0123      yes
4096   10.0.0.6   02:42:0a:00:00:05   198.18.0.12         -   -           no
";
        assert_eq!(fdb(&report), expected);
    }
}
