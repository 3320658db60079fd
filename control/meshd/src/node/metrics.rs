//! `/metrics` in Prometheus' text format, version 0.0.4.
//!
//! The format is a line per value: writing it needs no registry. Values are read when they are asked for, so that nothing
//! counts twice.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use control_gossip::service::Counters;
use control_model::TaskState;
use control_model::gossip::Opinion;
use dataplane_kernel::inspect::drop_reasons;
use dataplane_model::inspect::DropsReport;
use dataplane_model::{Generation, Report};

mod scrapes;

pub use scrapes::Scrapes;

/// What is shown of a node.
#[derive(Debug, Default)]
pub struct Metrics {
    /// `None` where nothing is pinned: the node is in no swarm.
    pub maps: Option<Maps>,
    pub raft: Option<Raft>,
    /// The data plane's last report.
    pub report: Option<Report>,
    /// `None` of a node that takes no part in gossip.
    pub gossip: Option<Gossip>,
}

/// What this node's gossip has counted, and thinks.
#[derive(Debug, Default)]
pub struct Gossip {
    pub n_sent: u64,
    pub n_received: u64,
    /// By reason.
    pub refused: Vec<(&'static str, u64)>,
    pub n_exchanged: u64,
    pub n_exchanges_failed: u64,
    pub n_silent_paths: usize,
    pub n_silent_agents: usize,
}

impl Gossip {
    pub fn read(counters: &Counters, opinion: &Opinion) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            n_sent: read(&counters.sent),
            n_received: read(&counters.received),
            refused: counters.refused().map(|(why, n)| (why.word(), n)).collect(),
            n_exchanged: read(&counters.exchanged),
            n_exchanges_failed: read(&counters.exchanges_failed),
            n_silent_paths: opinion.silent_paths.len(),
            n_silent_agents: opinion.silent_agents.len(),
        }
    }
}

/// Read from the kernel's maps.
#[derive(Debug, Default)]
pub struct Maps {
    pub drops: DropsReport,
    pub n_local_endpoints: u64,
    pub n_remote_endpoints: u64,
    pub n_rings: u64,
    pub n_cached_flows: u64,
    pub n_kept_flows: u64,
    pub n_unremembered_flows: u64,
    pub n_displaced_flows: u64,
}

/// Known to managers alone.
#[derive(Debug, Default)]
pub struct Raft {
    pub term: u64,
    pub is_leader: bool,
    pub applied_index: u64,
    pub n_drains_given_up: u64,
    /// What nodes were refused, by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// Of the whole cluster, by the state that was last reported.
    pub tasks: BTreeMap<TaskState, u64>,
}

/// The exposition.
pub fn render(metrics: &Metrics) -> String {
    let mut page = Page::default();
    if let Some(maps) = &metrics.maps {
        programs(&mut page, &maps.drops);
        tables(&mut page, maps);
    }
    if let Some(report) = &metrics.report {
        generations(&mut page, report);
    }
    if let Some(raft) = &metrics.raft {
        of_manager(&mut page, raft);
    }
    if let Some(gossip) = &metrics.gossip {
        of_gossip(&mut page, gossip);
    }
    page.0
}

fn programs(page: &mut Page, report: &DropsReport) {
    let programs = &report.programs;
    page.family("meshd_packets_received_total", "counter", "Packets that a BPF program saw.");
    for program in programs {
        page.value(&[("program", &program.program)], program.received);
    }
    page.family("meshd_packets_forwarded_total", "counter", "Packets that a BPF program sent on itself.");
    for program in programs {
        page.value(&[("program", &program.program)], program.forwarded);
    }
    page.family(
        "meshd_packets_passed_total",
        "counter",
        "Packets that a BPF program left to the kernel's stack.",
    );
    for program in programs {
        page.value(&[("program", &program.program)], program.passed);
    }
    page.family("meshd_packets_dropped_total", "counter", "Packets that a BPF program dropped, by reason.");
    for program in programs {
        // Also the zeros: a series that begins with its first drop hides it from rate().
        for reason in drop_reasons() {
            let count = program.drops.iter().find(|(name, _)| name == reason).map_or(0, |(_, count)| *count);
            page.value(&[("program", &program.program), ("reason", reason)], count);
        }
    }
}

