//! What happened between two looks at the maps: counters and tables are compared, the programs keep nothing for it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::Instant;

use dataplane_model::inspect::{DropsReport, TopDrop, TopProgram, TopReport, TopRows, TopService};
use dataplane_model::kernel_state::protocol_name;
use ebpf_abi::{FlowTuple, ForwardKey, Ip, OriginalDestination, ProgramId, SocketNatKey};

use super::{InspectError, open};
use crate::bpf::{PinDir, ProgramRuns, TableError, Tables, program_runs, read_drops};

/// One look.
#[derive(Debug)]
pub struct TopReading {
    at: Instant,
    drops: DropsReport,
    runs: BTreeMap<ProgramId, ProgramRuns>,
    entering: Rows,
    kept: Rows,
    sockets: Rows,
}

/// Rows of a table by what they go to: of each a hash, eight bytes for a row of thirty. Two rows of one port are taken for
/// one once in some 10^19 pairs.
type Rows = BTreeMap<String, Vec<u64>>;

/// A column of a service's row.
type Column = fn(&mut TopService) -> &mut TopRows;

impl TopReading {
    /// Costs a pass over the flow tables.
    pub fn take(pin_dir: &Path) -> Result<Self, InspectError> {
        let tables = open(pin_dir)?;
        Ok(Self {
            at: Instant::now(),
            drops: read_drops(&tables.counters)?,
            runs: program_runs(&PinDir::new(pin_dir))?,
            entering: entering(&tables)?,
            kept: kept(&tables)?,
            sockets: sockets(&tables)?,
        })
    }

    /// What happened since `before`.
    pub fn since(&self, before: &Self) -> TopReport {
        let elapsed = self.at.saturating_duration_since(before.at);
        TopReport {
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            services: self.services(before),
            programs: ProgramId::ALL.iter().map(|program| self.program(before, *program)).collect(),
            drops: self.drops(before),
        }
    }

    fn services(&self, before: &Self) -> Vec<TopService> {
        let mut services: BTreeMap<&str, TopService> = BTreeMap::new();
        let kinds: [(_, _, Column); 3] = [
            (&self.entering, &before.entering, |service| &mut service.entering),
            (&self.kept, &before.kept, |service| &mut service.kept),
            (&self.sockets, &before.sockets, |service| &mut service.sockets),
        ];
        for (now, before, rows_of) in kinds {
            for (port, rows) in now {
                let service = services.entry(port).or_default();
                port.clone_into(&mut service.port);
                *rows_of(service) = compare(before.get(port).map_or(&[], Vec::as_slice), rows);
            }
        }
        let mut services: Vec<TopService> = services.into_values().collect();
        let n_new =
            |service: &TopService| service.entering.n_new + service.kept.n_new + service.sockets.n_new;
        services.sort_by_key(|service| std::cmp::Reverse(n_new(service)));
        services
    }

    fn program(&self, before: &Self, program: ProgramId) -> TopProgram {
        let received = |reading: &Self| {
            let found = reading.drops.programs.iter().find(|row| row.program == program.label());
            found.map_or(0, |row| row.received)
        };
        let [was, is] = [before, self].map(|reading| reading.runs.get(&program).copied().unwrap_or_default());
        TopProgram {
            program: program.label().to_owned(),
            n_packets: grown(received(before), received(self)),
            n_runs: grown(was.n_runs, is.n_runs),
            run_time_ns: grown(was.time_ns, is.time_ns),
        }
    }

    fn drops(&self, before: &Self) -> Vec<TopDrop> {
        let mut drops = Vec::new();
        for now in &self.drops.programs {
            let was = before.drops.programs.iter().find(|row| row.program == now.program);
            for (reason, count) in &now.drops {
                let was = was.and_then(|row| row.drops.iter().find(|(known, _)| known == reason));
                let n_packets = grown(was.map_or(0, |(_, count)| *count), *count);
                if n_packets > 0 {
                    let (program, reason) = (now.program.clone(), reason.clone());
                    drops.push(TopDrop { program, reason, n_packets });
                }
            }
        }
        drops
    }
}

/// A counter that is lower than before began anew: its map was replaced.
const fn grown(before: u64, now: u64) -> u64 {
    if now < before { now } else { now - before }
}

/// Both in order.
fn compare(before: &[u64], now: &[u64]) -> TopRows {
    let n_new = now.iter().filter(|row| before.binary_search(row).is_err()).count();
    TopRows { n_now: now.len() as u64, n_new: n_new as u64 }
}

fn entering(tables: &Tables) -> Result<Rows, InspectError> {
    let mut rows = Rows::new();
    tables.flow_cache.visit(|key: FlowTuple, _| {
        let port = format!("{}/{}", key.destination_port, protocol_name(key.protocol));
        rows.entry(port).or_default().push(hash(&key));
        Ok(())
    })?;
    Ok(sorted(rows))
}

