//! CPU, memory and process limits; resource limits of the process.

use control_model::spec::{TaskSpec, Ulimit};
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
};

/// Docker's period for `--limit-cpu`, microseconds.
const CPU_PERIOD_US: i64 = 100_000;
/// Smallest memory limit that Docker takes, bytes: below it a container can't start.
const MEMORY_MIN_BYTES: i64 = 6 << 20;

/// A limit that can't be applied. Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitError {
    #[error("Minimum memory limit allowed is 6MB")]
    Memory,
    #[error("invalid ulimit type: {0}")]
    Ulimit(String),
    #[error("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")]
    UlimitOrder { soft: i64, hard: i64 },
}

/// The cgroup limits. `limit_swap`: the kernel accounts swap, so a memory limit must bound it too (to as much again,
/// as Docker does).
pub(super) fn resources(spec: &TaskSpec, limit_swap: bool) -> Result<LinuxResources, LimitError> {
    let deny_all_devices = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build();
    let deny_all_devices = deny_all_devices.expect("all parts are given");
    let mut builder = LinuxResourcesBuilder::default().devices(vec![deny_all_devices]);
    let limits = &spec.resources.limits;
    if limits.nano_cpus > 0 {
        let quota = limits.nano_cpus.saturating_mul(CPU_PERIOD_US) / 1_000_000_000;
        let cpu = LinuxCpuBuilder::default().quota(quota).period(CPU_PERIOD_US.cast_unsigned()).build();
        builder = builder.cpu(cpu.expect("all parts are given"));
    }
    if limits.memory_bytes > 0 || spec.resources.reservations.memory_bytes > 0 {
        builder = builder.memory(memory(spec, limit_swap)?);
    }
    if spec.resources.pids_limit > 0 {
        let pids = LinuxPidsBuilder::default().limit(spec.resources.pids_limit).build();
        builder = builder.pids(pids.expect("all parts are given"));
    }
    Ok(builder.build().expect("all parts are optional"))
}

fn memory(spec: &TaskSpec, limit_swap: bool) -> Result<oci_spec::runtime::LinuxMemory, LimitError> {
    let (limit, reservation) = (spec.resources.limits.memory_bytes, spec.resources.reservations.memory_bytes);
    let mut memory = LinuxMemoryBuilder::default();
    if limit > 0 {
        if limit < MEMORY_MIN_BYTES {
            return Err(LimitError::Memory);
        }
        memory = memory.limit(limit);
        if limit_swap {
            memory = memory.swap(limit.saturating_mul(2));
        }
    }
    if reservation > 0 {
        memory = memory.reservation(reservation);
    }
    Ok(memory.build().expect("all parts are optional"))
}

/// The process's resource limits.
pub(super) fn rlimits(ulimits: &[Ulimit]) -> Result<Vec<PosixRlimit>, LimitError> {
    ulimits.iter().map(rlimit).collect()
}

fn rlimit(ulimit: &Ulimit) -> Result<PosixRlimit, LimitError> {
    let typ = rlimit_type(&ulimit.name).ok_or_else(|| LimitError::Ulimit(ulimit.name.clone()))?;
    let (soft, hard) = (ulimit.soft, ulimit.hard);
    if hard >= 0 && (soft > hard || soft < 0) {
        return Err(LimitError::UlimitOrder { soft, hard });
    }
    // -1 is "unlimited", which is the largest number (getrlimit(2) RLIM_INFINITY).
    let built =
        PosixRlimitBuilder::default().typ(typ).soft(soft.cast_unsigned()).hard(hard.cast_unsigned()).build();
    Ok(built.expect("all parts are given"))
}

fn rlimit_type(name: &str) -> Option<PosixRlimitType> {
    Some(match name {
        "core" => PosixRlimitType::RlimitCore,
        "cpu" => PosixRlimitType::RlimitCpu,
        "data" => PosixRlimitType::RlimitData,
        "fsize" => PosixRlimitType::RlimitFsize,
        "locks" => PosixRlimitType::RlimitLocks,
        "memlock" => PosixRlimitType::RlimitMemlock,
        "msgqueue" => PosixRlimitType::RlimitMsgqueue,
        "nice" => PosixRlimitType::RlimitNice,
        "nofile" => PosixRlimitType::RlimitNofile,
        "nproc" => PosixRlimitType::RlimitNproc,
        "rss" => PosixRlimitType::RlimitRss,
        "rtprio" => PosixRlimitType::RlimitRtprio,
        "rttime" => PosixRlimitType::RlimitRttime,
        "sigpending" => PosixRlimitType::RlimitSigpending,
        "stack" => PosixRlimitType::RlimitStack,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_memory_become_quota_and_limit() {
        let mut spec = TaskSpec::default();
        spec.resources.limits.nano_cpus = 500_000_000;
        spec.resources.limits.memory_bytes = 64 << 20;
        let made = resources(&spec, true).expect("valid");
        assert_eq!(made.cpu().as_ref().and_then(oci_spec::runtime::LinuxCpu::quota), Some(50_000));
        let memory = made.memory().expect("given");
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(128 << 20)));
        spec.resources.limits.memory_bytes = 1 << 20;
        assert_eq!(resources(&spec, true), Err(LimitError::Memory));
    }

    #[test]
    fn bad_ulimits_are_refused() {
        let ulimit = |name: &str, soft, hard| Ulimit { name: name.into(), soft, hard };
        assert!(rlimits(&[ulimit("nofile", 10, 20), ulimit("core", -1, -1)]).is_ok());
        assert!(rlimits(&[ulimit("nofile", 30, 20)]).is_err());
        assert!(rlimits(&[ulimit("files", 1, 2)]).is_err());
    }
}
