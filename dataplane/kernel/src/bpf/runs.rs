//! How often the kernel ran the programs, and for how long: measured while `kernel.bpf_stats_enabled` is on.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{MapData, MapError};
use aya::programs::loaded_programs;
use ebpf_abi::ProgramId;
use ebpf_abi::counters::GENERIC_XDP_PROGRAM;
use ebpf_abi::names::map;

use super::pins::PinDir;
use super::table::TableError;

/// Longest name that the kernel keeps of a program, bytes (`BPF_OBJ_NAME_LEN` less the end).
const KERNEL_NAME_LEN: usize = 15;

/// Since the program was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProgramRuns {
    pub n_runs: u64,
    pub time_ns: u64,
}

/// The runs of the programs that use the pinned maps. A program that is unloaded meanwhile, can't be asked, or has a name
/// that the kernel cuts to that of another, counts nothing.
pub fn program_runs(pins: &PinDir) -> Result<BTreeMap<ProgramId, ProgramRuns>, TableError> {
    let failed = |source: MapError| TableError::Read { name: map::COUNTERS, source };
    let counters =
        MapData::from_pin(pins.map(map::COUNTERS)).and_then(|map| map.info()).map_err(failed)?.id();
    let mut all: BTreeMap<ProgramId, ProgramRuns> = BTreeMap::new();
    for info in loaded_programs().flatten() {
        let Some(program) = named(info.name()) else { continue };
        if !matches!(info.map_ids(), Ok(Some(ids)) if ids.contains(&counters)) {
            continue;
        }
        if let Ok(fd) = info.fd()
            && let Ok(text) = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))
        {
            let runs = all.entry(program).or_default();
            runs.n_runs += number(&text, "run_cnt:");
            runs.time_ns += number(&text, "run_time_ns:");
        }
    }
    Ok(all)
}

/// The program that the kernel calls so; `None` where several are cut to one name.
fn named(name: &[u8]) -> Option<ProgramId> {
    if name == GENERIC_XDP_PROGRAM.as_bytes() {
        return Some(ProgramId::MeshXdp);
    }
    let mut called = ProgramId::ALL.iter().copied().filter(|program| kernel_name(*program) == name);
    let program = called.next()?;
    called.next().is_none().then_some(program)
}

fn kernel_name(program: ProgramId) -> &'static [u8] {
    let label = program.label().as_bytes();
    &label[..label.len().min(KERNEL_NAME_LEN)]
}

/// The number behind `field`; 0 where there is none.
fn number(text: &str, field: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(field));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_names_are_found() {
        let text = "pos:\t0\nprog_type:\t3\nrun_time_ns:\t1200\nrun_cnt:\t7\nrecursion_misses:\t0\n";
        assert_eq!(
            [number(text, "run_time_ns:"), number(text, "run_cnt:"), number(text, "none:")],
            [1200, 7, 0]
        );
        for program in [ProgramId::MeshUplink, ProgramId::MeshXdp, ProgramId::MeshVxlanOut] {
            assert_eq!(named(kernel_name(program)), Some(program));
        }
        assert_eq!(kernel_name(ProgramId::MeshGetpeername4), kernel_name(ProgramId::MeshGetpeername6));
        assert_eq!(named(kernel_name(ProgramId::MeshGetpeername4)), None, "either of two");
        assert_eq!(named(b"mesh"), None);
    }
}
