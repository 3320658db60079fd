//! What the kernel says of the machine, read when asked.

use std::path::Path;

/// The machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    pub kernel_version: String,
    /// `PRETTY_NAME` of os-release.
    pub operating_system: String,
    /// `VERSION_ID` of os-release.
    pub os_version: String,
    /// As `uname -m` has it.
    pub architecture: String,
    pub n_cpu: usize,
    pub memory_bytes: i64,
    /// 1 for the hybrid layout too: its controllers are v1.
    pub cgroup_version: u8,
    /// The kernel accounts for swap.
    pub swap_limit: bool,
    pub ipv4_forwarding: bool,
    pub n_fd: usize,
}

impl Machine {
    /// Reads it; what can't be read is empty.
    pub fn read() -> Self {
        let release = read("/etc/os-release");
        Self {
            kernel_version: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            operating_system: release_field(&release, "PRETTY_NAME"),
            os_version: release_field(&release, "VERSION_ID"),
            architecture: std::env::consts::ARCH.to_owned(),
            n_cpu: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory_bytes(&read("/proc/meminfo")),
            cgroup_version: if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 },
            swap_limit: Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
                || Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            ipv4_forwarding: read("/proc/sys/net/ipv4/ip_forward").trim() == "1",
            n_fd: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn release_field(text: &str, key: &str) -> String {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_default().trim_matches('"').to_owned()
}

/// `MemTotal`, which proc(5) gives in kibibytes.
fn memory_bytes(meminfo: &str) -> i64 {
    const KIB: i64 = 1024;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total
        .and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok())
        .map_or(0, |kib| kib.saturating_mul(KIB))
}

/// Go's name for a machine architecture (`GOARCH`), which Docker uses for images and versions.
pub fn go_architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_and_the_systems_files() {
        assert_eq!(memory_bytes("MemTotal:        2 kB\nMemFree: 1 kB\n"), 2048);
        assert_eq!(memory_bytes("nothing"), 0);
        assert_eq!(release_field("NAME=\"x\"\nPRETTY_NAME=\"Debian 12\"\n", "PRETTY_NAME"), "Debian 12");
        assert!(!Machine::read().kernel_version.is_empty());
    }
}
