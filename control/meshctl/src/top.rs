//! `meshctl top`: a page per second, or a line of JSON.

use std::io::IsTerminal as _;

use comfy_table::Cell;
use dataplane_model::inspect::{NodeAnswer, NodeOutcome, TopProgram, TopReport, TopRows, TopService};

use crate::nodes::{Asked, gather, text};
use crate::source::Source;
use crate::text::{NOTHING, number, or_nothing, table};
use crate::{printable, write};

/// Services shown as text: a page of a terminal.
const MAX_SERVICES: usize = 25;

/// Moves the cursor home and clears what is below (ECMA-48, CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// Ends by a signal, or when nobody reads any more; after one second with `once`. As JSON a line per second and node.
pub async fn show(nodes: &[Asked], once: bool, as_json: bool) -> anyhow::Result<()> {
    let clears = !once && !as_json && std::io::stdout().is_terminal();
    loop {
        let answers = gather(nodes, &Source::top).await;
        let out = match &answers[..] {
            // Of one node it is the command's own failure, of several their part of the page.
            [NodeAnswer { hostname, outcome: NodeOutcome::Error(error), .. }] if hostname.is_empty() => {
                anyhow::bail!("{error}")
            }
            [NodeAnswer { hostname, outcome: NodeOutcome::Answer(report), .. }] if hostname.is_empty() => {
                if as_json {
                    serde_json::to_string(report)? + "\n"
                } else {
                    page(report)
                }
            }
            answers if as_json => {
                let lines: Result<Vec<String>, _> = answers.iter().map(serde_json::to_string).collect();
                lines?.into_iter().map(|line| line + "\n").collect()
            }
            answers => text(answers, page),
        };
        let out = if as_json { out } else { printable(&out) };
        let out = if clears { CLEAR.to_owned() + &out } else { out };
        if !write(&out)? || once {
            return Ok(());
        }
    }
}

fn page(report: &TopReport) -> String {
    let services = report.services.iter().take(MAX_SERVICES).map(|row| service(row, report.elapsed_ms));
    let header = ["PORT", "SERVICE", "ENTERING", "NEW/S", "KEPT", "NEW/S", "SOCKETS", "NEW/S"];
    let services = table(&header, services);
    let left_off = match report.services.len().saturating_sub(MAX_SERVICES) {
        0 => String::new(),
        n_left_off => format!("({n_left_off} more are not shown, see --json)\n"),
    };
    let programs = report.programs.iter().map(|row| program(row, report.elapsed_ms));
    let programs = table(&["PROGRAM", "PACKETS/S", "NS/RUN"], programs);
    let mut out = format!("{services}{left_off}\n{programs}");
    if report.programs.iter().any(|row| row.n_packets > 0)
        && report.programs.iter().all(|row| row.n_runs == 0)
    {
        out += "(times are measured while sysctl kernel.bpf_stats_enabled is 1)\n";
    }
    let drops = report.drops.iter().map(|drop| {
        let rate = number(rate(drop.n_packets, report.elapsed_ms));
        vec![Cell::new(&drop.program), Cell::new(&drop.reason), rate]
    });
    if report.drops.is_empty() {
        return out + "\nNothing was dropped.\n\n";
    }
    out + "\n" + &table(&["PROGRAM", "DROP REASON", "PACKETS/S"], drops) + "\n"
}

fn service(row: &TopService, elapsed_ms: u64) -> Vec<Cell> {
    let rows = |rows: TopRows| [number(rows.n_now), number(rate(rows.n_new, elapsed_ms))];
    let head = [Cell::new(&row.port), Cell::new(or_nothing(&row.service))];
    let tables = [row.entering, row.kept, row.sockets].into_iter().flat_map(rows);
    head.into_iter().chain(tables).collect()
}

fn program(row: &TopProgram, elapsed_ms: u64) -> Vec<Cell> {
    let time =
        row.run_time_ns.checked_div(row.n_runs).map_or_else(|| NOTHING.to_owned(), |ns| ns.to_string());
    vec![Cell::new(&row.program), number(rate(row.n_packets, elapsed_ms)), number(time)]
}

/// Per second, rounded.
fn rate(count: u64, elapsed_ms: u64) -> u64 {
    let elapsed_ms = u128::from(elapsed_ms.max(1));
    u64::try_from((u128::from(count) * 1000 + elapsed_ms / 2) / elapsed_ms).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use dataplane_model::inspect::TopDrop;

    use super::*;

    fn report() -> TopReport {
        let rows = |n_now, n_new| TopRows { n_now, n_new };
        let program = |program: &str, n_packets, n_runs, run_time_ns| {
            let program = program.to_owned();
            TopProgram { program, n_packets, n_runs, run_time_ns }
        };
        TopReport {
            elapsed_ms: 2000,
            services: vec![TopService {
                port: "8080/tcp".to_owned(),
                service: "web".to_owned(),
                entering: rows(30, 20),
                kept: rows(5, 1),
                sockets: rows(0, 0),
            }],
            programs: vec![program("mesh_uplink", 1000, 1000, 250_000), program("mesh_task", 7, 0, 0)],
            drops: vec![TopDrop {
                program: "mesh_uplink".to_owned(),
                reason: "no-backend".to_owned(),
                n_packets: 3,
            }],
        }
    }

    #[test]
    fn a_page_has_rates() {
        let expected = "\
PORT       SERVICE   ENTERING   NEW/S   KEPT   NEW/S   SOCKETS   NEW/S
8080/tcp   web             30      10      5       1         0       0

PROGRAM       PACKETS/S   NS/RUN
mesh_uplink         500      250
mesh_task             4        -

PROGRAM       DROP REASON   PACKETS/S
mesh_uplink   no-backend            2

";
        assert_eq!(page(&report()), expected);
    }

    #[test]
    fn what_is_missing_is_said() {
        let mut report = report();
        report.programs[0].n_runs = 0;
        report.drops.clear();
        report.services = vec![report.services[0].clone(); MAX_SERVICES + 2];
        let page = page(&report);
        assert!(page.contains("kernel.bpf_stats_enabled is 1"), "{page}");
        assert!(page.contains("Nothing was dropped."), "{page}");
        assert!(page.contains("(2 more are not shown, see --json)"), "{page}");
    }
}