fn tables(page: &mut Page, maps: &Maps) {
    page.family("meshd_endpoints", "gauge", "Endpoints that the node forwards to.");
    page.value(&[("place", "local")], maps.n_local_endpoints);
    page.value(&[("place", "remote")], maps.n_remote_endpoints);
    page.family("meshd_rings", "gauge", "Load balancing rings in use.");
    page.value(&[], maps.n_rings);
    page.family("meshd_flows", "gauge", "Flows: in the node's cache, and kept for its own backends.");
    page.value(&[("table", "cache")], maps.n_cached_flows);
    page.value(&[("table", "kept")], maps.n_kept_flows);
    page.family(
        "meshd_flows_unremembered_total",
        "counter",
        "Choices that the flow cache was not given: a flood.",
    );
    page.value(&[], maps.n_unremembered_flows);
    page.family(
        "meshd_flows_displaced_total",
        "counter",
        "Half-open flows that made room for younger ones: a flood.",
    );
    page.value(&[], maps.n_displaced_flows);
}

fn generations(page: &mut Page, report: &Report) {
    let rows: [(&str, Generation); 2] = [("wanted", report.wanted), ("applied", report.applied)];
    page.family(
        "meshd_generation_epoch",
        "gauge",
        "Fencing epoch of the view wanted, and of the one applied.",
    );
    for (which, generation) in rows {
        page.value(&[("which", which)], generation.epoch);
    }
    page.family("meshd_generation_index", "gauge", "Log index of the view wanted, and of the one applied.");
    for (which, generation) in rows {
        page.value(&[("which", which)], generation.index);
    }
    page.family("meshd_data_plane_errors", "gauge", "What the data plane could not do, as of its last pass.");
    page.value(&[], u64::try_from(report.errors.len()).unwrap_or(u64::MAX));
}

fn of_manager(page: &mut Page, raft: &Raft) {
    page.family("meshd_raft_term", "gauge", "Raft's term, as this manager knows it.");
    page.value(&[], raft.term);
    page.family("meshd_raft_is_leader", "gauge", "1 if this manager leads.");
    page.value(&[], u64::from(raft.is_leader));
    page.family("meshd_raft_applied_index", "gauge", "Log index of the last entry applied here.");
    page.value(&[], raft.applied_index);
    page.family(
        "meshd_drains_given_up_total",
        "counter",
        "Tasks that this manager let stop before every node had taken them out of its rings.",
    );
    page.value(&[], raft.n_drains_given_up);
    page.family(
        "meshd_dispatcher_refused_total",
        "counter",
        "What nodes with valid certificates said or asked, and were refused.",
    );
    for (reason, count) in &raft.refused {
        page.value(&[("reason", reason)], *count);
    }
    page.family("meshd_cluster_tasks", "gauge", "Tasks of the whole cluster, by state.");
    for (state, count) in &raft.tasks {
        page.value(&[("state", state.as_str())], *count);
    }
}

fn of_gossip(page: &mut Page, gossip: &Gossip) {
    page.family("meshd_gossip_datagrams_total", "counter", "Datagrams of gossip, sent and taken.");
    page.value(&[("direction", "sent")], gossip.n_sent);
    page.value(&[("direction", "received")], gossip.n_received);
    page.family(
        "meshd_gossip_refused_total",
        "counter",
        "Datagrams of gossip that changed nothing: foreign, forged, or recorded earlier.",
    );
    for (reason, count) in &gossip.refused {
        page.value(&[("reason", reason)], *count);
    }
    page.family(
        "meshd_gossip_exchanges_total",
        "counter",
        "Exchanges of all that two nodes know, by result.",
    );
    page.value(&[("result", "done")], gossip.n_exchanged);
    page.value(&[("result", "failed")], gossip.n_exchanges_failed);
    page.family("meshd_gossip_silent_nodes", "gauge", "Nodes that this one takes to be silent.");
    page.value(&[("what", "data_path")], u64::try_from(gossip.n_silent_paths).unwrap_or(u64::MAX));
    page.value(&[("what", "agent")], u64::try_from(gossip.n_silent_agents).unwrap_or(u64::MAX));
}

