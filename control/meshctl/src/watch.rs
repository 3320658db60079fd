//! `drops --watch`: what was dropped in each second.

use std::time::Duration;

use dataplane_kernel::inspect::drop_text;
use dataplane_model::inspect::{DropsReport, NodeAnswer, NodeOutcome, ProgramCounters};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::nodes::{Asked, gather};
use crate::source::Source;
use crate::{printable, write};

const PERIOD: Duration = Duration::from_secs(1);

/// Ends by SIGINT, or when nobody reads any more. As JSON a line per second and node, in which all programs are. Of several
/// nodes each line names its own; one that says nothing is told of once.
pub async fn drops(nodes: &[Asked], as_json: bool) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut before = gather(nodes, &Source::drops).await;
    if let [NodeAnswer { outcome: NodeOutcome::Error(error), .. }] = &before[..] {
        anyhow::bail!("{error}");
    }
    before.iter().for_each(tell_failure);
    if !as_json && !write(&header())? {
        return Ok(());
    }
    let mut seconds = interval(PERIOD);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is over at once.
    seconds.tick().await;
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = seconds.tick() => {}
        }
        let now = gather(nodes, &Source::drops).await;
        for (before, now) in before.iter().zip(&now) {
            if !write(&second(before, now, as_json)?)? {
                return Ok(());
            }
        }
        before = now;
    }
}

/// What one node's second was.
fn second(
    before: &NodeAnswer<DropsReport>,
    now: &NodeAnswer<DropsReport>,
    as_json: bool,
) -> anyhow::Result<String> {
    let (NodeOutcome::Answer(old), NodeOutcome::Answer(new)) = (&before.outcome, &now.outcome) else {
        // What a node counted while it said nothing is not this second's.
        if matches!(before.outcome, NodeOutcome::Answer(_)) {
            tell_failure(now);
        }
        return Ok(String::new());
    };
    let new = difference(old, new);
    let NodeAnswer { hostname, node_id, .. } = now;
    if hostname.is_empty() {
        return Ok(if as_json { serde_json::to_string(&new)? + "\n" } else { printable(&lines(&new)) });
    }
    if as_json {
        let (hostname, node_id) = (hostname.clone(), node_id.clone());
        let answer = NodeAnswer { hostname, node_id, outcome: NodeOutcome::Answer(new) };
        return Ok(serde_json::to_string(&answer)? + "\n");
    }
    Ok(printable(&lines(&new).replace('\n', &format!("   on {hostname}\n"))))
}

fn tell_failure(answer: &NodeAnswer<DropsReport>) {
    if let NodeOutcome::Error(error) = &answer.outcome {
        eprintln!("{}", printable(&format!("meshctl: {}: {error}", answer.hostname)));
    }
}

/// No packet is missing; it is said if one is.
pub fn is_accounted_for(report: &DropsReport) -> bool {
    let is_sound = report.programs.iter().all(|program| program.unaccounted() == 0);
    if !is_sound {
        eprintln!("meshctl: packets are not accounted for");
    }
    is_sound
}

/// What was counted since. Counters that are lower than before began anew: their maps were replaced.
fn difference(before: &DropsReport, now: &DropsReport) -> DropsReport {
    let programs = now.programs.iter().map(|now| {
        let before = before.programs.iter().find(|before| before.program == now.program);
        before.map_or_else(|| now.clone(), |before| since(before, now))
    });
    DropsReport { programs: programs.collect() }
}

fn since(before: &ProgramCounters, now: &ProgramCounters) -> ProgramCounters {
    if now.received < before.received {
        return now.clone();
    }
    let new_drops = now.drops.iter().filter_map(|(reason, count)| {
        let old = before.drops.iter().find(|(known, _)| known == reason).map_or(0, |(_, count)| *count);
        let new = count.saturating_sub(old);
        (new > 0).then(|| (reason.clone(), new))
    });
    ProgramCounters {
        program: now.program.clone(),
        received: now.received - before.received,
        forwarded: now.forwarded.saturating_sub(before.forwarded),
        passed: now.passed.saturating_sub(before.passed),
        drops: new_drops.collect(),
    }
}

fn header() -> String {
    line("PROGRAM", "DROP REASON", "PACKETS", "MEANING")
}

/// A line per program and reason; nothing for a second without drops.
fn lines(new: &DropsReport) -> String {
    let drops = new.programs.iter().flat_map(|program| program.drops.iter().map(move |drop| (program, drop)));
    drops
        .map(|(program, (reason, count))| {
            line(&program.program, reason, &count.to_string(), drop_text(reason).unwrap_or("-"))
        })
        .collect()
}

/// The columns fit the longest names: what comes later must stand below what is shown.
fn line(program: &str, reason: &str, packets: &str, meaning: &str) -> String {
    format!("{program:<17}   {reason:<22}   {packets:>8}   {meaning}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(received: u64, drops: &[(&str, u64)]) -> DropsReport {
        let drops: Vec<(String, u64)> = drops.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect();
        let n_dropped: u64 = drops.iter().map(|(_, count)| count).sum();
        let (program, passed) = ("mesh_uplink".to_owned(), received - n_dropped);
        DropsReport { programs: vec![ProgramCounters { program, received, forwarded: 0, passed, drops }] }
    }

    #[test]
    fn only_what_is_new_is_shown_with_its_meaning() {
        let before = report(10, &[("no-backend", 2), ("malformed", 1)]);
        let new = difference(&before, &report(17, &[("no-backend", 5), ("malformed", 1), ("no-route", 1)]));
        assert_eq!(new, report(7, &[("no-backend", 3), ("no-route", 1)]));
        assert_eq!(new.programs[0].unaccounted(), 0);
        let expected = "\
mesh_uplink         no-backend                      3   the service has no endpoint that is ready
mesh_uplink         no-route                        1   the network has no endpoint with the destination address
";
        assert_eq!(lines(&new), expected);
    }

    #[test]
    fn a_quiet_second_has_no_line_and_counters_may_begin_anew() {
        let before = report(10, &[("no-backend", 2)]);
        assert_eq!(lines(&difference(&before, &before)), "");
        let anew = report(3, &[("no-backend", 1)]);
        assert_eq!(difference(&before, &anew), anew);
    }

    #[test]
    fn the_columns_hold_every_name() {
        for program in ebpf_names().0 {
            assert!(program.len() <= 17, "{program}");
        }
        for reason in ebpf_names().1 {
            assert!(reason.len() <= 22 && drop_text(reason).is_some(), "{reason}");
        }
    }

    fn ebpf_names() -> (Vec<&'static str>, Vec<&'static str>) {
        use ebpf_abi::{DropReason, ProgramId};
        let programs = ProgramId::ALL.iter().map(|program| program.label());
        (programs.collect(), DropReason::ALL.iter().map(|reason| reason.label()).collect())
    }
}
