//! The programs' packet counts.

use aya::maps::{MapData, PerCpuArray};
use dataplane_model::inspect::{DropsReport, ProgramCounters};
use ebpf_abi::names::map;
use ebpf_abi::{CounterRow, DropReason, GateRow, ProgramId};

use super::pins::PinDir;
use super::table::{TableError, open};

/// The table of counters.
pub struct Counters(PerCpuArray<MapData, CounterRow>);

impl Counters {
    pub(super) fn open(pins: &PinDir) -> Result<Self, TableError> {
        open(pins, map::COUNTERS).map(Self)
    }

    /// What a program has counted, on all CPUs.
    pub fn program(&self, program: ProgramId) -> Result<CounterRow, TableError> {
        let per_cpu = self
            .0
            .get(&program.number(), 0)
            .map_err(|source| TableError::Read { name: map::COUNTERS, source })?;
        Ok(per_cpu.iter().fold(CounterRow::default(), |sum, row| add(&sum, row)))
    }
}

/// What was kept out of the tables of flows.
pub struct Gate(PerCpuArray<MapData, GateRow>);

/// Sums over all CPUs since the maps were made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct GateCounts {
    /// See [`GateRow::n_unremembered`].
    pub n_unremembered: u64,
    /// See [`GateRow::n_displaced`].
    pub n_displaced: u64,
}

impl Gate {
    pub(super) fn open(pins: &PinDir) -> Result<Self, TableError> {
        open(pins, map::GATE).map(Self)
    }

    pub fn counts(&self) -> Result<GateCounts, TableError> {
        let per_cpu = self.0.get(&0, 0).map_err(|source| TableError::Read { name: map::GATE, source })?;
        Ok(GateCounts {
            n_unremembered: per_cpu.iter().map(|row| row.n_unremembered).sum(),
            n_displaced: per_cpu.iter().map(|row| row.n_displaced).sum(),
        })
    }
}

fn add(a: &CounterRow, b: &CounterRow) -> CounterRow {
    let mut sum = *a;
    sum.received += b.received;
    sum.forwarded += b.forwarded;
    sum.passed += b.passed;
    for (total, count) in sum.drops.iter_mut().zip(b.drops) {
        *total += count;
    }
    sum
}

/// What every program has done with what it saw.
pub fn read_drops(counters: &Counters) -> Result<DropsReport, TableError> {
    let mut report = DropsReport::default();
    for program in ProgramId::ALL {
        report.programs.push(named(*program, &counters.program(*program)?));
    }
    Ok(report)
}

fn named(program: ProgramId, row: &CounterRow) -> ProgramCounters {
    let drops = DropReason::ALL
        .iter()
        .zip(row.drops)
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.label().to_owned(), count))
        .collect();
    ProgramCounters {
        program: program.label().to_owned(),
        received: row.received,
        forwarded: row.forwarded,
        passed: row.passed,
        drops,
    }
}
