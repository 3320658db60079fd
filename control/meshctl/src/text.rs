//! Tables in docker's plain style.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Table, presets};
use dataplane_model::Generation;
use dataplane_model::inspect::{
    DropsReport, EndpointRow, HookRow, LoadBalancerRow, NodeStatus, ProgramCounters,
};

mod gossip;
mod tables;

pub use gossip::gossip;
pub use tables::{fdb, flows, rings};

/// Spaces between columns, as docker has it.
const COLUMN_GAP: u16 = 3;

/// What is shown where there is nothing.
pub const NOTHING: &str = "-";

pub fn status(status: &NodeStatus) -> String {
    let vtep = status.vtep.map_or_else(|| NOTHING.to_owned(), |vtep| vtep.to_string());
    let state = if status.wanted == status.applied { "converged" } else { "converging" };
    let generations = if status.from_pins {
        [NOTHING.to_owned(), NOTHING.to_owned()]
    } else {
        [generation(status.wanted), format!("{} ({state})", generation(status.applied))]
    };
    let [wanted, applied] = generations;
    let rows = [
        ("Node", or_nothing(&status.hostname)),
        ("Node ID", or_nothing(&status.node_id)),
        ("Cluster ID", or_nothing(&status.cluster_id)),
        ("Role", or_nothing(&status.role)),
        ("Tunnel end", vtep),
        ("Generation wanted", wanted),
        ("Generation applied", applied),
        ("Read from", if status.from_pins { "pins (meshd does not answer)" } else { "meshd" }.to_owned()),
    ];
    let mut out = String::new();
    for (name, value) in rows {
        writeln!(out, "{:<21}{value}", format!("{name}:")).expect("a string takes all");
    }
    for error in &status.errors {
        writeln!(out, "{:<21}{error}", "Error:").expect("a string takes all");
    }
    out + "\n" + &hooks(&status.hooks)
}

pub fn hooks(rows: &[HookRow]) -> String {
    let cells = rows.iter().map(|row| {
        [&row.interface, &row.hook, &row.program, &row.reason]
            .map(|text| Cell::new(or_nothing(text)))
            .to_vec()
    });
    table(&["INTERFACE", "HOOK", "PROGRAM", "REASON"], cells)
}

pub fn or_nothing(text: &str) -> String {
    if text.is_empty() { NOTHING } else { text }.to_owned()
}

/// A line per backend; the frontend is on the first of its lines.
pub fn load_balancers(rows: &[LoadBalancerRow]) -> String {
    let header = ["FRONTEND", "KIND", "VNI", "SERVICE", "RING", "BACKEND", "NODE", "PLACES"];
    table(&header, rows.iter().flat_map(load_balancer))
}

fn load_balancer(row: &LoadBalancerRow) -> Vec<Vec<Cell>> {
    let service = if row.service.is_empty() { NOTHING } else { &row.service };
    let frontend = [
        Cell::new(&row.frontend),
        Cell::new(if row.dsr { format!("{}, dsr", row.kind) } else { row.kind.clone() }),
        number(row.vni),
        Cell::new(service),
        number(row.ring_size),
    ];
    if row.backends.is_empty() {
        return vec![frontend.into_iter().chain([NOTHING; 3].map(Cell::new)).collect()];
    }
    let again = || std::array::from_fn(|_| Cell::new(""));
    let first = std::iter::once(frontend).chain(std::iter::repeat_with(again));
    let line = |(frontend, backend): ([Cell; 5], &dataplane_model::inspect::LoadBalancerBackend)| {
        let backend = [Cell::new(backend.address), Cell::new(backend.vtep), number(backend.places)];
        frontend.into_iter().chain(backend).collect()
    };
    first.zip(&row.backends).map(line).collect()
}

pub fn endpoints(rows: &[EndpointRow]) -> String {
    let cells = rows.iter().map(|row| {
        let node = row.vtep.map_or_else(|| "this node".to_owned(), |vtep| vtep.to_string());
        let interface = row.interface.as_deref().unwrap_or(NOTHING);
        vec![
            number(row.vni),
            Cell::new(row.address),
            Cell::new(&row.mac),
            Cell::new(node),
            Cell::new(interface),
            row.weight.map_or_else(|| Cell::new(NOTHING), number),
        ]
    });
    table(&["VNI", "ADDRESS", "MAC", "NODE", "INTERFACE", "WEIGHT"], cells)
}

/// One table of the programs, and one of the reasons if anything was dropped.
pub fn drops(report: &DropsReport) -> String {
    let programs = report.programs.iter().map(|program| {
        let name = Cell::new(&program.program);
        let counts = [program.received, program.forwarded, program.passed, dropped(program)].map(number);
        std::iter::once(name).chain(counts).chain([number(program.unaccounted())]).collect()
    });
    let out = table(&["PROGRAM", "RECEIVED", "FORWARDED", "PASSED", "DROPPED", "UNACCOUNTED"], programs);
    let reasons: Vec<Vec<Cell>> = report
        .programs
        .iter()
        .flat_map(|program| program.drops.iter().map(|drop| (&program.program, drop)))
        .map(|(program, (reason, count))| vec![Cell::new(program), Cell::new(reason), number(*count)])
        .collect();
    if reasons.is_empty() {
        return out;
    }
    out + "\n" + &table(&["PROGRAM", "DROP REASON", "PACKETS"], reasons.into_iter())
}

fn dropped(program: &ProgramCounters) -> u64 {
    program.drops.iter().map(|(_, count)| count).sum()
}

/// `epoch.index`.
fn generation(generation: Generation) -> String {
    format!("{}.{}", generation.epoch, generation.index)
}

pub fn number(value: impl std::fmt::Display) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// Without borders; lines have no spaces at their end.
pub fn table(header: &[&str], rows: impl Iterator<Item = Vec<Cell>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, COLUMN_GAP));
    }
    let mut out = String::new();
    for line in table.lines() {
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests;
