//! What a node's gossip knows.

use std::fmt::Write as _;

use comfy_table::Cell;
use dataplane_model::inspect::{AgentState, GossipMember, GossipReport, PathState};

use super::{NOTHING, number, table};

/// The node's own standing, then a line per other node, then what was refused.
pub fn gossip(report: &GossipReport) -> String {
    let key = report.key.map_or_else(|| NOTHING.to_owned(), |key| key.to_string());
    let keys: Vec<String> = report.keys.iter().map(u32::to_string).collect();
    let refused: u64 = report.refused.iter().map(|(_, n)| n).sum();
    let rows = [
        ("Incarnation", report.incarnation.to_string()),
        ("Own trouble", format!("{} of 8", report.trouble)),
        ("Key in use", format!("{key} (accepted: {})", keys.join(", "))),
        ("Datagrams", format!("{} sent, {} taken, {refused} refused", report.n_sent, report.n_received)),
        ("Exchanges", format!("{} done, {} failed", report.n_exchanged, report.n_exchanges_failed)),
        ("Ended tasks", report.ended.len().to_string()),
    ];
    let mut out = String::new();
    for (name, value) in rows {
        writeln!(out, "{:<14}{value}", format!("{name}:")).expect("a string takes all");
    }
    let header = ["NODE", "GOSSIP", "AGENT", "INCARNATION", "TUNNEL END", "DATA PATH", "MISSED", "PROBED"];
    out.push('\n');
    out.push_str(&table(&header, report.members.iter().map(member)));
    let refused: Vec<Vec<Cell>> = report
        .refused
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(why, n)| vec![Cell::new(why), number(n)])
        .collect();
    if !refused.is_empty() {
        out.push('\n');
        out.push_str(&table(&["REFUSED", "DATAGRAMS"], refused.into_iter()));
    }
    out
}

fn member(member: &GossipMember) -> Vec<Cell> {
    let agent = member.agent.as_ref();
    let state = agent.map_or_else(
        || "takes no part".to_owned(),
        |agent| match agent.state {
            AgentState::Alive => "alive".to_owned(),
            AgentState::Suspect => format!("suspect, say {}", agent.suspected_by.len()),
            AgentState::Silent => "silent".to_owned(),
        },
    );
    let path = match member.path.state {
        PathState::Unknown => "unknown",
        PathState::Answers => "answers",
        PathState::Silent => "silent",
    };
    let probed = member.path.probed_ms_ago;
    vec![
        Cell::new(&member.node_id),
        Cell::new(member.address.map_or_else(|| NOTHING.to_owned(), |address| address.to_string())),
        Cell::new(state),
        agent.map_or_else(|| Cell::new(NOTHING), |agent| number(agent.incarnation)),
        Cell::new(member.data_path),
        Cell::new(path),
        number(member.path.n_missed),
        probed.map_or_else(|| Cell::new(NOTHING), |ago| number(format!("{ago} ms ago"))),
    ]
}
