//! What the kernel says of a container's cgroup, in the unified (v2) and in the hybrid layout.

use std::path::{Path, PathBuf};

pub(super) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// How the host's cgroups are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CgroupLayout {
    /// One tree.
    Unified,
    /// A tree per v1 controller (and a v2 tree without controllers).
    Hybrid,
}

impl CgroupLayout {
    pub fn of_host() -> Self {
        if Path::new(CGROUP_ROOT).join("cgroup.controllers").exists() { Self::Unified } else { Self::Hybrid }
    }

    /// Whether a memory limit can (and, with swap on the host, should) bound swap as well.
    pub fn accounts_swap(self) -> bool {
        let host_has_swap = std::fs::read_to_string("/proc/meminfo").is_ok_and(|text| has_swap(&text));
        let supported = match self {
            Self::Unified => true,
            Self::Hybrid => Path::new(CGROUP_ROOT).join("memory/memory.memsw.limit_in_bytes").exists(),
        };
        host_has_swap && supported
    }

    /// Whether the kernel killed a process of this cgroup for memory.
    pub fn was_out_of_memory(self, cgroup: &str) -> bool {
        let file: PathBuf = match self {
            Self::Unified => {
                Path::new(CGROUP_ROOT).join(cgroup.trim_start_matches('/')).join("memory.events")
            }
            Self::Hybrid => Path::new(CGROUP_ROOT)
                .join("memory")
                .join(cgroup.trim_start_matches('/'))
                .join("memory.oom_control"),
        };
        std::fs::read_to_string(file).is_ok_and(|text| oom_kills(&text) > 0)
    }
}

fn has_swap(meminfo: &str) -> bool {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("SwapTotal:"));
    total.and_then(|rest| rest.split_whitespace().next()).is_some_and(|kib| kib != "0")
}

/// The `oom_kill` counter, which has one name in both layouts.
fn oom_kills(text: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    value.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_both_layouts() {
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n"), 2);
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), 1);
        assert_eq!(oom_kills(""), 0);
        assert!(
            has_swap("MemTotal: 5 kB\nSwapTotal:       1024 kB\n") && !has_swap("SwapTotal:       0 kB\n")
        );
    }
}