/// The text so far, and the family that the next values belong to.
#[derive(Default)]
struct Page(String, &'static str);

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.1 = name;
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes all");
    }

    /// Labels' values are names of ours: none needs escaping.
    fn value(&mut self, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(self.0, "{}{labels} {value}", self.1).expect("a string takes all");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dataplane_model::inspect::ProgramCounters;

    use super::*;

    fn full() -> Metrics {
        let counters = ProgramCounters {
            program: "mesh_uplink".to_owned(),
            received: 10,
            forwarded: 5,
            passed: 2,
            drops: vec![("no-backend".to_owned(), 3)],
        };
        Metrics {
            maps: Some(Maps {
                drops: DropsReport { programs: vec![counters] },
                n_local_endpoints: 2,
                ..Maps::default()
            }),
            raft: Some(Raft {
                term: 4,
                is_leader: true,
                applied_index: 77,
                n_drains_given_up: 3,
                refused: vec![("foreign", 5)],
                tasks: BTreeMap::from([(TaskState::Running, 6)]),
            }),
            report: Some(Report { applied: Generation { epoch: 1, index: 76 }, ..Report::default() }),
            gossip: Some(Gossip { refused: vec![("forged", 2)], n_silent_agents: 1, ..Gossip::default() }),
        }
    }

    /// Names that the exposition declares.
    fn declared(text: &str) -> BTreeSet<&str> {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
    }

    #[test]
    fn values_have_their_labels() {
        let text = render(&full());
        for line in [
            "meshd_packets_received_total{program=\"mesh_uplink\"} 10",
            "meshd_packets_dropped_total{program=\"mesh_uplink\",reason=\"no-backend\"} 3",
            "meshd_packets_dropped_total{program=\"mesh_uplink\",reason=\"no-route\"} 0",
            "meshd_endpoints{place=\"local\"} 2",
            "meshd_generation_index{which=\"applied\"} 76",
            "meshd_drains_given_up_total 3",
            "meshd_raft_is_leader 1",
            "meshd_dispatcher_refused_total{reason=\"foreign\"} 5",
            "meshd_gossip_refused_total{reason=\"forged\"} 2",
            "meshd_gossip_silent_nodes{what=\"agent\"} 1",
            "meshd_cluster_tasks{state=\"running\"} 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn every_value_belongs_to_a_family() {
        let text = render(&full());
        let declared = declared(&text);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().expect("split gives one");
            assert!(declared.contains(name), "{line}");
        }
    }

    #[test]
    fn a_node_outside_has_nothing_to_tell() {
        assert_eq!(render(&Metrics::default()), "");
    }

    #[test]
    fn the_dashboard_asks_for_what_is_there() {
        let dashboard = include_str!("../../../../docs/grafana-dashboard.json");
        let dashboard: serde_json::Value = serde_json::from_str(dashboard).expect("valid JSON");
        let text = render(&full());
        let mut used = BTreeSet::new();
        for panel in dashboard["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().expect("targets") {
                let query = target["expr"].as_str().expect("a query");
                let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                used.extend(words.filter(|word| word.starts_with("meshd_")).map(str::to_owned));
            }
        }
        let used: BTreeSet<&str> = used.iter().map(String::as_str).collect();
        assert_eq!(used, declared(&text), "every metric is shown, and none that isn't there");
    }
}