fn kept(tables: &Tables) -> Result<Rows, InspectError> {
    let mut rows = Rows::new();
    tables.flows.visit(|key: ForwardKey, _| {
        let port = format!("{}/{}", key.service_port, protocol_name(key.protocol));
        rows.entry(port).or_default().push(hash(&key));
        Ok(())
    })?;
    Ok(sorted(rows))
}

/// By what the sockets' owners asked for: a published port of one of the node's addresses counts as that port.
fn sockets(tables: &Tables) -> Result<Rows, InspectError> {
    let is_own = |address: Ip| -> Result<bool, TableError> {
        let owner = tables.address_owners.get(&address)?;
        Ok(address.is_loopback() || owner.is_some_and(Ip::is_unspecified))
    };
    let mut rows = Rows::new();
    tables.socket_nat.visit(|key: SocketNatKey, original: OriginalDestination| {
        let port = format!("{}/{}", original.port, protocol_name(key.protocol));
        let port = if is_own(original.address)? { port } else { format!("{}:{port}", original.address) };
        rows.entry(port).or_default().push(hash(&(key, original)));
        Ok(())
    })?;
    Ok(sorted(rows))
}

fn hash(row: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    row.hash(&mut hasher);
    hasher.finish()
}

fn sorted(mut rows: Rows) -> Rows {
    for hashes in rows.values_mut() {
        hashes.sort_unstable();
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dataplane_model::inspect::ProgramCounters;

    use super::*;

    fn rows(ports: &[(&str, &[u64])]) -> Rows {
        ports.iter().map(|(port, hashes)| ((*port).to_owned(), hashes.to_vec())).collect()
    }

    fn reading(received: u64, drops: &[(&str, u64)], runs: (u64, u64)) -> TopReading {
        let drops = drops.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        let program = ProgramId::MeshUplink.label().to_owned();
        let counters = ProgramCounters { program, received, forwarded: 0, passed: 0, drops };
        TopReading {
            at: Instant::now(),
            drops: DropsReport { programs: vec![counters] },
            runs: BTreeMap::from([(ProgramId::MeshUplink, ProgramRuns { n_runs: runs.0, time_ns: runs.1 })]),
            entering: Rows::new(),
            kept: Rows::new(),
            sockets: Rows::new(),
        }
    }

    fn uplink(report: &TopReport) -> &TopProgram {
        report.programs.iter().find(|row| row.program == "mesh_uplink").unwrap()
    }

    #[test]
    fn what_is_new_since_the_look_before_is_counted() {
        let mut before = reading(100, &[("no-backend", 2)], (10, 1000));
        let mut now = reading(160, &[("no-backend", 5), ("malformed", 1)], (30, 5000));
        before.entering = rows(&[("8080/tcp", &[1, 5, 9]), ("53/udp", &[3])]);
        now.entering = rows(&[("8080/tcp", &[5, 7, 8]), ("90/tcp", &[4])]);
        now.kept = rows(&[("90/tcp", &[6, 7, 8, 9])]);
        now.sockets = rows(&[("10.0.1.2:80/tcp", &[2])]);
        now.at = before.at + Duration::from_millis(1500);
        let report = now.since(&before);
        assert_eq!(report.elapsed_ms, 1500);
        let services: Vec<_> = report
            .services
            .iter()
            .map(|row| (row.port.as_str(), [row.entering, row.kept, row.sockets].map(|r| (r.n_now, r.n_new))))
            .collect();
        let expected = [
            ("90/tcp", [(1, 1), (4, 4), (0, 0)]),
            ("8080/tcp", [(3, 2), (0, 0), (0, 0)]),
            ("10.0.1.2:80/tcp", [(0, 0), (0, 0), (1, 1)]),
        ];
        assert_eq!(services, expected, "53/udp has no flow any more");
        let TopProgram { n_packets, n_runs, run_time_ns, .. } = *uplink(&report);
        assert_eq!((n_packets, n_runs, run_time_ns), (60, 20, 4000));
        let drops: Vec<_> = report.drops.iter().map(|drop| (drop.reason.as_str(), drop.n_packets)).collect();
        assert_eq!(drops, [("no-backend", 3), ("malformed", 1)]);
    }

    #[test]
    fn counters_may_begin_anew() {
        let (before, now) =
            (reading(100, &[("no-backend", 7)], (50, 900)), reading(8, &[("no-backend", 1)], (3, 60)));
        let report = now.since(&before);
        assert_eq!((uplink(&report).n_packets, uplink(&report).n_runs), (8, 3));
        assert_eq!(report.drops[0].n_packets, 1);
    }
}
